# Remote functions: encode the call, lease a worker, send, complete, retry. Included by engine.pyx.
#
# submit():  1. arguments into one frame (refs: into slots)   2. ids from a counter   3. a lease that has room takes it at once,
# else it queues in its LeasePool, which asks the node for leases while its queue is not empty.
#
# A lease takes several tasks ahead (depth) only if tasks of its class are known to be short, so that a worker has at most
# DEPTH_US of work in its own queue. If one of them turns out long, the worker hands the ones behind it back (RETURNED).
#
# Deaths: a worker's -> link_closed -> call_lost for each call in flight there: retried while retries are left, else
# WorkerCrashedError. The node's -> everything fails (node_closed).

cdef double DEPTH_US = 2000.0
cdef int DEPTH_MAX = 512
cdef int REQUESTS_MAX = 8         # lease requests of one class at the node at a time
cdef enum:
    FRAME_ROOM = 2048              # bytes of a small call's frame, on the C stack


@cython.no_gc
cdef class Task(Waiter):
    def __cinit__(self):
        self.returns = &self.first

    def __dealloc__(self):
        if self.returns != &self.first:
            PyMem_Free(self.returns)

    cdef int ready(self, ObjectRef ref) except -1:
        self.deps -= 1
        if self.deps == 0 and self.state == WAITING:
            self.callee.dispatch(self)
        return 0


cdef object make_returns(Engine self, Task task):
    """Fresh refs for the results: one, a list, or None for num_returns=0."""
    cdef ObjectRef ref
    cdef list out
    cdef int i
    if task.num_returns == 1:
        ref = new_ref(make_id(self, task.seq, 0), True)
        ref.producer = task
        task.first = <void*>ref
        return ref
    if task.num_returns == 0:
        return None
    task.returns = <void**>PyMem_Malloc(task.num_returns * sizeof(void*))
    if task.returns == NULL:
        task.returns = &task.first
        raise MemoryError()
    out = []
    for i in range(task.num_returns):
        task.returns[i] = NULL
    for i in range(task.num_returns):
        ref = new_ref(make_id(self, task.seq, i), True)
        ref.producer = task
        task.returns[i] = <void*>ref
        out.append(ref)
    return out


cdef int fail_task(Task task, object error) except -1:
    """error: an exception, or bytes of an encoded one; the task's returns become it."""
    cdef int i
    cdef ObjectRef ref
    task.state = FINISHED
    task.pins = None
    task.slots = None
    for i in range(task.num_returns):
        if task.returns[i] != NULL:
            ref = <ObjectRef>task.returns[i]
            task.returns[i] = NULL
            fail_ref(ref, error)
    return 0


# ------------------------------------------------------------------ arguments

cdef bytes slot_of(Encoded e):
    """how, refs, size, blob: as in objects.pxi."""
    cdef Py_ssize_t i, n = 0 if e.refs is None else PyList_GET_SIZE(e.refs)
    cdef bytes out = PyBytes_FromStringAndSize(NULL, 9 + 28 * n + e.nbytes)
    cdef uint8_t* p = <uint8_t*>PyBytes_AS_STRING(out)
    p = PutU32(PutU8(p, G_BLOB), <uint32_t>n)
    for i in range(n):
        store_id(p, (<ObjectRef>e.refs[i]).id)
        p += 28
    e.write(PutU32(p, <uint32_t>e.nbytes))
    return out


cdef object slow_slot(Engine self, Task task, object value, str what):
    """An argument that needs more than a copy: bytes of its slot, or the ref that stands for it."""
    cdef Encoded e
    cdef ObjectRef ref
    if type(value) is ObjectRef:
        return value
    e = encode(value, what)
    if e.refs is not None:
        task.pins = (task.pins or []) + e.refs
        for ref in e.refs:
            if ref.owned:
                intern(ref)
    if e.nbytes <= INLINE_BYTES_MAX:
        return slot_of(e)
    ref = new_ref(make_id(self, self.next_seq, 0), True)
    self.next_seq += 1
    set_value(self, ref, e)
    return ref


