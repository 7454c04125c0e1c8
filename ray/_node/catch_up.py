"""Whether every node has said what its processes had sent it before a moment. Head's node, main thread; pure.

One round at a time, in order: each node is asked, and answers on its uplink, behind everything it had to say; a node
that dies is waited for no longer.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

CAUGHT_UP_S = 0.2  # a node waits so long before it answers: in that time its loop reads what its sockets hold


class CatchUp:
    def __init__(self, ask: Callable[[int, int], None]) -> None:
        """ask(number, round): puts the question to that node."""
        self._ask = ask
        self._round = 0
        self._waits_for: set[int] = set()
        self._then: Callable[[], None] | None = None  # None: no round is under way
        self._queue: deque[tuple[Iterable[int], Callable[[], None]]] = deque()

    def begin(self, numbers: Iterable[int], then: Callable[[], None]) -> None:
        """Calls then() when all that are in `numbers` as the round begins have answered, or are gone."""
        if self._then is not None:
            self._queue.append((numbers, then))
            return
        self._round, self._then, self._waits_for = self._round + 1, then, set(numbers)
        for number in list(self._waits_for):
            self._ask(number, self._round)
        self._look()

    def answered(self, number: int, of_round: int) -> None:
        if of_round == self._round:
            self.gone(number)

    def gone(self, number: int) -> None:
        self._waits_for.discard(number)
        self._look()

    def _look(self) -> None:
        if self._then is not None and not self._waits_for:
            then, self._then = self._then, None
            then()
            if self._queue and self._then is None:
                self.begin(*self._queue.popleft())
