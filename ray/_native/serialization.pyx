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
from types import FunctionType

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
cdef object _BytesIO = None
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


# ---- encoding ------------------------------------------------------------------------------------------------------

@cython.final
@cython.freelist(64)
cdef class Encoded:
    cdef Py_ssize_t write(self, uint8_t* dest) except -1:
        cdef uint8_t kind = self.kind
        cdef Py_ssize_t n
        dest[0] = kind
        if kind <= KIND_FALSE or kind == KIND_REF:
            pass
        elif kind <= KIND_FLOAT:
            memcpy(dest + 1, &self._scalar, 8)
        elif kind <= KIND_BYTES:
            _copy(dest + 1, self._data, self._data_nbytes)
        elif kind == KIND_ARRAY:
            n = PyBytes_GET_SIZE(self.inband)
            memcpy(dest + 1, PyBytes_AS_STRING(self.inband), n)
            memset(dest + 1 + n, 0, self._data_offset - 1 - n)
            _copy(dest + self._data_offset, self._data, self._data_nbytes)
        elif kind == KIND_PICKLE5:
            self._write_pickle5(dest)
        else:
            _copy(dest + 1, <const uint8_t*>PyBytes_AS_STRING(self.inband), PyBytes_GET_SIZE(self.inband))
        return self.nbytes

    cdef int _write_pickle5(self, uint8_t* dest) except -1:
        # kind, 3 zeros, u32 buffers, u64 pickle bytes; (u64 offset, u64 bytes) each; pickle; (padding, buffer) each
        cdef Py_ssize_t count = PyList_GET_SIZE(self.buffers), inband = PyBytes_GET_SIZE(self.inband)
        cdef Py_ssize_t end = PICKLE5_HEADER_BYTES + 16 * count, offset
        cdef uint64_t* table = <uint64_t*>(dest + PICKLE5_HEADER_BYTES)
        cdef uint64_t entry[2]
        cdef uint32_t count32 = <uint32_t>count
        cdef uint64_t inband64 = <uint64_t>inband
        cdef Py_buffer view
        cdef Py_ssize_t i
        memset(dest + 1, 0, 3)
        memcpy(dest + 4, &count32, 4)
        memcpy(dest + 8, &inband64, 8)
        _copy(dest + end, <const uint8_t*>PyBytes_AS_STRING(self.inband), inband)
        end += inband
        for i in range(count):
            offset = _align(end)
            memset(dest + end, 0, offset - end)
            PyObject_GetBuffer(self.buffers[i], &view, PyBUF_SIMPLE)
            entry[0] = <uint64_t>offset
            entry[1] = <uint64_t>view.len
            memcpy(table + 2 * i, entry, 16)
            _copy(dest + offset, <const uint8_t*>view.buf, view.len)
            end = offset + view.len
            PyBuffer_Release(&view)
        assert end == self.nbytes, (end, self.nbytes)
        return 0

    def __init__(self):
        raise TypeError("use ray._native.serialization.encode(value)")

    def __repr__(self):
        return (f"Encoded(kind={self.kind}, nbytes={self.nbytes}, buffers={len(self.buffers or ())}, "
                f"refs={len(self.refs or ())})")

    def to_bytes(self):
        """The blob, as bytes (for tests, and for shells that aren't on the hot path)."""
        blob = PyBytes_FromStringAndSize(NULL, self.nbytes)
        self.write(<uint8_t*>PyBytes_AS_STRING(blob))
        return blob


cdef inline Encoded _new(uint8_t kind, Py_ssize_t nbytes):
    cdef Encoded encoded = Encoded.__new__(Encoded)
    encoded.kind = kind
    encoded.nbytes = nbytes
    return encoded


