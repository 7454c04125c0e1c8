# cython: language_level=3, binding=False
"""The engine inside every driver and worker: calls out, calls in, objects and references. LIBRARY.

One `Engine` a process, reached by `current()`. Its state is touched only under the GIL, which is its one lock; the GIL is let go
while a thread sleeps for events, during big copies, and while the store is asked what its table alone doesn't say. There is no
thread between a caller and the socket: whoever calls sends, and a thread that waits (in get, wait, or a worker between tasks)
receives for everybody. Only when nobody waits does the background thread receive (Standby in cpp/channel gates it).

Read in this order; each part is one idea, compiled together so that a call never leaves C:

    frame_types.pxi what frames there are
    link.pxi        a connection to another process: frames out and in, what is owed to the peer
    receive.pxi     the round: wait, read, dispatch, wake; timers
    objects.pxi     put, get, wait
    object_line.pxi     our line to the object manager of our store
    remote_objects.pxi  objects in the stores of other nodes
    borrowing.pxi   owners, borrowers, what is freed when
    heirs.pxi       what borrowers keep of an owner that dies
    replicas.pxi    objects in several stores
    futures.pxi     asyncio and concurrent.futures
    arguments.pxi   a call's frame or slots
    submit.pxi      remote functions: send, complete, retry
    lease_pool.pxi  workers leased from the node
    lease_events.pxi    what nodes say about leases
    nodes.pxi       other nodes: links, leases there, their death
    redial.pxi      links that cannot be made yet
    link_ends.pxi   how links begin, and what their end means for each part
    silence.pxi     links over which nothing comes any more
    lineage.pxi     making lost objects again
    streams.pxi     generators: the items that come of one call
    placement.pxi   placement groups: children that follow their parent, leases that are refused
    actors.pxi      actor handles: ordered calls, restarts
    execute.pxi     the worker's side: tasks, and actors that run one call at a time
    reply.pxi       what a call answers
    produce.pxi     generators: the items that leave
    actor_execute.pxi   becoming an actor; its threads
    actor_async.pxi     an asyncio actor's loop
    time_limits.pxi timeout_s
    cancel.pxi      ray.cancel on both sides
    inspect.pxi     what is told to tools: what ran, waits and is held
    session.pxi     joining a session and leaving it

If a peer process dies, its Link closes, and that is an event for each part (link_ends.pxi): calls sent there are retried
or failed, objects owned there fail, references lent there come back. If the node process dies, the session is over:
everything pending fails with LocalRayletDiedError.
"""
cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.dict cimport PyDict_Size
from cpython.exc cimport PyErr_CheckSignals
from cpython.list cimport PyList_GET_SIZE, PyList_GetSlice
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from cpython.ref cimport Py_DECREF, Py_INCREF, Py_REFCNT, PyObject
from cpython.tuple cimport PyTuple_GET_ITEM, PyTuple_GET_SIZE
from cython.operator cimport dereference as deref, preincrement as inc
from libc.stdint cimport INT64_MAX, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy
from libcpp.memory cimport unique_ptr
from libcpp.string cimport string

from ray._native cimport channel as c_channel
from ray._native.channel cimport CConnection, CListener, Destination, Event, Frame, Identity, Poller, Spin, Standby, Status, StatusCode, Unheard, kRoleHandoff, kTimerKey
from ray._native.plasma cimport PlasmaBuffer, PlasmaClient
from ray._native.transfer cimport TransferLine
from ray._native cimport references
from ray._native.references cimport (BLOB, FAILED, PENDING, PLASMA, VALUE, ObjectId, ObjectRef, Waiter, add_waiter,
                                     find_ref, intern, load_id, new_ref, remove_waiter, set_dropped_hook, settle,
                                     store_id)
from ray._native cimport serialization
from ray._native.serialization cimport (KIND_BYTES, Encoded, decode, decode_function, decode_raw, encode,
                                        encode_error, encode_function, encode_into, is_error_kind)

import _signal  # whose answers are no enums, as those of `signal` are: the worker asks it between bursts of calls
import collections
import copy
import functools
import os
import pickle
import sys
import threading
import time
import traceback
import weakref
from _thread import get_ident

from ray import exceptions
from ray._native import plasma
from ray._native.plasma import PlasmaDiskFull, PlasmaObjectExists, PlasmaObjectNotFound, PlasmaStoreDied, PlasmaStoreFull
from ray._native.references import ObjectRef as _ObjectRef
from ray._protocol.frames import OUT_OF_MEMORY, OUT_OF_MEMORY_AGAIN, RUNTIME_ENV_FAILED

