# Placement groups in the engine: children that follow their parent, and requests of the node that a ref stands for.
# Included by engine.pyx.
#
# A task or actor that runs in a group knows it from its FUNCTION frame (or its creation): `place`. If the group captures
# children, `engine.capture` is set while it runs, and what is submitted then with no strategy of its own goes to a twin of its
# template that has one. Actors keep theirs for life; between tasks of a worker it is what the last one left, and nobody submits.

cdef object place_of(object strategy):
    """The strategy, if it names a placement group."""
    return strategy if type(strategy) is tuple and strategy[0] == "group" else None


cdef object capture_of(object place):
    """What children of a task in this place inherit: any bundle of the group; None unless the group is to capture them."""
    return ("group", place[1], -1, True) if place is not None and place[3] else None


cdef TaskTemplate twin_in(TaskTemplate template, object strategy):
    """The same function, for that strategy."""
    cdef TaskTemplate twin
    if template.twins is None:
        template.twins = {}
    twin = template.twins.get(strategy)
    if twin is None:
        twin = TaskTemplate(template.function, template.name, dict(template.options, strategy=strategy))
        while len(template.twins) >= 64:
            template.twins.pop(next(iter(template.twins)))
        template.twins[strategy] = twin
    return twin


cdef ObjectRef promise_of(Engine self, object value, str method, tuple args):
    """A ref that gets this value when the node has answered a request, or else the error that the node answered with."""
    cdef Encoded encoded = encode(value, "the value of a promise")
    cdef ObjectRef ref = new_ref(make_id(self, self.next_seq, 0), True)
    request = self.next_request
    self.next_seq += 1
    self.next_request += 1
    self.rpcs[request] = functools.partial(keep_promise, self, request, ref, encoded)
    send_control(self.node, F_RPC, (request, method, args))
    return ref


def keep_promise(Engine self, request, ObjectRef ref, Encoded encoded, ok, answer):
    self.rpcs.pop(request, None)
    if ok:
        set_value(self, ref, encoded)
        settle(ref)
    elif answer is None:
        fail_ref(ref, self.node_died())
    else:
        fail_ref(ref, answer)


cdef int refuse_lease(Engine self, req_id, kind, message) except -1:
    """No lease of this class can ever be had: what waits for one fails."""
    cdef LeasePool pool = self.lease_requests.pop(req_id, None)
    cdef Task task
    if pool is None:
        return 0
    pool.requests.pop(req_id, None)
    of = exceptions.TaskPlacementGroupRemoved if kind == "group_removed" else exceptions.TaskUnschedulableError
    while not pool.queue.empty():
        task = <Task>pool.queue.front()
        pool.queue.pop_front()
        Py_DECREF(task)
        fail_task(task, of(message))
    return 0
