"""The channel for Python: `Connection` and `Listener`, for asyncio shells and tests. Thin: cpp/channel decides everything.

The engine doesn't come through here; it cimports the C++ classes (channel.pxd) and works in place. These wrappers copy each
payload into a `bytes` once, never block, hold the GIL throughout (it is the channel's lock) and belong to one event loop.
When the other process dies, `receive` first returns what it still managed to send, then raises `ConnectionClosed`.
"""
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from libc.errno cimport EAGAIN, EINTR, EPROTO, errno
from libc.stdint cimport uint8_t
from libc.string cimport memcpy
from libcpp.memory cimport unique_ptr
import os

FRAME_BYTES_MAX = kFrameBytesMax
HELLO_DEADLINE_S = kHelloDeadlineNs / 1e9
# What ConnectionClosed.why says if one side speaks TLS and the other doesn't: that it is the peer who does not, or does.
WHY_WITHOUT_TLS = (<bytes>kPeerWithoutTls).decode()
WHY_WITH_TLS = (<bytes>kPeerWithTls).decode()

TLS_ROOM_BYTES_MIN = 2 * kTlsRecordBytesMax  # of a buffer for TlsSocket.recv_into

cdef enum:
    TOKEN_BYTES = 32
    TAG_BYTES = 16
    # recv() calls per receive(): keeps one busy peer from starving the others of its event loop.
    FILLS_MAX = 16


