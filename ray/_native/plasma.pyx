# distutils: language = c++
"""Python's way to the plasma store: buffers on shared memory, and a client that finds and seals without asking anybody.

Runs in every driver and worker, on any thread. What a call may cost stands in plasma.pxd; how it survives the death of the
store or of this process in cpp/plasma/client.h. Thin: each method checks its arguments, then makes one or two C++ calls.
"""
from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_FillInfo, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.exc cimport PyErr_Occurred
from libc.math cimport isnan
from libc.stdint cimport INT64_MAX, int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset
from libcpp cimport bool as cbool
from libcpp.memory cimport shared_ptr
from libcpp.string cimport string
from libcpp.utility cimport pair
from libcpp.vector cimport vector

import os

include "plasma_c.pxi"
include "object_id.pxi"
include "plasma_errors.pxi"
include "plasma_buffer.pxi"

KEY_BYTES = 28
cdef double TIMEOUT_S_MAX = 1e9
cdef size_t COPY_WITHOUT_LOCK_BYTES = 64 << 10  # below that, giving up Python's lock costs more than it gives
STATE_NAMES = {0: "free", 1: "created", 2: "sealed", 3: "deleting", 4: "evicting", 5: "spilled"}
RESTORE_TIMEOUT_S = 10.0  # how long get waits for room for a spilled object while nothing is being spilled


cdef cbool _signal_pending() noexcept with gil:
    # The exception that a handler raised stays set in this thread; _raise_status passes it on.
    return check_signals() != 0


cdef inline int _to_key(bytes key, ObjectId* out) except -1:
    cdef Py_ssize_t n
    if key is None:
        raise TypeError("key must be bytes, it is None")
    n = PyBytes_GET_SIZE(key)
    if n == 28:
        memcpy(out.bytes, PyBytes_AS_STRING(key), 28)
        return 0
    if n == 0 or n > 28:
        raise ValueError(f"key must have 1 to 28 bytes, it has {n}: {key!r}")
    memset(out.bytes, 0, 28)
    memcpy(out.bytes, PyBytes_AS_STRING(key), n)
    return 0


cdef Patience _patience(object timeout_s) except *:
    """None waits for ever."""
    cdef Patience p
    cdef double seconds
    p.interrupted = &_signal_pending
    p.deadline_ns = INT64_MAX
    if timeout_s is not None:
        seconds = timeout_s
        if isnan(seconds) or seconds < 0:
            raise ValueError(f"timeout_s must be at least 0, it is {timeout_s!r}")
        if seconds < TIMEOUT_S_MAX:
            p.deadline_ns = NowNs() + <int64_t>(seconds * 1e9)
    return p


cdef inline Client* _open(PlasmaClient self) except NULL:
    if self.client.get() == NULL:
        raise PlasmaStoreDied("this PlasmaClient has been disconnected")
    return <Client*>self.client.get()


# Whoever lets go of Python's lock, or may (_sync, _create, _restore), first takes a reference to the client: `me`. Its caller may
# have it from a place where another thread puts the next store's meanwhile.

# The store is asked because a shared-memory step could not be decided (rare).
cdef int _sync(PlasmaClient self) except -1:
    cdef Client* c = _open(self)
    cdef Patience p = _patience(None)
    cdef Status status
    cdef shared_ptr[CClient] keep = self.client
    with nogil:
        status = c.Sync(p)
    if not status.ok():
        _raise_status(status, "plasma")
    return 0


cdef enum _What:
    _PIN
    _CONTAINS
    _DELETE
    _LAPSE


cdef inline Step _try(Client* c, _What what, const ObjectId& id) noexcept:
    if what == _PIN:
        return c.TryPin(id)
    if what == _CONTAINS:
        return c.Contains(id)
    if what == _DELETE:
        return c.TryDelete(id)
    return c.TryLapse(id)


cdef inline bint _step(PlasmaClient self, bytes key, _What what) except -1:
    """A step on a sealed object, which the table decides, or the store; False: there is none."""
    cdef PlasmaClient me = self
    cdef ObjectId id
    cdef Client* c = _open(self)
    _to_key(key, &id)
    cdef Step step = _try(c, what, id)
    while step == Step.kAsk:
        _sync(self)
        step = _try(c, what, id)
    if step == Step.kDied:
        _died(c)
    return step == Step.kDone


