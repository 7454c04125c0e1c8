# Leases of workers, one pool for each scheduling class. Included by engine.pyx.
#
# While a pool's queue isn't empty it asks the node for leases, at most REQUESTS_MAX ahead. A lease without work goes back after
# IDLE_LEASE_NS, or at once when the node says that others wait (lease_wanted); a busy one then takes no more and goes back when
# what it has in hand is done.

cdef double DEPTH_US = 2000.0      # of work that a worker may have in its own queue
cdef int DEPTH_MAX = 512           # tasks
cdef int REQUESTS_MAX = 8          # lease requests of one class at the node at a time


cdef class LeasePool:
    def __init__(self, Engine engine, dict resources, strategy, name, runtime_env, int priority, bint retriable):
        self.engine, self.resources, self.strategy, self.name = engine, resources, strategy, name
        self.runtime_env, self.priority = runtime_env, priority
        self.retriable = retriable
        self.leases, self.requests = [], {}
        self.average_us = -1

    def __dealloc__(self):
        while not self.queue.empty():
            Py_DECREF(<object>self.queue.front())
            self.queue.pop_front()

    cdef int submit(self, Task task) except -1:
        cdef Lease lease
        task.state = QUEUED
        Py_INCREF(task)
        self.queue.push_back(<void*>task)
        if self.queue.size() == 1 or self.engine.closed or not self.engine.node.alive:
            return self.pump()
        # Every lease is full. A result will make room; more leases may come.
        if len(self.requests) < REQUESTS_MAX:
            self.request()
        return 0

    cdef int depth(self, Lease lease) except -1:
        cdef int d
        if self.average_us < 0 or lease.stuck:
            return 1
        d = DEPTH_MAX if self.average_us * DEPTH_MAX < DEPTH_US else <int>(DEPTH_US / self.average_us)
        return d if d > 1 else 1

    cdef int pump(self) except -1:
        cdef Py_ssize_t i = 0
        if self.engine.closed or not self.engine.node.alive:
            return self.fail_queue(self.engine.node_died())
        while i < PyList_GET_SIZE(self.leases) and not self.queue.empty():  # some may end meanwhile
            self.push(<Lease>self.leases[i])
            i += 1
        if not self.queue.empty():
            self.request()
        return 0

    cdef int fail_queue(self, object error) except -1:
        """The session is over: nothing that waits can run any more."""
        cdef Task task
        while not self.queue.empty():
            task = <Task>self.queue.front()
            self.queue.pop_front()
            Py_DECREF(task)
            if not task.cancelled:
                fail_task(task, error)
        return run_soon(self.engine)

    cdef int push(self, Lease lease) except -1:
        """As many queued tasks as the lease has room for, in one write."""
        cdef int room
        cdef Py_ssize_t share
        cdef Task task
        cdef bint was_idle = lease.in_flight == 0
        cdef bytes error
        if lease.draining or lease.over:
            return 0
        room = self.depth(lease) - lease.in_flight
        share = (<Py_ssize_t>self.queue.size() + PyList_GET_SIZE(self.leases) - 1) // PyList_GET_SIZE(self.leases)
        if room > share:
            room = <int>share
        while room > 0 and not self.queue.empty():
            task = <Task>self.queue.front()
            self.queue.pop_front()
            Py_DECREF(task)
            if task.cancelled:
                continue
            if lease.in_flight > 0 and task.callee.alone:
                # It must never run twice, so nothing may be in doubt about it when its worker dies; or it may be the one
                # that its worker dies of.
                Py_INCREF(task)
                self.queue.push_front(<void*>task)
                break
            error = failed_argument(self.engine, task)
            if error is not None:
                fail_task(task, error)
                continue
            if task.slots is not None:
                if repair_arguments(self.engine, task):
                    continue  # it comes back when they are there
                if task.cancelled:
                    continue
                if lease.over or not lease.link.alive:  # since the store was asked
                    Py_INCREF(task)
                    self.queue.push_front(<void*>task)
                    self.request()
                    break
            send_task(self.engine, lease.link, task)
            lease.in_flight += 1
            room -= 1
            if task.callee.alone:
                break
        if lease.in_flight:
            lease.idle_since_ns = 0
            if was_idle:
                lease.link.flush()
            else:
                lease.link.later()
        return 0

    cdef int drop_cancelled(self) except -1:
        """Cancelled tasks leave the queue's ends; with the last of them, the requests made for it go too."""
        while not self.queue.empty() and (<Task>self.queue.front()).cancelled:
            Py_DECREF(<object>self.queue.front())
            self.queue.pop_front()
        while not self.queue.empty() and (<Task>self.queue.back()).cancelled:
            Py_DECREF(<object>self.queue.back())
            self.queue.pop_back()
        if self.queue.empty() and self.requests and self.engine.deadline_idle_ns == 0:
            self.engine.set_deadline(D_IDLE, NowNs() + IDLE_LEASE_NS)
        return 0

    cdef int request(self) except -1:
        """Asks the node for leases, a bounded number ahead."""
        cdef Py_ssize_t wanted = <Py_ssize_t>self.queue.size()
        if wanted > REQUESTS_MAX:
            wanted = REQUESTS_MAX
        wanted -= len(self.requests)
        while wanted > 0:
            req_id = self.engine.next_request
            self.engine.next_request += 1
            ask_for_lease(self.engine, self, req_id, None, 0)
            wanted -= 1
        return 0