globals()["ObjectRef"] = _ObjectRef  # the public name; inside this module it is the C type

include "frame_types.pxi"

cdef int64_t INLINE_BYTES_MAX = 100 * 1024   # larger values go to the store
cdef int64_t IDLE_LEASE_NS = 10_000_000      # a lease is given back after so long without work
cdef int64_t FLUSH_NS = 500_000              # unsent frames of a burst leave at the latest after this
cdef int64_t STUCK_NS = 5_000_000            # a worker busy with one task for so long hands back the tasks behind it
cdef int FLUSH_BYTES = 16 * 1024             # unsent bytes of a burst that are sent at once
cdef int64_t EVENTS_NS = 1_000_000_000    # what ran is told to the node this often, while anything runs
cdef int EVENTS_MAX = 500                 # of these, at most so many a time; the rest of a burst goes unrecorded
cdef size_t BACKLOG_BYTES_MAX = 8 << 20      # unsent bytes to one peer at which a caller waits

cdef enum:
    D_FLUSH = 0
    D_IDLE = 1
    D_STUCK = 2
    D_HELLO = 3
    D_EVENTS = 4
    D_LIMITS = 5
    D_REDIAL = 6
    D_TELL = 7
    D_SILENCE = 8

cdef Engine the_engine = None
cdef object target_wrapper = None  # (function or method, its name) -> what a worker calls in its place: see tracing.py


def current():
    """This process's Engine, or None before init, after shutdown, and in a forked child."""
    return the_engine


def set_target_wrapper(wrapper):
    global target_wrapper
    target_wrapper = wrapper


cdef Engine engine_or_raise():
    if the_engine is None or the_engine.closed:
        raise exceptions.RaySystemError("ray is not running in this process: call ray.init() first (a process forked from a "
                                        "driver or worker must call it itself)")
    return the_engine


include "link.pxi"
include "receive.pxi"
include "objects.pxi"
include "borrowing.pxi"
include "heirs.pxi"
include "replicas.pxi"
include "object_line.pxi"
include "remote_objects.pxi"
include "futures.pxi"
include "arguments.pxi"
include "submit.pxi"
include "lease_pool.pxi"
include "lease_events.pxi"
include "nodes.pxi"
include "redial.pxi"
include "link_ends.pxi"
include "silence.pxi"
include "lineage.pxi"
include "streams.pxi"
include "placement.pxi"
include "actors.pxi"
include "execute.pxi"
include "reply.pxi"
include "produce.pxi"
include "actor_execute.pxi"
include "actor_async.pxi"
include "time_limits.pxi"
include "cancel.pxi"
include "inspect.pxi"
include "session.pxi"


