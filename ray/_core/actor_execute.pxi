# Becoming an actor and ceasing to be one, and actors whose calls run in threads. Included by engine.pyx. PROCESS worker.
#
# The node's become_actor makes this worker an actor, for good: start_actor, on the main thread. Then calls run on the main
# thread one by one (execute.pxi); with max_concurrency > 1 or concurrency_groups in groups of threads; on an async actor's loop
# in groups of coroutines (actor_async.pxi). A group runs its calls in the order of their arrival, so many at a time; groups
# don't wait for one another.

class _ActorExit(BaseException):
    """Raised by exit_actor() inside a method."""


cdef int start_actor(Executor self) except -1:
    """become_actor: makes the instance and reports. Main thread."""
    cdef Call call
    cdef Reader r
    cdef ObjectRef ref
    cdef Countdown all_of
    actor_id, creation, incarnation, gpu_ids = self.become
    self.become = None
    spec = pickle.loads(creation)
    self.current_name = self.class_name = spec["class_name"]
    self.creation = {name: spec[name] for name in ("class_name", "calls", "handle", "description", "name")}
    self.set_gpus(list(gpu_ids))
    self.actor_id = actor_id
    self.incarnation = incarnation
    self.actor_resources = spec["resources"]
    self.actor_place = spec["place"]
    self.engine.capture = capture_of(self.actor_place)
    self.set_threads(threads_for(self.actor_resources))
    call = Call.__new__(Call)
    call.frame = spec["frame"]
    self.init_started_s = time.time()
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
        make_groups(self, spec)
        self.actor = cls.__new__(cls)
        if self.loop is None:
            self.actor.__init__(*parts[1], **(parts[2] or {}))
        else:
            self.loop.initialize(self.actor, parts[1], parts[2] or {})
        parts = None
        if spec["checkpoints"]:
            from ray._core import checkpoints
            self.checkpoints = checkpoints.of_actor(self.engine, self.actor, actor_id, spec["checkpoints"])
            if incarnation > 0:
                self.checkpoints.restore()
    except BaseException as error:
        note_creation(self, error)
        self.engine.event("actor_failed", actor_id, blob_of(encode_error(error, f"{spec['class_name']}.__init__")))
        self.stopping = True
        return 0
    finally:
        self.current = None
    note_creation(self, None)
    # What __init__ kept of its arguments is registered with the owners: the creator may let go when we are ready.
    all_of = Countdown.__new__(Countdown)
    for ref in call.met or ():
        if not ref.owned and ref.registered == 0:
            owner = self.engine.dial(owner_tag(ref))
            all_of.source = creator(self.engine, ref)
            if owner is None:
                inherit_from(self.engine, all_of.source, ref, all_of)
            else:
                all_of.left += 1
                send_borrow(self.engine, <Link>owner, ref, all_of)
    call.met = None
    ref = None
    await_counted(self, all_of)
    self.engine.event("actor_ready", actor_id)
    return 0


cdef object bind(Executor self, str name):
    target = getattr(self.actor, name, None)
    if name == "__ray_ready__":
        target = lambda: True
    elif name == "__ray_terminate__":
        target = exit_actor if self.loop is None else functools.partial(leave_behind_earlier, self)
    elif name == "__ray_call__":
        actor = self.actor
        target = lambda fn, *args, **kwargs: fn(actor, *args, **kwargs)
    if target is None:
        raise AttributeError(f"actor {self.actor_name()} has no method {name!r}")
    if target_wrapper is not None:
        target = target_wrapper(target, f"{self.class_name}.{name}")
    self.bound[name] = target
    return target


async def leave_behind_earlier(Executor self):
    """__ray_terminate__ of an asyncio actor: calls that began before it end first."""
    import asyncio
    cdef Call call
    own = self.context_var.get()
    earlier = []
    for call in list(self.running.values()):
        if call is own:
            break
        if isinstance(call.running, asyncio.Future):
            earlier.append(call.running)
    if earlier:
        await asyncio.wait(earlier)
    exit_actor()


def repr_of(actor):
    try:
        return repr(actor)
    except Exception:
        return f"<{type(actor).__name__} whose repr failed>"


