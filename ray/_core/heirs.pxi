# What outlives its owner: what borrowers know of an object, and keep of it in the store. Included by engine.pyx.
#
# A borrower that is counted asks the owner, TELL_NS later, to tell it what becomes of the object (TELL; refs that are gone by then
# cost nothing more). The owner says it (TOLD) when the ref settles. So a borrower has the small value itself, or knows the
# place of the large one, and keeps it there: pinned by its own journal, or, in another node's store, claimed (`keep`). It
# is an heir before there is anything to inherit, and the owner's death asks nothing of anybody.
#
# Whoever hears of that death says so to the store (`lapse`): the object goes as soon as nobody keeps it. So the last heir's
# end, in order or not, frees it; a ref is all that an heir has to hold.
#
# A process that is handed the ref afterwards can't be counted by the owner. It asks whoever handed it over, who keeps it until
# then by the rule of hand-over: GET with OF_HEIR (`inherit_from`; for arguments `giver_of`). An heir answers with what it
# knows, or is about to know: one that was itself just handed the ref waits for its own giver's answer. Each of these had the ref before
# the one that it gave it to, so no two wait for each other; who asks only when the value is needed (`giver_of`) may stand in any
# order, and nobody waits for him.
#
# What had not settled, or was handed over in the last TELL_NS, is looked for in the own store and the owner's (`find_here`, `guess_home`); else it
# fails with OwnerDiedError, which says which of these it was.

cdef int64_t TELL_NS = 20_000_000
cdef uint32_t TELL_IDS_MAX = 2000          # in one frame
cdef bytes NOT_COUNTED = bytes(4)          # hand-overs, as in RELEASE


# ------------------------------------------------------------------ before: to be told, and to keep

cdef int follow(Engine self, Link owner, ObjectRef ref) except -1:
    """The owner has counted us, or is about to: from now on we share in what it knows."""
    owner.borrowed += 1
    if ref.state == PENDING:
        if not ref.followed:
            ref.followed = True
            self.untold.push_back(ref.id)
            if self.deadline_tell_ns == 0:
                self.set_deadline(D_TELL, NowNs() + TELL_NS)
    elif ref.state == PLASMA and not ref.pinned:
        keep(self, ref)
    return 0


cdef int ask_to_be_told(Engine self) except -1:
    cdef ObjectRef ref
    cdef Link link
    cdef uint8_t* out
    cdef dict by_owner = {}
    cdef list keys
    cdef Py_ssize_t at
    while not self.untold.empty():
        ref = find_ref(self.untold.front())
        self.untold.pop_front()
        if ref is not None and ref.state == PENDING and not ref.owned:
            by_owner.setdefault(owner_tag(ref), []).append(ref.key())
    for tag, all_keys in by_owner.items():
        link = self.peers.get(tag)
        if link is None:
            continue  # it has died, and they were looked for
        for at in range(0, len(all_keys), TELL_IDS_MAX):
            keys = all_keys[at:at + TELL_IDS_MAX]
            data = b"".join(keys)
            out = link.begin(F_TELL, 0, <uint32_t>(4 + len(data)))
            memcpy(PutU32(out, <uint32_t>len(keys)), PyBytes_AS_STRING(data), len(data))
        link.later()
    return 0


cdef class _Telling(Waiter):
    cdef Link link

    cdef int ready(self, ObjectRef ref) except -1:
        return send_told(self.link, ref) if self.link.alive else 0


cdef int on_tell(Engine self, Link link, Reader* r) except -1:
    cdef uint32_t n = r.U32()
    cdef uint32_t i
    cdef const uint8_t* at
    cdef ObjectRef ref
    cdef _Telling waiter
    for i in range(n):
        at = r.Take(28)
        if at == NULL:
            return 0
        ref = find_ref(load_id(at))
        if ref is None or not ref.owned:
            continue  # its release is on its way
        if ref.state == PENDING:
            waiter = _Telling.__new__(_Telling)
            waiter.link = link
            add_waiter(ref, waiter)
        else:
            send_told(link, ref)
    return 0


