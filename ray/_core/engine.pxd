"""The engine inside every driver and worker: who owns which field, in which unit. See engine.pyx for the walk-through."""
cimport cython
from cpython.ref cimport PyObject
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libcpp.deque cimport deque
from libcpp.unordered_map cimport unordered_map

from ray._native.channel cimport CConnection, Identity, Poller, Spin, Standby
from ray._native.plasma cimport PlasmaClient
from ray._native.transfer cimport TransferLine
from ray._native.references cimport ObjectId, ObjectRef, Waiter

cdef extern from "ray/_core/wire.h" namespace "ray::wire" nogil:
    cdef cppclass TaskHeader:
        uint64_t seq
        uint32_t window
        uint32_t taken
        uint32_t function
        uint32_t first_index
        uint16_t num_returns
        uint16_t num_args
        uint16_t num_keywords
        uint8_t flags
        uint8_t attempt
    cdef cppclass Reader:
        const uint8_t* p
        bint ok
        Reader()
        Reader(const uint8_t* data, size_t n)
        uint8_t U8()
        uint16_t U16()
        uint32_t U32()
        uint64_t U64()
        TaskHeader Header()
        const uint8_t* Take(size_t n)
        size_t left()
    uint8_t* PutU8(uint8_t* out, uint8_t v)
    uint8_t* PutU16(uint8_t* out, uint16_t v)
    uint8_t* PutU32(uint8_t* out, uint32_t v)
    uint8_t* PutU64(uint8_t* out, uint64_t v)
    int64_t NowNs()
    cdef cppclass RoundGate:
        uint32_t round
        uint32_t sleepers
        void Wait(uint32_t seen, int64_t timeout_ms)
        void Advance()

cdef extern from "ray/_core/wire.h" namespace "ray::wire" nogil:
    cdef cppclass Dropped:
        uint8_t id[28]
        uint8_t owned
        uint8_t pinned
        uint32_t registered
        uint32_t home
        uint64_t pull

cdef extern from "ray/_core/call_alarm.h" namespace "ray" nogil:
    const int64_t AGAIN_NS "ray::kAgainNs"
    cdef cppclass CallAlarm:
        bint Arm(int64_t soft_ns, int64_t hard_ns, int hard_signal)
        bint Insist(int64_t from_ns, int hard_signal)
        void Seen(int64_t soft_ns)
        void Disarm()

ctypedef unordered_map[uint64_t, void*] CallMap
ctypedef unordered_map[uint32_t, void*] KeptMap

# ---------------------------------------------------------------- link.pxi
cdef class Link:
    """One connection to another process of the session. Closed means: that process died, or broke the protocol."""
    cdef CConnection* conn        # owned
    cdef Engine engine
    cdef readonly bytes tag       # of the peer; b"" until its hello was read
    cdef readonly int role
    cdef uint64_t key             # in the poller, and in engine.links
    cdef bint alive               # False: on_link_closed has run
    cdef bint dialed
    cdef bint dirty               # has unsent bytes, listed in engine.dirty
    cdef bint want_write          # the poller watches for room
    cdef bint far                 # over TCP
    cdef int dials                # that have failed (redial.pxi)
    cdef int64_t redial_ns        # when it is dialled again; 0: it is being made, or has been
    cdef CallMap calls            # seq -> Task (owned reference): calls sent here and not answered
    cdef set functions_sent       # function numbers the peer knows on this connection
    cdef dict functions           # number -> Function that the peer defined
    cdef dict holds               # seq -> what we keep for the peer until its ACK
    cdef Lease lease              # the lease whose worker this is, if any
    cdef list gpu_ids_sent
    cdef NodeLink of_node         # the peer is another node's process; None: it isn't
    cdef uint64_t borrowed        # hand-overs that the peer has counted for us and that we have not given back; at least
    cdef bint to_actor            # the peer is an actor's worker: its calls are ActorMethods'

    cdef uint8_t* begin(self, uint8_t type, uint8_t flags, uint32_t n) except NULL
    cdef int flush(self) except -1
    cdef int later(self) except -1

# ---------------------------------------------------------------- submit.pxi
cdef enum TaskState:
    WAITING = 0      # for arguments
    QUEUED = 1       # in its lease pool's or actor's queue
    SENT = 2         # in link.calls
    FINISHED = 3

