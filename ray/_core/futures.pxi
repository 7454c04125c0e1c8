# Futures of the standard library and of asyncio that finish with a ref. Included by engine.pyx.
#
# They finish after the round in which the ref settled, never inside it: a callback may run user code.

cdef class _FutureWaiter(Waiter):
    """Finishes a concurrent.futures.Future, outside the round. Keeps the ref, which may have no other holder, until then."""
    cdef object target
    cdef ObjectRef ref

    cdef int ready(self, ObjectRef ref) except -1:
        (<Engine>the_engine).callbacks.append((finish_future, (self.target, ref)))
        return 0


def finish_future(target, ObjectRef ref):
    if target.cancelled() or target.done():
        return
    if ref is None:  # it waits for something to happen, not for a value
        target.set_result(None)
        return
    try:
        value = value_of(engine_or_raise(), ref)
    except BaseException as error:
        target.set_exception(error)
    else:
        target.set_result(value)


cdef class _LoopWaiter(Waiter):
    """Finishes an asyncio future in its loop; all that become ready in one round wake the loop once."""
    cdef object loop, target
    cdef ObjectRef ref         # kept alive by this cycle until it settles: `await f.remote()` holds no other reference

    cdef int ready(self, ObjectRef ref) except -1:
        cdef Engine self_engine = the_engine
        batch = self_engine.loop_batches.get(self.loop)
        if batch is None:
            batch = self_engine.loop_batches[self.loop] = []
            self_engine.callbacks.append((wake_loop, (self.loop,)))
        batch.append((self.target, ref))
        return 0


def wake_loop(loop):
    batch = (<Engine>the_engine).loop_batches.pop(loop, ()) if the_engine is not None else ()
    try:
        loop.call_soon_threadsafe(finish_batch, batch)
    except RuntimeError:
        pass  # the loop was closed: nobody awaits any more


def finish_batch(batch):
    for target, ref in batch:
        finish_future(target, ref)


def as_future(ObjectRef ref):
    from concurrent.futures import Future
    cdef _FutureWaiter waiter
    cdef Engine self = engine_or_raise()
    target = Future()
    if ref.state == PENDING and not ref.owned and not ref.asked:
        ask_owner(self, ref)
    if ref.state != PENDING:
        finish_future(target, ref)
        return target
    waiter = _FutureWaiter.__new__(_FutureWaiter)
    waiter.target, waiter.ref = target, ref
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
        finish_future(target, ref)
        return target
    waiter = _LoopWaiter.__new__(_LoopWaiter)
    waiter.loop, waiter.target, waiter.ref = loop, target, ref
    add_waiter(ref, waiter)
    return target
