"""On which node something should run: feasible -> fits -> measure -> choose. Pure; used by both schedulers.

A node is *feasible* if it could ever hold what is asked, and *fits* if it can now, as far as is known here. Where
nothing fits, the least loaded feasible node is chosen all the same: its local scheduler queues, and knows more. Ties
go to the node that joined first, so that a choice depends on nothing but the arguments. The nodes are asked for through
a `NodeIndex`, so none of this looks at all of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from ray._protocol.resources import Shape
from ray._scheduling.labels import Term
from ray._scheduling.node_index import Entry, NodeIndex
from ray._scheduling.strategy import DEFAULT, NodeAffinity, NodeLabels, Strategy
from ray._scheduling.strategy import Default as Default
from ray._scheduling.strategy import Spread as Spread

PACK_UNTIL = 0.5  # a node below this is as good as an empty one: pack, and keep the others free for large requests


class NodeView(NamedTuple):
    """What is known of a node. Amounts in units of 1/10,000; available may be a moment old."""

    node_id: bytes
    total: Mapping[str, int]
    available: Mapping[str, int]
    assigned: int = 0  # placements given to it by the chooser and not yet ended
    holds: int = 0  # bytes of the request's arguments that it has
    labels: Mapping[str, str] = {}


def feasible(node: NodeView, ask: Mapping[str, int]) -> bool:
    return all(node.total.get(name, 0) >= units for name, units in ask.items())


def fits(node: NodeView, ask: Mapping[str, int]) -> bool:
    return all(node.available.get(name, 0) >= units for name, units in ask.items())


def load(node: NodeView, ask: Mapping[str, int]) -> float:
    """How full the node's scarcest resource would be with this request on it: 0 empty, 1 full, above: it has to
    queue."""
    fullest = 0.0
    for name, units in ask.items():
        total = node.total.get(name, 0)
        if total:
            fullest = max(fullest, (total - node.available.get(name, 0) + units) / total)
    return fullest


# -- measures: of two nodes the one with the smaller comes first; None: this one doesn't come into question ------------


def room(node: Entry[Any], shape: Shape) -> float | None:
    """Of nodes with room: how full its scarcest resource would be, but all below PACK_UNTIL are equal: pack, and keep
    the others free for large requests."""
    fullest = PACK_UNTIL
    for name, units in shape:
        free, total = node.available.get(name, 0), node.total.get(name, 0)
        if free < units or total < units:
            return None
        if total:
            fullest = max(fullest, (total - free + units) / total)
    return fullest


def fewest(node: Entry[Any], shape: Shape) -> tuple[int, float] | None:
    """Of nodes with room: where the fewest are, then how full it would be."""
    if not all(node.available.get(name, 0) >= units <= node.total.get(name, 0) for name, units in shape):
        return None
    return node.waits, _load(node, shape)


def longest_ago(node: Entry[Any], shape: Shape) -> int | None:
    """Of nodes with room: whose turn is longest ago."""
    return node.turn if all(node.available.get(name, 0) >= units for name, units in shape) else None


def least_loaded(node: Entry[Any], shape: Shape) -> tuple[float, int] | None:
    """Of nodes that could ever hold it, with or without room: how full, then how many wait."""
    return (_load(node, shape), node.waits) if _able(node, shape) else None


def fewest_wait(node: Entry[Any], shape: Shape) -> int | None:
    """Of nodes that could ever hold it: how many wait."""
    return node.waits if _able(node, shape) else None


def fewest_of_able(node: Entry[Any], shape: Shape) -> tuple[int, float] | None:
    """Of nodes that could ever hold it: where the fewest are, then how full it would be."""
    return (node.waits, _load(node, shape)) if _able(node, shape) else None


def _able(node: Entry[Any], shape: Shape) -> bool:
    return all(node.total.get(name, 0) >= units for name, units in shape)


def _load(node: Entry[Any], shape: Shape) -> float:
    fullest = 0.0
    for name, units in shape:
        total = node.total.get(name, 0)
        if total:
            fullest = max(fullest, (total - node.available.get(name, 0) + units) / total)
    return fullest


# -- choices -----------------------------------------------------------------------------------------------------------

ANY: tuple[tuple[Term, ...], ...] = ((),)


def index_of(views: Iterable[NodeView]) -> NodeIndex[bytes]:
    index: NodeIndex[bytes] = NodeIndex()
    for view in views:
        index.put(view.node_id, view.total, view.available, view.labels, view.assigned)
    return index


def choose(nodes: NodeIndex[bytes], shape: Shape, strategy: Strategy) -> bytes | None:
    """The node for a request of the head's, or None if no node could ever hold it."""
    if isinstance(strategy, Default):
        found = nodes.first(room, shape) or nodes.first(least_loaded, shape)
        return None if found is None else found[1]
    if isinstance(strategy, NodeAffinity):
        named = nodes.get(strategy.node_id)
        if named is not None and all(named.total.get(name, 0) >= units for name, units in shape):
            return strategy.node_id
        if not strategy.soft:
            return None
        strategy = DEFAULT
    measures = (fewest, fewest_of_able) if isinstance(strategy, Spread) else (room, least_loaded)
    for terms in searches(strategy):
        for measure in measures:
            found = nodes.first(measure, shape, terms)
            if found is not None:
                return found[1]
    return None


def searches(strategy: Strategy) -> tuple[tuple[Term, ...], ...]:
    """What a node's labels must meet, in the order of trying: only if no node that could ever hold the request meets
    the first does the second count."""
    if not isinstance(strategy, NodeLabels):
        return ANY
    if not strategy.preferred:
        return strategy.alternatives
    return tuple(
        terms for selector in strategy.alternatives for terms in ((*selector, *strategy.preferred), tuple(selector))
    )
