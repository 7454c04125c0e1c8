"""The driver and worker processes connected to this node: who they are, which job they belong to. Node's main
thread.

A connection is nobody until it has registered; then it is a Core, found by its tag, until its connection ends. A
worker is matched to what we forked by the pid the kernel vouches for. If a core's connection ends, `Cores` forgets
it and the shell releases what it held; that its *process* has ended is another event, from the reaper.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from ray._config import Settings
from ray._launch.session import Session
from ray._protocol.frames import job_id_bytes

FIRST_JOB = job_id_bytes(1)  # of a fresh session: lets its first worker start before its driver has registered
EXIT_CAUSES_KEPT = 4096
CAUSE_WAIT_S = 5.0  # how long a worker whose connection has ended is given to end, too
STILL_RUNS = "its connection ended, but its process still runs"
PIDS_KEPT = 10_000  # of workers: more than die while the news of that is on its way


class Job:
    """What a job's workers need to be like its driver, and who wants to see their output."""

    __slots__ = ("cwd", "drivers", "env", "job_id", "namespace", "runtime_env", "sys_path")

    def __init__(self, job_id: bytes, info: dict[str, Any]) -> None:
        self.job_id = job_id
        self.sys_path: list[str] = list(info.get("sys_path") or ())
        self.cwd: str = info.get("cwd") or ""
        self.env: dict[str, str] = dict(info.get("env") or {})
        self.namespace: str = info.get("namespace") or ""
        self.runtime_env: str = info.get("runtime_env") or ""  # JSON; of tasks and actors that name none themselves
        self.drivers: dict[bytes, Core] = {}

    def surroundings(self) -> dict[str, Any]:
        """What another node needs to start workers of it."""
        return {name: getattr(self, name) for name in ("sys_path", "cwd", "env", "namespace", "runtime_env")}

    def same_surroundings(self, other: Job) -> bool:
        return (self.sys_path, self.cwd, self.env) == (other.sys_path, other.cwd, other.env)


class Core:
    """One registered process. It is also the Caller that ray/_head is given."""

    __slots__ = ("job_id", "kind", "leaving", "log_to_driver", "namespace", "peer", "pid", "tag", "worker_id")

    def __init__(self, peer: Any, kind: str, tag: bytes, job_id: bytes, namespace: str) -> None:
        self.peer = peer
        self.kind = kind  # "driver" | "worker" | "guest"
        self.tag = tag
        self.pid: int = peer.pid
        self.job_id = job_id
        self.namespace = namespace
        self.worker_id = 0
        self.log_to_driver = False
        self.leaving = False  # a driver that has said goodbye

    def tell(self, name: str, *args: Any) -> None:
        """Sends an event; to a peer that is gone it is dropped, for the news of its end is on its way to us."""
        if self.peer.closed:
            return
        try:
            self.peer.event(name, *args)
        except ConnectionError:
            return  # its end was noticed just now, in the middle of sending

    def __repr__(self) -> str:
        return f"Core({self.kind} pid={self.pid} tag={self.tag.hex()[8:16]} job={self.job_id.hex()})"


class Cores:
    """Living cores by tag and worker id; jobs; why ended workers ended."""

    def __init__(self) -> None:
        self.by_tag: dict[bytes, Core] = {}
        self.guests: dict[bytes, Core] = {}  # of other nodes, that lease workers here: see guests.py
        self.by_worker: dict[int, Core] = {}
        self.worker_of_pid: dict[int, int] = {}  # forked and not yet reaped
        self.jobs: dict[bytes, Job] = {}
        self._causes: OrderedDict[bytes, str] = OrderedDict()
        self._pids: OrderedDict[bytes, int] = OrderedDict()  # of workers, living and dead

    def add(self, core: Core) -> None:
        self.by_tag[core.tag] = core
        if core.worker_id:
            self.by_worker[core.worker_id] = core
            self._pids[core.tag] = core.pid
            while len(self._pids) > PIDS_KEPT:
                self._pids.popitem(last=False)
        else:
            self.jobs[core.job_id].drivers[core.tag] = core

    def remove(self, core: Core) -> None:
        if self.by_tag.get(core.tag) is core:
            del self.by_tag[core.tag]
        if self.by_worker.get(core.worker_id) is core:
            del self.by_worker[core.worker_id]
        job = self.jobs.get(core.job_id)
        if job is not None:
            job.drivers.pop(core.tag, None)

    def remember_cause(self, tag: bytes, cause: str) -> None:
        self._causes[tag] = cause
        while len(self._causes) > EXIT_CAUSES_KEPT:
            self._causes.popitem(last=False)

    def pid_of_dead(self, tag: bytes) -> int:
        """That a worker had; 0: it lives, or is not known."""
        return self._pids.get(tag, 0) if tag not in self.by_tag else 0

    def cause_of(self, tag: bytes) -> str | None:
        return self._causes.get(tag)

    def causes(self) -> list[tuple[bytes, str]]:
        """(tag, why) of workers that ended, the EXIT_CAUSES_KEPT newest, oldest first."""
        return list(self._causes.items())

    def drivers_of(self, job_id: bytes) -> list[Core]:
        job = self.jobs.get(job_id)
        return list(job.drivers.values()) if job else []


def startup(
    session: Session,
    settings: Settings,
    job: Job,
    worker_id: int,
    env: str = "",
    context: dict[str, Any] | None = None,
    number: int = 0,
) -> dict[str, Any]:
    """What a new worker is told: the argument of its main.

    Args: env, context: its runtime environment's text, and what its builder said (ray/runtime_env/_enter.py).
        number: of this node.
    """
    return {
        "worker_id": worker_id,
        "node_number": number,
        "runtime_env": env,
        "env_context": context or {},
        "session_dir": session.folder,
        "node_socket": session.node_socket,
        "token": session.token,
        "job_id": job.job_id,
        "sys_path": job.sys_path,
        "cwd": job.cwd,
        "env": job.env,
        "namespace": job.namespace,
        "settings": settings.overrides(),
    }
