# The round: wait for events, read frames, hand each to its part, wake whoever waits. Included by engine.pyx.
#
# At most one thread has the receiver's role (engine.receiving). Others that wait sleep on the gate and look again after each
# round. User code never runs inside a round: callbacks are collected and run after the role was given up.

cdef int LISTENER_KEY = 1


cdef inline int64_t ms_until(int64_t deadline_ns) noexcept:
    """Milliseconds for a wait, rounded up; -1 if there is no deadline."""
    cdef int64_t left
    if deadline_ns < 0:
        return -1
    left = deadline_ns - NowNs()
    return 0 if left <= 0 else (left + 999_999) // 1_000_000


cdef class _Listener:
    """The socket on which other processes of the session reach this one."""
    cdef unique_ptr[CListener] socket


cdef int accept_links(Engine self) except -1:
    cdef int fd
    while True:
        fd = (<_Listener>self.listener).socket.get().Accept()
        if fd < 0:
            return 0
        take_connection(self, fd)


cdef int take_connection(Engine self, int fd) except -1:
    """Goes on with an accepted socket: one of our own, or one that the node accepted for us."""
    cdef Link link
    cdef unique_ptr[CConnection] conn = CConnection.Adopt(fd, self.identity)
    if not conn.get().alive():
        return refused(self, conn.get(), conn.get().why_closed())
    link = Link.__new__(Link)
    link.engine, link.conn = self, conn.release()
    self.add_link(link)
    if self.deadline_hello_ns == 0:
        self.set_deadline(D_HELLO, link.conn.hello_deadline_ns())
    return 0


cdef int adopt_passed(Engine self, Link link) except -1:
    """The node brought a connection over TCP that it accepted for us (cpp/channel/handoff.h); its own has done its duty."""
    cdef int fd = link.conn.TakePassed()
    cdef bint of_node = self.node is not None and link.conn.peer_pid() == self.node.conn.peer_pid()
    link.alive = False
    self.poller.Remove(link.conn.fd())
    self.links.pop(link.key, None)
    link.conn.Close("it has handed over its connection")
    if of_node:
        return take_connection(self, fd)
    os.close(fd)
    return refused(self, link.conn, "only the node may hand over connections")


cdef int refused(Engine self, CConnection* conn, const char* why) except -1:
    peer = f"process {conn.peer_pid()}" if conn.peer_pid() else "another machine"
    print(f"ray: a connection from {peer} was refused: {why.decode()}", file=sys.stderr)
    return 0


cdef int close_silent_links(Engine self, int64_t now) except -1:
    """Strangers that connected and never proved themselves."""
    cdef Link link
    cdef int64_t next_ns = 0
    for link in list(self.links.values()):
        if link.dialed or link.conn.hello_deadline_ns() == 0:
            continue
        if now >= link.conn.hello_deadline_ns():
            read_link(self, link)  # it may have come while this process stood still
            if not link.alive:
                continue
        if link.conn.CloseIfLate(now):
            self.link_closed(link)
        elif next_ns == 0 or link.conn.hello_deadline_ns() < next_ns:
            next_ns = link.conn.hello_deadline_ns()
    self.deadline_hello_ns = next_ns
    return 0


cdef int read_link(Engine self, Link link) except -1:
    """Reads what is there, hands out whole frames. A malformed frame or a dead peer closes the link.
    1: there may be more."""
    cdef Frame frame
    cdef int got
    cdef int rounds = 0
    while rounds < 16:  # a peer that never stops must not keep the others waiting
        rounds += 1
        got = link.conn.Fill()
        if not link.tag and link.conn.greeted():
            if link.conn.peer_role() == kRoleHandoff:
                adopt_passed(self, link)
                return 0
            greet(self, link)
        while link.conn.Next(&frame):
            if on_frame(self, link, &frame) < 0:
                link.conn.Close("malformed frame")
                self.report_bad_peer(link, frame.type)
                self.link_closed(link)
                return 0
        if got < 0:
            if not dial_again(self, link):
                self.link_closed(link)
            return 0
        if link.conn.pending_bytes() and not link.want_write and not link.dirty:
            link.flush()
        if got < 65536 - 4096:
            return 0
    return 1


cdef int greet(Engine self, Link link) except -1:
    link.tag = (<const char*>link.conn.peer_tag())[:16]
    link.role = link.conn.peer_role()
    if link is not self.node and link.of_node is None and link.tag not in self.peers:
        self.peers[link.tag] = link
    return 0


