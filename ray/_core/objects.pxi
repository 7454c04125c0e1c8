# An object here: its value in this process's memory or in the store; put, get, wait. Included by engine.pyx.
#
# Small values stay in the memory of their owner and travel inside frames; larger ones go to the store, pinned by their owner.
# A ref that is PENDING settles once (settle in references.pyx); whoever waits looks at its state after each round.

cdef inline ObjectId make_id(Engine self, uint64_t seq, uint32_t index) noexcept:
    cdef ObjectId id
    id.tag0, id.tag1, id.seq, id.index = self.tag0, self.tag1, seq, index
    return id


cdef inline bint is_ours(Engine self, const ObjectId& id) noexcept:
    return id.tag0 == self.tag0 and id.tag1 == self.tag1


cdef bytes owner_tag(ObjectRef ref):
    cdef bytes out = PyBytes_FromStringAndSize(NULL, 16)
    memcpy(PyBytes_AS_STRING(out), &ref.id.tag0, 8)
    memcpy(PyBytes_AS_STRING(out) + 8, &ref.id.tag1, 8)
    return out


# ------------------------------------------------------------------ values

cdef inline bint is_plain(object value) noexcept:
    """Immutable and small whatever it is: the object itself can be the value, with nothing encoded."""
    cdef type t = type(value)
    return value is None or t is bool or t is int or t is float or (t is bytes and len(<bytes>value) < 65536) or (
        t is str and len(<str>value) < 16384)


cdef bytes blob_of(Encoded e):
    cdef bytes out = PyBytes_FromStringAndSize(NULL, e.nbytes)
    e.write(<uint8_t*>PyBytes_AS_STRING(out))
    return out


cdef int to_store(Engine self, bytes key, Encoded e) except -1:
    """Writes e into the store, sealed and pinned in our journal. Waits for room, and for a store that is being restarted."""
    cdef object dead
    while True:
        dead = self.store
        if dead is None:  # another thread connects this engine just now
            await_store(self, None)
            continue
        try:
            return to_this_store(self, key, e)
        except PlasmaStoreDied:
            await_store(self, dead)


cdef int await_store(Engine self, object dead) except -1:
    """The store process died; the node starts another and says store_back."""
    cdef int64_t deadline = NowNs() + <int64_t>(STORE_FULL_TIMEOUT_S * 1e9)
    if self.receiving and self.receiver == <unsigned long>get_ident():
        raise exceptions.ObjectStoreFullError("the object store is being restarted")
    self.enter()
    try:
        while self.store is dead:
            if not self.node.alive:
                raise self.node_died()
            if self.step(ms_until(deadline)) == 0 and NowNs() >= deadline:
                raise exceptions.RaySystemError(
                    f"the object store process died and was not back within {STORE_FULL_TIMEOUT_S} s")
    finally:
        self.leave()
    return 0


cdef bint reach_new_store(Engine self, object dead) except -1:
    """Whether the store that follows `dead` answers already. Others may have heard of it, and written to it, before us."""
    if self.closed:
        return False
    if self.store is not dead and self.store.alive:
        return True
    try:
        store = self.open_store(self.info["plasma_socket"])
    except (OSError, PlasmaStoreDied):
        return False
    if self.store is dead or not self.store.alive:  # another thread may have opened one meanwhile, and have pins there
        self.store = store
    return True


cdef bint in_store(Engine self, ObjectRef ref) except -1:
    if ref.home != self.number:
        return home_has_it(self, ref)
    if self.store is None:
        return False
    try:
        return self.store.contains(ref.key())
    except PlasmaStoreDied:
        return False


