"""The errors of each job, newest kept: what `ray.errors()` shows. No I/O, no clock; in the head, on its loop's thread.

Kept in memory for reading and written to Redis for a head that restarts. Bounded twice: `kept` errors a job, each cut
to MESSAGE_CHARS_MAX. A job's errors go when the job does.
"""

from __future__ import annotations

import collections
from collections.abc import Iterable, Mapping
from typing import Any

from ray._control.rows import ErrorRow

MESSAGE_CHARS_MAX = 64 * 1024
EXTRA_ITEMS_MAX = 32


class StreamIds:
    """Ids for stream entries, each larger than the one before also when the clock steps back."""

    def __init__(self) -> None:
        self._last_ms = 0
        self._count = 0

    def next(self, now: float) -> str:
        self._last_ms = max(self._last_ms, int(now * 1000))
        self._count += 1
        return f"{self._last_ms}-{self._count}"


class ErrorLog:
    def __init__(self, kept: int) -> None:
        if kept < 1:
            raise ValueError(f"errors_kept must be 1 or more, got {kept}")
        self._kept = kept
        self._ids = StreamIds()
        self._by_job: dict[bytes, collections.deque[ErrorRow]] = {}

    def push(
        self, job_id: bytes, kind: str, message: str, extra: Mapping[str, Any], pid: int, now: float
    ) -> tuple[ErrorRow, str]:
        """Returns the row and its entry id, for the table.

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
        self._of(job_id).append(row)
        return row, self._ids.next(now)

    def of_job(self, job_id: bytes | None) -> list[ErrorRow]:
        """Oldest first; None: of all jobs."""
        if job_id is not None:
            return list(self._by_job.get(job_id, ()))
        return sorted((row for rows in self._by_job.values() for row in rows), key=lambda row: row.time_s)

    def restore(self, rows: Iterable[ErrorRow]) -> None:
        for row in rows:
            self._of(row.job_id).append(row)

    def forget_job(self, job_id: bytes) -> None:
        self._by_job.pop(job_id, None)

    def _of(self, job_id: bytes) -> collections.deque[ErrorRow]:
        return self._by_job.setdefault(job_id, collections.deque(maxlen=self._kept))


def _plain(value: Any) -> Any:
    """What JSON can hold and 4 KiB is enough for."""
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, bytes):
        return value[:2048].hex()
    return str(value)[:4096]
