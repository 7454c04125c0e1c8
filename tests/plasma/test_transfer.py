"""Objects from one plasma_store process to another over TCP, as Python asks for them (ray._native.transfer)."""

from __future__ import annotations

import select
import signal
import socket
import tempfile
from pathlib import Path

import numpy
import pytest

from ray._native.plasma import PlasmaStoreDied
from ray._native.transfer import TransferLine
from ray.plasma.server import launch
from tests.plasma.transfer_node import TransferNode, transfer_nodes
from tests.wait import wait_until

KEY = b"o" * 28
MIB = 1 << 20


def test_an_object_and_its_metadata_arrive_in_another_store() -> None:
    with transfer_nodes(2, 64 * MIB) as (a, b):
        data = numpy.random.default_rng(1).integers(0, 255, 20_000_003, dtype=numpy.uint8)
        a.client.put(KEY, data, b"about it")
        outcome, text, request = b.fetch(KEY, [a.address])
        assert (outcome, text) == ("here", "")
        buffer = b.client.get(KEY)
        assert buffer is not None
        assert buffer.metadata() == b"about it"
        assert numpy.array_equal(numpy.frombuffer(buffer, numpy.uint8), data)
        wait_until(lambda: b.client.list()[KEY]["pins"] == 2)
        b.line.let_go(request)
        wait_until(lambda: b.client.list()[KEY]["pins"] == 1)
        assert a.client.audit() == b.client.audit() == ""


def test_a_hundred_askers_cause_one_transfer() -> None:
    with transfer_nodes(2, 64 * MIB) as (a, b):
        a.client.put(KEY, bytes(8 * MIB))
        lines = [TransferLine(b.objects_socket) for _ in range(100)]
        requests = [line.pull(KEY, [a.address]) for line in lines]
        assert {line.wait(request)[2] for line, request in zip(lines, requests, strict=True)} == {"here"}
        assert a.stats()["served"] == 1
        assert b.stats()["bytes_in"] == 8 * MIB
        for line in lines:
            line.close()
        wait_until(lambda: b.client.list()[KEY]["pins"] == 0)


def test_completion_is_an_event_on_the_lines_descriptor() -> None:
    with transfer_nodes(2, 64 * MIB) as (a, b):
        a.client.put(KEY, bytes(MIB))
        assert select.select([b.line], [], [], 0)[0] == []
        request = b.line.pull(KEY, [a.address], prefetch=True)
        assert select.select([b.line], [], [], 60)[0] == [b.line]
        assert b.line.receive() == [("pulled", request, "here", "")]


def test_a_pull_says_what_each_source_said() -> None:
    with transfer_nodes(3, 64 * MIB) as (a, b, c), socket.create_server(("127.0.0.1", 0)) as closed:
        nobody = closed.getsockname()
        closed.close()
        outcome, text, _ = c.fetch(KEY, [a.address, nobody, b.address])
        assert outcome == "no_source"
        assert text.count("it has not got the object") == 2
        assert "refused" in text


def test_the_rest_comes_from_another_copy_when_the_source_is_killed() -> None:
    with transfer_nodes(3, 512 * MIB) as (a, b, c):
        data = numpy.arange(50_000_000, dtype=numpy.int64)
        for source in (a, b):
            source.client.put(KEY, data)
        request = c.line.pull(KEY, [a.address, b.address])
        side = TransferLine(c.objects_socket)
        wait_until(lambda: side.wait(side.ask_stats())[2]["bytes_in"] > 4 * MIB)
        a.kill()
        assert c.line.wait(request)[2] == "here"
        buffer = c.client.get(KEY)
        assert buffer is not None
        assert numpy.array_equal(numpy.frombuffer(buffer, numpy.int64), data)
        assert side.wait(side.ask_stats())[2]["bytes_in"] == data.nbytes
        side.close()


def test_a_store_with_another_token_gets_nothing() -> None:
    with transfer_nodes(1, 16 * MIB) as (a,), tempfile.TemporaryDirectory() as folder:
        a.client.put(KEY, bytes(1000))
        stranger = TransferNode(folder, 16 * MIB, token=bytes(32))
        try:
            outcome, _, _ = stranger.fetch(KEY, [a.address])
            assert outcome == "no_source"
            assert a.stats()["served"] == 0
            assert a.stats()["bad_frames"] == 1
        finally:
            stranger.close()


def test_what_is_held_stays_until_its_owner_frees_it_from_afar() -> None:
    with transfer_nodes(2, 8 * MIB) as (a, b):
        a.client.put(KEY, bytes(2 * MIB))
        assert a.line.wait(a.line.hold(KEY))[2] is True
        a.client.evict(8 * MIB)
        assert a.client.contains(KEY)
        outcome, _, request = b.fetch(KEY, [a.address])
        assert outcome == "here"
        b.line.let_go(request)
        b.line.free(KEY, a.address)
        wait_until(lambda: not a.client.contains(KEY) and not b.client.contains(KEY))
        assert a.line.wait(a.line.hold(KEY))[2] is False


