"""ray.plasma: the calls of pyarrow.plasma, as a program written for it makes them."""

from __future__ import annotations

import pickle
import subprocess
import sys
import threading

import numpy as np
import pytest

from ray import plasma
from tests.plasma.conftest import STORE_BYTES, RunningStore


def test_values_come_back_equal_and_arrays_as_views(store: RunningStore) -> None:
    client, other = store.connect(), store.connect()
    values = [
        None, True, 1, -(2**70), 1.5, "text", b"bytes", [1, [2, {"a": (3,)}]], {1, 2}, range(5),
        np.arange(100_000), {"x": np.ones((3, 4), np.float32), "y": "z"}, np.array(["a", None], object), np.zeros(0),
    ]  # fmt: skip
    for value in values:
        got = other.get(client.put(value), timeout_ms=10_000)
        np.testing.assert_equal(got, value)
    array = other.get(client.put(np.arange(100_000)))
    assert not array.flags.writeable and not array.flags.owndata


def test_functions_and_classes_of_main_travel_by_value(store: RunningStore) -> None:
    program = (
        "import sys; from ray import plasma\n"
        "class Point:\n    def __init__(self, x): self.x = x\n    def twice(self): return 2 * self.x\n"
        "c = plasma.connect(sys.argv[1])\n"
        "c.put({'p': Point(4), 'f': lambda v: v + 1}, plasma.ObjectID(b'm' * 20))"
    )
    subprocess.run([sys.executable, "-c", program, store.path], check=True)
    got = store.connect().get(plasma.ObjectID(b"m" * 20), timeout_ms=0)
    assert got["p"].twice() == 8 and got["f"](1) == 2


def test_what_cannot_be_pickled_leaves_nothing(store: RunningStore) -> None:
    client = store.connect()
    with pytest.raises(TypeError):
        client.put(threading.Lock())
    assert client.list() == {}


def test_get_waits_for_a_seal_and_gives_up_in_time(store: RunningStore) -> None:
    client, other = store.connect(), store.connect()
    ids = [plasma.ObjectID.from_random() for _ in range(3)]
    client.put("first", ids[0])
    assert other.get(ids, timeout_ms=20) == ["first", plasma.ObjectNotAvailable, plasma.ObjectNotAvailable]
    assert other.get(ids[1], timeout_ms=0) is plasma.ObjectNotAvailable
    assert other.get_buffers([ids[1]], timeout_ms=0) == [None]
    threading.Timer(0.05, lambda: (client.put("third", ids[2]), client.put("second", ids[1]))).start()
    assert other.get(ids) == ["first", "second", "third"]
    assert other.get([]) == []


def test_create_write_seal_and_read_buffers(store: RunningStore) -> None:
    client, other = store.connect(), store.connect()
    object_id = plasma.ObjectID(b"a" * 20)
    view = memoryview(client.create(object_id, 5, metadata=b"md")).cast("B")
    view[:] = b"hello"
    assert not other.contains(object_id)
    client.seal(object_id)
    assert other.contains(object_id)
    [(metadata, buffer)] = other.get_buffers([object_id], with_meta=True)
    assert metadata == b"md" and buffer.to_pybytes() == b"hello" and buffer.size == 5
    assert [m.to_pybytes() for m in other.get_metadata([object_id])] == [b"md"]
    with pytest.raises(plasma.PlasmaObjectNotFound):
        client.seal(object_id)
    with pytest.raises(plasma.PlasmaObjectExists):
        client.create(object_id, 1)
    with pytest.raises(ValueError, match="get_buffers"):
        other.get(object_id)  # it holds no Python value


def test_create_and_seal_and_put_raw_buffer(store: RunningStore) -> None:
    client = store.connect()
    object_id = plasma.ObjectID.from_random()
    client.create_and_seal(object_id, b"data", b"meta")
    assert client.get_buffers([object_id])[0].to_pybytes() == b"data"
    other_id = client.put_raw_buffer(np.arange(4, dtype=np.uint8), metadata=b"x")
    assert client.get_buffers([other_id])[0].to_pybytes() == b"\0\1\2\3"


def test_hash_depends_on_data_and_metadata(store: RunningStore) -> None:
    client = store.connect()
    ids = [client.put_raw_buffer(d, metadata=m) for d, m in [(b"a", b"b"), (b"a", b"b"), (b"ab", b""), (b"a", b"c")]]
    hashes = [client.hash(i) for i in ids]
    assert hashes[0] == hashes[1] and len(set(hashes)) == 3 and all(len(h) == 8 for h in hashes)
    assert client.hash(plasma.ObjectID.from_random()) == b""