cdef int send_told(Link link, ObjectRef ref) except -1:
    cdef Engine self = link.engine
    cdef uint64_t key = self.next_request | (<uint64_t>1 << 62)  # of no RESULT and no GOT
    cdef Given given = give(link, ref, key)
    cdef uint8_t* out
    self.next_request += 1
    out = link.begin(F_TOLD, R_HOLD if given.hold else 0, <uint32_t>(36 + given.nbytes))
    out = PutU64(out, key)
    store_id(out, ref.id)
    given.write(out + 28)
    return link.later()


cdef int on_told(Engine self, Link link, Reader* r, uint8_t flags) except -1:
    cdef uint64_t key = r.U64()
    cdef const uint8_t* at = r.Take(28)
    cdef ObjectRef ref
    cdef list refs
    if at == NULL:
        return 0
    ref = find_ref(load_id(at))
    if ref is not None and (ref.owned or ref.state != PENDING):
        if ref.state == PLASMA and not ref.owned:
            learn_places(self, ref, r[0])
        ref = None
    refs = take(self, link, r, ref)
    if flags & R_HOLD:
        register_rest(self, link, refs, key)
    if refs is not None and not self.untold.empty():
        ask_to_be_told(self)  # what is inside is as old as what it is inside of
    return 0


cdef int keep(Engine self, ObjectRef ref) except -1:
    """A borrowed ref whose home is known: the object stays there for us, too."""
    if ref.pinned:
        unpin_lost(self, ref)
    if ref.home == self.number:
        ref.pinned = store_pin(self, ref)
        return 0
    where = self.homes.get(ref.home)
    if where is not None:
        try:
            self.claiming[transfer_line(self).claim(ref.key(), where)] = [ref, []]
        except (PlasmaStoreDied, FileNotFoundError):
            drop_line(self)  # it is said when the store is back
        ref.pinned = True
    return 0


cdef bint await_claim(Engine self, ObjectRef ref, Countdown all_of) except -1:
    """True: all_of comes down when the claim of ref, which is on its way, is answered. Until then whoever handed it to us keeps it."""
    if all_of is not None and ref is not None:
        for claimed, waiting in self.claiming.values():
            if claimed is ref:
                waiting.append(all_of)
                return True
    return False


cdef uint32_t number_of_key(bytes key) noexcept:
    cdef uint64_t tag0
    memcpy(&tag0, PyBytes_AS_STRING(key), 8)
    return number_of(tag0)


cdef int let_go(Engine self, bytes key, uint32_t home) except -1:
    """Undoes keep."""
    try:
        if home == self.number:
            if self.store is not None:
                self.store.unpin(key)
                if number_of_key(key) != self.number:
                    self.store.unpinned(key)  # whether its owner lives is known late; of one here, `drain_dropped` knows
        else:
            where = self.homes.get(home)
            if where is not None and self.transfers is not None:
                self.transfers.unclaim(key, where)
    except PlasmaObjectNotFound:
        pass  # it was in a store that has died since
    except PlasmaStoreDied:
        drop_line(self)
    return 0


cdef int lapse(Engine self, list items) except -1:
    """Of a dead owner, and we have let go of them: what else is to be freed here, is. items: 28 bytes of id, then anything."""
    if self.store is None:
        return 0
    try:
        for item in items:
            self.store.lapse(item[:28])
    except PlasmaStoreDied:
        pass  # they went with it
    return 0


cdef int lapse_held(Engine self, bytes key) except -1:
    """The same of what our object manager holds for an owner elsewhere that has died."""
    try:
        transfer_line(self).lapse(key)
    except (PlasmaStoreDied, FileNotFoundError):
        drop_line(self)  # its holds are gone with it
    return 0


# ------------------------------------------------------------------ the owner has died