cdef int to_this_store(Engine self, bytes key, Encoded e) except -1:
    cdef PlasmaBuffer buf
    cdef PlasmaClient store = self.store  # all of it in this one: another thread may reach the next meanwhile
    if store.contains(key):
        store.delete(key)  # an earlier attempt's, whose worker died before the caller knew
    try:
        try:
            buf = store.create(key, e.nbytes, ids_of(e.refs), STORE_FULL_TIMEOUT_S)
        except PlasmaObjectExists:
            if self.transfers is None and not self.homes:
                raise
            end_pull_of(self, key)
            buf = store.create(key, e.nbytes, ids_of(e.refs), STORE_FULL_TIMEOUT_S)
    except PlasmaStoreFull as error:
        raise no_room(f"no room for an object of {e.nbytes} bytes in the object store: {error}", error) from None
    try:
        e.write(buf.address)
        store.seal(key)
    except BaseException:
        store.abort(key)
        raise
    store.pin(key)
    return 0


cdef object no_room(str text, object error):
    """What the user is told of a PlasmaStoreFull."""
    return (exceptions.OutOfDiskError if isinstance(error, PlasmaDiskFull) else exceptions.ObjectStoreFullError)(text)


cdef double STORE_FULL_TIMEOUT_S = 10.0  # how long create and get wait for room; the setting store_full_timeout_s


cdef int set_store_full_timeout(double timeout_s) except -1:
    global STORE_FULL_TIMEOUT_S
    STORE_FULL_TIMEOUT_S = plasma.RESTORE_TIMEOUT_S = timeout_s
    return 0


cdef int set_value(Engine self, ObjectRef ref, Encoded e) except -1:
    ref.contained = e.refs
    ref.size = e.nbytes
    if e.nbytes <= INLINE_BYTES_MAX:
        ref.value = blob_of(e)
        ref.is_error = is_error_kind(e.kind)
        ref.state = BLOB
    else:
        to_store(self, ref.key(), e)
        ref.pinned = True
        ref.home = self.number
        ref.state = PLASMA
    return 0


cdef int fail_ref(ObjectRef ref, object error) except -1:
    """error: an exception, or the bytes of an encoded one."""
    if type(error) is bytes:
        ref.value = error
        ref.is_error = True
        ref.state = BLOB
    else:
        ref.value = error
        ref.state = FAILED
    ref.producer = None
    return settle(ref)


cdef object value_of(Engine self, ObjectRef ref, int64_t give_up_ns=INT64_MAX):
    """The value of a ref that is not PENDING; raises its error; GetTimeoutError if it is elsewhere, on disk or lost, and
    not back by give_up_ns. May run user code."""
    cdef PlasmaBuffer buf
    cdef int64_t deadline_ns = -1 if give_up_ns == INT64_MAX else give_up_ns
    cdef bytes blob
    if ref.state == VALUE:
        return ref.value
    if ref.state == BLOB:
        blob = <bytes>ref.value
        value = decode_raw(<const uint8_t*>PyBytes_AS_STRING(blob), PyBytes_GET_SIZE(blob), blob, ref.contained)
        if ref.is_error:
            raise value
        return value
    if ref.state == PLASMA:
        while ref.state == PLASMA:
            store = self.store
            try:
                buf = self.store.get(ref.key(), give_up_ns) if self.store is not None else None
            except PlasmaStoreDied:
                if reach_new_store(self, store):
                    continue
                buf = None
            except TimeoutError:
                raise exceptions.GetTimeoutError(
                    f"ray.get: object {ref.hex()} is on disk, and was not back in memory within the timeout") from None
            except PlasmaStoreFull as error:
                raise no_room(f"object {ref.hex()} is on disk, and there is no room for it in the object store: {error}", error) from None
            if buf is not None:
                if ref.pull != 0:
                    end_pull(self, ref)
                if ref.contained is None and buf.metadata_nbytes and not ref.owned:
                    ref.contained = refs_beside(self, buf)
                return decode(buf, ref.contained)
            if ref.arrived:
                end_pull(self, ref)  # it was deleted meanwhile
            if ref.home != self.number:
                fetch(self, ref, deadline_ns)
            else:
                recover(self, ref)
            if ref.state == PENDING:
                # Our CPU is lent meanwhile: it may be the one on which it is made again.
                try:
                    if block(self, ref, deadline_ns) == 0:
                        raise exceptions.GetTimeoutError(
                            f"ray.get: object {ref.hex()} was lost, and was not made again within the timeout")
                finally:
                    if self.executor is not None:
                        self.executor.unblock()
        return value_of(self, ref, give_up_ns)
    raise fresh(ref.value)


