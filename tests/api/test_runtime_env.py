"""`runtime_env` on a real engine: of the job, of a task, of an actor; each field's effect, its failure, what it
leaves."""

from __future__ import annotations

import json
import os
import stat
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

import ray
from ray.exceptions import RuntimeEnvSetupError
from ray.job_config import JobConfig
from ray.runtime_env import RuntimeEnv, RuntimeEnvConfig
from tests.conftest import Engine


@ray.remote
def variable(*names: str) -> Any:
    values = [os.environ.get(name) for name in names]
    return values[0] if len(values) == 1 else values


@ray.remote
class Asker:
    def variable(self, name: str) -> str | None:
        return os.environ.get(name)

    def child(self, name: str) -> Any:
        return ray.get(variable.remote(name))

    def env(self) -> Any:
        return ray.get_runtime_context().runtime_env


def env_stats() -> dict[str, Any]:
    from ray import api

    stats: dict[str, Any] = api.engine().rpc("stats")["runtime_envs"]
    return stats


# -- where it can be given, and who inherits it --------------------------------------------------------------------


def test_a_task_finds_its_env_vars_and_other_tasks_do_not(ray_shared: None) -> None:
    with_env = variable.options(runtime_env={"env_vars": {"RENV_A": "1"}})
    assert ray.get([with_env.remote("RENV_A"), variable.remote("RENV_A")]) == ["1", None]
    assert ray.get(variable.options(runtime_env=RuntimeEnv(env_vars={"RENV_A": "2"})).remote("RENV_A")) == "2"


def test_the_examples_of_the_documentation(ray_shared: None) -> None:
    @ray.remote
    def f() -> str | None:
        return os.environ.get("RENV_DOC")

    @ray.remote
    class SomeClass:
        def ask(self) -> str | None:
            return os.environ.get("RENV_DOC")

    # Invoke a remote task that will run in a specified runtime environment.
    assert ray.get(f.options(runtime_env=RuntimeEnv(env_vars={"RENV_DOC": "f"})).remote()) == "f"
    # Instantiate an actor that will run in a specified runtime environment.
    actor = SomeClass.options(runtime_env=RuntimeEnv(env_vars={"RENV_DOC": "actor"})).remote()
    assert ray.get(actor.ask.remote()) == "actor"

    # Specify a runtime environment in the task definition.
    @ray.remote(runtime_env=RuntimeEnv(env_vars={"RENV_DOC": "g"}))
    def g() -> str | None:
        return os.environ.get("RENV_DOC")

    # Specify a runtime environment in the actor definition.
    @ray.remote(runtime_env=RuntimeEnv(env_vars={"RENV_DOC": "class"}))
    class MyClass:
        def ask(self) -> str | None:
            return os.environ.get("RENV_DOC")

    assert ray.get(g.remote()) == "g" and ray.get(MyClass.remote().ask.remote()) == "class"
    assert ray.get(g.options(runtime_env={"env_vars": {"RENV_DOC": "over"}}).remote()) == "over"


@pytest.mark.parametrize("given_by", ["init", "job_config"])
def test_the_jobs_environment_is_that_of_all_its_tasks_and_actors(engine: Engine, given_by: str) -> None:
    env = {"env_vars": {"RENV_JOB": "job", "RENV_BOTH": "job"}}
    engine.start(
        num_cpus=2, **({"runtime_env": env} if given_by == "init" else {"job_config": JobConfig(runtime_env=env)})
    )
    assert ray.get(variable.remote("RENV_JOB")) == "job"
    assert ray.get(Asker.remote().variable.remote("RENV_JOB")) == "job"
    task = variable.options(runtime_env={"env_vars": {"RENV_BOTH": "task"}})
    assert ray.get(task.remote("RENV_JOB", "RENV_BOTH")) == ["job", "task"]
    assert "RENV_JOB" not in os.environ, "the driver itself stays as it is"
    assert ray.get_runtime_context().runtime_env == env
    engine.stop()


def test_children_inherit_and_what_they_say_is_merged_over_it(ray_shared: None) -> None:
    @ray.remote
    def parent() -> Any:
        child = variable.options(runtime_env={"env_vars": {"RENV_B": "new", "RENV_C": "c"}})
        return ray.get([variable.remote("RENV_A", "RENV_B"), child.remote("RENV_A", "RENV_B", "RENV_C")])

    env = {"env_vars": {"RENV_A": "a", "RENV_B": "b"}}
    assert ray.get(parent.options(runtime_env=env).remote()) == [["a", "b"], ["a", "new", "c"]]
    assert ray.get(Asker.options(runtime_env=env).remote().child.remote("RENV_B")) == "b"


