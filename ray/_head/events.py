"""What happened to each task, for the timeline, the state API and the dashboard. No I/O, no clock.

In the head, on its loop's thread. Cores send lists of events now and then (never one by one, never waiting); here they
are checked, gathered and written to Redis in batches of BATCH_MAX or each FLUSH_S, whichever comes first. Nothing is
kept in memory but the batch being gathered, and how many calls of each name ended how: events are a sample when calls
come in bursts, counts are exact. Who wants to look at events reads Redis. A job keeps its newest `kept` events; older
batches leave with the write that adds a new one.

An event is a tuple, `(task_id, state, time_s)` or `(task_id, state, time_s, fields)`:

    task_id   24 bytes
    state     SUBMITTED | RUNNING | FINISHED | FAILED | CANCELLED | RETRIED
    time_s    seconds since the epoch, when it got into that state
    fields    any of FIELDS below; the sender leaves out what it does not know. `merge` puts a task's events together,
              so the submitter may say the name and the worker the pid. `times` adds earlier states to a late event,
              so that one event a task is enough: {"times": {"SUBMITTED": 1.0, "RUNNING": 1.1}}
"""

from __future__ import annotations

import collections
from collections.abc import Iterable
from typing import Any, NamedTuple

from ray._head.errors import StreamIds

STATES = ("SUBMITTED", "RUNNING", "FINISHED", "FAILED", "CANCELLED", "RETRIED")
FIELDS: dict[str, type] = {
    "name": str,
    "kind": str,  # task | actor_task | actor_creation
    "pid": int,  # of the worker
    "worker": bytes,  # its tag
    "actor_id": bytes,
    "parent": bytes,  # task id of the submitter
    "attempt": int,
    "error": str,  # type and message, cut
    "times": dict,
}
TEXT_CHARS_MAX = 512
BATCH_MAX = 500  # events in one stream entry
FLUSH_S = 1.0  # the longest that an event waits for company
WAITING_MAX = 20_000  # events not yet written, all jobs together; more are counted and dropped
TASK_ID_BYTES = 24
NAMES_MAX = 10_000  # of (name, kind, state) that are counted apart in a job; further names are counted together
OTHER_NAMES = "(other names)"


class Append(NamedTuple):
    """Write a batch, and drop what is older than oldest_id."""

    job_id: bytes
    entry_id: str
    batch: list[list[Any]]
    oldest_id: str


class _Stream:
    __slots__ = ("entries", "kept", "totals", "waiting")

    def __init__(self) -> None:
        self.waiting: list[list[Any]] = []
        self.entries: collections.deque[tuple[str, int]] = collections.deque()  # (id, events in it), in Redis now
        self.kept = 0
        self.totals: dict[tuple[str, str, str], int] = {}  # (name, kind, state) -> calls that ended so


class TaskEventLog:
    """Gathers. `add` returns True when `flush` is due at once; else it is due FLUSH_S after the first event waiting."""

    def __init__(self, kept: int) -> None:
        self._kept = kept
        self._ids = StreamIds()
        self._streams: dict[bytes, _Stream] = {}
        self.waiting = 0
        self.received = self.dropped = self.malformed = 0

    def add(self, job_id: bytes, events: Iterable[Any]) -> bool:
        stream = self._streams.setdefault(job_id, _Stream())
        for event in events:
            plain = _checked(event)
            if plain is None:
                self.malformed += 1
            elif self.waiting >= WAITING_MAX or self._kept == 0:
                self.dropped += 1
            else:
                self.received += 1
                self.waiting += 1
                stream.waiting.append(plain)
        return len(stream.waiting) >= BATCH_MAX

    def count(self, job_id: bytes, counts: Iterable[Any]) -> None:
        """Of `(name, kind, state, number)`: how many calls ended so, whether or not each of them has an event."""
        totals = self._streams.setdefault(job_id, _Stream()).totals
        for item in counts:
            if not isinstance(item, (tuple, list)) or [type(part) for part in item] != [str, str, str, int]:
                self.malformed += 1
                continue
            name, kind, state, number = item
            if state not in STATES or number < 0:
                self.malformed += 1
                continue
            key = (name[:TEXT_CHARS_MAX], kind[:TEXT_CHARS_MAX], state)
            if key not in totals and len(totals) >= NAMES_MAX:
                key = (OTHER_NAMES, key[1], state)
            totals[key] = totals.get(key, 0) + number

    def totals(self, job_id: bytes) -> dict[tuple[str, str, str], int]:
        """(name, kind, state) -> number of calls that ended so."""
        stream = self._streams.get(job_id)
        return dict(stream.totals) if stream is not None else {}

    def flush(self, now: float) -> list[Append]:
        appends = []
        for job_id, stream in self._streams.items():
            waiting, stream.waiting = stream.waiting, []
            for at in range(0, len(waiting), BATCH_MAX):
                batch = waiting[at : at + BATCH_MAX]
                entry_id = self._ids.next(now)
                stream.entries.append((entry_id, len(batch)))
                stream.kept += len(batch)
                while stream.kept > self._kept and len(stream.entries) > 1:
                    stream.kept -= stream.entries.popleft()[1]
                appends.append(Append(job_id, entry_id, batch, stream.entries[0][0]))
        self.waiting = 0
        return appends

    def forget_job(self, job_id: bytes) -> None:
        stream = self._streams.pop(job_id, None)
        if stream is not None:
            self.waiting -= len(stream.waiting)

    def stats(self) -> dict[str, int]:
        """received, waiting, dropped (more than could be written), malformed (not an event)."""
        return {
            "received": self.received,
            "waiting": self.waiting,
            "dropped": self.dropped,
            "malformed": self.malformed,
        }


def merge(events: Iterable[list[Any]]) -> list[dict[str, Any]]:
    """One dict a task, in the order of their first events: task_id (hex), state (the latest), times {state: seconds},
    and the fields. A retried task has the times of its last attempt."""
    tasks: dict[str, dict[str, Any]] = {}
    for task_id, state, time_s, fields in events:
        task = tasks.setdefault(task_id, {"task_id": task_id, "state": state, "times": {}})
        times = {**fields.get("times", {}), state: time_s}
        task["times"].update(times)
        task.update({key: value for key, value in fields.items() if key != "times"})
        # the latest by its own time: submitter and worker report independently. FINISHED at the same instant as RUNNING
        # wins.
        task["state"] = max(task["times"], key=lambda s: (task["times"][s], STATES.index(s)))
    return list(tasks.values())


def _checked(event: Any) -> list[Any] | None:
    """As JSON will have it: ids in hexadecimal, texts cut. None: not an event."""
    if not isinstance(event, (tuple, list)) or len(event) not in (3, 4):
        return None
    task_id, state, time_s = event[:3]
    fields: Any = event[3] if len(event) == 4 else {}
    if not isinstance(task_id, bytes) or len(task_id) != TASK_ID_BYTES or state not in STATES:
        return None
    if not isinstance(time_s, (int, float)) or not isinstance(fields, dict):
        return None
    plain: dict[str, Any] = {}
    for name, given in fields.items():
        kind, value = FIELDS.get(name), given
        if value is None:
            continue
        if kind is None or not issubclass(type(value), kind):  # (isinstance would make it an `object` for mypy)
            return None
        if kind is str:
            value = value[:TEXT_CHARS_MAX]
        elif kind is bytes:
            value = value[:64].hex()
        elif kind is dict:
            if not all(key in STATES and isinstance(at, (int, float)) for key, at in value.items()):
                return None
        plain[name] = value
    return [task_id.hex(), state, time_s, plain]
