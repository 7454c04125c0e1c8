"""Fields of `runtime_env` that need a tool. pip is the real one, on a wheel made here, with no network; conda, podman,
nsys, mpirun and uv are programs on the PATH, which write down how they were called and do the least that works.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import ray
from ray.exceptions import RuntimeEnvSetupError
from tests.conftest import Engine
from tests.leaks import has_ended
from tests.wait import wait_until

PYTHON = f"{sys.version_info[0]}.{sys.version_info[1]}"


def make_wheel(folder: Path, name: str, version: str, requires: str = "") -> str:
    """A wheel with one module of that name, whose VALUE is the version."""
    path, info = folder / f"{name}-{version}-py3-none-any.whl", f"{name}-{version}.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{name}.py", f"VALUE = {version!r}\n")
        metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        archive.writestr(f"{info}/METADATA", metadata + (f"Requires-Dist: {requires}\n" if requires else ""))
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    return str(path)


class Tools:
    """Programs on the PATH. Each call's arguments are a line of JSON in `calls`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.calls_file = folder / "calls"

    def put(self, name: str, body: str) -> None:
        path = self.folder / name
        path.write_text(
            f"#!{sys.executable} -S\nimport json, os, sys\n"
            f"with open({str(self.calls_file)!r}, 'a') as file:\n"
            f"    file.write(json.dumps([{name!r}, *sys.argv[1:]]) + '\\n')\n"
            f"args = sys.argv[1:]\n{body}\n"
        )
        path.chmod(0o755)

    def calls(self, name: str, *first: str) -> list[list[str]]:
        lines = self.calls_file.read_text().splitlines() if self.calls_file.exists() else []
        calls = [json.loads(line) for line in lines]
        return [call[1:] for call in calls if call[0] == name and call[1 : 1 + len(first)] == list(first)]


@pytest.fixture(scope="module")
def tools_folder(tmp_path_factory: pytest.TempPathFactory, engine: Engine) -> Iterator[Path]:
    """On the PATH of every session that starts meanwhile."""
    folder, path = tmp_path_factory.mktemp("tools"), os.environ["PATH"]
    os.environ["PATH"] = f"{folder}:{path}"
    engine.stop()
    yield folder
    os.environ["PATH"] = path
    engine.stop()


@pytest.fixture
def tools(tools_folder: Path, engine: Engine) -> Tools:
    """A session whose node finds the programs that the test puts into a folder; at first there are none."""
    for name in os.listdir(tools_folder):
        os.unlink(tools_folder / name)
    engine.share()
    return Tools(tools_folder)


@ray.remote
def value_of(module: str) -> Any:
    import importlib

    return importlib.import_module(module).VALUE


@ray.remote
def process() -> dict[str, Any]:
    with open("/proc/self/cmdline") as file:
        title = file.read().rstrip("\0")
    return {"executable": sys.executable, "title": title, "env": dict(os.environ), "pid": os.getpid()}


# -- pip -----------------------------------------------------------------------------------------------------------


def local(tmp_path: Path, *packages: str) -> list[str]:
    return ["--no-index", f"--find-links {tmp_path}", *packages]


def built() -> int:
    from ray import api

    return int(api.engine().rpc("stats")["runtime_envs"]["built"])


def test_pip_installs_once_for_all_who_ask_and_for_nobody_else(tools: Tools, tmp_path: Path) -> None:
    make_wheel(tmp_path, "renv_pip", "1.0")
    env = {"pip": local(tmp_path, "renv_pip==1.0")}
    before = built()

    @ray.remote(num_cpus=0, runtime_env=env)
    class Holder:
        def value(self) -> Any:
            import renv_pip  # type: ignore[import-not-found]

            return renv_pip.VALUE, renv_pip.__file__

    @ray.remote(runtime_env=env)
    def in_a_child() -> str:
        import subprocess

        code = "import renv_pip, cloudpickle; print(renv_pip.VALUE)"
        return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()

    task = value_of.options(runtime_env=env).remote("renv_pip")
    holders = [Holder.remote() for _ in range(2)]
    found = ray.get([holder.value.remote() for holder in holders])
    assert len(set(found)) == 1 and found[0][0] == "1.0" and "/pip-" in found[0][1]
    assert ray.get([task, in_a_child.remote()]) == ["1.0", "1.0"] and built() == before + 1
    with pytest.raises(ModuleNotFoundError):
        ray.get(value_of.options(max_retries=0).remote("renv_pip"))