cdef int on_frame(Engine self, Link link, Frame* frame) except -2:
    """0, or -1 for a frame that makes no sense."""
    cdef uint8_t t = frame.type
    cdef Reader r = Reader(frame.data, frame.size)
    if t == F_RESULT:
        on_result(self, link, &r, frame.flags)
    elif t == F_TASK:
        if self.executor is None:
            return -1
        return self.executor.on_task(link, frame.data, frame.size, frame.flags)
    elif t == F_RETURNED:
        on_returned(self, link, &r, frame.flags)
    elif t == F_HAVE:
        link.holds.pop(r.U64(), None)
    elif t == F_FUNCTION:
        on_function(self, link, &r)
    elif t == F_EVENT or t == F_REPLY:
        if link is not self.node and link.of_node is None:
            return -1
        on_control(self, link.of_node, t, (<const char*>frame.data)[:frame.size])
    elif t == F_CANCEL:
        if self.executor is None:
            return -1
        self.executor.on_cancel(link, r.U64(), frame.flags)
    elif t == F_GET:
        on_get(self, link, &r, frame.flags)
    elif t == F_GOT:
        on_got(self, link, &r, frame.flags)
    elif t == F_RELEASE:
        on_release(self, link, &r)
    elif t == F_BORROW:
        on_borrow(self, link, &r)
    elif t == F_ACK:
        on_ack(self, r.U64())
    elif t == F_TELL:
        on_tell(self, link, &r)
    elif t == F_TOLD:
        on_told(self, link, &r, frame.flags)
    elif t == F_GPUS:
        if self.executor is None:
            return -1
        self.executor.on_gpus(link, &r)
    elif t == F_YIELD:
        on_yield(self, link, &r, frame.flags)
    elif t == F_TAKEN:
        if self.executor is None:
            return -1
        on_taken(self.executor, link, &r)
    else:
        return -1
    return 0 if r.ok else -1


cdef int on_control(Engine self, NodeLink at, uint8_t type, bytes data) except -1:
    message = pickle.loads(data)
    if type == F_REPLY:
        request, ok, value = message
        slot = self.rpcs.get(request)
        if slot is not None:
            if callable(slot):
                slot(ok, value)
            else:
                slot[1], slot[2] = ok, value
                slot[0] = True
        return 0
    name, args = message
    if at is not None:
        return on_node_event(self, at, name, args)
    handler = self.handlers.get(name)
    if handler is None:
        print(f"ray: event {name!r} from the node process is unknown here", file=sys.stderr)
    else:
        handler(*args)
    return 0


cdef int handle(Engine self, Event* events, int n) except -1:
    cdef int i
    cdef Link link
    for i in range(n):
        if events[i].key == kTimerKey:
            on_timer(self)
            continue
        if events[i].key == <uint64_t>LISTENER_KEY:
            accept_links(self)
            continue
        found = self.links.get(events[i].key)
        if found is None:
            if events[i].key == TRANSFER_KEY and self.transfers is not None:
                on_transfer_events(self)
            continue
        link = <Link>found
        if events[i].writable and link.want_write:
            if link.conn.Flush() != 1:
                link.want_write = False
                self.poller.Want(link.conn.fd(), link.key, True, False)
        if events[i].readable or events[i].hangup:
            try:
                read_link(self, link)
            except Exception:
                # Our bug, or a peer's: it must cost one connection, not the process.
                traceback.print_exc()
                link.conn.Close("internal error")
                self.link_closed(link)
    return 0


cdef int on_timer(Engine self) except -1:
    cdef int64_t now = NowNs()
    self.timer_ns = 0
    if self.deadline_flush_ns and now >= self.deadline_flush_ns:
        self.deadline_flush_ns = 0
        self.flush_dirty()
    if self.deadline_idle_ns and now >= self.deadline_idle_ns:
        self.deadline_idle_ns = 0
        return_idle_leases(self, now)
        self.flush_dirty()
    if self.deadline_stuck_ns and now >= self.deadline_stuck_ns:
        self.deadline_stuck_ns = 0
        if self.executor is not None:
            self.executor.on_stuck_timer(now)
    if self.deadline_events_ns and now >= self.deadline_events_ns:
        report(self)
    if self.deadline_limits_ns and now >= self.deadline_limits_ns:
        self.deadline_limits_ns = 0
        if self.executor is not None:
            on_limits_timer(self.executor, now)
    if self.deadline_hello_ns and now >= self.deadline_hello_ns:
        close_silent_links(self, now)
    if self.deadline_redial_ns and now >= self.deadline_redial_ns:
        redial(self, now)
    if self.deadline_silence_ns and now >= self.deadline_silence_ns:
        look_for_silence(self, now)
    if self.deadline_tell_ns and now >= self.deadline_tell_ns:
        self.deadline_tell_ns = 0
        ask_to_be_told(self)
    arm_timer(self)
    return 0


