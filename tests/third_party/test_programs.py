"""Libraries written for Ray, as they come from the package index, compute on this engine what others compute too.

Each program compares with an independent computation itself, and prints what it compared.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.third_party.conftest import INSTALL_S, ROOT, RUN_S, Run

# The first test that runs installs the programs.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(INSTALL_S + RUN_S)]


def test_modin_agrees_with_pandas(run_program: Run) -> None:
    assert run_program("frames.py").split() == [
        *("groupby", "sort", "merge", "apply", "describe", "concat", "read_csv", "pivot", "fillna", "to_parquet"),
        *("read_parquet", "freed", "on", "Ray"),
    ]


def test_hamilton_agrees_with_itself_without_ray(run_program: Run) -> None:
    assert run_program("dataflow.py").split() == ["graph", "adapter,", "dynamic", "tasks"]


def test_daft_agrees_with_pandas(run_program: Run) -> None:
    found = run_program("daft_frames.py").split()
    assert found == ["groupby", "join", "filter", "sort", "function", "repartition", "parquet"]


def test_scikit_learn_and_dask_agree_with_themselves_without_ray(run_program: Run) -> None:
    assert run_program("estimators.py").split() == ["estimators", "frames"]


def test_collectives_of_torch_tensors(python: Path, tmp_path: Path) -> None:
    """The tests that the environment of the tests, without torch, leaves out."""
    tests = ROOT / "tests" / "libraries" / "test_collective.py"
    command = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", ROOT, "-k", "torch", tests]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=RUN_S)
    assert done.returncode == 0 and "6 passed" in done.stdout, done.stdout + done.stderr


def test_weights_of_tensorflow_1_and_2_models_travel(run_with_tensorflow: Run) -> None:
    assert run_with_tensorflow("tensorflow_variables.py").split() == ["graph", "averaged", "eager"]


def test_evotorch_finds_the_minimum_with_two_actors(run_program: Run) -> None:
    assert run_program("evolution.py").splitlines()[-1] == "found by 2 actors"
