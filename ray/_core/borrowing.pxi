# Owners and borrowers: who is counted, what is freed when. Included by engine.pyx.
#
# The rule of hand-over, which everything here follows: whoever sends a ref to a process R in a RESULT or GOT makes sure that
# R is counted before its own hold ends.
#   * Refs the sender owns: it counts R at once (lend) and R knows it is counted (registered += 1).
#   * Other refs: R asks their owner to be counted (BORROW, answered by ACK) and then says HAVE; until then the sender
#     keeps them (link.holds).
# Refs inside the arguments of a TASK are kept by the caller until the RESULT; the RESULT names those the worker kept: the
# caller's own are counted then (on_result), others the worker registers itself before it replies.
# When a borrower's last copy goes, RELEASE gives back all its counts at once. When its process dies, its link closes.

cdef int ask_owner(Engine self, ObjectRef ref, bint lost=False) except -1:
    """Sends GET; the ref settles when the owner answers or is found dead. lost: it could not be got from its home."""
    cdef Link link
    cdef uint8_t* out
    cdef uint64_t request
    if is_ours(self, ref.id):
        return fail_ref(ref, exceptions.ReferenceCountingAssertionError(
            f"object {ref.hex()} was already freed by its owner, this process: the ref was kept outside ray's sight"))
    link = self.dial(owner_tag(ref))
    if link is None:
        return owner_gone(self, ref)
    request = self.next_request
    self.next_request += 1
    ref.asked = True
    self.gets[request] = ref
    out = link.begin(F_GET, 0, 8 + 28 + (4 if lost else 0))
    out = PutU64(out, request)
    store_id(out, ref.id)
    if lost:
        PutU32(out + 28, ref.home)
    link.later()
    return 0


cdef class _RemoteGet(Waiter):
    cdef Link link
    cdef uint64_t request

    cdef int ready(self, ObjectRef ref) except -1:
        if self.link.alive:
            send_got(self.link, self.request, ref)
        return 0


cdef int on_get(Engine self, Link link, Reader* r, uint8_t flags) except -1:
    cdef uint64_t request = r.U64()
    cdef const uint8_t* at = r.Take(28)
    cdef ObjectRef ref
    cdef _RemoteGet waiter
    if not r.ok:
        return 0
    ref = find_ref(load_id(at))
    if flags & OF_HEIR and (ref is None or not ref.owned):
        return on_get_of_heir(self, link, request, ref, load_id(at))
    if ref is None or not ref.owned:
        ref = new_ref(load_id(at), False)
        ref.value = exceptions.ObjectFreedError(
            f"object {ref.hex()} was freed by its owner before it was asked for")
        ref.state = FAILED
    if ref.state == PLASMA and (not in_store(self, ref) or (
            r.left() >= 4 and r.U32() == ref.home and ref.home != self.number)):
        recover(self, ref)
    if ref.state == PENDING:
        waiter = _RemoteGet.__new__(_RemoteGet)
        waiter.link, waiter.request = link, request
        add_waiter(ref, waiter)
        return 0
    return send_got(link, request, ref)


cdef int send_got(Link link, uint64_t request, ObjectRef ref) except -1:
    cdef Given given = give(link, ref, request | (<uint64_t>1 << 63))
    cdef uint8_t* out
    if given is None:
        return 0  # its loss is being repaired; the waiter was put back
    out = link.begin(F_GOT, R_HOLD if given.hold else 0, <uint32_t>(8 + given.nbytes))
    out = PutU64(out, request)
    given.write(out)
    return link.later()


cdef int on_got(Engine self, Link link, Reader* r, uint8_t flags) except -1:
    cdef uint64_t request = r.U64()
    cdef ObjectRef ref = <ObjectRef>self.gets.pop(request, None)
    cdef list refs = take(self, link, r, ref if ref is not None and ref.state == PENDING else None)
    if ref is not None:
        ref.asked = False
    heir = self.heir_gets.pop(request, None)
    if heir is not None and not await_claim(self, ref, <Countdown>heir[1]):
        counted(self, <Countdown>heir[1])
    if flags & R_HOLD:
        register_rest(self, link, refs, request | (<uint64_t>1 << 63))
    return 0


# ------------------------------------------------------------------ an object in a frame
#
#   u8 how, u32 nrefs, nrefs * 28 bytes of ids, then   BLOB, ERROR: u32 n, n bytes   PLASMA: u64 size, u32 home   FETCH: nothing
#   REPLICATED: as PLASMA, then u16 n, n * u32: other nodes that have it

