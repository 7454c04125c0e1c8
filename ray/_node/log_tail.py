"""Reads what workers print: two pipes a worker, to a file and, line by line, to the drivers of its job.

Node process, its event loop's thread. Bounded: a pipe holds 64 KiB, a line that is not finished is kept up to
`line_bytes_max`, and while a driver doesn't take what it was sent the pipes of its job are not read, so a worker
that prints too fast blocks in print, as it would on a terminal. If a worker dies, `drain` takes what it had still
written before anybody hears of its death. Processes it started may hold its pipe: the pipe is read on until they end
too.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from typing import Any

from ray._protocol.frames import LOG_NAME_MARK

READ_BYTES = 64 * 1024
Line = tuple[str, int, str, str]  # name, pid, "stdout" | "stderr", text without its newline


class LineSplitter:
    """Bytes of one stream in, lines out. No I/O."""

    __slots__ = ("_line_bytes_max", "_partial", "name")

    def __init__(self, line_bytes_max: int) -> None:
        self._line_bytes_max = line_bytes_max
        self._partial = b""
        self.name = ""  # of the function or actor that prints, from the worker's marks

    def feed(self, data: bytes) -> list[tuple[str, str]]:
        """Returns: (name, text) of each line that data completes."""
        *lines, rest = (self._partial + data).split(b"\n") if self._partial else data.split(b"\n")
        found = []
        for line in lines:
            if LOG_NAME_MARK in line:
                # Text before the mark is an unfinished line of the one before: it is shown under that name.
                before, _, name = line.rpartition(LOG_NAME_MARK)
                if before:
                    found.append((self.name, before.decode("utf-8", "replace")))
                self.name = name.decode("utf-8", "replace")
            else:
                found.append((self.name, line.decode("utf-8", "replace")))
        while len(rest) > self._line_bytes_max:
            found.append((self.name, rest[: self._line_bytes_max].decode("utf-8", "replace")))
            rest = rest[self._line_bytes_max :]
        self._partial = rest
        return found

    def end(self) -> list[tuple[str, str]]:
        """What is left when nothing more comes."""
        rest, self._partial = self._partial, b""
        return [(self.name, rest.decode("utf-8", "replace"))] if rest and LOG_NAME_MARK not in rest else []


class LogFile:
    """Where one stream is kept: made at its first byte, moved aside when it has grown to file_bytes_max."""

    __slots__ = ("_bytes", "_fd", "_file_bytes_max", "_path")

    def __init__(self, path: str, file_bytes_max: int) -> None:
        self._path = path
        self._file_bytes_max = file_bytes_max
        self._bytes = 0
        self._fd = -1  # none yet

    def write(self, data: bytes) -> None:
        """A full disk costs what it can't take, not the driver's view of it, and not the node."""
        try:
            if self._bytes > self._file_bytes_max:
                self.close()
                os.rename(self._path, self._path + ".1")
                self._bytes = 0
            if self._fd < 0:
                self._fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            self._bytes += os.write(self._fd, data)
        except OSError:
            self.close()

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def written(self) -> list[str]:
        """Paths that may exist."""
        return [self._path, self._path + ".1"] if self._bytes else []


class Stream:
    """One pipe of one worker. Either read (registered with the loop), paused, or closed (fd -1)."""

    __slots__ = ("_splitter", "fd", "file", "kind", "paused", "pid")

    def __init__(self, fd: int, kind: str, line_bytes_max: int) -> None:
        self.fd = fd
        self.kind = kind
        self.pid = 0  # until the fork server has answered
        self.paused = False
        self.file: LogFile | None = None
        self._splitter = LineSplitter(line_bytes_max)

    def belongs_to(self, pid: int, folder: str, file_bytes_max: int) -> None:
        self.pid = pid
        suffix = "out" if self.kind == "stdout" else "err"
        self.file = LogFile(f"{folder}/worker-{pid}.{suffix}", file_bytes_max)

    def read(self) -> list[Line] | None:
        """One read. Returns: the lines it completed; None: nothing there now. At the end of file fd becomes -1."""
        try:
            data = os.read(self.fd, READ_BYTES)
        except BlockingIOError:
            return None
        if not data:
            lines = self.flush()
            self.close()
            return lines
        if self.file is not None:
            self.file.write(data)
        return [(name, self.pid, self.kind, text) for name, text in self._splitter.feed(data)]

    def flush(self) -> list[Line]:
        return [(name, self.pid, self.kind, text) for name, text in self._splitter.end()]

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
        if self.file is not None:
            self.file.close()


class LogTail:
    """All pipes of a node."""

    def __init__(
        self, folder: str, line_bytes_max: int, file_bytes_max: int = 64 * 2**20, files_kept: int = 1000
    ) -> None:
        self._folder = folder
        self._file_bytes_max = file_bytes_max
        self._files_kept = files_kept
        self._old_files: deque[str] = deque()  # of dead workers
        self._line_bytes_max = line_bytes_max
        self._workers: dict[int, tuple[bytes, tuple[Stream, Stream]]] = {}  # by worker id: job, streams
        self._paused_jobs: set[bytes] = set()
        self._left_open: dict[int, tuple[bytes, Stream]] = {}  # by fd: held by what dead workers had started
        self.lines_forwarded = 0

    def attach(self, loop: Any, send: Callable[[bytes, list[Line]], bool]) -> None:
        """Before anything is read.

        Args:
            loop: has add_reader and remove_reader.
            send: called as (job_id, lines); returns whether the job's drivers can take more now.
        """
        self._loop = loop
        self._send = send

    def hold(self, job_id: bytes) -> None:
        """Leaves the job's output in its pipes until `resume`: its driver has not registered yet."""
        self._paused_jobs.add(job_id)

    def open(self, worker_id: int, job_id: bytes) -> tuple[int, int]:
        """Makes the pipes of a worker. Returns: write ends for its stdout and stderr; the caller closes them."""
        streams, writes = [], []
        for kind in ("stdout", "stderr"):
            read, write = os.pipe2(os.O_CLOEXEC)
            os.set_blocking(read, False)
            streams.append(Stream(read, kind, self._line_bytes_max))
            writes.append(write)
        self._workers[worker_id] = (job_id, (streams[0], streams[1]))
        return writes[0], writes[1]

    def started(self, worker_id: int, pid: int) -> None:
        """The worker exists: its files get their names, and reading begins."""
        job_id, streams = self._workers[worker_id]
        for stream in streams:
            stream.belongs_to(pid, self._folder, self._file_bytes_max)
            self._watch(job_id, stream)

    def drain(self, worker_id: int) -> None:
        """The worker is dead (or never was): takes all that is in its pipes, and forgets it."""
        job_id, streams = self._workers.pop(worker_id, (b"", ()))
        lines: list[Line] = []
        for stream in streams:
            # A pipe holds 64 KiB, so few reads take all that the worker left; more would be of what it had started.
            for _ in range(4):
                fd = stream.fd
                more = stream.read() if fd >= 0 else None
                if more is None:
                    break
                lines += more
                if stream.fd < 0 and stream.pid and not stream.paused:
                    self._loop.remove_reader(fd)
            if stream.fd >= 0:
                lines += stream.flush()
                if stream.pid:
                    self._left_open[stream.fd] = (job_id, stream)
                else:
                    stream.close()
            if stream.file is not None:
                self._old_files.extend(stream.file.written())
        while len(self._old_files) > self._files_kept:
            try:
                os.unlink(self._old_files.popleft())
            except FileNotFoundError:
                continue
        self._forward(job_id, lines)

    def tail(self, worker_id: int, pid: int, limit_bytes: int = 2000) -> str:
        """The end of what a worker wrote to stderr, for error messages."""
        try:
            with open(f"{self._folder}/worker-{pid}.err", "rb") as file:
                file.seek(0, os.SEEK_END)
                file.seek(max(0, file.tell() - limit_bytes))
                return file.read().decode("utf-8", "replace").strip()
        except OSError:
            return ""

    def resume(self, job_id: bytes) -> None:
        """The job's driver has taken what it was sent (or is gone)."""
        if job_id in self._paused_jobs:
            self._paused_jobs.discard(job_id)
            for stream in self._streams(job_id):
                if stream.paused and stream.fd >= 0:
                    stream.paused = False
                    self._loop.add_reader(stream.fd, self._readable, job_id, stream)

    def close(self) -> None:
        for job_id, streams in [*self._workers.values(), *((j, (s,)) for j, s in self._left_open.values())]:
            for stream in streams:
                if stream.fd >= 0:
                    if stream.pid and not stream.paused:
                        self._loop.remove_reader(stream.fd)
                    self._forward(job_id, stream.flush())
                    stream.close()
        self._workers.clear()
        self._left_open.clear()

    # -- how --------------------------------------------------------------------------------------------------

    def _watch(self, job_id: bytes, stream: Stream) -> None:
        if job_id in self._paused_jobs:
            stream.paused = True
        else:
            self._loop.add_reader(stream.fd, self._readable, job_id, stream)

    def _readable(self, job_id: bytes, stream: Stream) -> None:
        fd = stream.fd
        lines = stream.read()
        if stream.fd < 0:
            self._loop.remove_reader(fd)
            self._left_open.pop(fd, None)
        if lines:
            self._forward(job_id, lines)

    def _forward(self, job_id: bytes, lines: list[Line]) -> None:
        if not lines:
            return
        self.lines_forwarded += len(lines)
        if not self._send(job_id, lines) and job_id not in self._paused_jobs:
            self._paused_jobs.add(job_id)
            for stream in self._streams(job_id):
                if stream.fd >= 0 and stream.pid and not stream.paused:
                    stream.paused = True
                    self._loop.remove_reader(stream.fd)

    def _streams(self, job_id: bytes) -> list[Stream]:
        living = [stream for job, streams in self._workers.values() if job == job_id for stream in streams]
        return living + [stream for job, stream in self._left_open.values() if job == job_id]
