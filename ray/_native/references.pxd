"""ObjectRef: a future, and the whole local record of one object. See references.pyx."""
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

cdef extern from *:
    """
    #ifndef RAY_OBJECT_ID_H
    #define RAY_OBJECT_ID_H
    #include <cstdint>
    #include <cstring>
    #include <unordered_map>
    // 28 bytes on the wire, little endian: owner's tag (16), sequence number (8), index (4).
    struct RayObjectId {
      uint64_t tag0, tag1, seq;
      uint32_t index;
      bool operator==(const RayObjectId& o) const {
        return seq == o.seq && index == o.index && tag0 == o.tag0 && tag1 == o.tag1;
      }
    };
    struct RayObjectIdHash {
      size_t operator()(const RayObjectId& id) const {
        uint64_t h = (id.seq + id.index * 0x9E3779B97F4A7C15ull) ^ id.tag0;
        h *= 0xD6E8FEB86659FD93ull;
        return static_cast<size_t>(h ^ (h >> 32));
      }
    };
    typedef std::unordered_map<RayObjectId, void*, RayObjectIdHash> RayRefMap;
    static inline void ray_store_id(uint8_t* out, const RayObjectId& id) {
      std::memcpy(out, &id, 24);
      std::memcpy(out + 24, &id.index, 4);
    }
    static inline RayObjectId ray_load_id(const uint8_t* in) {
      RayObjectId id;
      std::memcpy(&id, in, 24);
      std::memcpy(&id.index, in + 24, 4);
      return id;
    }
    #endif
    """
    cdef cppclass ObjectId "RayObjectId":
        uint64_t tag0
        uint64_t tag1
        uint64_t seq
        uint32_t index
        bint operator==(const ObjectId&)
    void store_id "ray_store_id"(uint8_t* out, const ObjectId& id) nogil
    ObjectId load_id "ray_load_id"(const uint8_t* data) nogil
    cdef cppclass RefMap "RayRefMap":
        cppclass iterator:
            pass
        RefMap()
        void*& operator[](const ObjectId&)
        size_t count(const ObjectId&)
        size_t erase(const ObjectId&)
        size_t size()

cdef enum State:
    PENDING = 0    # nobody has produced it yet, or this borrower hasn't asked
    VALUE = 1      # `value` is the (immutable) Python object itself
    BLOB = 2       # `value` is the encoded bytes; every get decodes afresh
    PLASMA = 3     # in the node's store under this id
    FAILED = 4     # `value` is the exception to raise

cdef class Waiter:
    """Told once, under the GIL, in the thread that receives, when a ref leaves PENDING. Must not run user code."""
    cdef int ready(self, ObjectRef ref) except -1

cdef class ObjectRef:
    cdef uint64_t mark         # scratch of ray.wait: the call that saw it last. Beside the reference count and the state, for
    cdef uint8_t state         # that call touches these of thousands of refs (one cache line each: test_wait's loop over 10,000)
    cdef bint owned            # this process created it
    cdef ObjectId id
    cdef bint interned         # listed in `interned`, so that a second arrival of the id finds this object
    cdef bint is_error         # BLOB holds an encoded exception
    cdef bint pinned           # PLASMA, and kept by this process: pinned by its journal, or (borrower, home elsewhere) claimed there
    cdef bint asked            # borrower: a GET is on its way to the owner, or an heir
    cdef bint lost             # borrower: its home has not got it any more, as far as we know
    cdef bint followed         # borrower: the owner is asked to tell us what becomes of it (heirs.pxi)
    cdef uint32_t registered   # borrower: hand-overs the owner has counted for us, given back by one RELEASE
    cdef uint32_t lent         # owner: hand-overs counted for others
    cdef uint32_t home         # PLASMA: number of the node whose store has the primary copy
    cdef bint arrived          # the pull is answered: a copy is in this node's store, pinned until end_pull
    cdef uint64_t pull         # the request by which this node's store fetches it, or 0
    cdef object value
    cdef list contained        # refs inside the value, in the order the encoder met them; pins them
    cdef object waiters        # None, a Waiter, or a list of them
    cdef object producer       # owner: the call that makes it, while it may be needed (again)
    cdef object hold           # whatever must outlive this ref (an ActorRef's state, a protecting container)
    cdef int64_t size          # bytes of the encoded value, 0 while unknown
    cdef object site           # "file:line" that created it, if recorded
    cdef void* before          # neighbours, by age, among the refs that new_ref has made: see all_refs
    cdef void* after
    cdef object __weakref__

    cdef bytes key(self)

cdef ObjectRef new_ref(ObjectId id, bint owned)
cdef ObjectRef find_ref(ObjectId id)
cdef int intern(ObjectRef ref) except -1
cdef list all_refs()
cdef int begin_session(bint record_sites) except -1
cdef int add_waiter(ObjectRef ref, Waiter waiter) except -1
cdef int remove_waiter(ObjectRef ref, Waiter waiter) except -1
cdef int settle(ObjectRef ref) except -1
ctypedef void (*dropped_t)(ObjectRef ref) noexcept
cdef void set_dropped_hook(dropped_t hook) noexcept
cdef size_t interned_count() noexcept
