# Generators, the caller's side: items of one call that come one by one while it runs. Included by engine.pyx.
#
# The call's one return, index 0, is `done`. Item k is index k of the same call, counted from 1, and comes in a YIELD frame, in
# order, before the RESULT. Each becomes an ordinary ref that this process owns. `num_returns="streaming"`: next() hands them out
# as they come. "dynamic": they gather, and are the value of `done` when the call has ended.
#
# Whoever waits for the next item waits on the ref `coming`, which is PENDING until that item, or the end, has come: so get, wait
# and asyncio need nothing new. With a window, each item taken is told to the worker (TAKEN), which runs no further ahead.
#
# The worker's death: the task runs again as any other, and skips what has come (the header's first_index). A lost store object:
# `kept` knows the items whose task stays as lineage; the call runs again from the first lost one, and stops when the last is there.
# The generator dropped: the worker is told to stop (CANCEL with C_STOP) unless somebody still holds `done`.

cdef enum:
    TAKEN_ALL = 0xFFFFFFFF         # in TAKEN: nobody waits for items any more, don't wait for him either


@cython.no_gc
cdef class Stream:
    def __dealloc__(self):
        self.clear()

    cdef int clear(self) except -1:
        while not self.items.empty():
            Py_DECREF(<object>self.items.front())
            self.items.pop_front()
        return 0

    cdef int push(self, ObjectRef ref) except -1:
        Py_INCREF(ref)
        self.items.push_back(<void*>ref)
        return 0

    cdef ObjectRef pop(self):
        cdef ObjectRef ref = <ObjectRef>self.items.front()
        self.items.pop_front()
        Py_DECREF(ref)
        return ref

    cdef void forget(self, ObjectRef ref) noexcept:
        """From the deallocation of one of `kept`."""
        cdef KeptMap.iterator at = self.kept.find(ref.id.index)
        if at != self.kept.end() and deref(at).second == <void*>ref:
            if ref.state == PENDING:
                self.lost -= 1
            self.kept.erase(at)

    cdef list keepers(self):
        """The refs in `kept`, held: what follows may drop some, and so change the table."""
        cdef KeptMap.iterator at = self.kept.begin()
        out = []
        while at != self.kept.end():
            out.append(<object>deref(at).second)
            inc(at)
        return out

    cdef uint32_t first_wanted(self) except? 0:
        """Index of the first item that the next run is to send."""
        cdef uint32_t first = self.delivered + 1
        cdef ObjectRef ref
        if self.lost:
            for ref in self.keepers():
                if ref.state == PENDING and ref.id.index < first:
                    first = ref.id.index
        return first


cdef object open_stream(Engine self, Task task, object returns):
    """What a generator call gives its caller. Before the task is dispatched."""
    cdef ObjectRefGenerator generator
    cdef Stream stream
    if task.callee.yields == Y_FIXED:
        return returns
    stream = Stream.__new__(Stream)
    stream.window, stream.kind = task.callee.window, task.callee.yields
    task.stream = stream
    self.streams[task.seq] = task
    if stream.kind == Y_DYNAMIC:
        return returns
    generator = ObjectRefGenerator.__new__(ObjectRefGenerator)
    generator.engine, generator.stream, generator.done = self, stream, <ObjectRef>returns
    return generator


cdef int head_stream(Task task, TaskHeader* header) except -1:
    """Completes the header as the task is sent: from where on its items are wanted."""
    cdef Stream stream = task.stream
    header.first_index = stream.first_wanted()
    header.taken = stream.taken
    header.window = 0 if stream.dropped or stream.ended else stream.window
    stream.reached = header.first_index - 1
    return 0


cdef int on_yield(Engine self, Link link, Reader* r, uint8_t flags) except -1:
    cdef uint64_t seq = r.U64()
    cdef uint32_t index = r.U32()
    cdef CallMap.iterator at = link.calls.find(seq)
    cdef Task task = None
    cdef Stream stream = None
    cdef ObjectRef ref = None
    cdef list refs
    cdef bint again = False
    cdef bint in_store = r.left() > 0 and r.p[0] == G_PLASMA
    cdef uint32_t home = home_ahead(self, r[0]) if in_store else self.number
    if at != link.calls.end():
        task = <Task>deref(at).second
        stream = task.stream
        if stream is None or index != stream.reached + 1:
            r.ok = False
            return 0
        if index <= stream.delivered:
            ref = lost_item(stream, index)
            again = ref is not None
            if ref is None and in_store:
                ref = rewritten_item(self, stream, index, home)
        elif not stream.ended and not stream.dropped:
            ref = stream.coming
            if ref is None:
                ref = new_ref(make_id(self, seq, index), True)
    refs = take(self, link, r, ref)
    if not r.ok:
        return 0
    if stream is not None:
        stream.reached = index
        if index > stream.delivered and not stream.ended:
            stream.delivered = index
            if ref is not None:
                stream.coming = None
                stream.push(ref)
        if ref is not None and ref.state == PLASMA and task.callee.max_retries != 0 and not isinstance(task.callee, ActorMethod):
            ref.producer = task
            stream.kept[index] = <void*>ref
        if again:
            stream.lost -= 1
            if stream.lost == 0 and stream.ended:
                send_u64(link, F_CANCEL, C_STOP, seq)  # the rest of this run is not wanted
    if ref is None and in_store:
        discard(self, seq, index, home)
    if flags & R_HOLD:
        register_rest(self, link, refs, r.U64())
    return 0


