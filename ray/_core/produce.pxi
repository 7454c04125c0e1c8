# Generators, the worker's side: run one, send each value as it is yielded. Included by engine.pyx. PROCESS worker.
#
# A call whose header says so (flags) answers with YIELD frames, in order, and then with a RESULT of no objects. The generator runs
# where the call runs: main thread, an actor's thread, or as a coroutine of its loop. An item leaves at once, unless another left
# less than ITEM_GAP_NS before; then with what follows, FLUSH_NS later at most.
#
# The caller says how many items it has taken (TAKEN); with a window, the generator is not resumed while so many wait. It is closed at
# its next yield (GeneratorExit inside it) when the caller has stopped it (C_STOP) or died. The values of a run that an earlier one has
# delivered are dropped here: first_index says from where on they are wanted.

cdef int64_t ITEM_GAP_NS = 100_000
cdef int64_t LOOP_TURN_NS = 1_000_000   # other coroutines have their turn this often, even if a generator never awaits


cdef inline TaskHeader* header_of(Call call) noexcept:
    return <TaskHeader*>PyBytes_AS_STRING(call.frame)


cdef extern from "Python.h":
    bint PyGen_CheckExact(object o)


cdef inline bint yields(Call call, object value) noexcept:
    """What it is called for is what the generator yields that it returned: it is a generator function, as its caller said, or an
    ordinary one that returns a generator in place of its num_returns values."""
    return header_of(call).flags != 0 or (PyGen_CheckExact(value) and header_of(call).num_returns > 1)


cdef Producer start_producer(Call call, object value):
    cdef Producer producer = Producer.__new__(Producer)
    cdef TaskHeader* header = header_of(call)
    if not (hasattr(value, "__next__") or hasattr(value, "__anext__")):
        returns = {Y_STREAM: "'streaming'", Y_DYNAMIC: "'dynamic'"}.get(header.flags, header.num_returns)
        raise TypeError(f"{call.function.name}() was called with num_returns={returns} and must return a generator, but returned a "
                        f"{type(value).__name__}")
    producer.first, producer.window, producer.taken = header.first_index, header.window, header.taken
    producer.wanted = header.num_returns
    if header.flags == Y_FIXED or header.flags == 0:
        producer.fixed = []
    call.producer = producer
    return producer


cdef object run_generator(Executor self, Call call, object generator):
    """Runs it to its end, or until nobody wants more. Returns what the call is to answer. Blocks while the window is full."""
    cdef Producer producer = start_producer(call, generator)
    try:
        if not hasattr(generator, "__next__"):
            raise TypeError(f"{call.function.name}() is an async generator, which only an asyncio actor can run")
        while not is_stopped(self, call) and not is_enough(producer):
            try:
                value = next(generator)
            except StopIteration:
                producer.ended = True
                break
            except Exception as error:
                if producer.fixed is None:
                    raise
                fill(call, error)
                break
            if send_item(self, call, value):
                value = None
                leaves(self, call)
            if producer.window:
                await_room(self, call)
    finally:
        if hasattr(generator, "close"):
            producer.closing_until = NowNs() + grace_of(self)
            generator.close()
    return produced(self, call)


async def run_generator_in_loop(ActorLoop loop, Call call, generator):
    """The same in an asyncio actor, for both kinds of generator."""
    import asyncio
    cdef Executor self = loop.executor
    cdef Producer producer = start_producer(call, generator)
    cdef bint is_async = hasattr(generator, "__anext__")
    cdef int64_t turn_ns = NowNs()
    try:
        while not is_stopped(self, call) and not is_enough(producer):
            try:
                if is_async:
                    value = await generator.__anext__()
                else:
                    value = next(generator)
            except (StopIteration, StopAsyncIteration):
                producer.ended = True
                break
            except Exception as error:
                if producer.fixed is None:
                    raise
                fill(call, error)
                break
            if send_item(self, call, value):
                value = None
                if is_async:
                    leaves(self, call)
                    loop.flush_soon(call.link)
                else:
                    call.link.flush()  # it may block the loop before the next item
            if NowNs() - turn_ns >= LOOP_TURN_NS:
                await asyncio.sleep(0)
                turn_ns = NowNs()
            while producer.window and producer.sent - producer.taken >= producer.window and not is_stopped(self, call):
                producer.room, producer.room_thread = loop.loop.create_future(), get_ident()
                await producer.room
    except asyncio.CancelledError:
        if not call.abandoned or call.cancelled:
            raise
    finally:
        if is_async:
            await generator.aclose()
        elif hasattr(generator, "close"):
            generator.close()
    return produced(self, call)


cdef object produced(Executor self, Call call):
    cdef Producer producer = call.producer
    if call.cancelled:
        raise KeyboardInterrupt
    if producer.fixed is not None and PyList_GET_SIZE(producer.fixed) < producer.wanted:
        fill(call, ValueError(f"{call.function.name}() was declared with num_returns={producer.wanted}, but yielded only "
                              f"{PyList_GET_SIZE(producer.fixed)} values"))
    return producer


cdef int answer_produced(Executor self, Call call) except -1:
    cdef Producer producer = call.producer
    if producer.fixed is not None:
        return finish(self, call, 0, producer.fixed)
    return finish(self, call, 0 if producer.ended else R_CANCELLED, [])


cdef inline bint is_enough(Producer producer) noexcept:
    return producer.fixed is not None and PyList_GET_SIZE(producer.fixed) >= producer.wanted


