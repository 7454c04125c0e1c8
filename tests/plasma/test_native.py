"""ray._native.plasma: what the engine relies on."""

from __future__ import annotations

import gc
import math
import os
import select
import signal
import threading
import time
from collections.abc import Callable

import numpy as np
import pytest

from ray._native.plasma import (
    PlasmaBuffer,
    PlasmaClient,
    PlasmaObjectExists,
    PlasmaObjectNotFound,
    PlasmaStoreDied,
    PlasmaStoreFull,
)
from tests.plasma.conftest import STORE_BYTES, RunningStore


def found(buffer: PlasmaBuffer | None) -> PlasmaBuffer:
    assert buffer is not None
    return buffer


def key(n: int) -> bytes:
    return n.to_bytes(28, "little")


def test_an_object_is_writable_until_sealed_and_read_only_afterwards(store: RunningStore) -> None:
    a, b = store.native(), store.native()
    buffer = a.create(key(1), 10, b"meta")
    view = memoryview(buffer)
    assert not view.readonly and buffer.is_mutable
    view[:] = b"0123456789"
    assert b.get(key(1)) is None and not b.contains(key(1))
    a.seal(key(1))
    assert memoryview(buffer).readonly and not buffer.is_mutable
    got = b.get(key(1))
    assert got is not None and bytes(got) == b"0123456789" and got.metadata() == b"meta"
    assert memoryview(got).readonly
    with pytest.raises(TypeError):
        memoryview(got)[0] = 1
    array = np.frombuffer(got, np.uint8)
    with pytest.raises(ValueError):
        array.flags.writeable = True


def test_sealed_bytes_cannot_be_written_even_by_address(store: RunningStore) -> None:
    client = store.native()
    client.put(key(1), b"x" * 100)
    buffer = found(client.get(key(1)))
    address = np.frombuffer(memoryview(buffer), np.uint8).ctypes.data
    child = os.fork()
    if child == 0:
        import ctypes
        import faulthandler

        faulthandler.disable()  # pytest's would print a traceback amid its own lines
        ctypes.memset(address, 0, 1)  # the machine ends this process
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGSEGV


def test_a_view_pins_its_object_until_the_last_of_them_is_gone(store: RunningStore) -> None:
    client = store.native()
    client.put(key(1), bytes(1000))
    buffer = found(client.get(key(1)))
    array = np.frombuffer(memoryview(buffer), np.uint8)[10:20]
    del buffer
    assert client.list()[key(1)]["pids"] == [os.getpid()]
    assert client.evict(STORE_BYTES) == 0
    del array
    gc.collect()
    assert client.list()[key(1)]["pins"] == 0
    assert client.evict(1) == 1024
    assert client.get(key(1)) is None


def test_a_buffer_outlives_its_client_and_keeps_its_pin(store: RunningStore) -> None:
    client, other = store.native(), store.native()
    client.put(key(1), b"abc")
    buffer = found(client.get(key(1)))
    client.disconnect()
    with pytest.raises(PlasmaStoreDied):
        client.get(key(1))
    del client
    assert other.evict(STORE_BYTES) == 0
    assert bytes(buffer) == b"abc"
    del buffer
    while not other.evict(STORE_BYTES):  # the connection ends with the buffer; the store learns of it by itself
        pass


def test_plain_pins_are_counted_by_key(store: RunningStore) -> None:
    client = store.native()
    assert not client.pin(key(1))
    client.put(key(1), b"abc")
    assert client.pin(key(1)) and client.pin(key(1))
    client.unpin(key(1))
    assert client.evict(STORE_BYTES) == 0
    client.unpin(key(1))
    with pytest.raises(PlasmaObjectNotFound):
        client.unpin(key(1))
    assert client.evict(STORE_BYTES) > 0


def test_a_deleted_object_is_hidden_at_once_and_freed_with_its_last_pin(store: RunningStore) -> None:
    a, b = store.native(), store.native()
    a.put(key(1), b"x" * 300_000)
    buffer = found(b.get(key(1)))
    assert a.delete(key(1)) and not a.delete(key(1))
    assert a.get(key(1)) is None and not b.contains(key(1))
    a.put(key(1), b"y")  # the key is free again
    assert bytes(buffer[:1]) == b"x"
    assert a.stats()["deleting_objects"] == 1
    del buffer
    assert a.stats()["deleting_objects"] == 0


