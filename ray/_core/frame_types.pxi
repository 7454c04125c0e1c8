# The engine's frames and their flags, as in docs/internals/wire_format.md. Included by engine.pyx.

# Types.
cdef enum:
    F_RPC = 1
    F_REPLY = 2
    F_EVENT = 3
    F_TASK = 16         # header, arguments
    F_RESULT = 17       # answer to TASK
    F_FUNCTION = 18     # number, then what it means: before the first TASK that names it
    F_RETURNED = 19     # list of seqs: handed back unstarted
    F_CANCEL = 20       # seq, flags
    F_GET = 21          # request, object id
    F_GOT = 22          # request, the object
    F_RELEASE = 23      # list of (object id, count): the borrower's last copies are gone
    F_BORROW = 24       # request, object id: count me
    F_ACK = 25          # request: a BORROW is counted
    F_HAVE = 26         # seq of a RESULT or request of a GOT: everything in it is pinned or registered here
    F_GPUS = 27         # ids for the tasks that follow
    F_YIELD = 28        # seq, index, the object: an item of a generator
    F_TAKEN = 29        # seq, number: items of a generator that the caller has taken
    F_TELL = 30         # list of object ids: tell me what becomes of them
    F_TOLD = 31         # key of the hold, object id, the object

# Flags of RESULT.
cdef enum:
    R_ERROR = 1         # the call raised: every return is the error
    R_HOLD = 2          # the worker keeps pins and refs until HAVE
    R_RETIRE = 4        # the worker reached max_calls
    R_CANCELLED = 8     # without ERROR, for generators: stopped before its end
    R_KEPT = 16         # a list of borrowed refs that the worker kept follows
    R_TIMED_OUT = 128   # in the worker only: the error is a TaskTimeoutError of ours

# Flags of CANCEL.
cdef enum:
    C_FORCE = 1
    C_RECURSIVE = 2     # what it submitted, too
    C_STOP = 4          # no more items are wanted: the generator is closed at its next yield

# What becomes of what a generator yields (TaskHeader.flags): items, handed out as they come; items, all together at the call's
# end; the call's num_returns values.
cdef enum:
    Y_STREAM = 1
    Y_DYNAMIC = 2
    Y_FIXED = 3

# Flag of GET.
cdef enum:
    OF_HEIR = 1         # its owner has died; the peer may know it

# How an object is given in a frame.
cdef enum:
    G_BLOB = 0
    G_PLASMA = 1
    G_FETCH = 2         # ask its owner
    G_ERROR = 3         # the blob is an encoded exception
    G_REPLICATED = 4    # PLASMA, in other stores beside its home's
