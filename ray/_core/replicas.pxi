# Objects that are put with _replicas=n: in the store of their owner's node and in those of n - 1 others. Included by engine.pyx.
#
# The owner asks the processes of other nodes, as a guest there, to have their stores fetch the object and hold it for the owner
# (`replicate`, ray/_node/object_transfers.py), and waits for them: when the put returns, the copies are there. Chosen are the nodes
# whose numbers follow the owner's; one that can't is replaced by the next, and one whose store dies meanwhile is asked once more.
#
# `Engine.replicas` says where the copies are, at the owner and, since it travels with the place (REPLICATED), at each borrower, who
# claims them all. A home that is lost is replaced by one of them (`move_to_replica`), which is asked for first whenever the object
# would have to be made again. A replica is freed as the home's copy is: by the owner, or when it has lapsed and nobody keeps it.
#
# As long as the owner lives, a copy that is lost is made anew (`copies_gone`): the owner hears of the death of a node, of its own store,
# and, being a guest there, of that of another node's store (`store_anew`). So many are made at a time that other objects get
# through, and none is asked of the same node twice, unless something has changed there. Borrowers are told (TOLD).

cdef Py_ssize_t COPYING_MAX = 4

cdef tuple put_copies(Engine self, object value, int copies):
    """(ref, number of stores that have it, why other nodes haven't got it: number -> text)"""
    cdef ObjectRef ref = new_ref(make_id(self, self.next_seq, 0), True)
    cdef Encoded e = encode(value, "the value given to ray.put")
    cdef bytes key
    cdef set refused = set()
    cdef dict failures = {}
    cdef list asked, tried = []
    self.next_seq += 1
    ref.contained, ref.size = e.refs, e.nbytes
    key = ref.key()
    to_store(self, key, e)
    ref.pinned, ref.home, ref.state = True, self.number, PLASMA
    intern(ref)
    self.copies_wanted[key] = copies
    self.copying[key] = refused  # by us, here
    try:
        while True:
            # Twice: it may have had one, and have lost it while others were waited for.
            asked = [number for number in without_copy(self, ref, refused) if tried.count(number) < 2]
            del asked[max(0, copies_missing(self, key)):]
            if not asked:
                break
            tried += asked
            ask_for_copies(self, ref, asked, refused, failures)
            if ref.home == self.number and not ref.pinned:  # our store has died, and no other had it; but here it is still
                to_store(self, key, e)
                ref.pinned = True
    finally:
        del self.copying[key]
    for number in without_copy(self, ref, refused):
        if number in tried:
            failures.setdefault(number, "its object store has died")
    if copies_missing(self, key) > 0:
        self.short_of_copies[key] = refused
    copy_next(self)
    return ref, copies - copies_missing(self, key), failures


cdef Py_ssize_t copies_missing(Engine self, bytes key) except? -1:
    return <Py_ssize_t>self.copies_wanted[key] - 1 - len(self.replicas.get(key, ()))


cdef list without_copy(Engine self, ObjectRef ref, set refused):
    """The nodes that have none, and are not among refused, in the order in which they are asked for one."""
    has_not = refused.union(self.replicas.get(ref.key(), ()), (ref.home,))
    others = sorted(self.homes, key=lambda number: (number < self.number, number))
    return [number for number in [self.number] + others if number not in has_not]


def copy_answered(Engine self, bytes key, uint32_t home, dict answers, set refused, number, ok, why):
    cdef ObjectRef ref = find_ref(load_id(<const uint8_t*>PyBytes_AS_STRING(key)))
    if ref is None:
        if ok:
            free_elsewhere(self, key, number)  # the put was interrupted
    elif ok and (copied_here(self, ref) if number == self.number else copied_there(self, ref, number)):
        why = ""
    elif ref.home == home:  # else it was told to fetch it from where it is no more
        refused.add(number)
    answers[number] = "it can't be reached" if why is None else str(why)


