"""Output of workers: whole lines, under the right name, nothing lost, bounded. Pipes, but no process."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ray._node.log_tail import LineSplitter, LogTail

JOB = b"\1\0\0\0"


class Loop:
    """Stands for the event loop: remembers who wants to read what."""

    def __init__(self) -> None:
        self.readers: dict[int, tuple[Any, ...]] = {}

    def add_reader(self, fd: int, *call: Any) -> None:
        self.readers[fd] = call

    def remove_reader(self, fd: int) -> bool:
        return self.readers.pop(fd, None) is not None

    def turn(self) -> None:
        for callback, *args in list(self.readers.values()):
            callback(*args)


class Bench:
    def __init__(self, folder: Path, line_bytes_max: int = 1000) -> None:
        self.loop = Loop()
        self.sent: list[Any] = []
        self.ready = True
        self.logs = LogTail(str(folder), line_bytes_max)
        self.logs.attach(self.loop, self.send)

    def send(self, job_id: bytes, lines: list[Any]) -> bool:
        assert job_id == JOB
        self.sent += lines
        return self.ready


def test_lines_are_forwarded_whole_under_the_name_of_the_mark() -> None:
    splitter = LineSplitter(1000)
    assert splitter.feed(b"a\nb") == [("", "a")]
    assert splitter.feed(b"c\n\x1fray:name:f\nd\n") == [("", "bc"), ("f", "d")]
    assert splitter.feed(b"half\x1fray:name:g\nnext\n") == [("f", "half"), ("g", "next")]
    assert splitter.feed("né".encode()[:-1]) == [] and splitter.feed("né".encode()[-1:] + b"\n") == [("g", "né")]
    assert splitter.feed(b"last") == [] and splitter.end() == [("g", "last")] and splitter.end() == []


def test_a_mark_split_between_two_reads_is_still_a_mark() -> None:
    splitter = LineSplitter(1000)
    assert splitter.feed(b"\x1fray:na") == [] and splitter.feed(b"me:f\nx\n") == [("f", "x")]


def test_a_line_without_end_is_forwarded_in_pieces() -> None:
    splitter = LineSplitter(10)
    assert splitter.feed(b"x" * 25) == [("", "x" * 10), ("", "x" * 10)]
    assert splitter.feed(b"\n") == [("", "x" * 5)]


def test_what_a_worker_wrote_before_it_died_is_forwarded_and_filed(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    out, err = bench.logs.open(1, JOB)
    bench.logs.started(1, 42)
    os.write(out, b"one\ntwo\nunfinished")
    os.write(err, b"oops\n")
    os.close(out)
    os.close(err)
    bench.logs.drain(1)
    assert bench.sent == [
        ("", 42, "stdout", "one"), ("", 42, "stdout", "two"), ("", 42, "stdout", "unfinished"),
        ("", 42, "stderr", "oops"),
    ]  # fmt: skip
    assert (tmp_path / "worker-42.out").read_bytes() == b"one\ntwo\nunfinished"
    assert bench.logs.tail(1, 42) == "oops" and bench.loop.readers == {}


def test_a_pipe_held_open_by_what_the_worker_started_is_read_on(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    out, err = bench.logs.open(1, JOB)
    bench.logs.started(1, 42)
    os.write(out, b"from the worker\n")
    bench.logs.drain(1)
    os.write(out, b"from its child\n")
    bench.loop.turn()
    assert [line[3] for line in bench.sent] == ["from the worker", "from its child"]
    os.close(out)
    os.close(err)
    bench.loop.turn()
    assert bench.loop.readers == {}


def test_while_a_driver_takes_nothing_the_pipes_are_not_read(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    out, err = bench.logs.open(1, JOB)
    bench.logs.started(1, 42)
    bench.ready = False
    os.write(out, b"1\n")
    bench.loop.turn()
    assert bench.loop.readers == {}  # both pipes: the worker's next writes fill them, then it blocks
    os.write(out, b"2\n")
    os.write(err, b"3\n")
    bench.ready = True
    bench.logs.resume(JOB)
    bench.loop.turn()
    assert [line[3] for line in bench.sent] == ["1", "2", "3"]
    os.close(out)
    os.close(err)
    bench.logs.close()


def test_output_before_the_driver_has_registered_waits_for_it(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.logs.hold(JOB)
    out, err = bench.logs.open(1, JOB)
    bench.logs.started(1, 42)
    os.write(out, b"early\n")
    bench.loop.turn()
    assert bench.sent == []
    bench.logs.resume(JOB)
    bench.loop.turn()
    assert [line[3] for line in bench.sent] == ["early"]
    os.close(out)
    os.close(err)
    bench.logs.close()


def test_a_file_that_has_grown_too_large_makes_room(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.logs = LogTail(str(tmp_path), 1000, file_bytes_max=10)
    bench.logs.attach(bench.loop, bench.send)
    out, err = bench.logs.open(1, JOB)
    bench.logs.started(1, 42)
    for text in (b"12345678901\n", b"second\n", b"third\n"):
        os.write(out, text)
        bench.loop.turn()
    assert (tmp_path / "worker-42.out.1").read_bytes() == b"12345678901\n"
    assert (tmp_path / "worker-42.out").read_bytes() == b"second\nthird\n"
    os.close(out)
    os.close(err)
    bench.logs.close()


def test_files_of_dead_workers_are_bounded_and_silent_workers_have_none(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.logs = LogTail(str(tmp_path), 1000, files_kept=4)
    bench.logs.attach(bench.loop, bench.send)
    for worker in range(1, 10):
        out, err = bench.logs.open(worker, JOB)
        bench.logs.started(worker, 100 + worker)
        if worker != 9:
            os.write(out, b"x\n")
        os.close(out)
        os.close(err)
        bench.logs.drain(worker)
    assert sorted(os.listdir(tmp_path)) == ["worker-107.out", "worker-108.out"]  # each may have had a .1 beside it
    assert len(bench.sent) == 8