class ConnectionClosed(ConnectionError):
    """The connection is over. `why` says what ended it: the peer's death, its misbehaviour, or our own close."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


cdef Identity _identity(token, tag, role) except *:
    cdef Identity made
    if not isinstance(token, bytes) or len(token) != TOKEN_BYTES:
        raise ValueError(f"token must be {TOKEN_BYTES} bytes (the session's token file holds them in hex), not {_shape(token)}")
    if not isinstance(tag, bytes) or len(tag) != TAG_BYTES:
        raise ValueError(f"tag must be {TAG_BYTES} bytes, not {_shape(tag)}")
    if not isinstance(role, int) or not 0 <= role <= 3:
        raise ValueError(f"role must be 0 (driver), 1 (worker), 2 (node) or 3 (tool), not {role!r}")
    memcpy(made.token, <const char*><bytes>token, TOKEN_BYTES)
    memcpy(made.tag, <const char*><bytes>tag, TAG_BYTES)
    made.role = role
    ProveOverNetwork(&made)
    return made


cdef _port(port):
    if not isinstance(port, int) or not 0 <= port <= 65535:
        raise ValueError(f"port must be 0 to 65535, not {port!r}")
    return port


cdef _shape(value):
    # Never the value itself: it may be somebody's token.
    return f"{len(value)} bytes" if isinstance(value, (bytes, bytearray)) else type(value).__name__


cdef _raise(const Status& status):
    cdef bytes message = status.message()
    cdef str text = message.decode("utf-8", "replace")
    cdef StatusCode code = status.code()
    if code == StatusCode.kInvalidArgument:
        raise ValueError(text)
    if code == StatusCode.kNotFound:
        raise FileNotFoundError(text)
    if code == StatusCode.kAlreadyExists:
        raise FileExistsError(text)
    if code == StatusCode.kDisconnected:
        raise ConnectionRefusedError(text)
    if code == StatusCode.kTimedOut:
        raise TimeoutError(text)
    if code == StatusCode.kPermission:
        raise PermissionError(text)
    raise OSError(text)


cdef class Connection:
    """One end of an authenticated stream of frames. Made by `Connection.dial` or `Listener.accept`."""

    cdef unique_ptr[CConnection] _c

    def __init__(self):
        raise TypeError("make a Connection with Connection.dial(path, token, tag, role) or Listener.accept()")

    @staticmethod
    def dial(path, token, tag, role):
        """Connects to the socket at `path` and sends the hello. Frames may be sent at once.

        Raises:
            ValueError: an argument of the wrong size or kind.
            FileNotFoundError, ConnectionRefusedError, TimeoutError, PermissionError: nobody there; no longer there; its accept
                queue stays full; not ours.
        Blocks: no (up to 0.2 s if the accept queue is full).
        """
        cdef Identity identity = _identity(token, tag, role)
        cdef Status status
        cdef Connection self = Connection.__new__(Connection)
        self._c = CConnection.Dial(os.fsencode(path), identity, &status)
        if not self._c:
            _raise(status)
        return self

    @staticmethod
    def dial_tcp(host, port, destination, token, tag, role, peer_tag=None, *, tls=False):
        """Connects to the gate of a node. Frames may be sent at once: they leave when both sides have proved themselves.

        Args:
            host: a numeric address.
            destination: whose the connection is to become: 0 the node process, 1 a core, 2 its plasma_store.
            peer_tag: whose it must be: of the core (needed), or a node's id; anybody else is refused. None: whoever proves
                the token, where the id isn't known yet.
            tls: through TLS; a peer without it is refused (`WHY_WITHOUT_TLS`).
        Raises:
            ValueError: an argument of the wrong size or kind.
            FileNotFoundError: tls, and this machine has no OpenSSL.
            ConnectionRefusedError, OSError: refused at once. Later refusals, and no answer by `hello_deadline_s`, are the
                connection's end.
        Blocks: no.
        """
        cdef Identity identity = _identity(token, tag, role)
        cdef Status status
        cdef Connection self = Connection.__new__(Connection)
        cdef const uint8_t* to = NULL
        if destination not in (0, 1, 2):
            raise ValueError(f"destination must be 0 (node), 1 (core) or 2 (store), not {destination!r}")
        if destination == 1 and peer_tag is None:
            raise ValueError("peer_tag is needed for destination 1 (core)")
        if peer_tag is not None:
            if not isinstance(peer_tag, bytes) or len(peer_tag) != TAG_BYTES:
                raise ValueError(f"peer_tag must be {TAG_BYTES} bytes, not {_shape(peer_tag)}")
            to = <const uint8_t*><const char*><bytes>peer_tag
        identity.tls = tls
        self._c = CConnection.DialTcp(host.encode(), _port(port), <Destination><int>destination, to, identity, &status)
        if not self._c:
            _raise(status)
        return self

    @staticmethod
    def adopt(int fd, token, tag, role, *, tls=False):
        """Goes on with a connected socket that another part accepted (its preamble read); closes fd itself, now or later.

        Never raises for what the socket is: one that can't be used comes back closed, see `is_alive` and `why_closed`.
        """
        cdef Identity identity = _identity(token, tag, role)
        cdef Connection self = Connection.__new__(Connection)
        identity.tls = tls
        self._c = CConnection.Adopt(fd, identity)
        return self

    def take_passed(self):
        """The descriptor that a peer of role 4 brought, the caller's to close; None: there is none, or it was taken."""
        cdef int fd = self._c.get().TakePassed()
        return None if fd < 0 else fd

    def send(self, int type, payload, int flags=0):
        """Appends one frame and gives the kernel what it takes; returns the bytes still unsent (0: all gone).

        The unsent rest goes out by `flush`, once the descriptor is writable. Sending before the peer's hello has come is
        fine: the frame waits, which counts as unsent bytes too.
        Raises: ConnectionClosed: dead. ValueError: payload above 512 MiB. BufferError: 1 GiB is waiting unsent already.
        """
        self._append(type, payload, flags)
        return self.flush()

    def append(self, int type, payload, int flags=0):
        """As `send`, without the system call: for several frames in one `flush`. Returns nothing."""
        self._append(type, payload, flags)

    cdef _append(self, int type, payload, int flags):
        if not 0 <= type <= 255 or not 0 <= flags <= 255:
            raise ValueError(f"type and flags are bytes, 0 to 255, not {type} and {flags}")
        cdef const unsigned char[::1] data = payload
        cdef Py_ssize_t size = data.shape[0]
        self._check()
        if size > <Py_ssize_t>kFrameBytesMax:
            raise ValueError(f"payload has {size} bytes; a frame carries at most {kFrameBytesMax}")
        cdef uint8_t* at = self._c.get().Reserve(type, flags, <uint32_t>size)
        if at == NULL:
            raise BufferError(f"the peer (pid {self.peer_pid}) doesn't read: {self.pending_bytes} bytes wait unsent; send less or wait")
        if size > 0:
            memcpy(at, &data[0], size)

    def flush(self):
        """Sends what waits; returns the bytes still unsent. Raises ConnectionClosed."""
        if self._c.get().Flush() < 0:
            raise ConnectionClosed(self.why_closed)
        return self.pending_bytes

    def receive(self):
        """Returns the frames that have come, as a list of (type, payload); empty: none yet.

        Takes at most about 1 MiB of small frames per call; more leaves the descriptor readable.
        Raises: ConnectionClosed: after the last frame has been returned by an earlier call.
        """
        return [(frame[0], frame[2]) for frame in self.receive_frames()]

    def receive_frames(self):
        """As `receive`, with the flags: a list of (type, flags, payload)."""
        cdef list frames = []
        cdef Frame frame
        cdef CConnection* c = self._c.get()
        cdef int fills
        for fills in range(FILLS_MAX):
            if c.Fill() <= 0:
                break
            while c.Next(&frame):
                frames.append((frame.type, frame.flags, PyBytes_FromStringAndSize(<const char*>frame.data, frame.size)))
        if not frames and not c.alive():
            raise ConnectionClosed(self.why_closed)
        return frames

    def close(self):
        """Ends the connection at once; unsent bytes are dropped. Twice is fine."""
        self._c.get().Close(b"closed by this process")

    def close_if_late(self):
        """Closes a connection whose peer has not said its hello by `hello_deadline_s`; True if it was late."""
        return self._c.get().CloseIfLate(NowNs())

    def fileno(self):
        return self._c.get().fd()

    cdef _check(self):
        if not self._c.get().alive():
            raise ConnectionClosed(self.why_closed)

    @property
    def pending_bytes(self):
        return self._c.get().pending_bytes()

    @property
    def wants_write(self):
        """Whether waiting for the descriptor to be writable makes sense: something may be sent that didn't fit."""
        return self._c.get().wants_write()

    @property
    def is_open(self):
        """The peer has proved itself and isn't known to be gone."""
        return self._c.get().open()

    @property
    def greeted(self):
        """The peer has proved itself at some time."""
        return self._c.get().greeted()

    @property
    def no_such_process(self):
        """It has ended because whom we have dialled over TCP is gone: its node says so, or there is none any more."""
        return self._c.get().no_such_process()

    @property
    def is_alive(self):
        """Not closed, by either side, so far."""
        return self._c.get().alive()

    @property
    def hello_deadline_s(self):
        """When (time.monotonic) to call `close_if_late`; None once the hello has come."""
        cdef int64_t at = self._c.get().hello_deadline_ns()
        return at / 1e9 if at else None

    @property
    def peer_tag(self):
        return PyBytes_FromStringAndSize(<const char*>self._c.get().peer_tag(), TAG_BYTES)

    @property
    def peer_role(self):
        return self._c.get().peer_role()

    @property
    def peer_pid(self):
        return self._c.get().peer_pid()

    @property
    def broke_protocol(self):
        """The peer was cut off for what it sent (or for its hello), rather than gone."""
        return self._c.get().error() == EPROTO

    @property
    def why_closed(self):
        cdef bytes why = self._c.get().why_closed()
        return why.decode()

    def __repr__(self):
        cdef CConnection* c = self._c.get()
        state = "open" if c.open() else "greeting" if c.alive() else f"closed: {self.why_closed}"
        return f"<Connection fd={c.fd()} peer_pid={c.peer_pid()} pending_bytes={c.pending_bytes()} {state}>"