cdef int owner_died(Engine self, Link link) except -1:
    """link was the last one to that process, which may have owned what we know, and may have been an heir that we have asked."""
    cdef ObjectRef ref
    cdef Countdown all_of
    cdef Link owner
    cdef uint64_t tag0, tag1
    memcpy(&tag0, PyBytes_AS_STRING(link.tag), 8)
    memcpy(&tag1, PyBytes_AS_STRING(link.tag) + 8, 8)
    cdef list needed = []
    for request, ref in list(self.gets.items()):
        if ref.id.tag0 == tag0 and ref.id.tag1 == tag1 and request not in self.heir_gets:
            del self.gets[request]
            ref.asked = False
            needed.append(ref)
    # Whoever handed a ref to us just now knows; so he is asked before anything is guessed.
    for request, (owner, all_of, ref) in list(self.acks.items()):
        if owner is link:
            del self.acks[request]
            inherit_from(self, all_of.source, ref, all_of)
            counted(self, all_of)
    for request, (owner, all_of) in list(self.heir_gets.items()):
        if owner is link:
            del self.heir_gets[request]
            ref = <ObjectRef>self.gets.pop(request)
            ref.asked = False
            if ref.state == PENDING:
                owner_gone(self, ref)
            counted(self, all_of)
    for ref in needed:
        if ref.state == PENDING and not ref.asked:
            owner_gone(self, ref)
    if link.borrowed:
        for ref in references.all_refs():
            if ref.id.tag0 == tag0 and ref.id.tag1 == tag1 and not ref.owned:
                if ref.state == PENDING and not ref.asked:
                    if not find_here(self, ref):
                        guess_home(self, ref)
                elif ref.state == PLASMA and not ref.pinned:
                    keep(self, ref)
    return 0


cdef int owner_gone(Engine self, ObjectRef ref) except -1:
    """A PENDING ref is needed whose owner can't be asked."""
    cdef Link giver
    if find_here(self, ref):
        return 0
    if ref.lost:
        return fail_ref(ref, OwnerDied(ref))  # an heir would only name the place again
    giver = giver_of(self, ref)
    if giver is not None:
        return ask_heir(self, giver, ref, None)
    return 0 if guess_home(self, ref) else fail_ref(ref, OwnerDied(ref))


cdef object OwnerDied(ObjectRef ref):
    if ref.lost and ref.size:  # without a size its home was a guess
        why = ("its bytes, which were kept for this process, were lost from the store since then. Nobody is left who could make it "
               "again")
    elif ref.followed:
        why = ("it had no value yet, or this process had only just been given the ref. A call that has not ended when its caller dies "
               "ends with it: let a process make it that lives as long as its result is needed")
    else:
        why = "nobody who passed the ref on to this process knows its value"
    return exceptions.OwnerDiedError(
        f"the process that owned object {ref.hex()} (tag {owner_tag(ref).hex()[8:16]}) has died, and {why}")


cdef bint find_here(Engine self, ObjectRef ref) except -1:
    """Its bytes may be in our store, which frees them in a moment unless somebody keeps them. True: they are, and the ref has settled."""
    cdef PlasmaBuffer buf
    if self.store is None or not store_pin(self, ref):
        return False
    if self.reach is not None and not is_there(self, ref):
        return False
    ref.pinned, ref.home = True, self.number
    try:
        buf = self.store.get(ref.key())
        if buf is not None:
            ref.size = buf.nbytes
            if buf.metadata_nbytes:
                ref.contained = refs_beside(self, buf)
    except (PlasmaStoreDied, PlasmaStoreFull):
        pass  # it is seen when it is read
    ref.state = PLASMA
    settle(ref)
    return True


cdef bint is_there(Engine self, ObjectRef ref) except -1:
    """Of a ray:// client, whose store takes a pin for good without an answer (ray/client/store.py). Blocks for a round trip."""
    try:
        if self.store.contains(ref.key()):
            return True
        self.store.unpin(ref.key())
    except PlasmaStoreDied:
        pass
    return False


cdef bint guess_home(Engine self, ObjectRef ref) except -1:
    """They may be in the store of its owner's node. True: the ref has settled; whether they are there is seen when it is read."""
    cdef uint32_t home = number_of(ref.id.tag0)
    if ref.lost or home == self.number or home not in self.homes:
        return False
    ref.home, ref.size = home, 0
    keep(self, ref)
    ref.state = PLASMA
    settle(ref)
    return True


cdef bytes ids_of(list refs):
    """Written beside an object's bytes: by them an heir that was never told knows which refs are in it."""
    return b"" if refs is None else b"".join([(<ObjectRef>ref).key() for ref in refs])


