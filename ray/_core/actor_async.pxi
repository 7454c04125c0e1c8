# An asyncio actor: the worker's main thread runs one event loop, which also receives. Included by engine.pyx. PROCESS worker.
#
# The engine's poller is one of the loop's readers, so frames are read between two callbacks, and results leave together at the
# end of an iteration. While a coroutine blocks the loop, the background thread receives; the calls that it reads wait for the
# loop in executor.queue, through which all calls go, so that their order is that of their arrival.
#
# A call of an `async def` is a task of the loop. A plain method is one callback of it, nothing more (measured: a task costs
# 2.8 us, a callback 1 us); it takes its place behind the tasks that were started before it. Each has a context of its own, in
# which context_var is the Call.

cdef class CoroutineGroup(CallGroup):
    def __dealloc__(self):
        while not self.waiting.empty():
            Py_DECREF(<object>self.waiting.front())
            self.waiting.pop_front()

    cdef int put(self, Call call) except -1:
        """The loop's thread."""
        if self.running < self.limit:
            self.running += 1
            return self.executor.loop.start(call)
        Py_INCREF(call)
        self.waiting.push_back(<void*>call)
        return 0

    cdef int ended(self) except -1:
        """A call is over: the next one may start."""
        cdef Call call
        while not self.waiting.empty():
            call = <Call>self.waiting.front()
            self.waiting.pop_front()
            Py_DECREF(call)
            if self.executor.loop.is_wanted(call):
                return self.executor.loop.start(call)
        self.running -= 1
        return 0