@cython.final
cdef class Given:
    """One object laid out for one peer."""
    cdef uint8_t how
    cdef bytes blob
    cdef int64_t size
    cdef uint32_t home         # PLASMA: number of the node that has it
    cdef list refs
    cdef list replicas         # REPLICATED: numbers of the other nodes
    cdef bint hold             # the peer must say HAVE
    cdef Py_ssize_t nbytes

    cdef int write(self, uint8_t* out) except -1:
        cdef Py_ssize_t i, n = 0 if self.refs is None else PyList_GET_SIZE(self.refs)
        out = PutU8(out, self.how)
        out = PutU32(out, <uint32_t>n)
        for i in range(n):
            store_id(out, (<ObjectRef>self.refs[i]).id)
            out += 28
        if self.how == G_PLASMA:
            PutU32(PutU64(out, self.size), self.home)
        elif self.how == G_REPLICATED:
            out = PutU16(PutU32(PutU64(out, self.size), self.home), <uint16_t>PyList_GET_SIZE(self.replicas))
            for number in self.replicas:
                out = PutU32(out, <uint32_t>number)
        elif self.how != G_FETCH:
            out = PutU32(out, <uint32_t>PyBytes_GET_SIZE(self.blob))
            memcpy(out, PyBytes_AS_STRING(self.blob), PyBytes_GET_SIZE(self.blob))
        return 0

    cdef int measure(self) except -1:
        self.nbytes = 5 + (0 if self.refs is None else 28 * PyList_GET_SIZE(self.refs))
        if self.how == G_PLASMA:
            self.nbytes += 12
        elif self.how == G_REPLICATED:
            self.nbytes += 14 + 4 * PyList_GET_SIZE(self.replicas)
        elif self.how != G_FETCH:
            self.nbytes += 4 + PyBytes_GET_SIZE(self.blob)
        return 0


cdef Given given_of(Engine self, ObjectRef ref):
    """ref's value for another process, without saying who keeps the refs inside."""
    cdef Given g = Given.__new__(Given)
    g.refs = ref.contained
    if ref.state == PLASMA:
        g.how, g.size, g.home = G_PLASMA, ref.size, ref.home
        if self.replicas:
            g.replicas = self.replicas.get(ref.key())
            if g.replicas:
                g.how = G_REPLICATED
    elif ref.state == BLOB:
        g.how, g.blob = (G_ERROR if ref.is_error else G_BLOB), <bytes>ref.value
    elif ref.state == VALUE:
        g.how, g.blob = G_BLOB, blob_of(encode(ref.value))
    elif ref.state == FAILED:
        g.how, g.blob = G_ERROR, blob_of(encode_error(ref.value))
    else:
        g.how = G_FETCH
    g.measure()
    return g


cdef Given give(Link link, ObjectRef ref, uint64_t hold_key):
    """ref's value for the peer, refs inside counted for it (see the rule at the top)."""
    cdef Given g = given_of(link.engine, ref)
    if g.refs is not None and hand_over(link, g.refs):
        g.hold = True
        link.holds[hold_key] = g.refs
    return g


cdef bint hand_over(Link link, list refs) except -1:
    """Counts the peer for those of refs that we own. True: there are others, so hold them until HAVE."""
    cdef Engine self = link.engine
    cdef ObjectRef ref
    cdef bint others = False
    cdef dict held = None
    if link.tag == self.tag:
        # A worker whose lease is itself: nobody to count, but the refs must be found, and live, when the answer is read.
        for ref in refs:
            intern(ref)
        return True
    for ref in refs:
        if ref.owned:
            if held is None:
                held = self.borrowers.get(link.tag)
                if held is None:
                    held = self.borrowers[link.tag] = {}
            intern(ref)
            ref.lent += 1
            held[ref] = <object>held.get(ref, 0) + 1
        else:
            others = True
    return others


cdef list refs_of(Engine self, Reader* r, uint32_t n):
    """The local refs for n ids in a frame, made where they are new."""
    cdef list out
    cdef uint32_t i
    cdef const uint8_t* at = r.Take(<size_t>n * 28)
    if n == 0 or at == NULL:
        return None
    out = [None] * n
    for i in range(n):
        out[i] = ref_of(self, load_id(at + 28 * i))
    return out


cdef ObjectRef ref_of(Engine self, const ObjectId& id):
    cdef ObjectRef ref = find_ref(id)
    if ref is None:
        ref = new_ref(id, False)
        intern(ref)
        if is_ours(self, id):
            ref.value = exceptions.ReferenceCountingAssertionError(
                f"object {ref.hex()} came back to its owner after it had been freed")
            ref.state = FAILED
    return ref


