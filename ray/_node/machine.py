"""What the pure machines of a node share: the error of a transition that must not happen, and an entity's story."""

from __future__ import annotations

from collections import deque


class InvalidTransition(AssertionError):
    """A bug of ours: an event met an entity in a state that has no row for it. Carries the entity's story."""


class Story:
    """The last transitions of one entity, for error messages. A dozen tuples, no text is made until it is read."""

    __slots__ = ("_steps",)

    def __init__(self) -> None:
        self._steps: deque[tuple[float, str, str, str]] = deque(maxlen=12)

    def add(self, now: float, before: str, event: str, after: str) -> None:
        self._steps.append((now, before, event, after))

    def __str__(self) -> str:
        return "; ".join(f"{now:.3f} {before} --{event}--> {after}" for now, before, event, after in self._steps)
