"""Machines that are folders of this one, for tests of scripts and pages that start clusters by hand. LIBRARY.

Each has a home folder and sessions of its own, and nothing but its own login shell sets the PATH. `ssh`, `srun` and
`scontrol` on the PATH are tests/cluster/fakes.sh: they run the command here, as the machine it is meant for.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

from tests.wait import wait_until

ROOT = Path(__file__).resolve().parents[2]
FAKES = ("ssh", "srun", "scontrol")


class Places:
    """The first of `names` is the machine that a person sits at."""

    def __init__(self, root: Path, names: list[str]) -> None:
        root.mkdir()
        self.root = root
        self.names = names
        commands = root / "bin"
        commands.mkdir()
        for fake in FAKES:
            (commands / fake).symlink_to(ROOT / "tests" / "cluster" / "fakes.sh")
        (commands / "ray").write_text(f'#!/bin/sh\nexec {sys.executable} -m ray.cli "$@"\n')
        (commands / "python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
        for command in ("ray", "python"):
            (commands / command).chmod(0o755)
        for name in names:
            home = self.home(name)
            home.mkdir(parents=True)
            (root / name / "t").mkdir()
            (home / ".bash_profile").write_text(
                f"export PATH={commands}:/usr/local/bin:/usr/bin:/bin PYTHONPATH={ROOT} PLACES={root}\n"
            )

    def home(self, name: str) -> Path:
        return self.root / name / "home"

    def run(self, name: str, script: str, status: int = 0, cwd: Path | None = None, **environment: str) -> str:
        """What a script that is typed on a machine says, both streams together."""
        done = subprocess.run(
            ["bash", "-l", "-c", script],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            timeout=100,
            cwd=cwd or self.home(name),
            env={"HOME": str(self.home(name)), "RAY_TMPDIR": str(self.root / name / "t"), "LANG": "C", **environment},
        )
        assert done.returncode == status, f"{script}: status {done.returncode}\n{done.stdout}"
        return done.stdout

    def close(self) -> None:
        """Ends what still runs; asserts that nothing of it is left."""
        for name in reversed(self.names):
            self.run(name, "ray stop")
            folder = self.root / name / "t"
            wait_until(lambda folder=folder: not os.listdir(folder))
        shutil.rmtree(self.root)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
