"""The jobs: one for each driver that ever registered. Pure: `handle(event, now) -> actions`, no I/O, no clock.

Runs in the head, on its loop's thread. A job is in exactly one of

    RUNNING   its driver is connected; found in `_by_driver`
    ENDING    its driver is gone; something that needs its code or its tables is still there: actors whose workers have
              yet to die, or detached actors, which may outlive it for as long as they like
    FINISHED  the driver left on purpose, and nothing of the job is left but its row; in `_ended`, oldest forgotten
              first
    DIED      the same, after a driver that was killed or crashed

A driver's death ends its job; so does its `ray.shutdown`. Only how it is written in the row differs.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, Union

from ray._control.rows import JobRow
from ray._protocol.frames import job_id_bytes
from ray._scheduling.machine import InvalidTransition, Story

RUNNING, ENDING, FINISHED, DIED = "RUNNING", "ENDING", "FINISHED", "DIED"
STATES = (RUNNING, ENDING, FINISHED, DIED)

ENDED_KEPT = 100  # rows of finished jobs that `jobs()` still shows
SURROUNDINGS = ("sys_path", "cwd", "env", "namespace", "runtime_env")
TEXT_CHARS_MAX = 4096  # of what a driver says about itself


class DriverRegistered(NamedTuple):
    driver_tag: bytes
    pid: int
    info: Mapping[str, Any]


class DriverGone(NamedTuple):
    driver_tag: bytes
    cause: str
    intended: bool


class Emptied(NamedTuple):
    """Nothing needs the job's tables any more."""

    job_id: bytes


class SaveJob(NamedTuple):
    row: JobRow


class EndActors(NamedTuple):
    """Its actors die, but for detached ones; say Emptied when the last is buried."""

    job_id: bytes
    cause: str


class ForgetJob(NamedTuple):
    """Drop every key and every cached thing of the job."""

    job_id: bytes


class DropJobRow(NamedTuple):
    job_id: bytes


Event = Union[DriverRegistered, DriverGone, Emptied]
Action = Union[SaveJob, EndActors, ForgetJob, DropJobRow]


class Job:
    """One job. Written by JobTable only."""

    __slots__ = ("row", "state", "story")

    def __init__(self, row: JobRow) -> None:
        self.row = row
        self.state = row.state
        self.story = Story()

    def __repr__(self) -> str:
        return f"<Job {self.row.job_id.hex()} {self.state} driver pid {self.row.driver_pid}>"


class JobTable:
    """All jobs. Ids count up from 1 and are never used twice."""

    def __init__(self) -> None:
        self._next = 1
        self._jobs: dict[bytes, Job] = {}
        self._by_driver: dict[bytes, bytes] = {}
        self._ended: collections.OrderedDict[bytes, None] = collections.OrderedDict()

    def get(self, job_id: bytes) -> JobRow | None:
        job = self._jobs.get(job_id)
        return None if job is None else job.row

    def of_driver(self, driver_tag: bytes) -> bytes | None:
        return self._by_driver.get(driver_tag)

    def all(self) -> list[JobRow]:
        return [job.row for job in self._jobs.values()]

    def in_state(self, state: str) -> list[bytes]:
        return [job_id for job_id, job in self._jobs.items() if job.state == state]

    def handle(self, event: Event, now: float) -> list[Action]:
        """Raises: InvalidTransition: a bug of the head's own."""
        if isinstance(event, DriverRegistered):
            return self._registered(event, now)
        job_id = self._by_driver.get(event.driver_tag) if isinstance(event, DriverGone) else event.job_id
        job = self._jobs.get(job_id) if job_id is not None else None
        if job is None:
            return []  # a driver that never got as far as a job, or a job forgotten long ago
        row = TRANSITIONS.get((job.state, type(event)))
        if row is None:
            raise InvalidTransition(f"no row for {event!r} in {job.state}: {job!r}; its story: {job.story}")
        before = job.state
        after, actions = row(self, job, event, now)
        job.state = after
        job.row = job.row._replace(state=after)
        job.story.add(now, before, type(event).__name__, after)
        return [SaveJob(job.row), *actions]

    def _registered(self, event: DriverRegistered, now: float) -> list[Action]:
        if event.driver_tag in self._by_driver:
            return []  # said twice: it has its job
        info = event.info
        row = JobRow(
            job_id_bytes(self._next),
            driver_tag=event.driver_tag,
            driver_pid=event.pid,
            entrypoint=str(info.get("entrypoint") or "")[:TEXT_CHARS_MAX],
            namespace=str(info.get("namespace") or "")[:TEXT_CHARS_MAX],
            started_s=now,
            surroundings={name: info[name] for name in SURROUNDINGS if name in info},
        )
        self._next += 1
        job = Job(row)
        job.story.add(now, "-", "DriverRegistered", RUNNING)
        self._jobs[row.job_id] = job
        self._by_driver[event.driver_tag] = row.job_id
        return [SaveJob(row)]

    # -- rows of TRANSITIONS ------------------------------------------------------------------------------------------

    def _end(self, job: Job, event: DriverGone, now: float) -> tuple[str, list[Action]]:
        del self._by_driver[event.driver_tag]
        job.row = job.row._replace(ended_s=now, cause="" if event.intended else event.cause)
        return ENDING, [EndActors(job.row.job_id, event.cause)]

    def _finish(self, job: Job, event: Emptied, now: float) -> tuple[str, list[Action]]:
        actions: list[Action] = [ForgetJob(job.row.job_id)]
        job.row = job.row._replace(surroundings={})
        self._ended[job.row.job_id] = None
        if len(self._ended) > ENDED_KEPT:
            oldest = self._ended.popitem(last=False)[0]
            del self._jobs[oldest]
            actions.append(DropJobRow(oldest))
        return (DIED if job.row.cause else FINISHED), actions

    # -- saved and proved ---------------------------------------------------------------------------------------------

    def restore(self, rows: Iterable[JobRow], known: Iterable[bytes] = ()) -> None:
        """Takes what an earlier head wrote, onto an empty table. known: jobs of which nodes have heard; that there is
        no row of one does not make its id free (a power cut took it)."""
        assert not self._jobs
        self._next = 1 + max((int.from_bytes(job_id, "little") for job_id in known), default=0)
        for row in sorted(rows, key=lambda row: int.from_bytes(row.job_id, "little")):
            self._jobs[row.job_id] = Job(row)
            self._next = max(self._next, int.from_bytes(row.job_id, "little") + 1)
            if row.state == RUNNING:
                self._by_driver[row.driver_tag] = row.job_id
            elif row.state in (FINISHED, DIED):
                self._ended[row.job_id] = None

    def check(self) -> None:
        """Re-derives the indexes. Raises: AssertionError."""
        jobs = self._jobs
        assert self._by_driver == {j.row.driver_tag: i for i, j in jobs.items() if j.state == RUNNING}
        assert set(self._ended) == {i for i, j in jobs.items() if j.state in (FINISHED, DIED)}
        assert len(self._ended) <= ENDED_KEPT
        assert all(job.state == job.row.state and job.state in STATES for job in jobs.values())
        assert all(int.from_bytes(i, "little") < self._next for i in jobs)


Row = Callable[[JobTable, Job, Any, float], tuple[str, list[Action]]]
TRANSITIONS: dict[tuple[str, type], Row] = {
    (RUNNING, DriverGone): JobTable._end,
    (ENDING, Emptied): JobTable._finish,
}
