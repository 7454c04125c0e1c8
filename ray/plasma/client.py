"""`PlasmaClient` with the calls of pyarrow.plasma, over `ray._native.plasma`. LIBRARY; any thread.

What differs from pyarrow, all of it on purpose: `create` can wait for room (timeout_s); an object created and never
sealed goes with its client; `hash` is computed when asked for, not at each seal; there is no to_capsule and no
set_client_options. Buffers are pyarrow.Buffer objects if the program has imported pyarrow, else PlasmaBuffer; both give
memoryview, numpy.frombuffer, `size` and `to_pybytes()`.
If the store dies, every call raises PlasmaStoreDied and buffers stay readable.
"""

from __future__ import annotations

import hashlib
import os
import socket
import struct
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

from ray._native import plasma as native
from ray._native.plasma import ObjectID
from ray.plasma import values

_List = list  # inside the class that name is a method
HASH_BYTES = 8
CONNECT_RETRIES = 50  # pyarrow's own default
RETRY_INTERVAL_S = 0.1
_NOTICE = struct.Struct("<28sqq")  # key, data size (-1: deleted), metadata size


class ObjectNotAvailable:
    """What get returns, itself, in the place of an object that was not sealed in time."""


def _as_buffer(buffer: Any) -> Any:
    pyarrow = sys.modules.get("pyarrow")
    return buffer if pyarrow is None or not hasattr(pyarrow, "py_buffer") else pyarrow.py_buffer(buffer)