def test_what_pip_says_is_in_the_error(tools: Tools, tmp_path: Path) -> None:
    env = {"pip": local(tmp_path, "renv-that-is-not-there")}
    with pytest.raises(RuntimeEnvSetupError, match="No matching distribution found for renv-that-is-not-there"):
        ray.get(value_of.options(runtime_env=env).remote("x"))


def test_pip_check_finds_what_is_missing_and_options_are_passed_on(tools: Tools, tmp_path: Path) -> None:
    make_wheel(tmp_path, "renv_broken", "1.0", requires="renv-missing-thing")
    packages = local(tmp_path, "renv_broken")
    pip = {"packages": packages, "pip_install_options": ["--no-deps"], "pip_check": True}
    with pytest.raises(RuntimeEnvSetupError, match=r"check .*\n.*renv-missing-thing"):
        ray.get(value_of.options(runtime_env={"pip": pip}).remote("renv_broken"))


def test_pip_version_is_what_is_asked_for(tools: Tools, tmp_path: Path) -> None:
    """There is no such version in this folder: the demand is what fails."""
    pip = {"packages": ["x"], "pip_version": "==0.0.1"}
    env = {"pip": pip, "env_vars": {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path)}}
    with pytest.raises(RuntimeEnvSetupError, match=r"pip==0\.0\.1"):
        ray.get(value_of.options(runtime_env=env).remote("x"))


def test_requirements_may_lie_in_the_working_dir(tools: Tools, tmp_path: Path) -> None:
    make_wheel(tmp_path, "renv_in_wd", "4.0")
    (tmp_path / "requirements.txt").write_text("renv_in_wd\n")
    variable = "${RAY_RUNTIME_ENV_CREATE_WORKING_DIR}"
    packages = ["--no-index", f"--find-links {variable}", f"-r {variable}/requirements.txt"]
    env = {"working_dir": str(tmp_path), "pip": packages}
    assert ray.get(value_of.options(runtime_env=env).remote("renv_in_wd")) == "4.0"


def test_a_wheel_can_be_one_of_the_py_modules(tools: Tools, tmp_path: Path) -> None:
    env = {"py_modules": [make_wheel(tmp_path, "renv_wheel", "5.0")]}
    assert ray.get(value_of.options(runtime_env=env).remote("renv_wheel")) == "5.0"


# -- deaths and time -----------------------------------------------------------------------------------------------

HANG = "import time\nopen(os.environ['RENV_PID'], 'w').write(str(os.getpid()))\ntime.sleep(600)"


def hanging(tools: Tools, pid_file: Path) -> dict[str, Any]:
    tools.put("conda", HANG)
    return {"conda": f"renv_hangs_{pid_file.parent.name}", "env_vars": {"RENV_PID": str(pid_file)}}


def pid_in(file: Path) -> int:
    wait_until(lambda: file.exists() and file.read_text())
    return int(file.read_text())


def test_a_build_that_takes_too_long_is_killed_with_its_tool(tools: Tools, tmp_path: Path) -> None:
    env = {**hanging(tools, tmp_path / "pid"), "config": {"setup_timeout_seconds": 3}}
    with pytest.raises(RuntimeEnvSetupError, match="not set up within 3 s"):
        ray.get(process.options(runtime_env=env).remote())
    if (tmp_path / "pid").exists():
        wait_until(lambda: has_ended(pid_in(tmp_path / "pid")))


