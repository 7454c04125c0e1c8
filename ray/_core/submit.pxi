# Remote functions: encode the call, lease a worker, send, complete, retry. Included by engine.pyx.
#
# submit():  1. arguments into one frame (refs: into slots)   2. ids from a counter   3. a lease that has room takes it at once,
# else it queues in its LeasePool, which asks the node for leases while its queue is not empty.
#
# A lease takes several tasks ahead (depth) only if tasks of its class are known to be short, so that a worker has at most
# DEPTH_US of work in its own queue. If one of them turns out long, the worker hands the ones behind it back (RETURNED).
#
# Deaths: a worker's -> link_closed -> lost_calls: the node is asked what it died of -> exit_cause_known: all those in flight there
# are retried while retries are left, else WorkerCrashedError, or what the cause says. The node's -> everything fails (node_closed).


cdef int send_task(Engine self, Link link, Task task) except -1:
    cdef bytes frame = task.frame
    cdef uint8_t* out
    if task.callee.number not in link.functions_sent:
        send_definition(link, task.callee)
    if task.slots is not None:
        frame = assemble(self, task, False)
    out = link.begin(F_TASK, 0, <uint32_t>PyBytes_GET_SIZE(frame))
    memcpy(out, PyBytes_AS_STRING(frame), PyBytes_GET_SIZE(frame))
    (<TaskHeader*>out).attempt = task.attempt
    (<TaskHeader*>out).function = task.callee.number
    if task.stream is not None:
        head_stream(task, <TaskHeader*>out)
    task.link = link
    task.state = SENT
    Py_INCREF(task)
    link.calls[task.seq] = <void*>task
    return 0


cdef int send_definition(Link link, Callee callee) except -1:
    cdef Py_ssize_t n = PyBytes_GET_SIZE(callee.definition)
    cdef uint8_t* out = link.begin(F_FUNCTION, 0, <uint32_t>(4 + n))
    memcpy(PutU32(out, callee.number), PyBytes_AS_STRING(callee.definition), n)
    link.functions_sent.add(callee.number)
    if callee.definition_refs is not None:
        # Refs in the function's closure: the callee keeps them as long as it keeps the function.
        hand_over(link, callee.definition_refs)
    return 0


cdef Task take_call(Link link, uint64_t seq):
    """Removes a call from the link's table; None if it isn't there (cancelled, or answered twice)."""
    cdef Task task
    cdef CallMap.iterator at = link.calls.find(seq)
    if at == link.calls.end():
        return None
    task = <Task>deref(at).second
    link.calls.erase(at)
    Py_DECREF(task)
    return task


cdef int on_result(Engine self, Link link, Reader* r, uint8_t flags) except -1:
    cdef uint64_t seq = r.U64()
    cdef uint32_t exec_us = r.U32()
    cdef uint16_t n = r.U16()
    cdef uint16_t i
    cdef uint32_t kept, home
    cdef Task task = take_call(link, seq)
    cdef ObjectRef ref
    cdef list refs, met = None, lost = None
    if task is None or not r.ok:
        if task is None and r.ok and self.homes and not flags & R_ERROR:
            free_unwanted(self, r[0], seq, n)
        if flags & R_HOLD:
            send_u64(link, F_HAVE, 0, seq)
        return 0
    if flags & R_ERROR:
        if wants_retry(self, task, r, flags):
            r.U8()
            refs = refs_of(self, r, r.U32())
            if refs is not None:
                adopt(self, link, refs)
            r.Take(r.U32())
        else:
            on_error_result(self, link, task, r, flags)
    else:
        for i in range(n):
            ref = None
            if i < task.num_returns and task.returns[i] != NULL:
                ref = <ObjectRef>task.returns[i]
            home = self.number if ref is not None else home_ahead(self, r[0])
            refs = take(self, link, r, ref)
            if ref is None:
                discard(self, task.seq, i, home)
            elif ref.state == PENDING or (ref.state == PLASMA and task.callee.max_retries != 0):
                pass  # its producer stays: lineage
            else:
                task.returns[i] = NULL
                ref.producer = None
            if refs is not None:
                met = refs if met is None else met + refs
        task.state = FINISHED
        if r.ok and task.stream is None:
            lost = lost_already(task)
        if not r.ok:
            fail_task(task, exceptions.RaySystemError(f"the answer to {task.callee.name}() was malformed"))
        elif task.stream is not None:
            goes_on(self, task, flags)
    if flags & R_KEPT:
        kept = r.U32()
        refs = refs_of(self, r, kept)
        if refs is not None:
            hand_over(link, refs)
    if flags & R_HOLD:
        register_rest(self, link, met, seq)
    task.link = None
    if task.state == FINISHED:
        if task.slots is not None:
            keep_lineage(task)
        if not holds_lineage(task):
            task.pins = None  # else: refs nested in the arguments must be there when it runs again
    task.callee.finished(task, link, exec_us, flags)
    if lost is not None:
        for ref in lost:
            ref.state = PLASMA  # as if its loss were found only now
            recover(self, ref)
    return 0


