# A call's arguments and results before it is sent: the Task, its frame or its slots. Included by engine.pyx.
#
# Plain small arguments are laid out at once in one frame. A ref among them makes a slot; the frame is then assembled when the
# task is sent, with the ref's value inside, or its id if the value is in the store.

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


cdef int fail_task(Task task, object error, bint answered=False) except -1:
    """error: an exception, or bytes of an encoded one; the task's returns become it. answered: the worker said so."""
    cdef int i
    cdef ObjectRef ref
    if not answered and task.state != FINISHED:
        note_failure(task.callee.engine, task, error)
    task.state = FINISHED
    task.pins = None
    task.slots = None
    for i in range(task.num_returns):
        if task.returns[i] != NULL:
            ref = <ObjectRef>task.returns[i]
            task.returns[i] = NULL
            fail_ref(ref, error)
    if task.stream is not None:
        end_stream(task.callee.engine, task, error)
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
    task.parent = self.current_seq if self.executor is None or self.executor.groups is None else self.executor.parent_now()
    task.callee = callee
    task.num_returns = num_returns
    task.retries_left = callee.max_retries
    header.seq, header.window, header.taken = task.seq, 0, 0
    header.function = callee.number
    header.first_index = 0
    header.num_returns, header.num_args = num_returns, <uint16_t>count
    header.num_keywords, header.flags, header.attempt = 0, callee.yields, 0
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
            if given.how == G_REPLICATED:  # while the call lasts, we look for another copy if one is lost
                given.how = G_PLASMA
                given.measure()
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
    task.deps += 1  # ours, as in run_again
    for value in task.slots:
        if type(value) is ObjectRef:
            ref = <ObjectRef>value
            if ref.owned and ref.state == PLASMA and not in_store(self, ref):
                recover(self, ref)
                wait_for_argument(self, task, ref)
    task.deps -= 1
    if task.deps == 0:
        return False
    task.state = WAITING
    return True