def test_what_was_deleted_is_not_listed_once_its_last_reader_has_let_go(store: RunningStore) -> None:
    a, b = store.native(), store.native()
    a.put(key(1), b"x" * 300_000)
    buffer = found(b.get(key(1)))
    assert a.delete(key(1))
    assert [(row["state"], row["pins"]) for row in a.list().values()] == [("deleting", 1)]
    del buffer
    assert a.list() == {}


def test_abort_undoes_create(store: RunningStore) -> None:
    client = store.native()
    buffer = client.create(key(1), 1 << 20)
    client.abort(key(1))
    with pytest.raises(PlasmaObjectNotFound):
        client.seal(key(1))
    del buffer
    assert client.stats()["free_bytes"] == STORE_BYTES
    client.put(key(1), b"again")


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda c: c.get(b""), ValueError, "1 to 28 bytes"),
        (lambda c: c.get(b"x" * 29), ValueError, "29"),
        (lambda c: c.get(None), TypeError, "None"),
        (lambda c: c.get("text"), TypeError, "bytes"),
        (lambda c: c.create(b"k", -1), ValueError, "-1"),
        (lambda c: c.put(b"k", "text"), TypeError, "bytes-like"),
        (lambda c: c.put(b"k", memoryview(bytes(10))[::2]), BufferError, "contiguous"),
        (lambda c: c.seal(b"none"), PlasmaObjectNotFound, "unsealed"),
        (lambda c: c.abort(b"none"), PlasmaObjectNotFound, "unsealed"),
        (lambda c: c.wait_sealed([b"k"], -1), ValueError, "-1"),
        (lambda c: c.wait_sealed([b"k"], math.nan), ValueError, "nan"),
        (lambda c: c.create(b"k", 64 << 20, timeout_s=-1.0), ValueError, "-1"),
    ],
)
def test_wrong_arguments_are_named(store: RunningStore, call, error, says) -> None:  # type: ignore[no-untyped-def]
    client = store.native()
    client.create(b"fill", STORE_BYTES - (1 << 20))
    with pytest.raises(error, match=says):
        call(client)
    assert client.audit() == ""


def test_a_second_object_of_a_key_is_refused(store: RunningStore) -> None:
    a, b = store.native(), store.native()
    a.create(key(1), 10)
    for client in (a, b):
        with pytest.raises(PlasmaObjectExists):
            client.put(key(1), b"x")
        with pytest.raises(PlasmaObjectExists):
            client.create(key(1), 1 << 20)


def test_a_full_store_says_who_holds_what(store: RunningStore) -> None:
    client = store.native()
    held = client.create(key(1), 40 << 20)
    with pytest.raises(PlasmaStoreFull) as full:
        client.create(key(2), 30 << 20, timeout_s=0.05)
    assert f"pid {os.getpid()}" in str(full.value) and "40.0 MiB unsealed in 1 objects" in str(full.value)
    started = time.monotonic()
    with pytest.raises(PlasmaStoreFull, match="can never fit"):
        client.create(key(2), STORE_BYTES + 1, timeout_s=60)
    assert time.monotonic() - started < 30
    del held


def test_a_create_waits_for_room_and_gets_it_when_a_reader_lets_go(store: RunningStore) -> None:
    client, other = store.native(), store.native()
    client.put(key(1), bytes(40 << 20))
    held = other.get(key(1))
    made: list[PlasmaBuffer] = []
    thread = threading.Thread(target=lambda: made.append(client.create(key(2), 40 << 20, timeout_s=30)))
    thread.start()
    while other.stats()["waiting_for_room"] == 0:
        pass
    assert not made
    del held
    thread.join()
    assert made[0].is_mutable and not client.contains(key(1))


def test_wait_sealed_wakes_and_times_out(store: RunningStore) -> None:
    client, other = store.native(), store.native()
    assert not client.wait_sealed([key(1)], 0.01)
    threading.Timer(0.05, lambda: other.put(key(1), b"x")).start()
    assert client.wait_sealed([key(1), key(1)], 30)
    assert client.wait_sealed([], 0)


def test_ctrl_c_ends_a_wait_and_leaves_a_usable_client(store: RunningStore) -> None:
    client = store.native()
    client.create(key(5), 50 << 20)
    for wait in (lambda: client.wait_sealed([key(1)]), lambda: client.create(key(2), 30 << 20, timeout_s=60)):
        # To the main thread, as the terminal's: kill() from another thread may reach that one instead.
        main = threading.main_thread().ident
        assert main is not None
        timer = threading.Timer(0.1, signal.pthread_kill, [main, signal.SIGINT])
        with pytest.raises(KeyboardInterrupt):
            timer.start()
            wait()
        timer.join()
    client.put(key(3), b"x")
    stats = client.stats()
    assert stats["waiting_for_room"] == 0 and stats["waiting_for_seal"] == 0


