"""Finds what a test or a whole command leaves behind: processes, descriptors, threads, sockets, shared memory, session
folders, huge pages. LIBRARY of the tests (conftest.py asks it after each engine) and PROCESS around a command:

    python tests/leaks.py --watch -- bash tools/test        exit status 1, with a list, if anything is left

A process is recognised as ours by a mark that every child inherits and no daemon loses: an unusual soft limit on the
bytes of POSIX message queues, which nothing here uses. Parentage won't do (an orphan moves to init, a daemon leaves its
session), nor will the environment (a process that sets its title writes over it). Files carry no mark: those that
appear in the well-known places count as left behind, unless a live process outside the mark has them open, so that
another person's session beside this one is not mistaken for ours.

No other dependency than the standard library: .ci/run starts it before anything is installed.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import os
import random
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

SHM = Path("/dev/shm")
# A name in /dev/shm is ours if it holds one of these; other programs' segments come and go on their own.
SHM_WORDS = ("ray", "plasma")
TEMPORARY = {Path("/tmp"), Path(os.environ.get("TMPDIR") or "/tmp")}
# Linux gives every process 819,200 by default; the marks lie below, where no one sets them.
MARKS = range(300_001, 400_000)


# -- the mark ---------------------------------------------------------------------------------------------------------


def mark_this_process() -> int:
    """Marks this process, and so all it starts from now on. Returns the mark; a marked process keeps its own."""
    soft, hard = resource.getrlimit(resource.RLIMIT_MSGQUEUE)
    if soft in MARKS:
        return soft
    if hard != resource.RLIM_INFINITY and hard < MARKS.stop:
        raise RuntimeError(f"can't mark processes: the hard limit on message queues is {hard}, below {MARKS.stop}")
    mark = random.SystemRandom().choice(MARKS)
    resource.setrlimit(resource.RLIMIT_MSGQUEUE, (mark, hard))
    return mark


def mark_of(pid: int) -> int | None:
    """The soft limit that serves as mark; None if the process is gone or another user's."""
    try:
        limits = Path(f"/proc/{pid}/limits").read_text()
    except OSError:
        return None
    for line in limits.splitlines():
        if line.startswith("Max msgqueue size"):
            soft = line[len("Max msgqueue size") :].split()[0]
            return int(soft) if soft.isdigit() else None
    return None


def pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def describe(pid: int) -> str:
    """`123 (state S, parent 1) ray worker`; what can no longer be read is left out."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        name = Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return f"{pid} (just gone)"
    return f"{pid} (state {after_name[0]}, parent {after_name[1]}) {command[:200] or name}"


def has_ended(pid: int) -> bool:
    """Whether the process runs no more: gone altogether, or a zombie for whom nobody waited yet.

    A process can end between the opening of its file and the reading (ProcessLookupError)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


def ancestors(pid: int) -> set[int]:
    found = set()
    while pid > 0:
        found.add(pid)
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            break
    return found


def marked_processes(mark: int) -> set[int]:
    """All live processes with the mark, except this one and those that it runs under."""
    return {pid for pid in pids() if mark_of(pid) == mark and not has_ended(pid)} - ancestors(os.getpid())


def zombie_children() -> set[int]:
    """Children of this process that have ended and that nobody waited for."""
    found = set()
    for pid in pids():
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            if fields[0] == "Z" and int(fields[1]) == os.getpid():
                found.add(pid)
    return found


# -- places where files appear ----------------------------------------------------------------------------------------


def hugepage_mounts() -> list[Path]:
    mounts = []
    for line in Path("/proc/mounts").read_text().splitlines():
        _device, where, kind, *_ = line.split()
        if kind == "hugetlbfs":
            mounts.append(Path(where.replace("\\040", " ")))
    return mounts


def files_in_known_places() -> set[str]:
    """Segments in /dev/shm, files on huge pages, session folders (and what else stands beside them)."""
    found: set[str] = set()
    with contextlib.suppress(OSError):
        found |= {str(p) for p in SHM.iterdir() if any(word in p.name.lower() for word in SHM_WORDS)}
    for mount in hugepage_mounts():
        with contextlib.suppress(OSError):
            found |= {str(p) for p in mount.rglob("*") if not p.is_dir()}
    for base in (match for folder in TEMPORARY for match in folder.glob("ray-*")):
        # The user's folder itself may stay; each session inside it must go.
        with contextlib.suppress(OSError):
            found |= {str(p) for p in base.iterdir()} if base.is_dir() else {str(base)}
    return found


def bound_sockets() -> dict[str, set[str]]:
    """File name of each Unix socket that somebody is bound to -> what its descriptors are called in /proc/PID/fd.

    A name is there as long as the socket lives, whether or not its file was removed.
    """
    found: dict[str, set[str]] = {}
    for line in Path("/proc/net/unix").read_text().splitlines()[1:]:
        fields = line.split(maxsplit=7)
        if len(fields) == 8 and any(word in fields[7] for word in ("/ray-", "plasma", "redis")):
            found.setdefault(fields[7], set()).add(f"socket:[{fields[6]}]")
    return found