def test_the_runtime_context_knows_the_environment(ray_shared: None) -> None:
    env = RuntimeEnv(env_vars={"RENV_X": "1"}, config={"setup_timeout_seconds": 60})
    found = ray.get(Asker.options(runtime_env=env).remote().env.remote())
    assert found == env and isinstance(found, RuntimeEnv)

    @ray.remote
    def text() -> str:
        return ray.get_runtime_context().get_runtime_env_string()

    assert json.loads(ray.get(text.options(runtime_env=env).remote())) == env
    assert ray.get(text.remote()) == "{}" and ray.get_runtime_context().runtime_env == {}


def test_a_value_may_refer_to_what_was_there_before(ray_shared: None) -> None:
    env = {"env_vars": {"PATH": "${PATH}:/opt/renv", "RENV_NONE": "<${RENV_MISSING}>"}}
    path, none = ray.get(variable.options(runtime_env=env).remote("PATH", "RENV_NONE"))
    assert path == os.environ["PATH"] + ":/opt/renv" and none == "<>"


def test_a_worker_is_used_again_only_in_its_own_environment(ray_shared: None) -> None:
    @ray.remote
    def pid_and(name: str) -> tuple[int, str | None]:
        return os.getpid(), os.environ.get(name)

    one = pid_and.options(runtime_env={"env_vars": {"RENV_W": "1"}})
    two = pid_and.options(runtime_env={"env_vars": {"RENV_W": "2"}})
    seen: dict[int, set[str | None]] = {}
    for pid, value in ray.get([f.remote("RENV_W") for _ in range(10) for f in (one, two, pid_and)]):
        seen.setdefault(pid, set()).add(value)
    assert all(len(values) == 1 for values in seen.values())
    assert len(seen) <= 6, "an environment's worker is used again"


def test_an_actor_restarts_in_its_environment(ray_shared: None) -> None:
    @ray.remote(max_restarts=1, max_task_retries=1, runtime_env={"env_vars": {"RENV_R": "1"}})
    class Mortal:
        def ask(self) -> tuple[int, str | None]:
            return os.getpid(), os.environ.get("RENV_R")

        def die(self) -> None:
            os._exit(1)

    actor = Mortal.remote()
    before, _ = ray.get(actor.ask.remote())
    actor.die.options(max_task_retries=0).remote()
    after, value = ray.get(actor.ask.remote())
    assert value == "1" and after != before


@pytest.mark.parametrize("where", ["options", "remote", "actor", "init", "job_config"])
def test_a_wrong_environment_is_refused_where_it_is_written(engine: Engine, where: str) -> None:
    bad: Any = {"pipp": ["x"]}
    writes: dict[str, Any] = {
        "options": lambda: variable.options(runtime_env=bad),
        "remote": lambda: ray.remote(runtime_env=bad)(lambda: None),
        "actor": lambda: Asker.options(runtime_env=bad),
        "init": lambda: ray.init(runtime_env=bad),
        "job_config": lambda: JobConfig(runtime_env=bad),
    }
    if where == "init":
        engine.stop()
    with pytest.raises(ValueError, match="runtime_env: unknown field 'pipp'; did you mean 'pip'"):
        writes[where]()
    if where == "init":
        assert not ray.is_initialized()


def test_an_init_whose_folder_is_not_there_leaves_nothing(engine: Engine) -> None:
    engine.stop()
    with pytest.raises(ValueError, match="working_dir='/no/such'"):
        engine.start(runtime_env={"working_dir": "/no/such"})
    engine.stop()


# -- working_dir, py_modules ---------------------------------------------------------------------------------------


@ray.remote
def look(*modules: str) -> dict[str, Any]:
    import importlib

    return {
        "cwd": os.getcwd(),
        "files": sorted(name for name in os.listdir(".") if not name.startswith(".")),
        "values": [importlib.import_module(name).VALUE for name in modules],
        "env": dict(ray.get_runtime_context().runtime_env),
    }


def tree(folder: Path, files: dict[str, str]) -> str:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    return str(folder)


