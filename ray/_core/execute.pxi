# The worker's side of calls: decode, run, reply. Included by engine.pyx. PROCESS worker (ray/_core/worker_main.py).
#
# The main thread takes TASK frames off the connections itself and runs them in order. While user code runs, the background
# thread receives; it never runs user code, but it can hand back tasks that wait behind a long one, deliver a cancel and
# answer other processes' GETs. Results gather in the connection's buffer while more tasks wait (the stuck timer
# bounds for how long) and leave in one write.
#
# Actors: the node's become_actor makes this worker one. max_concurrency > 1: a pool of threads takes the calls; an async actor:
# the main thread runs an asyncio loop that also receives.

class _ActorExit(BaseException):
    """Raised by exit_actor() inside a method."""


cdef class _HeldPins:
    """Store objects made for a caller, pinned until it says HAVE; if it dies before, they go."""
    cdef PlasmaClient store    # that they are pinned in
    cdef list keys
    cdef list refs
    cdef bint orphaned

    def __dealloc__(self):
        if self.keys is None or self.store is None:
            return
        for key in self.keys:
            try:
                self.store.unpin(key)
                if self.orphaned:
                    self.store.delete(key)
            except (PlasmaStoreDied, PlasmaObjectNotFound):
                return  # its objects died with it


cdef int on_function(Engine self, Link link, Reader* r) except -1:
    cdef uint32_t number = r.U32()
    cdef uint8_t kind = r.U8()
    cdef const uint8_t* digest = r.Take(16)
    cdef uint32_t max_calls = r.U32()
    cdef uint32_t n = r.U32()
    cdef const uint8_t* name = r.Take(n)
    cdef uint32_t resources_bytes = r.U32()
    cdef const uint8_t* resources = r.Take(resources_bytes)
    cdef list refs = refs_of(self, r, r.U32())
    cdef Function function = Function.__new__(Function)
    if not r.ok:
        return 0
    function.resources = pickle.loads((<const char*>resources)[:resources_bytes]) if resources_bytes else {}
    function.threads = threads_for(function.resources)
    function.name = (<const char*>name)[:n].decode()
    function.function_id = (<const char*>digest)[:16]
    function.max_calls = <int>max_calls
    function.refs = refs
    if refs is not None:
        adopt(self, link, refs)
    if kind == 1:
        function.target = function.name
    else:
        n = <uint32_t>r.left()
        function.blob = (<const char*>r.Take(n))[:n]
    link.functions[number] = function
    return 0