cdef class Engine:
    """See the module's text. Made by ray._core.driver.start and ray._core.worker_main."""

    def __cinit__(self):
        self.poller = new Poller()
        self.standby = new Standby(self.poller.fd())

    def __dealloc__(self):
        del self.standby
        del self.poller

    def __init__(self, session_dir, bytes token, bytes tag, bint is_driver):
        if len(token) != 32 or len(tag) != 16:
            raise ValueError("Engine: token is 32 bytes and tag is 16 bytes")
        memcpy(self.identity.token, PyBytes_AS_STRING(token), 32)
        memcpy(self.identity.tag, PyBytes_AS_STRING(tag), 16)
        self.identity.role = 0 if is_driver else 1
        c_channel.ProveOverNetwork(&self.identity)
        self.tag = tag
        memcpy(&self.tag0, PyBytes_AS_STRING(tag), 8)
        memcpy(&self.tag1, PyBytes_AS_STRING(tag) + 8, 8)
        self.session_dir = os.fspath(session_dir)
        self.is_driver = is_driver
        self.number = number_of(self.tag0)
        self.homes, self.pulls, self.pulls_ahead, self.pull_failures, self.after_pull, self.holding = {}, {}, {}, {}, {}, {}
        self.freed = {}
        self.next_seq = 1
        self.next_key = 16
        self.next_request = 1
        self.oom_retries = UNKNOWN_OOM_RETRIES
        self.links, self.peers = {}, {}
        self.dirty, self.callbacks, self.redials = [], [], []
        self.output, self.output_lock = collections.deque(), threading.RLock()
        self.borrowers, self.gets, self.acks, self.rpcs, self.handlers = {}, {}, {}, {}, {}
        self.heir_gets, self.claiming, self.replicas = {}, {}, {}
        self.copies_wanted, self.short_of_copies, self.copying = {}, {}, {}
        self.callees, self.pools, self.lease_requests, self.leases = [], {}, {}, {}
        self.actors, self.creating, self.loop_batches, self.streams = {}, {}, {}, {}
        self.method_numbers, self.actor_handles = {}, {}
        self.reporters, self.other_events, self.other_counts = [], [], {}
        self.info = {}
        self.groups_created = set()
        self.job_lost = None
        self.handlers.update(
            actor_state=self.on_actor_state, log_lines=self.on_log_lines_event, error=self.on_error_event,
            store_died=self.on_store_died, store_back=self.on_store_back, inspect=self.on_inspect,
            group_state=self.on_group_state, job_lost=self.on_job_lost, node_up=functools.partial(on_node_up, self),
            node_down=functools.partial(on_node_down, self))
        self.handlers.update({name: functools.partial(handler, self, None) for name, handler in LEASE_EVENTS.items()})
        self.node_table, self.nodes = {}, {}

    def connect(self, node_socket, dict info not None, on_log_lines=None, on_error=None, open_store=PlasmaClient, reach=None):
        """Listens, dials the node and registers. Blocks until the node has answered.

        open_store(plasma_socket): the store client. reach(tag): makes the socket of a process that listens elsewhere (both are
        a ray:// client's).
        """
        join_session(self, node_socket, info, on_log_lines, on_error, open_store, reach)

    # ------------------------------------------------------------------ links
    cdef int add_link(self, Link link) except -1:
        link.key = self.next_key
        self.next_key += 1
        self.links[link.key] = link
        return watch_link(self, link)

    cdef Link dial(self, bytes tag):
        """The link to the process `tag`, made if there is none; one that can't be made yet is tried again (redial.pxi).
        None: that process is gone."""
        found = self.peers.get(tag)
        return <Link>found if found is not None else dial_process(self, tag)

    def report_bad_peer(self, Link link, int frame_type):
        print(f"ray: process {link.conn.peer_pid()} sent a malformed frame (type {frame_type}); its connection was closed",
              file=sys.stderr)

    def link_closed(self, Link link):
        """The process behind link is gone. Runs once per link."""
        if link.alive:
            link_ended(self, link)

    # ------------------------------------------------------------------ receiving
    cdef int step(self, int64_t timeout_ms) except -1:
        """Waits up to timeout_ms (-1: for ever) for one round of events; 0 if there was none. Releases the GIL."""
        cdef int n
        self.flush_dirty()
        n = poll_events(self, timeout_ms)
        return n

    cdef int enter(self) except -1:
        """This thread is going to wait, and so receives for all: the background thread needn't."""
        self.foreground += 1
        if self.foreground == 1 and not self.closed:
            self.standby.Disarm()
        return 0

    cdef int leave(self) except -1:
        self.foreground -= 1
        if self.foreground == 0 and not self.closed:
            self.standby.Arm()
        return 0

    cdef int flush_dirty(self) except -1:
        cdef Link link
        if not self.dropped.empty():
            drain_dropped(self)
        self.deadline_flush_ns = 0
        if self.dirty:
            links, self.dirty = self.dirty, []
            for link in links:
                link.dirty = False
                link.flush()
        return 0

    cdef int set_deadline(self, int which, int64_t at_ns) except -1:
        if which == D_FLUSH:
            self.deadline_flush_ns = at_ns
        elif which == D_IDLE:
            self.deadline_idle_ns = at_ns
        elif which == D_STUCK:
            self.deadline_stuck_ns = at_ns
        elif which == D_HELLO:
            self.deadline_hello_ns = at_ns
        elif which == D_EVENTS:
            self.deadline_events_ns = at_ns
        elif which == D_REDIAL:
            self.deadline_redial_ns = at_ns
        elif which == D_LIMITS:
            self.deadline_limits_ns = at_ns
        elif which == D_SILENCE:
            self.deadline_silence_ns = at_ns
        else:
            self.deadline_tell_ns = at_ns
        return arm_timer(self)

    def receive_in_background(self):
        """The receiver when no thread waits: sleeps on the standby gate, which foreground threads keep shut."""
        cdef int got
        while not self.closed:
            if self.foreground == 0:
                self.standby.Arm()
            with nogil:
                got = self.standby.Wait()
            if self.closed:
                return
            try:
                if not self.receiving:
                    poll_events(self, 0)
                self.flush_dirty()
            except BaseException:  # also what a callback raises: this thread is needed
                traceback.print_exc()

    # ------------------------------------------------------------------ objects
    def get(self, list refs, timeout=None):
        """The values of refs, in order; raises the first error among them. Blocks; timeout in seconds."""
        return get_values(self, refs, timeout)

    def get_one(self, ObjectRef ref not None, timeout=None):
        return get_value(self, ref, timeout)

    def put(self, value):
        """Stores a value; returns its ref. Small values stay in this process, larger go to the store."""
        if not self.dropped.empty():
            drain_dropped(self)
        return put_value(self, value)

    def put_replicated(self, value, int copies):
        """The same in the store whatever its size, and in those of copies - 1 other nodes. Returns (ref, number of stores
        that have it, why other nodes haven't got it: number -> text)."""
        if not self.dropped.empty():
            drain_dropped(self)
        return put_copies(self, value, copies)

    def wait(self, list refs, Py_ssize_t num_returns=1, timeout=None, bint fetch_local=True):
        """(ready, rest), each in the given order; at most num_returns ready ones. fetch_local: bring_ahead (objects.pxi)."""
        return wait_refs(self, refs, num_returns, timeout, fetch_local)

    def cancel(self, ObjectRef ref, bint force=False, bint recursive=True):
        cancel_ref(self, ref, force, recursive)

    def kill_actor(self, ActorRef actor, bint no_restart=True):
        """Calls in flight fail when its process is gone; with no_restart, calls made from now on fail at once."""
        cdef ActorLine line = actor.line
        self.event("kill_actor", actor.actor_id, no_restart)
        if no_restart and line.state != "DEAD":
            line.state, line.cause = "DEAD", "ray.kill() was called on it"
            line.fail_queue()

    # ------------------------------------------------------------------ calls that run in this process (ray/_local_mode.py)
    def reserve(self):
        """The sequence number of a call."""
        seq = self.next_seq
        self.next_seq += 1
        return seq

    def settled(self, uint64_t seq, uint32_t index, value, str what):
        """The ref of return number index of call seq, whose value is there."""
        cdef ObjectRef ref = new_ref(make_id(self, seq, index), True)
        if is_plain(value):
            ref.value, ref.state = value, VALUE
        else:
            set_value(self, ref, encode(value, what))
        return ref

    def failed(self, uint64_t seq, uint32_t index, error, function_name, actor):
        """The same, of a call that raised; function_name None: error, a RayError, is the result itself."""
        cdef ObjectRef ref = new_ref(make_id(self, seq, index), True)
        cdef Encoded e = encode_error(error, function_name, actor)
        ref.contained, ref.size = e.refs, e.nbytes
        ref.value, ref.is_error, ref.state = blob_of(e), True, BLOB
        return ref

    def states(self, list refs):
        """State of each ref by name, for tests and tools."""
        names = ("PENDING", "VALUE", "BLOB", "PLASMA", "FAILED")
        return [names[(<ObjectRef>r).state] for r in refs]

    # ------------------------------------------------------------------ events from the node
    def on_group_state(self, group_id, created):
        """Of a placement group made here: so that to ask whether it has its place costs no message."""
        if created:
            self.groups_created.add(group_id)
        else:
            self.groups_created.discard(group_id)

    def on_job_lost(self, why):
        """The node ends the connection next, and what waits fails with this reason."""
        self.job_lost = why

    def on_inspect(self, request, what, rows_max):
        try:
            on_inspect(self, request, what, rows_max)
        except Exception:  # our bug: the asker misses an answer, and this process goes on
            traceback.print_exc()

    def on_actor_state(self, actor_id, state, worker_tag, incarnation, cause):
        actor_state_changed(self, actor_id, state, worker_tag, incarnation, cause)

    def on_node_up(self, number, node_id, host, port):
        on_node_up(self, number, node_id, host, port)

    def on_store_died(self):
        pass  # each object's loss is found, and repaired, when somebody needs it

    def on_store_back(self):
        store_back(self)
        # Or we reached it before this news of it.
        if (self.store is None or not self.store.alive) and not reach_new_store(self, self.store):
            print("ray: the object store is back but cannot be reached", file=sys.stderr)
        copies_gone(self, self.number)

    # ------------------------------------------------------------------ control
    def rpc(self, str method, *args, timeout=30.0):
        """Calls a method of the node process and waits for its answer; raises what it raised."""
        cdef list slot = [False, False, None]
        cdef uint64_t request = self.next_request
        cdef int64_t deadline = -1
        self.next_request += 1
        self.rpcs[request] = slot
        try:
            send_control(self.node, F_RPC, (request, method, args))
            if timeout is not None:
                deadline = NowNs() + <int64_t>(timeout * 1e9)
            self.enter()
            try:
                while not slot[0]:
                    if not self.node.alive:
                        raise self.node_died()
                    if self.step(ms_until(deadline)) == 0 and deadline >= 0 and NowNs() >= deadline:
                        raise exceptions.GetTimeoutError(f"the node process did not answer {method}() within {timeout} s")
            finally:
                self.leave()
        finally:
            self.rpcs.pop(request, None)
        if not slot[1]:
            raise slot[2]
        return slot[2]

    def event(self, str name, *args):
        """Tells the node process something; no answer."""
        send_control(self.node, F_EVENT, (name, args))

    def event_soon(self, str name, *args):
        """The same, but it may travel with what is said next; nobody waits for it."""
        cdef bytes data = pickle.dumps((name, args), 5)
        if not self.node.alive:
            raise self.node_died()
        memcpy(self.node.begin(F_EVENT, 0, <uint32_t>PyBytes_GET_SIZE(data)), PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data))
        self.node.later()

    def promise(self, value, str method, *args):
        """A ref that gets this value when the node has answered a request; its error, if it answers with one."""
        return promise_of(self, value, method, args)

    def on_event(self, str name, handler):
        """handler(*args) runs for each such event from the node, in the receiving thread: it must not block."""
        self.handlers[name] = handler

    def add_reporter(self, reporter):
        """reporter() runs before each report to the node, in the receiving thread: it must not block. See inspect.pxi."""
        self.reporters.append(reporter)

    def report_soon(self):
        """There is something to report: within a second the reporters are called."""
        if not self.closed:
            report_soon(self)

    def node_died(self):
        """The error of whatever waits for something when the session is over."""
        if self.leaving or self.closed:
            return exceptions.RaySystemError("ray was shut down")
        why = self.job_lost or "the node process of this session has died, and with it the workers and the object store"
        return exceptions.LocalRayletDiedError(
            f"{why}; its log is in {self.session_dir}/logs. Call ray.shutdown() and ray.init() to start anew.")

    def on_log_lines_event(self, lines):
        if self.on_log_lines is not None:
            print_later(self, self.on_log_lines, (lines,))

    def on_error_event(self, kind, message, extra):
        if self.on_error is not None:
            print_later(self, self.on_error, (kind, message, extra))

    def context(self):
        """What ray.get_runtime_context() is made of."""
        out = {"job_id": self.info.get("job_id", bytes(4)), "node_id": self.info.get("node_id", bytes(16)),
               "worker_tag": self.tag, "is_driver": bool(self.is_driver), "namespace": self.info.get("namespace", ""),
               "runtime_env": self.info.get("runtime_env", ""), "task_id": None, "actor_id": None, "task_name": None,
               "gpu_ids": [], "resources": {}, "place": None}
        if self.executor is not None:
            out.update(self.executor.context())
        elif self.local_context is not None:
            out.update(self.local_context())
        return out

    def own_actor(self):
        """(a weak ActorRef, its class's table of methods, its name or "") of the actor that this process is, or None."""
        if self.executor is None or self.executor.creation is None:
            return None
        about = self.executor.creation
        return actor_from_parts(self.executor.actor_id, about["class_name"], None, about["calls"], about["handle"]), \
            about["description"], about["name"]

    def stats(self):
        """Counts for tests and tools: links, pending calls, interned refs, borrowed and lent refs, queued tasks."""
        cdef Link link
        cdef LeasePool pool
        pending = 0
        for link in self.links.values():
            pending += link.calls.size()
        queued = 0
        for pool in self.pools.values():
            queued += pool.queue.size()
        return {"links": len(self.links), "calls_in_flight": pending, "tasks_queued": queued,
                "interned_refs": references.interned_count(), "leases": len(self.leases),
                "lease_requests": len(self.lease_requests), "lent": sum(len(x) for x in self.borrowers.values()),
                "gets": len(self.gets), "streams": len(self.streams), "copies_being_made": len(self.copying)}

    def shutdown(self):
        """The driver's end of the session: workers end, their last lines are printed, then the node process goes."""
        end_session(self)

    def close(self):
        """Leaves the session: every connection closes, what is pending fails. Idempotent."""
        leave_session(self)