cdef ObjectRef lost_item(Stream stream, uint32_t index):
    cdef KeptMap.iterator at = stream.kept.find(index)
    if at == stream.kept.end() or (<ObjectRef>deref(at).second).state != PENDING:
        return None
    return <ObjectRef>deref(at).second


cdef ObjectRef rewritten_item(Engine self, Stream stream, uint32_t index, uint32_t home):
    """An item that is not lost, but that lay behind one that is, so that this run has yielded it once more. In the same store it has
    taken the place of what was there: it is the item from now on, and not to be thrown away. None: it is in another store, or nobody
    has the item any more."""
    cdef KeptMap.iterator at = stream.kept.find(index)
    cdef ObjectRef ref
    if at == stream.kept.end():
        return None
    ref = <ObjectRef>deref(at).second
    if ref.state != PLASMA or ref.home != home:
        return None
    unpin_lost(self, ref)
    return ref


cdef int end_stream(Engine self, Task task, object error) except -1:
    """No more items will come. error: the last item's, an exception or the bytes of an encoded one; None if there is none."""
    cdef Stream stream = task.stream
    cdef ObjectRef ref
    self.streams.pop(task.seq, None)
    if stream.lost and error is not None:
        fail_lost(task, 0, error)
    if stream.ended:
        return 0
    stream.ended = True
    ref, stream.coming = stream.coming, None
    if error is not None and not stream.dropped:
        if ref is None:
            ref = new_ref(make_id(self, task.seq, stream.delivered + 1), True)
        stream.push(ref)
        fail_ref(ref, error)
    elif ref is not None:
        ref.state = VALUE
        settle(ref)
    if task.returns[0] == NULL:
        if stream.kind == Y_DYNAMIC:
            stream.clear()  # the call itself failed: nobody can have them
        return 0
    ref = <ObjectRef>task.returns[0]
    task.returns[0] = NULL
    ref.producer = None
    if stream.kind == Y_DYNAMIC:
        gather(stream, ref)
    else:
        ref.state = VALUE
    return settle(ref)


cdef int gather(Stream stream, ObjectRef done) except -1:
    """The value of `done` becomes the refs that have come. Never in the store: this runs inside a round, where nobody may wait."""
    cdef Encoded e
    refs = []
    while not stream.items.empty():
        refs.append(stream.pop())
    e = encode(DynamicObjectRefGenerator(refs))
    done.contained, done.size = e.refs, e.nbytes
    done.value = blob_of(e)
    done.state = BLOB
    return 0


cdef bint goes_on(Engine self, Task task, uint8_t flags) except -1:
    """A run has ended without an error. True: it was stopped to make lost items again, or has lost some, and runs again."""
    cdef Stream stream = task.stream
    cdef bint stopped = (flags & R_CANCELLED) != 0
    if stream.lost and not stopped:
        fail_lost(task, stream.reached, None)  # this run yielded less than an earlier one
    if stream.dropped or not stopped:
        end_stream(self, task, None)
    if stream.ended and not stream.lost:
        return False
    if task.retries_left == 0:
        fail_task(task, exceptions.WorkerCrashedError(f"the worker left while {task.callee.name}() had more to yield, and there are "
                                                      "no tries left"))
        return False
    if task.retries_left > 0:
        task.retries_left -= 1
    task.attempt += 1
    task.state, task.order, task.cancelled = WAITING, 0, False
    self.callbacks.append((redispatch, (task,)))
    return True


# ------------------------------------------------------------------ items lost from the store

cdef int fail_lost(Task task, uint32_t beyond, object error) except -1:
    """The lost items of an index above `beyond` won't be made again."""
    cdef Stream stream = task.stream
    cdef ObjectRef ref
    for ref in stream.keepers():
        if ref.state == PENDING and ref.id.index > beyond:
            stream.forget(ref)
            fail_ref(ref, error or exceptions.ObjectReconstructionFailedError(
                f"object {ref.hex()} was lost from the object store, and {task.callee.name}() did not yield it again"))
    return 0