cdef int lease_failed(Engine self, LeasePool pool, req_id, str cause) except -1:
    """The environment of this class can't be set up: everything that waits for a worker in it fails, with the tool's words."""
    cdef Task task
    pool.requests.pop(req_id, None)
    while not pool.queue.empty():
        task = <Task>pool.queue.front()
        pool.queue.pop_front()
        Py_DECREF(task)
        if not task.cancelled:
            fail_task(task, exceptions.RuntimeEnvSetupError(
                f"{task.callee.name}() can't run: its runtime environment could not be set up: {cause}"))
    return 0


cdef class Lease:
    def __repr__(self):
        return f"<Lease {self.lease_id} of {self.pool.name}, {self.in_flight} in flight>"


cdef int lease_idle(Engine self, Lease lease) except -1:
    if lease.over:
        return 0
    if lease.draining or lease.retired or (lease.pool.priority != 0 and has_queue(self)):
        return end_lease(self, lease)
    lease.idle_since_ns = NowNs()
    if self.deadline_idle_ns == 0:
        self.set_deadline(D_IDLE, lease.idle_since_ns + IDLE_LEASE_NS)
    return 0


cdef bint is_outranked(LeasePool self) except -1:
    """Tasks of a higher priority wait here for something of what this one's leases hold."""
    cdef LeasePool pool
    for pool in self.engine.pools.values():
        if pool.priority > self.priority and not pool.queue.empty() and not pool.warned:
            for name in pool.resources:
                if name in self.resources:
                    return True
    return False


cdef bint has_queue(Engine self) except -1:
    """Tasks of some class wait: a lease of another priority is not kept for what may come."""
    cdef LeasePool pool
    for pool in self.pools.values():
        if not pool.queue.empty():
            return True
    return False


cdef int end_lease(Engine self, Lease lease) except -1:
    lease.over = True
    self.leases.pop(lease_key(lease.at, lease.lease_id), None)
    lease.pool.leases.remove(lease)
    if lease.link.lease is lease:
        lease.link.lease = None
    tell_node(self, lease.at, "lease_return", lease.lease_id, not lease.retired)
    if not lease.pool.queue.empty():
        lease.pool.pump()
    return 0


cdef int return_idle_leases(Engine self, int64_t now) except -1:
    cdef Lease lease
    cdef LeasePool pool
    cdef int64_t next_ns = 0
    for lease in list(self.leases.values()):
        if lease.idle_since_ns:
            if now - lease.idle_since_ns >= IDLE_LEASE_NS:
                end_lease(self, lease)
            elif next_ns == 0 or lease.idle_since_ns < next_ns:
                next_ns = lease.idle_since_ns
    for pool in self.pools.values():
        # Requests of a burst that is over; kept until now, since the next burst would only ask again.
        if pool.requests and pool.queue.empty():
            for req_id in pool.requests:
                cancel_request(self, pool, req_id)
            pool.requests = {}
    if next_ns:
        self.deadline_idle_ns = next_ns + IDLE_LEASE_NS
    return 0


cdef int link_lost_lease(Engine self, Lease lease) except -1:
    lease.over = True
    self.leases.pop(lease_key(lease.at, lease.lease_id), None)
    if lease in lease.pool.leases:
        lease.pool.leases.remove(lease)
    return 0