cdef Py_ssize_t encode_into(object value, uint8_t* dest, Py_ssize_t room) noexcept:
    cdef PyObject* v = <PyObject*>value
    cdef PyTypeObject* t = <PyTypeObject*>Py_TYPE(value)
    cdef Py_ssize_t n = 0
    cdef int overflow = 0
    cdef long long number
    cdef double real
    cdef const char* text
    if room < 9:
        return 0
    if v == Py_None_:
        dest[0] = KIND_NONE
        return 1
    if v == Py_True_:
        dest[0] = KIND_TRUE
        return 1
    if v == Py_False_:
        dest[0] = KIND_FALSE
        return 1
    if t == &PyLong_Type:
        number = PyLong_AsLongLongAndOverflow(value, &overflow)   # an exact int: no error but overflow
        if overflow:
            return 0
        dest[0] = KIND_INT
        memcpy(dest + 1, &number, 8)
        return 9
    if t == &PyFloat_Type:
        real = PyFloat_AS_DOUBLE(value)
        dest[0] = KIND_FLOAT
        memcpy(dest + 1, &real, 8)
        return 9
    if t == &PyUnicode_Type:
        if not PyUnicode_IS_COMPACT_ASCII(value):   # others need an allocation, and may fail
            return 0
        text = <const char*>PyUnicode_DATA(value)
        n = PyUnicode_GET_LENGTH(value)
        if n >= room:
            return 0
        dest[0] = KIND_STR
        memcpy(dest + 1, text, n)
        return n + 1
    if t == &PyBytes_Type:
        n = PyBytes_GET_SIZE(value)
        if n >= room:
            return 0
        dest[0] = KIND_BYTES
        memcpy(dest + 1, PyBytes_AS_STRING(value), n)
        return n + 1
    return 0


cpdef Encoded encode(object value, str name="value"):
    """Encodes any value. Raises TypeError naming the path to the attribute that can't be pickled; `name` starts it."""
    cdef PyObject* v = <PyObject*>value
    cdef PyTypeObject* t = <PyTypeObject*>Py_TYPE(value)
    cdef Encoded encoded
    cdef Py_ssize_t n = 0
    cdef int overflow = 0
    cdef int budget = SCAN_NODES_MAX
    cdef double real

    # 1. Singletons and scalars: one Encoded, nothing else.
    if v == Py_None_:
        return _new(KIND_NONE, 1)
    if v == Py_True_:
        return _new(KIND_TRUE, 1)
    if v == Py_False_:
        return _new(KIND_FALSE, 1)
    if t == &PyLong_Type:
        encoded = _new(KIND_INT, 9)
        encoded._scalar = PyLong_AsLongLongAndOverflow(value, &overflow)
        if not overflow:
            return encoded
        return _pickled_plain(value)
    if t == &PyFloat_Type:
        encoded = _new(KIND_FLOAT, 9)
        real = PyFloat_AS_DOUBLE(value)
        memcpy(&encoded._scalar, &real, 8)
        return encoded

    # 2. Text and bytes: points into the value.
    if t == &PyUnicode_Type:
        if PyUnicode_IS_COMPACT_ASCII(value):
            encoded = _new(KIND_STR, PyUnicode_GET_LENGTH(value) + 1)
            encoded._data = <const uint8_t*>PyUnicode_DATA(value)
        else:
            encoded = _encoded_utf8(value)
            if encoded is None:    # lone surrogates: pickle has a way to store them, UTF-8 doesn't
                return _pickled_plain(value)
        encoded._value = value
        encoded._data_nbytes = encoded.nbytes - 1
        return encoded
    if t == &PyBytes_Type:
        n = PyBytes_GET_SIZE(value)
        encoded = _new(KIND_BYTES, n + 1)
        encoded._value = value
        encoded._data = <const uint8_t*>PyBytes_AS_STRING(value)
        encoded._data_nbytes = n
        return encoded

    # 3. References, alone or as a flat list.
    if t == _ref_type:
        encoded = _new(KIND_REF, 1)
        encoded.refs = [value]
        return encoded
    if t == &PyList_Type or t == &PyTuple_Type:
        if _ref_type != NULL and _all_refs(value, t == &PyList_Type):
            return _encoded_refs(value, t == &PyList_Type)
        if _is_plain(value, &budget, SCAN_DEPTH_MAX):
            return _pickled_plain(value)
    elif (t == &PyDict_Type or t == &PySet_Type or t == &PyFrozenSet_Type or t == &PyComplex_Type
            or t == &PyByteArray_Type):
        if _is_plain(value, &budget, SCAN_DEPTH_MAX):
            return _pickled_plain(value)
    else:
        # 4. One numpy array.
        if _ndarray_type == NULL and "numpy" in sys.modules:
            _find_numpy()
        if t == _ndarray_type and t != NULL:
            encoded = _encoded_array(value)
            if encoded is not None:
                return encoded

    # 5. The general way.
    return _pickled(value, name)


