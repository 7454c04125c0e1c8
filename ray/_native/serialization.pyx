# cython: language_level=3, freethreading_compatible=False
"""Turns Python values into blobs and back. The .pxd is the contract; docs/internals/serialization.md draws each kind.

Three speeds. None, numbers, str, bytes, one numpy array and flat lists of refs have a kind of their own and no pickle
is involved. Containers of exact built-in types go through C pickle, which stores nothing by name there. Everything else
goes through cloudpickle, because only it carries classes and functions of __main__ by value. What leaves the straight
path (errors, registered types, explaining what can't be pickled) is Python, in ray/_serialization.

Kept between calls: numpy's type, its dtypes' names, and the reference types set by the engine.
"""
import copyreg
import sys
from _pickle import dumps as _c_dumps, loads as _c_loads
from io import BytesIO
from types import CodeType, FunctionType

cimport cython
from cpython.buffer cimport (
    PyBUF_SIMPLE, PyBUF_STRIDES, PyBuffer_FillInfo, PyBuffer_IsContiguous, PyBuffer_Release, PyObject_GetBuffer,
)
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.dict cimport PyDict_Next
from cpython.list cimport PyList_GET_ITEM, PyList_GET_SIZE
from cpython.memoryview cimport PyMemoryView_FromMemory, PyMemoryView_FromObject
from cpython.object cimport PyObject, PyTypeObject, Py_TYPE
from cpython.ref cimport Py_INCREF
from cpython.tuple cimport PyTuple_GET_ITEM, PyTuple_GET_SIZE, PyTuple_New, PyTuple_SET_ITEM
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport free
from libc.string cimport memcpy, memset
from libcpp.unordered_map cimport unordered_map

cdef extern from "Python.h":
    const char* PyUnicode_AsUTF8AndSize(object text, Py_ssize_t* size) except NULL
    object PyUnicode_DecodeUTF8(const char* s, Py_ssize_t size, const char* errors)
    bint PyUnicode_IS_COMPACT_ASCII(object text)
    const void* PyUnicode_DATA(object text)
    Py_ssize_t PyUnicode_GET_LENGTH(object text)
    object PyUnicode_New(Py_ssize_t size, Py_UCS4 maxchar)
    long long PyLong_AsLongLongAndOverflow(object number, int* overflow) except? -1
    object PyLong_FromLongLong(long long v)
    double PyFloat_AS_DOUBLE(object number)
    bint PyType_Check(object o)
    bint PyExceptionInstance_Check(object o)
    const int PyBUF_READ
    PyTypeObject PyLong_Type, PyFloat_Type, PyUnicode_Type, PyBytes_Type, PyList_Type, PyTuple_Type, PyDict_Type
    PyTypeObject PySet_Type, PyFrozenSet_Type, PyComplex_Type, PyByteArray_Type
    PyObject* Py_None_ "Py_None"
    PyObject* Py_True_ "Py_True"
    PyObject* Py_False_ "Py_False"

cdef extern from "<stdlib.h>" nogil:
    int posix_memalign(void** result, size_t alignment, size_t size)

cdef extern from *:
    """
    #include <cstring>
    static void ray_plain_copy(void* dest, const void* src, size_t nbytes) { std::memcpy(dest, src, nbytes); }
    // The refs of the decode under way on this thread, borrowed from that decode's frame, which restores the outer one.
    static thread_local PyObject* ray_current_refs = nullptr;
    static inline PyObject* ray_decoding_refs() { return ray_current_refs; }
    static inline void ray_set_decoding_refs(PyObject* refs) { ray_current_refs = refs; }
    """
    void ray_plain_copy(void* dest, const void* src, size_t nbytes) noexcept nogil
    PyObject* ray_decoding_refs() noexcept
    void ray_set_decoding_refs(PyObject* refs) noexcept

parallel_copy = ray_plain_copy

# Containers with more nodes than this go to cloudpickle's pickler unscanned: it costs the same for built-in types, and
# its 2 us of set-up no longer matter.
cdef enum:
    SCAN_NODES_MAX = 400
    SCAN_DEPTH_MAX = 20
    ARRAY_HEADER_BYTES = 8
    PICKLE5_HEADER_BYTES = 16
    DTYPES_MAX = 32
    PRESS_STREAM_BYTES_MAX = 65536
    PRESSES_IDLE_MAX = 4

# The engine's reference type(s). _ref_type is compared by address on the fast path.
cdef PyTypeObject* _ref_type = NULL
cdef object _ref_type_owner = None
cdef set _ref_types = set()
cdef object _out_of_band_hook = None

# type -> (serializer, deserializer), see ray.util.register_serializer. The dict is _serialization.registry's own.
cdef dict _registered = {}

cdef object _ndarray = None               # numpy.ndarray once a process has imported numpy; None before
cdef PyTypeObject* _ndarray_type = NULL
cdef object _numpy_dtype = None
cdef list _dtypes_owner = []              # keeps what _dtypes points to
cdef PyObject* _dtypes[DTYPES_MAX]        # numpy's singletons, found by address
cdef int _dtypes_count = 0
cdef dict _dtype_of_name = {}             # b"<f8" -> dtype; bounded by DTYPES_MAX

cdef object _Pickler = None               # RayPickler, made at first use: cloudpickle is 20 ms to import
cdef dict _cloudpickle_reducers = None


# ---- memory that results point into --------------------------------------------------------------------------------