cdef class Listener:
    """A listening Unix socket of mode 0600 at `path`, speaking with the given identity. Removed when closed."""

    cdef unique_ptr[CListener] _c
    cdef Identity _self
    cdef readonly object path

    def __init__(self, path, token, tag, role, backlog=kBacklog):
        """Raises ValueError, FileExistsError, FileNotFoundError (no such folder), PermissionError, OSError."""
        cdef Status status
        self._self = _identity(token, tag, role)
        self.path = path
        self._c = CListener.Listen(os.fsencode(path), backlog, &status)
        if not self._c:
            _raise(status)

    def accept(self):
        """The next connection (its peer not yet proved: see is_open), or None. Never blocks."""
        cdef int fd
        cdef Connection made
        if not self._c:
            raise ValueError(f"listener {self.path!r} is closed")
        fd = self._c.get().Accept()
        if fd < 0:
            return None
        made = Connection.__new__(Connection)
        made._c = CConnection.Adopt(fd, self._self)
        return made

    def fileno(self):
        return self._c.get().fd() if self._c else -1

    def close(self):
        """Stops listening and removes the socket file. Twice is fine."""
        self._c.reset()


cdef class TcpListener:
    """A TCP socket that a gate listens on: hands out bare descriptors, of which nothing is known yet."""

    cdef unique_ptr[CListener] _c

    def __init__(self, host, port, backlog=kBacklog):
        """host: a numeric address. port: 0 takes any free one. Raises ValueError, FileExistsError (port in use), OSError."""
        cdef Status status
        cdef Identity nobody = _identity(bytes(TOKEN_BYTES), bytes(TAG_BYTES), 3)  # proves nothing here: Adopt does
        self._c = CListener.ListenTcp(host.encode(), _port(port), backlog, nobody, &status)
        if not self._c:
            _raise(status)

    def accept(self):
        """The next connection's descriptor, non-blocking, the caller's to close; None: none waits. Never blocks."""
        cdef int fd = self._c.get().Accept() if self._c else -1
        return None if fd < 0 else fd

    @property
    def port(self):
        return self._c.get().port() if self._c else 0

    def fileno(self):
        return self._c.get().fd() if self._c else -1

    def close(self):
        """Stops listening. Twice is fine."""
        self._c.reset()