def test_list_tells_sizes_states_and_readers(store: RunningStore) -> None:
    client = store.connect()
    sealed, unsealed = plasma.ObjectID.from_random(), plasma.ObjectID.from_random()
    client.create_and_seal(sealed, b"12345", b"678")
    held = client.create(unsealed, 7)
    rows = client.list()
    assert rows[sealed]["data_size"] == 5 and rows[sealed]["metadata_size"] == 3 and rows[sealed]["ref_count"] == 0
    assert rows[sealed]["state"] == "sealed" and rows[sealed]["construct_duration"] >= 0
    assert rows[unsealed]["state"] == "created" and rows[unsealed]["ref_count"] == 1
    client.delete([sealed])
    assert set(client.list()) == {unsealed}
    del held


def test_evict_and_capacity(store: RunningStore) -> None:
    client = store.connect()
    assert client.store_capacity() == STORE_BYTES
    ids = [client.put_raw_buffer(bytes(1 << 20)) for _ in range(3)]
    assert client.evict(1) == 1 << 20
    assert [client.contains(i) for i in ids] == [False, True, True]
    with pytest.raises(plasma.PlasmaStoreFull):
        client.create(plasma.ObjectID.from_random(), STORE_BYTES + 1)


def test_notifications_in_order(store: RunningStore) -> None:
    client, watcher = store.connect(), store.connect()
    first = client.put_raw_buffer(b"abc", metadata=b"m")
    watcher.subscribe()
    assert watcher.get_next_notification(10) == (first, 3, 1)
    ids = [client.put_raw_buffer(bytes(n)) for n in range(50)]
    for n, object_id in enumerate(ids):
        assert watcher.get_next_notification(10) == (object_id, n, 0)
    client.delete([first])
    assert watcher.get_next_notification(10) == (first, -1, -1)
    with pytest.raises(TimeoutError):
        watcher.get_next_notification(0.01)
    with pytest.raises(RuntimeError, match="subscribe"):
        client.get_next_notification()


def test_notification_socket(store: RunningStore) -> None:
    client, watcher = store.connect(), store.connect()
    with watcher.get_notification_socket() as sock:
        object_id = client.put_raw_buffer(b"abc")
        sock.settimeout(60)
        length = int.from_bytes(sock.recv(8), "little")
        assert watcher.decode_notifications(sock.recv(length)) == ([object_id], [3], [0])


def test_object_ids() -> None:
    a, b = plasma.ObjectID(b"x" * 20), plasma.ObjectID(b"x" * 20)
    assert a == b and hash(a) == hash(b) and a.binary() == b"x" * 20 and pickle.loads(pickle.dumps(a)) == a
    assert a != plasma.ObjectID.from_random() and repr(a) == f"ObjectID({(b'x' * 20).hex()})"
    for wrong in (b"", b"x" * 19, b"x" * 21):
        with pytest.raises(ValueError, match="20 bytes"):
            plasma.ObjectID(wrong)
    with pytest.raises(TypeError):
        plasma.ObjectID("x" * 20)  # type: ignore[arg-type]


def test_disconnect_ends_the_client_but_not_its_buffers(store: RunningStore) -> None:
    client = store.connect()
    array = client.get(client.put(np.arange(1000)))
    client.disconnect()
    with pytest.raises(plasma.PlasmaStoreDied, match="disconnected"):
        client.list()
    assert array.sum() == 499500
    del array


def test_arrow_reads_and_writes_its_buffers(store: RunningStore) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    client = store.connect()
    table = pyarrow.table({"a": list(range(1000))})
    size = pyarrow.MockOutputStream()
    with pyarrow.ipc.new_stream(size, table.schema) as writer:
        writer.write_table(table)
    object_id = plasma.ObjectID.from_random()
    sink = pyarrow.FixedSizeBufferWriter(client.create(object_id, size.size()))
    with pyarrow.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    del sink, writer
    client.seal(object_id)
    [buffer] = client.get_buffers([object_id])
    got = pyarrow.ipc.open_stream(pyarrow.BufferReader(buffer)).read_all()
    assert got.equals(table)


def test_what_pyarrow_had_and_this_has_not_is_refused_by_name() -> None:
    for option in ("use_valgrind", "use_profiler", "external_store"):
        with pytest.raises(ValueError, match=option), plasma.start_plasma_store(8 << 20, **{option: "x"}):  # type: ignore[arg-type]
            pass