cdef Encoded _encoded_utf8(object text):
    cdef Py_ssize_t n = 0
    cdef const char* utf8
    cdef Encoded encoded
    try:
        utf8 = PyUnicode_AsUTF8AndSize(text, &n)   # kept by text itself from now on
    except UnicodeEncodeError:
        return None
    encoded = _new(KIND_STR, n + 1)
    encoded._data = <const uint8_t*>utf8
    return encoded


cdef Encoded _pickled_plain(object value):
    cdef bytes stream = _c_dumps(value, 5)
    cdef Encoded encoded = _new(KIND_PICKLE, PyBytes_GET_SIZE(stream) + 1)
    encoded.inband = stream
    return encoded


cdef bint _is_plain(object value, int* budget, int depth) noexcept:
    """Whether value consists of exact built-in types only. No user code runs here, so nothing changes under the scan.

    `budget` bounds the nodes and `depth` the nesting, so a container that contains itself ends the scan too.
    """
    cdef PyTypeObject* t = <PyTypeObject*>Py_TYPE(value)
    cdef PyObject* key
    cdef PyObject* item
    cdef Py_ssize_t i, n, position = 0
    budget[0] -= 1
    if (t == &PyUnicode_Type or t == &PyLong_Type or t == &PyFloat_Type or t == &PyBytes_Type
            or <PyObject*>value == Py_None_ or <PyObject*>value == Py_True_ or <PyObject*>value == Py_False_
            or t == &PyComplex_Type or t == &PyByteArray_Type):
        return True
    if depth == 0:
        return False
    if t == &PyList_Type:
        n = PyList_GET_SIZE(value)
        if n > budget[0]:
            return False
        for i in range(n):
            if not _is_plain(<object>PyList_GET_ITEM(value, i), budget, depth - 1):
                return False
        return budget[0] >= 0
    if t == &PyTuple_Type:
        n = PyTuple_GET_SIZE(value)
        if n > budget[0]:
            return False
        for i in range(n):
            if not _is_plain(<object>PyTuple_GET_ITEM(value, i), budget, depth - 1):
                return False
        return budget[0] >= 0
    if t == &PyDict_Type:
        if 2 * len(<dict>value) > budget[0]:
            return False
        while PyDict_Next(value, &position, &key, &item):
            if not (_is_plain(<object>key, budget, depth - 1) and _is_plain(<object>item, budget, depth - 1)):
                return False
        return budget[0] >= 0
    if t == &PySet_Type or t == &PyFrozenSet_Type:
        return _is_plain_set(value, budget, depth)
    return False


cdef bint _is_plain_set(object value, int* budget, int depth) noexcept:
    if len(value) > budget[0]:
        return False
    for item in value:
        if not _is_plain(item, budget, depth - 1):
            return False
    return budget[0] >= 0


cdef inline bint _all_refs(object value, bint is_list) noexcept:
    cdef Py_ssize_t i, n = PyList_GET_SIZE(value) if is_list else PyTuple_GET_SIZE(value)
    if n == 0:
        return False
    for i in range(n):
        item = <object>(PyList_GET_ITEM(value, i) if is_list else PyTuple_GET_ITEM(value, i))
        if <PyTypeObject*>Py_TYPE(item) != _ref_type:
            return False
    return True


cdef Encoded _encoded_refs(object value, bint is_list):
    # u32 indices into refs, in which each object stands once: one ref twice in the list is one object after decode too.
    cdef Py_ssize_t i, n = PyList_GET_SIZE(value) if is_list else PyTuple_GET_SIZE(value)
    cdef bytes inband = PyBytes_FromStringAndSize(NULL, 4 * n)
    cdef char* out = PyBytes_AS_STRING(inband)
    cdef unordered_map[uintptr_t, uint32_t] seen
    cdef uint32_t index
    cdef uintptr_t address
    cdef list refs = []
    cdef Encoded encoded
    seen.reserve(n)
    for i in range(n):
        item = <object>(PyList_GET_ITEM(value, i) if is_list else PyTuple_GET_ITEM(value, i))
        address = <uintptr_t><PyObject*>item
        if seen.count(address):
            index = seen[address]
        else:
            index = <uint32_t>len(refs)
            seen[address] = index
            refs.append(item)
        memcpy(out + 4 * i, &index, 4)
    encoded = _new(KIND_REFS_LIST if is_list else KIND_REFS_TUPLE, 4 * n + 1)
    encoded.inband = inband
    encoded.refs = refs
    return encoded