cdef PlasmaBuffer _restore(PlasmaClient self, Place* place, int64_t give_up_ns):
    """place: of a spilled object that is pinned. None: it was deleted meanwhile, or is damaged and lost."""
    cdef Client* c = _open(self)
    cdef Patience p = _patience(RESTORE_TIMEOUT_S)
    cdef Status status
    cdef shared_ptr[CClient] keep = self.client
    with nogil:
        status = c.Restore(p, place, give_up_ns)
    self.restores += 1
    if status.ok():
        return _wrap(self.client, place, False)
    if status.code() == StatusCode.kNotFound:
        return None
    _raise_status(status, f"bringing back a spilled object of {place.data_bytes} bytes")


cdef int _create(PlasmaClient self, const ObjectId& key, Py_ssize_t size, Py_ssize_t metadata_size, double timeout_s,
                 Place* out) except -1:
    cdef Client* c = _open(self)
    cdef Step step = c.TryCreate(key, size, metadata_size, out)
    cdef Patience p
    cdef Status status
    cdef shared_ptr[CClient] keep
    if step == Step.kDone:
        return 0
    if size < 0:
        raise ValueError(f"size must be at least 0, it is {size}")
    keep = self.client
    p = _patience(timeout_s)
    while step == Step.kAsk:
        with nogil:
            status = c.MakeRoom(size, metadata_size, p)
        if not status.ok():
            _raise_status(status, f"no room for an object of {size + metadata_size} bytes"
                              + (f" within {timeout_s} s" if timeout_s > 0 else ""))
        step = c.TryCreate(key, size, metadata_size, out)
    if step == Step.kDone:
        return 0
    if step == Step.kExists:
        raise PlasmaObjectExists(f"an object of key {(<char*>key.bytes)[:28].hex()} exists already")
    return _died(c)


cdef str _text(PlasmaClient self, Message which):
    cdef string text
    cdef Patience p = _patience(None)
    cdef Client* c = _open(self)
    cdef shared_ptr[CClient] keep = self.client
    cdef Status status
    with nogil:
        status = c.Text(which, p, &text)
    if not status.ok():
        _raise_status(status, "plasma")
    cdef bytes raw = text
    return raw.decode("utf-8", "replace")


