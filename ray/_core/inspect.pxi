# What this process has asked for, runs and holds: told to people and tools through the node. Included by engine.pyx.
#
# Calls record nothing for it. Queues, calls in flight and refs are walked when the question comes, by the thread that receives,
# under the GIL: an answer is one moment of this process. Counts are exact; of rows there are at most as many as were asked for.
# The reports that go out by themselves, at most one each EVENTS_NS and none when nothing happened, are here too: what ran
# (send_events), calls that failed without running, and constructors (send_others), and whatever `reporters` have to say (metrics).

cdef bytes task_id_of(Engine self, uint64_t seq):
    return self.tag + int(seq).to_bytes(8, "little")


cdef str kind_of(Callee callee):
    return "actor_task" if isinstance(callee, ActorMethod) else "task"


cdef bint is_unlisted(Callee callee):
    """Whether enable_task_events=False: it is in no list and no count."""
    return callee.settings is not None and callee.settings.get("unlisted", False)


cdef str name_of(Callee callee):
    if isinstance(callee, ActorMethod):
        return f"{(<ActorMethod>callee).actor.class_name}.{callee.name}"
    return callee.name


# ------------------------------------------------------------------ reports that go out by themselves

cdef int report(Engine self) except -1:
    """Says what happened since the last report. Not for user code's threads only: it runs in a round of receiving, too."""
    self.deadline_events_ns = 0
    if not self.node.alive or self.closed:
        return 0
    if self.executor is not None:
        send_events(self.executor)
    send_others(self)
    for reporter in self.reporters:
        reporter()
    return 0


cdef int report_soon(Engine self) except -1:
    if self.deadline_events_ns == 0:
        self.set_deadline(D_EVENTS, NowNs() + EVENTS_NS)
    return 0


cdef int record(Executor self, Call call, str state, object error=None) except -1:
    """A call has run. Each is counted; of a burst, only the first EVENTS_MAX are remembered one by one."""
    cdef Function function = call.function
    if function.unlisted:
        return 0
    if not function.counted:
        function.counted = True
        self.counted.append(function)
    if state == "FINISHED":
        function.ended_well += 1
    elif state == "FAILED":
        function.failed += 1
    else:
        function.cancelled += 1
    if PyList_GET_SIZE(self.events) < EVENTS_MAX:
        self.events.append((call.link.tag, call.seq, shown(self, function), call.started_ns, NowNs(), state,
                            (<TaskHeader*>PyBytes_AS_STRING(call.frame)).attempt, None if error is None else describe(error)))
    return report_soon(self.engine)


def describe(error):
    try:
        return f"{type(error).__name__}: {error}"[:512]
    except Exception:
        return type(error).__name__


cdef str shown(Executor self, Function function):
    """By which its calls are listed."""
    if function.title is not None:
        return function.title
    return function.name if self.actor is None else f"{self.class_name}.{function.name}"


cdef int send_events(Executor self) except -1:
    cdef int64_t now = NowNs()
    cdef double wall = time.time()
    cdef Function function
    events, self.events = self.events, []
    counted, self.counted = self.counted, []
    if not counted or not self.engine.node.alive:
        return 0
    fields = {"kind": "task" if self.actor is None else "actor_task", "pid": os.getpid(), "worker": self.engine.tag}
    if self.actor_id is not None:
        fields["actor_id"] = self.actor_id
    counts = []
    for function in counted:
        function.counted = False
        counts += [(shown(self, function), fields["kind"], state, n) for state, n in (
            ("FINISHED", function.ended_well), ("FAILED", function.failed), ("CANCELLED", function.cancelled)) if n]
        function.ended_well = function.failed = function.cancelled = 0
    self.engine.event("task_events", [
        (tag + int(seq).to_bytes(8, "little"), state, wall - (now - ended) / 1e9,
         dict(fields, name=name, attempt=attempt, error=error, times={"RUNNING": wall - (now - started) / 1e9}))
        for tag, seq, name, started, ended, state, attempt, error in events], counts)
    return 0