def test_a_build_that_nobody_waits_for_any_more_is_killed(tools: Tools, tmp_path: Path) -> None:
    ref = process.options(runtime_env=hanging(tools, tmp_path / "pid")).remote()
    pid = pid_in(tmp_path / "pid")
    ray.cancel(ref)
    wait_until(lambda: has_ended(pid))


def test_a_killed_builder_fails_those_who_wait(tools: Tools, tmp_path: Path) -> None:
    ref = process.options(runtime_env=hanging(tools, tmp_path / "pid")).remote()
    tool = pid_in(tmp_path / "pid")
    with open(f"/proc/{tool}/stat") as file:
        builder = int(file.read().rpartition(")")[2].split()[1])
    os.kill(builder, signal.SIGKILL)
    with pytest.raises(RuntimeEnvSetupError, match="the builder process killed by SIGKILL"):
        ray.get(ref)
    wait_until(lambda: has_ended(tool))


# -- conda ---------------------------------------------------------------------------------------------------------


def test_conda_by_name_runs_the_workers_with_that_environments_python(tools: Tools, tmp_path: Path) -> None:
    prefix = tmp_path / "renv_conda"
    (prefix / "bin").mkdir(parents=True)
    (prefix / "bin" / "python").symlink_to(sys.executable)
    tools.put("conda", f"print(json.dumps({{'envs': ['/base', {str(prefix)!r}]}}))")
    found = ray.get(process.options(runtime_env={"conda": "renv_conda", "env_vars": {"RENV_C": "1"}}).remote())
    assert found["executable"] == f"{prefix}/bin/python"
    assert found["env"]["CONDA_PREFIX"] == str(prefix) and found["env"]["RENV_C"] == "1"
    assert found["env"]["PATH"].startswith(f"{prefix}/bin:")
    assert tools.calls("conda") == [["env", "list", "--json"]] and found["title"] == "ray worker"
    with pytest.raises(
        RuntimeEnvSetupError, match="no conda environment 'other' on this node; there are: base, renv_conda"
    ):
        ray.get(process.options(runtime_env={"conda": "other"}).remote())


@pytest.mark.parametrize("how", ["dict", "file"])
def test_conda_makes_an_environment_from_its_specification(tools: Tools, tmp_path: Path, how: str) -> None:
    seen = tmp_path / "seen.yml"
    tools.put(
        "conda",
        "import shutil\nprefix, file = args[args.index('--prefix') + 1], args[args.index('--file') + 1]\n"
        f"shutil.copy(file, {str(seen)!r})\nos.makedirs(prefix + '/bin')\n"
        f"os.symlink({sys.executable!r}, prefix + '/bin/python')",
    )
    specification = {"channels": ["defaults"], "dependencies": ["codecov"]}
    (tmp_path / "environment.yaml").write_text(f"name: from_{how}\n")
    conda: Any = specification if how == "dict" else str(tmp_path / "environment.yaml")
    found = ray.get(process.options(runtime_env={"conda": conda}).remote())
    assert tools.calls("conda", "env", "create")[-1][:4] == ["env", "create", "--yes", "--file"]
    assert found["env"]["CONDA_PREFIX"].endswith("/env")
    if how == "dict":
        version = ".".join(map(str, sys.version_info[:3]))
        assert json.loads(seen.read_text())["dependencies"] == [f"python={version}", "codecov"]
    else:
        assert seen.read_text() == "name: from_file\n"


def test_a_conda_environment_of_another_python_is_refused(tools: Tools, tmp_path: Path) -> None:
    prefix = tmp_path / "renv_old"
    (prefix / "bin").mkdir(parents=True)
    (prefix / "bin" / "python").write_text("#!/bin/sh\necho 3.4\n")
    (prefix / "bin" / "python").chmod(0o755)
    tools.put("conda", f"print(json.dumps({{'envs': [{str(prefix)!r}]}}))")
    with pytest.raises(RuntimeEnvSetupError, match=rf"has Python 3\.4, and the driver {PYTHON}"):
        ray.get(process.options(runtime_env={"conda": "renv_old"}).remote())