cdef class ActorLoop:
    def __init__(self, Executor executor):
        import asyncio
        import contextvars
        self.executor = executor
        self.cancelled_error = asyncio.CancelledError
        self.clean_context = contextvars.copy_context()
        self.loop = asyncio.SelectorEventLoop(patient_selector(executor.engine))
        asyncio.set_event_loop(self.loop)
        self.loop.add_reader(executor.engine.poller.fd(), self.receive)

    def initialize(self, actor, args, kwargs):
        """Runs __init__, a plain one or a coroutine, on the loop: it may start tasks that live as long as the actor."""
        async def run():
            made = actor.__init__(*args, **kwargs)
            if hasattr(made, "__await__"):
                await made

        self.loop.run_until_complete(run())

    def serve(self):
        """Receives and runs coroutines until the loop is stopped. Main thread."""
        cdef Engine engine = self.executor.engine
        engine.enter()
        try:
            self.loop.call_soon(self.receive)
            self.loop.run_forever()
        finally:
            self.loop.remove_reader(engine.poller.fd())
            engine.leave()

    def receive(self):
        cdef Engine engine = self.executor.engine
        if not engine.receiving:
            self.taking = True
            try:
                poll_events(engine, 0)
            finally:
                self.taking = False
        if not engine.node.alive:
            self.executor.on_exit()
        self.take_calls()
        engine.flush_dirty()

    def take_calls(self):
        cdef Executor executor = self.executor
        cdef Call call
        while not executor.queue.empty():
            call = <Call>executor.queue.front()
            executor.queue.pop_front()
            Py_DECREF(call)
            if self.is_wanted(call):
                group_of(executor, call.function).put(call)

    cdef bint is_wanted(self, Call call) except -1:
        """False, and it is forgotten: its caller has died, or has cancelled it."""
        if call.link.alive and not call.answered:
            return True
        self.executor.running.pop((call.link, call.seq), None)
        return False

    # ------------------------------------------------------------------ a call
    cdef int start(self, Call call) except -1:
        # From the clean context: this one may be that of a call which has just ended.
        if is_plain_method(self.executor, call.function):
            self.loop.call_soon(self.run_plain, call, context=self.clean_context.copy())
        else:
            call.running = self.clean_context.run(self.loop.create_task, self.run(call))
        return 0

    async def run(self, Call call):
        try:
            value = self.begin(call)
            if hasattr(value, "__await__"):
                value = await value
            if yields(call, value):
                value = await run_generator_in_loop(self, call, value)
            self.succeeded(call, value)
        except BaseException as error:
            self.failed(call, error)

    def run_plain(self, Call call):
        if not self.is_wanted(call):
            return (<CoroutineGroup>group_of(self.executor, call.function)).ended()
        try:
            value = self.begin(call)
            if hasattr(value, "__await__") or yields(call, value):
                call.running = self.loop.create_task(self.run_returned(call, value))
            else:
                self.succeeded(call, value)
        except BaseException as error:
            self.failed(call, error)

    async def run_returned(self, Call call, value):
        """What a plain method returned turned out to be a coroutine, as it does under many a decorator, or a generator."""
        try:
            if hasattr(value, "__await__"):
                value = await value
            if yields(call, value):
                value = await run_generator_in_loop(self, call, value)
            self.succeeded(call, value)
        except BaseException as error:
            self.failed(call, error)

    cdef object begin(self, Call call):
        cdef Executor executor = self.executor
        executor.context_var.set(call)
        if call.cancelled:
            raise self.cancelled_error()
        call.started_ns = NowNs()
        if call.function.time_limit_ns:
            call.timer = self.loop.call_later(call.function.time_limit_ns / 1e9, self.time_is_over, call)
        if call.function.group is None:
            raise no_such_group(executor, call.function)
        parts = executor.arguments(call)
        return parts[0](*parts[1]) if parts[2] is None else parts[0](*parts[1], **parts[2])

    cdef int succeeded(self, Call call, value) except -1:
        if call.timed_out:
            answer_stopped(self.executor, call)
        else:
            answer(self.executor, call, value)  # raises if the value can't be encoded: then the call fails
            record(self.executor, call, "FINISHED")
        return self.ended(call)

    cdef int failed(self, Call call, error) except -1:
        if isinstance(error, _ActorExit):
            leave_actor(self.executor, call)
        elif call.timed_out or (call.cancelled and isinstance(error, (self.cancelled_error, KeyboardInterrupt))):
            answer_stopped(self.executor, call)
        else:
            answer_error(self.executor, call, error, 0)
        return self.ended(call)

    cdef int ended(self, Call call) except -1:
        if call.timer is not None:
            call.timer.cancel()
            call.timer = None
        call.running = None
        self.executor.running.pop((call.link, call.seq), None)
        return (<CoroutineGroup>group_of(self.executor, call.function)).ended()

    def time_is_over(self, Call call):
        call.timed_out = True
        cancel_children(self.executor.engine, parent_of(call.link, call.seq), C_RECURSIVE)
        if call.running is not None:
            call.running.cancel()
        call.timer = self.loop.call_later(grace_of(self.executor) / 1e9, self.give_up, call)

    def give_up(self, Call call):
        """It has ignored the CancelledError. It may go on, but nobody waits for it any more."""
        answer_stopped(self.executor, call)

    # ------------------------------------------------------------------ from any thread
    cdef int wake(self) except -1:
        """Calls were queued outside receive: by another thread, or by a get that blocks the loop."""
        self.loop.call_soon_threadsafe(self.take_calls)
        return 0

    cdef int cancel(self, Call call) except -1:
        self.loop.call_soon_threadsafe(self.cancel_running, call)
        return 0

    def cancel_running(self, Call call):
        if call.running is None:
            return
        if call.recursive:
            # Also those made since the cancel came: a step of the coroutine may have been due before this.
            cancel_children(self.executor.engine, parent_of(call.link, call.seq), C_RECURSIVE)
        call.running.cancel()

    cdef int stop(self) except -1:
        self.loop.call_soon_threadsafe(self.loop.stop)
        return 0

    # ------------------------------------------------------------------ answers
    cdef int flush_soon(self, Link link) except -1:
        """The answer leaves with those of the other calls of this iteration."""
        if <unsigned long>get_ident() != self.executor.main_thread:
            return link.flush()
        if not link.dirty:
            link.dirty = True
            self.executor.engine.dirty.append(link)
        if not self.flush_scheduled:
            self.flush_scheduled = True
            self.loop.call_soon(self.flush)
        return 0

    def flush(self):
        self.flush_scheduled = False
        self.executor.engine.flush_dirty()


cdef bint is_plain_method(Executor self, Function function) except -1:
    """Its method is a `def`: a call of it is over when it returns."""
    if function.plain < 0:
        target = self.bound.get(function.name)
        code = getattr(target, "__code__", None)
        if code is None:
            code = getattr(getattr(self.actor, function.name, None), "__code__", None)
        function.plain = code is not None and not code.co_flags & 0x380  # CO_COROUTINE and its kin
    return function.plain


def patient_selector(Engine engine):
    """A selector that looks for the next call for a moment before it sleeps (cpp/channel/spin.h)."""
    import selectors

    class PatientSelector(selectors.EpollSelector):
        def select(selector, timeout=None):
            if timeout is None or timeout > 0:
                spin(engine)
            return selectors.EpollSelector.select(selector, timeout)

    return PatientSelector()


cdef int spin(Engine engine) except -1:
    with nogil:
        engine.spin.Ready(deref(engine.poller))
    return 0