cdef object fresh(error):
    """A copy of a stored error, to be raised: raised itself, it would hold the frames of whoever caught it, and they the ref."""
    try:
        copied = copy.copy(error)
    except Exception:
        return exceptions.RaySystemError(str(error))
    copied.__cause__ = error.__cause__
    return copied.with_traceback(None)



# ------------------------------------------------------------------ put, get, wait (called from Engine's methods)

cdef ObjectRef put_value(Engine self, object value):
    cdef ObjectRef ref = new_ref(make_id(self, self.next_seq, 0), True)
    self.next_seq += 1
    if is_plain(value):
        ref.value = value
        ref.state = VALUE
    else:
        set_value(self, ref, encode(value, "the value given to ray.put"))
    return ref


cdef int block(Engine self, ObjectRef ref, int64_t deadline_ns) except -1:
    """Waits until ref is not PENDING: 1, or 0 when the deadline (-1: none) has passed."""
    cdef int64_t ms
    cdef bint lend_cpu = self.executor is not None and self.executor.may_lend()
    self.enter()
    try:
        while ref.state == PENDING:
            if self.closed:
                raise exceptions.RaySystemError("ray was shut down while waiting for an object")
            if not self.node.alive:
                raise self.node_died()
            ms = ms_until(deadline_ns)
            if ms == 0:
                if self.step(0) == 0 or NowNs() >= deadline_ns:
                    return 0 if ref.state == PENDING else 1
                continue
            if lend_cpu:
                # A wait of under a millisecond isn't worth telling the node.
                if self.step(1) == 0 and ref.state == PENDING:
                    self.executor.block()
                    lend_cpu = False
            else:
                self.step(ms)
    finally:
        self.leave()
    return 1


cdef list get_values(Engine self, list refs, object timeout):
    cdef Py_ssize_t i, n = PyList_GET_SIZE(refs)
    cdef ObjectRef ref
    cdef int64_t deadline = -1
    cdef list out
    cdef bint blocked = False
    for i in range(n):
        ref = <ObjectRef?>refs[i]
        if ref.state == PENDING:
            blocked = True
            if not ref.owned and not ref.asked:
                ask_owner(self, ref)
    cdef Py_ssize_t ahead = 0      # from that element on, those behind it are to be asked for
    cdef int64_t give_up_ns = INT64_MAX
    cdef uint64_t restores = self.store.restores if self.store is not None else 0
    if timeout is not None:
        deadline = give_up_ns = NowNs() + <int64_t>(<double>timeout * 1e9)
    if blocked:
        try:
            for i in range(n):
                ref = <ObjectRef>refs[i]
                if ref.state == PENDING:
                    if block(self, ref, deadline) == 0:
                        raise exceptions.GetTimeoutError(
                            f"ray.get: {sum(1 for r in refs if (<ObjectRef>r).state == PENDING)} of {n} objects were not ready "
                            f"after {timeout} s")
                if ref.state == FAILED or ref.is_error:
                    break
        finally:
            if self.executor is not None:
                self.executor.unblock()
    if self.homes:
        fetch_all(self, refs, deadline, timeout)
    out = [None] * n
    for i in range(n):
        ref = <ObjectRef>refs[i]
        if ref.state == VALUE:
            out[i] = ref.value
        elif ref.state == PENDING:
            out[i] = get_value(self, ref, timeout)  # found lost with one before it, and is being made again
        else:
            if i == 0 and n > 1 and self.store is not None and self.store.has_spilled():
                ask_ahead(self, refs, 0)  # the first, too: every thread of the store that reads has something at once
            out[i] = value_of(self, ref, give_up_ns)
            if i >= ahead and self.store is not None and self.store.restores != restores and i + 1 < n:
                ahead = ask_ahead(self, refs, i + 1)
    return out