cdef Task make_task(Engine self, Callee callee, tuple args, dict kwargs, int num_returns):
    cdef Task task = Task.__new__(Task)
    cdef uint8_t room[FRAME_ROOM]
    cdef uint8_t* p = room + 32
    cdef TaskHeader* header = <TaskHeader*>room
    cdef Py_ssize_t i, n, count = PyTuple_GET_SIZE(args)
    cdef bint simple = not kwargs
    cdef object value
    task.seq = self.next_seq
    self.next_seq += 1
    task.parent = self.current_seq
    task.callee = callee
    task.num_returns = num_returns
    task.retries_left = callee.max_retries
    header.seq, header.parent = task.seq, 0
    header.function = callee.number
    header.first_index = 0
    header.num_returns, header.num_args = num_returns, <uint16_t>count
    header.num_keywords, header.flags, header.attempt = 0, 0, 0
    if count > 60000 or num_returns > 60000:
        raise ValueError(f"{callee.name}(): {count} arguments and {num_returns} returns; at most 60,000 of each")
    if simple:
        # The usual call: a few plain values. One allocation: the frame.
        for i in range(count):
            n = encode_into(<object>PyTuple_GET_ITEM(args, i), p + 9, FRAME_ROOM - (p - room) - 9)
            if n == 0:
                simple = False
                break
            p = PutU32(PutU32(PutU8(p, G_BLOB), 0), <uint32_t>n) + n
        if simple:
            task.frame = PyBytes_FromStringAndSize(<char*>room, p - room)
            return task
    # Anything else: a slot each.
    task.slots = []
    for i in range(count):
        value = <object>PyTuple_GET_ITEM(args, i)
        task.slots.append(slow_slot(self, task, value, f"argument {i} of {callee.name}()"))
    if kwargs:
        task.keywords = tuple(kwargs)
        for name, value in kwargs.items():
            task.slots.append(slow_slot(self, task, value, f"argument {name!r} of {callee.name}()"))
    header.num_args = <uint16_t>len(task.slots)
    header.num_keywords = <uint16_t>(len(kwargs) if kwargs else 0)
    task.frame = PyBytes_FromStringAndSize(<char*>room, 32)
    simple = True
    for value in task.slots:
        if type(value) is ObjectRef:
            simple = False
            wait_for_argument(self, task, <ObjectRef>value)
    if simple:
        task.frame = assemble(self, task, False)
        task.slots = None
        task.keywords = None
    return task


cdef int wait_for_argument(Engine self, Task task, ObjectRef ref) except -1:
    if ref.state == PENDING and not ref.owned and not ref.asked:
        ask_owner(self, ref)
    if ref.state == PENDING:
        task.deps += 1
        add_waiter(ref, task)
    return 0


cdef bytes assemble(Engine self, Task task, bint fetch):
    """The payload from the header (task.frame) and the slots. fetch: the worker asks for refs itself."""
    cdef list parts = [task.frame]
    cdef Given given
    cdef ObjectRef ref
    cdef bytes head, body
    for value in task.slots:
        if type(value) is bytes:
            parts.append(value)
            continue
        ref = <ObjectRef>value
        if fetch:
            given = Given.__new__(Given)
            given.how = G_FETCH
            given.measure()
        else:
            given = given_of(self, ref)
        if given.how == G_PLASMA or given.how == G_FETCH:
            # Only here an id follows `how`: elsewhere the frame implies it.
            intern(ref)
            head = bytes([given.how]) + ref.key()
        else:
            head = bytes([given.how])
        body = PyBytes_FromStringAndSize(NULL, given.nbytes)
        given.write(<uint8_t*>PyBytes_AS_STRING(body))
        if given.refs is not None:
            for ref in given.refs:
                if ref.owned:
                    intern(ref)
        parts.append(head)
        parts.append(body[1:])
    if task.keywords:
        for name in task.keywords:
            text = name.encode()
            parts.append(len(text).to_bytes(2, "little"))
            parts.append(text)
    return b"".join(parts)


cdef bytes failed_argument(Engine self, Task task):
    """The encoded error of the first argument that failed, or None."""
    cdef ObjectRef ref
    if task.slots is not None:
        for value in task.slots:
            if type(value) is ObjectRef:
                ref = <ObjectRef>value
                if ref.state == FAILED:
                    return blob_of(encode_error(ref.value))
                if ref.is_error:
                    return <bytes>ref.value
    return None


cdef bint repair_arguments(Engine self, Task task) except -1:
    """Arguments that the store has lost are made again; True: the task has to wait for that."""
    cdef ObjectRef ref
    for value in task.slots:
        if type(value) is ObjectRef:
            ref = <ObjectRef>value
            if ref.owned and ref.state == PLASMA and not in_store(self, ref):
                recover(self, ref)
                task.state = WAITING
                wait_for_argument(self, task, ref)
    return task.deps > 0


