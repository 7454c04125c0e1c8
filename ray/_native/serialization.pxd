# Turns Python values into blobs and back. Runs in every driver and worker, on the thread that submits, replies or gets;
# the GIL is held throughout, except while one buffer of >= kParallelCopyBytes is being copied. Nothing here does I/O,
# blocks or takes a lock. Encoding and decoding are re-entrant (a reducer may encode, a __setstate__ may decode) and two
# threads may encode or decode at once. A blob is trusted: only authenticated peers get to send one.
#
# Blob: byte 0 is the kind, see docs/internals/serialization.md for the rest of each. Out-of-band buffers lie at
# multiples of 64 from the blob's start, so they are aligned wherever the blob itself is 64-byte aligned (plasma).
#
# For the engine, in short:
#
#     n = encode_into(value, frame, room)            # None, bool, int, float, short str/bytes: no object, no allocation
#     e = encode(value, "argument 'x' of f()")       # anything; e.nbytes, e.refs, then e.write(dest)
#     v = decode_raw(frame.data, frame.size, None, refs)   # bytes that are only lent: what must live is copied
#     v = decode(plasma_buffer, refs)                # zero-copy: results keep plasma_buffer alive
#     if is_error_kind(kind_of(data)): raise v       # decode returns errors as values; it is the caller who raises them
from libc.stdint cimport uint8_t

cdef enum:
    kBlobAlign = 64                 # bytes; offset of every out-of-band buffer is a multiple
    kParallelCopyBytes = 1048576    # buffers from this size on go through parallel_copy, with the GIL released

cdef enum Kind:
    KIND_NONE = 0
    KIND_TRUE = 1
    KIND_FALSE = 2
    KIND_INT = 3          # int64
    KIND_FLOAT = 4        # float64
    KIND_STR = 5          # UTF-8
    KIND_BYTES = 6
    KIND_ARRAY = 7        # one numpy.ndarray: dtype, shape, order, data
    KIND_PICKLE = 8       # pickle stream without out-of-band buffers
    KIND_PICKLE5 = 9      # pickle stream and out-of-band buffers
    KIND_REF = 10         # one ObjectRef
    KIND_REFS_LIST = 11   # list of nothing but ObjectRefs
    KIND_REFS_TUPLE = 12
    KIND_ERROR_TASK = 64  # user code raised: decodes to a RayTaskError (also an instance of the cause's class)
    KIND_ERROR_SYSTEM = 65  # something died or gave up: decodes to that RayError itself

# dest and src don't overlap. Must be callable without the GIL and must not raise.
ctypedef void (*copy_function)(void* dest, const void* src, size_t nbytes) noexcept nogil

# Copies buffers of >= kParallelCopyBytes. memcpy until the engine puts the plasma client's threaded copy here.
cdef copy_function parallel_copy

cdef inline bint is_error_kind(uint8_t kind) noexcept nogil:
    return kind >= KIND_ERROR_TASK

cdef class Encoded:
    """An encoded value, not yet laid out. Keeps the value's buffers alive (and doesn't copy them) until it dies."""
    cdef readonly uint8_t kind
    cdef readonly bytes inband         # the pickle stream or array header; None for kinds that have neither
    cdef readonly list buffers         # contiguous read-only memoryviews, in blob order; or None
    cdef readonly list refs            # each ObjectRef met inside, once, in the order decode wants them; or None
    cdef readonly Py_ssize_t nbytes    # of the whole blob, > 0
    cdef object _value                 # owner of _data
    cdef const uint8_t* _data          # KIND_STR/BYTES: the characters; KIND_ARRAY: the elements
    cdef Py_ssize_t _data_nbytes
    cdef Py_ssize_t _data_offset       # of _data in the blob
    cdef long long _scalar             # the 8 bytes of KIND_INT/KIND_FLOAT

    # Writes the whole blob, nbytes bytes; returns nbytes. dest needs no alignment to be written. GIL held; it is
    # released during copies of >= kParallelCopyBytes, so if nbytes is that large dest must not move meanwhile.
    cdef Py_ssize_t write(self, uint8_t* dest) except -1
    cdef int _write_pickle5(self, uint8_t* dest) except -1

# GIL held; may run user code (reducers). `name` says in an error what the value is, for example "argument 'x' of f()".
# Raises TypeError naming the path to the attribute that can't be pickled.
cpdef Encoded encode(object value, str name=*)

# If value is None, bool, int64, float, or a str/bytes that fits, writes its blob at dest and returns its size; else 0,
# and nothing was written that matters. `room` bytes may be written. GIL held; never runs user code; no allocation.
cdef Py_ssize_t encode_into(object value, uint8_t* dest, Py_ssize_t room) noexcept

# `refs`: one ObjectRef for each that encode met, same order; None if there were none. GIL held; may run user code (and
# so anything may have happened when it returns).
cpdef object decode(object view, list refs=*)

# The same for n > 0 bytes at data. holder keeps them alive and unmoved (and never changing) for as long as it lives;
# None says that they are only valid until user code runs, so whatever must outlive that is copied first.
cdef object decode_raw(const uint8_t* data, Py_ssize_t n, object holder, list refs)

# Encodes an exception as the result of a task or actor call. With function_name (str): KIND_ERROR_TASK, the traceback
# of exc in text and exc itself if it can be pickled. Without: KIND_ERROR_SYSTEM, exc is a RayError that becomes the
# result as is. Never fails for what exc contains: what can't be pickled is replaced by its text. actor: repr for the
# text, or None.
cpdef Encoded encode_error(BaseException exc, str function_name=*, str actor=*, str ip=*)

# Function and class definitions: pickled once per definition, buffers in band. Returns (blob, refs met in closures or
# None).
cpdef tuple encode_function(object function, str name=*)
cpdef object decode_function(object blob, list refs=*)

# The type whose instances are references; add_ref_type adds more (ActorHandle): exact types, not subclasses. Called
# once, at import of the engine. Their instances appear in Encoded.refs, and decode takes whatever object it is given in
# their place.
cpdef set_ref_type(type ref_type)
cpdef add_ref_type(type ref_type)

# What a ref's __reduce__ returns when it is pickled by somebody else's pickler: ref type's __reduce__ calls
# reduce_ref(self), which calls the hook (ref -> reduce value), or raises TypeError without one.
cpdef set_ref_out_of_band(object hook)
cpdef object reduce_ref(object ref)