cdef Py_ssize_t AHEAD = 32         # objects of a get that are brought back from disk while those before them are read


cdef Py_ssize_t ask_ahead(Engine self, list refs, Py_ssize_t first) except -1:
    """One was on disk: those behind it may be, too. Returns from which element on to ask again."""
    cdef ObjectRef ref
    cdef list keys = []
    for item in refs[first:first + AHEAD]:
        ref = <ObjectRef>item
        if ref.state == PLASMA and ref.home == self.number:
            keys.append(ref.key())
    if keys:
        try:
            self.store.ahead(keys)
        except PlasmaStoreDied:
            return first  # the get of the next finds out, and waits for another store
    return first + AHEAD // 2


cdef object get_value(Engine self, ObjectRef ref, object timeout):
    if ref.state == VALUE:
        return ref.value
    return get_values(self, [ref], timeout)[0]


cdef extern from *:
    """
    #define ray_type_of(o) ((PyObject*)Py_TYPE(o))
    """
    PyObject* type_of "ray_type_of"(PyObject* o)
    PyObject** PySequence_Fast_ITEMS(list o)


cdef tuple wait_refs(Engine self, list refs, Py_ssize_t wanted, object timeout, bint fetch_local):
    """Programs call this in a loop over its own rest, of thousands of refs: what is done for each of them is kept to a look at
    one cache line, through borrowed pointers. And of the rest that was returned last, it is known that its refs are distinct: if
    enough of the first are ready, the others aren't looked at. What is left to do for them is that a new list has them (10,000 waits
    on what is left of 10,000 refs: 2.4 s at first, 0.13 s without that, 0.05 s so; slices of a list of that size alone 0.04 s)."""
    cdef Py_ssize_t i, ready, n = PyList_GET_SIZE(refs)
    cdef PyObject** items = PySequence_Fast_ITEMS(refs)
    cdef PyObject* kind = <PyObject*>ObjectRef
    cdef PyObject* item
    cdef int64_t deadline = -1
    cdef int64_t ms
    cdef bint lend_cpu
    cdef list given = refs         # refs, and generators in whose place `refs` has what to wait for
    cdef uint64_t mark
    if <PyObject*>refs == self.last_rest and n == self.last_rest_size:
        # Another list may have come to lie there; then it is only not noticed if a ref is in it twice.
        ready = 0
        for i in range(n):
            if type_of(items[i]) != kind:
                break
            ready += (<ObjectRef>items[i]).state != PENDING
            if ready == wanted:
                return ready_now(self, refs, refs, n, wanted, fetch_local)
    mark = self.wait_mark + 1
    self.wait_mark = mark
    ready = 0
    for i in range(n):
        item = items[i]
        if type_of(item) != kind:
            if type(<object>item) is ObjectRefGenerator and refs is given:
                refs = stand_ins(self, given)
                items = PySequence_Fast_ITEMS(refs)
                item = items[i]
            if not isinstance(<object>item, ObjectRef):
                raise TypeError(f"ray.wait: expected ObjectRefs, got {<object>item!r}")
        if (<ObjectRef>item).mark == mark:
            raise ValueError(f"ray.wait: {given[i]!r} was given twice; the refs must be distinct")
        (<ObjectRef>item).mark = mark
        if (<ObjectRef>item).state != PENDING:
            ready += 1
        elif not (<ObjectRef>item).owned and not (<ObjectRef>item).asked:
            ask_owner(self, <ObjectRef>item)
    if ready < wanted:
        if fetch_local and ready > 0 and may_be_away(self):
            bring_ahead(self, refs)
        if timeout is not None:
            deadline = NowNs() + <int64_t>(<double>timeout * 1e9)
        lend_cpu = self.executor is not None and self.executor.may_lend()
        self.enter()
        try:
            while True:
                ready = 0
                items = PySequence_Fast_ITEMS(refs)
                if PyList_GET_SIZE(given) != n:
                    raise ValueError("ray.wait: the list was changed by another thread meanwhile")
                for i in range(n):
                    if (<ObjectRef>items[i]).state != PENDING:
                        ready += 1
                        if ready >= wanted:
                            break
                if ready >= wanted:
                    break
                if not self.node.alive:
                    raise self.node_died()
                ms = ms_until(deadline)
                if ms == 0:
                    if self.step(0) == 0 or NowNs() >= deadline:
                        break
                elif lend_cpu:
                    if self.step(1) == 0:
                        self.executor.block()
                        lend_cpu = False
                else:
                    self.step(ms)
        finally:
            self.leave()
            if self.executor is not None:
                self.executor.unblock()
    return ready_now(self, refs, given, n, wanted, fetch_local)


