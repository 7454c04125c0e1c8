# Bytes to value. Included by serialization.pyx. Every offset is checked: a blob cut short or garbled is a ValueError.
# Bytes without a holder are only lent: they are copied before anything runs that could let their owner reuse them.

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
    # Copying a short stream is also quicker than making a memoryview.
    if holder is None or n < 512:
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
