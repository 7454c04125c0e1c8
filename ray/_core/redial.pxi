# Links that can't be made yet. Included by engine.pyx.
#
# A process on another node may be out of reach for some seconds (its cable, a full table of connections, a gate that stands still)
# and be as alive as before. That it has died is said by its node's gate (Connection.no_such_process), or follows from its node's
# death (on_node_down). Any other end of a connection that we have dialled, before the process has greeted, means nothing but that:
# it has heard none of our frames, so they are kept, and it is dialled again, ever more rarely. Whoever holds the Link notices nothing.
#
# A link is in Engine.redials exactly while link.redial_ns is set; its connection is dead then, and takes frames.

cdef int64_t REDIAL_MIN_NS = 20_000_000
cdef int64_t REDIAL_MAX_NS = 1_000_000_000


cdef int watch_link(Engine self, Link link) except -1:
    """Its connection is new."""
    if link.conn.fd() < 0:
        if not dial_again(self, link):
            self.link_closed(link)
        return 0
    link.far = link.conn.over_tcp()
    self.poller.Add(link.conn.fd(), link.key)
    if link.conn.wants_write():  # over TCP: the greeting goes out when the connection has been made
        link.want_write = True
        self.poller.Want(link.conn.fd(), link.key, True, True)
    return 0


cdef bint dial_again(Engine self, Link link) except -1:
    """True: its connection has ended, or could not be begun, and that says nothing about the process: it is tried again."""
    cdef NodeAddress address
    cdef int64_t pause
    if not link.dialed or link.of_node is not None or link.conn.greeted() or link.conn.no_such_process() or len(link.tag) != 16:
        return False
    if self.closed or self.reach is not None or not self.node.alive or node_number(link.tag) == self.number:
        return False
    address = address_of(self, node_number(link.tag))
    if address is None or address.host.startswith("unix:"):
        return False
    if link.redial_ns:
        return True
    if link.conn.fd() >= 0:
        self.poller.Remove(link.conn.fd())
        link.conn.Close("it is dialled again")
    link.want_write = False
    pause = REDIAL_MIN_NS << min(link.dials, 10)
    link.dials += 1
    link.redial_ns = NowNs() + min(pause, REDIAL_MAX_NS)
    self.redials.append(link)
    if self.deadline_redial_ns == 0 or link.redial_ns < self.deadline_redial_ns:
        self.set_deadline(D_REDIAL, link.redial_ns)
    return True


cdef int redial(Engine self, int64_t now) except -1:
    cdef Link link
    cdef CConnection* conn
    cdef int64_t next_ns = 0
    waiting, self.redials = self.redials, []
    self.deadline_redial_ns = 0
    for link in waiting:
        if not link.alive:
            link.redial_ns = 0
            continue
        if link.redial_ns > now:
            self.redials.append(link)
            if next_ns == 0 or link.redial_ns < next_ns:
                next_ns = link.redial_ns
            continue
        link.redial_ns = 0
        conn = connect_to(self, node_number(link.tag), link.tag)
        if conn == NULL:
            self.link_closed(link)
            continue
        conn.TakeUnheard(link.conn)
        del link.conn
        link.conn = conn
        watch_link(self, link)
    if next_ns and (self.deadline_redial_ns == 0 or next_ns < self.deadline_redial_ns):
        self.set_deadline(D_REDIAL, next_ns)
    return 0