def held_by_strangers(path: str, mark: int, sockets: frozenset[str] | set[str] = frozenset()) -> bool:
    """Whether a live process without the mark has the file (or one below it, or one of the sockets) open or mapped."""
    for pid in pids():
        if mark_of(pid) == mark:
            continue
        opened = {to.removesuffix(" (deleted)") for to in descriptors(pid).values()}
        if path in opened or sockets & opened or any(to.startswith(path + "/") for to in opened):
            return True
        try:
            if path in Path(f"/proc/{pid}/maps").read_text():
                return True
        except OSError:
            continue
    return False


# -- this process itself ----------------------------------------------------------------------------------------------


def descriptors(pid: int | None = None) -> dict[int, str]:
    """Open descriptors and what each leads to; those that close while we look are left out."""
    found: dict[int, str] = {}
    folder = f"/proc/{pid or 'self'}/fd"
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):
            with contextlib.suppress(OSError):
                found[int(name)] = os.readlink(f"{folder}/{name}")
    if pid is None:
        # The one that listed the folder is among the names but already closed: readlink has left it out.
        return {fd: to for fd, to in found.items() if not to.startswith("/proc/")}
    return found


def shared_mappings() -> set[str]:
    """Shared memory mapped by this process: memfds, /dev/shm, huge pages."""
    found = set()
    for line in Path("/proc/self/maps").read_text().splitlines():
        fields = line.split(maxsplit=5)
        if len(fields) == 6 and fields[5].startswith(("/memfd:", "/dev/shm/", "/dev/hugepages", "/mnt/huge")):
            found.add(fields[5])
    return found


@dataclass(frozen=True)
class Snapshot:
    """What there was at one moment. Two of them, compared, say what the time between them left behind."""

    mark: int
    processes: frozenset[int]
    zombies: frozenset[int]
    descriptors: dict[int, str]
    threads: frozenset[int | None]
    mappings: frozenset[str]
    files: frozenset[str]
    sockets: frozenset[str]

    @staticmethod
    def take() -> Snapshot:
        """Marks this process if it isn't yet."""
        mark = mark_this_process()
        return Snapshot(
            mark,
            frozenset(marked_processes(mark)),
            frozenset(zombie_children()),
            descriptors(),
            frozenset(t.ident for t in threading.enumerate()),
            frozenset(shared_mappings()),
            frozenset(files_in_known_places()),
            frozenset(bound_sockets()),
        )

    def leftovers(self, *, inside: bool = True) -> list[str]:
        """What is there now and was not then, one line each, fit for a person. Empty: nothing is left.

        Args:
            inside: also look at this process itself (descriptors, threads, mappings, children not waited for).
        """
        now = Snapshot.take()
        lines = [f"process {describe(pid)}" for pid in sorted(now.processes - self.processes)]
        for path in sorted(now.files - self.files):
            if not held_by_strangers(path, self.mark) and os.path.lexists(path):
                lines.append(f"file {path}")
        bound = bound_sockets()
        for path in sorted(now.sockets - self.sockets):
            # Asked again at the end: a stranger may have gone, with its socket, while we looked for it.
            held = path not in bound or held_by_strangers(path, self.mark, bound[path])
            if not held and path in bound_sockets():
                lines.append(f"socket {path}")
        if inside:
            lines += [f"child not waited for: {describe(pid)}" for pid in sorted(now.zombies - self.zombies)]
            lines += [
                f"descriptor {fd} -> {to}"
                for fd, to in sorted(now.descriptors.items())
                if self.descriptors.get(fd) != to
            ]
            lines += [f"shared memory mapped: {name}" for name in sorted(now.mappings - self.mappings)]
            lines += [f"thread {t.name}" for t in self._new_threads()]
        return lines

    def _new_threads(self) -> list[threading.Thread]:
        # pytest-timeout has a thread for each test: this one is younger than an engine that tests share.
        return [
            t
            for t in threading.enumerate()
            if t.ident not in self.threads and t.is_alive() and not t.name.startswith("pytest_timeout")
        ]

    def wait_until_clean(self, timeout_s: float = 30.0, *, inside: bool = True) -> list[str]:
        """leftovers(), asked again until it is empty or the time is up.

        Blocks: yes. There is no event for "the kernel has finished tearing down a process", hence the asking again.
        """
        deadline = time.monotonic() + timeout_s
        if inside and self.leftovers(inside=True):
            gc.collect()  # what only a cycle holds, as a traceback's frames do, is Python's to free, and freed late
        while lines := self.leftovers(inside=inside):
            if time.monotonic() > deadline:
                return lines
            time.sleep(0.02)
        return []


# -- around a command -------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def nothing_left(timeout_s: float = 30.0) -> Iterator[Snapshot]:
    """Raises AssertionError, with the list, if the block leaves anything behind."""
    before = Snapshot.take()
    yield before
    lines = before.wait_until_clean(timeout_s)
    assert not lines, "left behind:\n  " + "\n  ".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Runs a command and fails if it leaves anything behind.")
    parser.add_argument("--watch", action="store_true", required=True)
    parser.add_argument("--grace", type=float, default=30.0, help="seconds that leftovers may need to go by themselves")
    parser.add_argument("command", nargs="+")
    options = parser.parse_args(arguments)
    before = Snapshot.take()
    status = subprocess.run(options.command, check=False).returncode
    lines = before.wait_until_clean(options.grace, inside=False)
    if lines:
        print(f"left behind by {' '.join(options.command)}:", *lines, sep="\n  ", file=sys.stderr)
        return status or 1
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    sys.exit(main())