cdef int lose_items(Engine self, Task task, ObjectRef lost) except -1:
    """One item's loss has been found: all that the store has lost are PENDING from now on, so that one run makes them all. Of a home
    that lives only lost itself is known: it had it, and hasn't got it any more."""
    cdef Stream stream = task.stream
    cdef ObjectRef ref
    for ref in stream.keepers():
        if ref.state == PLASMA and (ref is lost or not in_store(self, ref)):
            ref.state = PENDING
            unpin_lost(self, ref)
            stream.lost += 1
    if task.retries_left == 0:
        return fail_lost(task, 0, exceptions.ObjectReconstructionFailedMaxAttemptsExceededError(
            f"objects that {task.callee.name}() had yielded were lost from the object store, and it has no retries left"))
    if task.state == SENT and task.link is not None and stream.first_wanted() <= stream.reached:
        send_u64(task.link, F_CANCEL, C_STOP, task.seq)  # this run is past them; then it starts again
    task.cancelled = False  # it was, if the generator was dropped: now a part of it is wanted
    return 0


# ------------------------------------------------------------------ what the user holds

cdef ObjectRef coming_item(Engine self, ObjectRefGenerator generator):
    cdef Stream stream = generator.stream
    if stream.coming is None:
        stream.coming = new_ref(make_id(self, generator.done.id.seq, stream.delivered + 1), True)
    return stream.coming


cdef list stand_ins(Engine self, list given):
    """For ray.wait: refs that are ready when next() of the generators among `given` would not wait."""
    cdef ObjectRefGenerator generator
    cdef ObjectRef ready
    out = []
    for item in given:
        if type(item) is ObjectRefGenerator:
            generator = <ObjectRefGenerator>item
            if not generator.stream.items.empty():
                item = <ObjectRef>generator.stream.items.front()
            elif generator.stream.ended:
                ready = new_ref(generator.done.id, True)
                ready.state = VALUE
                item = ready
            else:
                item = coming_item(self, generator)
        out.append(item)
    return out


cdef int send_taken(Link link, uint64_t seq, uint32_t taken) except -1:
    if link is not None and link.alive:
        PutU32(PutU64(link.begin(F_TAKEN, 0, 12), seq), taken)
        link.later()
    return 0


cdef int drop_stream(Engine self, uint64_t seq) except -1:
    """Nobody can take items any more. With nobody to see the end either, the worker stops at the next yield."""
    cdef Task task = self.streams.get(seq)
    if task is not None and task.returns[0] == NULL:
        return stop_stream(self, task)
    if task is not None and task.stream.window:
        send_taken(task.link, seq, TAKEN_ALL)
    return 0


cdef int stop_stream(Engine self, Task task) except -1:
    if task.stream.lost:
        return 0  # somebody holds items that it has to make again
    if task.state == SENT:
        task.cancelled = True  # if its worker dies now (or has died), it needs not run again
        return 0 if task.link is None else send_u64(task.link, F_CANCEL, C_STOP, task.seq)
    return cancel_task(self, task, 0)


