# Objects whose primary copy is in the store of another node: fetched, held for owners elsewhere, freed. Included by engine.pyx.
#
# A ref in state PLASMA knows its home, the number of that node. Who needs the value has the own store fetch a copy (start_pull) and
# waits for its answer as for anything else: an event on the poller, never the peer. The answer's pin keeps the copy until a buffer
# of ours does (end_pull). Nothing here is touched while all homes are our own number: on one machine there is no line to the object
# manager, and `homes` is empty.
#
# A home that dies, or has lost the object: the pull is answered with "no_source", and the object is lost (copy_lost): its owner makes it
# again or says why not. A store of ours that dies: pulls are asked for anew when it is back.

# What was freed elsewhere is remembered so long, and so much of it: the store that passes it on may die before it has, and
# passes it on late to a home behind a cut link.
cdef int64_t FREED_NS = 60_000_000_000
cdef Py_ssize_t FREED_MAX = 10_000
cdef int64_t STORE_SHARE_AHEAD = 8 # no object is fetched ahead that takes more than one part in so many of the store

cdef extern from *:
    """
    #define ray_swap32(n) __builtin_bswap32(static_cast<uint32_t>(n))
    """
    uint32_t swap32 "ray_swap32"(uint64_t n) nogil


cdef inline uint32_t number_of(uint64_t tag0) noexcept:
    """A process's node, of the first eight bytes of its tag: the number is big-endian in the first four."""
    return swap32(tag0)


cdef uint32_t number_of_link(Link link) noexcept:
    cdef uint64_t tag0
    memcpy(&tag0, PyBytes_AS_STRING(link.tag), 8)
    return number_of(tag0)


# ------------------------------------------------------------------ nodes

cdef int node_came(Engine self, uint32_t number, str host, int port) except -1:
    if host.startswith("unix:"):
        host = "127.0.0.1"  # a node on this machine whose calls take its sockets (nodes.pxi); objects take TCP
    if number != self.number and port != 0:
        self.homes[number] = (host, port)
        copy_missing(self)
    return 0


cdef int node_went(Engine self, uint32_t number) except -1:
    """Its copies are gone; each loss is found, and repaired, when somebody needs the object, but replicas are made anew now."""
    cdef ObjectRef ref
    if self.homes.pop(number, None) is not None:
        copies_gone(self, number)
        for ref in references.all_refs():
            if ref.pinned and not ref.owned and ref.state == PLASMA and ref.home == number:
                home_has_it(self, ref)  # a copy here becomes the primary one, before it is evicted
    return 0


# ------------------------------------------------------------------ fetching

cdef bint is_away(Engine self, ObjectRef ref) except -1:
    """Its value has to be fetched before it can be read."""
    return ref.state == PLASMA and ref.home != self.number and not ref.arrived and not is_in_own_store(self, ref)


cdef bint is_in_own_store(Engine self, ObjectRef ref) except -1:
    if self.store is None:
        return False
    try:
        return self.store.contains(ref.key())
    except PlasmaStoreDied:
        return False


cdef bint home_has_it(Engine self, ObjectRef ref) except -1:
    """False: its home is dead, and no copy is here. A copy that is becomes the primary one."""
    if ref.home in self.homes:
        return True
    if not is_in_own_store(self, ref) or not store_pin(self, ref):
        return False
    ref.pinned = True
    ref.home = self.number
    return True


cdef int start_pull(Engine self, ObjectRef ref) except -1:
    """Has our store fetch it, unless it is about to."""
    cdef uint64_t before = ref.pull
    if before != 0:
        if self.pulls_ahead.pop(before, None) is None:
            return 0
        self.pulls.pop(before)  # that one comes after whatever is needed now
        ref.pull = 0
    line = self.transfers
    where = self.homes.get(ref.home)
    ref.arrived = False
    while True:
        dead, had_line = self.store, self.transfers is not None
        try:
            ref.pull = transfer_line(self).pull(ref.key(), () if where is None else (where,))
            break
        except (PlasmaStoreDied, FileNotFoundError) as error:
            drop_line(self)
            if had_line:
                continue  # that one may have ended with an earlier store
            if dead is not None and dead.alive and not isinstance(error, PlasmaStoreDied):
                raise exceptions.RaySystemError(
                    f"object {ref.hex()} is on node {ref.home}, but this node's store runs no object manager that could fetch it")
            await_store(self, dead)
    self.pulls[ref.pull] = ref
    if before != 0 and self.transfers is line:
        drop_pull(self, before)  # now that the other keeps what has come
    return 0