cdef int ask_for_copies(Engine self, ObjectRef ref, list numbers, set refused, dict failures) except -1:
    """Returns when all have answered: those that have it are among the replicas."""
    cdef NodeLink at
    cdef dict answers = {}
    cdef bytes key = ref.key()
    for number in numbers:
        at = None if number == self.number else node_link(self, number)
        answered = functools.partial(copy_answered, self, key, ref.home, answers, refused, number)
        if at is None and number != self.number:
            answered(False, None)
        else:
            ask_node(self, at, answered, "replicate", key, ref.home)
    self.enter()
    try:
        while len(answers) < len(numbers):
            if self.closed:
                raise exceptions.RaySystemError("ray was shut down while an object was replicated")
            if not self.node.alive:
                raise self.node_died()
            self.step(-1)
    finally:
        self.leave()
    for number, why in answers.items():
        failures.pop(number, None)
        if why:
            failures[number] = why
    return 0


cdef int take_place_of_copies(Engine self, Reader* r, ObjectRef ref) except -1:
    """What follows REPLICATED; ref None: nobody wants it."""
    cdef uint64_t size = r.U64()
    cdef uint32_t home = r.U32()
    cdef uint16_t n = r.U16()
    cdef uint16_t i
    cdef bytes key
    places = [r.U32() for i in range(n)]
    if ref is None or not r.ok:
        return 0
    ref.size, ref.home, ref.lost = size, home, False
    keep(self, ref)
    key = ref.key()
    let_go_of_replicas(self, key)
    self.replicas[key] = [number for number in places if keep_at(self, key, number)]
    ref.pinned = ref.pinned or bool(self.replicas[key])  # so that they are let go of with the ref
    ref.state = PLASMA
    return 0


cdef int learn_places(Engine self, ObjectRef ref, Reader ahead) except -1:
    """Its owner says once more where it is (`tell_places`), to us who know an earlier list. What stays on it is kept without a
    gap: the owner may die in it."""
    cdef uint8_t how = ahead.U8()
    cdef bytes key = ref.key()
    cdef uint32_t home
    cdef uint16_t i, n
    ahead.Take(<size_t>ahead.U32() * 28)
    ahead.U64()
    home, n = ahead.U32(), ahead.U16()
    now = [home] + [ahead.U32() for i in range(n)]
    if how != G_REPLICATED or not ahead.ok:
        return 0
    before = list(self.replicas.get(key, ()))
    if ref.pinned:
        before.append(ref.home)
    kept = [number for number in now if number in before or keep_at(self, key, number)]
    for number in before:
        if number not in kept:
            let_go(self, key, number)
    if kept:
        ref.home, ref.pinned, ref.lost = kept[0], True, False
    self.replicas[key] = kept[1:]
    return 0


cdef bint keep_at(Engine self, bytes key, uint32_t number) except -1:
    """As `keep`, at another place."""
    where = self.homes.get(number)
    try:
        if number == self.number:
            return self.store is not None and self.store.pin(key)
        if where is None:
            return False
        transfer_line(self).claim(key, where)
    except (PlasmaStoreDied, FileNotFoundError):
        drop_line(self)
        return False
    return True


cdef bint move_to_replica(Engine self, ObjectRef ref) except -1:
    """Its home hasn't got it any more. True: another has, which is the home from now on."""
    cdef bytes key = ref.key()
    places = self.replicas.get(key)
    while places:
        number = places.pop(0)
        if number in self.homes or (number == self.number and is_in_own_store(self, ref)):
            ref.home = number
            ref.pinned = not ref.owned or number == self.number
            ref.state = PLASMA
            if not places:
                del self.replicas[key]
            if ref.owned:
                find_another_place(self, key)
                copy_next(self)
            return True
    self.replicas.pop(key, None)
    return False


cdef int let_go_of_replicas(Engine self, bytes key) except -1:
    if self.replicas:
        for number in self.replicas.pop(key, ()):
            let_go(self, key, number)
    return 0


cdef int free_replicas(Engine self, bytes key) except -1:
    if self.copies_wanted and self.copies_wanted.pop(key, None) is not None:
        self.short_of_copies.pop(key, None)
        for number in self.replicas.pop(key, ()):
            free_elsewhere(self, key, number)
    return 0


# ------------------------------------------------------------------ copies that were lost, made anew by the owner