@cython.final
@cython.freelist(64)
cdef class Span:
    """Read-only bytes with an owner: a stretch of a blob, exported through the buffer protocol.

    The owner is another object (holder), a buffer taken from one (view), or 64-byte-aligned memory of its own.
    """
    cdef const uint8_t* data
    cdef Py_ssize_t nbytes
    cdef object holder
    cdef void* owned
    cdef Py_buffer view
    cdef bint has_view

    def __getbuffer__(self, Py_buffer* buffer, int flags):
        PyBuffer_FillInfo(buffer, self, <void*>self.data, self.nbytes, 1, flags)

    def __len__(self):
        return self.nbytes

    def __dealloc__(self):
        if self.has_view:
            PyBuffer_Release(&self.view)
        if self.owned != NULL:
            free(self.owned)


cdef inline Span _span(const uint8_t* data, Py_ssize_t nbytes, object holder):
    cdef Span span = Span.__new__(Span)
    span.data = data
    span.nbytes = nbytes
    span.holder = holder
    return span


cdef Span _span_of_buffer(object exporter):
    cdef Span span = Span.__new__(Span)
    PyObject_GetBuffer(exporter, &span.view, PyBUF_SIMPLE)
    span.has_view = True
    span.data = <const uint8_t*>span.view.buf
    span.nbytes = span.view.len
    return span


cdef Span _aligned_copy(const uint8_t* data, Py_ssize_t nbytes):
    # The GIL stays: the source may be lent, and valid only while nothing else runs.
    cdef Span span = Span.__new__(Span)
    if posix_memalign(&span.owned, kBlobAlign, nbytes if nbytes > 0 else 1) != 0:
        span.owned = NULL
        raise MemoryError(f"no memory for a copy of {nbytes} bytes")
    memcpy(span.owned, data, nbytes)
    span.data = <const uint8_t*>span.owned
    span.nbytes = nbytes
    return span


cdef inline Py_ssize_t _align(Py_ssize_t n) noexcept:
    return (n + kBlobAlign - 1) & ~(<Py_ssize_t>kBlobAlign - 1)


cdef inline void _copy(uint8_t* dest, const uint8_t* src, Py_ssize_t nbytes) noexcept:
    # Small copies keep the GIL: handing it over costs more than they do.
    if nbytes < kParallelCopyBytes:
        memcpy(dest, src, nbytes)
    else:
        with nogil:
            parallel_copy(dest, src, nbytes)


include "encode.pxi"
include "arrays.pxi"
include "pickling.pxi"
include "decode.pxi"


# ---- errors as values ----------------------------------------------------------------------------------------------

cpdef Encoded encode_error(BaseException exc, str function_name=None, str actor=None, str ip=None):
    """Encodes an exception as a call's result. See the .pxd; ray/_serialization/errors.py does the work."""
    from ray._serialization.errors import dump_error
    cdef Encoded encoded
    payload, refs = dump_error(exc, function_name, actor, ip)
    encoded = _new(KIND_ERROR_SYSTEM if function_name is None else KIND_ERROR_TASK, len(payload) + 1)
    encoded.inband = payload
    encoded.refs = refs
    return encoded


# ---- reference types and registered types --------------------------------------------------------------------------

cpdef set_ref_type(type ref_type):
    """Names the type of references. Replaces an earlier one and those added to it."""
    global _ref_type, _ref_type_owner, _ref_types
    _ref_type_owner = ref_type
    _ref_type = <PyTypeObject*>ref_type
    _ref_types = {ref_type}


cpdef add_ref_type(type ref_type):
    """Names one more type whose instances are collected in Encoded.refs (ActorHandle)."""
    _ref_types.add(ref_type)


cpdef set_ref_out_of_band(object hook):
    """Sets what reduce_ref calls: hook(ref) -> what __reduce__ is to return; None forgets it."""
    global _out_of_band_hook
    _out_of_band_hook = hook


cpdef object reduce_ref(object ref):
    """For a ref type's __reduce__: pickled by a pickler that isn't ours, so nobody keeps its object alive meanwhile."""
    if _out_of_band_hook is None:
        raise TypeError(
            f"{ref!r} can't be pickled by itself: the bytes could outlive the object. Pass it, or a value that "
            "contains it, to a task, an actor or ray.put, which keep its object alive on the way."
        )
    return _out_of_band_hook(ref)


def registered_changed(dict registered):
    """_serialization.registry says that its table has changed (and hands it over)."""
    global _registered, _ndarray_type
    _registered = registered
    _ndarray_type = NULL
    if _ndarray is not None and _ndarray not in registered:
        _ndarray_type = <PyTypeObject*>_ndarray


# ---- for tests: what only Cython code can call -----------------------------------------------------------------------

def encode_small(value, Py_ssize_t room):
    """The blob that encode_into writes into `room` bytes, or None where it leaves that to encode."""
    blob = PyBytes_FromStringAndSize(NULL, room)
    cdef Py_ssize_t n = encode_into(value, <uint8_t*>PyBytes_AS_STRING(blob), room)
    return blob[:n] if n else None


def decode_lent(bytes blob, list refs=None, Py_ssize_t shift=0):
    """decode_raw of bytes that are gone when it returns; `shift` moves them off their alignment."""
    cdef Py_ssize_t n = PyBytes_GET_SIZE(blob)
    cdef void* lent = NULL
    if posix_memalign(&lent, kBlobAlign, n + shift + 1) != 0:
        raise MemoryError()
    try:
        memcpy(<uint8_t*>lent + shift, PyBytes_AS_STRING(blob), n)
        return decode_raw(<uint8_t*>lent + shift, n, None, refs)
    finally:
        memset(lent, 0xAA, n + shift)
        free(lent)
