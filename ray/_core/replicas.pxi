# Objects that are put with _replicas=n: in the store of their owner's node and in those of n - 1 others. Included by engine.pyx.
#
# The owner asks the processes of other nodes, as a guest there, to have their stores fetch the object and hold it for the owner
# (`replicate`, ray/_node/object_transfers.py), and waits for them: when the put returns, the copies are there. Chosen are the nodes
# whose numbers follow the owner's; one that can't is replaced by the next. What is lost later is not copied anew.
#
# `Engine.replicas` says where the copies are, at the owner and, since it travels with the place (REPLICATED), at each borrower, who
# claims them all. A home that is lost is replaced by one of them (`move_to_replica`), which is asked for first whenever the object
# would have to be made again. A replica is freed as the home's copy is: by the owner, or when it has lapsed and nobody keeps it.

cdef tuple put_copies(Engine self, object value, int copies):
    """(ref, number of stores that have it, why other nodes haven't got it: number -> text)"""
    cdef ObjectRef ref = new_ref(make_id(self, self.next_seq, 0), True)
    cdef Encoded e = encode(value, "the value given to ray.put")
    cdef bytes key
    cdef dict failures = {}
    cdef list places = [], asked
    self.next_seq += 1
    ref.contained, ref.size = e.refs, e.nbytes
    key = ref.key()
    to_store(self, key, e)
    ref.pinned, ref.home, ref.state = True, self.number, PLASMA
    intern(ref)
    others = sorted(self.homes)
    candidates = [number for number in others if number > self.number] + [number for number in others if number < self.number]
    while candidates and len(places) < copies - 1:
        asked = candidates[:copies - 1 - len(places)]
        del candidates[:len(asked)]
        places += ask_for_copies(self, key, asked, failures)
    if places:
        self.replicas[key] = places
    return ref, 1 + len(places), failures


def copy_answered(Engine self, bytes key, dict answers, number, ok, why):
    answers[number] = (ok, why)
    if ok and GIVEN_UP in answers:
        free_elsewhere(self, key, number)


cdef object GIVEN_UP = "given up"  # among the answers, which are by number: nobody waits for them any more


cdef list ask_for_copies(Engine self, bytes key, list numbers, dict failures):
    """Those of the nodes that have it now."""
    cdef NodeLink at
    cdef dict answers = {}
    cdef list got = []
    for number in numbers:
        at = node_link(self, number)
        if at is None:
            answers[number] = (False, None)
        else:
            ask_node(self, at, functools.partial(copy_answered, self, key, answers, number), "replicate", key)
    self.enter()
    try:
        while len(answers) < len(numbers):
            if self.closed:
                raise exceptions.RaySystemError("ray was shut down while an object was replicated")
            if not self.node.alive:
                raise self.node_died()
            self.step(-1)
    except BaseException:
        for number, (ok, why) in answers.items():
            if ok:
                free_elsewhere(self, key, number)
        answers[GIVEN_UP] = None
        raise
    finally:
        self.leave()
    for number, (ok, why) in answers.items():
        where = self.homes.get(number)
        if not ok or where is None:
            failures[number] = "it can't be reached" if why is None else str(why)
            continue
        try:
            transfer_line(self).own(key, where)
        except (PlasmaStoreDied, FileNotFoundError):
            drop_line(self)  # said again when the store is back
        got.append(number)
    return got


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
            return True
    self.replicas.pop(key, None)
    return False


cdef int let_go_of_replicas(Engine self, bytes key) except -1:
    if self.replicas:
        for number in self.replicas.pop(key, ()):
            let_go(self, key, number)
    return 0


cdef int free_replicas(Engine self, bytes key) except -1:
    if self.replicas:
        for number in self.replicas.pop(key, ()):
            free_elsewhere(self, key, number)
    return 0
