"""Every example runs at a tiny size, checks itself, and says what its header promises."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# File: (arguments for a tiny run, words of its output, modules it needs).
EXAMPLES = {
    "quickstart.py": (
        ["--files=60", "--chunk=10", "--trials=3", "--steps=40"],
        ["times as fast", "The best of 3 trials", "are recognised"],
        ["numpy", "sklearn"],
    ),
}


def test_every_example_is_tested_here():
    assert {path.name for path in (ROOT / "examples").glob("*.py")} == set(EXAMPLES)


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_example_runs(name, tmp_path):
    arguments, words, modules = EXAMPLES[name]
    for module in modules:
        pytest.importorskip(module)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / name), *arguments],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for word in words:
        assert word in done.stdout, done.stdout
    assert "Traceback" not in done.stderr, done.stderr
