# cython: language_level=3
"""ObjectRef: a future, and the whole local record of one object.

Runs in every driver and worker, any thread, under the GIL, which is its only lock. One ObjectRef exists per id and
process (the intern table sees to that once an id has travelled), so Python's own count of references to it *is* the
local reference count, and its deallocation is the event "the last local copy is gone". That event may strike inside any
allocation of any thread; the hook called from there only queues work for the engine.

A borrower's ref (owned == False) tells the owner when it goes. What a peer's death does is the engine's business:
it settles the refs concerned with an error.
"""
cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.object cimport Py_EQ, Py_GE, Py_GT, Py_LE, Py_LT, Py_NE
from cpython.ref cimport PyObject

import os
import sys
import traceback

cdef RefMap interned
cdef bint sites_recorded = False
cdef void* newest = NULL   # of the chain of all refs that new_ref has made
cdef dropped_t dropped_hook = NULL


cdef void set_dropped_hook(dropped_t hook) noexcept:
    global dropped_hook
    dropped_hook = hook


cdef size_t interned_count() noexcept:
    return interned.size()


cdef class Waiter:
    cdef int ready(self, ObjectRef ref) except -1:
        raise NotImplementedError


@cython.no_gc  # only immutable values and acyclic records hang off a ref; and a million refs must not slow the collector
@cython.freelist(1024)
cdef class ObjectRef:
    """A reference to an object that may not exist yet; `ray.get` waits for it.

    Made by ``f.remote()``, ``actor.method.remote()`` and ``ray.put``. It may be passed to tasks, stored in other
    objects and awaited; the object lives as long as anybody in the cluster holds a reference to it.
    """

    def __init__(self, id_=None):
        if id_ is not None:
            if not isinstance(id_, bytes) or len(id_) != 28:
                raise ValueError(f"ObjectRef(id): id must be 28 bytes, got {id_!r}")
            self.id = load_id(<const uint8_t*>PyBytes_AS_STRING(id_))

    def __dealloc__(self):
        global newest
        if self.interned:
            interned.erase(self.id)
        if self.after != NULL:
            (<ObjectRef>self.after).before = self.before
        elif newest == <void*>self:
            newest = self.before
        if self.before != NULL:
            (<ObjectRef>self.before).after = self.after
        if dropped_hook != NULL and (
                self.state == PLASMA or self.pull != 0 or self.producer is not None or self.hold is not None or not self.owned):
            dropped_hook(self)

    cdef bytes key(self):
        cdef bytes out = PyBytes_FromStringAndSize(NULL, 28)
        store_id(<uint8_t*>PyBytes_AS_STRING(out), self.id)
        return out

    def binary(self):
        """The 28 bytes of the id: owner's tag, sequence number, index."""
        return self.key()

    def hex(self):
        return self.key().hex()

    def task_id(self):
        """Id (24 bytes) of the task that makes this object."""
        from ray._protocol.ids import TaskID
        return TaskID(self.key()[:24])

    def job_id(self):
        from ray._core import engine
        from ray._protocol.ids import JobID
        current = engine.current()
        return JobID(current.context()["job_id"] if current else bytes(4))

    def is_nil(self):
        return self.key() == b"\xff" * 28

    def size(self):
        return 28

    @classmethod
    def nil(cls):
        return cls(b"\xff" * 28)

    @classmethod
    def from_random(cls):
        return cls(os.urandom(28))

    @classmethod
    def from_binary(cls, binary):
        return cls(binary)

    def __hash__(self):
        cdef uint64_t h = (self.id.seq + self.id.index * <uint64_t>0x9E3779B97F4A7C15) ^ self.id.tag0
        h = h * <uint64_t>0xD6E8FEB86659FD93
        h ^= h >> 32
        return <Py_hash_t>(h >> 1)

    def __richcmp__(self, other, int op):
        cdef ObjectRef a, b
        if not isinstance(other, ObjectRef):
            return NotImplemented
        a, b = self, other
        if op == Py_EQ:
            return a is b or a.id == b.id
        if op == Py_NE:
            return not (a is b or a.id == b.id)
        x, y = a.key(), b.key()
        if op == Py_LT:
            return x < y
        if op == Py_LE:
            return x <= y
        return x > y if op == Py_GT else x >= y

    def __repr__(self):
        return f"ObjectRef({self.hex()})"

    def __await__(self):
        from ray._core import engine
        return engine.as_asyncio_future(self).__await__()

    def future(self):
        """A concurrent.futures.Future that finishes with this object's value or error."""
        from ray._core import engine
        return engine.as_future(self)

    def __reduce__(self):
        from ray._native import serialization
        return serialization.reduce_ref(self)

    def __class_getitem__(cls, item):
        return cls

    def __copy__(self):
        return self

    def __deepcopy__(self, memo):
        return self


cdef ObjectRef new_ref(ObjectId id, bint owned):
    global newest
    cdef ObjectRef ref = ObjectRef.__new__(ObjectRef)
    ref.id = id
    ref.owned = owned
    ref.before = newest
    if newest != NULL:
        (<ObjectRef>newest).after = <void*>ref
    newest = <void*>ref
    if sites_recorded and owned:
        ref.site = user_line()
    return ref


cdef int begin_session(bint record_sites) except -1:
    """A session begins: refs of an earlier one that are still about are none of all_refs.

    record_sites: each ref is to know the line that made it, which costs about a microsecond."""
    global newest, sites_recorded
    newest = NULL
    sites_recorded = record_sites
    return 0


cdef str _package = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep


cdef object user_line():
    """The innermost line of Python that is not of this package, or None."""
    try:
        frame = sys._getframe()
    except ValueError:  # no Python is running in this thread
        return None
    while frame is not None and frame.f_code.co_filename.startswith(_package):
        frame = frame.f_back
    return None if frame is None else f"{frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_name}"


cdef list all_refs():
    """Every ref of this process that stands for an object, newest first. For tools: it takes a while."""
    cdef list out = []
    cdef void* at = newest
    while at != NULL:
        out.append(<ObjectRef>at)
        at = (<ObjectRef>at).before
    return out


cdef ObjectRef find_ref(ObjectId id):
    """The one local ObjectRef of this id, or None."""
    if not interned.count(id):
        return None
    return <ObjectRef><PyObject*>interned[id]


cdef int intern(ObjectRef ref) except -1:
    """From now on find_ref finds it. The table holds no reference: the ref's deallocation takes it out."""
    if not ref.interned:
        interned[ref.id] = <void*>ref
        ref.interned = True
    return 0


cdef int add_waiter(ObjectRef ref, Waiter waiter) except -1:
    if ref.waiters is None:
        ref.waiters = waiter
    elif type(ref.waiters) is list:
        (<list>ref.waiters).append(waiter)
    else:
        ref.waiters = [ref.waiters, waiter]
    return 0


cdef int remove_waiter(ObjectRef ref, Waiter waiter) except -1:
    if ref.waiters is waiter:
        ref.waiters = None
    elif type(ref.waiters) is list and waiter in <list>ref.waiters:
        (<list>ref.waiters).remove(waiter)
    return 0


cdef int settle(ObjectRef ref) except -1:
    """Tells everybody who waits. Call after the state has been set."""
    cdef object waiters = ref.waiters
    if waiters is None:
        return 0
    ref.waiters = None
    if type(waiters) is not list:
        waiters = [waiters]
    for waiter in <list>waiters:
        try:
            (<Waiter>waiter).ready(ref)
        except Exception:
            # Our bug, or a peer that died this moment: the others must still hear.
            traceback.print_exc()
    return 0