def test_the_death_of_the_store_is_seen_by_each_call_and_readers_keep_their_bytes(store: RunningStore) -> None:
    client = store.native()
    client.put(key(1), b"abc")
    buffer = found(client.get(key(1)))
    unsealed = client.create(key(2), 10)
    assert client.alive
    assert not select.select([client.death_fd()], [], [], 0)[0]
    store.process.kill()
    assert select.select([client.death_fd()], [], [], 60)[0]
    store.process.wait()
    assert not client.alive
    calls: list[Callable[[], object]] = [
        lambda: client.get(key(1)),
        lambda: client.put(key(3), b"x"),
        lambda: client.create(key(3), 1 << 20),
        lambda: client.seal(key(2)),
        lambda: client.abort(key(2)),
        lambda: client.contains(key(1)),
        lambda: client.pin(key(1)),
        lambda: client.delete(key(1)),
        lambda: client.evict(1),
        lambda: client.stats(),
        lambda: client.list(),
        lambda: client.wait_sealed([key(1)], 1),
    ]
    for call in calls:
        with pytest.raises(PlasmaStoreDied):
            call()
    assert bytes(buffer) == b"abc"
    del buffer, unsealed


def test_a_store_that_dies_ends_waits(store: RunningStore) -> None:
    client = store.native()
    threading.Timer(0.05, store.process.kill).start()
    with pytest.raises(PlasmaStoreDied):
        client.wait_sealed([key(1)])
    store.process.wait()


def test_a_forked_child_may_read_what_was_mapped_and_nothing_else(store: RunningStore) -> None:
    client = store.native()
    client.put(key(1), b"abc")
    buffer = found(client.get(key(1)))
    child = os.fork()
    if child == 0:
        ok = bytes(buffer) == b"abc"
        try:
            client.get(key(1))
            ok = False
        except PlasmaStoreDied as e:
            ok = ok and "forked" in str(e)
        del buffer, client
        fresh = PlasmaClient(store.path)
        ok = ok and bytes(fresh.get(key(1)) or b"") == b"abc"
        del fresh
        os._exit(0 if ok else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert client.list()[key(1)]["pids"] == [os.getpid()]
    del buffer


@pytest.mark.parametrize("when", ["before seal", "holding a pin", "holding a plain pin", "after delete"])
def test_whatever_a_killed_client_left_is_undone(store: RunningStore, when: str) -> None:
    client = store.native()
    client.put(key(1), bytes(1 << 20))
    child = os.fork()
    if child == 0:
        mine = PlasmaClient(store.path)
        acts: dict[str, Callable[[], object]] = {
            "before seal": lambda: [mine.create(key(10 + i), 10 ** (i + 1)) for i in range(6)],
            "holding a pin": lambda: mine.get(key(1)),
            "holding a plain pin": lambda: mine.pin(key(1)),
            "after delete": lambda: mine.delete(key(1)),
        }
        keep = acts[when]()
        os.kill(os.getpid(), signal.SIGKILL)
        del keep
    os.waitpid(child, 0)
    client.stats()  # once the store has answered a request sent after the death, it has seen the death too
    stats = client.stats()
    assert stats["unsealed_objects"] == 0
    client.evict(STORE_BYTES)
    assert client.stats()["free_bytes"] == STORE_BYTES
    assert client.audit() == ""


def test_many_threads_of_one_client(store: RunningStore) -> None:
    client = store.native()
    failures: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            for i in range(300):
                n = seed * 1000 + i
                size = 300_000 if i % 20 == 0 else i * 10
                client.put(key(n), bytes([n % 251]) * size)
                got = client.get(key(n))
                assert got is None or (len(got) == size and bytes(got[:1]) in (b"", bytes([n % 251])))
        except BaseException as e:
            failures.append(e)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(1, 5)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not failures


def test_eviction_takes_the_least_recently_used(store: RunningStore) -> None:
    client = store.native()
    for n in range(6):
        client.put(key(n), bytes(10 << 20))
    assert client.get(key(0)) is not None
    client.put(key(10), bytes(10 << 20))
    assert client.contains(key(0)) and not client.contains(key(1)) and client.contains(key(2))


def test_no_store_at_that_path_is_said_so(tmp_path) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(FileNotFoundError, match=r"nowhere\.sock"):
        PlasmaClient(str(tmp_path / "nowhere.sock"))
    with pytest.raises(ValueError, match="107"):
        PlasmaClient("x" * 200)