@cython.final
cdef class Task(Waiter):
    """One call, from its submission to its results (and as lineage after them)."""
    cdef uint64_t seq
    cdef uint64_t parent          # seq of the submitting task here
    cdef Callee callee
    cdef bytes frame              # the whole payload, if no argument is a ref
    cdef list slots               # else: encoded slots (bytes) and ObjectRefs, to be laid out when sent
    cdef tuple keywords           # names of the last arguments (with slots)
    cdef list pins                # refs and handles inside arguments: kept until the answer
    cdef int deps                 # arguments still PENDING
    cdef uint16_t num_returns
    cdef void** returns           # ObjectRefs, borrowed: NULL once the user dropped it
    cdef void* first              # storage for the usual single return
    cdef int64_t retries_left     # -1: no end
    cdef uint8_t attempt
    cdef uint8_t state
    cdef bint cancelled
    cdef uint16_t oom_retries     # tries that were not counted, as memory ran out
    cdef uint8_t lineage_depth    # of the longest chain of tasks that would have to run again to remake the arguments
    cdef Link link                # while SENT
    cdef Stream stream            # of a generator call
    cdef uint64_t order           # actor calls: their place

cdef class Callee:
    """What a call runs: a remote function with its options, or one method of an actor."""
    cdef Engine engine
    cdef uint32_t number          # this process's number for it
    cdef readonly str name
    cdef bytes definition         # payload of the FUNCTION frame after its number
    cdef list definition_refs
    cdef int num_returns
    cdef uint8_t yields           # 0, or what becomes of what a generator yields: Y_STREAM, Y_DYNAMIC, Y_FIXED
    cdef uint32_t window          # items that may wait for us, 0 for no limit
    cdef int64_t max_retries
    cdef object retry_exceptions
    cdef int arity_min
    cdef int arity_max            # -1: no bound
    cdef bint alone               # its calls don't wait in a worker's queue behind others, which may die with it
    cdef object check             # callable(args, kwargs) raising TypeError like a plain call, or None
    cdef dict settings            # what the worker is told of each call: see on_function
    cdef int define(self) except -1
    cdef Callee captured(self)                       # what is called instead where children follow their parent; None: this
    cdef int dispatch(self, Task task) except -1     # all arguments are there
    cdef int hold(self, Task task) except -1         # some aren't yet; dispatch follows
    cdef int finished(self, Task task, Link link, uint32_t exec_us, uint8_t flags) except -1
    cdef int set_options(self, dict options) except -1

# ---------------------------------------------------------------- streams.pxi
cdef class Stream:
    """The items of one generator call, as they come."""
    cdef uint8_t kind             # Y_STREAM or Y_DYNAMIC
    cdef uint32_t window
    cdef deque[void*] items       # ObjectRefs (owned references) that have come and were not taken
    cdef ObjectRef coming         # what those who wait for the next item wait on, or None
    cdef uint32_t delivered       # index of the last item that has come, in any run
    cdef uint32_t reached         # index of the last item that has come in this run, or was skipped by it
    cdef uint32_t taken           # items handed to the user
    cdef bint ended               # no more will come
    cdef bint dropped             # nobody can take any more
    cdef KeptMap kept             # index -> ObjectRef (borrowed) in the store, whose lineage is this call
    cdef uint32_t lost            # of `kept`: PENDING, to be made again
    cdef int clear(self) except -1
    cdef int push(self, ObjectRef ref) except -1
    cdef ObjectRef pop(self)
    cdef void forget(self, ObjectRef ref) noexcept
    cdef list keepers(self)
    cdef uint32_t first_wanted(self) except? 0

cdef class ObjectRefGenerator:
    cdef Engine engine
    cdef Stream stream
    cdef ObjectRef done           # the call's one return
    cdef bint await_item(self, int64_t deadline_ns) except -1
    cdef ObjectRef next_item(self)