cdef int copies_gone(Engine self, uint32_t number) except -1:
    """That node has died, or its store has, and is back."""
    cdef ObjectRef ref
    for key in list(self.copies_wanted):
        ref = find_ref(load_id(<const uint8_t*>PyBytes_AS_STRING(key)))
        if ref is None or ref.state != PLASMA:
            continue
        places = self.replicas.get(key)
        if places is not None and number in places:
            places.remove(number)
            if not places:
                del self.replicas[key]
        elif ref.home == number and ref.pull == 0 and not (number == self.number and is_in_own_store(self, ref)):
            unpin_lost(self, ref)
            if not move_to_replica(self, ref):
                continue  # whoever needs it is told that it's lost
    copy_missing(self)
    return 0


cdef int copy_missing(Engine self) except -1:
    """Nodes or stores have come or gone: what couldn't be had before may be now."""
    for key in self.copies_wanted:
        if copies_missing(self, key) > 0:
            find_another_place(self, key)
    return copy_next(self)


cdef int find_another_place(Engine self, bytes key) except -1:
    """Whoever was asked for a copy in vain may be asked again."""
    refused = self.copying.get(key)
    if refused is None:
        self.short_of_copies[key] = set()
    else:
        refused.clear()
    return 0


cdef int copy_next(Engine self) except -1:
    while self.short_of_copies and len(self.copying) < COPYING_MAX and not self.closed:
        key, refused = self.short_of_copies.popitem()
        self.copying[key] = refused
        if not copy_anew(self, key, refused):
            del self.copying[key]
    return 0


cdef bint copy_anew(Engine self, bytes key, set refused) except -1:
    """Whether a node that has none, and none of refused, is asked for a copy."""
    cdef ObjectRef ref = find_ref(load_id(<const uint8_t*>PyBytes_AS_STRING(key)))
    cdef NodeLink at
    if ref is None or ref.state != PLASMA:
        return False
    if copies_missing(self, key) <= 0:
        return False
    for number in without_copy(self, ref, refused):
        at = None if number == self.number else node_link(self, number)
        if at is None and number != self.number:
            refused.add(number)
            continue
        ask_node(self, at, functools.partial(copied_anew, self, key, number), "replicate", key, ref.home)
        return True
    return False


def copied_anew(Engine self, bytes key, number, ok, why):
    cdef ObjectRef ref = find_ref(load_id(<const uint8_t*>PyBytes_AS_STRING(key)))
    refused = self.copying.pop(key)
    if self.closed:
        return
    if ref is None:
        if ok and number != self.number:
            free_elsewhere(self, key, number)  # nobody refers to it any more
    else:
        if ok and (copied_here(self, ref) if number == self.number else copied_there(self, ref, number)):
            tell_places(self, ref)
        else:
            refused.add(number)
        self.short_of_copies[key] = refused  # until nothing is missing, or nobody is left to be asked
    copy_next(self)


cdef bint copied_there(Engine self, ObjectRef ref, uint32_t number) except -1:
    cdef bytes key = ref.key()
    if number not in self.homes:
        return False
    places = self.replicas.setdefault(key, [])
    if number not in places and number != ref.home:
        places.append(number)
    say_own(self, key, number)
    return True


cdef bint copied_here(Engine self, ObjectRef ref) except -1:
    """From now on it's at home here again."""
    cdef bytes key = ref.key()
    if ref.home == self.number:
        return True
    if self.store is None or not store_pin(self, ref):
        return False  # it was evicted before we got here
    self.replicas.setdefault(key, []).append(ref.home)
    ref.home, ref.pinned = self.number, True
    return True


cdef int say_own(Engine self, bytes key, uint32_t number) except -1:
    where = self.homes.get(number)
    if where is not None:
        try:
            transfer_line(self).own(key, where)
        except (PlasmaStoreDied, FileNotFoundError):
            drop_line(self)  # said again when the store is back
    return 0


cdef int tell_places(Engine self, ObjectRef ref) except -1:
    """Those who were told before."""
    cdef Link link
    for tag, held in list(self.borrowers.items()):
        if ref in held:
            link = self.peers.get(tag)
            if link is not None and link.alive:
                send_told(link, ref)
    return 0