cdef list lost_already(Task task):
    """The results, or None, that the store had lost before the answer was read: whoever waited for one has found that, and taken
    the task for one that still runs (`recover`)."""
    cdef ObjectRef ref
    cdef list lost = None
    cdef int i
    for i in range(task.num_returns):
        if task.returns[i] == NULL or (<ObjectRef>task.returns[i]).state != PENDING:
            continue
        ref = <ObjectRef>task.returns[i]
        lost = [ref] if lost is None else lost + [ref]
        if task.callee.max_retries == 0:
            task.returns[i] = NULL
            ref.producer = None
    return lost


cdef int discard(Engine self, uint64_t seq, uint32_t index, uint32_t home) except -1:
    """Nobody wants this result: if it went to the store, it goes when its maker's pin does."""
    cdef ObjectRef ref
    if self.store is None:
        return 0
    ref = new_ref(make_id(self, seq, index), True)
    if home != self.number:
        return free_elsewhere(self, ref.key(), home)
    try:
        self.store.delete(ref.key())
    except PlasmaStoreDied:
        pass  # its objects died with it
    return 0


cdef int LINEAGE_DEPTH_MAX = 64
cdef int64_t UNKNOWN_OOM_RETRIES = -2


cdef bint wants_retry(Engine self, Task task, Reader* r, uint8_t flags) except -1:
    """The user asked that such an error be retried, and tries are left. Then the task is on its way again."""
    cdef Reader ahead = r[0]
    cdef uint32_t n
    cdef const uint8_t* at
    if task.callee.retry_exceptions is False or task.retries_left == 0 or flags & R_CANCELLED or task.cancelled:
        return False
    if task.callee.retry_exceptions is not True:
        ahead.U8()
        n = ahead.U32()
        ahead.Take(<size_t>n * 28)
        n = ahead.U32()
        at = ahead.Take(n)
        if at == NULL or not retries_error(task.callee, decode_raw(at, n, None, [None] * 0)):
            return False
    again(task)
    return True


cdef bint retries_error(Callee callee, object error) except -1:
    """Whether retry_exceptions, True or a tuple of classes, asks for another try after this one."""
    if type(callee.retry_exceptions) is bool:
        return callee.retry_exceptions
    return isinstance(error, callee.retry_exceptions) or isinstance(getattr(error, "cause", None), callee.retry_exceptions)


cdef int again(Task task) except -1:
    """One try fewer is left, and the next begins after this round."""
    task.attempt += 1
    if task.retries_left > 0:
        task.retries_left -= 1
    task.state, task.order = WAITING, 0
    task.callee.engine.callbacks.append((redispatch, (task,)))
    return 0


def redispatch(Task task):
    if task.callee.engine.closed:
        fail_task(task, task.callee.engine.node_died())
        return
    task.callee.dispatch(task)
    if the_engine is not None:
        the_engine.flush_dirty()


cdef int on_error_result(Engine self, Link link, Task task, Reader* r, uint8_t flags) except -1:
    cdef uint32_t n
    cdef const uint8_t* at
    cdef list refs
    r.U8()
    refs = refs_of(self, r, r.U32())
    n = r.U32()
    at = r.Take(n)
    if at == NULL:
        return fail_task(task, exceptions.RaySystemError(f"the error of {task.callee.name}() was malformed"))
    if refs is not None:
        adopt(self, link, refs)
    if task.stream is not None and flags & R_CANCELLED:  # its completed() raises, too
        return fail_task(task, exceptions.TaskCancelledError(f"{task.callee.name}() was cancelled"), True)
    if task.stream is not None:
        task.state = FINISHED
        return end_stream(self, task, (<const char*>at)[:n])
    return fail_task(task, (<const char*>at)[:n], True)