cdef class LeasePool:
    """The leases of one scheduling class in this process, and the tasks that wait for one."""
    cdef Engine engine
    cdef dict resources
    cdef object strategy
    cdef str runtime_env          # JSON; "": the plain one
    cdef readonly int priority    # of this class's tasks before those of others; they have a pool for each
    cdef readonly str name
    cdef deque[void*] queue       # Tasks (owned references)
    cdef list leases
    cdef dict requests            # req_id -> Asked: not granted yet, and where it is
    cdef bint retriable           # its tasks have max_retries; those that have none have a pool for themselves
    cdef bint warned              # the user was told that it can never run here
    cdef double average_us        # of the tasks' run time, -1 before the first
    cdef int submit(self, Task task) except -1
    cdef int fail_queue(self, object error) except -1
    cdef int pump(self) except -1
    cdef int push(self, Lease lease) except -1
    cdef int depth(self, Lease lease) except -1
    cdef int drop_cancelled(self) except -1
    cdef int request(self) except -1

cdef class Lease:
    cdef LeasePool pool
    cdef NodeLink at              # where it was got; None: from the own node
    cdef readonly int lease_id    # distinct among those of one node
    cdef bytes worker_tag
    cdef Link link
    cdef list gpu_ids
    cdef int in_flight
    cdef int64_t idle_since_ns    # 0 while busy
    cdef bint draining            # takes no more tasks; given back when nothing is in flight
    cdef bint retired             # the worker reached max_calls: not to be reused
    cdef bint over
    cdef bint stuck               # it handed unstarted tasks back: one task at a time until it answers

cdef class TaskTemplate(Callee):
    cdef LeasePool pool
    cdef object function
    cdef dict resources
    cdef object strategy
    cdef str runtime_env
    cdef int max_calls
    cdef dict options
    cdef dict twins               # strategy -> TaskTemplate: for children that follow their parent; None until there are any
    cdef int priority

# ---------------------------------------------------------------- nodes.pxi
cdef class NodeLink:
    """A connection to the process of another node, where we are a guest."""
    cdef Engine engine
    cdef readonly object number   # of that node
    cdef Link link
    cdef set rpcs                 # requests that it has not answered: keys of engine.rpcs

cdef class Asked:
    cdef NodeLink at              # None: at the own node
    cdef readonly int hops        # nodes that have sent the request on

cdef class NodeAddress:
    cdef bytes node_id
    cdef str host                 # or "unix:FOLDER", a session's folder on this machine
    cdef int port
    cdef bint alive
    cdef bint refused             # it did not take us as a guest

# ---------------------------------------------------------------- actors.pxi
cdef class Countdown:
    """BORROWs on their way: says HAVE(key) on link, if there is one, when all are acknowledged."""
    cdef Link link
    cdef Link source              # who keeps the refs until all are counted: asked for those whose owner has died
    cdef uint64_t key
    cdef int left
    cdef list refs

cdef class ActorLine:
    cdef Engine engine
    cdef readonly bytes actor_id
    cdef readonly str class_name
    cdef list lost                # calls that were in flight when its worker died, until the node says what follows
    cdef readonly str state
    cdef int incarnation
    cdef Link link
    cdef deque[void*] queue       # Tasks in order, owned references; the head may still wait for arguments
    cdef object cause             # of death: text or encoded error
    cdef bint subscribed
    cdef bint pumping             # somebody sends from the queue
    cdef uint64_t next_order
    cdef object __weakref__
    cdef int pump(self) except -1
    cdef bint is_reachable(self)
    cdef bint send_head(self, bint* sent) except -1
    cdef int calls_lost(self, list tasks) except -1
    cdef object death(self)
    cdef size_t pending(self)
    cdef int fail_timed_out(self) except -1

cdef class ActorRef:
    cdef ActorLine line
    cdef readonly bytes actor_id
    cdef readonly str class_name
    cdef ObjectRef handle         # counts who can reach the actor; owned by its creator. None: a weak one
    cdef bytes own_key            # of that handle, in the actor itself
    cdef dict options             # of every call through it: max_task_retries, max_pending_calls

cdef class ActorMethod(Callee):
    cdef ActorLine actor
    cdef ActorRef ref             # the share in the actor's life that its calls in flight have
    cdef int64_t pending_max      # -1: no bound
    cdef bint out_of_order        # a call that waits for its arguments holds up none behind it
    cdef bint is_queued(self, Task task)
    cdef int enqueue(self, Task task) except -1