@cython.no_gc  # nothing that hangs off it leads back
cdef class ObjectRefGenerator:
    """The items of a running generator task: an ObjectRef for each value, handed out as soon as it was yielded.

    Made by `.remote()` of generator functions and methods. Iterate over it with `for` or `async for`; each step waits until the
    next value is there and returns its ref. An exception of the task is the last item: `ray.get` of that ref raises it. Dropping
    the generator (`del`, or the end of this process) closes the task's generator at its next `yield`.

    It belongs to the process that made the call: it can't be passed to another.
    """

    def __init__(self):
        raise TypeError("an ObjectRefGenerator is what .remote() of a generator function returns; it can't be made by hand")

    def __dealloc__(self):
        # Any thread, inside any allocation: queues only, as for refs.
        cdef Dropped d
        if self.stream is None:
            return
        self.stream.dropped = True
        self.stream.clear()
        self.stream.coming = None
        if not self.stream.ended and the_engine is self.engine:
            store_id(d.id, self.done.id)
            d.owned, d.registered = 3, 0
            queue_dropped(self.engine, d)

    cdef bint await_item(self, int64_t deadline_ns) except -1:
        """Until there is an item or the end: True; False after deadline_ns (-1: none)."""
        cdef Engine engine = self.engine
        cdef bint there = True
        while there and self.stream.items.empty() and not self.stream.ended:
            if engine is not the_engine or engine.closed:
                raise exceptions.RaySystemError("this generator belongs to a session that has ended")
            try:
                there = block(engine, coming_item(engine, self), deadline_ns)
            finally:
                if engine.executor is not None:
                    engine.executor.unblock()
        return there

    cdef ObjectRef next_item(self):
        cdef Task task
        self.stream.taken += 1
        if self.stream.window and self.done.producer is not None:
            task = <Task>self.done.producer
            send_taken(task.link, task.seq, self.stream.taken)
        return self.stream.pop()

    def __iter__(self):
        return self

    def __next__(self):
        if self.stream.items.empty():
            self.await_item(-1)
            if self.stream.items.empty():
                raise StopIteration
        return self.next_item()

    def __aiter__(self):
        return self

    async def __anext__(self):
        while self.stream.items.empty():
            if self.stream.ended:
                raise StopAsyncIteration
            await self._arrival()
        return self.next_item()

    async def _arrival(self):
        """Until an item or the end has come."""
        cdef _LoopWaiter waiter = _LoopWaiter.__new__(_LoopWaiter)
        cdef ObjectRef coming
        import asyncio
        if self.engine is not the_engine or self.engine.closed:
            raise exceptions.RaySystemError("this generator belongs to a session that has ended")
        coming = coming_item(self.engine, self)
        waiter.engine, waiter.loop = self.engine, asyncio.get_running_loop()
        waiter.target = waiter.loop.create_future()
        add_waiter(coming, waiter)
        self.engine.flush_dirty()
        try:
            await waiter.target
        finally:
            remove_waiter(coming, waiter)

    def completed(self):
        """A ref that is ready when the task has ended: its value is None, also if the task raised an exception, which is the last
        item's. It raises if the task was cancelled or died. As long as it is held, `del` of the generator stops nothing."""
        return self.done

    def next_ready(self):
        """Whether next() would return a ref without waiting."""
        return not self.stream.items.empty()

    def is_finished(self):
        """Whether all items have been taken, and no more will come."""
        return self.stream.ended and self.stream.items.empty()

    def close(self):
        """Closes the task's generator at its next yield, and drops the items that were not taken."""
        self.stream.dropped = True
        self.stream.clear()
        if self.engine is the_engine and self.done.id.seq in self.engine.streams:
            stop_stream(self.engine, <Task>self.engine.streams[self.done.id.seq])

    async def aclose(self):
        self.close()

    def send(self, value):
        raise NotImplementedError("ObjectRefGenerator.send(): nothing can be sent into a generator that runs in another process")

    def throw(self, *error):
        raise NotImplementedError("ObjectRefGenerator.throw(): use ray.cancel(generator) to interrupt the task")

    async def asend(self, value):
        self.send(value)

    async def athrow(self, *error):
        self.throw(*error)

    @property
    def _generator_ref(self):
        return self.done

    def _next_sync(self, timeout_s=None):
        """next() with a time limit in seconds: ObjectRef.nil() if nothing came by then."""
        cdef int64_t deadline = -1 if timeout_s is None or timeout_s < 0 else NowNs() + <int64_t>(<double>timeout_s * 1e9)
        if self.stream.items.empty():
            if not self.await_item(deadline):
                return ObjectRef.nil()
            if self.stream.items.empty():
                raise StopIteration
        return self.next_item()

    async def _next_async(self, timeout_s=None):
        """The same in a coroutine."""
        import asyncio
        try:
            return await asyncio.wait_for(self.__anext__(), timeout_s)
        except asyncio.TimeoutError:
            return ObjectRef.nil()

    def __reduce__(self):
        raise TypeError("an ObjectRefGenerator can't be passed to another process or stored in an object: only the process that "
                        "called the generator takes its items. Pass their refs, or use num_returns='dynamic'")

    def __class_getitem__(cls, item):
        return cls

    def __repr__(self):
        return f"ObjectRefGenerator({self.done.hex()})"


class DynamicObjectRefGenerator:
    """The refs of all that a task with num_returns="dynamic" has yielded: what `ray.get` of the call's one ref returns.

    Iterating takes the refs out, so that an object is freed as soon as nobody else needs it.
    """

    def __init__(self, refs):
        from collections import deque
        self._refs = deque(refs)

    def __iter__(self):
        while self._refs:
            yield self._refs.popleft()

    def __len__(self):
        return len(self._refs)

    def __reduce__(self):
        return DynamicObjectRefGenerator, (list(self._refs),)

    def __repr__(self):
        return f"DynamicObjectRefGenerator({len(self._refs)} refs)"