cdef class TlsSocket:
    """A connected TCP socket of `ray://` with TLS over it (cpp/channel/tls.h): bytes in and out, as of a non-blocking socket.

    Both sides prove the token, and that neither took the connection for one between nodes. One event loop's.
    """

    cdef unique_ptr[CTls] _c
    cdef object _sock

    def __init__(self, sock, token, *, dialled):
        """sock: a `socket.socket`, ours from now on; made non-blocking. dialled: whether this side did.

        Raises: FileNotFoundError: no OpenSSL here. OSError: one that can't. ValueError: no token.
        """
        cdef Status status
        cdef uint8_t preamble[32]
        cdef Identity identity = _identity(token, bytes(TAG_BYTES), 3)
        WritePreamble(Destination.kClients, NULL, preamble)
        sock.setblocking(False)
        self._c = CTls.Make(sock.fileno(), dialled, identity.token, preamble, &status)
        if not self._c:
            _raise(status)
        self._sock = sock

    def recv_into(self, buffer):
        """How many bytes came, 0 at the end. If buffer has TLS_ROOM_BYTES_MIN or more, nothing stays back that the descriptor
        would not show; of less, whoever goes on reads once more before he waits.

        Raises: BlockingIOError: none yet; wait for the socket to be readable, and writable if `wants_write`. ConnectionClosed:
            the peer has not proved itself, has no TLS, or what came was changed. OSError: the socket's.
        """
        cdef unsigned char[::1] room = buffer
        cdef size_t got = 0, left = room.shape[0]
        cdef ssize_t n
        if left == 0:
            raise ValueError("buffer is empty")
        while got == 0 or left >= 2 * kTlsRecordBytesMax:
            n = self._c.get().Recv(&room[got], left, kTlsRecordBytesMax if left < 2 * kTlsRecordBytesMax else left - kTlsRecordBytesMax)
            if n > 0:
                got += n
                left -= n
            elif got > 0 or n == 0:  # after bytes: whatever it is shows again
                break
            elif errno != EINTR:
                self._failed()
        return got

    def sendmsg(self, buffers):
        """How many bytes went. The rest of the record that was begun leaves with the next call, which must begin alike.

        Raises: as recv_into; BlockingIOError also until the peer has proved itself.
        """
        cdef iovec parts[64]
        cdef Py_buffer views[64]
        cdef size_t count = 0, i
        cdef ssize_t n
        try:
            for one in buffers[:64]:
                PyObject_GetBuffer(one, &views[count], PyBUF_SIMPLE)
                parts[count].iov_base = views[count].buf
                parts[count].iov_len = views[count].len
                count += 1
            n = self._c.get().Send(parts, count)
            if n < 0:
                self._failed()
            return n
        finally:
            for i in range(count):
                PyBuffer_Release(&views[i])

    cdef _failed(self):
        cdef int error = errno
        if error == EAGAIN or error == EINTR:
            raise BlockingIOError(error, os.strerror(error))
        if error == EPROTO:
            raise ConnectionClosed((<bytes>self._c.get().why()).decode())
        raise OSError(error, os.strerror(error))

    @property
    def done(self):
        """Both sides have proved themselves. It is recv_into that brings this about."""
        return self._c.get().done()

    @property
    def wants_write(self):
        """Whether something of ours waits for the socket to be writable."""
        return self._c.get().wants_write()

    def fileno(self):
        return self._sock.fileno()

    def setsockopt(self, level, option, value):
        self._sock.setsockopt(level, option, value)

    def close(self):
        """Twice is fine."""
        self._sock.close()


def hand_over(path, int fd, token, tag):
    """Passes a copy of the connection fd to the process that listens at path, as its to go on with.

    Raises: FileNotFoundError, ConnectionRefusedError: it has ended. TimeoutError: it is stopped or far behind.
        PermissionError: another user's. ValueError, OSError.
    Blocks: no (up to 0.2 s if its accept queue is full).
    """
    cdef Status status = HandOver(os.fsencode(path), fd, _identity(token, tag, 2))
    if not status.ok():
        _raise(status)


def check_tls():
    """Raises FileNotFoundError, saying what to do, if this machine has no OpenSSL that TLS can use."""
    cdef Status status
    if OpenSsl.Load(&status) == NULL:
        _raise(status)


def stats():
    """Counts of misbehaving peers since this module was loaded: hellos_refused, hellos_late, frames_malformed, accepts_refused."""
    return {
        "hellos_refused": counters().hellos_refused.load(),
        "hellos_late": counters().hellos_late.load(),
        "frames_malformed": counters().frames_malformed.load(),
        "accepts_refused": counters().accepts_refused.load(),
    }
