"""On which node something should run: feasible -> fits -> score -> choose. Pure; used by the global scheduler.

A node is *feasible* if it could ever hold what is asked, and *fits* if it can now, as far as is known here. Where
nothing fits, the least loaded feasible node is chosen all the same: its local scheduler queues, and knows more. Ties
go to the node that joined first, so that a choice depends on nothing but the arguments.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from ray._scheduling import labels
from ray._scheduling.strategy import Default as Default
from ray._scheduling.strategy import NodeAffinity as NodeAffinity
from ray._scheduling.strategy import NodeLabels, Strategy
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


def choose(nodes: Iterable[NodeView], ask: Mapping[str, int], strategy: Strategy) -> bytes | None:
    """The node for a request, or None if no node could ever hold it."""
    candidates = [node for node in nodes if feasible(node, ask)]
    if isinstance(strategy, NodeAffinity):
        if any(node.node_id == strategy.node_id for node in candidates):
            return strategy.node_id
        if not strategy.soft:
            return None
        strategy = Default()
    if isinstance(strategy, NodeLabels):
        candidates = _by_labels(candidates, strategy)
    if not candidates:
        return None
    roomy = [node for node in candidates if fits(node, ask)]
    if isinstance(strategy, Spread):
        return min(roomy or candidates, key=lambda node: (node.assigned, load(node, ask))).node_id
    if not roomy:
        return min(candidates, key=lambda node: (load(node, ask), node.assigned)).node_id
    return min(roomy, key=lambda node: (-node.holds, max(load(node, ask), PACK_UNTIL))).node_id


def _by_labels(candidates: list[NodeView], strategy: NodeLabels) -> list[NodeView]:
    """Those that the first selector with any admits; only the preferred among them, if there are such."""
    for selector in strategy.alternatives:
        admitted = [node for node in candidates if labels.matches(node.labels, selector)]
        if admitted:
            return [node for node in admitted if labels.matches(node.labels, strategy.preferred)] or admitted
    return []