class PlasmaClient:
    """A connection to a store. Made by `connect`."""

    def __init__(self, store_socket_name: str) -> None:
        self._path = store_socket_name
        self._client = native.PlasmaClient(store_socket_name)
        self._subscription: native.PlasmaClient | None = None
        self._notices: deque[tuple[ObjectID, int, int]] = deque()

    # -- writing

    def create(self, object_id: ObjectID, data_size: int, metadata: bytes = b"", timeout_s: float = 0.0) -> Any:
        """A buffer of data_size bytes, writable until seal(object_id).

        Args:   timeout_s: how long to wait for room; 0 asks once.
        Raises: PlasmaObjectExists. PlasmaStoreFull: also at once if the object is larger than the store.
        """
        return _as_buffer(self._client.create(object_id.key, data_size, metadata, timeout_s))

    def seal(self, object_id: ObjectID) -> None:
        """Makes the object immutable and visible. Raises: PlasmaObjectNotFound: nothing unsealed of ours is there."""
        self._client.seal(object_id.key)

    def abort(self, object_id: ObjectID) -> None:
        """Undoes create; the buffer must not be written to any more. Raises: PlasmaObjectNotFound."""
        self._client.abort(object_id.key)

    def create_and_seal(self, object_id: ObjectID, data: Any, metadata: bytes = b"", timeout_s: float = 0.0) -> None:
        """Stores data (bytes or any contiguous buffer). Raises as create."""
        self._client.put(object_id.key, data, metadata, timeout_s)

    def put(
        self,
        value: Any,
        object_id: ObjectID | None = None,
        memcopy_threads: int = 6,
        serialization_context: None = None,
        timeout_s: float = 0.0,
    ) -> ObjectID:
        """Stores a Python value; returns its id.

        Args:   memcopy_threads: taken for pyarrow's sake; the number of threads follows the size and the machine.
        Raises: PlasmaObjectExists, PlasmaStoreFull, what pickling raises. ValueError: a serialization_context is given.
        """
        if serialization_context is not None:
            raise ValueError("serialization_context must be None: values are pickled (protocol 5, cloudpickle)")
        if object_id is None:
            object_id = ObjectID.from_random()
        encoded = values.encode(value)
        if isinstance(encoded, bytes):
            self._client.put(object_id.key, encoded, b"", timeout_s)
            return object_id
        buffer = self._client.create(object_id.key, encoded.nbytes, b"", timeout_s)
        try:
            with memoryview(buffer) as view:
                encoded.write(view, self._client.copy_into)
        except BaseException:
            self._client.abort(object_id.key)
            raise
        self._client.seal(object_id.key)
        return object_id

    def put_raw_buffer(
        self,
        value: Any,
        object_id: ObjectID | None = None,
        metadata: bytes = b"",
        memcopy_threads: int = 6,
        timeout_s: float = 0.0,
    ) -> ObjectID:
        """Stores the bytes of any contiguous buffer; returns the id. Raises as put."""
        if object_id is None:
            object_id = ObjectID.from_random()
        self._client.put(object_id.key, value, metadata, timeout_s)
        return object_id

    # -- reading

    def get(
        self, object_ids: ObjectID | Sequence[ObjectID], timeout_ms: int = -1, serialization_context: None = None
    ) -> Any:
        """The value, or the list of values in order; ObjectNotAvailable for those not sealed within timeout_ms.

        Args:   timeout_ms: -1 waits for ever, 0 not at all.
        Blocks: yes, woken by the store.
        """
        if serialization_context is not None:
            raise ValueError("serialization_context must be None: values are pickled (protocol 5, cloudpickle)")
        if isinstance(object_ids, ObjectID):
            buffer = self._client.get(object_ids.key)
            if buffer is None:
                buffer = self._wait_for([object_ids], timeout_ms)[0]
            return ObjectNotAvailable if buffer is None else values.decode(buffer)
        buffers = self._wait_for(object_ids, timeout_ms)
        return [ObjectNotAvailable if b is None else values.decode(b) for b in buffers]

    def get_buffers(self, object_ids: Sequence[ObjectID], timeout_ms: int = -1, with_meta: bool = False) -> list[Any]:
        """Read-only buffers on the objects' data, None for those not sealed within timeout_ms.

        Returns: with_meta: a list of (metadata bytes, buffer) instead, (None, None) for missing ones.
        """
        buffers = self._wait_for(object_ids, timeout_ms)
        if with_meta:
            return [(None, None) if b is None else (b.metadata(), _as_buffer(b)) for b in buffers]
        return [None if b is None else _as_buffer(b) for b in buffers]

    def get_metadata(self, object_ids: Sequence[ObjectID], timeout_ms: int = -1) -> list[Any]:
        """Read-only buffers on the objects' metadata, None for those not sealed within timeout_ms."""
        return [None if b is None else _as_buffer(b.metadata_buffer()) for b in self._wait_for(object_ids, timeout_ms)]

    def _wait_for(self, object_ids: Sequence[ObjectID], timeout_ms: int) -> list[Any]:
        if isinstance(object_ids, ObjectID):
            raise TypeError("object_ids must be a list of ObjectID, it is one ObjectID")
        keys = [object_id.key for object_id in object_ids]
        get = self._client.get
        found = [get(key) for key in keys]
        deadline = None if timeout_ms < 0 else time.monotonic() + timeout_ms / 1000
        while None in found:
            # Objects that we have found are pinned by what we hold; only the missing ones are waited for.
            missing = [key for key, buffer in zip(keys, found) if buffer is None]
            left = None if deadline is None else deadline - time.monotonic()
            in_time = (left is None or left > 0) and self._client.wait_sealed(missing, left)
            found = [get(key) if buffer is None else buffer for key, buffer in zip(keys, found)]
            if not in_time:
                break
        return found

    def contains(self, object_id: ObjectID) -> bool:
        """Whether the object is there and sealed."""
        return self._client.contains(object_id.key)

    def hash(self, object_id: ObjectID) -> bytes:
        """8 bytes that depend on the object's data and metadata; b"" if it is not there."""
        buffer = self._client.get(object_id.key)
        if buffer is None:
            return b""
        digest = hashlib.blake2b(memoryview(buffer), digest_size=HASH_BYTES)
        digest.update(len(buffer).to_bytes(8, "little") + buffer.metadata())
        return digest.digest()

    def list(self) -> dict[ObjectID, dict[str, Any]]:
        """All objects, without those that are deleted and only wait for their last reader.

        Returns: for each id a dict: data_size, metadata_size, ref_count (pins), create_time (Unix time),
                 construct_duration (s; -1 while unsealed), state, pids (processes that pin it), creator_pid.
        """
        to_unix_ns = time.time_ns() - time.monotonic_ns()
        found = {}
        for key, row in self._client.list().items():
            if row["state"] not in ("created", "sealed"):
                continue
            sealed_ns = row["sealed_ns"] if row["state"] == "sealed" else 0
            found[ObjectID(key[:20])] = {
                "data_size": row["data_size"],
                "metadata_size": row["metadata_size"],
                "ref_count": row["pins"],
                "create_time": (row["created_ns"] + to_unix_ns) // 1_000_000_000,
                "construct_duration": (sealed_ns - row["created_ns"]) / 1e9 if sealed_ns else -1,
                "state": row["state"],
                "pids": row["pids"],
                "creator_pid": row["creator_pid"],
            }
        return found

    # -- managing

    def delete(self, object_ids: Sequence[ObjectID]) -> None:
        """Deletes sealed objects: invisible at once, their memory is free when nobody reads them any more."""
        for object_id in object_ids:
            self._client.delete(object_id.key)

    def evict(self, num_bytes: int) -> int:
        """Evicts least recently used objects that nobody reads, until num_bytes are freed; returns how many were."""
        return self._client.evict(num_bytes)

    def store_capacity(self) -> int:
        """Bytes that the store has in all."""
        return self._client.capacity

    def stats(self) -> dict[str, int]:
        """Counts and bytes, as ray._native.plasma.PlasmaClient.stats."""
        return self._client.stats()

    def debug_string(self) -> str:
        """For a person: which process holds how much."""
        return self._client.describe_holders()

    @property
    def store_socket_name(self) -> str:
        return self._path

    def disconnect(self) -> None:
        """Ends the use of this client. Buffers that came from it stay valid."""
        self._client.disconnect()
        if self._subscription is not None:
            self._subscription.disconnect()
            self._subscription = None

    # -- notifications

    def subscribe(self) -> None:
        """Begins to receive a notification for every object sealed (those that are there come first) or deleted."""
        if self._subscription is None:
            self._subscription = native.PlasmaClient(self._path)
            self._subscription.subscribe()

    def get_next_notification(self, timeout_s: float | None = None) -> tuple[ObjectID, int, int]:
        """(id, data size, metadata size) of the next object sealed; both sizes are -1 for one that was deleted.

        Raises: TimeoutError: none within timeout_s (None: waits for ever). RuntimeError: subscribe was not called.
        Blocks: yes.
        """
        if self._subscription is None:
            raise RuntimeError("call subscribe() before get_next_notification()")
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while not self._notices:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            for key, deleted, data_size, metadata_size in self._subscription.next_events(left):
                sizes = (-1, -1) if deleted else (data_size, metadata_size)
                self._notices.append((ObjectID(key[:20]), *sizes))
        return self._notices.popleft()

    def get_notification_socket(self) -> socket.socket:
        """A socket to select on: each notification is an i64 length and as many bytes for decode_notifications.

        A thread feeds it, until the socket is closed, this client disconnects or the store dies.
        """
        self.subscribe()
        ours, theirs = socket.socketpair()
        threading.Thread(target=self._feed, args=(ours,), name="plasma notifications", daemon=True).start()
        return theirs

    def _feed(self, to: socket.socket) -> None:
        with to:
            while True:
                try:
                    object_id, data_size, metadata_size = self.get_next_notification()
                    notice = _NOTICE.pack(object_id.key, data_size, metadata_size)
                    to.sendall(struct.pack("<q", len(notice)) + notice)
                except (OSError, RuntimeError, native.PlasmaError):
                    return  # the reader, the client or the store has gone; the reader sees the end of its socket

    def decode_notifications(self, buf: bytes) -> tuple[_List[ObjectID], _List[int], _List[int]]:
        """The ids, data sizes and metadata sizes in bytes that came from get_notification_socket (without lengths)."""
        rows = list(_NOTICE.iter_unpack(buf))
        return [ObjectID(r[0][:20]) for r in rows], [r[1] for r in rows], [r[2] for r in rows]

    def __repr__(self) -> str:
        return f"<ray.plasma.PlasmaClient of {self._client!r}>"


def connect(store_socket_name: str | os.PathLike[str], num_retries: int = -1) -> PlasmaClient:
    """A client of the store that listens on store_socket_name.

    Args:   num_retries: how often to try again, each after 0.1 s, while nobody listens there; -1: 50 times.
    Raises: FileNotFoundError, ConnectionRefusedError or another OSError, after the last try.
    """
    retries = CONNECT_RETRIES if num_retries < 0 else num_retries
    path = os.fspath(store_socket_name)
    for left in range(retries, -1, -1):
        try:
            return PlasmaClient(path)
        except OSError as e:
            if left == 0 or isinstance(e, PermissionError):
                raise
        # Who starts the store is not ours to know, so there is no event to wait for.
        time.sleep(RETRY_INTERVAL_S)
    raise AssertionError("not reached: the last try returns or raises")