def exit_actor():
    """Ends the current actor after this call; it is not restarted."""
    if the_engine is None or the_engine.local_context is None and (
            the_engine.executor is None or the_engine.executor.actor is None):
        raise TypeError("exit_actor() was called outside an actor")
    raise _ActorExit


cdef int leave_actor(Executor self, Call call) except -1:
    """exit_actor() was called in this call. Blocks until the head has written down that the actor is dead.

    The head first: who hears that the actor has left may want its name, or its resources, at once; and whatever dies
    next, the actor must not come back then. If its node ends meanwhile nobody hears anything: to others it has died like
    any other, in the middle of this call."""
    try:
        self.engine.rpc("actor_exiting", self.actor_id, "exit_actor() was called", timeout=None)
    except Exception as error:
        if self.engine.node.alive:  # the cluster has ended, and this node ends with it
            print(f"ray: exit_actor() was not taken note of: {error}", file=sys.stderr)
    else:
        answer_error(self, call, exceptions.ActorDiedError(f"the actor {self.actor_name()} has left by exit_actor()"), 0)
    self.on_exit()
    return 0


# ------------------------------------------------------------------ concurrency groups

cdef int make_groups(Executor self, dict spec) except -1:
    """The groups of this actor. None, if its calls run one by one."""
    cdef CallGroup group
    cdef dict limits = dict(spec.get("concurrency_groups") or {})
    if spec["is_async"]:
        self.loop = ActorLoop(self)
    elif spec["max_concurrency"] <= 1 and not limits:
        return 0
    limits[""] = spec["max_concurrency"]
    self.groups = {}
    for name, limit in limits.items():
        group = CoroutineGroup.__new__(CoroutineGroup) if spec["is_async"] else ThreadGroup.__new__(ThreadGroup)
        group.executor, group.name, group.limit = self, name, limit
        self.groups[name] = group
    return 0


cdef CallGroup group_of(Executor self, Function function):
    """Where calls of the function run. Those that name a group which is not there run in the default one, and fail there."""
    if function.group is None:
        function.group = self.groups.get(function.group_name)
        if function.group is None:
            return self.groups[""]
    return function.group


cdef object no_such_group(Executor self, Function function):
    known = ", ".join(repr(name) for name in self.groups if name) or "none"
    return ValueError(f"concurrency_group={function.group_name!r}: the actor {self.actor_name()} was created with concurrency_groups "
                      f"of these names: {known}")


cdef class CallGroup:
    cdef int put(self, Call call) except -1:
        """Runs the call when its turn has come."""
        raise NotImplementedError


cdef class ThreadGroup(CallGroup):
    """Calls in threads, which are started one by one, when a call finds none idle; they end with the process."""

    def __cinit__(self):
        import queue
        self.queue = queue.SimpleQueue()

    cdef int put(self, Call call) except -1:
        """Any receiving thread."""
        self.queue.put(call)
        if self.started < self.limit and self.queue.qsize() > self.idle:
            self.started += 1
            self.idle += 1
            name = f"ray-actor-{self.name}-{self.started}" if self.name else f"ray-actor-{self.started}"
            threading.Thread(target=self.run, daemon=True, name=name).start()
        return 0

    def run(self):
        cdef Executor executor = self.executor
        cdef Call call
        while not executor.stopping:
            call = self.queue.get()
            self.idle -= 1
            if call.link.alive and not call.answered:
                executor.context_var.set(call)
                run_beside(executor, call)
                executor.context_var.set(None)
            executor.running.pop((call.link, call.seq), None)
            call = None
            self.idle += 1


cdef int run_beside(Executor self, Call call) except -1:
    call.started_ns = NowNs()
    call.running = True
    if call.function.time_limit_ns:
        limit_thread(self, call)
    try:
        if call.function.group is None:
            raise no_such_group(self, call.function)
        parts = self.arguments(call)
        value = parts[0](*parts[1], **(parts[2] or {}))
        parts = None
        if yields(call, value):
            value = run_generator(self, call, value)
        call.running = None
        answer(self, call, value)
        record(self, call, "FINISHED")
    except _ActorExit:
        call.running = None
        leave_actor(self, call)
    except BaseException as error:
        call.running = None
        if call.cancelled and isinstance(error, KeyboardInterrupt):
            answer_stopped(self, call)
        else:
            answer_error(self, call, error, 0)
    return 0
