# An asyncio actor: the worker's main thread runs one event loop, which also receives. Included by engine.pyx. PROCESS worker.
#
# Each call is a task of the loop; at most `limit` of them run at a time. The engine's poller is one of the loop's readers, so
# frames are read between two callbacks, and results leave together at the end of an iteration. While a coroutine blocks
# the loop, the background thread receives; the calls that it reads wait for the loop.

cdef class ActorLoop:
    def __init__(self, Executor executor, int limit):
        import asyncio
        self.executor, self.limit = executor, limit
        self.loop = asyncio.SelectorEventLoop(patient_selector(executor.engine))

    def serve(self):
        """Receives and runs coroutines until the loop is stopped. Main thread."""
        import asyncio
        cdef Engine engine = self.executor.engine
        loop = self.loop
        asyncio.set_event_loop(loop)
        self.semaphore = asyncio.Semaphore(self.limit)
        engine.enter()
        loop.add_reader(engine.poller.fd(), self.receive)
        try:
            loop.call_soon(self.receive)
            loop.run_forever()
        finally:
            loop.remove_reader(engine.poller.fd())
            engine.leave()

    def receive(self):
        cdef Engine engine = self.executor.engine
        if not engine.receiving:
            poll_events(engine, 0)
        if not engine.node.alive:
            self.executor.on_exit()
        self.start_coroutines()
        engine.flush_dirty()

    def start_coroutines(self):
        cdef Executor executor = self.executor
        cdef Call call
        while not executor.queue.empty():
            call = <Call>executor.queue.front()
            executor.queue.pop_front()
            Py_DECREF(call)
            executor.running[(call.link, call.seq)] = call
            call.running = self.loop.create_task(self.run(call))

    async def run(self, Call call):
        import asyncio
        cdef Executor executor = self.executor
        executor.context_var.set(call)
        try:
            if self.semaphore.locked():
                async with self.semaphore:
                    await self.run_now(call)
            else:
                await self.semaphore.acquire()
                try:
                    await self.run_now(call)
                finally:
                    self.semaphore.release()
        except _ActorExit:
            leave_actor(executor, call)
        except BaseException as error:
            if call.cancelled and isinstance(error, (asyncio.CancelledError, KeyboardInterrupt)):
                answer_cancelled(executor, call)
            else:
                answer_error(executor, call, error, 0)
        finally:
            executor.running.pop((call.link, call.seq), None)

    async def run_now(self, Call call):
        call.started_ns = NowNs()
        parts = self.executor.arguments(call)
        value = parts[0](*parts[1], **(parts[2] or {}))
        parts = None
        if hasattr(value, "__await__"):
            value = await value
        if yields(call):
            value = await run_generator_in_loop(self, call, value)
        answer(self.executor, call, value)
        record(self.executor, call, "FINISHED")

    # ------------------------------------------------------------------ from any thread
    cdef int wake(self) except -1:
        """Calls were queued by another thread than the loop's."""
        self.loop.call_soon_threadsafe(self.start_coroutines)
        return 0

    cdef int cancel(self, Call call) except -1:
        self.loop.call_soon_threadsafe(call.running.cancel)
        return 0

    cdef int stop(self) except -1:
        self.loop.call_soon_threadsafe(self.loop.stop)
        return 0

    # ------------------------------------------------------------------ answers (the loop's thread)
    cdef int flush_soon(self, Link link) except -1:
        """The answer leaves with those of the other calls of this iteration."""
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
