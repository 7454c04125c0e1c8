# The store client as other extension modules see it (cimport). Who may call: any thread that holds the GIL, unless a line says
# otherwise. Errors: ray._native.plasma.PlasmaStoreDied (every call, once the store is gone), PlasmaObjectExists,
# PlasmaObjectNotFound, PlasmaStoreFull; ValueError/TypeError for arguments.
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libcpp.memory cimport shared_ptr


cdef extern from "plasma/client.h" namespace "ray::plasma" nogil:
    cdef cppclass CClient "ray::plasma::Client":  # plasma.pyx knows more of it
        pass


cdef class PlasmaBuffer:
    # A view on one object: `nbytes` bytes at `address`. Holds one pin from birth to dealloc; dealloc unpins with one atomic
    # subtraction (no lock, no system call, any thread), whether or not the store or the PlasmaClient object still lives.
    # Buffer protocol: writable only while the object is unsealed and was created here; read-only otherwise.
    cdef shared_ptr[CClient] client   # owner of the mappings
    cdef uint8_t* address             # 64-byte aligned; valid as long as this buffer
    cdef readonly Py_ssize_t nbytes   # data only, without metadata
    cdef Py_ssize_t metadata_nbytes   # they follow the data
    cdef uint32_t slot                # its place in the object table
    cdef uint64_t generation          # of that place
    cdef bint created_here            # made by create(): address is in the writable mapping
    cpdef bytes metadata(self)


cdef class PlasmaClient:
    cdef shared_ptr[CClient] client
    cdef readonly str socket_path
    cdef readonly uint64_t restores   # gets that had to ask for what was on disk
    # No system call while a lent extent lasts; otherwise one round trip, and for a full store up to timeout_s (GIL released).
    # The buffer is writable until seal(key). PlasmaObjectExists; PlasmaStoreFull (after timeout_s, or at once if size can never fit).
    cpdef PlasmaBuffer create(self, bytes key, Py_ssize_t size, bytes metadata=*, double timeout_s=*)
    # One atomic store. The object stays pinned by the buffer that create() returned; pin(key) first if it must outlive that.
    cpdef seal(self, bytes key)
    # Undoes create(); the caller must not write to the buffer afterwards.
    cpdef abort(self, bytes key)
    # create + copy + seal in one call; data is any contiguous buffer object. Big copies use several threads, GIL released.
    cpdef put(self, bytes key, data, bytes metadata=*, double timeout_s=*)
    # None if absent or unsealed. Asks the server only for one that was spilled to disk; PlasmaStoreFull if there is no room for it.
    # Then give_up_ns counts (monotonic clock; INT64_MAX: never): TimeoutError.
    cpdef PlasmaBuffer get(self, bytes key, int64_t give_up_ns=*)
    # Those on disk are brought back as far as there is room; nothing waits. How many they are.
    cpdef Py_ssize_t ahead(self, list keys) except -1
    cdef bint has_spilled(self) noexcept
    # The same without a buffer object: plain pins, counted; False if absent or unsealed. Undone by unpin, or by our death.
    cpdef bint pin(self, bytes key) except -1
    cpdef unpin(self, bytes key)
    cpdef bint contains(self, bytes key) except -1        # sealed and not deleted
    # Hidden from everyone at once; its memory is reused when the last pin is gone. False if there was none.
    cpdef bint delete(self, bytes key) except -1
    # Nobody owns it any more: it goes once nobody pins it. False if there was none.
    cpdef bint lapse(self, bytes key) except -1
    # A pin is gone that may have been the last one of such an object.
    cpdef unpinned(self, bytes key)
    # Memory to memory; several threads and non-temporal stores for big n. No GIL needed.
    cdef void copy(self, void* dest, const void* src, size_t n) noexcept nogil
