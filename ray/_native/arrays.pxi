# One numpy array as a blob: KIND_ARRAY. Included by serialization.pyx. Without numpy's C interface: a process that
# doesn't use numpy must not import it, so the type is looked up once somebody else has.

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
    """The short name that numpy.dtype() takes for it; None where that doesn't say all (structures, objects, ...)."""
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
