"""The command `ray`: what it prints, and its exit status."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from ray._version import __version__

ROOT = Path(__file__).resolve().parents[2]


def ray_command(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ray.cli", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_version_is_that_of_the_package() -> None:
    done = ray_command("--version")
    assert (done.returncode, done.stdout) == (0, f"ray, version {__version__}\n")


def test_an_unknown_command_is_refused_with_the_known_ones_named() -> None:
    done = ray_command("frobnicate")
    assert done.returncode == 2
    assert "frobnicate" in done.stderr and "microbenchmark" in done.stderr


def test_microbenchmark_measures_the_rows_asked_for() -> None:
    done = ray_command("microbenchmark", "--only", "1:1 actor calls sync", "--seconds", "0.01")
    assert done.returncode == 0, done.stdout + done.stderr
    name, _, rest = done.stdout.partition("sync")
    assert name == "1:1 actor calls "
    assert float(rest.split()[0]) > 0 and rest.split()[1] == "calls/s"


def test_microbenchmark_refuses_a_row_that_is_not_there() -> None:
    done = ray_command("microbenchmark", "--only", "no such row")
    assert done.returncode == 2
    assert "no row of that name" in done.stderr