cdef int note_failure(Engine self, Task task, object error) except -1:
    """A call of ours has failed that no worker has answered, so none has told the node."""
    cdef str state = "CANCELLED" if isinstance(error, exceptions.TaskCancelledError) else "FAILED"
    if self.closed or self.node is None or not self.node.alive or is_unlisted(task.callee):
        return 0
    key = (name_of(task.callee), kind_of(task.callee), state)
    self.other_counts[key] = self.other_counts.get(key, 0) + 1
    if PyList_GET_SIZE(self.other_events) < EVENTS_MAX:
        text = f"{type(error).__name__}: {error}" if isinstance(error, BaseException) else "an argument failed"
        self.other_events.append((task_id_of(self, task.seq), state, time.time(),
                              {"name": key[0], "kind": key[1], "attempt": task.attempt, "error": text}))
    return report_soon(self)


cdef int note_creation(Executor self, object error) except -1:
    """__init__ of the actor that this process becomes has ended. Its id: the actor's, and which of its processes this is."""
    cdef Engine engine = self.engine
    cdef str state = "FINISHED" if error is None else "FAILED"
    if self.creation["calls"].get("unlisted", False):
        return 0
    key = (f"{self.class_name}.__init__", "actor_creation", state)
    engine.other_counts[key] = engine.other_counts.get(key, 0) + 1
    fields = {"name": key[0], "kind": key[1], "pid": os.getpid(), "worker": engine.tag, "actor_id": self.actor_id,
              "attempt": self.incarnation, "times": {"RUNNING": self.init_started_s}}
    if error is not None:
        fields["error"] = describe(error)
    engine.other_events.append((self.actor_id + self.incarnation.to_bytes(8, "little"), state, time.time(), fields))
    return report_soon(engine)


cdef int send_others(Engine self) except -1:
    if not self.other_counts:
        return 0
    events, self.other_events = self.other_events, []
    counts, self.other_counts = self.other_counts, {}
    self.event("task_events", events, [(*key, n) for key, n in counts.items()])
    return 0


# ------------------------------------------------------------------ answers

cdef dict inspect_tasks(Engine self, Py_ssize_t rows_max):
    """{"counts": {(name, kind, state): number}, "rows": [...]} of calls made here and not finished, and of those that run here."""
    cdef dict counts = {}
    cdef list rows = []
    cdef Task task
    cdef Call call
    cdef str state
    for task in unfinished(self):
        if is_unlisted(task.callee):
            continue
        if task.deps > 0:
            state = "PENDING_ARGS_AVAIL"
        elif task.state == SENT:
            state = "SUBMITTED_TO_WORKER"
        else:
            state = "PENDING_NODE_ASSIGNMENT"
        key = (name_of(task.callee), kind_of(task.callee), state)
        counts[key] = counts.get(key, 0) + 1
        if PyList_GET_SIZE(rows) < rows_max:
            rows.append({
                "task_id": task_id_of(self, task.seq).hex(), "name": key[0], "kind": key[1], "state": state,
                "attempt": task.attempt, "resources": callee_resources(task.callee),
                "actor_id": (<ActorMethod>task.callee).actor.actor_id.hex() if key[1] == "actor_task" else None,
                "worker": task.link.tag.hex() if task.link is not None else None})
    if self.executor is not None:
        now, wall = NowNs(), time.time()
        for call in calls_running(self.executor):
            if call.function.unlisted:
                continue
            key = (name_here(self.executor, call), "task" if self.executor.actor is None else "actor_task", "RUNNING")
            counts[key] = counts.get(key, 0) + 1
            if PyList_GET_SIZE(rows) < rows_max:
                rows.append({
                    "task_id": (call.link.tag + int(call.seq).to_bytes(8, "little")).hex(), "name": key[0], "kind": key[1],
                    "state": "RUNNING", "attempt": (<TaskHeader*>PyBytes_AS_STRING(call.frame)).attempt,
                    "resources": call.function.resources if self.executor.actor is None else {},
                    "actor_id": self.executor.actor_id.hex() if self.executor.actor_id is not None else None,
                    "worker": self.tag.hex(), "pid": os.getpid(), "started_s": wall - (now - call.started_ns) / 1e9})
    return {"counts": counts, "rows": rows}


cdef str name_here(Executor self, Call call):
    return call.function.name if self.actor is None else f"{self.class_name}.{call.function.name}"


cdef list calls_running(Executor self):
    """Those that user code runs at this moment: on the main thread, in threads, or as coroutines."""
    cdef Call call
    cdef list out = [call for call in self.running.values() if call.started_ns]
    if self.current is not None and self.current.function is not None:
        out.append(self.current)
    return out


