# ray.cancel, in the process that made the call and in the one that runs it. Included by engine.pyx.
#
# A call not sent yet fails at once. One that was sent is told to its worker (CANCEL): dropped if it waits, interrupted by SIGINT or
# asyncio's cancel if it runs; with force its worker is killed. Recursive: the worker does the same for what the call submitted.

cdef int cancel_children(Engine self, uint64_t parent, uint8_t flags) except -1:
    """Cancels what the call `parent` submitted from here and is not finished."""
    cdef Link link
    cdef Task task
    cdef CallMap.iterator at
    cdef LeasePool pool
    cdef size_t i
    found = []
    for link in self.links.values():
        at = link.calls.begin()
        while at != link.calls.end():
            task = <Task>deref(at).second
            if task.parent == parent:
                found.append(task)
            inc(at)
    for pool in self.pools.values():
        for i in range(pool.queue.size()):
            task = <Task>pool.queue[i]
            if task.parent == parent:
                found.append(task)
    for task in found:
        cancel_task(self, task, flags)
    return 0


cdef int cancel_task(Engine self, Task task, uint8_t flags) except -1:
    if task.state == FINISHED:
        return 0
    task.cancelled = True
    if task.state != SENT:
        if task.state == QUEUED and isinstance(task.callee, TaskTemplate):
            (<TaskTemplate>task.callee).pool.drop_cancelled()
        return fail_task(task, exceptions.TaskCancelledError(f"{task.callee.name}() was cancelled before it started"))
    if task.link is None:
        return 0  # its actor's worker has died, and it will fail with what the node says next
    if flags & C_FORCE and task.link.lease is not None:
        tell_node(self, task.link.lease.at, "kill_worker", task.link.tag)
    else:
        send_u64(task.link, F_CANCEL, flags, task.seq)
        task.link.flush()
    return 0


cdef int cancel_ref(Engine self, ObjectRef ref, bint force, bint recursive) except -1:
    if not ref.owned:
        raise ValueError(f"ray.cancel: {ref!r} was not created by this process; only the process that made the call can cancel it")
    if ref.state != PENDING or ref.producer is None:
        return 0  # finished, or made by put: nothing to cancel
    task = <Task>ref.producer
    if force and isinstance((<Task>task).callee, ActorMethod):
        raise ValueError("ray.cancel(force=True) is for tasks; use ray.kill to end an actor")
    return cancel_task(self, <Task>task, (C_FORCE if force else 0) | (C_RECURSIVE if recursive else 0))