# ---- numpy arrays --------------------------------------------------------------------------------------------------

cdef int _find_numpy() except -1:
    """Looks numpy up if this process has imported it (wholly: another thread may be in the middle of that)."""
    global _ndarray, _ndarray_type, _numpy_dtype
    module = sys.modules.get("numpy")
    ndarray = getattr(module, "ndarray", None)
    dtype = getattr(module, "dtype", None)
    if ndarray is not None and dtype is not None:
        _numpy_dtype = dtype
        _ndarray = ndarray
        if ndarray not in _registered:
            _ndarray_type = <PyTypeObject*>ndarray
    return 0


cdef bytes _dtype_name(object dtype):
    """The short name that numpy.dtype() takes for it; None where that wouldn't say all (structures, objects, metadata)."""
    global _dtypes_count
    cdef int i
    for i in range(_dtypes_count):
        if _dtypes[i] == <PyObject*>dtype:
            return <bytes>_dtypes_owner[i][1]
    if dtype.kind not in "biufcmMSU" or dtype.metadata is not None or dtype.hasobject:
        return None
    cdef bytes name = dtype.str.encode("ascii")
    cdef object canonical = _numpy_dtype(dtype.str)
    if canonical != dtype:
        return None
    if canonical is dtype and _dtypes_count < DTYPES_MAX:
        _dtypes_owner.append((dtype, name))
        _dtypes[_dtypes_count] = <PyObject*>dtype
        _dtypes_count += 1
    return name


cdef Encoded _encoded_array(object array):
    # Header: kind, u8 1 if Fortran order, u8 dimensions, u8 length of the dtype's name, 4 zeros; i64 shape; name.
    # Elements at the next multiple of 64.
    cdef bytes name = _dtype_name(array.dtype)
    cdef Py_buffer view
    cdef bint fortran
    cdef Py_ssize_t name_nbytes, header, offset
    cdef uint8_t* out
    cdef Encoded encoded
    if name is None:
        return None
    PyObject_GetBuffer(array, &view, PyBUF_STRIDES)
    fortran = False
    if not PyBuffer_IsContiguous(&view, b"C"):
        if PyBuffer_IsContiguous(&view, b"F"):
            fortran = True
        else:
            PyBuffer_Release(&view)
            array = array.copy()    # in C order
            PyObject_GetBuffer(array, &view, PyBUF_STRIDES)
    name_nbytes = PyBytes_GET_SIZE(name)
    header = ARRAY_HEADER_BYTES + 8 * view.ndim + name_nbytes
    offset = _align(header)
    encoded = _new(KIND_ARRAY, offset + view.len)
    encoded.inband = PyBytes_FromStringAndSize(NULL, header - 1)
    out = <uint8_t*>PyBytes_AS_STRING(encoded.inband) - 1    # so that offsets are those in the blob
    out[1] = fortran
    out[2] = <uint8_t>view.ndim
    out[3] = <uint8_t>name_nbytes
    memset(out + 4, 0, 4)
    memcpy(out + 8, view.shape, 8 * view.ndim)
    memcpy(out + 8 + 8 * view.ndim, PyBytes_AS_STRING(name), name_nbytes)
    encoded._value = array    # numpy frees elements with the array only, so the address outlives the view
    encoded._data = <const uint8_t*>view.buf
    encoded._data_nbytes = view.len
    encoded._data_offset = offset
    PyBuffer_Release(&view)
    return encoded


