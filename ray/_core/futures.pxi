# Futures of the standard library and of asyncio that finish with a ref. Included by engine.pyx.
#
# They finish after the round in which the ref settled, never inside it: a callback may run user code. All that wait when the
# engine is closed finish then, with an error.

cdef class _FutureWaiter(Waiter):
    """Finishes a concurrent.futures.Future, outside the round. Keeps the ref, which may have no other holder, until then."""
    cdef Engine engine
    cdef object target
    cdef ObjectRef ref

    cdef int ready(self, ObjectRef ref) except -1:
        self.engine.callbacks.append((finish_future, (self.engine, self.target, ref)))
        return 0


def finish_future(Engine engine, target, ObjectRef ref):
    if target.cancelled() or target.done():
        return
    if ref is None:  # it waits for something to happen, not for a value
        target.set_result(None)
        return
    try:
        if ref.state == PLASMA:
            if engine.closed:
                raise exceptions.RaySystemError("ray was shut down")
            if finish_when_fetched(engine, target, ref):
                return
        value = value_of(engine, ref)
    except BaseException as error:
        target.set_exception(error)
    else:
        target.set_result(value)


cdef class _LoopWaiter(Waiter):
    """Finishes an asyncio future in its loop."""
    cdef Engine engine
    cdef object loop, target
    cdef ObjectRef ref         # kept alive by this cycle until it settles: `await f.remote()` holds no other reference

    cdef int ready(self, ObjectRef ref) except -1:
        return finish_in_loop(self.engine, self.loop, self.target, ref)


cdef class _CountWaiter(Waiter):
    """Finishes an asyncio future, with None, when `left` more of the refs that it is added to are there."""
    cdef Engine engine
    cdef object loop, target
    cdef list refs
    cdef Py_ssize_t left

    cdef int ready(self, ObjectRef ref) except -1:
        self.left -= 1
        return finish_in_loop(self.engine, self.loop, self.target, None) if self.left == 0 else 0


cdef int finish_in_loop(Engine self, loop, target, ObjectRef ref) except -1:
    """All that become ready in one round wake the loop once."""
    batch = self.loop_batches.get(loop)
    if batch is None:
        batch = self.loop_batches[loop] = []
        self.callbacks.append((wake_loop, (self, loop)))
    batch.append((target, ref))
    return 0


cdef int forget_abandoned(ObjectRef ref) except -1:
    """Futures that were cancelled stay with a ref until it settles. Whoever polls one with asyncio.wait_for would add them
    without end, so their list is gone through whenever it has doubled."""
    cdef Py_ssize_t n
    if type(ref.waiters) is list:
        n = PyList_GET_SIZE(ref.waiters)
        if n >= 16 and n & (n - 1) == 0:
            ref.waiters = [waiter for waiter in <list>ref.waiters if not is_abandoned(waiter)]
    return 0


cdef bint is_abandoned(waiter) except -1:
    if type(waiter) is _LoopWaiter:
        return (<_LoopWaiter>waiter).target.cancelled()
    return type(waiter) is _FutureWaiter and (<_FutureWaiter>waiter).target.cancelled()


def wake_loop(Engine self, loop):
    batch = self.loop_batches.pop(loop, ())
    if sys.modules["asyncio"]._get_running_loop() is loop:
        finish_batch(self, batch)  # it is this thread's: an asyncio actor receives in its loop
        return
    try:
        loop.call_soon_threadsafe(finish_batch, self, batch)
    except RuntimeError:
        pass  # the loop was closed: nobody awaits any more


def finish_batch(Engine self, batch):
    for target, ref in batch:
        finish_future(self, target, ref)


def as_future(ObjectRef ref):
    from concurrent.futures import Future
    cdef _FutureWaiter waiter
    cdef Engine self = engine_or_raise()
    target = Future()
    if ref.state == PENDING and not ref.owned and not ref.asked:
        ask_owner(self, ref)
    if ref.state != PENDING:
        finish_future(self, target, ref)
        return target
    waiter = _FutureWaiter.__new__(_FutureWaiter)
    waiter.engine, waiter.target, waiter.ref = self, target, ref
    forget_abandoned(ref)
    add_waiter(ref, waiter)
    self.flush_dirty()
    return target


def as_asyncio_future(ObjectRef ref):
    import asyncio
    cdef _LoopWaiter waiter
    cdef Engine self = engine_or_raise()
    loop = asyncio.get_running_loop()
    target = loop.create_future()
    if ref.state == PENDING and not ref.owned and not ref.asked:
        ask_owner(self, ref)
    if ref.state != PENDING:
        finish_future(self, target, ref)
        return target
    waiter = _LoopWaiter.__new__(_LoopWaiter)
    waiter.engine, waiter.loop, waiter.target, waiter.ref = self, loop, target, ref
    forget_abandoned(ref)
    add_waiter(ref, waiter)
    return target


def when_ready(list refs, Py_ssize_t n):
    """(an asyncio future that finishes when n of the refs are ready, what stop_waiting wants in the end)."""
    import asyncio
    cdef Engine self = engine_or_raise()
    cdef ObjectRef ref
    cdef _CountWaiter waiter = _CountWaiter.__new__(_CountWaiter)
    waiter.engine, waiter.loop = self, asyncio.get_running_loop()
    waiter.target = waiter.loop.create_future()
    waiter.left = n
    refs = stand_ins(self, refs)
    for ref in refs:
        if ref.state == PENDING:
            if not ref.owned and not ref.asked:
                ask_owner(self, ref)
            add_waiter(ref, waiter)
        else:
            waiter.left -= 1
    if waiter.left <= 0:
        waiter.target.set_result(None)
    self.flush_dirty()
    waiter.refs = refs
    return waiter.target, waiter


def stop_waiting(_CountWaiter waiter):
    cdef ObjectRef ref
    for ref in waiter.refs:
        if ref.state == PENDING:
            remove_waiter(ref, waiter)
