# The worker's side of calls: decode, run, reply. Included by engine.pyx. PROCESS worker (ray/_core/worker_main.py).
#
# The main thread takes TASK frames off the connections itself and runs them in order. While user code runs, the background
# thread receives; it never runs user code, but it can hand back tasks that wait behind a long one, deliver a cancel and
# answer other processes' GETs. Results gather in the connection's buffer while more tasks wait (the stuck timer
# bounds for how long) and leave in one write.
#
# Tasks, and the actors that run one call at a time. What makes an actor, and its threads: actor_execute.pxi; asyncio:
# actor_async.pxi. Results: reply.pxi.

cdef int on_function(Engine self, Link link, Reader* r) except -1:
    cdef uint32_t number = r.U32()
    cdef uint8_t kind = r.U8()
    cdef const uint8_t* digest = r.Take(16)
    cdef uint32_t max_calls = r.U32()
    cdef uint32_t n = r.U32()
    cdef const uint8_t* name = r.Take(n)
    cdef uint32_t settings_bytes = r.U32()
    cdef const uint8_t* at = r.Take(settings_bytes)
    cdef list refs = refs_of(self, r, r.U32())
    cdef Function function = Function.__new__(Function)
    if not r.ok:
        return 0
    settings = settings_of((<const char*>at)[:settings_bytes]) if settings_bytes else {}
    if settings is None:
        r.ok = False
        return 0
    function.resources = settings.get("resources") or {}
    function.group_name = settings.get("concurrency_group") or ""
    function.time_limit_ns = <int64_t>((settings.get("timeout_s") or 0.0) * 1e9)
    function.title = settings.get("title")
    function.unlisted = settings.get("unlisted", False)
    function.place = settings.get("place")
    function.capture = capture_of(function.place)
    function.threads = threads_for(function.resources)
    function.name = (<const char*>name)[:n].decode("utf-8", "replace")
    function.function_id = (<const char*>digest)[:16]
    function.max_calls = <int>max_calls
    function.plain = -1
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


cdef object settings_of(bytes pickled):
    """None: they are no settings, and the frame makes no sense."""
    try:
        found = pickle.loads(pickled)
    except Exception:
        return None
    return found if isinstance(found, dict) else None