cdef int pull_ahead(Engine self, ObjectRef ref) except -1:
    """Has our store fetch it because it may be wanted soon (bring_ahead), if little else is fetched for that reason. Then the copy is
    one that may be evicted. Not a large one: for its sake objects would go to disk, which nobody has asked for."""
    where = self.homes.get(ref.home)
    cdef int64_t on_their_way = sum(self.pulls_ahead.values())
    cdef int64_t nbytes = ref.size if ref.size > 0 else AHEAD_BYTES // 8  # not known
    if where is None or self.store is None or ref in self.pull_failures:
        return 0
    if on_their_way != 0 and on_their_way + nbytes > AHEAD_BYTES:
        return 0
    try:
        if nbytes * STORE_SHARE_AHEAD > self.store.capacity:
            return 0
        request = transfer_line(self).pull(ref.key(), (where,), True)
    except (PlasmaStoreDied, FileNotFoundError):
        return 0  # whoever needs it finds out, and what that means
    ref.pull, ref.arrived = request, False
    self.pulls[request], self.pulls_ahead[request] = ref, nbytes
    return 0


cdef int pulled_ahead(Engine self, uint64_t request, ObjectRef ref) except -1:
    """Answered, and nobody has asked for it since: what is here may go again; what isn't, is looked for when it is needed."""
    end_pull(self, ref)
    return fetched(self, ref)


cdef int end_pull(Engine self, ObjectRef ref) except -1:
    """Whoever needed the copy has a pin of his own, or does not want it any more."""
    request, ref.pull, ref.arrived = ref.pull, 0, False
    self.pulls.pop(request, None)
    self.pulls_ahead.pop(request, None)
    return drop_pull(self, request)


cdef int drop_pull(Engine self, uint64_t request) except -1:
    """Of a ref that is gone."""
    if self.transfers is not None:
        try:
            self.transfers.let_go(request)
        except PlasmaStoreDied:
            drop_line(self)
    return 0


cdef int await_pull(Engine self, ObjectRef ref, int64_t deadline_ns) except -1:
    """Waits until the pull is answered: 1, or 0 when the deadline (-1: none) has passed. Its CPU is lent meanwhile."""
    cdef int64_t ms
    cdef bint lend_cpu = self.executor is not None and self.executor.may_lend()
    self.enter()
    try:
        while ref.pull != 0 and not ref.arrived and ref.state == PLASMA:
            if self.closed:
                raise exceptions.RaySystemError("ray was shut down while waiting for an object")
            if not self.node.alive:
                raise self.node_died()
            ms = ms_until(deadline_ns)
            if ms == 0:
                if self.step(0) == 0 or NowNs() >= deadline_ns:
                    return 1 if ref.arrived else 0
            elif lend_cpu:
                if self.step(1) == 0 and ref.pull != 0 and not ref.arrived:
                    self.executor.block()
                    lend_cpu = False
            else:
                self.step(ms)
    finally:
        self.leave()
        if self.executor is not None:
            self.executor.unblock()
    return 1


cdef int fetch(Engine self, ObjectRef ref, int64_t deadline_ns) except -1:
    """A copy is in our store, or the ref is not PLASMA any more, or it is worth to look again. Raises ObjectStoreFullError, and
    GetTimeoutError after deadline_ns (-1: none)."""
    raise_no_room(self, ref)
    start_pull(self, ref)
    if await_pull(self, ref, deadline_ns) == 0:
        raise exceptions.GetTimeoutError(f"ray.get: object {ref.hex()} was not fetched from node {ref.home} within the timeout")
    raise_no_room(self, ref)
    return 0


cdef int raise_no_room(Engine self, ObjectRef ref) except -1:
    if self.pull_failures:
        why = self.pull_failures.pop(ref, None)
        if why is not None:
            raise exceptions.ObjectStoreFullError(f"object {ref.hex()} ({ref.size} bytes) can't be fetched from node {ref.home}: {why}")
    return 0