cdef list refs_beside(Engine self, PlasmaBuffer buf):
    cdef bytes ids = buf.metadata()
    cdef Reader r = Reader(<const uint8_t*>PyBytes_AS_STRING(ids), PyBytes_GET_SIZE(ids))
    cdef list refs = refs_of(self, &r, <uint32_t>(PyBytes_GET_SIZE(ids) // 28))
    cdef ObjectRef ref
    cdef Link owner
    for ref in refs:
        if ref.owned or ref.registered or is_ours(self, ref.id):
            continue
        owner = self.dial(owner_tag(ref))
        if owner is not None:
            send_borrow(self, owner, ref, Countdown.__new__(Countdown))
        elif ref.state == PENDING and not ref.asked and not find_here(self, ref):
            guess_home(self, ref)
    return refs


# ------------------------------------------------------------------ handed over afterwards

cdef int inherit_from(Engine self, Link giver, ObjectRef ref, Countdown all_of) except -1:
    """giver, who keeps the ref until all_of has come down, has handed it to us; its owner can't count us any more."""
    if ref.state == PLASMA:
        if not ref.pinned:
            keep(self, ref)
        if await_claim(self, ref, all_of):
            all_of.left += 1
        return 0
    if ref.state != PENDING or ref.asked:
        return 0
    if giver is None or not giver.alive:
        if not find_here(self, ref):
            guess_home(self, ref)
        return 0
    all_of.left += 1
    return ask_heir(self, giver, ref, all_of)


cdef int ask_heir(Engine self, Link giver, ObjectRef ref, Countdown all_of) except -1:
    cdef uint64_t request = self.next_request
    cdef uint8_t* out
    self.next_request += 1
    ref.asked = True
    self.gets[request] = ref
    self.heir_gets[request] = (giver, all_of)
    out = giver.begin(F_GET, OF_HEIR, 8 + 28)
    store_id(PutU64(out, request), ref.id)
    return giver.later()


cdef Link giver_of(Engine self, ObjectRef ref):
    """Who keeps the ref for us: the caller of a call that it came with, or whose function it came with; the actor's creator. None:
    nobody that we know of."""
    cdef Call call
    cdef Link link
    cdef Function function
    if self.executor is None:
        return None
    calls = list(self.executor.running.values())
    if self.executor.current is not None:
        calls.append(self.executor.current)
    for call in calls:
        if call.met is not None and call.link is not self.node and call.link.alive and ref in call.met:
            return call.link
    for link in self.links.values():
        for function in link.functions.values():
            if function.refs is not None and link.alive and ref in function.refs:
                return link
    return creator(self, ref)


cdef Link creator(Engine self, ObjectRef ref):
    """Of the actor that we are, who keeps its constructor's arguments until it is ready. None: we are none, or it is the ref's owner."""
    if self.executor is None or self.executor.creation is None:
        return None
    tag = self.executor.creation["handle"][:16]
    return None if tag == self.tag or tag == owner_tag(ref) else self.dial(tag)


cdef bint may_wait_for(Engine self, Link asker, ObjectRef ref) except -1:
    """Whether an heir that asks us shall wait for the answer that we wait for ourselves. Not if that could be his own."""
    for request, (giver, all_of) in self.heir_gets.items():
        if self.gets[request] is ref:
            return all_of is not None and giver is not asker
    return True  # it is the owner that we have asked


cdef int on_get_of_heir(Engine self, Link link, uint64_t request, ObjectRef ref, ObjectId id) except -1:
    """What we know of a ref that we don't own, for a process that has it from us."""
    cdef _RemoteGet waiter
    if ref is None:
        ref = new_ref(id, False)
    elif ref.state == PENDING and not ref.asked:
        if self.dial(owner_tag(ref)) is not None:
            ask_owner(self, ref)  # it lives; only the asker can't reach it
        elif not find_here(self, ref):
            guess_home(self, ref)
    if ref.state == PENDING:
        if ref.asked and may_wait_for(self, link, ref):
            waiter = _RemoteGet.__new__(_RemoteGet)
            waiter.link, waiter.request = link, request
            return add_waiter(ref, waiter)
        ref = new_ref(id, False)
        ref.value, ref.state = OwnerDied(ref), FAILED
    return send_got(link, request, ref)
