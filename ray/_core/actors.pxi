# Actor handles: ordered calls, restarts. Included by engine.pyx.
#
# An ActorLine is this process's one record of an actor, whichever handles it is called through. Calls go straight to the
# actor's worker over its Link, in the order they were made here: the queue is the order, and its head waits for its arguments
# before anything behind it is sent. The node tells every holder the actor's state (actor_state events): PENDING, ALIVE with the
# worker's tag, RESTARTING, DEAD.
#
# An ActorRef is what a handle holds: the line, and a share in the actor's life. Who can reach the actor is counted by an
# ordinary ObjectRef, `handle`, owned by the creator: it travels inside every pickled ActorRef, and each call in flight holds
# its ActorRef. When the handle's last copy anywhere is gone, nothing that counts can be in flight, and the creator tells the
# node (actor_unreachable). A weak ActorRef (found by name, or the actor's own of itself) has no `handle`: it calls, and keeps
# nothing alive. The actor's own becomes one that counts where it is passed on to others.
#
# The worker dies: calls in flight wait in `lost` until the node says RESTARTING (those with tries left go to the front of the
# queue, others fail with ActorUnavailableError) or DEAD (all fail with ActorDiedError).

cdef class ActorLine:
    def __cinit__(self):
        self.state = "PENDING"
        self.lost = []

    def __dealloc__(self):
        while not self.queue.empty():
            Py_DECREF(<object>self.queue.front())
            self.queue.pop_front()

    def __repr__(self):
        return f"<ActorLine {self.class_name} {self.actor_id.hex()[:8]} {self.state}>"

    cdef size_t pending(self):
        """Calls made here and not answered."""
        cdef size_t n = self.queue.size() + PyList_GET_SIZE(self.lost)
        if self.link is not None and self.link.alive:
            n += self.link.calls.size()
        return n

    cdef object death(self):
        if type(self.cause) is bytes:
            # What its __init__ raised.
            error = decode(self.cause, None)
            if isinstance(error, (exceptions.ActorPlacementGroupRemoved, exceptions.ActorUnschedulableError)):
                return error  # it never had a place
            died = exceptions.ActorDiedError(
                f"the actor {self.class_name} (id {self.actor_id.hex()}) died in its constructor:\n{error}")
            died.cause = died.__cause__ = getattr(error, "cause", None) or error
            return died
        if type(self.cause) is str and self.cause.startswith(RUNTIME_ENV_FAILED):
            return exceptions.RuntimeEnvSetupError(f"the actor {self.class_name} (id {self.actor_id.hex()}) can't start: {self.cause}")
        kind = exceptions.ActorDiedError
        if type(self.cause) is str and OUT_OF_MEMORY in <str>self.cause:
            kind = exceptions.ActorOutOfMemoryError
        return kind(
            f"the actor {self.class_name} (id {self.actor_id.hex()}) is dead: {self.cause or 'it was killed'}")

    cdef int pump(self) except -1:
        """Sends the queue's head as far as arguments are there, if the actor is alive."""
        cdef bint sent = False
        if self.state == "DEAD":
            return self.fail_queue()
        if self.pumping:
            return 0  # whoever is at it goes on with what has come since: the order is kept
        self.pumping = True
        try:
            while self.is_reachable() and not self.queue.empty() and (<Task>self.queue.front()).deps == 0:
                if not self.send_head(&sent):
                    break
        finally:
            self.pumping = False
        if sent and self.is_reachable():
            if self.link.calls.size() <= 2:
                self.link.flush()
            else:
                self.link.later()
        return 0

    cdef bint is_reachable(self):
        return self.state == "ALIVE" and self.link is not None and self.link.alive

    cdef bint send_head(self, bint* sent) except -1:
        """False: the queue's head has to wait for an argument that was lost."""
        cdef Task task = <Task>self.queue.front()
        cdef bytes error = None if task.cancelled else failed_argument(self.engine, task)
        if not task.cancelled and error is None and task.slots is not None and repair_arguments(self.engine, task):
            return False
        # The store may have been asked, and other threads have run: the actor may be gone, and the queue with it.
        if not self.is_reachable() or self.queue.empty() or <Task>self.queue.front() is not task:
            return True
        self.queue.pop_front()
        Py_DECREF(task)
        if task.cancelled:
            return True
        if error is not None:
            fail_task(task, error)
            return True
        send_task(self.engine, self.link, task)
        sent[0] = True
        return True

    cdef int calls_lost(self, list tasks) except -1:
        self.lost.extend(tasks)
        self.link = None
        if self.state == "ALIVE":
            self.state = "PENDING"  # until the node says more
        if self.engine.closed or not self.engine.node.alive:
            for task in self.lost:
                fail_task(<Task>task, self.engine.node_died())
            self.lost = []
        elif self.state == "DEAD":
            self.fail_queue()
        return 0

    def fail_queue(self):
        cdef Task task
        self.fail_timed_out()
        for task in self.lost:
            fail_task(task, self.death())
        self.lost = []
        while not self.queue.empty():
            task = <Task>self.queue.front()
            self.queue.pop_front()
            Py_DECREF(task)
            fail_task(task, self.death())
        return 0

    cdef int fail_timed_out(self) except -1:
        """The oldest call in flight may be what the worker died of: it ran over its time, and force ended it."""
        if self.lost:
            error = ended_by_limit(<Task>self.lost[0], self.cause)
            if error is not None:
                fail_task(<Task>self.lost.pop(0), error)
        return 0

    def resume(self):
        """The worker was lost and another is to come: calls in flight are sent again or given up."""
        cdef Task task
        again = []
        self.fail_timed_out()
        for task in self.lost:
            if task.retries_left != 0 and not task.cancelled:
                if task.retries_left > 0:
                    task.retries_left -= 1
                task.attempt += 1
                again.append(task)
            else:
                fail_task(task, exceptions.ActorUnavailableError(
                    f"the worker of actor {self.class_name} (id {self.actor_id.hex()}) died while {task.callee.name}() was in "
                    "flight; the actor is being restarted. The call may or may not have run; max_task_retries sends it again."))
        self.lost = []
        for task in reversed(again):
            task.state = QUEUED
            Py_INCREF(task)
            self.queue.push_front(<void*>task)


