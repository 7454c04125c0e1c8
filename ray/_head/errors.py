"""The errors of each job, newest kept: what `ray.errors()` shows. No I/O, no clock; in the head, on its loop's thread.

Kept in memory for reading and written to Redis for a head that restarts. Bounded twice: `kept` errors a job, each cut
to MESSAGE_CHARS_MAX. A job's errors go when the job does. A job that fails in a loop must not flood its driver, which
would lose its connection over it: SHOWN_AT_ONCE errors are passed on, then SHOWN_PER_S; of the rest only a count.
"""

from __future__ import annotations

import collections
from collections.abc import Iterable, Mapping
from typing import Any

from ray._control.rows import ErrorRow

MESSAGE_CHARS_MAX = 64 * 1024
EXTRA_ITEMS_MAX = 32
SHOWN_AT_ONCE, SHOWN_PER_S = 200, 20.0


class StreamIds:
    """Ids for stream entries, each larger than the one before also when the clock steps back."""

    def __init__(self) -> None:
        self._last_ms = 0
        self._count = 0

    def next(self, now: float) -> str:
        self._last_ms = max(self._last_ms, int(now * 1000))
        self._count += 1
        return f"{self._last_ms}-{self._count}"


class _Job:
    __slots__ = ("hidden", "rows", "since_s", "tokens")

    def __init__(self, kept: int, now: float) -> None:
        self.rows: collections.deque[ErrorRow] = collections.deque(maxlen=kept)
        self.tokens = float(SHOWN_AT_ONCE)
        self.since_s = now
        self.hidden = 0  # not shown since the last one that was


class ErrorLog:
    def __init__(self, kept: int) -> None:
        if kept < 1:
            raise ValueError(f"errors_kept must be 1 or more, got {kept}")
        self._kept = kept
        self._ids = StreamIds()
        self._jobs: dict[bytes, _Job] = {}

    def push(
        self, job_id: bytes, kind: str, message: str, extra: Mapping[str, Any], pid: int, now: float
    ) -> tuple[ErrorRow, str | None]:
        """Returns the row, and its entry id for the table; None if the flood is too great to show or save it.

        Raises: TypeError: a process sent something that is no error."""
        if not isinstance(kind, str) or not isinstance(message, str) or not isinstance(extra, Mapping):
            raise TypeError(
                "push_error takes (kind: str, message: str, extra: dict), not "
                f"({type(kind).__name__}, {type(message).__name__}, {type(extra).__name__})"
            )
        if len(message) > MESSAGE_CHARS_MAX:
            message = message[:MESSAGE_CHARS_MAX] + f"... ({len(message) - MESSAGE_CHARS_MAX} more characters)"
        plain = {str(key)[:256]: _plain(value) for key, value in list(extra.items())[:EXTRA_ITEMS_MAX]}
        row = ErrorRow(job_id, kind[:256], message, time_s=now, pid=pid, extra=plain)
        job = self._jobs.setdefault(job_id, _Job(self._kept, now))
        job.rows.append(row)
        job.tokens = min(SHOWN_AT_ONCE, job.tokens + max(0.0, now - job.since_s) * SHOWN_PER_S)
        job.since_s = now
        if job.tokens < 1.0:
            job.hidden += 1
            return row, None
        job.tokens -= 1.0
        return row, self._ids.next(now)

    def take_hidden(self) -> list[tuple[bytes, int]]:
        """(job, how many of its errors were not shown) since this was last asked."""
        hidden = [(job_id, job.hidden) for job_id, job in self._jobs.items() if job.hidden]
        for job_id, _ in hidden:
            self._jobs[job_id].hidden = 0
        return hidden

    def of_job(self, job_id: bytes | None) -> list[ErrorRow]:
        """Oldest first; None: of all jobs."""
        if job_id is not None:
            job = self._jobs.get(job_id)
            return [] if job is None else list(job.rows)
        return sorted((row for job in self._jobs.values() for row in job.rows), key=lambda row: row.time_s)

    def restore(self, rows: Iterable[ErrorRow]) -> None:
        for row in rows:
            self._jobs.setdefault(row.job_id, _Job(self._kept, row.time_s)).rows.append(row)

    def forget_job(self, job_id: bytes) -> None:
        self._jobs.pop(job_id, None)


def _plain(value: Any) -> Any:
    """What JSON can hold and 4 KiB is enough for."""
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, bytes):
        return value[:2048].hex()
    return str(value)[:4096]
