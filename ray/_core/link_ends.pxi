# Links to other processes: how they begin, and what their end means for each part of the engine. Included by engine.pyx.

cdef Link dial_process(Engine self, bytes tag):
    """For Engine.dial: there is none yet."""
    cdef Status status
    cdef Link link
    cdef unique_ptr[CConnection] conn
    if self.closed or (tag == self.tag and self.executor is None):
        return None
    if node_number(tag) != self.number and self.reach is None:
        conn.reset(connect_to(self, node_number(tag), tag))
    else:
        if self.reach is not None:
            self.reach(tag)
        conn = CConnection.Dial(os.fsencode(os.path.join(self.session_dir, "c", tag.hex())), self.identity, &status)
    if not conn.get():
        return None
    link = Link.__new__(Link)
    found = self.peers.get(tag)
    if found is not None:
        return <Link>found  # another thread has dialled meanwhile
    link.engine, link.conn, link.dialed, link.tag = self, conn.release(), True, tag
    self.peers[tag] = link
    self.add_link(link)
    return link if link.alive else None


cdef int link_ended(Engine self, Link link) except -1:
    """For Engine.link_closed."""
    cdef Link other
    link.alive = False
    if not link.dialed and not link.tag and not self.closed:
        refused(self, link.conn, link.conn.why_closed())
    if link.conn.fd() >= 0:
        self.poller.Remove(link.conn.fd())
        link.conn.Close("peer gone")
    self.links.pop(link.key, None)
    for held in link.holds.values():
        if isinstance(held, _HeldPins):
            (<_HeldPins>held).orphaned = True
    link.holds.clear()
    if link is self.node:
        return node_ended(self)
    if link.of_node is not None:
        return node_link_lost(self, link.of_node)
    if self.peers.get(link.tag) is link:
        del self.peers[link.tag]
        for other in self.links.values():
            if other.tag == link.tag and other.alive:
                self.peers[link.tag] = other
                other.borrowed += link.borrowed
                break
    if link.lease is not None:
        link_lost_lease(self, link.lease)
        if link.calls.empty():  # else the node is asked on their behalf: it ends the lease of a worker that lives
            ask_exit_cause(self, link, [])
    if self.executor is not None:
        stop_producers_for(self.executor, link)
        self.executor.on_caller_gone(link)
    lost_calls(self, link)
    if link.tag not in self.peers:
        peer_gone(self, link)
    return 0


cdef int node_ended(Engine self) except -1:
    """The node process died: the session is over, and everything that waits must hear it."""
    cdef LeasePool pool
    cdef Link link
    cdef ActorLine actor
    error = self.node_died()
    if self.executor is not None:
        # A worker ends with its node. Who calls it, or asks for what it owns, is to hear that it died, and to go on
        # elsewhere: not what the node's death means in here.
        for link in list(self.links.values()):
            self.link_closed(link)
    for slot in list(self.rpcs.values()):
        if callable(slot):
            slot(False, None)
        else:
            slot[1], slot[2] = False, error
            slot[0] = True
    for link in list(self.links.values()):
        lost_calls(self, link)
    for pool in list(self.pools.values()):
        pool.fail_queue(error)
    for found in list(self.actors.values()):
        actor = found()
        if actor is not None:
            actor.cause = str(error)
            actor.state = "DEAD"
            actor.fail_queue()
    for ref in list(self.gets.values()):
        fail_ref(<ObjectRef>ref, error)
    self.gets.clear()
    if self.executor is not None:
        self.executor.on_exit()
    return 0
