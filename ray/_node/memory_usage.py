"""Reads how much memory is in use, by whom, and of what limit: /proc and the control groups' files. No decisions.

Node process, its main thread. A reading of machine and control group costs 0.1 ms. Which of both kinds of control
groups the kernel offers is found once; the limits are read each time, since they can be changed while we run.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import NamedTuple

from .children import children_of
from .memory_watch import Reading, in_words

PROCESSES_SHOWN = 5

_PAGE = os.sysconf("SC_PAGE_SIZE")


class Group(NamedTuple):
    """A control group's files: what is in use, the most that may be, the key of its inactive file cache."""

    folder: str
    usage: str
    limit: str
    inactive: str


def control_groups(root: str = "/sys/fs/cgroup", own: str = "/proc/self/cgroup") -> list[Group]:
    """The groups whose limits bind this process: its own and all above it. Empty: none is mounted."""
    found = []
    for line in _lines(own):
        _, controllers, path = line.rstrip("\n").split(":", 2)
        if controllers == "" and os.path.exists(f"{root}/cgroup.controllers"):
            top, names = root, ("memory.current", "memory.max", "inactive_file")
        elif "memory" in controllers.split(","):
            top, names = f"{root}/memory", ("memory.usage_in_bytes", "memory.limit_in_bytes", "total_inactive_file")
        else:
            continue
        parts = [part for part in path.split("/") if part]
        # In a container the path may be the host's, of which nothing is to be seen here: then the top is our own group.
        for depth in range(len(parts), -1, -1):
            folder = "/".join([top, *parts[:depth]])
            if os.path.exists(f"{folder}/{names[0]}"):
                found.append(Group(folder, *names))
    return found


def of_machine() -> Reading:
    total = available = 0
    for line in _lines("/proc/meminfo"):
        if line.startswith("MemTotal:"):
            total = int(line.split()[1]) << 10
        elif line.startswith("MemAvailable:"):
            available = int(line.split()[1]) << 10
            break
    return Reading(total - available, total, "the machine")


def of_group(group: Group, machine_bytes: int) -> Reading | None:
    """None: it has no limit below the machine's memory, or is gone."""
    limit = _number(f"{group.folder}/{group.limit}")
    if limit is None or limit >= machine_bytes:
        return None
    used = _number(f"{group.folder}/{group.usage}")
    if used is None:
        return None
    for line in _lines(f"{group.folder}/memory.stat"):
        if line.startswith(group.inactive + " "):
            used -= int(line.split()[1])  # the kernel drops it before anybody has to do without
            break
    return Reading(max(0, used), limit, "the control group of this node")


def own_bytes(pid: int) -> int:
    """Memory of a process and all below it that it shares with nobody: neither the object store's nor of files."""
    total = _statm(pid)[1]
    for child in children_of(pid):
        total += own_bytes(child)
    return total


def largest(count: int = PROCESSES_SHOWN, names: dict[int, str] | None = None) -> str:
    """The processes of this machine with most memory, in words, largest first.

    Args: names: what to call some of them, by pid.
    """
    sizes = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            resident = _statm(int(entry))[0]
            if resident:
                sizes.append((resident, int(entry)))
    sizes.sort(reverse=True)
    texts = []
    for resident, pid in sizes[:count]:
        name = (names or {}).get(pid) or _command(pid)
        texts.append(f"pid {pid} {name!r}: {in_words(resident)}")
    return "; ".join(texts)


def sum_of(pids: Iterable[int], limit_bytes: int) -> Reading:
    """What these and all below them use, against a limit of the node's own."""
    return Reading(
        sum(map(own_bytes, pids)), limit_bytes, "all workers of this node together (worker_memory_bytes_max)"
    )


def _statm(pid: int) -> tuple[int, int]:
    """(resident, resident and not shared), bytes; zeros: it is gone."""
    try:
        with open(f"/proc/{pid}/statm", "rb") as file:
            _, resident, shared, *_ = file.read().split()
    except (FileNotFoundError, ProcessLookupError):
        return 0, 0
    return int(resident) * _PAGE, (int(resident) - int(shared)) * _PAGE


def _command(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            command = file.read(200).replace(b"\0", b" ").strip().decode("utf-8", "replace")
    except (FileNotFoundError, ProcessLookupError):
        return "(ended)"
    return command if len(command) <= 60 else command[:57] + "..."


def _lines(path: str) -> list[str]:
    try:
        with open(path) as file:
            return file.readlines()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return []


def _number(path: str) -> int | None:
    """None: the file isn't there, or says "max"."""
    lines = _lines(path)
    return int(lines[0]) if lines and lines[0].strip().isdigit() else None