cdef int on_returned(Engine self, Link link, Reader* r, uint8_t flags) except -1:
    """A worker hands unstarted tasks back, in order. R_RETIRE: it takes no others either."""
    cdef uint32_t n = r.U32()
    cdef uint32_t i
    cdef list tasks = []
    cdef Task task
    cdef LeasePool pool = None
    if r.left() < <size_t>n * 8:
        r.ok = False
        return 0
    for i in range(n):
        task = take_call(link, r.U64())
        if task is not None:
            tasks.append(task)
    if link.lease is not None:
        link.lease.in_flight -= len(tasks)
        link.lease.stuck = True
        if flags & R_RETIRE:
            link.lease.retired = link.lease.draining = True
        pool = link.lease.pool
    for task in reversed(tasks):
        task.link = None
        task.state = QUEUED
        if task.cancelled:
            # The CANCEL and this have crossed.
            fail_task(task, exceptions.TaskCancelledError(f"{task.callee.name}() was cancelled before it started"))
            continue
        pool = (<TaskTemplate>task.callee).pool
        Py_INCREF(task)
        pool.queue.push_front(<void*>task)
    if pool is not None:
        pool.pump()
        if link.lease is not None and link.lease.in_flight == 0:
            lease_idle(self, link.lease)
    return 0


cdef int lost_calls(Engine self, Link link) except -1:
    """The link's process died with calls in flight: the oldest first."""
    cdef list tasks = []
    cdef Task task
    cdef CallMap.iterator at = link.calls.begin()
    while at != link.calls.end():
        task = <Task>deref(at).second
        Py_DECREF(task)
        tasks.append(task)
        inc(at)
    link.calls.clear()
    if not tasks:
        return 0
    tasks.sort(key=task_order)
    for task in tasks:
        task.link = None
    disown_results(self, link, tasks)
    if isinstance((<Task>tasks[0]).callee, ActorMethod):
        return (<ActorMethod>(<Task>tasks[0]).callee).actor.calls_lost(tasks)
    return ask_exit_cause(self, link, tasks)


cdef int disown_results(Engine self, Link link, list tasks) except -1:
    """These calls ended without an answer that reached us. What their worker, now dead, has written for us into another node's
    store nobody would ever free; that node does, when it hears of it (ray/_node/lost_results.py)."""
    cdef Task task
    cdef NodeLink at
    cdef bytes key
    cdef uint16_t i
    if not self.homes or self.closed or not self.node.alive or len(link.tag) != 16 or not link.conn.greeted():
        return 0
    number = node_number(link.tag)
    if number not in self.homes:
        return 0
    at = node_link(self, number)
    if at is None or not at.link.alive:
        return 0
    keys = []
    for task in tasks:
        for i in range(task.num_returns):
            key = PyBytes_FromStringAndSize(NULL, 28)
            store_id(<uint8_t*>PyBytes_AS_STRING(key), make_id(self, task.seq, i))
            keys.append(key)
    return tell_node(self, at, "results_lost", link.tag, keys)


def task_order(Task task):
    return task.seq


cdef int ask_exit_cause(Engine self, Link link, list tasks) except -1:
    """What becomes of tasks hangs on what their worker died of, and its node knows that. If it has not died, only its connection
    has, what it was leased for is over: else nobody would give the lease back."""
    if self.closed or not self.node.alive:
        for task in tasks:
            fail_task(task, self.node_died())
        return 0
    at = link.lease.at if link.lease is not None else None
    if at is not None and not (<NodeLink>at).link.alive:
        exit_cause_known(self, tasks, False, None)
    else:
        ask_node(self, at, functools.partial(exit_cause_known, self, tasks), "worker_exit_cause", link.tag)
    return 0


