# What a node says about leases: granted, wanted back, lost, sent elsewhere, or not to be had. Included by engine.pyx.
#
# The same words come from the own node and from others (nodes.pxi): `at` is the link to the other, None for the own. A lease is
# given back where it was got, and what another node says concerns only what was asked or got there.

def on_lease_grant(Engine self, NodeLink at, req_id, lease_id, worker_tag, worker_pid, gpu_ids):
    cdef LeasePool pool = self.lease_requests.pop(req_id, None)
    cdef Lease lease
    cdef Link link
    cdef uint8_t* out
    if pool is None:
        tell_node(self, at, "lease_return", lease_id, True)
        return
    pool.requests.pop(req_id, None)
    pool.warned = False
    link = self.dial(worker_tag)
    if link is None:
        tell_node(self, at, "lease_return", lease_id, False)
        pool.pump()
        return
    lease = Lease.__new__(Lease)
    lease.pool, lease.lease_id, lease.worker_tag, lease.link, lease.at = pool, lease_id, worker_tag, link, at
    link.lease = lease
    self.leases[lease_key(at, lease_id)] = lease
    pool.leases.append(lease)
    if (link.gpu_ids_sent or []) != list(gpu_ids):
        link.gpu_ids_sent = list(gpu_ids)
        out = PutU32(link.begin(F_GPUS, 0, <uint32_t>(4 + 4 * len(gpu_ids))), <uint32_t>len(gpu_ids))
        for gpu in gpu_ids:
            out = PutU32(out, <uint32_t>gpu)
    pool.pump()
    if lease.in_flight == 0:
        lease_idle(self, lease)


def on_lease_spilled(Engine self, NodeLink at, req_id, number):
    """Another node should run it: it is asked there. Should that node be gone, the own one knows, or soon will."""
    cdef LeasePool pool = self.lease_requests.get(req_id)
    cdef NodeLink there
    if pool is None:
        return  # cancelled meanwhile
    if pool.queue.empty():
        self.lease_requests.pop(req_id)
        pool.requests.pop(req_id, None)
        return
    there = None if number == self.number else node_link(self, number)
    ask_for_lease(self, pool, req_id, there, pool.requests[req_id].hops + 1)


def on_lease_infeasible(Engine self, NodeLink at, req_id, message):
    cdef LeasePool pool = self.lease_requests.get(req_id)
    if pool is None or pool.warned:
        return  # said once for this class; its other requests ask for the same
    pool.warned = True
    if self.on_error is not None:
        print_later(self, self.on_error, ("infeasible", message, {}))
    else:
        print(f"ray: {message}", file=sys.stderr)


def on_lease_failed(Engine self, NodeLink at, req_id, cause):
    cdef LeasePool pool = self.lease_requests.pop(req_id, None)
    if pool is not None:
        lease_failed(self, pool, req_id, cause)


def on_lease_refused(Engine self, NodeLink at, req_id, kind, message):
    refuse_lease(self, req_id, kind, message)


def on_lease_wanted(Engine self, NodeLink at):
    """Others wait for resources: idle leases go back now, busy ones after what they have in hand."""
    cdef Lease lease
    for lease in list(self.leases.values()):
        if lease.at is not at:
            continue
        if lease.in_flight == 0:
            end_lease(self, lease)
        else:
            lease.draining = True


def on_lease_evicted(Engine self, NodeLink at, lease_id, cause):
    """Its placement group is gone. A worker that has nothing of ours in hand goes back; another is to die with what it runs."""
    cdef Lease lease = self.leases.get(lease_key(at, lease_id))
    if lease is None:
        return  # it is on its way back
    if lease.in_flight == 0:
        end_lease(self, lease)
    else:
        tell_node(self, at, "lease_busy", lease_id)


def on_lease_lost(Engine self, NodeLink at, lease_id, cause):
    cdef Lease lease = self.leases.get(lease_key(at, lease_id))
    if lease is not None:
        link_lost_lease(self, lease)
        if lease.link is not None:
            finish_link(self, lease.link)  # and with it its calls


LEASE_EVENTS = dict(lease_grant=on_lease_grant, lease_spilled=on_lease_spilled, lease_infeasible=on_lease_infeasible,
                    lease_failed=on_lease_failed, lease_refused=on_lease_refused, lease_wanted=on_lease_wanted,
                    lease_evicted=on_lease_evicted, lease_lost=on_lease_lost)


cdef inline object lease_key(NodeLink at, lease_id):
    """Each node counts its leases from 1."""
    return lease_id if at is None else (at.number, lease_id)