cdef list take(Engine self, Link link, Reader* r, ObjectRef ref):
    """Reads a given object into ref (None: nobody wants it any more) and settles it. Returns the refs inside, or None."""
    cdef uint8_t how = r.U8()
    cdef uint32_t n = r.U32()
    cdef list refs = refs_of(self, r, n)
    cdef const uint8_t* at
    cdef uint32_t size
    if how == G_REPLICATED:
        take_place_of_copies(self, r, ref)
    elif how == G_PLASMA:
        if ref is not None:
            ref.size = r.U64()
            ref.home = r.U32()
            ref.lost = False
            if ref.owned:
                if ref.home == self.number:
                    ref.pinned = store_pin(self, ref)
                else:
                    own_elsewhere(self, ref)
            else:
                keep(self, ref)
            ref.state = PLASMA
        else:
            r.Take(12)
    else:
        size = r.U32()
        at = r.Take(size)
        if at == NULL or size == 0:
            r.ok = False
            return None
        if ref is not None:
            ref.size = size
            if at[0] <= KIND_BYTES and how == G_BLOB:
                # Immutable and cheap: decoded once, here.
                ref.value = decode_raw(at, size, None, None)
                ref.state = VALUE
            else:
                ref.value = (<const char*>at)[:size]
                ref.is_error = how == G_ERROR
                ref.state = BLOB
    if ref is not None:
        ref.contained = refs
    if refs is not None:
        adopt(self, link, refs)
    if ref is not None:
        settle(ref)
    return refs


cdef bint store_pin(Engine self, ObjectRef ref) except -1:
    while True:
        store = self.store
        try:
            return store.pin(ref.key())
        except PlasmaStoreDied:
            if not reach_new_store(self, store):
                return False  # found again, and repaired, when somebody gets it


cdef class Countdown:
    pass


cdef int adopt(Engine self, Link link, list refs) except -1:
    """Takes note that the peer has counted us for the refs that it owns."""
    cdef ObjectRef ref
    cdef uint64_t tag0, tag1
    memcpy(&tag0, PyBytes_AS_STRING(link.tag), 8)
    memcpy(&tag1, PyBytes_AS_STRING(link.tag) + 8, 8)
    for ref in refs:
        if ref.id.tag0 == tag0 and ref.id.tag1 == tag1 and not ref.owned:
            ref.registered += 1
            follow(self, link, ref)
    return 0


cdef int register_rest(Engine self, Link link, list refs, uint64_t key) except -1:
    """Registers with their owners the refs that the peer doesn't own, then says HAVE(key) to the peer."""
    cdef ObjectRef ref
    cdef Link owner
    cdef Countdown all_of = Countdown.__new__(Countdown)
    all_of.link, all_of.source, all_of.key, all_of.refs = link, link, key, refs
    if refs is not None:
        for ref in refs:
            if not ref.owned and ref.registered == 0 and not is_ours(self, ref.id):
                owner = self.dial(owner_tag(ref))
                if owner is not None:
                    all_of.left += 1
                    send_borrow(self, owner, ref, all_of)
                else:
                    inherit_from(self, link, ref, all_of)
    if all_of.left == 0:
        send_u64(link, F_HAVE, 0, key)
    return 0


cdef int send_borrow(Engine self, Link owner, ObjectRef ref, Countdown all_of) except -1:
    cdef uint8_t* out = owner.begin(F_BORROW, 0, 8 + 28)
    out = PutU64(out, self.next_request)
    store_id(out, ref.id)
    self.acks[self.next_request] = (owner, all_of, ref)
    self.next_request += 1
    ref.registered += 1
    follow(self, owner, ref)
    return owner.later()


cdef int on_borrow(Engine self, Link link, Reader* r) except -1:
    cdef uint64_t request = r.U64()
    cdef const uint8_t* at = r.Take(28)
    cdef ObjectRef ref
    if not r.ok:
        return 0
    ref = find_ref(load_id(at))
    if ref is not None and ref.owned:
        hand_over(link, [ref])
    return send_u64(link, F_ACK, 0, request)


cdef int on_ack(Engine self, uint64_t request) except -1:
    found = self.acks.pop(request, None)
    return 0 if found is None else counted(self, <Countdown>found[1])


cdef int counted(Engine self, Countdown all_of) except -1:
    if all_of is not None:
        all_of.left -= 1
        if all_of.left == 0 and all_of.link is not None:
            send_u64(all_of.link, F_HAVE, 0, all_of.key)
    return 0