def threads_for(resources):
    """Whole CPUs held, at least one."""
    return max(1, resources.get("CPU", 0) // 10_000)


cdef inline uint64_t parent_of(Link link, uint64_t seq) noexcept:
    """What the calls that this one makes know it by: their Task.parent. Unique in this process."""
    return seq ^ (link.key << 44)


cdef class Call:
    def __repr__(self):
        return f"<Call {self.function.name if self.function else '?'} {self.seq}>"


cdef class Executor:
    def __init__(self, Engine engine):
        import contextvars
        self.engine = engine
        engine.executor = self
        self.main_thread = <unsigned long>get_ident()
        self.calls_of, self.running, self.events, self.counted = {}, {}, [], []
        self.gpu_ids, self.limits = [], []
        self.grace_ns = -1
        self.context_var = contextvars.ContextVar("ray_call", default=None)
        self.omp_threads = 0 if "OMP_NUM_THREADS" in os.environ else -1
        engine.on_event("become_actor", self.on_become)
        engine.on_event("exit", self.on_exit)
        engine.on_event("reclaim", self.on_reclaim)

    # ------------------------------------------------------------------ frames (any receiving thread)
    cdef int on_task(self, Link link, const uint8_t* data, uint32_t size, uint8_t flags) except -2:
        """0, or -1 for a frame that makes no sense."""
        cdef Call call
        cdef TaskHeader* header = <TaskHeader*>data
        if size < sizeof(TaskHeader):
            return -1
        function = link.functions.get(header.function)
        if function is None:
            return -1
        call = Call.__new__(Call)
        call.link = link
        call.seq = header.seq
        call.function = <Function>function
        call.frame = PyBytes_FromStringAndSize(<const char*>data, size)
        if self.groups is not None:
            self.running[(link, call.seq)] = call
            if self.loop is None:
                return group_of(self, call.function).put(call)
        Py_INCREF(call)
        self.queue.push_back(<void*>call)
        if self.loop is not None:
            if not self.loop.taking:
                self.loop.wake()
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
            out = link.begin(F_RETURNED, R_RETIRE if self.retiring else 0, <uint32_t>(4 + 8 * len(seqs)))
            out = PutU32(out, <uint32_t>len(seqs))
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
        if flags & C_RECURSIVE:
            cancel_children(self.engine, parent_of(link, seq), flags)
        call = find_call(self, link, seq)
        if call is None:
            for i in range(self.queue.size()):
                if (<Call>self.queue[i]).link is link and (<Call>self.queue[i]).seq == seq:
                    call = <Call>self.queue[i]
                    break
            else:
                return 0
        if flags & C_STOP:
            return stop_producer(self, call)
        call.cancelled = True
        call.recursive = flags & C_RECURSIVE
        if call.started_ns == 0:
            answer_stopped(self, call)  # now, and not when its turn comes
            return call.link.flush()
        if self.loop is not None:
            self.loop.cancel(call)
        elif call is self.current and self.actor is None and (call.producer is None or not call.producer.waiting):
            self.interrupt(NowNs())
        return 0

    cdef int interrupt(self, int64_t from_ns) except -1:
        """KeyboardInterrupt in the call that runs on the main thread, soon."""
        self.interrupt_due = True
        # A handler of the user's may take the second signal for another Ctrl-C, and the call won't tell us of the first.
        if _signal.getsignal(_signal.SIGINT) != self.on_sigint or not self.alarm.Insist(from_ns, TIME_LIMIT_SIGNAL):
            _signal.pthread_kill(self.main_thread, _signal.SIGINT)
        return 0

    def on_sigint(self, signum, frame):
        """Main thread, on SIGINT, which only the alarm and `interrupt` send."""
        cdef Call call = self.current
        cdef int64_t now = NowNs()
        if call is None:
            return
        if call.limit_ns and now >= call.limit_ns and not call.timed_out:
            self.interrupt_due = True
        if not self.interrupt_due:
            return
        if self.engine.receiving and self.engine.receiver == self.main_thread:
            # In the middle of what this thread has received, which would be lost.
            self.interrupt(now + AGAIN_NS)
            return
        if call.limit_ns and now >= call.limit_ns and not call.timed_out:
            call.timed_out = call.recursive = True
        if call.recursive:
            cancel_children(self.engine, self.engine.current_seq, C_RECURSIVE)  # also those made since the cancel came
        if call.producer is not None and now < call.producer.closing_until:
            # It has stopped already and runs the clean-up of its user, who is given the time for it.
            self.interrupt(call.producer.closing_until)
            return
        self.interrupt_due = False
        self.alarm.Seen(call.limit_ns if call.limit_ns > now else 0)
        # It may strike in the middle of an import, say, and leave a module half made: this process runs no other task.
        self.interrupted = self.actor is None
        raise KeyboardInterrupt

    def on_unraisable(self, otherwise, what):
        """sys.unraisablehook: an interruption that was raised in a __del__, say, where it ends nothing, comes again."""
        cdef Call call = self.current
        if what.exc_type is KeyboardInterrupt and call is not None and (call.cancelled or call.timed_out) \
                and <unsigned long>get_ident() == self.main_thread:
            self.interrupt(NowNs() + AGAIN_NS)
        else:
            otherwise(what)

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
            self.loop.stop()

    def on_reclaim(self, tag):
        """The process `tag`, whose lease we are, has died: what runs for it is interrupted, what waits for it is dropped."""
        self.reclaimed = True
        if self.current is not None and self.current.link.tag == tag:
            self.current.cancelled = True
            self.interrupt(NowNs())

    cdef int on_caller_gone(self, Link link) except -1:
        """What runs for it can't be answered any more; if the caller lives, he has it done elsewhere. His death isn't always known
        before: a call that was on its way may come after the node's word that nothing of his is to run here (on_reclaim)."""
        cdef Call call = self.current
        if call is not None and call.link is link and self.actor is None and call.producer is None:
            call.cancelled = True
            self.interrupt(NowNs())
        return 0

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

    cdef uint64_t parent_now(self):
        """Of the call that this thread or coroutine runs."""
        cdef Call call = self.context_var.get()
        return self.engine.current_seq if call is None else parent_of(call.link, call.seq)

    # ------------------------------------------------------------------ waiting inside a task
    cdef bint may_lend(self):
        return not self.blocked and self.current is not None \
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
                    start_actor(self)
                    if self.loop is not None:
                        break
                    continue
                if self.queue.empty():
                    if self.reclaimed:
                        self.reclaimed = False
                        engine.event("reclaimed", not self.interrupted)
                    if self.exit_pending and not self.is_needed():
                        break
                    if self.actor is None and _signal.getsignal(_signal.SIGINT) != self.on_sigint:
                        # A task has left a handler of its own behind: with it, later ones couldn't be interrupted.
                        _signal.signal(_signal.SIGINT, self.on_sigint)
                    engine.step(-1)
                    continue
                engine.leave()
                try:
                    while not self.queue.empty() and not self.stopping:
                        if self.retiring and self.actor is None:
                            self.hand_back()
                            break
                        call = <Call>self.queue.front()
                        self.queue.pop_front()
                        Py_DECREF(call)
                        self.run_one(call)
                finally:
                    engine.enter()
        finally:
            engine.leave()
        if self.loop is not None and not self.stopping:
            self.loop.serve()
        report(engine)
        engine.flush_dirty()

    cdef int run_one(self, Call call) except -1:
        cdef tuple parts
        cdef object value
        if not call.link.alive or call.answered:
            return 0  # the caller is dead, or has cancelled it: nobody wants the result
        self.current = call
        call.started_ns = NowNs()  # from here on a cancel interrupts it
        try:
            self.current_name = call.function.name if self.actor is None else self.actor_name()
            if not self.queue.empty() and self.engine.deadline_stuck_ns == 0:
                self.engine.set_deadline(D_STUCK, NowNs() + STUCK_NS)
            if self.omp_threads != call.function.threads and self.omp_threads != 0 and self.actor is None:
                self.set_threads(call.function.threads)
            if self.actor is None:
                self.engine.capture = call.function.capture
            self.engine.current_seq = parent_of(call.link, call.seq)
            if call.function.time_limit_ns:
                set_alarm(self, call)
            parts = self.arguments(call)
            value = (<object>parts[0])(*<tuple>parts[1], **<dict>parts[2]) if parts[2] is not None else \
                (<object>parts[0])(*<tuple>parts[1])
            parts = None
            if yields(call, value):
                value = run_generator(self, call, value)
            self.over(call)
            if self.checkpoints is not None:
                self.checkpoints.after_call()
            if call.timed_out:
                answer_stopped(self, call)
            else:
                answer(self, call, value)
                record(self, call, "FINISHED")
        except _ActorExit:
            self.over(call)
            parts = None
            leave_actor(self, call)
        except BaseException as error:
            ran = self.current is not None  # else it ended, and its value can't be sent
            self.over(call)
            parts = None
            if self.checkpoints is not None and ran:
                self.checkpoints.after_call()
            if call.timed_out or (call.cancelled and (self.interrupted or isinstance(error, KeyboardInterrupt))):
                answer_stopped(self, call, error)
            else:
                answer_error(self, call, error, 0)
        self.engine.current_seq = 0
        return 0

    cdef int over(self, Call call) except -1:
        """User code has ended: from here on a cancel is too late."""
        self.current = None
        self.interrupt_due = False
        if call.limit_ns or call.cancelled or call.producer is not None:
            self.alarm.Disarm()
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
                target = bind(self, function.name)
        else:
            if function.target is None:
                function.target = decode_function(function.blob, function.refs)
                if target_wrapper is not None:
                    function.target = target_wrapper(function.target, function.name)
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
            names.append((<const char*>at)[:n].decode("utf-8", "replace"))
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
                ref.home = r.U32()
                ref.contained = refs
                ref.state = PLASMA
                if ref.registered:
                    keep(self.engine, ref)
            else:
                r.Take(12)
        return get_value(self.engine, ref, None)

    # ------------------------------------------------------------------ context
    def context(self):
        cdef Call call = self.context_var.get() or self.current
        out = {"actor_id": self.actor_id, "gpu_ids": list(self.gpu_ids), "incarnation": self.incarnation}
        if call is not None and call.function is not None:
            out["task_id"] = call.link.tag + int(call.seq).to_bytes(8, "little")
            out["task_name"] = call.function.name
            out["resources"] = self.actor_resources if self.actor is not None else call.function.resources
            out["place"] = self.actor_place if self.actor is not None else call.function.place
            out["attempt"] = (<TaskHeader*>PyBytes_AS_STRING(call.frame)).attempt
        return out