cdef class ActorRef:
    def __repr__(self):
        return f"<ActorRef {self.class_name} {self.actor_id.hex()[:8]} {self.line.state}{'' if self.handle is not None else ' weak'}>"

    @property
    def state(self):
        return self.line.state

    def __reduce__(self):
        cdef ObjectRef handle = self.handle
        if handle is None and self.own_key is not None:
            handle = ref_of(self.line.engine, load_id(<const uint8_t*>PyBytes_AS_STRING(self.own_key)))
        return actor_from_parts, (self.actor_id, self.class_name, handle, self.options)

    def method(self, str name, num_returns=1, dict options=None):
        """A callable that calls this method: submit(*args, **kwargs) -> ref."""
        cdef ActorMethod out = ActorMethod.__new__(ActorMethod)
        out.actor, out.ref = self.line, self
        out.name = name
        options = dict(options or {})
        options.setdefault("num_returns", num_returns)
        options.setdefault("max_retries", self.options.get("max_task_retries", 0))
        options.setdefault("unlisted", self.options.get("unlisted", False))
        out.set_options(options)
        if options.get("name"):
            out.settings = dict(out.settings or {}, title=options["name"])
        out.out_of_order = self.options.get("out_of_order", False)
        out.pending_max = self.options.get("max_pending_calls", -1)
        return out.submit if out.pending_max < 0 else out.submit_bounded


cdef ActorRef actor_ref(Engine self, bytes actor_id, str class_name, ObjectRef handle, dict options):
    """A new ActorRef, on the one line to this actor here. options: max_task_retries and max_pending_calls, where not default."""
    cdef ActorRef ref = ActorRef.__new__(ActorRef)
    cdef ActorLine line
    found = self.actors.get(actor_id)
    line = found() if found is not None else None
    if line is None:
        line = ActorLine.__new__(ActorLine)
        line.engine, line.actor_id, line.class_name = self, actor_id, class_name
        self.actors[actor_id] = weakref.ref(line, functools.partial(forget_actor, self.actors, actor_id))
    ref.line, ref.actor_id, ref.class_name, ref.handle, ref.options = line, actor_id, class_name, handle, options
    if handle is not None:
        handle.hold = actor_id  # marks it, for pickled_elsewhere
    return ref


def pickled_elsewhere(ObjectRef ref):
    """__reduce__ of a ref met by a pickler that isn't ours, where nobody keeps it: of an actor's handle a weak one is left."""
    if type(ref.hold) is bytes:
        return _no_handle, ()
    raise TypeError(f"{ref!r} can't be pickled by itself: the bytes could outlive the object. Pass it, or a value that "
                    "contains it, to a task, an actor or ray.put, which keep its object alive on the way.")


def _no_handle():
    return None


def forget_actor(table, key, _):
    found = table.get(key)
    if found is not None and found() is None:
        del table[key]


def actor_from_parts(actor_id, class_name, handle, options, own_key=None):
    """handle: None for a weak one; own_key: of the handle, in the actor itself."""
    cdef Engine self = engine_or_raise()
    cdef ActorRef ref = actor_ref(self, actor_id, class_name, handle, options)
    ref.own_key = own_key
    if not ref.line.subscribed:
        ref.line.subscribed = True
        self.event("actor_subscribe", actor_id)
    return ref