cdef int fill(Call call, object error) except -1:
    """num_returns=n: the returns that have no value are the error."""
    cdef Encoded e = encode_error(error, call.function.name, None)
    cdef Producer producer = call.producer
    while PyList_GET_SIZE(producer.fixed) < producer.wanted:
        producer.fixed.append(e)
    return 0


# ------------------------------------------------------------------ items

cdef bint send_item(Executor self, Call call, object value) except -1:
    """Lays one value out in the link's buffer; False if it is not wanted, or not now."""
    cdef uint8_t room[600]
    cdef uint8_t* p = room
    cdef Py_ssize_t n
    cdef Producer producer = call.producer
    if producer.fixed is not None:
        producer.fixed.append(encode(value, f"value {PyList_GET_SIZE(producer.fixed)} yielded by {call.function.name}()"))
        return False
    producer.sent += 1
    if producer.sent < producer.first or not call.link.alive or call.answered:
        return False
    n = encode_into(value, room + 21, 512)
    if n <= 0:
        return send_large_item(self, call, encode(value, f"value {producer.sent - 1} yielded by {call.function.name}()"))
    p = PutU32(PutU64(p, call.seq), producer.sent)
    PutU32(PutU32(PutU8(p, G_BLOB), 0), <uint32_t>n)
    memcpy(call.link.begin(F_YIELD, 0, <uint32_t>(21 + n)), room, 21 + n)
    return True


cdef bint send_large_item(Executor self, Call call, Encoded e) except -1:
    """With refs in it, or more bytes: as a result's value (reply.pxi)."""
    cdef Link link = call.link
    cdef _HeldPins held = _HeldPins.__new__(_HeldPins)
    cdef Given given = given_to(link, call.seq, call.producer.sent, e, held)
    cdef bint hold = held.keys is not None or held.refs is not None
    cdef uint64_t key
    cdef uint8_t* out
    if not link.alive:
        held.orphaned = True
        return False
    out = link.begin(F_YIELD, R_HOLD if hold else 0, <uint32_t>(12 + given.nbytes + (8 if hold else 0)))
    out = PutU32(PutU64(out, call.seq), call.producer.sent)
    given.write(out)
    if hold:
        key = self.engine.next_request | (<uint64_t>1 << 62)  # of no RESULT and no GOT
        self.engine.next_request += 1
        PutU64(out + given.nbytes, key)
        link.holds[key] = held
    return True


cdef int leaves(Executor self, Call call) except -1:
    cdef Link link = call.link
    cdef int64_t now
    if link.conn.pending_bytes() > BACKLOG_BYTES_MAX:
        link.flush()
        return relieve(self.engine, link)
    now = NowNs()
    if now - call.producer.left_ns >= ITEM_GAP_NS:
        call.producer.left_ns = now
        return link.flush()
    return link.later()


# ------------------------------------------------------------------ what the caller says

cdef bint is_stopped(Executor self, Call call) noexcept:
    return call.cancelled or call.abandoned or call.timed_out or not call.link.alive or self.stopping


cdef int await_room(Executor self, Call call) except -1:
    """Until the caller has taken enough, or wants no more. Its CPUs are lent meanwhile, as in get."""
    cdef Producer producer = call.producer
    cdef bint lend_cpu = self.may_lend()
    if producer.sent - producer.taken < producer.window:
        return 0
    self.engine.enter()
    producer.waiting = True
    try:
        while producer.sent - producer.taken >= producer.window and not is_stopped(self, call):
            if not lend_cpu:
                self.engine.step(-1)
            elif self.engine.step(1) == 0:
                self.block()
                lend_cpu = False
    finally:
        producer.waiting = False
        self.engine.leave()
        self.unblock()
    return 0


cdef Call find_call(Executor self, Link link, uint64_t seq):
    """A call that runs, or waits for its turn in an actor's thread or loop."""
    found = self.running.get((link, seq))
    if found is None and self.current is not None and self.current.link is link and self.current.seq == seq:
        found = self.current
    return found


cdef int on_taken(Executor self, Link link, Reader* r) except -1:
    cdef uint64_t seq = r.U64()
    cdef uint32_t taken = r.U32()
    cdef Call call = find_call(self, link, seq)
    if call is None or call.producer is None:
        return 0  # it has ended, or will read of it in no header: only a call that has yielded hears of this
    if taken == TAKEN_ALL:
        call.producer.window = 0
    call.producer.taken = taken
    return give_room(call.producer)


cdef int give_room(Producer producer) except -1:
    """Wakes the coroutine that waits in its window. A thread that does so looks after each round."""
    room, producer.room = producer.room, None
    if room is None:
        return 0
    if producer.room_thread == <unsigned long>get_ident():
        resume(room)
    else:
        room.get_loop().call_soon_threadsafe(resume, room)
    return 0


def resume(room):
    if not room.done():
        room.set_result(None)


cdef int stop_producer(Executor self, Call call) except -1:
    """Its generator is to be closed at the next yield; a coroutine is cancelled where it waits."""
    call.abandoned = True
    if self.loop is not None and call.producer is not None:
        self.loop.cancel(call)
    return 0


cdef int stop_producers_for(Executor self, Link link) except -1:
    """The process behind link has died: what runs for it, and is not found by it dying, must hear of it."""
    cdef Call call
    for call in list(self.running.values()):
        if call.link is link and call.producer is not None:
            stop_producer(self, call)
    return 0