cdef inline bint may_be_away(Engine self) noexcept:
    """Whether there can be objects elsewhere, or on disk: on one machine that has never spilled this costs two loads."""
    return PyDict_Size(self.homes) != 0 or (self.store is not None and self.store.has_spilled())


cdef tuple ready_now(Engine self, list refs, list given, Py_ssize_t n, Py_ssize_t wanted, bint fetch_local):
    """What wait returns; what of it is elsewhere or on disk is on its way."""
    cdef tuple answer = split_ready(self, refs, given, n, wanted)
    if fetch_local and may_be_away(self):
        bring_ahead(self, refs)
    return answer


cdef Py_ssize_t AHEAD_LOOKED_AT = 64   # refs of a wait's list, so that a loop of waits over thousands stays cheap
cdef int64_t AHEAD_BYTES = 64 << 20    # on their way from other nodes for no other reason


cdef int bring_ahead(Engine self, list refs) except -1:
    """For wait: the first AHEAD of those that are ready will be wanted soon. Those on disk are brought back as far as there is
    room; of those elsewhere a copy is fetched, which is evicted like any other if nobody reads it. Waits for nothing, and
    nothing that goes wrong is told: get finds out."""
    cdef ObjectRef ref
    cdef list keys = []
    cdef Py_ssize_t found = 0
    cdef bint spilled = self.store is not None and self.store.has_spilled()
    for item in PyList_GetSlice(refs, 0, AHEAD_LOOKED_AT):
        if not isinstance(item, ObjectRef) or (<ObjectRef>item).state != PLASMA:
            continue
        ref = <ObjectRef>item
        if ref.home == self.number:
            if spilled:
                keys.append(ref.key())
        elif ref.pull == 0 and is_away(self, ref):
            pull_ahead(self, ref)
        found += 1
        if found == AHEAD:
            break
    if keys:
        try:
            self.store.ahead(keys)
        except PlasmaStoreDied:
            pass  # the get of any finds out, and waits for another store
    return 0


cdef tuple split_ready(Engine self, list refs, list given, Py_ssize_t n, Py_ssize_t wanted):
    """(the first `wanted` ready ones, the rest). What lies behind the last of the former is copied as a block.
    refs: what is waited for in the places of `given`."""
    cdef Py_ssize_t i = 0
    cdef list done = [], waiting = [], rest
    cdef PyObject** items = PySequence_Fast_ITEMS(refs)
    while i < n and PyList_GET_SIZE(done) < wanted:
        if (<ObjectRef>items[i]).state != PENDING:
            done.append(given[i])
        else:
            waiting.append(given[i])
        i += 1
    rest = PyList_GetSlice(given, i, n)
    if waiting:
        rest = waiting + rest
    self.last_rest, self.last_rest_size = <PyObject*>rest, PyList_GET_SIZE(rest)
    return done, rest
