"""Who waits for resources of a node, class by class, and whose turn it is. Pure; a part of the local scheduler.

Those that wait for the same stand in one *class*; the highest priority comes first, classes of the same take turns,
inside a class jobs do, and inside a job its owners. What is given, and what giving it means, is the scheduler's affair:
it hands in `give`, which says whether there was room.

A large request could wait forever behind a stream of small ones: one that has waited long gets windows of time
(`_holding_back`) in which nobody else may take what it lacks. Windows, not a reservation: what it waits for may
itself need a small task to finish first.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from ray._scheduling.node_resources import NodeResources

from .bundles import Bundles
from .leases import IN_LINE, ClassKey, Lease, SchedulingClass, Waiter


class Lines:
    """All that wait in line, nothing that was set aside."""

    def __init__(self, resources: NodeResources, bundles: Bundles, starvation_s: float) -> None:
        self._resources = resources
        self._bundles = bundles
        self._starvation_s = starvation_s
        self.classes: OrderedDict[ClassKey, SchedulingClass] = OrderedDict()  # longest unserved first
        self.hold_until: float | None = None  # something would fit, but has to stand back until then

    def add(self, waiter: Waiter) -> None:
        key = waiter.key
        if isinstance(waiter, Lease):
            waiter.waits = IN_LINE
        if key not in self.classes:
            self.classes[key] = SchedulingClass(key)
        self.classes[key].add(waiter)

    def remove(self, waiter: Waiter) -> None:
        key = waiter.key
        self.classes[key].remove(waiter)
        if not self.classes[key]:
            del self.classes[key]

    def serve(
        self, now: float, may_start: Callable[[ClassKey], bool], give: Callable[[SchedulingClass, float], bool]
    ) -> None:
        """Gives what is free to who waits: one a class in each round, until nothing fits any more. Of several
        priorities the highest is asked again before a lower one gets anything."""
        self.hold_until = None
        if not self.classes:
            return
        starving, hold_until = self._holding_back(now)
        served = True
        while served:
            served = False
            in_turn = list(self.classes)
            mixed = len({key.priority for key in in_turn}) > 1
            if mixed:
                in_turn.sort(key=lambda key: -key.priority)
            for key in in_turn:
                waiting = self.classes[key]
                if not may_start(key):
                    continue
                if starving and self._stands_back(key, *starving):
                    if not self._lacking(key):
                        self.hold_until = hold_until  # it would fit: look again when the window is over
                    continue
                if not give(waiting, now):
                    continue
                served = True
                if waiting:
                    self.classes.move_to_end(key)
                else:
                    del self.classes[key]
                if starving and key == starving[0]:
                    starving, hold_until = self._holding_back(now)
                if mixed:
                    break

    def want(self, lease: Lease) -> bool:
        """Whether somebody waits for what this lease holds."""
        return any(self._wants(waiting, lease) for waiting in self.classes.values())

    def _wants(self, waiting: SchedulingClass, lease: Lease) -> bool:
        if waiting.key.group_id != (lease.place.group_id if lease.place is not None else b""):
            return False  # what it holds is in a bundle that the other may not use, or the other way round
        if waiting.key.priority < lease.priority:
            return False  # it would only be asked for again, and granted first
        if waiting.key == lease.key and waiting.is_only_for(lease.tag):
            return False  # only the holder itself waits, for more of the same: it has no idle lease, or soon uses it
        held = lease.allocation.units if lease.allocation else {}
        return any(name in held for name, _ in waiting.shape)

    def _lacking(self, key: ClassKey) -> list[str]:
        """Resources of which less is free than one of this class needs, where it is to run."""
        if not key.group_id:
            return self._resources.lacking(key.shape)
        lacking: list[str] = []
        for bundle in self._bundles.usable(key.group_id, key.bundle):
            assert bundle.ledger is not None
            lacking = bundle.ledger.lacking(key.shape)
            if not lacking:
                break
        return lacking

    def _stands_back(self, key: ClassKey, starving: ClassKey, lacking: list[str]) -> bool:
        """Whether a class leaves what it would take to the starving one. Each group has resources of its own."""
        if key == starving or key.group_id != starving.group_id:
            return False
        return any(name in lacking for name, _ in key.shape)

    def _holding_back(self, now: float) -> tuple[tuple[ClassKey, list[str]] | None, float]:
        """The class that may gather resources now, with what it lacks; and until when.

        A class that has waited for age a does so while a is in [s, 1.5 s), [2 s, 3 s), [4 s, 6 s), ... for
        s = starvation_s: half of the time, in ever longer stretches.
        """
        oldest, chosen = now - self._starvation_s, None
        for key, waiting in self.classes.items():
            asked_at = waiting.oldest()
            if asked_at <= oldest:
                lacking = self._lacking(key)
                if lacking:
                    oldest, chosen = asked_at, (key, lacking)
        if chosen is None:
            return None, 0.0
        start = self._starvation_s
        while start * 2 <= now - oldest:
            start *= 2
        end = oldest + start * 1.5
        return (chosen, end) if now < end else (None, 0.0)

    def check(self) -> None:
        """Raises: AssertionError."""
        for key, waiting in self.classes.items():
            assert waiting and all(waiting.lines()), key
            assert all(waiter.key == key for line in waiting.lines() for waiter in line), key
