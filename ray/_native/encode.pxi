# Value to Encoded to bytes. Included by serialization.pyx. In order of how common a value is; what has no kind of its
# own goes to pickling.pxi. Only `_pickled` runs user code.

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