cdef int fetch_all(Engine self, list refs, int64_t deadline_ns, object timeout) except -1:
    """For get: all that are elsewhere are fetched at once, then waited for. deadline_ns: -1 if get has not waited yet."""
    cdef ObjectRef ref
    cdef list away = []
    if timeout is not None and deadline_ns < 0:
        deadline_ns = NowNs() + <int64_t>(<double>timeout * 1e9)
    for ref in refs:
        if is_away(self, ref):
            start_pull(self, ref)
            away.append(ref)
    for ref in away:
        if await_pull(self, ref, deadline_ns) == 0:
            raise exceptions.GetTimeoutError(
                f"ray.get: object {ref.hex()} was not fetched from node {ref.home} within {timeout} s")
    return 0


cdef int pulled(Engine self, uint64_t request, str outcome, str text) except -1:
    cdef ObjectRef ref = self.pulls.pop(request, None)
    if ref is None or ref.pull != request:
        return 0  # let go of meanwhile
    if request in self.pulls_ahead:
        return pulled_ahead(self, request, ref)
    if outcome == "here":
        ref.arrived = True
    else:
        ref.pull = 0
        if outcome == "no_room":
            self.pull_failures[ref] = text
        elif ref.state == PLASMA:
            copy_lost(self, ref)
    return fetched(self, ref)


cdef int copy_lost(Engine self, ObjectRef ref) except -1:
    if ref.owned and ref.home == self.number and ref.pinned and is_in_own_store(self, ref):
        return 0  # a copy was made here meanwhile (copied_here)
    if ref.owned and ref.home in self.homes and ref.producer is None and not (self.replicas and ref.key() in self.replicas):
        return fail_ref(ref, exceptions.ObjectLostError(
            f"object {ref.hex()} was lost from the object store of node {ref.home} and cannot be made again: it was returned by an "
            "actor, or by a task with max_retries=0"))
    return recover(self, ref)


cdef int finish_when_fetched(Engine self, target, ObjectRef ref) except -1:
    """1: the future is finished once the object is here. Never waits: it may be the receiver that asks."""
    if not is_away(self, ref) or ref in self.pull_failures:
        return 0
    start_pull(self, ref)
    self.after_pull.setdefault(ref, []).append(target)
    return 1


cdef int fetched(Engine self, ObjectRef ref) except -1:
    """The pull is over: the futures that waited for it go on, by whatever its end means."""
    cdef _FutureWaiter waiter
    cdef _LoopWaiter in_loop
    for target in self.after_pull.pop(ref, ()):
        loop = target.get_loop() if hasattr(target, "get_loop") else None
        if ref.state != PENDING:
            if loop is None:
                self.callbacks.append((finish_future, (self, target, ref)))
            else:
                finish_in_loop(self, loop, target, ref)
        elif loop is None:
            waiter = _FutureWaiter.__new__(_FutureWaiter)
            waiter.engine, waiter.target, waiter.ref = self, target, ref
            add_waiter(ref, waiter)
        else:
            in_loop = _LoopWaiter.__new__(_LoopWaiter)
            in_loop.engine, in_loop.loop, in_loop.target, in_loop.ref = self, loop, target, ref
            add_waiter(ref, in_loop)
    return 0


# ------------------------------------------------------------------ held for owners elsewhere, freed by them

cdef int hold_for_owner(Engine self, bytes key) except -1:
    """A result in our store whose owner is on another node: pinned by the object manager until the owner frees it or dies. We pin it
    until that has happened, whatever the caller says meanwhile."""
    cdef PlasmaClient store = self.store
    store.pin(key)
    try:
        self.holding[transfer_line(self).hold(key)] = (store, key)
    except BaseException:
        let_pin_go((store, key))
        raise
    return 0


cdef int to_store_held(Engine self, bytes key, Encoded e) except -1:
    """to_store, of a result whose owner is on another node. If the store, or the line to its object manager, ends between the two
    steps, what is gone is done again."""
    cdef bint written = False
    while True:
        if not written:
            to_store(self, key, e)
        store, had_line = self.store, self.transfers is not None
        try:
            return hold_for_owner(self, key)
        except (PlasmaStoreDied, FileNotFoundError) as error:
            drop_line(self)
            written = store.alive
            if written and not had_line:
                let_pin_go((store, key))
                raise exceptions.RaySystemError(f"a result for another node can't be held here: {error}") from None