cdef int arm_timer(Engine self) except -1:
    cdef int64_t at = 0
    if self.deadline_flush_ns:
        at = self.deadline_flush_ns
    if self.deadline_idle_ns and (at == 0 or self.deadline_idle_ns < at):
        at = self.deadline_idle_ns
    if self.deadline_stuck_ns and (at == 0 or self.deadline_stuck_ns < at):
        at = self.deadline_stuck_ns
    if self.deadline_hello_ns and (at == 0 or self.deadline_hello_ns < at):
        at = self.deadline_hello_ns
    if self.deadline_redial_ns and (at == 0 or self.deadline_redial_ns < at):
        at = self.deadline_redial_ns
    if self.deadline_events_ns and (at == 0 or self.deadline_events_ns < at):
        at = self.deadline_events_ns
    if self.deadline_limits_ns and (at == 0 or self.deadline_limits_ns < at):
        at = self.deadline_limits_ns
    if self.deadline_silence_ns and (at == 0 or self.deadline_silence_ns < at):
        at = self.deadline_silence_ns
    if self.deadline_tell_ns and (at == 0 or self.deadline_tell_ns < at):
        at = self.deadline_tell_ns
    if at and self.poller != NULL and (self.timer_ns == 0 or at < self.timer_ns):
        self.timer_ns = at
        at -= NowNs()
        self.poller.SetTimer(at if at > 1 else 1)
    return 0


cdef int poll_events(Engine self, int64_t timeout_ms) except -2:
    """One round, or the wait for another thread's. Returns the number of events, 0 after timeout_ms."""
    cdef Event events[64]
    cdef int n = 0
    cdef uint32_t seen
    cdef int limit
    if self.closed:
        raise exceptions.RaySystemError("ray was shut down while this thread waited")
    if self.receiving:
        if self.receiver == <unsigned long>get_ident():
            raise RuntimeError("ray.get or ray.wait was called where ray is already receiving for this thread (in a __del__ or "
                               "a signal handler, say): blocking there would never end")
        self.gate.sleepers += 1
        seen = self.gate.round
        with nogil:
            self.gate.Wait(seen, timeout_ms)
        self.gate.sleepers -= 1
        PyErr_CheckSignals()
        return 1
    limit = -1 if timeout_ms < 0 else (<int>timeout_ms if timeout_ms < 2_000_000_000 else 2_000_000_000)
    self.receiving = True
    self.receiver = <unsigned long>get_ident()
    try:
        with nogil:
            n = self.spin.Wait(deref(self.poller), limit, events, 64)
        if n > 0:
            handle(self, events, n)
    finally:
        self.receiving = False
        self.gate.Advance()
        if self.callbacks:
            run_callbacks(self)
    PyErr_CheckSignals()
    return 1 if n < 0 else n


cdef int run_callbacks(Engine self) except -1:
    """All of them. What ends one and is no Exception (a Ctrl-C may strike in the callback of a future) is raised when the others have
    run: tasks wait for that, and threads."""
    todo, self.callbacks = self.callbacks, []
    ended = None
    for function, args in todo:
        try:
            function(*args)
        except Exception:
            traceback.print_exc()
        except BaseException as error:
            ended = error
    if ended is not None:
        raise ended
    return 0


cdef int run_soon(Engine self) except -1:
    """Callbacks of what has settled outside a round: they run after one that begins now; when the engine is closed, here."""
    if not self.callbacks:
        return 0
    if self.closed:
        while self.callbacks:
            run_callbacks(self)
    elif not self.receiving or self.receiver != <unsigned long>get_ident():
        self.standby.Kick()       # the background thread, if nobody receives
        self.poller.SetTimer(1)   # else whoever does
    return 0


cdef int print_later(Engine self, function, tuple args) except -1:
    """After the round, and after what came before it, whichever threads have the role meanwhile: a thread that prints may
    wait for its terminal while the next round is another's. That one waits with its lines then, so they don't pile up."""
    self.output.append((function, args))
    self.callbacks.append((print_output, (self,)))
    return 0


def print_output(Engine self):
    with self.output_lock:
        while self.output:  # another thread may have printed ours with its own
            function, args = self.output.popleft()
            function(*args)
