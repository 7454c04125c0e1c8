"""What type checkers make of programs that use ray, in their strict modes: right ones pass, wrong lines are found."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = Path(__file__).parent / "programs"
_BESIDE = str(Path(sys.executable).parent)
PYRIGHT = shutil.which("pyright") or shutil.which("basedpyright") or shutil.which("basedpyright", path=_BESIDE)


def marked(program: str) -> list[int]:
    """Lines that say of themselves that they are wrong."""
    text = (PROGRAMS / f"{program}.py").read_text()
    return [number for number, line in enumerate(text.splitlines(), 1) if line.endswith("# wrong")]


@pytest.fixture(scope="module")
def found_by_mypy(tmp_path_factory):
    """{program: lines with errors}. One run for all of them: most of its time goes to ray's own files."""
    folder = tmp_path_factory.mktemp("mypy")
    settings = folder / "mypy.ini"
    # As for a user, who has ray installed: errors are shown in the programs only.
    settings.write_text("[mypy]\nplugins = ray.mypy_plugin\nstrict = True\nfollow_imports = silent\n")
    programs = [
        str(PROGRAMS / f"{name}.py")
        for name in ("functions", "functions_wrong", "actors", "actors_wrong", "public_names")
    ]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file", settings, "--cache-dir", folder / "cache", *programs],
        capture_output=True,
        text=True,
        cwd=folder,
        env={"PATH": "/usr/bin:/bin", "MYPYPATH": str(ROOT), "PYTHONPATH": str(ROOT), "HOME": str(folder)},
        timeout=300,
    )
    assert done.returncode in (0, 1), done.stdout + done.stderr
    found: dict[str, list[int]] = {}
    for match in re.finditer(r"(\w+)\.py:(\d+): error: ", done.stdout):
        found.setdefault(match[1], []).append(int(match[2]))
    return found


@pytest.mark.parametrize("program", ["functions", "actors", "public_names"])
def test_mypy_accepts_right_programs(found_by_mypy, program):
    assert found_by_mypy.get(program, []) == []


@pytest.mark.parametrize("program", ["functions_wrong", "actors_wrong"])
def test_mypy_finds_each_wrong_line(found_by_mypy, program):
    assert sorted(set(found_by_mypy[program])) == marked(program) != []


@pytest.fixture(scope="module")
def found_by_pyright():
    if PYRIGHT is None:
        pytest.skip("neither pyright nor basedpyright is installed")
    programs = [
        str(PROGRAMS / f"{name}.py") for name in ("functions", "functions_wrong", "actors_plain", "public_names")
    ]
    done = subprocess.run(
        [PYRIGHT, "--outputjson", "--level", "error", "--pythonpath", sys.executable, *programs],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=300,
    )
    found: dict[str, list[int]] = {Path(program).stem: [] for program in programs}
    for error in json.loads(done.stdout)["generalDiagnostics"]:
        found[Path(error["file"]).stem].append(error["range"]["start"]["line"] + 1)
    return found


@pytest.mark.parametrize("program", ["functions", "actors_plain", "public_names"])
def test_pyright_accepts_right_programs(found_by_pyright, program):
    assert found_by_pyright[program] == []


def test_pyright_finds_each_wrong_line(found_by_pyright):
    assert sorted(set(found_by_pyright["functions_wrong"])) == marked("functions_wrong") != []


# What they inherit from is another package's, which tells type checkers nothing.
OF_OTHERS = {"RayPlugin", "RayDaskCallback", "RayBackend"}


def test_each_public_symbol_has_a_type_that_is_written_down(tmp_path):
    if PYRIGHT is None:
        pytest.skip("neither pyright nor basedpyright is installed")
    done = subprocess.run(
        [PYRIGHT, "--pythonpath", sys.executable, "--outputjson", "--ignoreexternal", "--verifytypes", "ray"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "HOME": str(tmp_path)},
        timeout=300,
    )
    symbols = json.loads(done.stdout)["typeCompleteness"]["symbols"]
    exported = [symbol for symbol in symbols if symbol["isExported"]]
    assert len(exported) > 1000
    loose = {symbol["name"]: symbol["diagnostics"] for symbol in exported if not symbol["isTypeKnown"]}
    loose.update({s["name"]: s["diagnostics"] for s in exported if s["isTypeAmbiguous"]})
    # Nobody imports from the processes behind `ray://` and the commands, though their names have no underscore.
    public = {name: found for name, found in loose.items() if not name.startswith(("ray.client.", "ray.cli."))}
    assert {name: found for name, found in public.items() if name.rpartition(".")[2] not in OF_OTHERS} == {}