# ---------------------------------------------------------------- engine.pyx
cdef class Engine:
    cdef Poller* poller
    cdef Standby* standby
    cdef Spin spin                    # of whoever receives
    cdef RoundGate gate
    cdef Identity identity
    cdef readonly bytes tag
    cdef uint64_t tag0, tag1
    cdef uint64_t next_seq
    cdef readonly object session_dir
    cdef readonly bint is_driver
    cdef readonly bint closed
    cdef bint leaving          # shutdown() has begun: what ends now ends by it
    cdef readonly dict info           # the node's answer to register
    cdef int listener_fd
    cdef object listener
    # links
    cdef dict links                   # key -> Link
    cdef dict peers                   # tag -> Link to use for what we start
    cdef readonly Link node
    cdef uint64_t next_key
    cdef list dirty                   # links with unsent bytes
    # receiving
    cdef bint receiving
    cdef unsigned long receiver       # thread id
    cdef int foreground               # threads inside get/wait/serve
    cdef object background            # the thread that receives when nobody else does
    cdef list callbacks               # to run after a round, without the receiver's role
    cdef object output                # deque of (function, args): what the driver prints, in the order in which it came
    cdef object output_lock           # held by the thread that prints
    cdef int64_t deadline_flush_ns, deadline_idle_ns, deadline_stuck_ns, deadline_hello_ns, deadline_events_ns
    cdef int64_t deadline_limits_ns, deadline_redial_ns, deadline_tell_ns, deadline_silence_ns, timer_ns
    cdef list redials                 # links that are to be dialled again
    # objects
    cdef PlasmaClient store
    cdef object open_store, reach     # how to; see connect()
    cdef uint32_t number              # of our node: the first four bytes of our tag
    cdef dict homes                   # number -> (host, port) of the other nodes that live; empty on one machine
    cdef TransferLine transfers       # to the object manager of our store; None until it is needed
    cdef bint had_line                # there was one: what it had been told is told the next one
    cdef dict pulls                   # request -> ObjectRef: not answered yet
    cdef dict pulls_ahead             # request -> bytes: those of them that only wait has asked for, so far
    cdef dict pull_failures           # ObjectRef -> why there can never be room for it here, until somebody is told
    cdef dict after_pull              # ObjectRef -> futures to finish when it is here
    cdef dict freed                   # key -> (when, home) of ours that other stores were told to free a moment ago
    cdef dict replicas                # key -> [numbers of other nodes whose stores keep it, too]: of ours and of borrowed ones
    cdef dict copies_wanted           # key -> how many stores are to have it: of ours that were put with _replicas
    cdef dict short_of_copies         # key -> {numbers of nodes that were asked in vain for the copy that is missing}
    cdef dict copying                 # the same of those of which a copy is being made now
    cdef dict holding                 # request -> (store, key): pinned by us until the object manager holds it for its owner
    cdef dict borrowers               # tag -> {ObjectRef: count}: what others hold of ours
    cdef deque[ObjectId] untold       # borrowed lately: their owners are asked to tell us what becomes of them
    cdef dict claiming                # request of `transfers` -> [ref, Countdowns that wait for the answer]
    cdef dict heir_gets               # request -> (Link, Countdown or None): those of `gets` that are not asked of the owner
    cdef deque[Dropped] dropped       # refs whose deallocation the owner or the store must hear of
    cdef uint64_t wait_mark
    cdef PyObject* last_rest          # what `wait` returned last as not ready: compared, never followed
    cdef Py_ssize_t last_rest_size
    cdef dict loop_batches            # asyncio loop -> [(future, ref)] finished in this round
    cdef dict gets                    # request number -> ObjectRef asked of its owner
    cdef dict acks                    # request number -> Countdown
    cdef uint64_t next_request
    # control
    cdef dict rpcs                    # request id -> [done, ok, value]
    cdef dict handlers                # event name -> callable
    # submission
    cdef list callees                 # names, by number
    cdef dict method_numbers          # (method name, pickled settings) -> number
    cdef dict actor_handles           # key of an actor's handle ref -> actor id, at its creator
    cdef dict pools                   # key -> LeasePool
    cdef bint prioritized             # one of them has a priority that is not 0
    cdef dict streams                 # seq -> Task: generator calls that have not ended
    cdef int64_t oom_retries          # the setting task_oom_retries; UNKNOWN_OOM_RETRIES: not looked at yet
    cdef dict lease_requests          # req_id -> LeasePool
    cdef dict leases                  # lease_key() -> Lease
    cdef dict node_table              # number -> NodeAddress of every other node, dead ones too; empty on a single machine
    cdef dict nodes                   # number -> NodeLink, where we lease or have leased
    cdef dict actors                  # actor_id -> weakref to ActorLine
    cdef dict creating                # actor_id -> pins of the constructor's arguments
    # inspection
    cdef list reporters               # called before each report to the node
    cdef list other_events            # task events of calls that failed without an answer, and of a constructor
    cdef dict other_counts            # (name, kind, state) -> how many of them
    cdef readonly object on_log_lines
    cdef readonly object on_error
    cdef public object local_context  # in local mode (ray/_local_mode.py): () -> what context() tells of the call that runs
    # execution (workers)
    cdef readonly set groups_created  # ids of placement groups made here that have their place
    cdef str job_lost             # why the node ends the connection, if it has said so
    cdef object capture               # strategy of what is submitted without one; None: no placement group captures it
    cdef Executor executor
    cdef uint64_t current_seq         # parent_of the call on the main thread, 0 in a driver

    cdef Link dial(self, bytes tag)
    cdef int add_link(self, Link link) except -1
    cdef int step(self, int64_t timeout_ms) except -1
    cdef int enter(self) except -1
    cdef int leave(self) except -1
    cdef int flush_dirty(self) except -1
    cdef int set_deadline(self, int which, int64_t at_ns) except -1