# ------------------------------------------------------------------ sending and completing

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
    cdef uint32_t kept
    cdef Task task = take_call(link, seq)
    cdef ObjectRef ref
    cdef list refs, met = None
    if task is None or not r.ok:
        if flags & R_HOLD:
            send_u64(link, F_HAVE, 0, seq)
        return 0
    if flags & R_ERROR:
        if not wants_retry(self, task, r, flags):
            on_error_result(self, link, task, r, flags)
    else:
        for i in range(n):
            ref = None
            if i < task.num_returns and task.returns[i] != NULL:
                ref = <ObjectRef>task.returns[i]
            refs = take(self, link, r, ref)
            if ref is None:
                discard(self, task.seq, i)
            else:
                if ref.state == PLASMA and task.callee.max_retries != 0:
                    pass  # its producer stays: lineage
                else:
                    task.returns[i] = NULL
                    ref.producer = None
            if refs is not None:
                met = refs if met is None else met + refs
        if not r.ok:
            fail_task(task, exceptions.RaySystemError(f"the answer to {task.callee.name}() was malformed"))
        task.state = FINISHED
    if flags & R_KEPT:
        kept = r.U32()
        refs = refs_of(self, r, kept)
        if refs is not None:
            hand_over(link, refs)
    if flags & R_HOLD:
        register_rest(self, link, met, seq)
    task.link = None
    if task.state == FINISHED:
        task.pins = None
        if task.slots is not None:
            keep_lineage(task)
    task.callee.finished(task, link, exec_us, flags)
    return 0


cdef int discard(Engine self, uint64_t seq, uint32_t index) except -1:
    """Nobody wants this result: if it went to the store, it goes when its maker's pin does."""
    cdef ObjectRef ref
    if self.store is None:
        return 0
    ref = new_ref(make_id(self, seq, index), True)
    try:
        self.store.delete(ref.key())
    except PlasmaStoreDied:
        pass  # its objects died with it
    return 0


cdef int LINEAGE_DEPTH_MAX = 64


cdef class LineageArgument:
    """Stands for a store object among the arguments of a finished task: it may be freed, and be made again if needed."""
    cdef ObjectId id
    cdef Task producer         # None: made by put; then it is there or not


cdef int keep_lineage(Task task) except -1:
    """After a task: what is needed to run it again, without holding its arguments' memory in the store."""
    cdef ObjectRef ref
    cdef LineageArgument stand_in
    cdef Py_ssize_t i
    cdef int depth = 0
    if not holds_lineage(task):
        task.slots = None
        return 0
    for i in range(PyList_GET_SIZE(task.slots)):
        if type(task.slots[i]) is not ObjectRef:
            continue
        ref = <ObjectRef>task.slots[i]
        if ref.owned and ref.state == PLASMA:
            stand_in = LineageArgument.__new__(LineageArgument)
            stand_in.id, stand_in.producer = ref.id, <Task>ref.producer
            task.slots[i] = stand_in
            if stand_in.producer is not None and stand_in.producer.lineage_depth >= depth:
                depth = stand_in.producer.lineage_depth + 1
    if depth <= LINEAGE_DEPTH_MAX:
        task.lineage_depth = <uint8_t>depth
        return 0
    # Bounded: the result can't be made again any more, and recover says so.
    task.slots = None
    for i in range(task.num_returns):
        if task.returns[i] != NULL:
            ref = <ObjectRef>task.returns[i]
            task.returns[i] = NULL
            ref.producer = None
    return 0


cdef ObjectRef revive(Engine self, LineageArgument stand_in):
    """The argument again: alive here, or to be made by its task, which recover is then asked to run."""
    cdef ObjectRef ref = find_ref(stand_in.id)
    cdef Task task = stand_in.producer
    if ref is not None:
        return ref
    ref = new_ref(stand_in.id, True)
    intern(ref)
    if task is None or stand_in.id.index >= task.num_returns:
        ref.value = exceptions.ObjectReconstructionFailedError(
            f"object {ref.hex()} is needed to make another one again, but it is freed and cannot be made itself: it was put, not "
            f"returned by a task, or lies more than {LINEAGE_DEPTH_MAX} tasks back")
        ref.state = FAILED
        return ref
    ref.producer = task
    task.returns[stand_in.id.index] = <void*>ref
    ref.state = PLASMA
    return ref