cdef int own_elsewhere(Engine self, ObjectRef ref) except -1:
    """Another node's store holds it for us. Our store says it there should we die: nobody else would know what is ours."""
    where = self.homes.get(ref.home)
    if self.freed:
        self.freed.pop(ref.key(), None)  # it was made again
    if where is not None:
        try:
            transfer_line(self).own(ref.key(), where)
        except (PlasmaStoreDied, FileNotFoundError):
            drop_line(self)  # it is said when the store is back
    return 0


cdef int let_pin_go(tuple pin) except -1:
    try:
        (<PlasmaClient>pin[0]).unpin(pin[1])
        (<PlasmaClient>pin[0]).unpinned(pin[1])  # its owner may have freed it meanwhile
    except (PlasmaStoreDied, PlasmaObjectNotFound):
        pass  # it died with the store that held it
    return 0


cdef int free_elsewhere(Engine self, bytes key, uint32_t home) except -1:
    """Ours, in another node's store (with copies wherever that has sent them): nobody refers to it any more."""
    cdef int64_t now
    where = self.homes.get(home)
    if self.store is not None:
        try:
            self.store.delete(key)
        except PlasmaStoreDied:
            pass  # the copy has died with it
    if where is None:
        return 0
    now = NowNs()
    for oldest, (at_ns, _) in self.freed.items():
        if len(self.freed) < FREED_MAX and now - at_ns < FREED_NS:
            break
        del self.freed[oldest]
        break  # one goes for each that comes
    self.freed[key] = (now, home)
    for _ in range(2):  # the line may be one to an earlier store
        try:
            transfer_line(self).free(key, where)
            break
        except (PlasmaStoreDied, FileNotFoundError):
            drop_line(self)  # it is said again when the store is back
    return 0


cdef int free_again(Engine self) except -1:
    """The store that died may not have passed on what we freed elsewhere, and nobody else would say it."""
    freed, self.freed = self.freed, {}
    for key, (at_ns, home) in freed.items():
        if NowNs() - at_ns < FREED_NS:
            free_elsewhere(self, key, home)
    return 0


cdef int free_copies(Engine self, bytes key) except -1:
    """Ours, in our store: other stores may have fetched it."""
    try:
        transfer_line(self).free(key)
    except (PlasmaStoreDied, FileNotFoundError):
        drop_line(self)  # copies are evicted in time
    return 0


cdef int end_pull_of(Engine self, bytes key) except -1:
    """We make an object anew, and this node's store is still fetching its lost copy, from a home that doesn't answer: that ends now.
    On a line of its own, since it has to be waited for."""
    line = TransferLine(os.path.join(self.session_dir, "objects.sock"))
    try:
        line.free(key)
        line.wait(line.ask_stats())
    finally:
        line.close()
    return 0


cdef uint32_t home_ahead(Engine self, Reader ahead) noexcept:
    """The home of the object that is read next; our own number if it is not in a store."""
    cdef uint8_t how = ahead.U8()
    ahead.Take(<size_t>ahead.U32() * 28)
    if how != G_PLASMA:
        return self.number
    ahead.U64()
    return ahead.U32() if ahead.ok else self.number


cdef int free_unwanted(Engine self, Reader ahead, uint64_t seq, uint16_t n) except -1:
    """An answer that nobody waits for any more: what of it other stores hold for us, they need not."""
    cdef uint16_t i
    cdef uint8_t how
    cdef uint32_t home
    cdef bytes key
    for i in range(n):
        home = home_ahead(self, ahead)
        how = ahead.U8()
        ahead.Take(<size_t>ahead.U32() * 28)
        if how == G_PLASMA:
            ahead.Take(12)
        else:
            ahead.Take(ahead.U32())
        if not ahead.ok:
            return 0
        if home != self.number:
            key = PyBytes_FromStringAndSize(NULL, 28)
            store_id(<uint8_t*>PyBytes_AS_STRING(key), make_id(self, seq, i))
            free_elsewhere(self, key, home)
    return 0
