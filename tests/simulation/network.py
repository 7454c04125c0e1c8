"""Virtual time, and connections between simulated processes that are late, cut, broken, or lose one kind of message.

A `Line` is one stream connection, as TCP or a Unix socket is: each way what is sent arrives once, in order, late; while
the line is cut, or the process at the other end is stopped, it waits; when the line breaks, what is under way is lost,
and each end hears of the end for itself.
Nothing is ever reordered or repeated by a line: where a process says something twice (it repeats what it can't know to
have arrived), that is written as `again`. Everything is drawn from one `random.Random`, so a seed replays exactly.
"""

from __future__ import annotations

import collections
import random
from collections.abc import Callable
from typing import Any

from ray._simulation.agenda import Agenda

LOCAL_S = 1 / 20_000  # mean delay of a message between two processes of one machine
REMOTE_S = 1 / 1_000  # and between two machines
REPEATED = 0.02  # of the messages that may be said twice


class Network(Agenda):
    """The clock, the agenda, and what is said by kind."""

    def __init__(self, seed: int, drop: str = "") -> None:
        super().__init__()
        self.random = random.Random(seed)
        self.drop = drop  # the kind of message that never arrives: the planted bug
        self.sent: collections.Counter[str] = collections.Counter()
        self.trace: collections.deque[str] | None = None  # the last messages, for a person

    def note(self, text: str) -> None:
        if self.trace is not None:
            self.trace.append(f"{self.now:10.5f} {text}")


class Line:
    """One connection. Ends are numbered 0 and 1; what a process does when it ends is `on_end[its end]`."""

    __slots__ = (
        "_arrive_at", "_due", "_net", "_to_tell", "_under_way", "cut", "delay_s", "ended", "name", "on_end", "stopped"
    )  # fmt: skip

    def __init__(self, net: Network, name: str, remote: bool) -> None:
        self.name = name
        self.cut = False
        self.delay_s = REMOTE_S if remote else LOCAL_S
        self.ended = [False, False]  # an end that has ended neither says nor hears anything any more
        self.stopped = [False, False]  # the process at that end: it hears nothing until it goes on
        self._to_tell: list[str | None] = [None, None]  # that the line has broken, when it does
        self.on_end: list[Callable[[str], None]] = [lambda why: None, lambda why: None]
        self._net = net
        self._arrive_at = [0.0, 0.0]
        self._under_way: list[collections.deque[Callable[[], None]]] = [collections.deque(), collections.deque()]
        self._due = [0, 0]  # of these, how many would have arrived if the line were not cut

    def say(self, end: int, kind: str, what: Callable[..., None], *args: Any, again: bool = False) -> None:
        """From `end` to the other, which then does `what(*args)`. again: the sender may say it twice."""
        if self.ended[end]:
            return
        net = self._net
        net.sent[kind] += 1
        if kind == net.drop:
            return
        times = 2 if again and net.random.random() < REPEATED else 1
        for _ in range(times):
            self._post(end, lambda: self._arrives(end, kind, what, args))

    def end(self, end: int, why: str) -> None:
        """The process at `end` closes it, or dies. The other hears of it after what was said before."""
        if not self.ended[end]:
            self.ended[end] = True
            self._post(end, lambda: self._hears(1 - end, why))

    def lost(self, end: int) -> None:
        """The machine at `end` is gone without a word: nobody tells the other."""
        self.ended[end] = True
        self._forget()

    def break_off(self, why: str) -> None:
        """What is under way is lost, both ways; each end hears of it at its own time."""
        random = self._net.random
        self._forget()
        for end in (0, 1):
            if not self.ended[end]:
                self.ended[end] = True  # what it says from here on goes nowhere
                if self.stopped[end]:
                    self._to_tell[end] = why
                    continue
                self._net.later(random.expovariate(1 / REMOTE_S), lambda end=end: self._told(end, why))  # type: ignore[misc]

    @property
    def over(self) -> bool:
        """For both ends, and nobody has yet to be told."""
        return all(self.ended) and self._to_tell == [None, None]

    def go_on(self, end: int) -> None:
        """The process at `end` was stopped: it hears now what has come meanwhile."""
        self.stopped[end] = False
        why, self._to_tell[end] = self._to_tell[end], None
        self._drain(1 - end)
        if why is not None:
            self._told(end, why)

    def heal(self) -> None:
        self.cut = False
        self._net.later(self.delay_s, lambda: (self._drain(0), self._drain(1)))  # type: ignore[func-returns-value]

    def _forget(self) -> None:
        for end in (0, 1):
            self._under_way[end].clear()
            self._due[end] = 0

    def _post(self, end: int, what: Callable[[], None]) -> None:
        at = max(self._arrive_at[end], self._net.now + self._net.random.expovariate(1 / self.delay_s))
        self._arrive_at[end] = at
        self._under_way[end].append(what)
        self._net.at(at, lambda: self._drain(end, 1))

    def _drain(self, end: int, more: int = 0) -> None:
        self._due[end] += more
        while self._due[end] and not self.cut and not self.stopped[1 - end] and self._under_way[end]:
            self._due[end] -= 1
            self._under_way[end].popleft()()

    def _arrives(self, end: int, kind: str, what: Callable[..., None], args: tuple[Any, ...]) -> None:
        if not self.ended[1 - end]:
            if self._net.trace is not None and kind not in ("heartbeat", "heard"):
                self._net.note(f"{self.name} {'->' if end == 0 else '<-'} {kind} {args!r}"[:400])
            what(*args)

    def __repr__(self) -> str:
        return f"<{self.name}>"

    def _hears(self, end: int, why: str) -> None:
        if not self.ended[end]:
            self.ended[end] = True
            self._told(end, why)

    def _told(self, end: int, why: str) -> None:
        if self.stopped[end]:
            self._to_tell[end] = why
            return
        self._net.note(f"{self.name} has ended for {end}: {why}")
        self.on_end[end](why)