cdef bint holds_lineage(Task task) noexcept:
    cdef int i
    for i in range(task.num_returns):
        if task.returns[i] != NULL:
            return True
    return False


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
        if at == NULL:
            return False
        error = decode_raw(at, n, None, [None] * 0)
        cause = getattr(error, "cause", error)
        if not isinstance(cause, task.callee.retry_exceptions) and not isinstance(error, task.callee.retry_exceptions):
            return False
    task.attempt += 1
    if task.retries_left > 0:
        task.retries_left -= 1
    task.state, task.order = WAITING, 0
    self.callbacks.append((redispatch, (task,)))
    return True


def redispatch(Task task):
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
    if flags & R_CANCELLED:
        return fail_task(task, exceptions.TaskCancelledError(f"{task.callee.name}() was cancelled"))
    return fail_task(task, (<const char*>at)[:n])


cdef int on_returned(Engine self, Link link, Reader* r) except -1:
    """A worker hands unstarted tasks back, in order."""
    cdef uint32_t n = r.U32()
    cdef uint32_t i
    cdef list tasks = []
    cdef Task task
    cdef LeasePool pool = None
    for i in range(n):
        task = take_call(link, r.U64())
        if task is not None:
            tasks.append(task)
    if link.lease is not None:
        link.lease.in_flight -= len(tasks)
        link.lease.stuck = True
        pool = link.lease.pool
    for task in reversed(tasks):
        task.link = None
        task.state = QUEUED
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
    if isinstance((<Task>tasks[0]).callee, ActorMethod):
        return (<ActorMethod>(<Task>tasks[0]).callee).actor.calls_lost(tasks)
    retry, fail = [], []
    for task in tasks:
        if task.retries_left != 0 and not task.cancelled and not self.closed and self.node.alive:
            if task.retries_left > 0:
                task.retries_left -= 1
            task.attempt += 1
            retry.append(task)
        else:
            fail.append(task)
    for task in reversed(retry):
        task.state = QUEUED
        Py_INCREF(task)
        (<TaskTemplate>task.callee).pool.queue.push_front(<void*>task)
    for pool in {(<TaskTemplate>(<Task>t).callee).pool for t in retry}:
        (<LeasePool>pool).pump()
    if fail:
        ask_exit_cause(self, link, fail)
    return 0


cdef int recover(Engine self, ObjectRef ref) except -1:
    """A store object is gone: make it again if its task may be rerun, else the ref fails with the reason."""
    cdef Task task
    cdef ObjectRef argument
    cdef int i
    if ref.pinned and self.store is not None:
        ref.pinned = False
    if not ref.owned:
        ref.state = PENDING
        ref.asked = False
        return ask_owner(self, ref)  # the owner repairs it, or says why not
    if ref.producer is None:
        return fail_ref(ref, exceptions.ObjectLostError(
            f"object {ref.hex()} was lost from the object store (the store process died?) and cannot be made again: it was put "
            "there by ray.put or by an actor, not returned by a task"))
    task = <Task>ref.producer
    if task.state != FINISHED:
        ref.state = PENDING
        return 0
    if task.retries_left == 0:
        return fail_ref(ref, exceptions.ObjectReconstructionFailedMaxAttemptsExceededError(
            f"object {ref.hex()} was lost from the object store, and {task.callee.name}(), which made it, has no retries left"))
    if task.retries_left > 0:
        task.retries_left -= 1
    task.attempt += 1
    for i in range(task.num_returns):
        if task.returns[i] != NULL:
            (<ObjectRef>task.returns[i]).state = PENDING
            (<ObjectRef>task.returns[i]).pinned = False
    task.state, task.order, task.deps = WAITING, 0, 0
    if task.slots is not None:
        for i in range(<int>PyList_GET_SIZE(task.slots)):
            if type(task.slots[i]) is LineageArgument:
                task.slots[i] = revive(self, <LineageArgument>task.slots[i])
            if type(task.slots[i]) is ObjectRef:
                argument = <ObjectRef>task.slots[i]
                if argument.state == PLASMA and not in_store(self, argument):
                    recover(self, argument)
                wait_for_argument(self, task, argument)
    if task.deps == 0:
        task.callee.dispatch(task)
    return 0


def task_order(Task task):
    return task.seq


cdef int ask_exit_cause(Engine self, Link link, list tasks) except -1:
    """Fails tasks with what the node says the worker died of."""
    if self.closed or not self.node.alive:
        for task in tasks:
            fail_task(task, self.node_died())
        return 0
    self.rpcs[self.next_request] = functools.partial(fail_all_crashed, tasks, self, self.next_request)
    send_control(self.node, F_RPC, (self.next_request, "worker_exit_cause", (link.tag,)))
    self.next_request += 1
    return 0


