"""What the builders stand on: parts that are made once however many builders want them, and tools whose output is kept.

In the builder process. A part is made beside its final name under a lock of its own and renamed:
whoever finds it finds all of it. A builder killed half-way leaves an unfinished folder, which the next one of that
part removes.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

OUTPUT_LINES_KEPT = 60  # of a tool that failed: pip says what is wrong in its last lines


class BuildError(Exception):
    """The environment can't be built; the text is for the user, the tool's own words in it."""


class Site:
    """Where one environment is built, and what has come of it so far.

    `context` is what a worker needs to know to live in it (`_enter.py`):
        sys_path    folders that come first when modules are looked for
        site        site-packages of a virtual environment, likewise
        cwd         where the worker runs
        env_vars    set before the user's own
        bin         folders that come first in PATH
        python      the command that starts its interpreter; with `exec`, the worker must be started by it
    """

    def __init__(self, session_dir: str, folder: str, env: Mapping[str, Any], bytes_max: int) -> None:
        self.session_dir = session_dir
        self.folder = folder
        self.env = env
        self.bytes_max = bytes_max  # of a package that is fetched
        self.sizes: dict[str, int] = {}
        self.context: dict[str, Any] = {"sys_path": [], "site": None, "cwd": None, "env_vars": {}, "bin": []}
        self.context.update(python=[sys.executable], exec=False)

    def part(self, name: str, make: Callable[[str], None]) -> str:
        """The folder of a part, made by make(folder) unless it is there. One builder at a time makes it."""
        target = f"{self.folder}/{name}"
        with open(f"{self.folder}/{name}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not os.path.exists(f"{target}/.complete"):
                shutil.rmtree(target, ignore_errors=True)  # of a builder that was killed
                os.mkdir(target, 0o700)
                try:
                    make(target)
                except BaseException:
                    shutil.rmtree(target, ignore_errors=True)
                    raise
                with open(f"{target}/.complete", "w") as file:
                    file.write(str(size_of(target)))
            with open(f"{target}/.complete") as file:
                self.sizes[name] = int(file.read())
        return target

    def run(self, argv: list[str], env: Mapping[str, str] | None = None, cwd: str | None = None) -> str:
        """Runs a tool to its end; what it prints goes to the log. Returns its output.

        Raises: BuildError: it isn't there, or it failed: with its last words.
        """
        print("$ " + " ".join(argv), flush=True)
        kept: deque[str] = deque(maxlen=OUTPUT_LINES_KEPT)
        everything: list[str] = []
        try:
            process = subprocess.Popen(
                argv,
                env={**os.environ, **(self.env.get("env_vars") or {}), **(env or {})},
                cwd=cwd or self.folder,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
            )
        except OSError as error:
            raise BuildError(f"{argv[0]} can't be run: {error.strerror}") from None
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            kept.append(line)
            everything.append(line)
        code = process.wait()
        if code != 0:
            how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
            raise BuildError(f"`{' '.join(argv)}` {how}; it wrote:\n{''.join(kept)}".rstrip())
        return "".join(everything)


def need(tool: str, field: str, *others: str) -> str:
    """The path of the first of these programs that is installed. Raises: BuildError."""
    for name in (tool, *others):
        found = shutil.which(name)
        if found:
            return found
    names = " or ".join((tool, *others))
    raise BuildError(f"the field {field!r} needs {names}, and there is none on the PATH of this node")


def size_of(folder: str) -> int:
    total = 0
    for base, _, names in os.walk(folder):
        for name in names:
            total += os.lstat(f"{base}/{name}").st_size
    return total
