"""The node's connection to Redis: writes queued and sent in batches, reads awaited, both surviving the server's death.

Runs in the node process, on its asyncio loop's thread only. One connection to each server; commands to one server are
carried out in the order they were given, so a read sees the writes before it. A write costs its caller one encoding and
an append; it leaves FLUSH_DELAY_S later, with whatever else came meanwhile, in one system call.

Every command is in exactly one of: waiting (not sent), sent (not answered), done. When the connection dies, the sent
ones go back to the front of the waiting ones and are sent again: the server may have carried them out, so **all writes
must be repeatable** (HSET, HDEL, DEL, XADD with an id of our own - the server refuses to add an id twice, and that
refusal of a repeated command counts as done). Nothing waits without a bound: beyond QUEUE_BYTES_MAX a write is dropped,
and once the server is back `on_gap` asks the owner to write its tables anew from memory; an awaited command is refused
instead.
"""

from __future__ import annotations

import asyncio
import binascii
import collections
import sys
from collections.abc import Callable
from typing import Any

from ray._control import resp
from ray._control.redis_server import RedisServers
from ray._control.resp import Arg, Reply, ReplyError

FLUSH_DELAY_S = 0.005  # how long a write may wait for company; an awaited command takes everything with it at once
WINDOW_BYTES = 1024 * 1024  # sent and unanswered, per server: more would only sit in socket buffers
QUEUE_BYTES_MAX = 64 * 1024 * 1024  # waiting, per server: minutes of a busy node's writes
RETRY_FIRST_S, RETRY_LAST_S = 0.01, 1.0  # while a server is away; a line from its log cuts the wait short
CALL_TIMEOUT_S = 30.0
# Refusals that pass: no memory, no disk. What was refused is written anew after a while, ever more rarely.
PASSING = ("OOM", "MISCONF")
REPAIR_FIRST_S, REPAIR_LAST_S = 5.0, 60.0


class StoreUnavailable(RuntimeError):
    """The control plane did not answer: its server is away, given up, or the queue to it is full."""


class _Command:
    __slots__ = ("data", "future", "name", "repeated")

    def __init__(self, data: bytes, future: asyncio.Future[Any] | None, name: str) -> None:
        self.data = data
        self.future = future
        self.name = name
        self.repeated = False


class Store:
    """Connections to the main server (shard 0) and the others.

    Attributes:
        on_gap: called as (shard) when writes were dropped for want of room and the server is back, or were refused
            for want of memory or disk a while ago: write its tables anew.
        on_problem: called as (text) the first time a server refuses a write for a given reason, such as a full disk.
        on_answered: called after a server has answered something: it may have written.
    """

    def __init__(self, addresses: list[str], password: str, loop: asyncio.AbstractEventLoop) -> None:
        self.on_gap: Callable[[int], None] = _ignore
        self.on_problem: Callable[[str], None] = _ignore
        self.on_answered: Callable[[], None] = _ignore
        self._loop = loop
        self._links = [_Link(self, shard, address, password) for shard, address in enumerate(addresses)]
        for link in self._links:
            link.kick()

    @classmethod
    def of_servers(cls, servers: RedisServers, loop: asyncio.AbstractEventLoop) -> Store:
        """A store that hears from those who watch the servers' processes when to try again, and when never."""
        store = cls(servers.addresses, servers.password, loop)

        def on_event(index: int, what: str) -> None:
            if what == "line":
                store.kick(index)

        def on_given_up(name: str, cause: str) -> None:
            store.give_up(cause)
            store.on_problem(cause)

        servers.on_event = on_event
        servers.on_given_up = on_given_up
        return store

    @property
    def shards(self) -> int:
        return len(self._links)

    def shard_of(self, key: bytes) -> int:
        """Where a row of one of the big tables lives: on the main server if it is alone, else on one of the others."""
        others = len(self._links) - 1
        return 1 + binascii.crc32(key) % others if others else 0

    def write(self, shard: int, *args: Arg) -> None:
        """Queues a repeatable write; nobody hears of its reply. Never blocks. Refusals are counted and go to
        `on_problem`."""
        link = self._links[shard]
        data = resp.encode(args)
        if link.gave_up is not None or link.waiting_bytes + len(data) > QUEUE_BYTES_MAX:
            link.dropped += 1
            return
        link.push(_Command(data, None, str(args[0])))
        link.flush_later()

    async def call(self, shard: int, *args: Arg, timeout_s: float = CALL_TIMEOUT_S) -> Reply:
        """Sends a command and waits for its reply. After the server's death it is sent again, so it must be repeatable.

        Raises: ReplyError: the server refused it.  StoreUnavailable: no answer within timeout_s, no room, or given
        up."""
        return (await self.call_noting_repeat(shard, *args, timeout_s=timeout_s))[0]

    async def call_noting_repeat(self, shard: int, *args: Arg, timeout_s: float = CALL_TIMEOUT_S) -> tuple[Reply, bool]:
        """As `call`; the second value tells whether the command may have been carried out before this reply's
        attempt."""
        link = self._links[shard]
        name = str(args[0])
        data = resp.encode(args)
        if link.gave_up is not None:
            raise StoreUnavailable(link.gave_up)
        if link.waiting_bytes and link.waiting_bytes + len(data) > QUEUE_BYTES_MAX:
            raise StoreUnavailable(
                f"{name}: {link.waiting_bytes} bytes already wait for the control plane at {link.address} "
                f"({link.why_down or 'connected'})"
            )
        future: asyncio.Future[Any] = self._loop.create_future()
        command = _Command(data, future, name)
        link.push(command)
        link.flush()
        try:
            reply = await asyncio.wait_for(future, timeout_s)
        except asyncio.TimeoutError:
            raise StoreUnavailable(
                f"{name}: no answer from the control plane at {link.address} within {timeout_s:g} s "
                f"({link.why_down or 'connected'})"
            ) from None
        if isinstance(reply, ReplyError):
            raise reply
        return reply, command.repeated

    async def drain(self, timeout_s: float) -> bool:
        """Waits until everything queued so far is acknowledged; False after timeout_s."""
        waits = [link.drained() for link in self._links]
        _, rest = await asyncio.wait([asyncio.ensure_future(w) for w in waits], timeout=timeout_s)
        for task in rest:
            task.cancel()
        return not rest

    async def close(self, timeout_s: float = 1.0) -> bool:
        """Drains and disconnects. Whoever still waits gets StoreUnavailable. Returns whether all writes were
        acknowledged."""
        drained = await self.drain(timeout_s)
        for link in self._links:
            link.give_up("the control plane's connection was closed")
        return drained

    def kick(self, shard: int) -> None:
        """The server may be up now: try, without waiting for the retry's turn."""
        self._links[shard].kick()

    def give_up(self, cause: str) -> None:
        """The server will not come back: fails everybody who waits, and all that follow, with cause."""
        for link in self._links:
            link.give_up(cause)

    def stats(self) -> list[dict[str, object]]:
        """Per server: connected, connections (made so far), waiting, waiting_bytes, sent, dropped, refused,
        why_down."""
        return [link.stats() for link in self._links]