cdef int actor_unreachable(Engine self, bytes handle_key) except -1:
    actor_id = self.actor_handles.pop(handle_key, None)
    if actor_id is not None and self.node.alive:
        self.event("actor_out_of_scope", actor_id)
    return 0


cdef int actor_state_changed(Engine self, bytes actor_id, str state, bytes worker_tag, int incarnation, cause) except -1:
    cdef ActorLine actor
    pins = self.creating.get(actor_id)
    if pins is not None and (state == "DEAD" or (state == "ALIVE" and not pins[1])):
        del self.creating[actor_id]  # its constructor won't run (again)
    found = self.actors.get(actor_id)
    actor = found() if found is not None else None
    if actor is not None and state == "DEAD" and actor.link is not None and actor.link.alive and not actor.link.calls.empty():
        finish_when_gone(self, actor.link)
    if actor is None or actor.state == "DEAD" or incarnation < actor.incarnation:
        return 0
    actor.incarnation = incarnation
    actor.cause = cause
    if actor.link is not None and (state == "RESTARTING" or (state == "ALIVE" and actor.link.tag != worker_tag)):
        finish_link(self, actor.link)
    if state == "ALIVE":
        if actor.link is not None and actor.link.alive and actor.link.tag == worker_tag and actor.state == "ALIVE":
            return 0
        actor.resume()
        actor.link = self.dial(worker_tag)
        if actor.link is None:
            actor.state = "PENDING"  # it died again already; the node will say so
            return 0
        actor.link.to_actor = True
        actor.state = "ALIVE"
        actor.pump()
    elif state == "DEAD":
        actor.state = "DEAD"
        actor.fail_queue()  # calls sent may still be answered; the link's end fails the rest
    elif state == "RESTARTING":
        actor.state = "RESTARTING"
        actor.resume()
    return 0


cdef int finish_when_gone(Engine self, Link link) except -1:
    """Its node says when the process behind link has ended, which may be after the news of its actor's death."""
    cdef NodeLink at = None
    number = int.from_bytes(link.tag[:4], "big")
    if number != self.number:
        at = node_link(self, number)
        if at is None:
            return 0  # with its node, the link goes too
    ask_node(self, at, functools.partial(worker_gone, self, link), "worker_gone", link.tag)
    return 0


def worker_gone(Engine self, Link link, ok, _):
    if ok:
        finish_link(self, link)


cdef int finish_link(Engine self, Link link) except -1:
    """The node says that the process behind link is dead: takes what it had sent, and closes. The socket itself may stay
    open for long, in a child that it forked."""
    while link.alive and read_link(self, link) > 0:
        pass
    if link.alive:
        link.conn.Close("its process died")
        self.link_closed(link)
    return 0


cdef class ActorMethod(Callee):
    """One method of one actor, with its options; `submit` is what handle.method.remote is."""

    def submit_bounded(self, *args, **kwargs):
        """`submit`, of an actor with max_pending_calls."""
        if self.actor.pending() >= <size_t>self.pending_max:
            raise exceptions.PendingCallsLimitExceeded(
                f"{self.name}() was not called: {self.pending_max} calls to this actor wait already, which is its max_pending_calls",
                actor_id=self.actor.actor_id.hex(), pending=self.actor.pending(), limit=self.pending_max)
        return self.submit(*args, **kwargs)

    cdef int define(self) except -1:
        cdef Engine engine = engine_or_raise()
        cdef bytes name = self.name.encode()
        if self.actor.engine is not engine:
            raise exceptions.RaySystemError(f"this handle of actor {self.actor.class_name} belongs to an earlier ray.init()")
        settings = pickle.dumps(self.settings) if self.settings else b""
        number = engine.method_numbers.get((self.name, settings))
        if number is None:
            number = engine.method_numbers[self.name, settings] = len(engine.callees)
            engine.callees.append(self.name)
        self.number = number
        self.definition = b"".join((b"\1", bytes(16), bytes(4), len(name).to_bytes(4, "little"), name,
                                    len(settings).to_bytes(4, "little"), settings, bytes(4)))
        self.engine = engine
        return 0

    cdef int dispatch(self, Task task) except -1:
        cdef ActorLine actor = self.actor
        if not task.cancelled and actor.queue.empty() and actor.state == "ALIVE" and actor.link is not None and actor.link.alive \
                and task.slots is None:
            # The usual call: straight out.
            send_task(self.engine, actor.link, task)
            if actor.link.calls.size() <= 2:
                actor.link.flush()
            else:
                actor.link.later()
            return 0
        if task.state == WAITING and task.link is None and not self.is_queued(task):
            self.enqueue(task)
        return actor.pump()

    cdef bint is_queued(self, Task task):
        return task.order != 0

    cdef int enqueue(self, Task task) except -1:
        self.actor.next_order += 1
        task.order = self.actor.next_order
        Py_INCREF(task)
        self.actor.queue.push_back(<void*>task)
        return 0

    cdef int finished(self, Task task, Link link, uint32_t exec_us, uint8_t flags) except -1:
        cdef uint16_t i
        cdef ObjectRef ref
        if task.state != FINISHED:
            return 0  # it raised what is to be retried, and is on its way again
        for i in range(task.num_returns):
            if task.returns[i] != NULL:
                # An actor's results can't be made again: no lineage.
                ref = <ObjectRef>task.returns[i]
                task.returns[i] = NULL
                ref.producer = None
        task.slots = None
        return 0

    cdef int hold(self, Task task) except -1:
        # Usually it has its place from now on, whatever it waits for.
        return 0 if self.out_of_order else self.enqueue(task)


