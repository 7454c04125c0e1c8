# Other nodes: where they are, the links on which leases are asked of them, and what their death means. Included by engine.pyx.
#
# A NodeLink is made when a request is first sent on to that node, and lives until the connection ends: the process here is a
# guest there (ray/_node/guests.py), and its leases there end with the connection. So a NodeLink that closes means for us that
# what was leased there is lost, whatever its workers are doing: their calls are retried as a dead worker's are. Requests that
# waited there are asked of the own node again, with one hop more, so that a node that can't be reached isn't tried for ever.
#
# A node that is down takes all links to its processes with it: a cut cable closes no connection by itself.
#
# On one machine the table of nodes is empty, and none of this runs.

cdef class NodeLink:
    def __repr__(self):
        return f"<NodeLink to node {self.number} {'alive' if self.link.alive else 'closed'}>"


@cython.final
cdef class Asked:
    """Where a lease request is."""
    def __init__(self, NodeLink at, int hops):
        self.at, self.hops = at, hops


cdef class NodeAddress:
    def __init__(self, bytes node_id, str host, int port):
        self.node_id, self.host, self.port, self.alive = node_id, host, port, True


cdef uint32_t node_number(bytes tag):
    """Of the node on which the process with this tag lives: the tag's first four bytes."""
    cdef const uint8_t* p = <const uint8_t*>PyBytes_AS_STRING(tag)
    return (<uint32_t>p[0] << 24) | (<uint32_t>p[1] << 16) | (<uint32_t>p[2] << 8) | p[3]


cdef int learn_nodes(Engine self, dict answer) except -1:
    """What `register` says of the cluster: the rows of the other nodes."""
    for row in answer.get("nodes") or ():
        if row["number"] != self.number and row.get("state", "ALIVE") == "ALIVE":
            on_node_up(self, row["number"], row["node_id"], row["host"], row["port"])
    return 0


def on_node_up(Engine self, number, node_id, host, port):
    if number != self.number:
        self.node_table[number] = NodeAddress(node_id, host, port)
        node_came(self, number, host, port)


def on_node_down(Engine self, number, cause):
    """Nothing on it lives any more, whatever our connections there look like."""
    cdef NodeAddress address = self.node_table.get(number)
    cdef Link link
    if address is not None:
        address.alive = False
    node_went(self, number)
    for link in list(self.links.values()):
        if link.alive and (link.of_node.number == number if link.of_node is not None else
                           link is not self.node and len(link.tag) == 16 and node_number(link.tag) == number):
            link.conn.Close("its node is down")
            self.link_closed(link)


cdef NodeAddress address_of(Engine self, uint32_t number):
    """Of a node that lives, as far as we have heard; None: of none such."""
    cdef NodeAddress address = self.node_table.get(number)
    if address is None:
        look_for_node(self, number)
        address = self.node_table.get(number)
    return address if address is not None and address.alive else None


cdef int look_for_node(Engine self, uint32_t number) except -1:
    """A number that our node has not told us of: its word may be behind another process's that has heard of it already. Our
    node wrote it to a file before it acknowledged the newcomer, so whom we don't find there is dead (docs/internals/cluster.md)."""
    from ray._launch import cluster_file  # seldom needed, and it imports json

    said = cluster_file.read(self.session_dir)
    if said is None:
        return 0
    for row in said["nodes"]:
        if row["number"] == number:
            on_node_up(self, number, row["node_id"], row["host"], row["port"])
    return 0


cdef CConnection* connect_to(Engine self, uint32_t number, bytes tag) except? NULL:
    """A connection, which may still be being made, to a core of another node, or to the node's process if tag is None. NULL: the
    node is gone, or its process can't be reached; one to a core may be unmade, to be dialled again (redial.pxi). Whether it
    answers shows later: a core may be long at something else. There is no deadline for it but the node's own: one that can't
    be reached is soon declared dead."""
    cdef NodeAddress address = address_of(self, number)
    cdef unique_ptr[CConnection] conn
    cdef Status status
    if address is None:
        return NULL
    if self.reach is not None:  # a ray:// client's: the way there leads through the server (ray/client/bridge.py)
        self.reach(number.to_bytes(4, "big") + bytes(12))
        path = os.path.join(self.session_dir, "c", (number.to_bytes(4, "big") + bytes(12)).hex())
        conn = CConnection.Dial(os.fsencode(path), self.identity, &status)
    elif address.host.startswith("unix:"):
        path = os.path.join(address.host[5:], "node.sock" if tag is None else f"c/{tag.hex()}")
        conn = CConnection.Dial(os.fsencode(path), self.identity, &status)
    elif tag is None:
        conn = CConnection.DialTcp(address.host.encode(), address.port, Destination.kNode,
                                   <const uint8_t*>PyBytes_AS_STRING(address.node_id), self.identity, &status)
    else:
        conn = CConnection.DialTcp(address.host.encode(), address.port, Destination.kCore,
                                   <const uint8_t*>PyBytes_AS_STRING(tag), self.identity, &status)
        if not conn.get() and status.code() != StatusCode.kDisconnected:
            conn = CConnection.Unmade()
    return conn.release()