def exit_cause_known(Engine self, list tasks, ok, value):
    """Retries what may be retried, in the order in which it was sent, and fails the rest."""
    cdef Task task
    cdef str cause = value if ok and type(value) is str and value else "its process ended"
    cdef bint first = True
    cdef list retry = []
    for task in tasks:
        if task.state == FINISHED:
            continue  # cancelled meanwhile
        if self.leaving or self.closed or not self.node.alive:
            fail_task(task, self.node_died())  # its worker has died of that
        elif not task.cancelled and may_run_again(self, task, cause, first):
            task.attempt += 1
            retry.append(task)
        else:
            fail_crashed(task, cause)
        first = False
    for task in reversed(retry):
        task.state = QUEUED
        Py_INCREF(task)
        (<TaskTemplate>task.callee).pool.queue.push_front(<void*>task)
    for pool in {(<TaskTemplate>(<Task>t).callee).pool for t in retry}:
        (<LeasePool>pool).pump()


cdef bint may_run_again(Engine self, Task task, str cause, bint ran) except -1:
    """Takes off one of the tries that are left, if it has any. ran: it, and not only one before it in its worker's queue."""
    if task.retries_left == 0 and task.callee.max_retries == 0:
        return False
    if OUT_OF_MEMORY_AGAIN in cause:
        if not ran:
            return True
        if self.oom_retries == UNKNOWN_OOM_RETRIES:
            from ray._config import Settings
            self.oom_retries = Settings(self.info.get("settings")).task_oom_retries
        if self.oom_retries < 0 or task.oom_retries < self.oom_retries:
            if task.oom_retries < 65535:
                task.oom_retries += 1
            return True
    timed_out = ended_by_limit(task, cause)
    if task.retries_left == 0 or (timed_out is not None and not retries_error(task.callee, timed_out)):
        return False
    if task.retries_left > 0:
        task.retries_left -= 1
    return True


def fail_crashed(Task task, cause):
    timed_out = ended_by_limit(task, cause)
    if timed_out is not None:
        fail_task(task, timed_out)
    elif task.cancelled:
        fail_task(task, exceptions.TaskCancelledError(f"{task.callee.name}() was cancelled"))
    elif cause.startswith(OUT_OF_MEMORY):
        fail_task(task, exceptions.OutOfMemoryError(
            f"{task.callee.name}() was ended: {cause} It was tried {task.attempt + 1} time(s).", function_name=task.callee.name))
    else:
        fail_task(task, exceptions.WorkerCrashedError(
            f"the worker running {task.callee.name}() died: {cause}. It was tried {task.attempt + 1} time(s); "
            "raise max_retries if the task may be run again."))


# ------------------------------------------------------------------ callees

cdef class Callee:
    cdef int define(self) except -1:
        raise NotImplementedError

    cdef int dispatch(self, Task task) except -1:
        raise NotImplementedError

    cdef int finished(self, Task task, Link link, uint32_t exec_us, uint8_t flags) except -1:
        raise NotImplementedError

    cdef int hold(self, Task task) except -1:
        return 0

    cdef Callee captured(self):
        return None

    cdef int set_options(self, dict options) except -1:
        returns = options.get("num_returns", 1)
        if type(returns) is str:
            self.yields, self.num_returns = Y_STREAM if returns == "streaming" else Y_DYNAMIC, 1
        else:
            self.yields, self.num_returns = Y_FIXED if options.get("generator") else 0, returns
        self.window = options.get("window", 0)
        self.max_retries = options.get("max_retries", 0)
        self.retry_exceptions = options.get("retry_exceptions", False)
        arity = options.get("arity")
        self.arity_min, self.arity_max = (0, -1) if arity is None else (arity[0], -1 if arity[1] is None else arity[1])
        self.check = options.get("check")
        self.settings = {name: options[name] for name in ("resources", "concurrency_group", "timeout_s", "unlisted")
                         if options.get(name)} or None
        return 0

    def submit(self, *args, **kwargs):
        """Makes the call; returns its ref (or refs) at once."""
        cdef Task task
        cdef Callee other
        cdef Py_ssize_t n
        if self.engine is not the_engine or the_engine is None:
            self.define()
        if self.engine.capture is not None:
            other = self.captured()
            if other is not None:
                return other.submit(*args, **kwargs)
        if self.check is not None:
            n = PyTuple_GET_SIZE(args)
            if kwargs or n < self.arity_min or (self.arity_max >= 0 and n > self.arity_max):
                self.check(args, kwargs)
        if not self.engine.dropped.empty():
            drain_dropped(self.engine)
        task = make_task(self.engine, self, args, kwargs, self.num_returns)
        out = make_returns(self.engine, task)
        if self.yields:
            out = open_stream(self.engine, task, out)
        if task.deps == 0:
            self.dispatch(task)
            if task.link is not None and task.link.conn.pending_bytes() > BACKLOG_BYTES_MAX:
                relieve(self.engine, task.link)
        else:
            self.hold(task)
        return out


