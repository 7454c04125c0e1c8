# A connection to another process: frames out and in. Included by engine.pyx.
#
# A Link is closed exactly when the process at the other end is gone (or broke the protocol, which is treated alike): nobody
# closes a working one. Small frames of a burst gather in its buffer; later() sees that they leave within FLUSH_NS,
# sooner if somebody waits or FLUSH_BYTES have gathered.

@cython.no_gc_clear
cdef class Link:
    def __cinit__(self):
        self.alive = True
        self.tag = b""
        self.functions_sent = set()
        self.functions = {}
        self.holds = {}

    def __dealloc__(self):
        del self.conn

    def __repr__(self):
        return f"<Link to {self.tag.hex()[8:16]} {'alive' if self.alive else 'closed'}, {self.calls.size()} calls>"

    cdef uint8_t* begin(self, uint8_t type, uint8_t flags, uint32_t n) except NULL:
        """Room for a payload of n bytes, to be filled before anything else is done with this link."""
        cdef uint8_t* out = self.conn.Reserve(type, flags, n)
        if out == NULL:
            raise MemoryError(f"frame of {n} bytes does not fit: {self.conn.pending_bytes()} bytes are unsent to {self!r}")
        return out

    cdef int flush(self) except -1:
        cdef int left = self.conn.Flush()
        if left == 1 and not self.want_write and self.alive:
            self.want_write = True
            self.engine.poller.Want(self.conn.fd(), self.key, True, True)
        if self.far and self.engine.deadline_silence_ns == 0:
            self.engine.set_deadline(D_SILENCE, NowNs() + LOOK_NS)
        return 0

    cdef int later(self) except -1:
        if self.conn.pending_bytes() >= <size_t>FLUSH_BYTES:
            return self.flush()
        if not self.dirty:
            self.dirty = True
            self.engine.dirty.append(self)
            if self.engine.deadline_flush_ns == 0:
                self.engine.set_deadline(D_FLUSH, NowNs() + FLUSH_NS)
        return 0


cdef int send_control(Link link, uint8_t type, object message) except -1:
    cdef bytes data = pickle.dumps(message, 5)
    if not link.alive:
        if link is link.engine.node:
            raise link.engine.node_died()
        return 0
    cdef uint8_t* out = link.begin(type, 0, <uint32_t>PyBytes_GET_SIZE(data))
    memcpy(out, PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data))
    link.flush()
    return 0


cdef int send_u64(Link link, uint8_t type, uint8_t flags, uint64_t number) except -1:
    if link.alive:
        PutU64(link.begin(type, flags, 8), number)
        link.later()
    return 0