def test_a_tool_that_is_not_there_is_named(tools: Tools) -> None:
    for env in ({"conda": "x"}, {"nsight": "default"}, {"mpi": {"worker_entry": "m.f"}}):
        with pytest.raises(RuntimeEnvSetupError, match=r"needs .*, and there is none on the PATH"):
            ray.get(process.options(runtime_env=env).remote())


# -- uv ------------------------------------------------------------------------------------------------------------


def test_uv_installs_into_an_environment_of_its_own(tools: Tools) -> None:
    tools.put(
        "uv",
        "import glob\nif args[1] == 'install':\n"
        "    folder = os.path.dirname(os.path.dirname(args[args.index('--python') + 1]))\n"
        "    open(glob.glob(folder + '/lib/*/site-packages')[0] + '/renv_uv.py', 'w').write('VALUE = \"uv\"')",
    )
    uv = {"packages": ["renv_uv==1"], "uv_check": True, "uv_pip_install_options": ["--offline"]}
    assert ray.get(value_of.options(runtime_env={"uv": uv}).remote("renv_uv")) == "uv"
    (install,), (check,) = tools.calls("uv", "pip", "install"), tools.calls("uv", "pip", "check")
    assert install[-3] == "-r" and install[-1] == "--offline" and check[2] == "--python"
    with open(install[-2]) as file:
        assert file.read() == "renv_uv==1\n"
    tools.put("uv", "print('uv says no')\nsys.exit(2)")
    with pytest.raises(RuntimeEnvSetupError, match="ended with exit code 2; it wrote:\nuv says no"):
        ray.get(value_of.options(runtime_env={"uv": ["other"]}).remote("x"))


# -- programs around the interpreter ---------------------------------------------------------------------------------

RUN_IMAGE = (
    "import subprocess\nif args[0] == 'run':\n    sys.exit(subprocess.call([{!r}, *args[args.index('img') + 1 :]]))"
)


@pytest.mark.parametrize("tool", ["podman", "docker"])
@pytest.mark.parametrize("field", ["container", "image_uri"])
def test_an_image_is_pulled_and_the_worker_is_run_in_it(tools: Tools, tool: str, field: str) -> None:
    tools.put(tool, RUN_IMAGE.format(sys.executable))
    if tool == "docker":
        tools.put("podman", "sys.exit(127)")
        os.unlink(tools.folder / "podman")
    image: Any = {"image": "img", "run_options": ["--cap-drop SYS_ADMIN", "--log-level=debug"]}
    env = {field: image if field == "container" else "img", "env_vars": {"RENV_IN": tool}}
    assert ray.get(process.options(runtime_env=env).remote())["env"]["RENV_IN"] == tool
    assert tools.calls(tool, "pull") == [["pull", "img"]]
    run = tools.calls(tool, "run")[0]
    session = ray.get_runtime_context().gcs_address
    assert f"{session}:{session}" in run and "--network=host" in run and run[run.index("RENV_IN") - 1] == "--env"
    assert run[run.index("img") - 2 : run.index("img") + 3] == [
        "--entrypoint",
        "python",
        "img",
        "-m",
        "ray._node.exec_worker",
    ]
    if field == "container":
        at = run.index("--cap-drop")
        assert run[at : at + 3] == ["--cap-drop", "SYS_ADMIN", "--log-level=debug"]


def test_an_image_that_cant_be_pulled_or_run_says_so(tools: Tools) -> None:
    tools.put("podman", "print('no such image')\nsys.exit(125)")
    with pytest.raises(RuntimeEnvSetupError, match="no such image"):
        ray.get(process.options(runtime_env={"image_uri": "none"}).remote())


