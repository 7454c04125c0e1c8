# What a call answers: its RESULT frame, the pins behind it. Included by engine.pyx. PROCESS worker.
#
# Any thread that runs user code. A small plain value goes straight into the connection's buffer (answer); anything else takes
# finish(): big values to the store first, refs inside are counted for the caller. What the store or we keep for a caller
# lies in link.holds until it says HAVE; if the caller dies before, link_closed lets it go.

cdef class _HeldPins:
    """Store objects made for a caller, pinned until it says HAVE; if it dies before, they go."""
    cdef PlasmaClient store    # that they are pinned in
    cdef list keys
    cdef list refs
    cdef bint orphaned
    cdef bint elsewhere        # the caller is on another node: the object manager holds them for it

    def __dealloc__(self):
        if self.keys is None or self.store is None:
            return
        for key in self.keys:
            try:
                self.store.unpin(key)
                if self.orphaned:
                    self.store.lapse(key)  # whom its caller has told of it before it died may keep it
                    if self.elsewhere and the_engine is not None:
                        lapse_held(the_engine, key)
            except (PlasmaStoreDied, PlasmaObjectNotFound):
                return  # its objects died with it


# ------------------------------------------------------------------ answers
cdef int answer(Executor self, Call call, object value) except -1:
    cdef uint8_t room[600]
    cdef uint8_t* p = room
    cdef Py_ssize_t n, i
    cdef TaskHeader* header = <TaskHeader*>PyBytes_AS_STRING(call.frame)
    cdef list objects = []
    if call.answered:
        return 0
    if call.producer is not None:
        return answer_produced(self, call)
    if header.num_returns == 1 and call.met is None and call.function.max_calls == 0:
        n = encode_into(value, room + 23, 512)
        if n > 0 and call.link.alive:
            p = PutU16(PutU32(PutU64(p, call.seq), <uint32_t>((NowNs() - call.started_ns) // 1000)), 1)
            PutU32(PutU32(PutU8(p, G_BLOB), 0), <uint32_t>n)
            memcpy(call.link.begin(F_RESULT, 0, <uint32_t>(23 + n)), room, 23 + n)
            return answered(self, call)
    if header.num_returns == 1:
        objects.append(encode(value, f"the value returned by {call.function.name}()"))
    elif header.num_returns > 1:
        if not isinstance(value, (tuple, list)) and hasattr(value, "__len__") and hasattr(value, "__iter__") \
                and not isinstance(value, (str, bytes, dict, set)) and len(value) == header.num_returns:
            value = list(value)  # a range, an array: anything of that length
        if not isinstance(value, (tuple, list)) or len(value) != header.num_returns:
            got = f"{len(value)} values" if isinstance(value, (tuple, list)) else f"a {type(value).__name__}"
            raise ValueError(f"{call.function.name}() was declared with num_returns={header.num_returns} and must return a "
                             f"tuple or list of that length, but returned {got}")
        for i in range(header.num_returns):
            objects.append(encode(value[i], f"value {i} returned by {call.function.name}()"))
    value = None
    return finish(self, call, 0, objects)


cdef int answer_error(Executor self, Call call, BaseException error, uint8_t flags) except -1:
    cdef Encoded e
    if call.answered:
        return 0
    if flags & (R_CANCELLED | R_TIMED_OUT):
        e = encode_error(error)
    else:
        e = encode_error(error, call.function.name, None if self.actor is None else repr_of(self.actor))
    if self.actor is None and not flags & R_CANCELLED:
        self.engine.event("push_error", "task", f"{call.function.name}() failed: {type(error).__name__}: {error}"[:4096],
                          {"function": call.function.name, "pid": os.getpid()})
    record(self, call, "CANCELLED" if flags & R_CANCELLED else "FAILED", error)
    error.__traceback__ = None
    error = None
    return finish(self, call, flags & ~R_TIMED_OUT | R_ERROR, [e])


cdef int answer_stopped(Executor self, Call call, BaseException raised=None) except -1:
    """The call was cancelled, or ran over its time. Any thread; whatever it may still return is dropped. raised: what became of the
    interruption."""
    if call.started_ns == 0:
        call.started_ns = NowNs()
    if call.timed_out:
        limit_s = call.function.time_limit_ns / 1e9
        error = exceptions.TaskTimeoutError(f"{call.function.name}() ran longer than its timeout_s={limit_s:g}")
        answer_error(self, call, error, R_TIMED_OUT)
    else:
        told = "" if raised is None or isinstance(raised, KeyboardInterrupt) else f", and raised {type(raised).__name__}: {raised}"
        error = exceptions.TaskCancelledError(f"{call.function.name}() was cancelled{told}")
        answer_error(self, call, error, R_CANCELLED)
    call.answered = True
    return 0


cdef int finish(Executor self, Call call, uint8_t flags, list objects) except -1:
    """Writes the RESULT. Big values go to the store first; refs inside are counted for the caller."""
    cdef Link link = call.link
    cdef Encoded e
    cdef Given g
    cdef Py_ssize_t total = 14
    cdef list givens = []
    cdef _HeldPins held = _HeldPins.__new__(_HeldPins)
    cdef uint8_t* out
    cdef ObjectRef ref
    cdef uint32_t index = 0
    cdef list kept
    for e in objects:
        g = given_to(link, call.seq, index, e, held)
        total += g.nbytes
        givens.append(g)
        index += 1
    if call.function.max_calls:
        runs = self.calls_of[call.function.function_id] = self.calls_of.get(call.function.function_id, 0) + 1
        if runs >= call.function.max_calls:
            self.retiring = True
            flags |= R_RETIRE
    if self.interrupted:
        self.retiring = True
        flags |= R_RETIRE
    objects = None
    e = None
    kept = kept_refs(self, call)
    if kept:
        flags |= R_KEPT
        total += 4 + 28 * PyList_GET_SIZE(kept)
    if not link.alive:
        held.orphaned = True
        return 0
    if held.keys is not None or held.refs is not None:
        flags |= R_HOLD
        link.holds[call.seq] = held
    out = link.begin(F_RESULT, flags, <uint32_t>total)
    out = PutU64(out, call.seq)
    out = PutU32(out, <uint32_t>((NowNs() - call.started_ns) // 1000))
    out = PutU16(out, <uint16_t>len(givens))
    for g in givens:
        g.write(out)
        out += g.nbytes
    if kept:
        out = PutU32(out, <uint32_t>PyList_GET_SIZE(kept))
        for ref in kept:
            store_id(out, ref.id)
            out += 28
    if flags & R_RETIRE:
        self.hand_back()
    return answered(self, call)


cdef Given given_to(Link link, uint64_t seq, uint32_t index, Encoded e, _HeldPins held):
    """One value of the call seq, laid out for its caller; `held` gets what must be kept until HAVE. A large one is in the store."""
    cdef ObjectId id
    cdef bytes key
    cdef Given g = Given.__new__(Given)
    g.refs = e.refs
    if is_error_kind(e.kind):
        g.how, g.blob = G_ERROR, blob_of(e)
    elif e.nbytes <= INLINE_BYTES_MAX:
        g.how, g.blob = G_BLOB, blob_of(e)
    else:
        memcpy(&id.tag0, PyBytes_AS_STRING(link.tag), 8)
        memcpy(&id.tag1, PyBytes_AS_STRING(link.tag) + 8, 8)
        id.seq, id.index = seq, index
        key = PyBytes_FromStringAndSize(NULL, 28)
        store_id(<uint8_t*>PyBytes_AS_STRING(key), id)
        if number_of(id.tag0) != link.engine.number:
            held.elsewhere = True
            to_store_held(link.engine, key, e)
        else:
            to_store(link.engine, key, e)
        if held.keys is None:
            held.keys, held.store = [], link.engine.store
        held.keys.append(key)
        g.how, g.size, g.home = G_PLASMA, e.nbytes, link.engine.number
    if g.refs is not None and hand_over(link, g.refs):
        held.refs = (held.refs or []) + g.refs
    g.measure()
    return g


cdef list kept_refs(Executor self, Call call):
    """Borrowed refs from the arguments that outlive the call, after registering those that the caller doesn't own."""
    cdef ObjectRef ref
    cdef list out = None
    cdef Link owner
    cdef Countdown all_of = None
    cdef Py_ssize_t i
    if call.met is None:
        return None
    call.frame = call.frame[:32]
    for i in range(PyList_GET_SIZE(call.met)):
        ref = <ObjectRef>call.met[i]
        # One reference is met's, one is this variable's.
        if Py_REFCNT(ref) <= 2 or ref.registered:
            continue
        if owner_tag(ref) == call.link.tag:
            ref.registered += 1
            follow(self.engine, call.link, ref)
            if out is None:
                out = []
            out.append(ref)
        else:
            owner = self.engine.dial(owner_tag(ref))
            if all_of is None:
                all_of = Countdown.__new__(Countdown)
                all_of.source = call.link
            if owner is not None:
                all_of.left += 1
                send_borrow(self.engine, owner, ref, all_of)
            else:
                inherit_from(self.engine, call.link, ref, all_of)
    call.met = None
    if all_of is not None:
        await_counted(self, all_of)
    return out


cdef int await_counted(Executor self, Countdown all_of) except -1:
    """Whoever kept the refs for us lets go at our next message, so their owners must have counted us before it is sent."""
    self.engine.enter()
    try:
        while all_of.left > 0 and self.engine.node.alive:
            self.engine.step(-1)
    finally:
        self.engine.leave()
    return 0


cdef int answered(Executor self, Call call) except -1:
    """More calls wait: the answer may travel with theirs. None: it leaves now."""
    if self.loop is not None:
        return self.loop.flush_soon(call.link)
    if call.link.conn.pending_bytes() > BACKLOG_BYTES_MAX:
        call.link.flush()
        return relieve(self.engine, call.link)
    if self.groups is not None:
        if call.function.group is None or (<ThreadGroup>call.function.group).queue.empty():
            return call.link.flush()
        return call.link.later()
    if self.queue.empty() or call.link.conn.pending_bytes() >= <size_t>FLUSH_BYTES:
        call.link.flush()
        if self.queue.empty():
            self.engine.flush_dirty()
        return 0
    if not call.link.dirty:
        call.link.dirty = True
        self.engine.dirty.append(call.link)
    return 0