def fail_all_crashed(tasks, Engine self, request, ok, value):
    self.rpcs.pop(request, None)
    for task in tasks:
        fail_crashed(task, value if ok and value else "its process ended")


def fail_crashed(Task task, cause):
    if task.cancelled:
        fail_task(task, exceptions.TaskCancelledError(f"{task.callee.name}() was cancelled"))
    else:
        fail_task(task, exceptions.WorkerCrashedError(
            f"the worker running {task.callee.name}() died: {cause}. It was tried {task.attempt + 1} time(s); "
            "raise max_retries if the task may be run again."))


# ------------------------------------------------------------------ leases

cdef class LeasePool:
    def __init__(self, Engine engine, dict resources, strategy, name):
        self.engine, self.resources, self.strategy, self.name = engine, resources, strategy, name
        self.leases, self.requests = [], {}
        self.average_us = -1

    def __dealloc__(self):
        while not self.queue.empty():
            Py_DECREF(<object>self.queue.front())
            self.queue.pop_front()

    cdef int submit(self, Task task) except -1:
        cdef Lease lease
        task.state = QUEUED
        Py_INCREF(task)
        self.queue.push_back(<void*>task)
        if self.queue.size() == 1:
            return self.pump()
        # Every lease is full. A result will make room; more leases may come.
        if len(self.requests) < REQUESTS_MAX:
            self.request()
        return 0

    cdef int depth(self, Lease lease) except -1:
        cdef int d
        if self.average_us < 0 or lease.stuck:
            return 1
        d = DEPTH_MAX if self.average_us * DEPTH_MAX < DEPTH_US else <int>(DEPTH_US / self.average_us)
        return d if d > 1 else 1

    cdef int pump(self) except -1:
        cdef Lease lease
        cdef Py_ssize_t i
        if self.engine.closed:
            return 0
        for i in range(PyList_GET_SIZE(self.leases)):
            if self.queue.empty():
                break
            self.push(<Lease>self.leases[i])
        if not self.queue.empty():
            self.request()
        return 0

    cdef int push(self, Lease lease) except -1:
        """As many queued tasks as the lease has room for, in one write."""
        cdef int room
        cdef Py_ssize_t share
        cdef Task task
        cdef bint was_idle = lease.in_flight == 0
        cdef bytes error
        if lease.draining or lease.over:
            return 0
        room = self.depth(lease) - lease.in_flight
        share = (<Py_ssize_t>self.queue.size() + PyList_GET_SIZE(self.leases) - 1) // PyList_GET_SIZE(self.leases)
        if room > share:
            room = <int>share
        while room > 0 and not self.queue.empty():
            task = <Task>self.queue.front()
            self.queue.pop_front()
            Py_DECREF(task)
            if task.cancelled:
                continue
            if lease.in_flight > 0 and task.callee.max_retries == 0:
                # It must never run twice, so nothing may be in doubt about it when its worker dies.
                Py_INCREF(task)
                self.queue.push_front(<void*>task)
                break
            error = failed_argument(self.engine, task)
            if error is not None:
                fail_task(task, error)
                continue
            if task.slots is not None and repair_arguments(self.engine, task):
                continue  # it comes back when they are there
            send_task(self.engine, lease.link, task)
            lease.in_flight += 1
            room -= 1
            if task.callee.max_retries == 0:
                break
        if lease.in_flight:
            lease.idle_since_ns = 0
            if was_idle:
                lease.link.flush()
            else:
                lease.link.later()
        return 0

    cdef int request(self) except -1:
        """Asks the node for leases, a bounded number ahead."""
        cdef Py_ssize_t wanted = <Py_ssize_t>self.queue.size()
        if wanted > REQUESTS_MAX:
            wanted = REQUESTS_MAX
        wanted -= len(self.requests)
        while wanted > 0:
            req_id = self.engine.next_request
            self.engine.next_request += 1
            self.requests[req_id] = True
            self.engine.lease_requests[req_id] = self
            self.engine.event("lease_request", req_id, self.resources, {"name": self.name, "strategy": self.strategy})
            wanted -= 1
        return 0


cdef class Lease:
    def __repr__(self):
        return f"<Lease {self.lease_id} of {self.pool.name}, {self.in_flight} in flight>"


cdef int lease_idle(Engine self, Lease lease) except -1:
    if lease.over:
        return 0
    if lease.draining or lease.retired:
        return end_lease(self, lease)
    lease.idle_since_ns = NowNs()
    if self.deadline_idle_ns == 0:
        self.set_deadline(D_IDLE, lease.idle_since_ns + IDLE_LEASE_NS)
    return 0