cdef int relieve(Engine self, Link link) except -1:
    """The peer is slower than the caller: wait until half of the backlog has left."""
    if self.receiving and self.receiver == <unsigned long>get_ident():
        return 0
    self.enter()
    try:
        while link.alive and link.conn.pending_bytes() > BACKLOG_BYTES_MAX // 2:
            self.step(100)
            link.flush()
    finally:
        self.leave()
    return 0


cdef class TaskTemplate(Callee):
    """A remote function with one set of options; `submit` is what f.remote is."""

    def __init__(self, function, str name, dict options):
        self.function, self.name, self.options = function, name, options
        self.resources = dict(options.get("resources") or {})
        self.strategy = options.get("strategy")
        self.max_calls = options.get("max_calls", 0)
        self.runtime_env = options.get("runtime_env") or ""
        self.priority = options.get("priority", 0)
        self.set_options(options)
        self.alone = self.max_retries == 0 or options.get("timeout_s") is not None

    cdef int define(self) except -1:
        """First call in this session: pickles the function once and finds its scheduling class."""
        cdef Engine engine = engine_or_raise()
        cdef bytes blob, name
        blob, refs = encode_function(self.function, self.name)
        function_id = function_digest(blob)
        name = self.name.encode()
        ids = b"".join([(<ObjectRef>x).key() for x in refs or ()])
        for x in refs or ():
            intern(<ObjectRef>x)
        settings = pickle.dumps(dict(self.settings or {}, place=place_of(self.strategy)))
        self.definition = b"".join((b"\0", function_id, self.max_calls.to_bytes(4, "little"), len(name).to_bytes(4, "little"), name,
                                    len(settings).to_bytes(4, "little"), settings, (len(ids) // 28).to_bytes(4, "little"), ids, blob))
        self.definition_refs = refs
        key = (tuple(sorted(self.resources.items())), repr(self.strategy), self.runtime_env, self.name if self.max_calls else None,
               self.priority, self.max_retries != 0)
        pool = engine.pools.get(key)
        if pool is None:
            pool = LeasePool(engine, self.resources, self.strategy, self.name, self.runtime_env, self.priority, self.max_retries != 0)
            engine.pools[key] = pool
        self.pool = pool
        engine.prioritized = engine.prioritized or self.priority != 0
        self.number = <uint32_t>len(engine.callees)
        engine.callees.append(self.name)
        self.engine = engine
        engine.event("export_function", function_id, blob)
        return 0

    cdef Callee captured(self):
        return None if self.strategy is not None else twin_in(self, self.engine.capture)

    cdef int dispatch(self, Task task) except -1:
        if task.cancelled:
            return 0
        return self.pool.submit(task)

    cdef int finished(self, Task task, Link link, uint32_t exec_us, uint8_t flags) except -1:
        cdef Lease lease = link.lease
        cdef LeasePool pool
        if lease is None or lease.over:
            return 0
        pool = lease.pool
        lease.in_flight -= 1
        lease.stuck = False
        if task.stream is not None:
            pass  # its time was its consumer's, too
        elif pool.average_us < 0:
            pool.average_us = exec_us
        else:
            pool.average_us += (exec_us - pool.average_us) * 0.125
        if flags & R_RETIRE:
            lease.retired = lease.draining = True
        if pool.engine.prioritized and is_outranked(pool):
            lease.draining = True  # what it holds is wanted for them: the node decides
        if not pool.queue.empty():
            # Half empty: a whole batch is worth a write.
            if lease.in_flight * 2 <= pool.depth(lease):
                pool.pump()
        if lease.in_flight == 0:
            lease_idle(pool.engine, lease)
        return 0


def function_digest(bytes blob):
    import hashlib
    return hashlib.blake2b(blob, digest_size=16).digest()
