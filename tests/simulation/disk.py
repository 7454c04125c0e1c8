"""What survives the head's process: Redis' file, behind the real tables, and the file `nodes` of its session's folder.

A write is in Redis' file a little later, in the order written; Redis dies with the head, so what was not there yet is
lost, and nothing behind it is there. Redis may stand still meanwhile; the head goes on from memory.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .network import Network

WRITTEN_S = 0.003  # mean time until a write is in Redis' file: it waits for company, and is sent


class Disk:
    """In place of `ray._control.store.Store`, one server; and the file `nodes`."""

    shards = 1

    def __init__(self, net: Network) -> None:
        self._net = net
        self._hashes: dict[bytes, dict[bytes, bytes]] = {}
        self._waiting: collections.deque[tuple[float, tuple[Any, ...]]] = collections.deque()
        self._last_at = 0.0
        self._stands_until = 0.0
        self.on_gap = self.on_problem = None  # of Store; nothing is ever dropped or refused
        self.nodes: list[tuple[int, bytes]] = []  # the file: other nodes than the head's own
        self.next_number = 0

    # -- of Store -----------------------------------------------------------------------------------------------------

    def shard_of(self, key: bytes) -> int:
        return 0

    def write(self, shard: int, *args: Any) -> None:
        self._waiting.append((self._soon(), args))
        self._arrive()

    async def call(self, shard: int, *args: Any) -> Any:
        """Only for those that read, when nothing is under way."""
        assert not self._waiting
        if args[0] == "HGETALL":
            return [x for item in self._hashes.get(_key(args[1]), {}).items() for x in item]
        assert args[0] == "XREVRANGE", args  # errors: nobody decides by them
        return []

    def stats(self) -> dict[str, Any]:
        return {}

    # -- time, and what goes wrong ------------------------------------------------------------------------------------

    def when_it_lasts(self, what: Callable[[], None]) -> None:
        """When everything that has been written so far is in the file."""
        self._net.at(self._soon(), what)

    def stand_still(self, for_s: float) -> None:
        self._stands_until = self._net.now + for_s

    def lose_what_waits(self) -> None:
        """Redis was killed."""
        self._arrive()
        self._waiting.clear()
        self._last_at = self._stands_until = 0.0

    def _soon(self) -> float:
        at = max(self._net.now, self._stands_until) + self._net.random.expovariate(1 / WRITTEN_S)
        self._last_at = max(self._last_at, at)
        return self._last_at

    def _arrive(self) -> None:
        while self._waiting and self._waiting[0][0] <= self._net.now:
            name, key, *rest = self._waiting.popleft()[1]
            if name == "HSET":
                fields = [_bytes(x) for x in rest]
                self._hashes.setdefault(_key(key), {}).update(zip(fields[::2], fields[1::2]))
            elif name == "HDEL":
                for field in rest:
                    self._hashes.get(_key(key), {}).pop(_bytes(field), None)
            elif name == "UNLINK":
                for one in (key, *rest):
                    self._hashes.pop(_key(one), None)
            else:
                assert name == "XADD", name


def run(reading: Coroutine[Any, Any, Any]) -> Any:
    """What a coroutine returns that waits for nothing but this disk."""
    try:
        reading.send(None)
    except StopIteration as done:
        return done.value
    raise AssertionError("it waits")


def _key(key: Any) -> bytes:
    return _bytes(key)


def _bytes(value: Any) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()