cdef NodeLink node_link(Engine self, number):
    """The link to a node's process, made if there is none. None: that node is gone, or can't be reached."""
    cdef NodeLink at = self.nodes.get(number)
    cdef unique_ptr[CConnection] conn
    cdef Link link
    if at is not None:
        return at
    if self.closed:
        return None
    at, link = NodeLink.__new__(NodeLink), Link.__new__(Link)
    conn.reset(connect_to(self, number, None))
    if not conn.get():
        return None
    found = self.nodes.get(number)
    if found is not None:
        return <NodeLink>found  # another thread has dialled meanwhile
    link.engine, link.conn, link.dialed = self, conn.release(), True
    at.engine, at.number, at.link, at.rpcs = self, number, link, set()
    link.of_node = at
    self.nodes[number] = at
    self.add_link(link)
    about = {"kind": "driver" if self.is_driver else "worker", "tag": self.tag, "job_id": self.info["job_id"],
             "namespace": self.info.get("namespace", ""), "pid": os.getpid()}
    ask_node(self, at, functools.partial(node_answered, at), "register_guest", about)
    return at


def node_answered(NodeLink at, ok, answer):
    """To register_guest. A node that won't have us can't lend us anything; it is said once, however often it is asked."""
    cdef NodeAddress address = at.engine.node_table.get(at.number)
    if not ok and at.link.alive:
        if answer is not None and not at.engine.closed and not (address is not None and address.refused):
            print(f"ray: node {at.number} refused this process: {answer}", file=sys.stderr)
        if address is not None:
            address.refused = True
        at.link.conn.Close("refused")
        at.engine.link_closed(at.link)


cdef int tell_node(Engine self, NodeLink at, str name, a, b=None) except -1:
    """Tells the node where a lease is, or is asked, something; None: the own one. To a node that is gone, nothing."""
    args = (a,) if b is None else (a, b)
    if at is None:
        if self.node.alive:
            send_control(self.node, F_EVENT, (name, args))
    elif at.link.alive:
        send_control(at.link, F_EVENT, (name, args))
    return 0


cdef int ask_node(Engine self, NodeLink at, answered, str method, a, b=None) except -1:
    """answered(ok, value) is called with a node's answer, or (False, None) when its link ends. at, a, b: as for tell_node."""
    cdef uint64_t request = self.next_request
    self.next_request += 1
    self.rpcs[request] = functools.partial(node_replied, self, at, request, answered)
    if at is not None:
        at.rpcs.add(request)
    send_control(self.node if at is None else at.link, F_RPC, (request, method, (a,) if b is None else (a, b)))
    return 0


def node_replied(Engine self, NodeLink at, request, answered, ok, value):
    self.rpcs.pop(request, None)
    if at is not None:
        at.rpcs.discard(request)
    answered(ok, value)


cdef int ask_for_lease(Engine self, LeasePool pool, req_id, NodeLink at, int hops) except -1:
    """Asks a node, the own one if `at` is None."""
    pool.requests[req_id] = FIRST_ASKED if at is None and hops == 0 else Asked(at, hops)
    self.lease_requests[req_id] = pool
    info = {"name": pool.name, "strategy": pool.strategy}
    if hops:
        info["hops"] = hops
    if pool.priority:
        info["priority"] = pool.priority
    if not pool.retriable:
        info["retriable"] = False
    if pool.runtime_env:
        info["runtime_env"] = pool.runtime_env
    if self.node_table:
        holds = argument_places(pool)
        if holds:
            info["holds"] = holds
    if at is None:
        self.event("lease_request", req_id, pool.resources, info)
    else:
        send_control(at.link, F_EVENT, ("lease_request", (req_id, pool.resources, info)))
    return 0


cdef int cancel_request(Engine self, LeasePool pool, req_id) except -1:
    self.lease_requests.pop(req_id, None)
    return tell_node(self, (<Asked>pool.requests[req_id]).at, "lease_cancel", req_id)


cdef dict argument_places(LeasePool pool):
    """Bytes of large arguments of the next task, by the number of the node that has them; None: it has none."""
    cdef Task task
    cdef ObjectRef ref
    cdef dict places = None
    if pool.queue.empty():
        return None
    task = <Task>pool.queue.front()
    if task.slots is None:
        return None
    for slot in task.slots:
        if isinstance(slot, ObjectRef) and (<ObjectRef>slot).state == PLASMA:
            ref = <ObjectRef>slot
            places = {} if places is None else places
            number = ref.home
            places[number] = places.get(number, 0) + ref.size
    return places


cdef int node_link_lost(Engine self, NodeLink at) except -1:
    """The node is gone, or cut off. See the top."""
    cdef LeasePool pool
    cdef Lease lease
    if self.nodes.get(at.number) is at:
        del self.nodes[at.number]
    for request in list(at.rpcs):
        answered = self.rpcs.get(request)
        if answered is not None:
            answered(False, None)
    for lease in list(self.leases.values()):
        if lease.at is at:
            link_lost_lease(self, lease)
            if lease.link.alive:
                lease.link.conn.Close("its node can't be reached")
                self.link_closed(lease.link)
    if self.closed or not self.node.alive:
        return 0
    for pool in list(self.pools.values()):
        for req_id, asked in list(pool.requests.items()):
            if (<Asked>asked).at is at:
                ask_for_lease(self, pool, req_id, None, (<Asked>asked).hops + 1)
    return 0


cdef int on_node_event(Engine self, NodeLink at, str name, tuple args) except -1:
    handler = LEASE_EVENTS.get(name)
    if name == "store_anew":
        copies_gone(self, at.number)
    elif handler is None:
        print(f"ray: event {name!r} from node {at.number} is unknown here", file=sys.stderr)
    else:
        handler(self, at, *args)
    return 0


cdef Asked FIRST_ASKED = Asked(None, 0)  # of the own node, by whoever wants the lease: nearly all requests