cdef dict callee_resources(Callee callee):
    return (<TaskTemplate>callee).resources if isinstance(callee, TaskTemplate) else {}


cdef list unfinished(Engine self):
    """Every call made here whose result is not there: those that wait for arguments, queue, or were sent."""
    cdef set found = set()
    cdef Task task
    cdef ObjectRef ref
    cdef LeasePool pool
    cdef ActorLine actor
    cdef Link link
    cdef CallMap.iterator at
    cdef size_t i
    for link in self.links.values():
        at = link.calls.begin()
        while at != link.calls.end():
            found.add(<Task>deref(at).second)
            inc(at)
    for pool in self.pools.values():
        for i in range(pool.queue.size()):
            found.add(<Task>pool.queue[i])
    for weak in list(self.actors.values()):
        actor = weak()
        if actor is not None:
            found.update(actor.lost)
            for i in range(actor.queue.size()):
                found.add(<Task>actor.queue[i])
    for ref in references.all_refs():
        if ref.waiters is not None:
            for waiter in (ref.waiters if type(ref.waiters) is list else (ref.waiters,)):
                if isinstance(waiter, Task):
                    found.add(waiter)
    return sorted([task for task in found if task.state != FINISHED], key=task_order)


cdef dict inspect_objects(Engine self, Py_ssize_t rows_max):
    """{"total": number of refs here, "bytes": of the values in this process's memory, "rows": [...]}, largest first."""
    cdef list refs = references.all_refs()
    cdef list rows = []
    cdef Py_ssize_t total
    cdef dict captured = {}, pinned = {}, lent = {}
    cdef ObjectRef ref, inner
    cdef Task task
    cdef int64_t size, total_bytes = 0
    cdef Py_ssize_t local
    states = ("PENDING", "VALUE", "BLOB", "PLASMA", "FAILED")
    for ref in refs:
        if ref.contained is not None:
            for inner in ref.contained:
                captured[inner] = captured.get(inner, 0) + 1
    for task in unfinished(self):
        for inner in [x for x in (task.slots or ()) if type(x) is ObjectRef] + (task.pins or []):
            pinned[inner] = pinned.get(inner, 0) + 1
    task = None
    for held in self.borrowers.values():
        for inner in held:
            lent[inner] = lent.get(inner, 0) + 1
    inner = None
    sized = []
    for ref in refs:
        size = ref.size
        if ref.state == VALUE:
            size = sys.getsizeof(ref.value)
        if ref.state != PLASMA:
            total_bytes += size
        sized.append((size, ref))
    if PyList_GET_SIZE(sized) > rows_max:
        sized.sort(key=size_of, reverse=True)
        del sized[rows_max:]
    total = PyList_GET_SIZE(refs)
    refs = None
    for size, ref in sized:
        # What remains of Python's count, without ours: `sized` and `ref` here, containers, calls, and who has borrowed it.
        local = Py_REFCNT(ref) - 2
        for table in (captured, pinned, lent):
            if ref in table:
                local -= 1 + <Py_ssize_t>table[ref]  # a key of `table`, and each place that it counts
        rows.append({
            "object_id": ref.hex(), "owned": bool(ref.owned), "state": states[ref.state], "size": size,
            "local": max(0, local), "captured": captured.get(ref, 0), "in_calls": pinned.get(ref, 0),
            "lent": lent.get(ref, 0), "pinned": bool(ref.pinned), "is_handle": ref.hold is not None,
            "is_error": bool(ref.is_error) or ref.state == FAILED, "site": ref.site,
            "lineage": ref.producer is not None and ref.state == PLASMA})
    return {"total": total, "bytes": total_bytes, "rows": rows}


def size_of(item):
    return item[0]


cdef int on_inspect(Engine self, uint64_t request, str what, Py_ssize_t rows_max) except -1:
    """The node passes on a question: what has happened is reported first, so the asker finds it there."""
    report(self)
    head, rows = {}, []
    if what == "tasks":
        head = inspect_tasks(self, rows_max)
    elif what == "objects":
        head = inspect_objects(self, rows_max)
    rows = head.pop("rows", rows)
    self.event("inspected", request, pickle.dumps(head), pickle.dumps(rows))
    return 0