cdef int end_lease(Engine self, Lease lease) except -1:
    lease.over = True
    self.leases.pop(lease.lease_id, None)
    lease.pool.leases.remove(lease)
    if lease.link.lease is lease:
        lease.link.lease = None
    if self.node.alive:
        self.event("lease_return", lease.lease_id, not lease.retired)
    if not lease.pool.queue.empty():
        lease.pool.pump()
    return 0


cdef int return_idle_leases(Engine self, int64_t now) except -1:
    cdef Lease lease
    cdef LeasePool pool
    cdef int64_t next_ns = 0
    for lease in list(self.leases.values()):
        if lease.idle_since_ns:
            if now - lease.idle_since_ns >= IDLE_LEASE_NS:
                end_lease(self, lease)
            elif next_ns == 0 or lease.idle_since_ns < next_ns:
                next_ns = lease.idle_since_ns
    for pool in self.pools.values():
        # Requests of a burst that is over; kept until now, since the next burst would only ask again.
        if pool.requests and pool.queue.empty():
            for req_id in pool.requests:
                self.lease_requests.pop(req_id, None)
                self.event("lease_cancel", req_id)
            pool.requests = {}
    if next_ns:
        self.deadline_idle_ns = next_ns + IDLE_LEASE_NS
    return 0


cdef int link_lost_lease(Engine self, Lease lease) except -1:
    lease.over = True
    self.leases.pop(lease.lease_id, None)
    if lease in lease.pool.leases:
        lease.pool.leases.remove(lease)
    return 0


# ------------------------------------------------------------------ callees

cdef class Callee:
    cdef int define(self) except -1:
        raise NotImplementedError

    cdef int dispatch(self, Task task) except -1:
        raise NotImplementedError

    cdef int finished(self, Task task, Link link, uint32_t exec_us, uint8_t flags) except -1:
        raise NotImplementedError

    cdef int set_options(self, dict options) except -1:
        self.num_returns = options.get("num_returns", 1)
        self.max_retries = options.get("max_retries", 0)
        self.retry_exceptions = options.get("retry_exceptions", False)
        arity = options.get("arity")
        self.arity_min, self.arity_max = (0, -1) if arity is None else (arity[0], -1 if arity[1] is None else arity[1])
        self.check = options.get("check")
        return 0

    def submit(self, *args, **kwargs):
        """Makes the call; returns its ref (or refs) at once."""
        cdef Task task
        cdef Py_ssize_t n
        if self.engine is not the_engine or the_engine is None:
            self.define()
        if self.check is not None:
            n = PyTuple_GET_SIZE(args)
            if kwargs or n < self.arity_min or (self.arity_max >= 0 and n > self.arity_max):
                self.check(args, kwargs)
        if not self.engine.dropped.empty():
            drain_dropped(self.engine)
        task = make_task(self.engine, self, args, kwargs, self.num_returns)
        out = make_returns(self.engine, task)
        if task.deps == 0:
            self.dispatch(task)
            if task.link is not None and task.link.conn.pending_bytes() > BACKLOG_BYTES_MAX:
                relieve(self.engine, task.link)
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
        self.function, self.name = function, name
        self.resources = dict(options.get("resources") or {})
        self.strategy = options.get("strategy")
        self.max_calls = options.get("max_calls", 0)
        self.set_options(options)

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
        held = pickle.dumps(self.resources)
        self.definition = b"".join((b"\0", function_id, self.max_calls.to_bytes(4, "little"), len(name).to_bytes(4, "little"), name,
                                    len(held).to_bytes(4, "little"), held, (len(ids) // 28).to_bytes(4, "little"), ids, blob))
        self.definition_refs = refs
        key = (tuple(sorted(self.resources.items())), repr(self.strategy), self.name if self.max_calls else None)
        pool = engine.pools.get(key)
        if pool is None:
            pool = engine.pools[key] = LeasePool(engine, self.resources, self.strategy, self.name)
        self.pool = pool
        self.number = <uint32_t>len(engine.callees)
        engine.callees.append(self.name)
        self.engine = engine
        engine.event("export_function", function_id, blob)
        return 0

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
        if pool.average_us < 0:
            pool.average_us = exec_us
        else:
            pool.average_us += (exec_us - pool.average_us) * 0.125
        if flags & R_RETIRE:
            lease.retired = lease.draining = True
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