cdef class PlasmaClient:
    """A connection to the plasma store that listens on socket_path.

    Args:   timeout_s: how long the store may take to answer at first.
    Raises: FileNotFoundError, ConnectionError, PermissionError (the store is another user's), OSError.
    Blocks: for one round trip.
    """

    def __cinit__(self, str socket_path, double timeout_s=10.0):
        cdef string path = os.fsencode(socket_path)
        cdef Patience p = _patience(timeout_s)
        cdef Status status
        self.socket_path = socket_path
        with nogil:
            status = Client.Connect(path, p, &self.client)
        if not status.ok():
            _raise_status(status, "PlasmaClient")

    def __dealloc__(self):
        # Buffers keep the connection; without them this is its end.
        if self.client.get() != NULL:
            (<Client*>self.client.get()).Release()

    cpdef PlasmaBuffer create(self, bytes key, Py_ssize_t size, bytes metadata=b"", double timeout_s=10.0):
        """Makes an unsealed object of size bytes; its buffer is writable until seal(key).

        Raises: PlasmaObjectExists; PlasmaStoreFull: no room within timeout_s, or never (larger than the store).
        Blocks: for timeout_s at most, if the store is full.
        """
        cdef PlasmaClient me = self
        cdef ObjectId id
        cdef Place place
        _to_key(key, &id)
        if size < 0:
            raise ValueError(f"size must be at least 0, it is {size}")
        _create(self, id, size, PyBytes_GET_SIZE(metadata), timeout_s, &place)
        memcpy(place.address + size, PyBytes_AS_STRING(metadata), PyBytes_GET_SIZE(metadata))
        return _wrap(self.client, &place, True)

    cpdef seal(self, bytes key):
        """Makes an object of ours visible and immutable. Raises PlasmaObjectNotFound if there is no unsealed one."""
        cdef PlasmaClient me = self
        cdef ObjectId id
        cdef Client* c = _open(self)
        _to_key(key, &id)
        cdef Step step = c.TrySeal(id)
        if step == Step.kAsk:
            _sync(self)
        elif step == Step.kAbsent:
            raise PlasmaObjectNotFound(f"no unsealed object of key {key.hex()} was created by this client")
        elif step != Step.kDone:
            _died(c)

    cpdef abort(self, bytes key):
        """Undoes create(). Raises PlasmaObjectNotFound if there is no unsealed object of ours."""
        cdef PlasmaClient me = self
        cdef ObjectId id
        cdef Client* c = _open(self)
        _to_key(key, &id)
        cdef Step step = c.TryAbort(id)
        while step == Step.kAsk:
            _sync(self)
            step = c.TryAbort(id)
        if step == Step.kAbsent:
            raise PlasmaObjectNotFound(f"no unsealed object of key {key.hex()} was created by this client")
        if step != Step.kDone:
            _died(c)

    cpdef put(self, bytes key, data, bytes metadata=b"", double timeout_s=10.0):
        """create, copy and seal: data is any contiguous buffer. The object is unpinned afterwards. Raises as create."""
        cdef PlasmaClient me = self
        cdef ObjectId id
        cdef Place place
        cdef Py_buffer view
        cdef Client* c = _open(self)
        cdef shared_ptr[CClient] keep
        cdef Step step
        _to_key(key, &id)
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            _create(self, id, view.len, PyBytes_GET_SIZE(metadata), timeout_s, &place)
            if <size_t>view.len < COPY_WITHOUT_LOCK_BYTES:
                memcpy(place.address, view.buf, view.len)
            else:
                keep = self.client
                with nogil:
                    c.Copy(place.address, view.buf, view.len)
            memcpy(place.address + view.len, PyBytes_AS_STRING(metadata), PyBytes_GET_SIZE(metadata))
        finally:
            PyBuffer_Release(&view)
        step = c.TrySealSlot(place.slot, place.generation)
        c.Unpin(place.slot)
        if step == Step.kAsk:
            _sync(self)
        elif step != Step.kDone:
            _died(c)

    cpdef PlasmaBuffer get(self, bytes key, int64_t give_up_ns=INT64_MAX):
        """A read-only view on a sealed object, or None.

        Args: give_up_ns: on the monotonic clock: until when it may take to bring it back from disk.
        Raises: PlasmaStoreFull: it is on disk, and no room was to be had for it. TimeoutError: it was not back by give_up_ns.
        Blocks: if it is on disk, without Python's lock.
        """
        cdef PlasmaClient me = self
        cdef ObjectId id
        cdef Place place
        cdef Client* c = _open(self)
        _to_key(key, &id)
        cdef Step step = c.TryGet(id, &place)
        while step == Step.kAsk:
            _sync(self)
            step = c.TryGet(id, &place)
        if step == Step.kDone:
            return _wrap(self.client, &place, False)
        if step == Step.kAbsent:
            return None
        if step == Step.kSpilled:
            return _restore(self, &place, give_up_ns)
        _died(c)

    cpdef Py_ssize_t ahead(self, list keys) except -1:
        """Those of keys that are on disk will be wanted soon: the store begins to bring them back, as far as there is room.

        Returns: how many are on disk. Doesn't wait for them.
        """
        cdef PlasmaClient me = self
        cdef Client* c = _open(self)
        cdef shared_ptr[CClient] keep = self.client
        cdef vector[ObjectId] ids
        cdef ObjectId id
        cdef size_t spilled = 0
        cdef Status status
        for key in keys:
            _to_key(key, &id)
            ids.push_back(id)
        with nogil:
            status = c.Ahead(ids, &spilled)
        if not status.ok():
            _raise_status(status, "ahead")
        return <Py_ssize_t>spilled

    cdef bint has_spilled(self) noexcept:
        """Whether the store has ever spilled anything; while it hasn't, `ahead` has nothing to do. A load."""
        cdef Client* c = <Client*>self.client.get()
        return c != NULL and c.has_spilled()

    cpdef bint pin(self, bytes key) except -1:
        """Keeps a sealed object from eviction until unpin(key); counted. False if there is none."""
        return _step(self, key, _PIN)

    cpdef unpin(self, bytes key):
        """Undoes one pin(key). Raises PlasmaObjectNotFound if there is none of ours."""
        cdef ObjectId id
        cdef Client* c = _open(self)
        _to_key(key, &id)
        if not c.UnpinKey(id):
            raise PlasmaObjectNotFound(f"key {key.hex()} is not pinned by this client")

    cpdef bint contains(self, bytes key) except -1:
        """Whether a sealed object of that key is there."""
        return _step(self, key, _CONTAINS)

    cpdef bint delete(self, bytes key) except -1:
        """Hides a sealed object from everybody; its memory is free once nobody pins it. False if there was none."""
        return _step(self, key, _DELETE)

    cpdef bint lapse(self, bytes key) except -1:
        """Nobody owns a sealed object any more: it is gone as soon as nobody pins it. False if there was none."""
        return _step(self, key, _LAPSE)

    cpdef unpinned(self, bytes key):
        """A pin of ours is gone that may have been the last one of an object that nobody owns any more: it is freed now, then."""
        cdef ObjectId id
        cdef Client* c = _open(self)
        _to_key(key, &id)
        c.Unpinned(id)

    cdef void copy(self, void* dest, const void* src, size_t n) noexcept nogil:
        cdef Client* c = <Client*>self.client.get()
        if c == NULL:
            memcpy(dest, src, n)
        else:
            c.Copy(dest, src, n)

    def copy_into(self, dest, source):
        """Copies one contiguous buffer into another of the same size, as put does. GIL released if large."""
        cdef Py_buffer d, b
        PyObject_GetBuffer(dest, &d, PyBUF_WRITABLE)
        try:
            PyObject_GetBuffer(source, &b, PyBUF_SIMPLE)
            try:
                if d.len != b.len:
                    raise ValueError(f"dest has {d.len} bytes, source {b.len}")
                if <size_t>b.len < COPY_WITHOUT_LOCK_BYTES:
                    memcpy(d.buf, b.buf, b.len)
                else:
                    with nogil:
                        self.copy(d.buf, b.buf, b.len)
            finally:
                PyBuffer_Release(&b)
        finally:
            PyBuffer_Release(&d)

    def wait_sealed(self, keys, timeout_s=None):
        """Waits until every key of the list has been sealed; False if timeout_s (None: for ever) passed first.

        Blocks: yes, without Python's lock; woken by the store, not by looking again and again.
        """
        cdef vector[ObjectId] ids
        cdef ObjectId id
        cdef Patience p = _patience(timeout_s)
        cdef Client* c = _open(self)
        cdef shared_ptr[CClient] keep = self.client
        cdef Status status
        for key in keys:
            _to_key(key, &id)
            ids.push_back(id)
        with nogil:
            status = c.WaitSealed(ids, p)
        if status.ok():
            return True
        if status.code() == StatusCode.kTimedOut:
            return False
        _raise_status(status, "wait_sealed")

    def evict(self, uint64_t nbytes):
        """Evicts least recently used objects until nbytes are freed or nothing is left; returns the bytes freed."""
        cdef uint64_t freed = 0
        cdef Patience p = _patience(None)
        cdef Client* c = _open(self)
        cdef shared_ptr[CClient] keep = self.client
        cdef Status status
        with nogil:
            status = c.Evict(nbytes, p, &freed)
        if not status.ok():
            _raise_status(status, "evict")
        return freed

    def stats(self):
        """Counts and bytes of the whole store, as the store sees them now; a dict of ints.

        pool_bytes, free_bytes (neither objects nor lent), largest_free_bytes, touched_bytes (pages taken from the kernel);
        {sealed,unsealed,deleting}_{objects,bytes}; slots, slots_free of the table; clients, waiting_for_room,
        waiting_for_seal, subscribers; evicted_{objects,bytes}, bad_entries, connections_refused since its start. Of spilling:
        spilled_{objects,bytes} (on disk and not in memory), disk_{objects,bytes} (on disk, whether in memory or not);
        written_{objects,bytes}, restored_{objects,bytes}, damaged_objects since its start.
        """
        cdef StatsAnswer s
        cdef Patience p = _patience(None)
        cdef Client* c = _open(self)
        cdef shared_ptr[CClient] keep = self.client
        cdef Status status
        with nogil:
            status = c.Stats(p, &s)
        if not status.ok():
            _raise_status(status, "stats")
        return {
            "pool_bytes": s.pool_bytes, "free_bytes": s.free_bytes, "largest_free_bytes": s.largest_free_bytes,
            "touched_bytes": s.touched_bytes,
            "sealed_objects": s.sealed_objects, "sealed_bytes": s.sealed_bytes,
            "unsealed_objects": s.unsealed_objects, "unsealed_bytes": s.unsealed_bytes,
            "deleting_objects": s.deleting_objects, "deleting_bytes": s.deleting_bytes,
            "slots": s.slots, "slots_free": s.slots_free, "clients": s.clients,
            "waiting_for_room": s.waiting_for_room, "waiting_for_seal": s.waiting_for_seal, "subscribers": s.subscribers,
            "evicted_objects": s.evicted_objects, "evicted_bytes": s.evicted_bytes,
            "bad_entries": s.bad_entries, "connections_refused": s.connections_refused,
            "spilled_objects": s.spilled_objects, "spilled_bytes": s.spilled_bytes,
            "disk_objects": s.disk_objects, "disk_bytes": s.disk_bytes,
            "written_objects": s.written_objects, "written_bytes": s.written_bytes,
            "restored_objects": s.restored_objects, "restored_bytes": s.restored_bytes,
            "damaged_objects": s.damaged_objects,
        }

    def audit(self):
        """Lets the store check its books against shared memory; "" or what is wrong. Slow; for tests and tools."""
        return _text(self, Message.kAudit)

    def describe_holders(self):
        """A paragraph for a person: which process holds how much."""
        return _text(self, Message.kHolders)

    def list(self):
        """All objects: {key: {"data_size", "metadata_size", "state", "created_ns", "sealed_ns", "creator_pid", "pins", "pids"}}.

        state is "created", "sealed" or "deleting"; pids are the processes that pin it (16 at most); times are of the
        monotonic clock.
        """
        cdef vector[pair[Row, vector[uint32_t]]] rows
        cdef Patience p = _patience(None)
        cdef Client* c = _open(self)
        cdef shared_ptr[CClient] keep = self.client
        cdef Status status
        cdef size_t i
        cdef Row* r
        with nogil:
            status = c.List(p, &rows)
        if not status.ok():
            _raise_status(status, "list")
        objects = {}
        for i in range(rows.size()):
            r = &rows[i].first
            objects[PyBytes_FromStringAndSize(<char*>r.key.bytes, 28)] = {
                "data_size": r.data_bytes, "metadata_size": r.metadata_bytes, "state": STATE_NAMES[r.state],
                "created_ns": r.created_ns, "sealed_ns": r.sealed_ns, "creator_pid": r.creator_pid, "pins": r.pins,
                "pids": list(rows[i].second),
            }
        return objects

    def subscribe(self):
        """Begins to receive an event for each object that is sealed (first for those that are) or deleted."""
        cdef Client* c = _open(self)
        cdef Status status = c.Subscribe()
        if not status.ok():
            _raise_status(status, "subscribe")

    def next_events(self, timeout_s=None):
        """The next events, at least one list of (key, deleted, data_size, metadata_size); possibly empty right after subscribe.

        Raises: TimeoutError. Blocks: yes.
        """
        cdef vector[EventRow] rows
        cdef Patience p = _patience(timeout_s)
        cdef Client* c = _open(self)
        cdef shared_ptr[CClient] keep = self.client
        cdef Status status
        cdef size_t i
        with nogil:
            status = c.NextEvents(p, &rows)
        if not status.ok():
            _raise_status(status, "next_events")
        return [(PyBytes_FromStringAndSize(<char*>rows[i].key.bytes, 28), bool(rows[i].deleted), rows[i].data_bytes,
                 rows[i].metadata_bytes) for i in range(rows.size())]

    def disconnect(self):
        """Ends the use of this object. The connection itself ends with the last buffer that came from it."""
        if self.client.get() != NULL:
            (<Client*>self.client.get()).Release()
            self.client.reset()

    def fileno(self):
        """The socket to the store: an end of file there means that it has died (data may come too, leave it there)."""
        return _open(self).connection_fd()

    def death_fd(self):
        """A pidfd of the store's process: readable once it has died, and never before. Not the caller's to close.

        Raises: OSError: this kernel or sandbox has no pidfds.
        """
        cdef int fd = _open(self).death_fd()
        if fd < 0:
            raise OSError("no pidfd of the plasma store: pidfd_open is refused here")
        return fd

    @property
    def alive(self):
        """Whether the store lives, without a system call."""
        return self.client.get() != NULL and not (<Client*>self.client.get()).died()

    @property
    def capacity(self):
        """Bytes of the pool."""
        return _open(self).pool_bytes()

    @property
    def store_pid(self):
        return _open(self).store_pid()

    def __repr__(self):
        if self.client.get() == NULL:
            return f"<PlasmaClient {self.socket_path} disconnected>"
        return f"<PlasmaClient {self.socket_path} {'alive' if self.alive else 'store died'}>"


def copy_threads(size_t nbytes):
    """How many threads a copy of so many bytes uses on this machine."""
    return CopyThreads(nbytes)
