"""An environment with programs that were written for Ray, from the package index, in which `import ray` is this tree.

Made once for the versions below, in build/third-party/ (half a minute), and kept there. What ray itself needs is found
in the environment of the tests, behind what the programs brought along.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = Path(__file__).parent / "programs"
REQUIREMENTS = (
    *("modin==0.37.1", "sf-hamilton==1.90.0", "evotorch==0.6.1", "torch==2.13.0"),
    *("daft==0.7.26", "scikit-learn==1.9.1", "dask[dataframe]==2026.8.0"),
)
TENSORFLOW = ("tensorflow-cpu==2.21.0",)  # of its own: it is large, and pins what it needs
INSTALL_S = 420.0
RUN_S = 100.0

Run = Callable[[str], str]


@pytest.fixture(scope="session")
def made(request: pytest.FixtureRequest) -> dict[str, Future[Path]]:
    """Interpreters, by the fixture that gives them: those that tests of this run will ask for are made side by side."""
    environments = {"python": REQUIREMENTS, "python_with_tensorflow": TENSORFLOW}
    wanted = {name for item in request.session.items for name in getattr(item, "fixturenames", ())}
    with ThreadPoolExecutor() as pool:
        return {name: pool.submit(interpreter_with, environments[name]) for name in environments.keys() & wanted}


@pytest.fixture(scope="session")
def python(made: dict[str, Future[Path]]) -> Path:
    """The interpreter of that environment."""
    return made["python"].result()


@pytest.fixture(scope="session")
def python_with_tensorflow(made: dict[str, Future[Path]]) -> Path:
    """The interpreter of one with TensorFlow."""
    return made["python_with_tensorflow"].result()


def interpreter_with(requirements: tuple[str, ...]) -> Path:
    """Of an environment in which these are installed, made unless it is there. Skips the test if it can't be."""
    # The path file below points at the environment of the tests, which may be another the next time, and this one gone.
    made_from = [*requirements, sys.version, str(ROOT), sysconfig.get_path("purelib")]
    key = hashlib.sha256("\n".join(made_from).encode()).hexdigest()[:12]
    folder = ROOT / "build" / "third-party" / key
    interpreter = folder / "bin" / "python"
    if not (folder / "complete").exists():
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        # First, so that pip finds ray installed where a program asks for it, and brings no other.
        path_file = next(folder.glob("lib/python3*/site-packages")) / "zz_ray_of_this_tree.pth"
        path_file.write_text(f"{ROOT}\n{sysconfig.get_path('purelib')}\n")
        # --no-compile: of all that is installed only some is imported, and compiled then.
        pip = [interpreter, "-m", "pip", "install", "--no-compile", "--quiet", "--disable-pip-version-check"]
        pip += requirements
        done = subprocess.run(pip, capture_output=True, text=True, timeout=INSTALL_S)
        if done.returncode != 0 and "No matching distribution" in done.stderr and "connection" in done.stderr.lower():
            pytest.skip(f"the package index can't be reached: {done.stderr[-500:]}")
        assert done.returncode == 0, done.stderr
        assert not list(folder.glob("lib/python3*/site-packages/ray")), "pip has installed another ray"
        (folder / "complete").touch()
    return interpreter


@pytest.fixture
def run_program(python: Path, tmp_path: Path) -> Run:
    """Runs tests/third_party/programs/NAME in a folder of its own; returns its output. It must end with status 0."""
    return runner(python, tmp_path)


@pytest.fixture
def run_with_tensorflow(python_with_tensorflow: Path, tmp_path: Path) -> Run:
    """The same, with TensorFlow."""
    return runner(python_with_tensorflow, tmp_path)


def runner(python: Path, tmp_path: Path) -> Run:
    def run(name: str) -> str:
        env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "RAY_ADDRESS")}
        done = subprocess.run(
            [python, PROGRAMS / name], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=RUN_S
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run
