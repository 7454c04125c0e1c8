# The line to the object manager as other extension modules see it (cimport). Who may call: any thread that holds the GIL. No
# call waits for another node; sending waits only while the object manager's thread is behind with reading (bounded work).
# Errors: PlasmaStoreDied once the store is gone; ValueError/TypeError for arguments.
from libc.stdint cimport uint64_t
from libcpp.memory cimport unique_ptr


cdef extern from "object_manager/line.h" namespace "ray::objects" nogil:
    cdef cppclass CTransferLine "ray::objects::TransferLine":  # transfer.pyx knows more of it
        pass


cdef class TransferLine:
    cdef unique_ptr[CTransferLine] line
    cdef readonly str socket_path
    cdef readonly int fd              # readable: receive() has something; owned by this object
    # The request, named in the ("pulled", request, outcome, text) that answers it. What came is pinned until let_go(request).
    cpdef uint64_t pull(self, bytes key, sources, bint prefetch=*) except 0
    cpdef let_go(self, uint64_t request)
    cpdef uint64_t hold(self, bytes key) except 0             # answered by ("held", request, bool)
    cpdef free(self, bytes key, home=*)                       # no answer
    cpdef own(self, bytes key, home)                          # no answer
    cpdef uint64_t claim(self, bytes key, home) except 0      # answered by ("claimed", request, bool)
    cpdef unclaim(self, bytes key, home)                      # no answer
    cpdef lapse(self, bytes key)                              # no answer
    cpdef list receive(self)                                  # never waits