class _Link(asyncio.Protocol):
    """One server's queue and connection. Down (no transport), connecting, greeting (AUTH, PING sent), up, or given
    up."""

    def __init__(self, store: Store, shard: int, address: str, password: str) -> None:
        self.store = store
        self.shard = shard
        self.address = address
        self.why_down = "not connected yet"
        self.gave_up: str | None = None
        self.waiting: collections.deque[_Command] = collections.deque()
        self.sent: collections.deque[_Command] = collections.deque()
        self.waiting_bytes = self.sent_bytes = 0
        self.connections = self.dropped = self.refused = 0
        self._password = password
        self._loop = store._loop
        self._transport: asyncio.Transport | None = None
        self._parser = resp.Parser()
        self._greeting = 0  # replies to AUTH and PING still to come
        self._up = False
        self._connecting: asyncio.Task[None] | None = None
        self._kicked = False  # while connecting
        self._retry: asyncio.TimerHandle | None = None
        self._retry_s = RETRY_FIRST_S
        self._flush_timer: asyncio.TimerHandle | None = None
        self._dropped_reported = 0
        self._repair: asyncio.TimerHandle | None = None
        self._repair_s = REPAIR_FIRST_S
        self._reasons: set[str] = set()
        self._drainers: list[asyncio.Future[None]] = []

    # -- queue --------------------------------------------------------------------------------------------------------

    def push(self, command: _Command) -> None:
        self.waiting.append(command)
        self.waiting_bytes += len(command.data)

    def flush_later(self) -> None:
        if self._flush_timer is None and self._up:
            self._flush_timer = self._loop.call_later(FLUSH_DELAY_S, self.flush)

    def flush(self) -> None:
        """Sends what the window has room for. A command larger than the window goes alone."""
        if self._flush_timer is not None:
            self._flush_timer.cancel()
            self._flush_timer = None
        if not self._up or not self.waiting:
            return
        batch: list[bytes] = []
        while self.waiting and (not self.sent or self.sent_bytes + len(self.waiting[0].data) <= WINDOW_BYTES):
            command = self.waiting.popleft()
            size = len(command.data)
            self.waiting_bytes -= size
            self.sent_bytes += size
            self.sent.append(command)
            batch.append(command.data)
        if batch:
            assert self._transport is not None
            self._transport.write(b"".join(batch))

    async def drained(self) -> None:
        self.flush()
        if (self.waiting or self.sent) and self.gave_up is None:
            future = self._loop.create_future()
            self._drainers.append(future)
            await future

    # -- connection ---------------------------------------------------------------------------------------------------

    def kick(self) -> None:
        if self.gave_up is not None or self._transport is not None:
            return
        if self._connecting is not None:
            self._kicked = True  # the attempt under way may have been too early; this one need not be
            return
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        self._connecting = self._loop.create_task(self._connect())

    async def _connect(self) -> None:
        try:
            await self._loop.create_unix_connection(lambda: self, self.address)
        except OSError as error:
            self._connecting = None
            self._down(f"cannot connect: {error.strerror or error}")

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._connecting = None
        if self.gave_up is not None:  # closed while the connection was being made
            transport.abort()
            return
        self._transport = transport
        self._parser = resp.Parser()
        self._greeting = 2
        transport.write(resp.encode(("AUTH", "default", self._password)) + resp.encode(("PING",)))

    def data_received(self, data: bytes) -> None:
        try:
            replies = self._parser.feed(data)
        except resp.ProtocolError as error:
            self._abort(f"the server sent what is not RESP: {error}")
            return
        for reply in replies:
            if self._greeting:
                if not self._greeted(reply):
                    return
            elif not self.sent:
                self._abort("the server sent a reply to nothing")
                return
            else:
                self._answered(self.sent.popleft(), reply)
        self.store.on_answered()
        self.flush()
        if not self.waiting and not self.sent:
            for future in self._drainers:
                if not future.done():
                    future.set_result(None)
            self._drainers.clear()

    def connection_lost(self, error: Exception | None) -> None:
        if self._transport is not None:  # else it was ours to close
            self._transport = None
            self._down(f"the connection was lost: {error or 'closed by the server'}")

    def _greeted(self, reply: Reply) -> bool:
        if isinstance(reply, ReplyError):
            if reply.code in ("WRONGPASS", "NOAUTH", "NOPERM"):
                self.give_up(f"the Redis server at {self.address} refuses our password: {reply}")
            else:  # LOADING: it reads its file back; the line that ends a start kicks us
                self._abort(f"the server is not ready: {reply}")
            return False
        self._greeting -= 1
        if self._greeting == 0:
            self._up = True
            self.why_down = ""
            self.connections += 1
            self._retry_s = RETRY_FIRST_S
            self.flush()
            if self.dropped > self._dropped_reported:
                self._dropped_reported = self.dropped
                self.store.on_gap(self.shard)
        return True

    def _answered(self, command: _Command, reply: Reply) -> None:
        self.sent_bytes -= len(command.data)
        if (
            isinstance(reply, ReplyError)
            and command.name == "XADD"
            and command.repeated
            and "equal or smaller" in str(reply)
        ):
            reply = "done before"  # its first attempt was carried out, only the answer was lost
        if command.future is not None:
            if not command.future.done():  # else it has timed out or was cancelled
                command.future.set_result(reply)
        elif isinstance(reply, ReplyError):
            self.refused += 1
            if reply.code in PASSING and self._repair is None:
                self._repair = self._loop.call_later(self._repair_s, self._repair_now)
                self._repair_s = min(2 * self._repair_s, REPAIR_LAST_S)
            reason = f"{command.name}: {reply.code}"
            if reason not in self._reasons and len(self._reasons) < 32:
                self._reasons.add(reason)
                self.store.on_problem(f"the control plane at {self.address} refused a write: {command.name}: {reply}")

    def _repair_now(self) -> None:
        self._repair = None
        self.store.on_gap(self.shard)

    def _abort(self, why: str) -> None:
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.abort()
        self._down(why)

    def _down(self, why: str) -> None:
        """Back to no connection: what was sent and not answered will be sent again, first and in order."""
        self._up = False
        self.why_down = why
        if self._flush_timer is not None:
            self._flush_timer.cancel()
            self._flush_timer = None
        for command in self.sent:
            command.repeated = True
        self.waiting.extendleft(reversed(self.sent))
        self.waiting_bytes += self.sent_bytes
        self.sent.clear()
        self.sent_bytes = 0
        if self.gave_up is not None:
            return
        if self._kicked:
            self._kicked = False
            self.kick()
            return
        self._retry = self._loop.call_later(self._retry_s, self.kick)
        self._retry_s = min(2 * self._retry_s, RETRY_LAST_S)

    def give_up(self, cause: str) -> None:
        if self.gave_up is not None:
            return
        self.gave_up = cause
        if self._connecting is not None:
            self._connecting.cancel()
            self._connecting = None
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        if self._repair is not None:
            self._repair.cancel()
            self._repair = None
        self._abort(cause)
        for command in self.waiting:
            if command.future is None:
                self.dropped += 1
            elif not command.future.done():
                command.future.set_exception(StoreUnavailable(cause))
        self.waiting.clear()
        self.waiting_bytes = 0
        for future in self._drainers:
            if not future.done():
                future.set_result(None)
        self._drainers.clear()

    def stats(self) -> dict[str, object]:
        return {
            "address": self.address,
            "connected": self._up,
            "connections": self.connections,
            "waiting": len(self.waiting),
            "waiting_bytes": self.waiting_bytes,
            "sent": len(self.sent),
            "dropped": self.dropped,
            "refused": self.refused,
            "why_down": self.why_down,
        }


def log_problem(text: str) -> None:
    """What `on_problem` may be set to: one line on the node's standard error, which is its log."""
    print(text, file=sys.stderr, flush=True)


def _ignore(*_: object) -> None:
    """The callbacks' default: nobody listens."""