cdef object _decoded_array(const uint8_t* data, Py_ssize_t n, object holder):
    cdef Py_ssize_t ndim, name_nbytes, header, offset, i
    cdef int64_t extent
    cdef Span span
    cdef bytes name
    cdef tuple shape
    if n < ARRAY_HEADER_BYTES:
        raise _corrupt(data, n, "the array header is cut short")
    ndim = data[2]
    name_nbytes = data[3]
    header = ARRAY_HEADER_BYTES + 8 * ndim + name_nbytes
    offset = _align(header)
    if offset > n:
        raise _corrupt(data, n, "the array header is cut short")
    shape = PyTuple_New(ndim)
    for i in range(ndim):
        memcpy(&extent, data + 8 + 8 * i, 8)
        item = PyLong_FromLongLong(extent)
        Py_INCREF(item)
        PyTuple_SET_ITEM(shape, i, item)
    name = PyBytes_FromStringAndSize(<const char*>data + 8 + 8 * ndim, name_nbytes)
    fortran = data[1]
    # Copied before anything else can run, when the bytes are only lent.
    if holder is None or <uintptr_t>(data + offset) & (kBlobAlign - 1):
        span = _aligned_copy(data + offset, n - offset)
    else:
        span = _span(data + offset, n - offset, holder)
    dtype = _dtype_of_name.get(name)
    if dtype is None:
        if _ndarray is None:
            import numpy  # noqa: F401  (the value is an array: whoever gets it uses numpy)
            _find_numpy()
        dtype = _numpy_dtype(name.decode("ascii"))
        if len(_dtype_of_name) < DTYPES_MAX:
            _dtype_of_name[name] = dtype
    if fortran:
        return _ndarray(shape, dtype, span, 0, None, "F")
    return _ndarray(shape, dtype, span)


# ---- pickling ------------------------------------------------------------------------------------------------------

def _pickler_init(self, file, buffer_callback):
    # Not cloudpickle.Pickler.__init__: its two attributes are set here, which is half the time.
    _pickler_base_init(self, file, 5, buffer_callback=buffer_callback)
    self.globals_ref = {}
    self.proto = 5
    self.refs = None


cdef object _pickler_base_init = None
cdef object _cloudpickle_override = None


def _reducer_override(self, obj):
    """Called by C pickle for each object met that isn't of an exact built-in type."""
    cdef PyTypeObject* t = <PyTypeObject*>Py_TYPE(obj)
    cdef list refs
    if t == _ref_type or (len(_ref_types) > 1 and type(obj) in _ref_types):
        refs = self.refs
        if refs is None:
            refs = self.refs = []
        refs.append(obj)    # pickle's memo sees to it that one object comes here once
        return _ref_at, (len(refs) - 1,)
    if _registered and type(obj) in _registered:
        serializer, deserializer = _registered[type(obj)]
        return deserializer, (serializer(obj),)
    if PyType_Check(obj) or type(obj) is FunctionType:
        return _cloudpickle_override(self, obj)
    reducer = _cloudpickle_reducers.get(type(obj))
    if reducer is not None:
        return reducer(obj)
    if PyExceptionInstance_Check(obj):
        from ray._serialization.reducers import reduce_exception
        return reduce_exception(obj)
    return NotImplemented


@cython.binding(False)
def _ref_at(Py_ssize_t index):
    """What a pickled reference calls when it is unpickled: the decode under way on this thread knows it by index."""
    if ray_decoding_refs() == NULL:
        raise ValueError("a reference can only be unpickled by the decode of the value that it was encoded with")
    cdef list refs = <list>ray_decoding_refs()
    if index < 0 or index >= PyList_GET_SIZE(refs):
        raise ValueError(f"the value refers to reference {index}, but only {len(refs)} came with it")
    return refs[index]


cdef int _load_pickler() except -1:
    global _Pickler, _BytesIO, _cloudpickle_reducers, _pickler_base_init, _cloudpickle_override
    from io import BytesIO
    from pickle import Pickler

    import cloudpickle

    _BytesIO = BytesIO
    _pickler_base_init = Pickler.__init__
    _cloudpickle_override = cloudpickle.Pickler.reducer_override
    _cloudpickle_reducers = cloudpickle.Pickler._dispatch_table
    # dispatch_table is copyreg's own dict, not cloudpickle's ChainMap of two: that one is Python, and is asked about
    # every object; the half of it that is missing here is looked up in _reducer_override.
    _Pickler = type("RayPickler", (cloudpickle.Pickler,), {
        "__module__": __name__,
        "__init__": _pickler_init,
        "reducer_override": _reducer_override,
        "dispatch_table": copyreg.dispatch_table,
    })
    return 0


def pickler(file, buffer_callback=None):
    """The pickler that encode uses, for _serialization: collects references in its attribute refs (None if none)."""
    if _Pickler is None:
        _load_pickler()
    return _Pickler(file, buffer_callback)


class _Nowhere:
    def write(self, data):
        return len(data)


