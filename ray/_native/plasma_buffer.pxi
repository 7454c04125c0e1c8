# Views on objects, and their pins. Included by plasma.pyx.

cdef class PlasmaBuffer:
    """A view on one object in shared memory. Pins it until the last memoryview, numpy array, ... on it is gone."""

    def __cinit__(self):
        self.address = NULL

    def __init__(self):
        raise TypeError("PlasmaBuffer comes from PlasmaClient.get or .create only")

    def __dealloc__(self):
        if self.address != NULL:
            (<Client*>self.client.get()).Unpin(self.slot)

    def __len__(self):
        return self.nbytes

    def __getbuffer__(self, Py_buffer* view, int flags):
        cdef Client* c = <Client*>self.client.get()
        cdef bint writable = False
        if self.created_here:
            if c.forked():
                raise BufferError("a buffer that the parent process was writing is not there in a forked child")
            writable = c.Unsealed(self.slot, self.generation)
        PyBuffer_FillInfo(view, self, self.address, self.nbytes, not writable, flags)

    @property
    def size(self):
        return self.nbytes

    @property
    def is_mutable(self):
        """Whether it was created here and is not sealed yet."""
        cdef Client* c = <Client*>self.client.get()
        return self.created_here and not c.forked() and c.Unsealed(self.slot, self.generation)

    def to_pybytes(self):
        return PyBytes_FromStringAndSize(<char*>self.address, self.nbytes)

    def __getitem__(self, index):
        return memoryview(self)[index]

    def __eq__(self, other):
        if not isinstance(other, (PlasmaBuffer, bytes, bytearray, memoryview)):
            return NotImplemented
        return memoryview(self) == memoryview(other)

    __hash__ = None

    def metadata_buffer(self):
        """The metadata as a buffer of its own, which pins the object too."""
        cdef PlasmaBuffer b = PlasmaBuffer.__new__(PlasmaBuffer)
        (<Client*>self.client.get()).PinAgain(self.slot)
        b.client = self.client
        b.address = self.address + self.nbytes
        b.nbytes = self.metadata_nbytes
        b.metadata_nbytes = 0
        b.slot = self.slot
        b.generation = self.generation
        b.created_here = self.created_here
        return b

    cpdef bytes metadata(self):
        return PyBytes_FromStringAndSize(<char*>self.address + self.nbytes, self.metadata_nbytes)

    def __repr__(self):
        return f"<PlasmaBuffer {self.nbytes} bytes{', unsealed' if self.is_mutable else ''}>"


cdef inline PlasmaBuffer _wrap(shared_ptr[CClient]& client, Place* place, bint created_here):
    cdef PlasmaBuffer b = PlasmaBuffer.__new__(PlasmaBuffer)
    b.client = client
    b.address = place.address
    b.nbytes = place.data_bytes
    b.metadata_nbytes = place.metadata_bytes
    b.slot = place.slot
    b.generation = place.generation
    b.created_here = created_here
    return b
