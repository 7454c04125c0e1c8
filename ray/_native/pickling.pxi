# The general way: cloudpickle with buffers out of band and references by index. Included by serialization.pyx.
# Everything here may run user code, and so may do anything that Python can, another encode or decode included.

def _pickler_init(self, file, buffer_callback):
    # Not cloudpickle.Pickler.__init__: its two attributes are set here, which is half the time.
    _pickler_base_init(self, file, 5, buffer_callback=buffer_callback)
    self.globals_ref = {}
    self.proto = 5
    self.refs = None


cdef Py_ssize_t CODE_FILENAME = 10      # among the arguments of types.CodeType, in every Python from 3.8 on
cdef object _pickler_base_init = None
cdef object _plain_dump = None
cdef dict _arrow_reducers = {}          # empty until this process has imported pyarrow
cdef object _cloudpickle_override = None
cdef object _by_value_modules = None    # what register_pickle_by_value has been called with


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
        return NotImplemented if _goes_by_name(obj) else _cloudpickle_override(self, obj)
    reducer = _cloudpickle_reducers.get(type(obj))
    if reducer is not None:
        return _with_its_file(obj, reducer(obj)) if type(obj) is CodeType else reducer(obj)
    if PyExceptionInstance_Check(obj):
        from ray._serialization.reducers import reduce_exception
        return reduce_exception(obj)
    if _arrow_reducers:
        reducer = _arrow_reducers.get(type(obj))
        if reducer is not None:
            return reducer(obj)
    return NotImplemented


cdef object _with_its_file(object code, object reduced):
    """From 3.1.3 on cloudpickle says "<dynamic-code>" for every file; tracebacks and debuggers would find no source line."""
    cdef object build = reduced[0]
    cdef tuple arguments = reduced[1]
    if build is not CodeType or type(arguments[CODE_FILENAME]) is not str:
        return reduced
    return build, arguments[:CODE_FILENAME] + (code.co_filename,) + arguments[CODE_FILENAME + 1:]


cdef bint _goes_by_name(object definition) except -1:
    """Whether a class or function is found under its name in its module: cloudpickle's own test, in a tenth of the time.

    False says nothing: then cloudpickle, which knows more cases, is asked.
    """
    if _by_value_modules is None or _by_value_modules:
        return False
    cdef object module_name = definition.__module__
    if type(module_name) is not str or module_name == "__main__":
        return False
    module = sys.modules.get(module_name)
    if module is None:
        return False
    return getattr(module, definition.__qualname__, None) is definition


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
    global _Pickler, _cloudpickle_reducers, _pickler_base_init, _cloudpickle_override, _by_value_modules, _plain_dump
    from pickle import Pickler

    import cloudpickle

    _pickler_base_init = Pickler.__init__
    _plain_dump = Pickler.dump
    _cloudpickle_override = cloudpickle.Pickler.reducer_override
    _by_value_modules = getattr(cloudpickle.cloudpickle, "_PICKLE_BY_VALUE_MODULES", None)
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


@cython.final
cdef class _Press:
    """A pickler and where it writes to, used again: making them anew is more than half of pickling a small object.

    Not shared: an encode takes one off _idle_presses (or makes one) and puts it back empty; one that failed is dropped.
    """
    cdef object pickler
    cdef object dump
    cdef object clear_memo
    cdef list chunks
    cdef list views

    def __cinit__(self):
        self.chunks = []
        self.views = []
        self.pickler = _Pickler(self, self.keep)
        self.dump = _plain_dump.__get__(self.pickler)   # cloudpickle's only adds a word to RecursionError
        self.clear_memo = self.pickler.clear_memo

    def write(self, chunk):
        # Once, at the end, unless there is a bytes object of 64 KiB or more inside.
        self.chunks.append(chunk)
        return len(chunk)

    def keep(self, buffer):
        self.views.append(buffer.raw())   # BufferError if it isn't contiguous: the exporter's fault, and it says so

    cdef int empty(self) except -1:
        # At once, not when the collector finds the cycle that press and pickler are: a memo keeps the whole value, its
        # references included.
        self.clear_memo()
        self.chunks = []
        self.views = []
        if self.pickler.refs is not None:
            self.pickler.refs = None
        if self.pickler.globals_ref:
            self.pickler.globals_ref = {}
        return 0


cdef list _idle_presses = []


cdef int _find_arrow() except -1:
    global _arrow_reducers
    from ray._serialization.arrow import reducers
    _arrow_reducers = reducers()
    return 0


cdef Encoded _pickled(object value, str name):
    cdef Encoded encoded
    cdef Py_ssize_t end
    cdef _Press press
    cdef bytes stream
    cdef list views
    if _Pickler is None:
        _load_pickler()
    if not _arrow_reducers and "pyarrow" in sys.modules:
        _find_arrow()
    press = <_Press>_idle_presses.pop() if _idle_presses else _Press()
    try:
        press.dump(value)
    except MemoryError:
        press.empty()
        raise
    except Exception as error:
        press.empty()
        from ray._serialization.explain import unpicklable
        raise unpicklable(value, name, error) from error
    except BaseException:
        press.empty()
        raise
    stream = press.chunks[0] if len(press.chunks) == 1 and type(press.chunks[0]) is bytes else b"".join(press.chunks)
    views = press.views
    if not views:
        encoded = _new(KIND_PICKLE, PyBytes_GET_SIZE(stream) + 1)
    else:
        end = PICKLE5_HEADER_BYTES + 16 * len(views) + PyBytes_GET_SIZE(stream)
        for view in views:
            end = _align(end) + view.nbytes
        encoded = _new(KIND_PICKLE5, end)
        encoded.buffers = views
    encoded.inband = stream
    encoded.refs = press.pickler.refs
    press.empty()
    # The table of a big value's memo stays big when it is cleared: such a pickler is dropped.
    if PyBytes_GET_SIZE(stream) <= PRESS_STREAM_BYTES_MAX and len(_idle_presses) < PRESSES_IDLE_MAX:
        _idle_presses.append(press)
    return encoded


cpdef tuple encode_function(object function, str name=None):
    """Pickles a function or class definition. Returns (blob, refs met in its closure or None)."""
    if _Pickler is None:
        _load_pickler()
    file = BytesIO()
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
