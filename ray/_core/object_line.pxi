# Our line to the object manager of our store: made when it is needed, made again when the store has died and is back. Included by
# engine.pyx.

cdef uint64_t TRANSFER_KEY = 2     # in the poller


cdef TransferLine transfer_line(Engine self):
    cdef TransferLine line
    cdef bint before = self.had_line
    if self.transfers is None:
        self.had_line = True  # or would have, but for the store
        line = TransferLine(os.path.join(self.session_dir, "objects.sock"))
        if self.transfers is not None:
            line.close()  # another thread has made one meanwhile
            return self.transfers
        self.transfers = line
        self.poller.Add(line.fd, TRANSFER_KEY)
        if before:
            say_places_again(self)
    return self.transfers


cdef int say_places_again(Engine self) except -1:
    """A store that has ended, or the end of our line to it, took along what we keep at other stores, and what they hold for us."""
    cdef ObjectRef ref
    for ref in references.all_refs():
        if ref.state == PLASMA and (ref.owned or ref.pinned):
            say_place(self, ref, ref.key(), ref.home)
    for key, numbers in list(self.replicas.items()):
        ref = find_ref(load_id(<const uint8_t*>PyBytes_AS_STRING(key)))
        if ref is not None:
            for number in numbers:
                say_place(self, ref, key, number)
    return 0


cdef int say_place(Engine self, ObjectRef ref, bytes key, uint32_t number) except -1:
    where = None if number == self.number else self.homes.get(number)
    if where is not None and ref.owned:
        self.transfers.own(key, where)
    elif where is not None:
        self.claiming[self.transfers.claim(key, where)] = [ref, []]
    return 0


cdef int drop_line(Engine self) except -1:
    """The store has died, or we leave: what was asked is not answered any more."""
    cdef ObjectRef ref
    cdef TransferLine line = self.transfers
    if line is None:
        return 0
    self.transfers = None
    if self.poller != NULL:
        self.poller.Remove(line.fd)
    line.close()
    pins, self.holding = self.holding, {}
    for pin in pins.values():
        let_pin_go(pin)
    claims, self.claiming = self.claiming, {}
    for ref, waiting in claims.values():
        for all_of in waiting:
            counted(self, <Countdown>all_of)
    pulls, self.pulls = self.pulls, {}
    self.pulls_ahead.clear()
    for ref in pulls.values():
        ref.pull = 0
        fetched(self, ref)
    return 0


cdef int store_back(Engine self) except -1:
    """Our store has died and is back."""
    if self.had_line and self.transfers is not None:
        on_transfer_events(self)  # one to the earlier store is seen to have ended
    if self.had_line and self.transfers is None:
        try:
            transfer_line(self)
        except (PlasmaStoreDied, FileNotFoundError):
            drop_line(self)  # it has died again
    return free_again(self) if self.freed else 0


cdef int on_transfer_events(Engine self) except -1:
    try:
        events = self.transfers.receive()
    except PlasmaStoreDied:
        return drop_line(self)
    for event in events:
        if event[0] == "pulled":
            pulled(self, event[1], event[2], event[3])
        elif event[0] == "held":
            pin = self.holding.pop(event[1], None)
            if pin is not None:
                let_pin_go(pin)
        elif event[0] == "claimed":
            claim = self.claiming.pop(event[1], None)
            if claim is not None:
                for all_of in claim[1]:
                    counted(self, <Countdown>all_of)
    return 0
