# How this process joins its session, and leaves it. Included by engine.pyx.
#
# Joining: it listens, dials its node, starts the background thread, registers, opens the store. Whatever fails on the way
# is undone by leaving. Leaving: links close, each with what that means (link_ends.pxi), so that whatever waits fails and its
# thread finds out; the poller goes last, when no thread is in it any more. A fork's child leaves without a word.

cdef str listen_path(Engine self):
    return os.path.join(self.session_dir, "c", self.tag.hex())


cdef int open_listener(Engine self) except -1:
    """Opens the socket on which other processes of the session reach this one."""
    cdef Status status
    cdef _Listener listener = _Listener.__new__(_Listener)
    listener.socket = CListener.Listen(os.fsencode(listen_path(self)), 4096, &status)
    if not listener.socket.get():
        raise OSError(f"cannot listen on {listen_path(self)}: {status.message().decode()}")
    self.listener = listener
    self.listener_fd = listener.socket.get().fd()
    self.poller.Add(self.listener_fd, LISTENER_KEY)
    return 0


cdef int join_session(Engine self, node_socket, dict info, on_log_lines, on_error, open_store, reach) except -1:
    """See Engine.connect."""
    global the_engine
    cdef Status status
    self.on_log_lines, self.on_error = on_log_lines, on_error
    self.open_store, self.reach = open_store, reach
    open_listener(self)
    cdef unique_ptr[CConnection] conn = CConnection.Dial(os.fsencode(node_socket), self.identity, &status)
    if not conn.get():
        leave_session(self)
        raise ConnectionError(f"cannot reach the node process at {node_socket}: {status.message().decode()}")
    cdef Link node = Link.__new__(Link)
    node.engine, node.conn, node.dialed = self, conn.release(), True
    self.node = node
    self.add_link(node)
    the_engine = self
    set_dropped_hook(on_ref_dropped)
    serialization.set_ref_out_of_band(pickled_elsewhere)
    self.background = threading.Thread(target=self.receive_in_background, name="ray-receiver", daemon=True)
    self.background.start()
    try:
        self.info = self.rpc("register", dict(info, tag=self.tag, pid=os.getpid()))
        learn_nodes(self, self.info)
        self.identity.tls = bool(self.info.get("settings", {}).get("tls", False))
        references.begin_session(self.info.get("settings", {}).get("record_ref_creation_sites", False))
        set_store_full_timeout(self.info.get("settings", {}).get("store_full_timeout_s", 10.0))
        try:
            self.store = self.open_store(self.info["plasma_socket"])
        except (OSError, PlasmaStoreDied):
            await_store(self, None)  # it is being restarted just now
    except BaseException:
        leave_session(self)
        raise
    serialization.parallel_copy = copy_in_parallel
    return 0


cdef void copy_in_parallel(void* dest, const void* src, size_t n) noexcept nogil:
    with gil:
        engine = the_engine
        store = engine.store if engine is not None else None
    if store is None:
        memcpy(dest, src, n)
    else:
        (<PlasmaClient>store).copy(dest, src, n)


cdef int end_session(Engine self) except -1:
    """The driver's end of the session: workers end, their last lines are printed, then the node process goes."""
    if self.closed:
        return 0
    self.leaving = True
    try:
        if self.node.alive:
            self.rpc("shutdown", timeout=8.0)  # it gives its workers two seconds (shutdown_grace_s)
    except exceptions.RayError:
        pass  # it died, or hangs: whoever started the node process ends it by force
    finally:
        leave_session(self)
    return 0


cdef int leave_session(Engine self) except -1:
    """Leaves the session: every connection closes, what is pending fails. Idempotent."""
    global the_engine
    cdef uint32_t seen
    cdef Link link
    if self.closed:
        return 0
    if self.node is not None:
        report(self)
        self.node.flush()
    self.closed = True
    if the_engine is self:
        the_engine = None
    self.standby.Kick()
    if self.background is not None and self.background is not threading.current_thread():
        self.background.join()
    for link in list(self.links.values()):
        link.conn.Close("shutdown")
        self.link_closed(link)
    self.links.clear()
    self.peers.clear()
    drop_line(self)
    while self.callbacks:
        run_callbacks(self)  # futures that waited, each with its error
    if self.listener is not None:
        self.poller.Remove(self.listener_fd)
        self.listener = None
        try:
            os.unlink(listen_path(self))
        except FileNotFoundError:
            pass  # the node process removed the whole folder first
    if self.store is not None:
        self.store.disconnect()  # another thread may be in the middle of a put: to it the store has died
    self.open_store = self.reach = None
    # Threads inside get or wait find out, and leave; then nobody is in the poller any more.
    give_up = time.monotonic() + 5.0
    while self.foreground > 0 and time.monotonic() < give_up:
        self.poller.SetTimer(1)
        self.gate.Advance()
        seen = self.gate.round
        self.gate.sleepers += 1
        with nogil:
            self.gate.Wait(seen, 10)
        self.gate.sleepers -= 1
    if self.foreground == 0:
        del self.standby
        del self.poller
        self.standby = NULL
        self.poller = NULL
    return 0


def _after_fork_in_child():
    """Nothing of ours may speak for the parent. Descriptors stay open, nobody uses them."""
    global the_engine
    if the_engine is not None:
        the_engine.closed = True
        the_engine = None


os.register_at_fork(after_in_child=_after_fork_in_child)