cdef class Constructor(Callee):
    """Stands for __init__ while its arguments are laid out. The worker itself asks for those that aren't there yet."""

    cdef int dispatch(self, Task task) except -1:
        return 0


cdef class ActorTemplate:
    """An actor class with one set of options."""
    cdef object cls
    cdef readonly str name
    cdef dict options
    cdef bytes blob
    cdef list refs
    cdef Engine engine

    def __init__(self, cls, str name, methods, dict options):
        self.cls, self.name, self.options = cls, name, options

    def create(self, tuple args, dict kwargs):
        """Asks for a new actor; returns its ActorRef at once."""
        cdef Engine self_engine = engine_or_raise()
        cdef Task task
        cdef ActorRef actor
        cdef ObjectRef handle, ref
        cdef Callee callee = Constructor.__new__(Constructor)
        if self.engine is not self_engine:
            self.blob, self.refs = encode_function(self.cls, self.name)
            self.engine = self_engine
        callee.name = f"{self.name}.__init__"
        callee.engine = self_engine
        task = make_task(self_engine, callee, args, kwargs, 1)
        frame = task.frame
        pins = [task.pins, self.refs]
        if task.slots is not None:
            frame = assemble(self_engine, task, True)
            pins.append([x for x in task.slots if type(x) is ObjectRef])
        for group in pins:
            for ref in group or ():
                if ref.owned:
                    intern(ref)
        options = self.options
        strategy = options.get("strategy")
        if strategy is None:
            strategy = self_engine.capture
        actor_id = os.urandom(16)
        handle = new_ref(make_id(self_engine, self_engine.next_seq, 0), True)
        self_engine.next_seq += 1
        handle.value, handle.state, handle.hold = None, VALUE, actor_id
        intern(handle)
        self_engine.creating[actor_id] = (pins, options.get("max_restarts", 0) != 0)
        calls = {name: options[name] for name in ("max_task_retries", "max_pending_calls", "out_of_order", "unlisted")
                 if name in options}
        actor = actor_ref(self_engine, actor_id, self.name, handle, calls)
        actor.line.subscribed = True
        if not options.get("detached"):
            self_engine.actor_handles[handle.key()] = actor_id
        creation = pickle.dumps({
            "class_name": self.name, "blob": self.blob, "refs": b"".join([(<ObjectRef>x).key() for x in self.refs or ()]),
            "frame": frame, "max_concurrency": options.get("max_concurrency", 0), "is_async": options.get("is_async", False),
            "concurrency_groups": options.get("concurrency_groups"), "resources": options.get("resources") or {},
            "calls": calls, "handle": handle.key(), "checkpoints": options.get("checkpoints", 0),
            "description": options.get("description"), "place": place_of(strategy),
            "name": options.get("name") or ""})
        named = bool(options.get("name"))
        spec = {
            "class_name": self.name, "resources": options.get("resources") or {}, "strategy": strategy,
            "placement_resources": options.get("placement_resources") or options.get("resources") or {},
            "runtime_env": options.get("runtime_env") or "",
            "max_restarts": options.get("max_restarts", 0), "max_task_retries": options.get("max_task_retries", 0),
            "max_concurrency": options.get("max_concurrency", 1), "name": options.get("name"),
            "namespace": options.get("namespace") or self_engine.info.get("namespace"),
            "detached": bool(options.get("detached")), "owner_tag": self_engine.tag, "creation": creation,
            "calls": calls, "checkpoints": options.get("checkpoints", 0),
            "description": options.get("description") if named else b""}
        if named:
            # Whether the name can be had is known before the handle is: only a named actor's creation waits for the node.
            try:
                self_engine.rpc("create_actor", actor_id, spec)
            except BaseException:
                self_engine.creating.pop(actor_id, None)
                raise
        else:
            self_engine.event("create_actor", actor_id, spec)
        self_engine.event("actor_subscribe", actor_id)
        return actor