def test_what_a_store_that_was_started_again_has_fetched_is_freed_with_the_rest() -> None:
    with transfer_nodes(2, 8 * MIB) as (a, b):
        a.client.put(KEY, bytes(2 * MIB))
        b.restart_store()
        outcome, _, request = b.fetch(KEY, [a.address])  # before anybody could tell it where it is reached
        assert outcome == "here"
        b.line.let_go(request)
        a.line.free(KEY)
        wait_until(lambda: not a.client.contains(KEY) and not b.client.contains(KEY))


@pytest.mark.parametrize("given", ["127.0.0.1:", "127.0.0.1:0", "127.0.0.1:65536", "somewhere:1", ":1"])
def test_where_it_is_reached_must_be_a_numeric_address_and_a_port(given: str, tmp_path: Path) -> None:
    host, _, port = given.rpartition(":")
    (tmp_path / "token").write_text("0" * 64)
    with pytest.raises(OSError, match=f"--reached-at {given}: not a numeric HOST:PORT"):
        launch(
            8 * MIB,
            str(tmp_path / "plasma.sock"),
            objects_socket=str(tmp_path / "objects.sock"),
            token_file=str(tmp_path / "token"),
            reached_at=(host, port),  # type: ignore[arg-type]
        )


def test_what_is_held_elsewhere_for_a_process_is_freed_there_when_it_dies() -> None:
    with transfer_nodes(2, 8 * MIB) as (a, b):
        other = b"p" * 28
        for key in (KEY, other):
            a.client.put(key, bytes(1000))
            a.line.wait(a.line.hold(key))
        owner, living = TransferLine(b.objects_socket), TransferLine(b.objects_socket)
        owner.own(KEY, a.address)
        living.own(other, a.address)
        owner.close()
        wait_until(lambda: not a.client.contains(KEY))
        assert a.client.contains(other)
        living.close()
        wait_until(lambda: a.stats()["held"] == 0)


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_a_free_that_went_into_a_connection_which_had_ended_unseen_is_said_again(tls: bool) -> None:
    with transfer_nodes(2, 8 * MIB, tls=tls) as (a, b):
        owner = TransferLine(b.objects_socket)
        other = b"p" * 28
        a.client.put(other, bytes(1000))
        a.line.wait(a.line.hold(other))
        owner.free(other, a.address)
        wait_until(lambda: not a.client.contains(other))  # so there is a connection
        b.process.send_signal(signal.SIGSTOP)
        try:
            owner.ask_stats()  # b hears of this line first, then of the connection's end
            a.restart_store()
            a.client.put(KEY, bytes(1000))
            a.line.wait(a.line.hold(KEY))
            owner.free(KEY, a.address)
        finally:
            b.process.send_signal(signal.SIGCONT)
        wait_until(lambda: not a.client.contains(KEY))
        owner.close()


def test_what_a_dead_owner_left_is_freed_by_the_front_of_its_tag() -> None:
    with transfer_nodes(1, 8 * MIB) as (a,):
        keys = [bytes([0, 0, 0, n]) + bytes(23) + bytes([i]) for n in (1, 2) for i in range(2)]
        for key in keys:
            a.client.put(key, bytes(1000))
            a.line.wait(a.line.hold(key))
        assert a.line.wait(a.line.owner_dead(bytes([0, 0, 0, 1])))[2] == 2
        # Each lapses: the store frees it as soon as it gets to that.
        wait_until(lambda: [a.client.contains(key) for key in keys] == [False, False, True, True])


def test_the_stores_death_is_told() -> None:
    with transfer_nodes(1, 8 * MIB) as (a,):
        a.line.pull(KEY, [("127.0.0.1", 1)])
        a.kill()
        with pytest.raises(PlasmaStoreDied):
            for _ in range(2):
                select.select([a.line], [], [], 60)
                a.line.receive()
        with pytest.raises(PlasmaStoreDied):  # its socket is still there
            TransferLine(a.objects_socket)


def test_wrong_arguments_are_named() -> None:
    with transfer_nodes(1, 8 * MIB) as (a,):
        with pytest.raises(ValueError, match="28 bytes"):
            a.line.pull(b"short", [])
        with pytest.raises(ValueError, match="numeric host"):
            a.line.pull(KEY, [("h" * 99, 1)])
        with pytest.raises(ValueError, match="65535"):
            a.line.free(KEY, ("10.0.0.1", 70000))
        with pytest.raises(ValueError, match="1 to 16"):
            a.line.owner_dead(b"")
    with pytest.raises(FileNotFoundError):
        TransferLine("/tmp/ray-nobody-listens-here")


def test_garbage_on_the_local_socket_ends_that_line_only() -> None:
    with transfer_nodes(1, 8 * MIB) as (a,), socket.socket(socket.AF_UNIX) as stranger:
        stranger.connect(a.objects_socket)
        stranger.settimeout(60)
        stranger.sendall(b"\xff" * 64)
        assert stranger.recv(1) == b""
        assert a.stats()["bad_frames"] == 1
