"""Planted bugs: what the laws can't notice they don't prove.

Each takes away one thing by which a head that is killed, a node that comes back, or one that stood still keeps its
promises. `python -m tests.simulation --plant NAME` looks for a seed that notices; a test does for those in `PLANTED`.
(`--drop KIND` plants another sort: messages of one kind never arrive.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ray._control.tables import RemovedGroupTable
from ray._head import placement_groups, resumption
from ray._head.membership import RETURNED, Membership
from ray._head.service import HeadService
from ray._node.bundles import Bundles
from ray._node.outbox import Outbox

from . import heads
from .nodes import Node
from .uplinks import Uplink


def _becomes_again(self: Node, worker_tag: bytes, actor_id: bytes, incarnation: int) -> None:
    self.became.pop(actor_id, None)
    _on_become_actor(self, worker_tag, actor_id, incarnation)


def _in_use(self: Membership, number: int, node_id: bytes) -> str | None:
    return "in use" if self.state(number) == RETURNED else _refusal(self, number, node_id)


def _lets_in(self: Membership, number: int, node_id: bytes) -> str | None:
    if self.gathering:
        self._earlier.setdefault(number, node_id)
    return _refusal(self, number, node_id)


async def _none(self: RemovedGroupTable) -> list[bytes]:
    return []


_again = Outbox.again
_on_become_actor = Node.on_become_actor
_refusal = Membership.refusal_to_return
_placed, _started = HeadService.actor_placed, HeadService.actor_worker_started

# name -> (where, what, instead)
PLANTED: dict[str, tuple[Any, str, Any]] = {
    "a node that wakes does what it was told": (Uplink, "_may_be_dead", lambda self: False),
    "nothing is told again": (Outbox, "again", lambda self: []),
    "what is told again is in another order": (Outbox, "again", lambda self: _again(self)[::-1]),
    "nothing needs to last": (heads._Lasting, "say", lambda self, what: what()),
    "a worker becomes an actor as often as it is told": (Node, "on_become_actor", _becomes_again),
    "a node may come back once": (Membership, "refusal_to_return", _in_use),
    "whoever was given up may come back": (Membership, "refusal_to_return", _lets_in),
    "removed groups are forgotten": (RemovedGroupTable, "all", _none),
    "a group lies where its row says": (placement_groups, "_lies", lambda *args: True),
    "what nodes claim is not asked": (resumption, "claims", lambda present: {}),
    "what nodes hold is not asked": (resumption, "_found", lambda present: {}),
    "a bundle that ends is asked for in vain": (Bundles, "still_ending", lambda *args: False),
    "incarnations are not told apart": (HeadService, "actor_placed", lambda self, *args: _placed(self, *args[:2])),
}


@contextmanager
def planted(name: str) -> Iterator[None]:
    where, what, instead = PLANTED[name]
    before: Callable[..., Any] = getattr(where, what)
    setattr(where, what, instead)
    try:
        yield
    finally:
        setattr(where, what, before)
