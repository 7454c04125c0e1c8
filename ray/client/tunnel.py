"""Unix sockets of two machines, joined through one TCP connection: what a `ray://` client and its server both are.

Runs in the two processes `ray client` (local_end.py) and `ray client server` (server.py), each on one asyncio loop.
A `Stream` is one Unix socket whose bytes travel as DATA frames of a stream number; a `Tunnel` owns the streams of one
client and its Wire. So a driver on another machine speaks to the node process and to workers as if it were there.

The hello that opens each connection between processes carries a token (docs/internals/wire_format.md). It does not
travel: the sending end checks it against its own session's and blanks it, the receiving end fills in that of its own.

If a process behind a stream dies, its socket ends, the stream is closed at both ends. If the TCP connection breaks, the
streams stay and wait: `Tunnel.lost` says so, `attach` goes on with the next connection. What is read from sockets is
bounded: when the other end has not heard of UNACKED_BYTES_HIGH bytes, or a socket does not take what came for it,
reading stops at the source.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import socket
from collections import deque

from ray.client.link import Link
from ray.client.wire import Malformed, Wire

logger: logging.Logger = logging.getLogger(__name__)

# Frame types. 16 and up: objects (objects.py).
INFO = 1  # JSON, the first frame of a wire in each direction: who is there
OPEN = 2  # payload: what to connect to, NODE or the tag of a process
DATA = 3
CLOSE = 4
GOODBYE = 5  # the client has left on purpose: everything of it may go at once
LISTEN = 6  # payload: the tag by which the cluster's processes will want to reach the client's own

# How long both ends wait for a broken connection to be made again, and who may say otherwise, in seconds.
GRACE_S = 30.0
GRACE_VARIABLE = "RAY_CLIENT_RECONNECT_GRACE_PERIOD"

NODE = b""
OBJECTS = b"object manager\0\0"  # of the session's store; its line has no hello (cpp/object_manager/line.h)
TAG_BYTES = 16
HELLO_BYTES = 64
TAG_AT, TOKEN_AT = 16, 32  # in the hello
TOKEN_BYTES = 32

READ_BYTES = 256 << 10
# A socket that leaves this much of what came for it stops the whole tunnel's reading: streams share one connection.
UNTAKEN_BYTES_MAX = 16 << 20


class Stream:
    """One Unix socket of ours, and its number on the wire. Ends once, whoever ends it."""

    def __init__(self, tunnel: Tunnel, number: int, sock: socket.socket, greets: bool = True) -> None:
        """greets: a hello comes first, both ways."""
        self.number = number
        self._tunnel = tunnel
        self._sock = sock
        self._hello_out: bytearray | None = bytearray() if greets else None  # None: has gone
        self._hello_in: bytearray | None = bytearray() if greets else None
        self._untaken: deque[bytes | memoryview] = deque()
        self.untaken_bytes: int = 0
        self._reading = False
        self._ending = False  # the other end has closed: what came before is still written
        sock.setblocking(False)
        self.read(not tunnel.wire.congested)

    def read(self, wanted: bool) -> None:
        if wanted is self._reading or self._ending:
            return
        self._reading = wanted
        if wanted:
            self._tunnel.loop.add_reader(self._sock, self._readable)
        else:
            self._tunnel.loop.remove_reader(self._sock)

    def _readable(self) -> None:
        try:
            data = self._sock.recv(READ_BYTES)
        except BlockingIOError:
            return
        except OSError:  # reset: the process behind it was killed with bytes of ours unread
            data = b""
        if not data:
            self._tunnel.stream_ended(self)
            return
        if self._hello_out is not None:
            self._hello_out += data
            if len(self._hello_out) < HELLO_BYTES:
                return
            data, self._hello_out = bytes(self._hello_out), None
            if not hmac.compare_digest(data[TOKEN_AT:HELLO_BYTES], self._tunnel.local_token):
                logger.warning("dropped a connection that did not show the session's token")
                self._tunnel.stream_ended(self)
                return
            self._tunnel.hello_passes(data[TAG_AT:TOKEN_AT])
            data = data[:TOKEN_AT] + bytes(TOKEN_BYTES) + data[HELLO_BYTES:]
        self._tunnel.send(DATA, self.number, data)

    def deliver(self, data: memoryview) -> None:
        """What came for our socket. data is only valid now."""
        if self._hello_in is not None:
            self._hello_in += data
            if len(self._hello_in) < HELLO_BYTES:
                return
            data = memoryview(
                self._hello_in[:TOKEN_AT] + self._tunnel.local_token + self._hello_in[HELLO_BYTES:],
            )
            self._hello_in = None
        if not self._untaken:
            try:
                data = data[self._sock.send(data) :]
            except BlockingIOError:
                pass  # its writer below goes on
            except OSError:
                self._tunnel.stream_ended(self)
                return
            if not data:
                return
            self._tunnel.loop.add_writer(self._sock, self._writable)
        self._untaken.append(bytes(data))
        self.untaken_bytes += len(data)

    def _writable(self) -> None:
        try:
            while self._untaken:
                first = self._untaken[0]
                sent = self._sock.send(first)
                self.untaken_bytes -= sent
                if sent < len(first):
                    self._untaken[0] = memoryview(first)[sent:]
                    break
                self._untaken.popleft()
        except BlockingIOError:
            return
        except OSError:
            self._tunnel.stream_ended(self)
            return
        if not self._untaken:
            self._tunnel.loop.remove_writer(self._sock)
            if self._ending:
                self._tunnel.stream_done(self)
        self._tunnel.taken()

    def end_after_delivery(self) -> None:
        """The other end has closed its socket: ours closes when what came is written."""
        self.read(False)
        self._ending = True
        if not self._untaken:
            self._tunnel.stream_done(self)

    def close(self) -> None:
        self._tunnel.loop.remove_reader(self._sock)
        self._tunnel.loop.remove_writer(self._sock)
        self._sock.close()


class Tunnel:
    """The streams of one client at one of its two ends. A subclass says what OPEN means and deals with further frames.

    local_token: of the session on this side, shown to the processes here.
    """

    FIRST_STREAM: int  # numbers of the two ends don't meet: odd ones are the client's

    def __init__(self, local_token: bytes) -> None:
        self.loop: asyncio.AbstractEventLoop = asyncio.get_running_loop()
        self.wire: Wire = Wire()
        self.local_token = local_token
        self.streams: dict[int, Stream] = {}
        self.sock: Link | None = None
        self._next_stream = self.FIRST_STREAM
        self._reading = False
        self._writing = False
        self._flush_soon = False
        self._throttled = False
        self.closed: bool = False

    # -- for subclasses

    def frame(self, kind: int, stream: int, payload: memoryview) -> None:
        """A frame that is none of a stream's. Raises: Malformed."""
        raise Malformed(f"a frame of type {kind}")

    def opened(self, stream: int, target: bytes) -> None:
        """The other end wants a connection to target: `join(stream, socket)`, or `refuse(stream)`."""
        raise NotImplementedError

    def lost(self, why: str) -> None:
        """The connection broke; the wire can go on with another (`attach`)."""
        raise NotImplementedError

    def hello_passes(self, tag: bytes) -> None:
        """A process here has begun to speak through a stream; tag is its own."""

    def may_produce(self) -> None:
        """The wire has room again."""

    # -- streams

    def next_number(self) -> int:
        number = self._next_stream
        self._next_stream += 2
        return number

    def open(self, target: bytes, sock: socket.socket) -> None:
        """A process here has connected to sock in order to speak to target there."""
        number = self.next_number()
        self.send(OPEN, number, target)
        self.join(number, sock, target)

    def join(self, number: int, sock: socket.socket, target: bytes) -> None:
        self.streams[number] = Stream(self, number, sock, greets=target != OBJECTS)

    def refuse(self, number: int) -> None:
        self.send(CLOSE, number)

    def stream_ended(self, stream: Stream) -> None:
        """The process at our side of it is gone."""
        if self.streams.get(stream.number) is stream:
            self.send(CLOSE, stream.number)
        self.stream_done(stream)

    def stream_done(self, stream: Stream) -> None:
        if self.streams.get(stream.number) is stream:
            del self.streams[stream.number]
        stream.close()
        self.taken()

    # -- the connection

    def attach(self, sock: Link, received_there: int) -> None:
        """Goes on over sock, whose two ends have proved themselves; frames that the other end lacks are sent again."""
        self.detach()
        self.wire.resume(received_there)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 10)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
        self.sock = sock
        self._writing = False
        self._reading = False
        self._read(True)
        self.loop.call_soon(self._readable)  # of TLS something may have come with the greeting
        self._flush()

    def detach(self) -> None:
        """Lets go of the connection, if there is one: nothing more is heard of it."""
        if self.sock is not None:
            self.loop.remove_reader(self.sock)
            self.loop.remove_writer(self.sock)
            self.sock.close()
            self.sock = None

    def send(self, kind: int, stream: int, payload: bytes | memoryview = b"") -> None:
        """Queues a frame; all that one turn of the event loop queues leaves in one system call at its end."""
        self.wire.send(kind, stream, payload)
        if not self._flush_soon and not self._writing:
            self._flush_soon = True
            self.loop.call_soon(self._flush)
        if self.wire.congested and not self._throttled:
            self._throttle(True)

    def close(self) -> None:
        """Ends everything on this side. Idempotent."""
        self.closed = True
        for stream in list(self.streams.values()):
            stream.close()
        self.streams.clear()
        self.detach()
        self.wire = Wire()  # what was not acknowledged keeps objects pinned, and we may lie in a cycle for long

    def _broken(self, why: str) -> None:
        self.detach()
        if not self.closed:
            self.lost(why)

    def _flush(self) -> None:
        self._flush_soon = False
        sock = self.sock
        if sock is None:
            return
        try:
            while self.wire.wants_write:
                self.wire.wrote(sock.sendmsg(self.wire.to_write()))
        except BlockingIOError:
            if not self._writing:
                self._writing = True
                self.loop.add_writer(sock, self._flush)
            return
        except OSError as error:
            self._broken(str(error))
            return
        if self._writing:
            self._writing = False
            self.loop.remove_writer(sock)

    def _read(self, wanted: bool) -> None:
        if self.sock is None or wanted is self._reading:
            return
        self._reading = wanted
        if wanted:
            self.loop.add_reader(self.sock, self._readable)
        else:
            self.loop.remove_reader(self.sock)

    def _readable(self) -> None:
        sock = self.sock
        if sock is None or not self._reading:
            return
        try:
            nbytes = sock.recv_into(self.wire.room())
        except BlockingIOError:
            return
        except OSError as error:
            self._broken(str(error))
            return
        if nbytes == 0:
            self._broken("the other end closed the connection")
            return
        try:
            for kind, number, payload in self.wire.feed(nbytes):
                self._dispatch(kind, number, payload)
        except Malformed as error:
            logger.warning("the other end sent %s; its connection is over", error)
            self._broken(f"the other end sent {error}")
            return
        if self._throttled and not self.wire.congested:
            self._throttle(False)
        if self.wire.wants_write:  # an acknowledgement
            self._flush()
        if any(stream.untaken_bytes > UNTAKEN_BYTES_MAX for stream in self.streams.values()):
            self._read(False)

    def _dispatch(self, kind: int, number: int, payload: memoryview) -> None:
        if self.closed:
            return
        if kind == DATA:
            stream = self.streams.get(number)
            if stream is not None:  # else it has ended here, and the news of that is on its way
                stream.deliver(payload)
        elif kind == OPEN:
            if number % 2 == self.FIRST_STREAM % 2 or number in self.streams:
                raise Malformed(f"OPEN with stream number {number}")
            if len(payload) not in (len(NODE), TAG_BYTES):
                raise Malformed("OPEN to nothing known")
            self.opened(number, bytes(payload))
        elif kind == CLOSE:
            stream = self.streams.get(number)
            if stream is not None:
                stream.end_after_delivery()
        else:
            self.frame(kind, number, payload)

    def taken(self) -> None:
        """A socket took something: the tunnel may read again."""
        if not self._reading and all(s.untaken_bytes <= UNTAKEN_BYTES_MAX // 2 for s in self.streams.values()):
            self._read(True)

    def _throttle(self, stop: bool) -> None:
        self._throttled = stop
        for stream in list(self.streams.values()):
            stream.read(not stop)
        if not stop:
            self.may_produce()
