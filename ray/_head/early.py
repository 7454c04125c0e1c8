"""Subscriptions to actors that are not known yet, and whether they still can be.

In the head, on its loop's thread. A process that was handed the handle of an actor may subscribe to it before the
creation has come, though that was sent earlier: each asks over connections of its own. So a subscription to something
unknown

    waits       for EARLY_SUBSCRIPTION_S, which is enough while nobody stands still
    is checked  all nodes are asked to say what their processes had sent before that (`Port.catch_up`): the creator's
                may have been stopped, or has just found a head that was restarted, and repeats what it had told before
    is over     as soon as the creation has come; or the actor is long dead, or nobody is left who could create it
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ray._head import actor_messages as am

if TYPE_CHECKING:
    from ray._head.service import HeadService

EARLY_SUBSCRIPTION_S = 1.0


class EarlySubscriptions:
    def __init__(self, head: HeadService) -> None:
        self._head = head
        self._cores: dict[bytes, set[bytes]] = {}  # actor -> cores that have subscribed to it
        self._next: list[bytes] = []  # actors to be checked when those are
        self._checked: list[bytes] = []

    def add(self, actor_id: bytes, core_tag: bytes) -> None:
        if actor_id not in self._cores:
            self._cores[actor_id] = set()
            self._head.later(EARLY_SUBSCRIPTION_S, self._waited, actor_id)
        self._cores[actor_id].add(core_tag)

    def discard(self, actor_id: bytes, core_tag: bytes) -> None:
        self._cores.get(actor_id, set()).discard(core_tag)

    def _waited(self, actor_id: bytes) -> None:
        if actor_id not in self._cores:
            return
        self._next.append(actor_id)
        if not self._checked:
            self._check()

    def _check(self) -> None:
        self._checked, self._next = self._next, []
        self._head.port.catch_up(self._caught_up)

    def _caught_up(self) -> None:
        checked, self._checked = self._checked, []
        for actor_id in checked:
            self.over(actor_id)
        if self._next:
            self._check()

    def over(self, actor_id: bytes) -> None:
        """Its creation has come, or can't come any more."""
        for core_tag in self._cores.pop(actor_id, ()):
            self._head.actor_event(am.Subscribe(actor_id, core_tag))
