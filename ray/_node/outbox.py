"""What this node has told or asked the head and what the head has not made last yet: kept, in order. Pure.

Node process, its main thread; no I/O. Only towards a head that may come back. An entry is in exactly one of

    TOLD   an event with its number; kept until the head says that whatever followed from it is in Redis' file (`kept`)
    ASKED  a request; kept until it is answered

and is forgotten then. When a head has come back, what is left is said again, in the old order: numbers that the earlier
head had written down are skipped, and what is said twice has no second effect (docs/internals/control_plane.md).
While the head is there, what is beyond the bound is forgotten, the oldest first: it has been sent. While it is away,
nothing may be: `full` says that the bound is reached, and the node gives up.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterable
from typing import Any

BYTES_MAX = 64 * 2**20
ENTRY_BYTES = 200  # what an entry takes beside its frame


class Told:
    """An event; `args` as given, for those who look for what it is about."""

    __slots__ = ("args", "frame", "name", "number")

    def __init__(self, number: int, name: str, args: tuple[Any, ...], frame: bytes) -> None:
        self.number, self.name, self.args, self.frame = number, name, args, frame


class Asked:
    """A request; `answer` is whatever its asker waits for."""

    __slots__ = ("again", "answer", "args", "method")

    def __init__(self, method: str, args: tuple[Any, ...], answer: Any) -> None:
        self.method, self.args, self.answer = method, args, answer
        self.again = False  # it was sent to a head that has ended since: it may have been done


class Outbox:
    def __init__(self, encode: Callable[[int, str, tuple[Any, ...]], bytes]) -> None:
        """encode(number, name, args): the frame of an event."""
        self._encode = encode
        self._entries: collections.deque[Told] = collections.deque()
        self._asked: dict[Asked, int] = {}  # -> the number of the last event that was told before it
        self._last = 0
        self._bytes = 0
        self.forgotten = 0

    @property
    def full(self) -> bool:
        return self._bytes > BYTES_MAX

    def tell(self, name: str, args: tuple[Any, ...]) -> Told:
        self._last += 1
        entry = Told(self._last, name, args, self._encode(self._last, name, args))
        self._entries.append(entry)
        self._bytes += len(entry.frame) + ENTRY_BYTES
        return entry

    def ask(self, method: str, args: tuple[Any, ...], answer: Any) -> Asked:
        entry = Asked(method, args, answer)
        self._asked[entry] = self._last
        return entry

    def kept(self, number: int) -> None:
        """Everything up to that event lasts."""
        while self._entries and self._entries[0].number <= number:
            self._pop()

    def answered(self, entry: Asked) -> None:
        self._asked.pop(entry, None)

    def forget_beyond_bound(self) -> None:
        while self.full:
            self._pop()
            self.forgotten += 1

    def drop(self, obsolete: Callable[[Told], bool]) -> None:
        """Forgets events that mean nothing to the head that has come back."""
        left = [entry for entry in self._entries if not obsolete(entry)]
        self._entries = collections.deque(left)
        self._bytes = sum(len(entry.frame) + ENTRY_BYTES for entry in left)

    def told(self) -> Iterable[Told]:
        return iter(self._entries)

    def asked(self) -> list[Asked]:
        return list(self._asked)

    def again(self) -> list[Told | Asked]:
        """Everything that is left, in the order in which it was said first."""
        out: list[Told | Asked] = []
        asked = collections.deque(self._asked.items())
        for entry in self._entries:
            while asked and asked[0][1] < entry.number:
                out.append(asked.popleft()[0])
            out.append(entry)
        return out + [entry for entry, _ in asked]

    def check(self) -> None:
        """Raises: AssertionError."""
        numbers = [entry.number for entry in self._entries]
        assert numbers == sorted(set(numbers)) and all(number <= self._last for number in numbers)
        assert self._bytes == sum(len(entry.frame) + ENTRY_BYTES for entry in self._entries)

    def stats(self) -> dict[str, int]:
        """told, asked: how many are kept; bytes; forgotten: beyond the bound."""
        return {
            "told": len(self._entries), "asked": len(self._asked), "bytes": self._bytes, "forgotten": self.forgotten
        }  # fmt: skip

    def _pop(self) -> None:
        entry = self._entries.popleft()
        self._bytes -= len(entry.frame) + ENTRY_BYTES
