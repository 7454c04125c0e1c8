"""Following a table of the control plane as it changes: the rows there are, then each change, across losses of Redis.

Runs on an asyncio loop's thread, with a connection of its own (a connection that subscribes can do nothing else). Redis
drops what nobody listens to and keeps nothing for who comes back, so the order is always: subscribe, then read the
whole table, then act on messages; and after every reconnection the same again. A message says only *which* row changed,
never what it became: the row is read after the message, so a late, repeated or overtaken message can do no harm, and
what `apply` is given last is what the table holds. If the server dies, followers stay with what they know until it is
back.
"""

from __future__ import annotations

import asyncio
import collections
from collections.abc import Callable
from typing import Any, Generic

from ray._control import resp
from ray._control.rows import Row
from ray._control.store import RETRY_FIRST_S, RETRY_LAST_S, Store, StoreUnavailable
from ray._control.tables import MAIN, Table

CHANGES_MAX = 10_000  # ids waiting to be read; beyond it the whole table is read again instead


class Follower(Generic[Row]):
    """Calls apply(id, row) for each row there is and for each change (row None: removed), in that order per row.

    Rows that were removed while the connection was lost are reported as removed, too: the follower remembers the ids.
    """

    def __init__(
        self,
        address: str,
        password: str,
        store: Store,
        table: Table[Row],
        apply: Callable[[bytes, Row | None], None],
    ) -> None:
        self._address = address
        self._password = password
        self._store = store
        self._table: Table[Row] = table
        self._apply: Callable[[bytes, Row | None], None] = apply
        self._known: set[bytes] = set()
        self.subscriptions = 0  # made so far: 1, and 1 more after each loss
        self._kick = asyncio.Event()
        self._task = asyncio.get_running_loop().create_task(self._follow())

    def kick(self) -> None:
        """The server may be back: do not wait for the retry's turn."""
        self._kick.set()

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])

    async def _follow(self) -> None:
        retry_s = RETRY_FIRST_S
        while True:
            line: _Line | None = None
            try:
                _, line = await asyncio.get_running_loop().create_unix_connection(
                    lambda: _Line(self._password, self._table.channel), self._address
                )
                await line.subscribed
                self.subscriptions += 1
                retry_s = RETRY_FIRST_S
                await self._serve(line)
            except (OSError, StoreUnavailable):  # away; what is lost meanwhile is read again
                pass
            finally:
                if line is not None:
                    line.close()
            self._kick.clear()
            try:
                await asyncio.wait_for(self._kick.wait(), retry_s)
            except asyncio.TimeoutError:
                retry_s = min(2 * retry_s, RETRY_LAST_S)

    async def _serve(self, line: _Line) -> None:
        """Until the connection is lost: ConnectionError."""
        await self._read_all()
        while True:
            changed = await line.changes()
            if changed is None:
                await self._read_all()
                continue
            for row_id in changed:
                self._tell(row_id, await self._table.get(row_id))

    async def _read_all(self) -> None:
        rows = {row[0]: row for row in await self._table.all()}
        for row_id in sorted(self._known - set(rows)):
            self._tell(row_id, None)
        for row_id, row in rows.items():
            self._tell(row_id, row)

    def _tell(self, row_id: bytes, row: Row | None) -> None:
        if row is None:
            self._known.discard(row_id)
        else:
            self._known.add(row_id)
        self._apply(row_id, row)


class _Line(asyncio.Protocol):
    """The subscribing connection: greeting, then messages. Lost for good once lost."""

    def __init__(self, password: str, channel: str) -> None:
        loop = asyncio.get_running_loop()
        self.subscribed: asyncio.Future[None] = loop.create_future()
        self._password = password
        self._channel = channel
        self._parser = resp.Parser()
        self._changed: collections.OrderedDict[bytes, None] = collections.OrderedDict()
        self._overflowed = False
        self._wake: asyncio.Future[None] | None = None
        self._lost: str | None = None
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.write(resp.encode(("AUTH", "default", self._password)) + resp.encode(("SUBSCRIBE", self._channel)))

    def data_received(self, data: bytes) -> None:
        try:
            replies = self._parser.feed(data)
        except resp.ProtocolError as error:
            self._end(f"not RESP: {error}")
            return
        for reply in replies:
            if isinstance(reply, resp.ReplyError):
                self._end(str(reply))
                return
            if isinstance(reply, list) and reply:
                self._message(reply)

    def connection_lost(self, error: Exception | None) -> None:
        self._end(str(error or "closed by the server"))

    async def changes(self) -> list[bytes] | None:
        """Waits for messages; the ids that changed, each once. None: there were too many to say.

        Raises: ConnectionError: the connection is lost and all that came before has been handed out."""
        while not self._changed and not self._overflowed:
            if self._lost is not None:
                raise ConnectionError(self._lost)
            self._wake = asyncio.get_running_loop().create_future()
            await self._wake
        changed, self._changed = list(self._changed), collections.OrderedDict()
        overflowed, self._overflowed = self._overflowed, False
        return None if overflowed else changed

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def _message(self, reply: list[Any]) -> None:
        if reply[0] == b"subscribe" and not self.subscribed.done():
            self.subscribed.set_result(None)
        elif reply[0] == b"message":
            try:
                self._changed[bytes.fromhex(reply[2].decode())] = None
            except ValueError:
                return  # somebody else's message on our channel
            if len(self._changed) > CHANGES_MAX:
                self._changed.clear()
                self._overflowed = True
            self._awake()

    def _end(self, why: str) -> None:
        self._lost = why
        if not self.subscribed.done():
            self.subscribed.set_exception(ConnectionError(why))
        self._awake()
        self.close()

    def _awake(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)


def announce(store: Store, table: Table[Any], row_id: bytes) -> None:
    """Tells followers that a row has changed. After the write itself, on the same queue: they read what was written."""
    store.write(MAIN, "PUBLISH", table.channel, row_id.hex())