def test_nsight_profiles_each_worker(tools: Tools) -> None:
    tools.put("nsys", "import subprocess\nat = args.index('-c')\nsys.exit(subprocess.call(args[at - 1 :]))")
    env = {"nsight": {"t": "cuda", "stop-on-exit": "true"}}
    found = ray.get(process.options(runtime_env=env).remote())
    trial, real = tools.calls("nsys", "profile")
    logs = f"{ray.get_runtime_context().gcs_address}/logs/nsight"
    assert real[:6] == ["profile", "-o", f"{logs}/worker_process_%p", "--stop-on-exit=true", "-t", "cuda"]
    assert trial[-3:] == [sys.executable, "-c", ""] and found["title"] == "ray worker"
    ray.get(process.options(runtime_env={"nsight": "default"}).remote())
    assert "cuda,cudnn,cublas,nvtx" in tools.calls("nsys", "profile")[-1]


def test_mpi_makes_the_worker_rank_0_and_runs_the_entry_in_the_others(tools: Tools, tmp_path: Path) -> None:
    (tmp_path / "renv_mpi.py").write_text(
        "import os\ndef rank():\n    open(os.environ['RENV_RANKS'] + os.environ['OMPI_COMM_WORLD_RANK'], 'w').close()\n"
    )
    tools.put(
        "mpirun",
        "import subprocess\nif args != ['--version']:\n"
        "    env = lambda rank: {**os.environ, 'OMPI_COMM_WORLD_RANK': str(rank)}\n"
        "    ranks = [subprocess.Popen(args[2:], env=env(rank)) for rank in range(3)]\n"
        "    sys.exit(max(rank.wait() for rank in ranks))",
    )
    mpi = {"args": ["-n", "3"], "worker_entry": "renv_mpi.rank"}
    env = {"mpi": mpi, "working_dir": str(tmp_path), "env_vars": {"RENV_RANKS": f"{tmp_path}/rank-"}}
    found = ray.get(process.options(runtime_env=env).remote())
    assert found["env"]["OMPI_COMM_WORLD_RANK"] == "0" and tools.calls("mpirun", "-n", "3")
    wait_until(lambda: {"rank-1", "rank-2"} <= set(os.listdir(tmp_path)))


def test_py_executable_starts_the_workers(tools: Tools) -> None:
    tools.put("mypython", f"os.environ['RENV_BY'] = args[0]\nos.execv({sys.executable!r}, ['python', *args[1:]])")
    found = ray.get(process.options(runtime_env={"py_executable": "mypython --mark"}).remote())
    assert found["env"]["RENV_BY"] == "--mark"
    env = {"py_executable": "renv-no-such-python"}
    with pytest.raises(RuntimeEnvSetupError, match="renv-no-such-python can't be run"):
        ray.get(process.options(runtime_env=env).remote())


def test_an_actor_is_killed_with_what_was_started_for_it(tools: Tools) -> None:
    tools.put("nsys", "import subprocess\nat = args.index('-c')\nsys.exit(subprocess.call(args[at - 1 :]))")

    @ray.remote(runtime_env={"nsight": "default"})
    class Held:
        def pids(self) -> list[int]:
            return [os.getpid(), os.getppid()]

    actor = Held.remote()
    pids = ray.get(actor.pids.remote())
    ray.kill(actor)
    wait_until(lambda: all(has_ended(pid) for pid in pids))


def test_nothing_is_left_of_a_build_when_the_session_ends(tools: Tools, tmp_path: Path, engine: Engine) -> None:
    process.options(runtime_env=hanging(tools, tmp_path / "pid")).remote()
    tool = pid_in(tmp_path / "pid")
    engine.stop()  # asserts that nothing is left
    assert has_ended(tool)


def test_nothing_is_left_of_a_build_when_the_node_dies(tools: Tools, tmp_path: Path, engine: Engine) -> None:
    from ray import api

    ref = process.options(runtime_env=hanging(tools, tmp_path / "pid")).remote()
    tool = pid_in(tmp_path / "pid")
    node = api.engine().rpc("stats")["pids"]["node"]
    os.kill(node, signal.SIGKILL)
    with pytest.raises(ray.exceptions.RayError):
        ray.get(ref)
    wait_until(lambda: has_ended(tool))
    engine.stop()  # asserts that nothing is left
