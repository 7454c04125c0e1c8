"""Machines that are folders of this one, for tests of scripts and pages that start clusters by hand. LIBRARY.

Each has a home folder and sessions of its own, and nothing but its own login shell sets the PATH. `ssh`, `srun` and
the like on the PATH are tests/cluster/fakes.sh: they run the command here, as the machine it is meant for. `docker` and
`kubectl`, which other shells find, too, are fake_docker.py, or a real one that the test names, and fake_kubectl.py.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

from tests.wait import wait_until

from . import terminal

ROOT = Path(__file__).resolve().parents[2]
FAKES = ("ssh", "srun", "scontrol", "sbatch", "pip")


class Places:
    """The first of `names` is the machine that a person sits at."""

    def __init__(self, root: Path, names: list[str], docker: str | None = None) -> None:
        """Args: docker: a shell's words for it, in place of the stand-in."""
        root.mkdir()
        self.root = root
        self.timeout_s = 100.0  # of a command
        self.names = names
        commands = root / "bin"
        commands.mkdir()
        for fake in FAKES:
            (commands / fake).symlink_to(ROOT / "tests" / "cluster" / "fakes.sh")
        (commands / "ray").write_text(f'#!/bin/sh\nexec {sys.executable} -m ray.cli "$@"\n')
        (commands / "python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
        system = root / "system"
        system.mkdir()
        docker = docker or f"exec {sys.executable} {ROOT}/tests/cluster/fake_docker.py"
        (system / "docker").write_text(f'#!/bin/bash\n{docker} "$@"\n')
        kubectl = f"exec {sys.executable} {ROOT}/tests/cluster/fake_kubectl.py"
        (system / "kubectl").write_text(f'#!/bin/sh\n{kubectl} "$@"\n')
        for program in (commands / "ray", commands / "python", system / "docker", system / "kubectl"):
            program.chmod(0o755)
        for name in names:
            home = self.home(name)
            home.mkdir(parents=True)
            (root / name / "t").mkdir()
            (home / ".bash_profile").write_text(
                f"export PATH={commands}:{system}:/usr/local/bin:/usr/bin:/bin PYTHONPATH={ROOT} PLACES={root}\n"
            )

    def home(self, name: str) -> Path:
        return self.root / name / "home"

    def environment(self, name: str) -> dict[str, str]:
        return {"HOME": str(self.home(name)), "RAY_TMPDIR": str(self.root / name / "t"), "LANG": "C"}

    def converse(self, name: str, command: str, lines: list[str]) -> list[str]:
        """What is said to each line that is typed into what `command` opens: tests/cluster/terminal.py."""
        return terminal.converse(command, lines, self.home(name), self.environment(name))

    def run(self, name: str, script: str, status: int = 0, cwd: Path | None = None, **environment: str) -> str:
        """What a script that is typed on a machine says, both streams together."""
        done = subprocess.run(
            ["bash", "-l", "-c", script],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            timeout=self.timeout_s,
            cwd=cwd or self.home(name),
            env={**self.environment(name), **environment},
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
