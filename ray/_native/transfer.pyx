# distutils: language = c++
"""Python's way to the object manager, a thread of the plasma store that fetches objects from the stores of other nodes.

Runs in drivers, workers and the node process, on any thread. Asking never waits for another node: answers come as events,
`fd` is what to watch for them. If the store dies, every call raises PlasmaStoreDied; its pulls and holds are gone with it.
"""
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport uint8_t, uint16_t, uint64_t
from libc.string cimport memcpy
from libcpp cimport bool as cbool
from libcpp.memory cimport unique_ptr
from libcpp.string cimport string
from libcpp.vector cimport vector

import os
import select
import time

from ray._native.plasma import PlasmaStoreDied


cdef extern from "common/ids.h" namespace "ray" nogil:
    cdef cppclass ObjectId:
        uint8_t bytes[28]

cdef extern from "common/status.h" namespace "ray" nogil:
    cdef enum class StatusCode:
        kDisconnected
        kNotFound
        kPermission
        kInvalidArgument
    cdef cppclass Status:
        cbool ok()
        StatusCode code()
        const string& message()

cdef extern from "object_manager/wire.h" namespace "ray::objects" nogil:
    cdef enum class Line(uint16_t):
        kPull
        kHold
        kFree
        kOwn
        kOwnerDead
        kSelf
        kPeerDown
        kClaim
        kUnclaim
        kLapse
        kStats
        kPulled
        kHeld
        kClaimed
        kCount
        kStatsAre
    cdef enum class Urgency(uint8_t):
        kGet
        kPrefetch
    cdef cppclass Address:
        string host
        uint16_t port
    cdef cppclass PullBody:
        Urgency urgency
        ObjectId key
        vector[Address] sources
    cdef cppclass Stats:
        uint64_t pulls, pulls_joined, pulls_done, pulls_failed, pulls_now, resumed
        uint64_t bytes_in, bytes_out, served, referred, serving_now
        uint64_t held, links, lines, bad_frames, freed
    void AppendAddress(string*, const Address&)

cdef extern from "object_manager/limits.h" namespace "ray::objects" nogil:
    size_t kSourcesMax

cdef extern from "object_manager/line.h" namespace "ray::objects" nogil:
    cdef cppclass LineEvent:
        Line type
        uint64_t request
        string payload
    cdef cppclass COpenLine "ray::objects::TransferLine":
        @staticmethod
        Status Connect(const string&, unique_ptr[CTransferLine]*)
        int fd()
        Status Ask(Line, const string&, uint64_t*)
        Status Pull(const PullBody&, uint64_t*)
        Status LetGo(uint64_t)
        Status Adopt(int)
        Status Receive()
        cbool Next(LineEvent*)


OUTCOMES = ("here", "no_source", "no_room")


cdef int _check(const Status& status, str doing) except -1:
    if status.ok():
        return 0
    cdef bytes raw = status.message()
    text = f"{doing}: {raw.decode('utf-8', 'replace')}"
    code = status.code()
    if code == StatusCode.kDisconnected:
        raise PlasmaStoreDied(text)
    if code == StatusCode.kNotFound:
        raise FileNotFoundError(text)
    if code == StatusCode.kPermission:
        raise PermissionError(text)
    if code == StatusCode.kInvalidArgument:
        raise ValueError(text)
    raise OSError(text)


cdef int _to_key(bytes key, ObjectId* out) except -1:
    if key is None or PyBytes_GET_SIZE(key) != 28:
        raise ValueError(f"key must have 28 bytes, it is {key!r}")
    memcpy(out.bytes, PyBytes_AS_STRING(key), 28)
    return 0


cdef int _say_address(TransferLine self, Line what, str host, int port, str name) except -1:
    cdef Address address
    cdef string payload
    _to_address((host, port), &address)
    AppendAddress(&payload, address)
    _check(_open(self).Ask(what, payload, NULL), name)
    return 0


