# What it takes to make a lost object again. Included by engine.pyx.
#
# A result in the store keeps its Task (ref.producer): the frame and slots to run it again. Of arguments in the store only the id and
# their own Task are kept (LineageArgument), so lineage holds no shared memory; it is bounded by LINEAGE_DEPTH_MAX tasks in a row.

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
    if task.stream is not None:
        for ref in task.stream.keepers():
            task.stream.forget(ref)
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
    if task is None or (task.stream is None and stand_in.id.index >= task.num_returns):
        ref.value = exceptions.ObjectReconstructionFailedError(
            f"object {ref.hex()} is needed to make another one again, but it is freed and cannot be made itself: it was put, not "
            f"returned by a task, or lies more than {LINEAGE_DEPTH_MAX} tasks back")
        ref.state = FAILED
        return ref
    ref.producer = task
    if task.stream is not None:
        task.stream.kept[stand_in.id.index] = <void*>ref
    else:
        task.returns[stand_in.id.index] = <void*>ref
    ref.home = self.number  # where it is looked for, in vain
    ref.state = PLASMA
    return ref


cdef bint holds_lineage(Task task) noexcept:
    cdef int i
    for i in range(task.num_returns):
        if task.returns[i] != NULL:
            return True
    return task.stream is not None and not task.stream.kept.empty()


cdef int unpin_lost(Engine self, ObjectRef ref) except -1:
    """Our pin of the object as it was: what is made anew is pinned when it comes."""
    if not ref.pinned:
        return 0
    ref.pinned = False
    if not ref.owned:
        return let_go(self, ref.key(), ref.home)
    if self.store is not None:
        try:
            self.store.unpin(ref.key())
        except (PlasmaStoreDied, PlasmaObjectNotFound):
            pass  # it was in a store that has died since
    return 0


cdef int recover(Engine self, ObjectRef ref) except -1:
    """A store object is gone: make it again if its task may be rerun, else the ref fails with the reason."""
    cdef Task task
    cdef ObjectRef argument
    cdef int i
    unpin_lost(self, ref)
    if self.replicas and move_to_replica(self, ref):
        return 0
    if not ref.owned:
        ref.state = PENDING
        ref.asked = False
        ref.lost = True
        return ask_owner(self, ref, True)  # the owner repairs it, or says why not
    if ref.producer is None:
        return fail_ref(ref, exceptions.ObjectLostError(
            f"object {ref.hex()} was lost from the object store (its process, or its node, died?) and cannot be made again: it was put "
            "there by ray.put or by an actor, not returned by a task"))
    task = <Task>ref.producer
    if not self.info["settings"].get("object_reconstruction", True):
        return fail_ref(ref, exceptions.ObjectLostError(
            f"object {ref.hex()} was lost from the object store (its process, or its node, died?), and is not made again by "
            f"{task.callee.name}(): ray was started with _enable_object_reconstruction=False"))
    if task.stream is not None:
        lose_items(self, task, ref)
        if ref.state != PENDING:
            return 0  # it has no tries left
    if task.state != FINISHED:
        ref.state = PENDING
        return 0
    if task.retries_left == 0:
        return fail_ref(ref, exceptions.ObjectReconstructionFailedMaxAttemptsExceededError(
            f"object {ref.hex()} was lost from the object store, and {task.callee.name}(), which made it, has no retries left"))
    if task.retries_left > 0:
        task.retries_left -= 1
    task.attempt += 1
    return run_again(self, task)


cdef int run_again(Engine self, Task task) except -1:
    """Sends it once more, with its arguments, which may have to be made first."""
    cdef ObjectRef argument
    cdef int i
    # Under way from now on, for whoever finds another result lost while we ask the store. One dependency is ours, so that it is
    # not sent, by an argument that settles meanwhile, before all have been looked at.
    task.state, task.order, task.deps = WAITING, 0, 1
    for i in range(task.num_returns):
        if task.returns[i] != NULL:
            (<ObjectRef>task.returns[i]).state = PENDING
    for i in range(task.num_returns):
        if task.returns[i] != NULL:
            unpin_lost(self, <ObjectRef>task.returns[i])
    if task.slots is not None:
        for i in range(<int>PyList_GET_SIZE(task.slots)):
            if type(task.slots[i]) is LineageArgument:
                task.slots[i] = revive(self, <LineageArgument>task.slots[i])
            if type(task.slots[i]) is ObjectRef:
                argument = <ObjectRef>task.slots[i]
                if argument.state == PLASMA and not in_store(self, argument):
                    recover(self, argument)
                wait_for_argument(self, task, argument)
    task.deps -= 1
    if task.deps == 0:
        task.callee.dispatch(task)
    return 0