def test_a_working_dir_is_where_the_task_runs_and_what_it_imports(ray_shared: None, tmp_path: Path) -> None:
    files = {"renv_wd.py": "VALUE = 1", "data.txt": "x", "big.bin": "y", ".gitignore": "ignored.txt", "ignored.txt": ""}
    env = {"working_dir": tree(tmp_path, files), "excludes": ["*.bin"]}
    found = ray.get(look.options(runtime_env=env).remote("renv_wd"))
    assert found["files"] == ["__pycache__", "data.txt", "renv_wd.py"] or found["files"] == ["data.txt", "renv_wd.py"]
    assert found["values"] == [1] and found["cwd"] != str(tmp_path)
    assert found["env"]["working_dir"].startswith("gcs://_ray_pkg_"), "named by its content"
    built = env_stats()["built"]
    again = ray.get(look.options(runtime_env=env).remote())
    assert again["cwd"] == found["cwd"] and env_stats()["built"] == built


@pytest.mark.parametrize("how", ["path", "uri"])
def test_a_working_dir_may_be_a_zip_file(ray_shared: None, tmp_path: Path, how: str) -> None:
    path, inside = tmp_path / "wd.zip", "top/" if how == "uri" else ""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{inside}renv_zipped_{how}.py", "VALUE = 'zipped'")
    given = str(path) if how == "path" else f"file://{path}"
    found = ray.get(look.options(runtime_env={"working_dir": given}).remote(f"renv_zipped_{how}"))
    assert found["values"] == ["zipped"]


def test_a_working_dir_may_be_fetched_over_http(ray_shared: None, tmp_path: Path) -> None:
    import functools
    import http.server
    import threading

    with zipfile.ZipFile(tmp_path / "wd.zip", "w") as archive:
        archive.writestr("project/renv_http.py", "VALUE = 'http'")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        address = f"http://127.0.0.1:{server.server_port}"
        found = ray.get(look.options(runtime_env={"working_dir": f"{address}/wd.zip"}).remote("renv_http"))
        assert found["values"] == ["http"]
        with pytest.raises(RuntimeEnvSetupError, match=r"missing\.zip can't be fetched: HTTP Error 404"):
            ray.get(look.options(runtime_env={"working_dir": f"{address}/missing.zip"}).remote())
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_an_environment_and_a_placement_group_go_together(ray_shared: None) -> None:
    from ray.util.placement_group import placement_group, remove_placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    group = placement_group([{"CPU": 1}])
    ray.get(group.ready())
    strategy = PlacementGroupSchedulingStrategy(placement_group=group)
    env = {"env_vars": {"RENV_PG": "1"}}
    assert ray.get(variable.options(runtime_env=env, scheduling_strategy=strategy).remote("RENV_PG")) == "1"
    actor = Asker.options(runtime_env=env, scheduling_strategy=strategy, num_cpus=1).remote()
    assert ray.get(actor.variable.remote("RENV_PG")) == "1"
    remove_placement_group(group)


def test_py_modules_can_be_imported(ray_shared: None, tmp_path: Path) -> None:
    tree(tmp_path, {"renv_pkg/__init__.py": "VALUE = 'package'", "renv_mod.py": "VALUE = 'module'"})
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        archive.writestr("renv_in_zip/__init__.py", "VALUE = 'zip'")
    modules = [str(tmp_path / "renv_pkg"), str(tmp_path / "renv_mod.py"), f"file://{tmp_path}/z.zip"]
    env = {"py_modules": modules}
    found = ray.get(look.options(runtime_env=env).remote("renv_pkg", "renv_mod", "renv_in_zip"))
    assert found["values"] == ["package", "module", "zip"] and found["cwd"] == os.getcwd()


def test_a_module_that_is_imported_here_can_be_given_itself(ray_shared: None, tmp_path: Path) -> None:
    tree(tmp_path, {"renv_here/__init__.py": "VALUE = 'here'"})
    sys.path.insert(0, str(tmp_path))
    try:
        import renv_here  # type: ignore[import-not-found]
    finally:
        sys.path.remove(str(tmp_path))
    assert ray.get(look.options(runtime_env={"py_modules": [renv_here]}).remote("renv_here"))["values"] == ["here"]


def test_a_broken_archive_fails_the_task_and_the_actor_with_its_name(ray_shared: None, tmp_path: Path) -> None:
    (tmp_path / "broken.zip").write_text("no zip")
    env = {"working_dir": str(tmp_path / "broken.zip")}
    with pytest.raises(RuntimeEnvSetupError, match="no zip file that can be unpacked"):
        ray.get(look.options(runtime_env=env).remote())
    actor = Asker.options(runtime_env=env).remote()
    with pytest.raises(RuntimeEnvSetupError, match="no zip file that can be unpacked"):
        ray.get(actor.variable.remote("A"))
    with pytest.raises(RuntimeEnvSetupError, match="can't be fetched"):
        ray.get(look.options(runtime_env={"working_dir": f"file://{tmp_path}/missing.zip"}).remote())