cdef uint64_t _say_place(TransferLine self, Line what, bytes key, home, str name) except 0:
    cdef ObjectId id
    cdef Address address
    cdef string payload
    cdef uint64_t request = 0
    _to_key(key, &id)
    _to_address(home, &address)
    payload = string(<char*>id.bytes, 28)
    AppendAddress(&payload, address)
    _check(_open(self).Ask(what, payload, &request), name)
    return request


cdef int _to_address(where, Address* out) except -1:
    host, port = where
    if not isinstance(host, str) or not 0 < len(host) < 64:
        raise ValueError(f"an address is (host, port) with a numeric host, such as ('10.0.0.1', 6379); it is {where!r}")
    if not 0 < port < 65536:
        raise ValueError(f"port must be 1 to 65535, it is {port!r}")
    out.host = host.encode()
    out.port = port
    return 0


cdef inline COpenLine* _open(TransferLine self) except NULL:
    if self.line.get() == NULL:
        raise PlasmaStoreDied("this line to the object manager is closed")
    return <COpenLine*>self.line.get()


cdef class TransferLine:
    """A connection to the object manager that listens on socket_path.

    Raises: FileNotFoundError, PermissionError, OSError: nobody listens there, or another user's process.
    """

    def __cinit__(self, str socket_path):
        cdef string path = os.fsencode(socket_path)
        cdef Status status
        self.fd = -1
        self.socket_path = socket_path
        with nogil:
            status = COpenLine.Connect(path, &self.line)
        _check(status, "TransferLine")
        self.fd = _open(self).fd()

    def fileno(self):
        return self.fd

    cpdef uint64_t pull(self, bytes key, sources, bint prefetch=False) except 0:
        """Has the object fetched into this node's store, unless it is there; returns the request.

        Args:    sources: [(numeric host, port)] of nodes that have it, the best first; 64 at most.
                 prefetch: nobody waits for it yet: gets come first.
        Answer:  ("pulled", request, outcome, text): "here": it is, and stays pinned until let_go(request); "no_source": text says
                 what each source said; "no_room": larger than the store, or being written here.
        """
        cdef PullBody body
        cdef Address address
        cdef uint64_t request = 0
        _to_key(key, &body.key)
        body.urgency = Urgency.kPrefetch if prefetch else Urgency.kGet
        for where in sources[:kSourcesMax]:
            _to_address(where, &address)
            body.sources.push_back(address)
        _check(_open(self).Pull(body, &request), "pull")
        return request

    cpdef let_go(self, uint64_t request):
        """Cancels a pull, or drops the pin of one that was answered."""
        _check(_open(self).LetGo(request), "let_go")

    cpdef uint64_t hold(self, bytes key) except 0:
        """Pins a sealed object in this store for its owner, who lives on another node: until free or owner_dead."""
        cdef uint64_t request = 0
        cdef ObjectId id
        _to_key(key, &id)
        _check(_open(self).Ask(Line.kHold, string(<char*>id.bytes, 28), &request), "hold")
        return request

    cpdef free(self, bytes key, home=None):
        """The owner is done with it: unpinned and deleted in the store at home (None: ours) and wherever that has sent copies."""
        cdef ObjectId id
        cdef Address address
        cdef string payload
        _to_key(key, &id)
        payload = string(<char*>id.bytes, 28)
        if home is not None:
            _to_address(home, &address)
            AppendAddress(&payload, address)
        _check(_open(self).Ask(Line.kFree, payload, NULL), "free")

    cpdef own(self, bytes key, home):
        """The store at home holds it for this process: when this line ends, however it does, the object goes there unless
        somebody claims it."""
        _say_place(self, Line.kOwn, key, home, "own")

    cpdef uint64_t claim(self, bytes key, home) except 0:
        """Keeps an object of another owner in the store at home, even if that owner dies, until unclaim or the end of this line.
        Answered by ("claimed", request, bool): whether it was there and is kept."""
        return _say_place(self, Line.kClaim, key, home, "claim")

    cpdef unclaim(self, bytes key, home):
        _say_place(self, Line.kUnclaim, key, home, "unclaim")

    cpdef lapse(self, bytes key):
        """Its owner has died: it goes in this store, and wherever that has sent it, unless somebody keeps it."""
        cdef ObjectId id
        _to_key(key, &id)
        _check(_open(self).Ask(Line.kLapse, string(<char*>id.bytes, 28), NULL), "lapse")

    def owner_dead(self, bytes prefix not None):
        """Frees whatever is held for owners whose tags begin so; answered by ("count", request, objects)."""
        cdef uint64_t request = 0
        cdef string payload = prefix
        if not 1 <= len(prefix) <= 16:
            raise ValueError(f"prefix must have 1 to 16 bytes, it has {len(prefix)}")
        _check(_open(self).Ask(Line.kOwnerDead, payload, &request), "owner_dead")
        return request

    def adopt(self, int fd):
        """Hands over a connection from another node's store whose preamble was read; close fd afterwards."""
        _check(_open(self).Adopt(fd), "adopt")

    def reached_at(self, str host, int port):
        """Tells where this node's gate is, so that other stores can be referred to ours."""
        _say_address(self, Line.kSelf, host, port, "reached_at")

    def peer_down(self, str host, int port):
        """The node whose gate was there is dead, though connections to it may look alive: nothing is fetched from it any more."""
        _say_address(self, Line.kPeerDown, host, port, "peer_down")

    def ask_stats(self):
        """Answered by ("stats", request, dict)."""
        cdef uint64_t request = 0
        _check(_open(self).Ask(Line.kStats, string(), &request), "ask_stats")
        return request

    cpdef list receive(self):
        """The answers that have come: ("pulled", request, outcome, text), ("held", request, bool), ("claimed", request, bool),
        ("count", request, int), ("stats", request, dict). Never waits. Raises PlasmaStoreDied."""
        cdef LineEvent event
        cdef COpenLine* line = _open(self)
        cdef list out = []
        cdef bytes payload
        _check(line.Receive(), "the object manager")
        while line.Next(&event):
            payload = event.payload
            if event.type == Line.kPulled:
                out.append(("pulled", event.request, OUTCOMES[payload[0]], payload[1:].decode("utf-8", "replace")))
            elif event.type == Line.kHeld:
                out.append(("held", event.request, payload == b"\1"))
            elif event.type == Line.kClaimed:
                out.append(("claimed", event.request, payload == b"\1"))
            elif event.type == Line.kCount:
                out.append(("count", event.request, int.from_bytes(payload, "little")))
            elif event.type == Line.kStatsAre:
                out.append(("stats", event.request, _stats_of(payload)))
        return out

    def wait(self, uint64_t request, timeout_s=10.0):
        """The answer to one request; answers to others that come meanwhile are lost. For tools and tests.

        Raises: TimeoutError. Blocks: yes."""
        give_up = time.monotonic() + timeout_s
        while True:
            for event in self.receive():
                if event[1] == request:
                    return event
            left = give_up - time.monotonic()
            if left <= 0 or not select.select([self.fd], [], [], left)[0]:
                raise TimeoutError(f"the object manager did not answer within {timeout_s} s")

    def close(self):
        """Ends the line: its pulls are cancelled and their pins dropped; holds stay."""
        self.line.reset()
        self.fd = -1


cdef dict _stats_of(bytes payload):
    cdef Stats s
    if PyBytes_GET_SIZE(payload) != sizeof(Stats):
        raise ValueError(f"the object manager's counts have {len(payload)} bytes, not {sizeof(Stats)}: another version?")
    memcpy(&s, PyBytes_AS_STRING(payload), sizeof(Stats))
    return {
        "pulls": s.pulls, "pulls_joined": s.pulls_joined, "pulls_done": s.pulls_done, "pulls_failed": s.pulls_failed,
        "pulls_now": s.pulls_now, "resumed": s.resumed, "bytes_in": s.bytes_in, "bytes_out": s.bytes_out,
        "served": s.served, "referred": s.referred, "serving_now": s.serving_now, "held": s.held, "links": s.links,
        "lines": s.lines, "bad_frames": s.bad_frames, "freed": s.freed,
    }