def reduce(value):
    """What our pickler stores for an object of a class without pickle code of its own: for _serialization.explain."""
    reduced = pickler(_Nowhere()).reducer_override(value)
    if reduced is NotImplemented:
        reducer = copyreg.dispatch_table.get(type(value))
        reduced = reducer(value) if reducer is not None else value.__reduce_ex__(5)
    return reduced


def goes_by_value(definition):
    """Whether a function or class travels as code and not as the name of something in an importable module."""
    return pickler(_Nowhere()).reducer_override(definition) is not NotImplemented


cdef Encoded _pickled(object value, str name):
    cdef list views = []
    cdef Encoded encoded
    cdef Py_ssize_t end
    if _Pickler is None:
        _load_pickler()
    file = _BytesIO()

    def keep(buffer):
        views.append(buffer.raw())   # BufferError if it isn't contiguous: the exporter's fault, and it says so

    try:
        pickler = _Pickler(file, keep)
        pickler.dump(value)
    except MemoryError:
        raise
    except Exception as error:
        from ray._serialization.explain import unpicklable
        raise unpicklable(value, name, error) from error
    stream = file.getvalue()
    refs = pickler.refs
    if not views:
        encoded = _new(KIND_PICKLE, PyBytes_GET_SIZE(stream) + 1)
    else:
        end = PICKLE5_HEADER_BYTES + 16 * len(views) + PyBytes_GET_SIZE(stream)
        for view in views:
            end = _align(end) + view.nbytes
        encoded = _new(KIND_PICKLE5, end)
        encoded.buffers = views
    encoded.inband = stream
    encoded.refs = refs
    return encoded


cpdef tuple encode_function(object function, str name=None):
    """Pickles a function or class definition. Returns (blob, refs met in its closure or None)."""
    if _Pickler is None:
        _load_pickler()
    file = _BytesIO()
    try:
        pickler = _Pickler(file, None)
        pickler.dump(function)
    except MemoryError:
        raise
    except Exception as error:
        from ray._serialization.explain import unpicklable
        raise unpicklable(function, name or getattr(function, "__qualname__", "function"), error) from error
    return file.getvalue(), pickler.refs


cpdef object decode_function(object blob, list refs=None):
    """The definition that encode_function pickled."""
    return _loads(blob, None, refs)


cdef object _loads(object stream, list buffers, list refs):
    cdef PyObject* outer = ray_decoding_refs()
    ray_set_decoding_refs(<PyObject*>refs if refs is not None else NULL)
    try:
        if buffers is None:
            return _c_loads(stream)
        return _c_loads(stream, buffers=buffers)
    finally:
        ray_set_decoding_refs(outer)


# ---- decoding ------------------------------------------------------------------------------------------------------

cpdef object decode(object view, list refs=None):
    """The value of a blob. Arrays in it are read-only views that keep `view` alive.

    Args:    view: bytes or any contiguous buffer.  refs: the references that encode met, in its order.
    Returns: the value; for a blob of an error kind the exception itself, not raised.
    Raises:  ValueError: not a blob.  Whatever user code raises while it is unpickled.
    """
    cdef Span span
    if <PyTypeObject*>Py_TYPE(view) == &PyBytes_Type:
        return decode_raw(<const uint8_t*>PyBytes_AS_STRING(view), PyBytes_GET_SIZE(view), view, refs)
    span = _span_of_buffer(view)
    return decode_raw(span.data, span.nbytes, span, refs)


cdef object decode_raw(const uint8_t* data, Py_ssize_t n, object holder, list refs):
    cdef uint8_t kind
    cdef int64_t number
    cdef double real
    if n <= 0:
        raise _corrupt(data, n, "it is empty")
    kind = data[0]
    if kind == KIND_INT:
        if n != 9:
            raise _corrupt(data, n, "an int has 9 bytes")
        memcpy(&number, data + 1, 8)
        return PyLong_FromLongLong(number)
    if kind == KIND_NONE:
        return None
    if kind == KIND_BYTES:
        return _decoded_bytes(data + 1, n - 1, holder)
    if kind == KIND_STR:
        return PyUnicode_DecodeUTF8(<const char*>data + 1, n - 1, NULL)
    if kind == KIND_FLOAT:
        if n != 9:
            raise _corrupt(data, n, "a float has 9 bytes")
        memcpy(&real, data + 1, 8)
        return real
    if kind == KIND_PICKLE:
        return _loads(_stable(data + 1, n - 1, holder), None, refs)
    if kind == KIND_ARRAY:
        return _decoded_array(data, n, holder)
    if kind == KIND_PICKLE5:
        return _decoded_pickle5(data, n, holder, refs)
    if kind == KIND_TRUE:
        return True
    if kind == KIND_FALSE:
        return False
    if kind == KIND_REF:
        if refs is None or len(refs) != 1:
            raise _corrupt(data, n, f"a reference came with {0 if refs is None else len(refs)} references, not one")
        return refs[0]
    if kind == KIND_REFS_LIST or kind == KIND_REFS_TUPLE:
        return _decoded_refs(data, n, refs, kind == KIND_REFS_LIST)
    if kind == KIND_ERROR_TASK or kind == KIND_ERROR_SYSTEM:
        from ray._serialization.errors import load_error
        return load_error(PyBytes_FromStringAndSize(<const char*>data + 1, n - 1), refs, kind == KIND_ERROR_TASK)
    raise _corrupt(data, n, "no such kind")


