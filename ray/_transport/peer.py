"""One process at the other end of a channel, on the event loop's thread of a shell: requests, replies, events.

A Peer is in exactly one of *greeting* (its hello hasn't been accepted yet), *open* and *closed*; it never reopens. When
the process at the other end dies, everything it still managed to send is dispatched, then each waiting `rpc` raises
`ConnectionClosed` and `on_close` is called, once. A peer that sends what the protocol forbids is closed likewise,
counted and logged with its pid; nobody else notices. One that doesn't read is closed when `UNSENT_BYTES_MAX` wait for
it: losing single messages would leave the two sides with different ideas of the world, losing the peer is a case that
both handle anyway.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import itertools
import logging
from collections.abc import Callable
from typing import Any

from ray._native.channel import Connection, ConnectionClosed
from ray._protocol.frames import FRAME_EVENT, FRAME_REPLY, FRAME_RPC
from ray._transport import messages

logger = logging.getLogger(__name__)

# What may wait unsent for one peer. Far above any burst of control messages; a stopped process can't fill our memory.
UNSENT_BYTES_MAX = 64 * 2**20
# Above this a polite sender (log lines, large replies) awaits drain().
UNSENT_BYTES_HIGH = 1 * 2**20
# Requests of one peer being served, and requests of ours that it hasn't answered.
RPCS_SERVED_MAX = 10_000
RPCS_WAITING_MAX = 100_000

malformed_frames = 0  # control frames, in this process, that were no valid pickles of their kind


class Peer:
    """The other process. Made by `serve_unix` or `connect_unix`, which hand it to a callback that sets the handlers:

    on_rpc(method, args): returns the result, or an awaitable of it; an exception travels to the asker. Its task is
        cancelled when the peer goes: a handler that must finish shields itself.
    on_event(name, args); on_frame(type, flags, payload) for types that aren't control frames: plain calls.
    on_close(why): after everything else; also after our own close(). From the event loop, never from inside another
        call. Only if the peer had opened.
    """

    def __init__(
        self,
        connection: Connection,
        on_open: Callable[[Peer], None],
        on_gone: Callable[[Peer], None] | None = None,
        name: str = "channel",
    ) -> None:
        self.on_rpc: Callable[[str, tuple[Any, ...]], Any] | None = None
        self.on_event: Callable[[str, tuple[Any, ...]], None] | None = None
        self.on_frame: Callable[[int, int, bytes], None] | None = None
        self.on_close: Callable[[str], None] | None = None
        self.why_closed: str | None = None  # None: not closed
        self._connection = connection
        self._fd = connection.fileno()
        self._on_open = on_open
        self._on_gone = on_gone
        self._name = name
        self._is_open = False
        self._loop = asyncio.get_running_loop()
        self._request_ids = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._serving: set[asyncio.Future[Any]] = set()
        self._drains: list[tuple[int, asyncio.Future[None]]] = []
        self._flush_soon = False
        self._watching_write = False
        self._counts = {"frames_received": 0, "frames_sent": 0}
        self._loop.add_reader(self._fd, self._readable)
        if connection.wants_write:  # TCP: the greeting goes out when the connection has been made
            self._watch_write()
        deadline_s = connection.hello_deadline_s
        self._late = self._loop.call_at(deadline_s, self._hello_late) if deadline_s is not None else None

    # -- who it is

    @property
    def tag(self) -> bytes:
        return self._connection.peer_tag

    @property
    def role(self) -> int:
        return self._connection.peer_role

    @property
    def pid(self) -> int:
        """From the kernel (SO_PEERCRED): of the process that dialled, or that listens where we dialled."""
        return self._connection.peer_pid

    @property
    def closed(self) -> bool:
        return self.why_closed is not None

    @property
    def unsent_bytes(self) -> int:
        return self._connection.pending_bytes

    def __repr__(self) -> str:
        state = f"closed: {self.why_closed}" if self.closed else "open" if self._is_open else "greeting"
        return (
            f"<Peer pid={self.pid} role={self.role} tag={self.tag.hex()[8:16]} {state}, {len(self._waiting)} waiting>"
        )

    def stats(self) -> dict[str, int]:
        """frames_received, frames_sent; unsent_bytes; rpcs_waiting (ours, unanswered), rpcs_served (its, running)."""
        return {
            **self._counts,
            "unsent_bytes": self.unsent_bytes,
            "rpcs_waiting": len(self._waiting),
            "rpcs_served": len(self._serving),
        }

    # -- saying something

    def event(self, name: str, *args: Any) -> None:
        """Sends and forgets. What is said in one turn of the event loop leaves in one system call at its end.

        Raises: ConnectionClosed: the peer is gone. Whatever pickle raises for args that can't be.
        """
        self.send(FRAME_EVENT, messages.encode_event(name, args))

    async def rpc(self, method: str, *args: Any, timeout_s: float | None = None) -> Any:
        """Asks and waits for the answer.

        Raises:
            ConnectionClosed: the peer is gone; whether it did what was asked isn't known.
            TimeoutError: no answer within timeout_s (a late one is dropped).
            BufferError: RPCS_WAITING_MAX requests are unanswered.
            Whatever the other side's handler raised.
        """
        request_id, answer = self._ask(method, args)
        try:
            if timeout_s is not None:
                done, _ = await asyncio.wait([answer], timeout=timeout_s)
                if not done:
                    raise TimeoutError(f"{method}: no answer from pid {self.pid} within {timeout_s} s")
            return await answer
        finally:
            self._waiting.pop(request_id, None)

    def ask(self, method: str, *args: Any) -> asyncio.Future[Any]:
        """As `rpc`, but asks now, in order with events; returns the answer to come. Raises what sending does."""
        return self._ask(method, args)[1]

    def _ask(self, method: str, args: tuple[Any, ...]) -> tuple[int, asyncio.Future[Any]]:
        if len(self._waiting) >= RPCS_WAITING_MAX:
            raise BufferError(
                f"{len(self._waiting)} requests to {self!r} are unanswered; wait for some before asking more"
            )
        request_id = next(self._request_ids)
        self.send(FRAME_RPC, messages.encode_rpc(request_id, method, args))
        answer: asyncio.Future[Any] = self._loop.create_future()
        self._waiting[request_id] = answer
        return request_id, answer

    def send(self, type: int, payload: bytes, flags: int = 0) -> None:
        """Sends one frame of any type. Raises ConnectionClosed."""
        if self.why_closed is not None:
            raise ConnectionClosed(self.why_closed)
        self._connection.append(type, payload, flags)
        self._counts["frames_sent"] += 1
        if not self._flush_soon:
            self._flush_soon = True
            self._loop.call_soon(self._flush)

    async def drain(self, below_bytes: int = 0) -> None:
        """Waits until at most below_bytes are unsent. Raises ConnectionClosed."""
        if self.why_closed is not None:
            raise ConnectionClosed(self.why_closed)
        if self.unsent_bytes <= below_bytes:
            return
        drained: asyncio.Future[None] = self._loop.create_future()
        self._drains.append((below_bytes, drained))
        await drained

    def close(self, why: str = "closed by this process") -> None:
        """Ends the connection at once, after one try to send what waits (`await drain()` first to be sure of it)."""
        if self.closed:
            return
        try:
            self._connection.flush()
        except ConnectionClosed as gone:
            logger.debug("%s: %r was gone before it was closed: %s", self._name, self, gone)
        self._end(why)

    # -- hearing something

    def _readable(self) -> None:
        try:
            frames = self._connection.receive_frames()
        except ConnectionClosed as gone:
            self._lost(gone.why)
            return
        if not self._is_open and self._connection.greeted:
            self._is_open = True
            if self._late is not None:
                self._late.cancel()
            self._open()
        self._counts["frames_received"] += len(frames)
        try:
            for type, flags, payload in frames:
                if self.closed:  # by a handler
                    return
                self._dispatch(type, flags, payload)
        except messages.Malformed as malformed:
            global malformed_frames
            malformed_frames += 1
            logger.warning("%s: closed the connection of pid %d: it sent %s", self._name, self.pid, malformed)
            self._end(f"the peer sent {malformed}")
            return
        if self._connection.wants_write:
            self._watch_write()

    def _open(self) -> None:
        try:
            self._on_open(self)
        except Exception:
            logger.exception("%s: taking the connection of pid %d failed", self._name, self.pid)
            self._end("this process failed to take the connection")

    def _dispatch(self, type: int, flags: int, payload: bytes) -> None:
        if type == FRAME_EVENT:
            name, args = messages.decode_event(payload)
            self._call(self.on_event, name, args)
        elif type == FRAME_RPC:
            self._serve(*messages.decode_rpc(payload))
        elif type == FRAME_REPLY:
            request_id, ok, result = messages.decode_reply(payload)
            answer = self._waiting.pop(request_id, None)
            if answer is None or answer.done():  # its asker gave up
                return
            answer.set_result(result) if ok else answer.set_exception(result)
        elif self.on_frame is not None:
            self._call(self.on_frame, type, flags, payload)
        else:
            raise messages.Malformed(f"a frame of type {type}, which nobody here understands")

    def _call(self, handler: Callable[..., None] | None, *args: Any) -> None:
        if handler is None:
            logger.warning("%s: nobody handles %r, sent by pid %d", self._name, args[0], self.pid)
            return
        try:
            handler(*args)
        except Exception:  # a handler's bug, or arguments that it can't use: neither is a reason to lose the peer
            logger.exception("%s: handling %r of pid %d failed", self._name, args[0], self.pid)

    def _serve(self, request_id: int, method: str, args: tuple[Any, ...]) -> None:
        try:
            if self.on_rpc is None:
                raise NotImplementedError(f"{method}: this process serves no requests")
            if len(self._serving) >= RPCS_SERVED_MAX:
                raise BufferError(
                    f"{method}: {len(self._serving)} requests of this peer are running; ask fewer at a time"
                )
            result = self.on_rpc(method, args)
        except Exception as error:  # the asker's to handle
            self._answer(messages.encode_failure(request_id, error))
            return
        if inspect.isawaitable(result):
            task = asyncio.ensure_future(result)
            self._serving.add(task)
            task.add_done_callback(functools.partial(self._served, request_id))
        else:
            self._answer(messages.encode_reply(request_id, result))

    def _served(self, request_id: int, task: asyncio.Future[Any]) -> None:
        self._serving.discard(task)
        if task.cancelled():  # by the peer's end, or by its own server
            self._answer(messages.encode_failure(request_id, RuntimeError("the request was cancelled where it ran")))
            return
        error = task.exception()
        if error is None:
            self._answer(messages.encode_reply(request_id, task.result()))
        else:
            self._answer(messages.encode_failure(request_id, error))

    def _answer(self, reply: bytes) -> None:
        if not self.closed:  # else nobody is left to hear it
            self.send(FRAME_REPLY, reply)

    # -- moving bytes

    def _flush(self) -> None:
        self._flush_soon = False
        if self.closed:
            return
        try:
            unsent = self._connection.flush()
        except ConnectionClosed:
            return  # the reader finds the same, after what the peer still said
        if unsent > UNSENT_BYTES_MAX:
            logger.warning("%s: closed the connection of pid %d: it left %d bytes unread", self._name, self.pid, unsent)
            self._end(f"the peer doesn't read: {unsent} bytes wait for it")
            return
        if self._connection.wants_write:
            self._watch_write()
        self._wake_drains()

    def _watch_write(self) -> None:
        if not self._watching_write:
            self._watching_write = True
            self._loop.add_writer(self._fd, self._writable)

    def _writable(self) -> None:
        self._flush()
        if self._watching_write and not self._connection.wants_write:
            self._watching_write = False
            self._loop.remove_writer(self._fd)

    def _wake_drains(self) -> None:
        if not self._drains:
            return
        unsent = self.unsent_bytes
        still = []
        for below_bytes, drained in self._drains:
            if drained.done():  # its waiter was cancelled
                continue
            if unsent <= below_bytes:
                drained.set_result(None)
            else:
                still.append((below_bytes, drained))
        self._drains = still

    # -- the end

    def _hello_late(self) -> None:
        if self._connection.close_if_late():
            self._lost(self._connection.why_closed)

    def _lost(self, why: str) -> None:
        if self._connection.broke_protocol or not self._connection.greeted:
            logger.warning("%s: dropped a connection of pid %d: %s", self._name, self.pid, why)
        self._end(why)

    def _end(self, why: str) -> None:
        if self.closed:
            return
        self.why_closed = why
        self._loop.remove_reader(self._fd)
        self._loop.remove_writer(self._fd)
        self._watching_write = False
        if self._late is not None:
            self._late.cancel()
        self._connection.close()
        waiting, self._waiting = self._waiting, {}
        for answer in waiting.values():
            if not answer.done():
                answer.set_exception(ConnectionClosed(why))
        drains, self._drains = self._drains, []
        for _, drained in drains:
            if not drained.done():
                drained.set_exception(ConnectionClosed(why))
        for task in list(self._serving):
            task.cancel()
        if self._on_gone is not None:
            self._on_gone(self)
        self._loop.call_soon(self._tell_closed)

    def _tell_closed(self) -> None:
        if self.on_close is not None and self._is_open and self.why_closed is not None:
            self._call(self.on_close, self.why_closed)