cdef int on_release(Engine self, Link link, Reader* r) except -1:
    cdef uint32_t n = r.U32()
    cdef uint32_t i, count
    cdef const uint8_t* at
    cdef ObjectRef ref
    cdef dict held = self.borrowers.get(link.tag)
    for i in range(n):
        at = r.Take(28)
        count = r.U32()
        if not r.ok:
            return 0
        ref = find_ref(load_id(at))
        if ref is None or held is None or ref not in held:
            continue
        left = held[ref] - count
        ref.lent -= min(count, ref.lent)
        if left > 0:
            held[ref] = left
        else:
            del held[ref]
    return 0


# ------------------------------------------------------------------ what is no longer referred to

cdef void on_ref_dropped(ObjectRef ref) noexcept:
    """From a ref's deallocation: any thread, inside any allocation. Queues only."""
    cdef Engine self = the_engine
    cdef Task task
    cdef Dropped d
    cdef uint32_t i
    if ref.producer is not None:
        task = <Task>ref.producer
        if task.returns != NULL:
            for i in range(task.num_returns):
                if task.returns[i] == <void*>ref:
                    task.returns[i] = NULL
        if task.stream is not None:
            task.stream.forget(ref)
            if task.stream.dropped and not task.stream.ended and ref.id.index == 0 and self is not None:
                d.owned, d.pinned, d.registered, d.home, d.pull = 3, 0, 0, 0, 0  # now nobody can see the call's end, either
                store_id(d.id, ref.id)
                queue_dropped(self, d)
    if self is None or not ((ref.owned and (ref.state == PLASMA or ref.hold is not None))
                            or (not ref.owned and (ref.registered or ref.pinned)) or ref.pull != 0):
        return
    store_id(d.id, ref.id)
    d.home, d.pull = ref.home, ref.pull
    d.owned = 2 if ref.owned and ref.hold is not None else ref.owned
    d.registered, d.pinned = ref.registered, ref.pinned
    queue_dropped(self, d)


cdef void queue_dropped(Engine self, const Dropped& d) noexcept:
    self.dropped.push_back(d)
    if self.deadline_flush_ns == 0:
        self.deadline_flush_ns = NowNs() + FLUSH_NS
        if self.timer_ns == 0 or self.deadline_flush_ns < self.timer_ns:
            self.timer_ns = self.deadline_flush_ns
            self.poller.SetTimer(FLUSH_NS)


cdef int drain_dropped(Engine self) except -1:
    cdef Dropped d
    cdef dict releases = {}
    cdef bytes key, tag
    cdef Link link
    cdef uint8_t* out
    while not self.dropped.empty():
        d = self.dropped.front()
        self.dropped.pop_front()
        key = (<const char*>d.id)[:28]
        if d.pull != 0:
            drop_pull(self, d.pull)
        if d.owned == 2:
            actor_unreachable(self, key)
        elif d.owned == 3:
            drop_stream(self, load_id(d.id).seq)
        elif d.owned and self.node is not None and not self.node.alive:
            pass  # we end with our node, and have let go of our borrowers for that reason only: they are heirs (heirs.pxi)
        elif d.owned and d.home != self.number:
            free_elsewhere(self, key, d.home)
            free_replicas(self, key)
        elif d.owned:
            if self.homes:
                free_copies(self, key)
            free_replicas(self, key)
            if self.store is not None:
                try:
                    self.store.unpin(key)
                    self.store.delete(key)
                except (PlasmaStoreDied, PlasmaObjectNotFound):
                    pass  # it died with the store that held it
        elif d.pinned:
            let_go(self, key, d.home)
            let_go_of_replicas(self, key)
        if not d.owned and (d.registered or d.pinned):
            tag = key[:16]
            releases.setdefault(tag, []).append(key + int(d.registered).to_bytes(4, "little"))
    for tag, items in releases.items():
        link = self.dial(tag)
        if link is None:
            lapse(self, items)
            continue
        items = [item for item in items if item[28:] != NOT_COUNTED]
        if not items:
            continue
        for item in items:
            link.borrowed -= min(link.borrowed, <uint64_t>int.from_bytes(item[28:], "little"))
        data = b"".join(items)
        out = link.begin(F_RELEASE, 0, <uint32_t>(4 + len(data)))
        out = PutU32(out, <uint32_t>len(items))
        memcpy(out, PyBytes_AS_STRING(data), len(data))
        link.later()
    return 0


cdef int peer_gone(Engine self, Link link) except -1:
    """The process behind link has died: its borrowings end, what it owned fails."""
    self.borrowers.pop(link.tag, None)
    return 0 if len(link.tag) != 16 else owner_died(self, link)