# ---------------------------------------------------------------- execute.pxi
cdef class Function:
    """What a function number of a peer means."""
    cdef str name
    cdef str title                # methods: the name that the caller has given the call, or None
    cdef bytes function_id
    cdef int max_calls
    cdef bytes blob               # None once decoded, and for methods
    cdef list refs
    cdef object target            # the callable; for methods the name in the actor
    cdef dict resources           # that each call holds, in 1/10,000
    cdef object place             # the strategy by which it runs in a placement group, or None
    cdef object capture           # what its children inherit of that, or None
    cdef int threads              # what OMP_NUM_THREADS is to be for it
    cdef bint counted             # in executor.counted
    cdef bint unlisted            # nobody is told of its runs (enable_task_events=False)
    cdef uint32_t ended_well, failed, cancelled   # runs since the last report
    cdef str group_name           # methods: the concurrency group asked for, "" for the actor's default
    cdef CallGroup group          # once looked up; None: there is none of that name
    cdef int64_t time_limit_ns    # of each call; 0: none
    cdef int plain                # asyncio actors: its method is no coroutine function; -1: not known yet

@cython.final
cdef class Call:
    """One TASK received and not answered yet."""
    cdef Link link
    cdef bytes frame
    cdef uint64_t seq
    cdef Function function
    cdef list met                 # borrowed refs that came with the arguments
    cdef int64_t started_ns       # 0: it waits
    cdef int64_t limit_ns         # when its time is over; 0: never
    cdef bint cancelled
    cdef bint recursive           # what it has submitted is cancelled with it
    cdef bint timed_out
    cdef bint answered            # the caller has been told that it was cancelled or timed out: what it returns is dropped
    cdef object running           # its asyncio task
    cdef object timer             # of its time limit, in an asyncio actor
    cdef Producer producer        # once its generator runs
    cdef bint abandoned           # the caller wants no more items

