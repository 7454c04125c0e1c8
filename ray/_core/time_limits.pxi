# timeout_s: a call that runs longer is interrupted, and then ended by force. Included by engine.pyx. PROCESS worker; the last part
# in the caller.
#
# The time begins when the call does, arguments and all; waiting is not counted. What ends it depends on where it runs:
#   main thread   CallAlarm: KeyboardInterrupt at the limit; grace later the process dies of TIME_LIMIT_SIGNAL, and whoever
#                 asks for the cause of that death hears TIME_LIMIT_CAUSE
#   thread        can't be interrupted: its caller is answered at the limit, and what it returns later is dropped
#   coroutine     CancelledError at the limit (actor_async.pxi); grace later its caller is answered, whatever it does

from ray._protocol.frames import TIME_LIMIT_CAUSE, TIME_LIMIT_SIGNAL


cdef int64_t grace_of(Executor self) except -1:
    if self.grace_ns < 0:
        from ray._config import Settings
        self.grace_ns = <int64_t>(Settings(self.engine.info.get("settings")).timeout_grace_s * 1e9)
    return self.grace_ns


cdef int set_alarm(Executor self, Call call) except -1:
    """The call on the main thread begins."""
    call.limit_ns = call.started_ns + call.function.time_limit_ns
    if not self.alarm.Arm(call.limit_ns, call.limit_ns + grace_of(self), TIME_LIMIT_SIGNAL):
        raise OSError("timeout_s: the kernel has no timer left (see RLIMIT_SIGPENDING)")
    return 0


cdef int limit_thread(Executor self, Call call) except -1:
    """A call in a thread begins."""
    import heapq
    call.limit_ns = call.started_ns + call.function.time_limit_ns
    self.limits_set += 1
    heapq.heappush(self.limits, (call.limit_ns, self.limits_set, call))
    return self.engine.set_deadline(D_LIMITS, self.limits[0][0])


cdef int on_limits_timer(Executor self, int64_t now) except -1:
    import heapq
    cdef Call call
    while self.limits and self.limits[0][0] <= now:
        call = heapq.heappop(self.limits)[2]
        if call.running is not None:
            call.timed_out = True
            # After the round: what it has kept of its arguments may have to be registered first, which waits.
            self.engine.callbacks.append((answer_timed_out, (self, call)))
    if self.limits:
        self.engine.set_deadline(D_LIMITS, self.limits[0][0])
    return 0


def answer_timed_out(Executor self, Call call):
    cancel_children(self.engine, parent_of(call.link, call.seq), C_RECURSIVE)
    answer_stopped(self, call)
    call.link.flush()


# ------------------------------------------------------------------ the caller's side

cdef inline bint has_limit(Task task):
    return task.callee.settings is not None and "timeout_s" in task.callee.settings


cdef object ended_by_limit(Task task, object cause):
    """The TaskTimeoutError of a call whose worker died of `cause` while it ran; None: it was something else."""
    if not has_limit(task) or type(cause) is not str or TIME_LIMIT_CAUSE not in <str>cause:
        return None
    limit_s = task.callee.settings["timeout_s"]
    return exceptions.TaskTimeoutError(
        f"{task.callee.name}() ran longer than its timeout_s={limit_s:g} and did not react to the interruption: its process was ended")
