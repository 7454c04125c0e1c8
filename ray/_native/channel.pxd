# The C++ channel as Cython sees it. The comments in cpp/channel/*.h are the manual; here only what a caller needs to know
# about the GIL: it is the lock of every object here, except that Poller.Wait and Standby.Wait are made to be called without it.
#
#   from ray._native.channel cimport CConnection, CListener, Poller, Standby, Frame, Event, Identity, Status, ...
#
# C names carry a C where the Python-visible wrapper in channel.pyx has the plain one.
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libcpp cimport bool as cbool
from libcpp.memory cimport unique_ptr
from libcpp.string cimport string


cdef extern from "common/status.h" namespace "ray" nogil:
    cdef enum class StatusCode(uint8_t):
        kOk
        kInvalidArgument
        kNotFound
        kAlreadyExists
        kOutOfMemory
        kTooLarge
        kDisconnected
        kTimedOut
        kProtocol
        kPermission
        kSystem

    cdef cppclass Status:
        Status()
        cbool ok()
        StatusCode code()
        const string& message()


cdef extern from "common/clock.h" namespace "ray" nogil:
    int64_t NowNs()


cdef extern from "channel/limits.h" namespace "ray::channel" nogil:
    const uint32_t kFrameBytesMax
    const size_t kPendingBytesMax
    const int64_t kHelloDeadlineNs
    const int kBacklog
    const int kPollEventsMax


cdef extern from "channel/frame.h" namespace "ray::channel" nogil:
    cdef cppclass Frame:
        const uint8_t* data  # 8-byte aligned; valid until the connection's next Fill
        uint32_t size
        uint8_t type
        uint8_t flags


cdef extern from "channel/handshake.h" namespace "ray::channel" nogil:
    cdef cppclass Identity:
        Identity()
        uint8_t token[32]
        uint8_t tag[16]
        uint8_t role
        cbool tls  # over TCP

    const uint8_t kRoleHandoff


cdef extern from "channel/network_proof.h" namespace "ray::channel" nogil:
    cdef enum class Destination(uint8_t):
        kNode
        kCore
        kStore
        kClients

    void WritePreamble(Destination destination, const uint8_t* tag, uint8_t* out)


cdef extern from "<sys/uio.h>" nogil:
    cdef struct iovec:
        void* iov_base
        size_t iov_len


cdef extern from "channel/tls.h" namespace "ray::channel" nogil:
    const char* kPeerWithoutTls
    const char* kPeerWithTls

    cdef cppclass CTls "ray::channel::Tls":
        @staticmethod
        unique_ptr[CTls] Make(int fd, cbool dialled, const uint8_t* token, const uint8_t* preamble, Status* status)
        ssize_t Recv(void* to, size_t bytes, size_t fetch)  # -1 and errno; nothing hidden if fetch <= bytes - kRecordBytesMax
        ssize_t Send(const iovec* parts, size_t count)  # -1 and errno; after EAGAIN the same bytes again
        cbool wants_write()
        cbool done()
        const char* why()  # after EPROTO


cdef extern from *:
    "constexpr size_t kTlsRecordBytesMax = ray::channel::Tls::kRecordBytesMax;"
    const size_t kTlsRecordBytesMax


cdef extern from "channel/openssl.h" namespace "ray::channel" nogil:
    cdef cppclass OpenSsl:
        @staticmethod
        const OpenSsl* Load(Status* status)


cdef extern from "channel/handoff.h" namespace "ray::channel" nogil:
    Status HandOver(const string& unix_path, int fd, const Identity& identity)
    void ProveOverNetwork(Identity* identity)


cdef extern from "channel/connection.h" namespace "ray::channel" nogil:
    cdef enum class Unheard "ray::channel::Connection::Unheard":
        kNothing
        kWaits
        kSilent

    cdef cppclass CConnection "ray::channel::Connection":
        @staticmethod
        unique_ptr[CConnection] Dial(const string& unix_path, const Identity& identity, Status* status)
        @staticmethod
        unique_ptr[CConnection] DialTcp(const string& host, uint16_t port, Destination destination, const uint8_t* tag,
                                        const Identity& identity, Status* status)  # tag: of a core, else NULL
        @staticmethod
        unique_ptr[CConnection] Unmade()  # dead; keeps what is reserved on it for TakeUnheard
        @staticmethod
        unique_ptr[CConnection] Adopt(int fd, const Identity& identity)
        uint8_t* Reserve(uint8_t type, uint8_t flags, uint32_t payload_bytes)  # NULL: too large or too much unsent
        void Trim(uint32_t payload_bytes)
        int Flush()  # 0 done, 1 wait for writable, -1 dead (go on with Fill until -1)
        size_t pending_bytes()
        int Fill()  # > 0 bytes came, 0 nothing there, -1 gone
        cbool Next(Frame* out)
        void Close(const char* why)  # why: a literal
        int64_t hello_deadline_ns()  # 0: none (any more)
        cbool CloseIfLate(int64_t now_ns)
        int fd()
        cbool open()
        cbool greeted()
        cbool over_tcp()
        cbool alive()
        cbool wants_write()
        const uint8_t* peer_tag()  # 16 bytes
        uint8_t peer_role()
        int peer_pid()
        void TakeUnheard(CConnection* other)  # the frames of one that DialTcp made and nobody heard
        Unheard LookForSilence(int64_t now_ns)
        cbool no_such_process()  # its node has said that it is gone
        int TakePassed()  # the descriptor that came with a hello of kRoleHandoff, or -1
        int error()
        const char* why_closed()


cdef extern from "channel/listener.h" namespace "ray::channel" nogil:
    cdef cppclass CListener "ray::channel::Listener":
        @staticmethod
        unique_ptr[CListener] Listen(const string& path, int backlog, Status* status)
        @staticmethod
        unique_ptr[CListener] ListenTcp(const string& host, uint16_t port, int backlog, const Identity& identity, Status* status)
        int Accept()  # -1: none waiting
        uint16_t port()
        int fd()


cdef extern from "channel/poller.h" namespace "ray::channel" nogil:
    const uint64_t kTimerKey

    cdef cppclass Event:
        uint64_t key
        cbool readable
        cbool writable
        cbool hangup

    cdef cppclass Poller:
        Poller() except +
        int fd()
        int Add(int fd, uint64_t key)
        int Want(int fd, uint64_t key, cbool read, cbool write)
        int Remove(int fd)
        int Wait(int timeout_ms, Event* out, int max)  # call without the GIL; -EINTR, 0 or a count
        void SetTimer(int64_t ns_from_now)


cdef extern from "channel/spin.h" namespace "ray::channel" nogil:
    cdef cppclass Spin:
        Spin()
        int Wait(Poller& poller, int timeout_ms, Event* out, int max)  # call without the GIL; as Poller.Wait
        cbool Ready(const Poller& poller)  # call without the GIL


cdef extern from "channel/standby.h" namespace "ray::channel" nogil:
    cdef cppclass Standby:
        Standby(int poller_fd) except +
        int Arm()
        int Disarm()
        int Wait()  # call without the GIL; 1 the poller has events, 0 kicked
        void Kick()


cdef extern from "channel/counters.h" namespace "ray::channel" nogil:
    cdef cppclass Atomic64 "std::atomic<uint64_t>":
        uint64_t load()

    cdef cppclass Counters:
        Atomic64 hellos_refused
        Atomic64 hellos_late
        Atomic64 frames_malformed
        Atomic64 accepts_refused

    Counters& counters()