cdef class Executor:
    """The worker's side of calls. One per worker process."""
    cdef Engine engine
    cdef deque[void*] queue       # Calls (owned references), in order
    cdef readonly Call current    # on the main thread
    cdef readonly str current_name
    cdef bint stopping
    cdef bint retiring
    cdef bint interrupt_due       # the call on the main thread was cancelled, or is over its time, and nothing was raised for that yet
    cdef bint interrupted         # a task was stopped at an unknown place: no other may run here
    cdef bint reclaimed           # the owner of our lease died; the node waits to hear that we have stopped
    cdef bint exit_pending        # asked to leave; waits until is_needed() is False
    cdef readonly bint blocked    # the node was told that we wait
    cdef Call tick_call           # the call that the stuck timer saw last
    cdef list events              # (caller's tag, seq, name, started_ns, ended_ns, state, attempt, error) of calls ended, for the node
    cdef list counted             # Functions that have run since the last report
    cdef str class_name           # of the actor
    cdef double init_started_s    # when its __init__ began
    cdef int omp_threads          # OMP_NUM_THREADS as set for the last call; 0: the user has set it
    cdef object context_var       # the Call of this coroutine or thread
    cdef object checkpoints       # of its state (checkpoints.py), or None
    cdef dict creation            # how this actor was made: what its handles need
    cdef unsigned long main_thread
    cdef dict calls_of            # function id -> times run, for max_calls
    cdef list gpu_ids
    # actors
    cdef object actor             # the instance
    cdef readonly object actor_id
    cdef dict actor_resources
    cdef object actor_place       # as Function.place
    cdef int incarnation          # 0 for the first process of an actor
    cdef dict bound               # method name -> bound method
    cdef dict groups              # name ("" is the default) -> CallGroup; None: calls run on the main thread, one by one
    cdef ActorLoop loop           # of an async actor
    cdef dict running             # (link, seq) -> Call: those in groups, waiting or running
    cdef CallAlarm alarm          # bounds and interrupts the call on the main thread
    cdef list limits              # heap of (limit_ns, number, Call) of those in threads
    cdef uint64_t limits_set      # the number of the last
    cdef int64_t grace_ns         # between the interruption of a call that is over its time and force
    cdef object become            # (actor_id, creation, incarnation, gpu_ids) to act on

    cdef int on_task(self, Link link, const uint8_t* data, uint32_t size, uint8_t flags) except -2  # -1: it makes no sense
    cdef int on_cancel(self, Link link, uint64_t seq, uint8_t flags) except -1
    cdef int interrupt(self, int64_t from_ns) except -1
    cdef int on_caller_gone(self, Link link) except -1
    cdef int on_gpus(self, Link link, Reader* r) except -1
    cdef int on_stuck_timer(self, int64_t now) except -1
    cdef bint may_lend(self)
    cdef uint64_t parent_now(self)
    cdef int block(self) except -1
    cdef int unblock(self) except -1
    cdef int hand_back(self) except -1
    cdef bint is_needed(self) except -1
    cdef int run_one(self, Call call) except -1
    cdef int over(self, Call call) except -1
    cdef tuple arguments(self, Call call)

# ---------------------------------------------------------------- produce.pxi
cdef class Producer:
    """A generator that runs here for a caller."""
    cdef int64_t sent             # index of the last item sent, or skipped
    cdef int64_t taken            # by the caller
    cdef uint32_t window          # of items sent and not taken; 0 for no limit
    cdef bint ended               # by itself
    cdef int64_t closing_until    # no interrupt before, in nanoseconds; 0: it isn't being closed
    cdef uint32_t first           # index of the first item to send
    cdef int64_t left_ns          # when an item last left by itself
    cdef bint waiting             # a thread waits for room
    cdef object room              # the asyncio future on which a coroutine waits for room
    cdef unsigned long room_thread
    cdef uint16_t wanted          # num_returns=n: values to be drawn
    cdef list fixed               # Y_FIXED: these, encoded

# ---------------------------------------------------------------- actor_execute.pxi
cdef class CallGroup:
    """Calls of one actor, of which at most `limit` run at a time; they start in the order of their arrival."""
    cdef Executor executor
    cdef readonly str name
    cdef int limit
    cdef int put(self, Call call) except -1

cdef class ThreadGroup(CallGroup):
    cdef int started              # threads
    cdef int idle                 # of these
    cdef object queue             # SimpleQueue of Calls

# ---------------------------------------------------------------- actor_async.pxi
cdef class CoroutineGroup(CallGroup):
    cdef int running
    cdef deque[void*] waiting     # Calls (owned references)
    cdef int ended(self) except -1

cdef class ActorLoop:
    cdef Executor executor
    cdef object loop              # the asyncio loop
    cdef object cancelled_error   # asyncio.CancelledError
    cdef object clean_context     # that each call starts with a copy of
    cdef bint taking              # inside receive(): it takes the calls that are queued now
    cdef bint flush_scheduled
    cdef int start(self, Call call) except -1
    cdef bint is_wanted(self, Call call) except -1
    cdef object begin(self, Call call)
    cdef int succeeded(self, Call call, value) except -1
    cdef int failed(self, Call call, error) except -1
    cdef int ended(self, Call call) except -1
    cdef int wake(self) except -1
    cdef int cancel(self, Call call) except -1
    cdef int stop(self) except -1
    cdef int flush_soon(self, Link link) except -1
