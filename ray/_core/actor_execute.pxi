# Becoming an actor and ceasing to be one, and actors whose calls run in threads. Included by engine.pyx. PROCESS worker.
#
# The node's become_actor makes this worker an actor, for good: start_actor, on the main thread. Then calls run on the main
# thread one by one (execute.pxi); with max_concurrency > 1 in a ThreadGroup; on an async actor's loop (actor_async.pxi).

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
        self.actor = cls.__new__(cls)
        self.actor.__init__(*parts[1], **(parts[2] or {}))
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
            if owner is not None:
                all_of.left += 1
                send_borrow(self.engine, <Link>owner, ref, all_of)
    call.met = None
    ref = None
    await_counted(self, all_of)
    if spec["is_async"]:
        self.loop = ActorLoop(self, spec["max_concurrency"] or 1000)
    elif spec["max_concurrency"] > 1:
        self.threads = ThreadGroup(self, spec["max_concurrency"])
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
    """exit_actor() was called in this call."""
    # The node first: who hears that the actor has left may want its name, or its resources, at once.
    self.engine.event("actor_exiting", self.actor_id, "exit_actor() was called")
    answer_error(self, call, exceptions.ActorDiedError(f"the actor {self.actor_name()} has left by exit_actor()"), 0)
    self.on_exit()
    return 0


cdef class ThreadGroup:
    """Threads that run calls in the order of their arrival, as many at a time as there are threads.

    They are started one by one, when a call finds none idle; they end with the process.
    """

    def __init__(self, Executor executor, int limit):
        import queue
        self.executor, self.limit = executor, limit
        self.queue = queue.SimpleQueue()

    cdef int put(self, Call call) except -1:
        """Any receiving thread."""
        self.executor.running[(call.link, call.seq)] = call
        self.queue.put(call)
        if self.started < self.limit and self.queue.qsize() > self.idle:
            self.started += 1
            self.idle += 1
            threading.Thread(target=self.run, daemon=True, name=f"ray-actor-{self.started}").start()
        return 0

    def run(self):
        cdef Executor executor = self.executor
        cdef Call call
        while not executor.stopping:
            call = self.queue.get()
            self.idle -= 1
            executor.context_var.set(call)
            run_beside(executor, call)
            executor.context_var.set(None)
            call = None
            self.idle += 1


cdef int run_beside(Executor self, Call call) except -1:
    call.started_ns = NowNs()
    call.running = get_ident()
    try:
        if call.cancelled:
            raise KeyboardInterrupt
        parts = self.arguments(call)
        value = parts[0](*parts[1], **(parts[2] or {}))
        parts = None
        if yields(call):
            value = run_generator(self, call, value)
        answer(self, call, value)
        record(self, call, "FINISHED")
    except _ActorExit:
        leave_actor(self, call)
    except BaseException as error:
        if call.cancelled and not isinstance(error, Exception):
            answer_cancelled(self, call)
        else:
            answer_error(self, call, error, 0)
    finally:
        self.running.pop((call.link, call.seq), None)
    return 0