def threads_for(resources):
    """Whole CPUs held, at least one."""
    return max(1, resources.get("CPU", 0) // 10_000)


cdef class Call:
    def __repr__(self):
        return f"<Call {self.function.name if self.function else '?'} {self.seq}>"


cdef class Executor:
    def __init__(self, Engine engine):
        import contextvars
        self.engine = engine
        engine.executor = self
        self.main_thread = <unsigned long>get_ident()
        self.calls_of, self.running, self.events = {}, {}, []
        self.gpu_ids = []
        self.max_concurrency = 1
        self.context_var = contextvars.ContextVar("ray_call", default=None)
        self.omp_threads = 0 if "OMP_NUM_THREADS" in os.environ else -1
        engine.on_event("become_actor", self.on_become)
        engine.on_event("exit", self.on_exit)
        engine.on_event("reclaim", self.on_reclaim)

    # ------------------------------------------------------------------ frames (any receiving thread)
    cdef int on_task(self, Link link, const uint8_t* data, uint32_t size, uint8_t flags) except -1:
        cdef Call call
        cdef TaskHeader* header = <TaskHeader*>data
        if size < sizeof(TaskHeader):
            raise ValueError("TASK frame shorter than its header")
        call = Call.__new__(Call)
        call.link = link
        call.seq = header.seq
        call.function = <Function>link.functions[header.function]
        call.frame = PyBytes_FromStringAndSize(<const char*>data, size)
        if self.pool_queue is not None:
            self.running[(link, call.seq)] = call
            self.pool_queue.put(call)
            self.start_thread()
            return 0
        Py_INCREF(call)
        self.queue.push_back(<void*>call)
        if self.loop is not None:
            if <unsigned long>get_ident() != self.main_thread:
                self.loop.call_soon_threadsafe(self.start_coroutines)
        elif self.actor is None and (self.blocked or self.retiring):
            self.hand_back()
        elif self.current is not None and self.engine.deadline_stuck_ns == 0:
            self.engine.set_deadline(D_STUCK, NowNs() + STUCK_NS)
        return 0

    cdef int hand_back(self) except -1:
        """Returns the tasks that haven't started to their callers: they would wait behind a long one."""
        cdef dict by_link = {}
        cdef Call call
        cdef Link link
        cdef uint8_t* out
        while not self.queue.empty():
            call = <Call>self.queue.front()
            self.queue.pop_front()
            Py_DECREF(call)
            by_link.setdefault(call.link, []).append(call.seq)
        for link, seqs in by_link.items():
            if not link.alive:
                continue
            out = PutU32(link.begin(F_RETURNED, 0, <uint32_t>(4 + 8 * len(seqs))), <uint32_t>len(seqs))
            for seq in seqs:
                out = PutU64(out, seq)
            link.flush()
        return 0

    cdef int on_stuck_timer(self, int64_t now) except -1:
        self.engine.flush_dirty()
        if self.current is None:
            return 0
        if self.current is self.tick_call and self.actor is None:
            self.hand_back()
        self.tick_call = self.current
        if not self.queue.empty():
            self.engine.set_deadline(D_STUCK, now + STUCK_NS)
        return 0

    cdef int on_gpus(self, Link link, Reader* r) except -1:
        cdef uint32_t n = r.U32()
        ids = []
        while n > 0 and r.ok:
            ids.append(r.U32())
            n -= 1
        self.set_gpus(ids)
        return 0

    def set_gpus(self, ids):
        if ids != self.gpu_ids:
            self.gpu_ids = ids
            os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(str(i) for i in ids)

    cdef int on_cancel(self, Link link, uint64_t seq, uint8_t flags) except -1:
        cdef Call call
        cdef size_t i
        if flags & 2:
            cancel_children(self.engine, seq, flags)
        for i in range(self.queue.size()):
            call = <Call>self.queue[i]
            if call.link is link and call.seq == seq:
                call.cancelled = True  # answered when its turn comes, without being run
                return 0
        found = self.running.get((link, seq))
        if found is not None:
            call = <Call>found
            call.cancelled = True
            if self.loop is not None and call.running is not None:
                self.loop.call_soon_threadsafe(call.running.cancel)
        elif self.current is not None and self.current.link is link and self.current.seq == seq and self.actor is None:
            self.current.cancelled = True
            import signal
            signal.pthread_kill(self.main_thread, signal.SIGINT)
        return 0

    def on_sigint(self, signum, frame):
        """Main thread, on SIGINT, which only on_cancel and on_reclaim send."""
        if self.current is not None and self.current.cancelled:
            # It may strike in the middle of an import, say, and leave a module half made: this process runs no other task.
            self.interrupted = True
            raise KeyboardInterrupt

    def on_become(self, actor_id, creation, incarnation, gpu_ids):
        self.become = (actor_id, creation, incarnation, gpu_ids)

    def on_exit(self, why="the session ends"):
        """The node asks us to go. A worker that still owns what others refer to says so, and leaves when it is released."""
        if why != "the session ends" and self.actor is None and self.is_needed():
            self.exit_pending = True
            self.engine.event("exit_postponed")
            return
        self.stopping = True
        if self.loop is not None:
            self.loop.call_soon_threadsafe(self.loop.stop)

    def on_reclaim(self, tag):
        """The process `tag`, whose lease we are, has died: what runs for it is interrupted, what waits for it is dropped."""
        import signal
        self.reclaimed = True
        if self.current is not None and self.current.link.tag == tag:
            self.current.cancelled = True
            signal.pthread_kill(self.main_thread, signal.SIGINT)

    cdef bint is_needed(self) except -1:
        """Others refer to objects that this process owns, or calls that it made are not finished."""
        cdef Engine engine = self.engine
        cdef Link link
        cdef LeasePool pool
        for held in engine.borrowers.values():
            if held:
                return True
        for link in engine.links.values():
            if not link.calls.empty() or link.holds:
                return True
        for pool in engine.pools.values():
            if not pool.queue.empty():
                return True
        return False

    # ------------------------------------------------------------------ waiting inside a task
    cdef bint may_lend(self):
        return not self.blocked and self.loop is None and self.current is not None \
            and <unsigned long>get_ident() == self.main_thread

    cdef int block(self) except -1:
        if not self.blocked:
            self.blocked = True
            if self.actor is None:
                self.hand_back()
            self.engine.event("blocked")
        return 0

    cdef int unblock(self) except -1:
        if self.blocked and <unsigned long>get_ident() == self.main_thread:
            self.blocked = False
            self.engine.event("unblocked")
        return 0

    # ------------------------------------------------------------------ the main loop
    def serve(self):
        """Runs calls until told to exit. The worker's main thread."""
        cdef Engine engine = self.engine
        cdef Call call
        engine.enter()
        try:
            while not self.stopping and engine.node.alive:
                if self.become is not None:
                    self.start_actor()
                    if self.loop is not None:
                        break
                    continue
                if self.queue.empty():
                    if self.reclaimed:
                        self.reclaimed = False
                        engine.event("reclaimed", not self.interrupted)
                    if self.exit_pending and not self.is_needed():
                        break
                    engine.step(-1)
                    continue
                engine.leave()
                try:
                    while not self.queue.empty() and not self.stopping:
                        call = <Call>self.queue.front()
                        self.queue.pop_front()
                        Py_DECREF(call)
                        self.run_one(call)
                finally:
                    engine.enter()
        finally:
            engine.leave()
        if self.loop is not None and not self.stopping:
            self.serve_async()
        self.send_events()
        engine.flush_dirty()

    cdef int run_one(self, Call call) except -1:
        cdef tuple parts
        cdef object value
        if not call.link.alive:
            return 0  # the caller is dead: nobody wants the result
        self.current = call
        self.current_name = call.function.name if self.actor is None else self.actor_name()
        if not self.queue.empty() and self.engine.deadline_stuck_ns == 0:
            self.engine.set_deadline(D_STUCK, NowNs() + STUCK_NS)
        if self.omp_threads != call.function.threads and self.omp_threads != 0 and self.actor is None:
            self.set_threads(call.function.threads)
        self.engine.current_seq = call.seq
        call.started_ns = NowNs()
        try:
            if call.cancelled:
                raise KeyboardInterrupt
            parts = self.arguments(call)
            value = (<object>parts[0])(*<tuple>parts[1], **<dict>parts[2]) if parts[2] is not None else \
                (<object>parts[0])(*<tuple>parts[1])
            parts = None
            self.current = None  # from here on a cancel is too late
            self.answer(call, value)
            self.record(call, "FINISHED")
        except _ActorExit:
            self.current = None
            parts = None
            self.exit_actor(call)
        except BaseException as error:
            self.current = None
            parts = None
            if call.cancelled and isinstance(error, KeyboardInterrupt):
                self.answer_error(call, exceptions.TaskCancelledError(f"{call.function.name}() was cancelled"), R_CANCELLED)
            else:
                self.answer_error(call, error, 0)
        self.engine.current_seq = 0
        return 0

    def set_threads(self, n):
        """Numeric libraries start a thread per core in each worker otherwise; they read it when they are loaded."""
        if self.omp_threads != 0:
            self.omp_threads = n
            os.environ["OMP_NUM_THREADS"] = str(n)

    def actor_name(self):
        return type(self.actor).__name__

    cdef tuple arguments(self, Call call):
        """(callable, args, kwargs or None) of a call."""
        cdef Reader r = Reader(<const uint8_t*>PyBytes_AS_STRING(call.frame), PyBytes_GET_SIZE(call.frame))
        cdef TaskHeader h = r.Header()
        cdef Function function = call.function
        cdef Py_ssize_t i
        cdef uint16_t n
        cdef const uint8_t* at
        cdef object target
        if function is None:
            target = None
        elif self.actor is not None:
            target = self.bound.get(function.name)
            if target is None:
                target = self.bind(function.name)
        else:
            if function.target is None:
                function.target = decode_function(function.blob, function.refs)
                function.blob = None
            target = function.target
        cdef list values = []
        for i in range(h.num_args):
            values.append(self.argument(call, <size_t>&r))
        if h.num_keywords == 0:
            return target, tuple(values), None
        names = []
        for i in range(h.num_keywords):
            n = r.U16()
            at = r.Take(n)
            if at == NULL:
                raise exceptions.RaySystemError("malformed TASK frame: keyword names")
            names.append((<const char*>at)[:n].decode())
        i = h.num_args - h.num_keywords
        return target, tuple(values[:i]), dict(zip(names, values[i:]))

    def argument(self, Call call, size_t reader):
        cdef Reader* r = <Reader*>reader
        cdef uint8_t how = r.U8()
        cdef ObjectRef ref = None, inner
        cdef const uint8_t* at
        cdef uint32_t n
        cdef list refs
        if how > G_ERROR:
            raise exceptions.RaySystemError("malformed TASK frame: argument")
        if how == G_PLASMA or how == G_FETCH:
            at = r.Take(28)
            if at == NULL:
                raise exceptions.RaySystemError("malformed TASK frame: argument")
            ref = ref_of(self.engine, load_id(at))
        refs = refs_of(self.engine, r, r.U32())
        if refs is not None:
            for inner in refs:
                if not inner.owned and inner.registered == 0:
                    if call.met is None:
                        call.met = []
                    call.met.append(inner)
        if how == G_BLOB or how == G_ERROR:
            n = r.U32()
            at = r.Take(n)
            if at == NULL:
                raise exceptions.RaySystemError("malformed TASK frame: argument")
            value = decode_raw(at, n, call.frame, refs)
            if how == G_ERROR:
                raise value
            return value
        if how == G_PLASMA:
            if ref.state == PENDING:
                ref.size = r.U64()
                ref.contained = refs
                ref.state = PLASMA
            else:
                r.U64()
        return get_value(self.engine, ref, None)

    def bind(self, name):
        target = getattr(self.actor, name, None)
        if name == "__ray_ready__":
            target = bool
        elif name == "__ray_terminate__":
            target = exit_actor
        elif name == "__ray_call__":
            actor = self.actor
            target = lambda fn, *args, **kwargs: fn(actor, *args, **kwargs)
        if target is None:
            raise AttributeError(f"actor {self.actor_name()} has no method {name!r}")
        self.bound[name] = target
        return target

    # ------------------------------------------------------------------ what ran, for the node's records
    cdef int record(self, Call call, str state) except -1:
        if PyList_GET_SIZE(self.events) >= EVENTS_MAX:
            return 0
        self.events.append((call.link.tag, call.seq, call.function.name, call.started_ns, NowNs(), state))
        if self.engine.deadline_events_ns == 0:
            self.engine.set_deadline(D_EVENTS, NowNs() + EVENTS_NS)
        return 0

    cdef int send_events(self) except -1:
        cdef int64_t now = NowNs()
        cdef double wall = time.time()
        events, self.events = self.events, []
        if not events or not self.engine.node.alive:
            return 0
        fields = {"kind": "task" if self.actor is None else "actor_task", "pid": os.getpid(), "worker": self.engine.tag}
        if self.actor_id is not None:
            fields["actor_id"] = self.actor_id
        self.engine.event("task_events", [
            (tag + int(seq).to_bytes(8, "little"), state, wall - (now - ended) / 1e9,
             dict(fields, name=name, times={"RUNNING": wall - (now - started) / 1e9}))
            for tag, seq, name, started, ended, state in events])
        return 0

    # ------------------------------------------------------------------ answers
    cdef int answer(self, Call call, object value) except -1:
        cdef uint8_t room[600]
        cdef uint8_t* p = room
        cdef Py_ssize_t n, i
        cdef TaskHeader* header = <TaskHeader*>PyBytes_AS_STRING(call.frame)
        cdef list objects = []
        if header.num_returns == 1 and call.met is None and call.function.max_calls == 0:
            n = encode_into(value, room + 23, 512)
            if n > 0 and call.link.alive:
                p = PutU16(PutU32(PutU64(p, call.seq), <uint32_t>((NowNs() - call.started_ns) // 1000)), 1)
                PutU32(PutU32(PutU8(p, G_BLOB), 0), <uint32_t>n)
                memcpy(call.link.begin(F_RESULT, 0, <uint32_t>(23 + n)), room, 23 + n)
                return self.answered(call)
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
        return self.finish(call, 0, objects)

    cdef int answer_error(self, Call call, BaseException error, uint8_t flags) except -1:
        cdef Encoded e
        if isinstance(error, exceptions.RayError) and flags & R_CANCELLED:
            e = encode_error(error)
        else:
            e = encode_error(error, call.function.name, None if self.actor is None else repr_of(self.actor))
        if self.actor is None and not flags & R_CANCELLED:
            self.engine.event("push_error", "task", f"{call.function.name}() failed: {type(error).__name__}: {error}"[:4096],
                              {"function": call.function.name, "pid": os.getpid()})
        error.__traceback__ = None
        error = None
        self.record(call, "CANCELLED" if flags & R_CANCELLED else "FAILED")
        return self.finish(call, flags | R_ERROR, [e])

    cdef int finish(self, Call call, uint8_t flags, list objects) except -1:
        """Writes the RESULT. Big values go to the store first; refs inside are counted for the caller."""
        cdef Engine engine = self.engine
        cdef Link link = call.link
        cdef Encoded e
        cdef Given g
        cdef Py_ssize_t total = 14
        cdef list givens = []
        cdef _HeldPins held = None
        cdef uint8_t* out
        cdef ObjectId id
        cdef ObjectRef ref
        cdef uint32_t index = 0
        cdef list kept
        cdef bytes key
        memcpy(&id.tag0, PyBytes_AS_STRING(link.tag), 8)
        memcpy(&id.tag1, PyBytes_AS_STRING(link.tag) + 8, 8)
        id.seq = call.seq
        for e in objects:
            g = Given.__new__(Given)
            g.refs = e.refs
            if e.nbytes > INLINE_BYTES_MAX and not flags & R_ERROR:
                id.index = index
                key = PyBytes_FromStringAndSize(NULL, 28)
                store_id(<uint8_t*>PyBytes_AS_STRING(key), id)
                to_store(engine, key, e)
                if held is None:
                    held = _HeldPins.__new__(_HeldPins)
                if held.keys is None:
                    held.keys, held.store = [], engine.store
                held.keys.append(key)
                g.how, g.size = G_PLASMA, e.nbytes
            else:
                g.how = G_ERROR if flags & R_ERROR else G_BLOB
                g.blob = blob_of(e)
            if g.refs is not None and hand_over(link, g.refs):
                if held is None:
                    held = _HeldPins.__new__(_HeldPins)
                held.refs = (held.refs or []) + g.refs
            g.measure()
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
        kept = self.kept(call)
        if kept:
            flags |= R_KEPT
            total += 4 + 28 * PyList_GET_SIZE(kept)
        if not link.alive:
            if held is not None:
                held.orphaned = True
            return 0
        if held is not None:
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
        return self.answered(call)

    cdef list kept(self, Call call):
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
                if out is None:
                    out = []
                out.append(ref)
            else:
                owner = self.engine.dial(owner_tag(ref))
                if owner is not None:
                    if all_of is None:
                        all_of = Countdown.__new__(Countdown)
                    all_of.left += 1
                    send_borrow(self.engine, owner, ref, all_of)
        call.met = None
        if all_of is not None:
            self.await_counted(all_of)
        return out

    cdef int await_counted(self, Countdown all_of) except -1:
        """Whoever kept the refs for us lets go at our next message, so their owners must have counted us before it is sent."""
        self.engine.enter()
        try:
            while all_of.left > 0 and self.engine.node.alive:
                self.engine.step(-1)
        finally:
            self.engine.leave()
        return 0

    cdef int answered(self, Call call) except -1:
        """More calls wait: the answer may travel with theirs. None: it leaves now."""
        if self.loop is not None:
            if not call.link.dirty:
                call.link.dirty = True
                self.engine.dirty.append(call.link)
            if not self.flush_scheduled:
                self.flush_scheduled = True
                self.loop.call_soon(self.flush_from_loop)
            return 0
        if call.link.conn.pending_bytes() > BACKLOG_BYTES_MAX:
            call.link.flush()
            return relieve(self.engine, call.link)
        if self.pool_queue is not None:
            if self.pool_queue.empty():
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

    def flush_from_loop(self):
        self.flush_scheduled = False
        self.engine.flush_dirty()

    # ------------------------------------------------------------------ actors
    def start_actor(self):
        """become_actor: makes the instance and reports. Main thread."""
        cdef Call call
        cdef Reader r
        cdef ObjectRef ref
        cdef Countdown all_of
        actor_id, creation, incarnation, gpu_ids = self.become
        self.become = None
        spec = pickle.loads(creation)
        self.current_name = spec["class_name"]
        self.set_gpus(list(gpu_ids))
        self.actor_id = actor_id
        self.incarnation = incarnation
        self.actor_resources = spec["resources"]
        self.set_threads(threads_for(self.actor_resources))
        call = Call.__new__(Call)
        call.frame = spec["frame"]
        call.link = self.engine.node
        self.current = call
        try:
            ids = spec["refs"]
            r = Reader(<const uint8_t*>PyBytes_AS_STRING(ids), PyBytes_GET_SIZE(ids))
            refs = refs_of(self.engine, &r, <uint32_t>(len(ids) // 28))
            if refs is not None:
                call.met = list(refs)
            cls = decode_function(spec["blob"], refs)
            parts = self.arguments(call)
            self.bound = {}
            self.actor = cls.__new__(cls)
            self.actor.__init__(*parts[1], **(parts[2] or {}))
            parts = None
        except BaseException as error:
            self.engine.event("actor_failed", actor_id, blob_of(encode_error(error, f"{spec['class_name']}.__init__")))
            self.stopping = True
            return
        finally:
            self.current = None
        # What __init__ kept of its arguments is registered with the owners: the creator may let go when we are ready.
        all_of = Countdown.__new__(Countdown)
        for ref in call.met or ():
            if not ref.owned and ref.registered == 0:
                owner = self.engine.dial(owner_tag(ref))
                if owner is not None:
                    all_of.left += 1
                    send_borrow(self.engine, <Link>owner, ref, all_of)
        call.met = None
        ref = None
        self.await_counted(all_of)
        if spec["is_async"]:
            self.max_concurrency = spec["max_concurrency"] or 1000
            self.loop = self.make_loop()
        elif spec["max_concurrency"] > 1:
            import queue
            self.max_concurrency = spec["max_concurrency"]
            self.pool_queue = queue.SimpleQueue()
        self.engine.event("actor_ready", actor_id)

    def exit_actor(self, Call call):
        self.answer_error(call, exceptions.ActorDiedError(
            f"the actor {self.actor_name()} has left by exit_actor()"), R_CANCELLED * 0)
        self.engine.event("actor_exiting", self.actor_id, "exit_actor() was called")
        self.on_exit()

    # threads
    def start_thread(self):
        if self.threads < self.max_concurrency and self.pool_queue.qsize() > self.threads_idle:
            self.threads += 1
            self.threads_idle += 1
            threading.Thread(target=self.run_in_thread, daemon=True, name=f"ray-actor-{self.threads}").start()

    def run_in_thread(self):
        cdef Call call
        while not self.stopping:
            call = self.pool_queue.get()
            self.threads_idle -= 1
            self.context_var.set(call)
            self.run_beside(call)
            self.context_var.set(None)
            call = None
            self.threads_idle += 1

    def run_beside(self, Call call):
        call.started_ns = NowNs()
        call.running = get_ident()
        try:
            if call.cancelled:
                raise KeyboardInterrupt
            parts = self.arguments(call)
            value = parts[0](*parts[1], **(parts[2] or {}))
            parts = None
            self.answer(call, value)
            self.record(call, "FINISHED")
        except _ActorExit:
            self.exit_actor(call)
        except BaseException as error:
            self.failed_beside(call, error)
        finally:
            self.running.pop((call.link, call.seq), None)

    def failed_beside(self, Call call, error):
        if call.cancelled and not isinstance(error, Exception):
            self.answer_error(call, exceptions.TaskCancelledError(f"{call.function.name}() was cancelled"), R_CANCELLED)
        else:
            self.answer_error(call, error, 0)

    # asyncio
    def make_loop(self):
        """An asyncio loop that looks for the next call for a moment before it sleeps (cpp/channel/spin.h)."""
        import asyncio
        import selectors

        class PatientSelector(selectors.EpollSelector):
            def select(selector, timeout=None):
                if timeout is None or timeout > 0:
                    self.spin()
                return selectors.EpollSelector.select(selector, timeout)

        return asyncio.SelectorEventLoop(PatientSelector())

    def spin(self):
        cdef Engine engine = self.engine
        with nogil:
            engine.spin.Ready(deref(engine.poller))

    def serve_async(self):
        """An async actor's main loop: receives and runs coroutines on one thread."""
        import asyncio
        cdef Engine engine = self.engine
        loop = self.loop
        asyncio.set_event_loop(loop)
        self.semaphore = asyncio.Semaphore(self.max_concurrency)
        engine.enter()
        loop.add_reader(engine.poller.fd(), self.receive_in_loop)
        try:
            loop.call_soon(self.receive_in_loop)
            loop.run_forever()
        finally:
            loop.remove_reader(engine.poller.fd())
            engine.leave()

    def receive_in_loop(self):
        if not self.engine.receiving:
            poll_events(self.engine, 0)
        if not self.engine.node.alive:
            self.on_exit()
        if not self.queue.empty():
            self.start_coroutines()
        self.engine.flush_dirty()

    def start_coroutines(self):
        cdef Call call
        while not self.queue.empty():
            call = <Call>self.queue.front()
            self.queue.pop_front()
            Py_DECREF(call)
            self.running[(call.link, call.seq)] = call
            call.running = self.loop.create_task(self.run_coroutine(call))

    async def run_coroutine(self, Call call):
        import inspect
        self.context_var.set(call)
        try:
            if self.semaphore.locked():
                async with self.semaphore:
                    await self.run_coroutine_now(call)
            else:
                await self.semaphore.acquire()
                try:
                    await self.run_coroutine_now(call)
                finally:
                    self.semaphore.release()
        except _ActorExit:
            self.exit_actor(call)
        except BaseException as error:
            import asyncio
            if isinstance(error, asyncio.CancelledError) and call.cancelled:
                self.answer_error(call, exceptions.TaskCancelledError(f"{call.function.name}() was cancelled"), R_CANCELLED)
            else:
                self.answer_error(call, error, 0)
        finally:
            self.running.pop((call.link, call.seq), None)

    async def run_coroutine_now(self, Call call):
        call.started_ns = NowNs()
        parts = self.arguments(call)
        value = parts[0](*parts[1], **(parts[2] or {}))
        parts = None
        if hasattr(value, "__await__"):
            value = await value
        self.answer(call, value)
        self.record(call, "FINISHED")

    # ------------------------------------------------------------------ context
    def context(self):
        cdef Call call = self.context_var.get() or self.current
        out = {"actor_id": self.actor_id, "gpu_ids": list(self.gpu_ids), "incarnation": self.incarnation}
        if call is not None and call.function is not None:
            out["task_id"] = call.link.tag + int(call.seq).to_bytes(8, "little")
            out["task_name"] = call.function.name
            out["resources"] = self.actor_resources if self.actor is not None else call.function.resources
            out["attempt"] = (<TaskHeader*>PyBytes_AS_STRING(call.frame)).attempt
        return out


def repr_of(actor):
    try:
        return repr(actor)
    except Exception:
        return f"<{type(actor).__name__} whose repr failed>"


def exit_actor():
    """Ends the current actor after this call; it is not restarted."""
    if the_engine is None or the_engine.executor is None or the_engine.executor.actor is None:
        raise TypeError("exit_actor() was called outside an actor")
    raise _ActorExit
