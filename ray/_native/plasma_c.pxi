# What of C++ the store client uses. Included by plasma.pyx.

cdef extern from "Python.h":
    int check_signals "PyErr_CheckSignals"() noexcept  # Cython's own would look at the result

cdef extern from "common/ids.h" namespace "ray" nogil:
    cdef cppclass ObjectId:
        uint8_t bytes[28]

cdef extern from "common/clock.h" namespace "ray" nogil:
    int64_t NowNs()

cdef extern from "common/copy.h" namespace "ray" nogil:
    int CopyThreads(size_t bytes)

cdef extern from "common/status.h" namespace "ray" nogil:
    cdef enum class StatusCode:
        kOk
        kNotFound
        kAlreadyExists
        kOutOfMemory
        kTooLarge
        kOutOfDisk
        kDisconnected
        kTimedOut
        kPermission
        kInterrupted
        kInvalidArgument
    cdef cppclass Status:
        cbool ok()
        StatusCode code()
        const string& message()

cdef extern from "plasma/store_connection.h" namespace "ray::plasma" nogil:
    ctypedef cbool (*InterruptedFn)()
    cdef cppclass Patience:
        int64_t deadline_ns
        InterruptedFn interrupted

cdef extern from "plasma/protocol.h" namespace "ray::plasma" nogil:
    cdef enum class Message:
        kAudit
        kHolders
    cdef cppclass StatsAnswer:
        uint64_t pool_bytes, free_bytes, largest_free_bytes, touched_bytes
        uint64_t sealed_objects, sealed_bytes, unsealed_objects, unsealed_bytes, deleting_objects, deleting_bytes
        uint64_t slots, slots_free, clients, waiting_for_room, waiting_for_seal, subscribers
        uint64_t evicted_objects, evicted_bytes, bad_entries, connections_refused
        uint64_t spilled_objects, spilled_bytes, disk_objects, disk_bytes
        uint64_t written_objects, written_bytes, restored_objects, restored_bytes, damaged_objects
    cdef cppclass Row:
        ObjectId key
        uint32_t pid_count
        uint64_t data_bytes, metadata_bytes, pins
        int64_t created_ns, sealed_ns
        uint32_t creator_pid, state
    cdef cppclass EventRow:
        ObjectId key
        uint32_t deleted
        uint64_t data_bytes, metadata_bytes

cdef extern from "plasma/client.h" namespace "ray::plasma" nogil:
    cdef enum class Step:
        kDone
        kAbsent
        kExists
        kAsk
        kSpilled
        kDied
    cdef cppclass Place:
        uint8_t* address
        uint64_t data_bytes
        uint64_t metadata_bytes
        uint32_t slot
        uint64_t generation
    cdef cppclass Client:
        @staticmethod
        Status Connect(const string&, const Patience&, shared_ptr[CClient]*)
        Step TryCreate(const ObjectId&, uint64_t, uint64_t, Place*)
        Step TryGet(const ObjectId&, Place*)
        Step TrySeal(const ObjectId&)
        Step TrySealSlot(uint32_t, uint64_t)
        Step TryAbort(const ObjectId&)
        Step TryDelete(const ObjectId&)
        Step TryLapse(const ObjectId&)
        void Unpinned(const ObjectId&)
        Step Contains(const ObjectId&)
        Step TryPin(const ObjectId&)
        cbool UnpinKey(const ObjectId&)
        void Unpin(uint32_t)
        void PinAgain(uint32_t)
        cbool Unsealed(uint32_t, uint64_t)
        cbool died()
        cbool forked()
        Status MakeRoom(uint64_t, uint64_t, const Patience&)
        Status Sync(const Patience&)
        Status Restore(const Patience&, Place*, int64_t)
        Status Ahead(const vector[ObjectId]&, size_t*)
        Status WaitSealed(const vector[ObjectId]&, const Patience&)
        Status Evict(uint64_t, const Patience&, uint64_t*)
        Status Stats(const Patience&, StatsAnswer*)
        Status Text(Message, const Patience&, string*)
        Status List(const Patience&, vector[pair[Row, vector[uint32_t]]]*)
        Status Subscribe()
        Status NextEvents(const Patience&, vector[EventRow]*)
        void Release()
        void Copy(void*, const void*, size_t)
        cbool has_spilled()
        uint64_t pool_bytes()
        uint32_t store_pid()
        uint64_t id()
        int connection_fd()
        int death_fd()