cdef inline object _stable(const uint8_t* data, Py_ssize_t n, object holder):
    # Unpickling runs user code, which may free or overwrite bytes that were only lent.
    if holder is None:
        return PyBytes_FromStringAndSize(<const char*>data, n)
    return PyMemoryView_FromMemory(<char*>data, n, PyBUF_READ)


cdef bytes _decoded_bytes(const uint8_t* data, Py_ssize_t n, object holder):
    cdef bytes result
    if n < kParallelCopyBytes or holder is None:
        return PyBytes_FromStringAndSize(<const char*>data, n)
    result = PyBytes_FromStringAndSize(NULL, n)
    _copy(<uint8_t*>PyBytes_AS_STRING(result), data, n)
    return result


cdef object _decoded_refs(const uint8_t* data, Py_ssize_t n, list refs, bint is_list):
    cdef Py_ssize_t i, count = (n - 1) // 4, known = 0 if refs is None else PyList_GET_SIZE(refs)
    cdef uint32_t index
    cdef list out
    if (n - 1) % 4:
        raise _corrupt(data, n, "the list of references is cut short")
    out = [None] * count
    for i in range(count):
        memcpy(&index, data + 1 + 4 * i, 4)
        if <Py_ssize_t>index >= known:
            raise _corrupt(data, n, f"reference {index} of {known}")
        out[i] = refs[index]
    return out if is_list else tuple(out)


cdef object _decoded_pickle5(const uint8_t* data, Py_ssize_t n, object holder, list refs):
    cdef uint32_t count
    cdef uint64_t inband, offset, nbytes
    cdef Py_ssize_t i, table_end
    cdef Span whole
    cdef list buffers
    if n < PICKLE5_HEADER_BYTES:
        raise _corrupt(data, n, "the header is cut short")
    memcpy(&count, data + 4, 4)
    memcpy(&inband, data + 8, 8)
    table_end = PICKLE5_HEADER_BYTES + 16 * <Py_ssize_t>count
    if table_end > n or inband > <uint64_t>(n - table_end):
        raise _corrupt(data, n, "the table of buffers is cut short")
    if holder is None or <uintptr_t>data & (kBlobAlign - 1):
        whole = _aligned_copy(data, n)
        data = whole.data
        holder = whole
    buffers = []
    for i in range(count):
        memcpy(&offset, data + PICKLE5_HEADER_BYTES + 16 * i, 8)
        memcpy(&nbytes, data + PICKLE5_HEADER_BYTES + 16 * i + 8, 8)
        if offset > <uint64_t>n or nbytes > <uint64_t>n - offset:
            raise _corrupt(data, n, f"buffer {i} lies outside")
        buffers.append(PyMemoryView_FromObject(_span(data + offset, <Py_ssize_t>nbytes, holder)))
    return _loads(PyMemoryView_FromMemory(<char*>data + table_end, <Py_ssize_t>inband, PyBUF_READ), buffers, refs)


cdef object _corrupt(const uint8_t* data, Py_ssize_t n, str why):
    return ValueError(f"not an encoded value: {why} (kind {data[0] if n > 0 else None}, {n} bytes)")


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
            f"{ref!r} can't be pickled by itself: the bytes could outlive the object. Pass it, or a value that contains "
            "it, to a task, an actor or ray.put, which keep its object alive on the way."
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
