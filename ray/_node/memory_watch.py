"""Decides when to look at the memory that is in use, and who ends when it runs out. Pure: `handle(event, now) ->
actions`, no I/O, no clock.

Runs in the node process, on its event loop; `memory_shell.py` reads the numbers and carries out. The watch is in one of

    RESTING    nothing runs here that could be ended: no timer, the node sleeps
    WATCHING   looks again after as long as memory surely lasts: half of the time in which it could be used up
    SHORT      above the threshold: looks every `refresh_s`, and no task is started beside those that run

The limit is the smallest of the machine's, the control group's and `worker_memory_bytes_max`. Above
threshold x limit one worker ends at a time, in this order: tasks that may be retried, the newest first; other tasks,
the newest first; actors that may be restarted; other actors. So the oldest task is never ended while a newer one runs,
and something always comes to its end. A worker that uses more than the `memory=` it asked for ends whatever else there
is. What dies by itself while it is about to be ended is forgotten (`Ended`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from ray._protocol.frames import OUT_OF_MEMORY, OUT_OF_MEMORY_AGAIN
from ray._scheduling.machine import InvalidTransition, Story

RESTING, WATCHING, SHORT = "RESTING", "WATCHING", "SHORT"

LOOK_EVERY_MAX_S = 10.0  # however much is free: limits of control groups can be changed
DYING_MAX_S = 5.0  # a killed worker that is still there: the kernel frees 10 GB in about a second. Then the next


class Reading(NamedTuple):
    """How much of a limit is in use."""

    used_bytes: int
    limit_bytes: int
    what: str  # whose: "the machine", ...

    @property
    def fraction(self) -> float:
        return self.used_bytes / self.limit_bytes if self.limit_bytes else 0.0


class Running(NamedTuple):
    """A worker that has a lease."""

    worker_id: int
    pid: int
    name: str
    owner: bytes
    since: float  # when its lease was granted
    is_actor: bool = False
    retriable: bool = False  # a task with max_retries; an actor that would be restarted
    memory_bytes: int = 0  # what it asked for by memory=; 0: nothing
    rss_bytes: int = 0  # its own and its children's, without what they share; 0: not measured


# -- events ---------------------------------------------------------------------------------------------------


class Began(NamedTuple):
    """Something runs now, or still."""


class Pressure(NamedTuple):
    """The kernel says that programs wait for memory."""


class Looked(NamedTuple):
    readings: Sequence[Reading]
    running: Sequence[Running]


class Ended(NamedTuple):
    worker_id: int


# -- actions --------------------------------------------------------------------------------------------------


class LookAgain(NamedTuple):
    """A Looked is wanted after so long; replaces an earlier one."""

    after_s: float


class Rest(NamedTuple):
    """No further look is wanted until Began."""


class EndWorker(NamedTuple):
    victim: Running
    why: str  # without the processes, which whoever carries it out lists


class ShortOfMemory(NamedTuple):
    """For the scheduler: whether to start no more beside what runs."""

    short: bool


class MemoryWatch:
    """One a node.

    Args:
        threshold: the part of a limit above which somebody ends, 0 to 1.
        refresh_s: the shortest time between two looks.
        growth_bytes_s: how fast all processes together could use up memory; a machine's bandwidth to fresh pages.
    """

    def __init__(self, threshold: float, refresh_s: float, growth_bytes_s: float) -> None:
        self.threshold = threshold
        self.refresh_s = refresh_s
        self._growth_bytes_s = growth_bytes_s
        self.state = RESTING
        self.story = Story()
        self._dying: dict[int, float] = {}  # worker id: when it was ended
        self._actions: list[Any] = []
        self.looks = 0
        self.ended = 0
        self.next_after_s: float | None = None

    def handle(self, event: Any, now: float) -> list[Any]:
        step = TRANSITIONS.get((self.state, type(event).__name__))
        if step is None:
            raise InvalidTransition(f"no row for {event!r} in {self.state}: {self.story}")
        before = self.state
        self.state = step(self, event, now)
        if self.state != before:
            self.story.add(now, before, type(event).__name__, self.state)
            if SHORT in (before, self.state):
                self._actions.append(ShortOfMemory(self.state == SHORT))
        actions, self._actions = self._actions, []
        return actions

    # -- steps ------------------------------------------------------------------------------------------------

    def _wake(self, event: Began, now: float) -> str:
        self._look_after(self.refresh_s)
        return WATCHING

    def _look_soon(self, event: Began, now: float) -> str:
        self._look_after(self.refresh_s)  # the look that was due has failed
        return self.state

    def _stay(self, event: Any, now: float) -> str:
        return self.state

    def _look_now(self, event: Any, now: float) -> str:
        self._look_after(0.0)
        return self.state

    def _victim_gone(self, event: Ended, now: float) -> str:
        if self._dying.pop(event.worker_id, None) is not None and self.state != RESTING:
            self._look_after(0.0)  # what it had is free by now
        return self.state

    def _judge(self, event: Looked, now: float) -> str:
        self.looks += 1
        there = {one.worker_id for one in event.running}
        self._dying = {w: at for w, at in self._dying.items() if w in there and now - at < DYING_MAX_S}
        for one in event.running:
            if one.memory_bytes and one.rss_bytes > one.memory_bytes and one.worker_id not in self._dying:
                self._end(one, _over_its_own(one), now)
        tightest = max(event.readings, key=lambda reading: reading.fraction, default=None)
        short = tightest is not None and tightest.fraction > self.threshold
        if tightest is not None and short and not self._dying:
            victim = choose(event.running)
            if victim is not None:
                self._end(victim, self._why(victim, tightest, event.running), now)
        if not event.running:
            self.next_after_s = None
            self._actions.append(Rest())
            return RESTING
        self._look_after(self.refresh_s if short or self._dying else self._lasts_s(event))
        return SHORT if short else WATCHING

    def _end(self, victim: Running, why: str, now: float) -> None:
        self._dying[victim.worker_id] = now
        self.ended += 1
        self._actions.append(EndWorker(victim, why))

    def _look_after(self, after_s: float) -> None:
        self.next_after_s = after_s
        self._actions.append(LookAgain(after_s))

    def _lasts_s(self, event: Looked) -> float:
        """Half of the time in which any limit could be reached."""
        rooms = [reading.limit_bytes * self.threshold - reading.used_bytes for reading in event.readings]
        rooms += [one.memory_bytes - one.rss_bytes for one in event.running if one.memory_bytes]
        half = min(rooms, default=0.0) / self._growth_bytes_s / 2
        return min(max(half, self.refresh_s), LOOK_EVERY_MAX_S)

    def _why(self, victim: Running, reading: Reading, running: Sequence[Running]) -> str:
        return (
            f"{OUT_OF_MEMORY}{victim.name or 'a task'} (pid {victim.pid}) was ended because {reading.what} had "
            f"{in_words(reading.used_bytes)} of {in_words(reading.limit_bytes)} in use, which is "
            f"{reading.fraction:.1%} and above memory_usage_threshold={self.threshold:g}. {_reason(victim)}"
            + (f" {OUT_OF_MEMORY_AGAIN}" if runs_again(victim, running) else "")
        )


def choose(running: Sequence[Running]) -> Running | None:
    """Who ends first; None: nobody is there."""
    return max(running, key=lambda one: (not one.is_actor, one.retriable, one.since, one.worker_id), default=None)


def runs_again(victim: Running, running: Sequence[Running]) -> bool:
    """Whether the try is not to be counted: others of the same owner go on, and free memory when they end. The last one
    of an owner would meet the same again and again, so its tries count."""
    return (
        victim.retriable
        and not victim.is_actor
        and any(one.owner == victim.owner and one.worker_id != victim.worker_id and not one.is_actor for one in running)
    )


def in_words(count: int) -> str:
    return f"{count} bytes ({count / 2**30:.2f} GiB)"


def _reason(victim: Running) -> str:
    if victim.is_actor:
        return "No task runs here that could have been ended instead" + (
            ", and this is the newest actor that may be restarted."
            if victim.retriable
            else ", nor any actor that may be restarted; of the others this is the newest."
        )
    if victim.retriable:
        return "It was the newest task here that may be retried."
    return "No task runs here that may be retried; of the others it was the newest."


def _over_its_own(one: Running) -> str:
    return (
        f"{OUT_OF_MEMORY}{one.name or 'a task'} (pid {one.pid}) was ended because it used {in_words(one.rss_bytes)} "
        f"of memory, more than the {in_words(one.memory_bytes)} that it had asked for by memory=. Ask for more, or use "
        "less."
    )


TRANSITIONS: dict[tuple[str, str], Callable[[MemoryWatch, Any, float], str]] = {
    (RESTING, "Began"): MemoryWatch._wake,
    (RESTING, "Pressure"): MemoryWatch._stay,  # nobody here could be ended
    (RESTING, "Ended"): MemoryWatch._victim_gone,
    (WATCHING, "Began"): MemoryWatch._look_soon,
    (WATCHING, "Pressure"): MemoryWatch._look_now,
    (WATCHING, "Looked"): MemoryWatch._judge,
    (WATCHING, "Ended"): MemoryWatch._victim_gone,
    (SHORT, "Began"): MemoryWatch._look_soon,
    (SHORT, "Pressure"): MemoryWatch._look_now,
    (SHORT, "Looked"): MemoryWatch._judge,
    (SHORT, "Ended"): MemoryWatch._victim_gone,
}