@pytest.mark.parametrize("ray_start", [{"_system_config": {"runtime_env_package_bytes_max": 1000}}], indirect=True)
def test_a_package_is_capped(ray_start: Any, tmp_path: Path) -> None:
    tree(tmp_path, {"large": "x" * 2000})
    with pytest.raises(ValueError, match=r"working_dir|has 0\.0 MiB.*large"):
        look.options(runtime_env={"working_dir": str(tmp_path)}).remote()
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a", "x" * 5000)
    with pytest.raises(RuntimeEnvSetupError, match="unpacked"):
        ray.get(look.options(runtime_env={"working_dir": str(tmp_path / "bomb.zip")}).remote())


@pytest.mark.parametrize("ray_start", [{"_system_config": {"runtime_env_cache_bytes": 1000}}], indirect=True)
def test_what_nobody_uses_goes_when_the_cache_is_full(ray_start: Any, tmp_path: Path) -> None:
    folders = []
    for number in range(3):
        tree(tmp_path / str(number), {"data": str(number) * 600})
        found = ray.get(look.options(runtime_env={"working_dir": str(tmp_path / str(number))}).remote())
        assert found["files"] == ["data"]
        folders.append(found["cwd"])
    stats = env_stats()
    assert stats["built"] == 3 and stats["removed"] >= 1
    assert not os.path.exists(folders[0]) and os.path.exists(folders[2])
    # and comes back when it is wanted
    assert ray.get(look.options(runtime_env={"working_dir": str(tmp_path / "0")}).remote())["files"] == ["data"]


# -- worker_process_setup_hook -------------------------------------------------------------------------------------


def test_a_setup_hook_runs_once_in_each_worker_before_its_first_task(ray_shared: None, tmp_path: Path) -> None:
    def hook() -> None:
        os.environ["RENV_HOOK"] = f"{os.environ.get('RENV_HOOK', '')}+{ray.is_initialized()}"

    env = {"worker_process_setup_hook": hook, "env_vars": {"RENV_HOOK": "vars"}}
    with_hook = variable.options(runtime_env=env)
    assert ray.get([with_hook.remote("RENV_HOOK") for _ in range(4)]) == ["vars+True"] * 4
    tree(tmp_path, {"renv_hooks.py": "import os\ndef set_up():\n    os.environ['RENV_HOOK2'] = 'by name'\n"})
    named = {"worker_process_setup_hook": "renv_hooks.set_up", "working_dir": str(tmp_path)}
    assert ray.get(variable.options(runtime_env=named).remote("RENV_HOOK2")) == "by name"
    assert ray.get(Asker.options(runtime_env=named).remote().variable.remote("RENV_HOOK2")) == "by name"


def test_a_hook_that_raises_fails_those_who_wait_with_its_traceback(ray_shared: None) -> None:
    def hook() -> None:
        raise ArithmeticError("hook says no")

    env = {"worker_process_setup_hook": hook}
    with pytest.raises(RuntimeEnvSetupError, match="ArithmeticError: hook says no"):
        ray.get(variable.options(runtime_env=env).remote("A"))
    with pytest.raises(RuntimeEnvSetupError, match="ArithmeticError: hook says no"):
        ray.get(Asker.options(runtime_env=env).remote().variable.remote("A"))
    with pytest.raises(RuntimeEnvSetupError, match="No module named 'renv_no_such'"):
        ray.get(variable.options(runtime_env={"worker_process_setup_hook": "renv_no_such.f"}).remote("A"))


# -- config --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("eager", [True, False])
def test_the_jobs_environment_is_built_at_once_only_if_it_is_eager(engine: Engine, tmp_path: Path, eager: bool) -> None:
    from tests.wait import wait_until

    tree(tmp_path, {"a": "1"})
    config = RuntimeEnvConfig(eager_install=eager)
    engine.start(num_cpus=1, runtime_env={"working_dir": str(tmp_path), "config": config})
    if eager:
        wait_until(lambda: env_stats()["built"] == 1)
    else:
        assert env_stats()["envs"] == {"WAITING": 0, "BUILDING": 0, "STOPPING": 0, "READY": 0}
    assert ray.get(look.remote())["files"] == ["a"]
    engine.stop()


def executable(folder: Path, name: str, text: str) -> None:
    path = folder / name
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
