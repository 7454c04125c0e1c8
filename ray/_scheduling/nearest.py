"""Which node comes nearest to what no node can ever offer, in words. Pure; for messages only.

The nearest lacks the fewest resources; of those, the smallest part of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ray._protocol.resources import describe, describe_one

from .policies import NodeView


def nearest(ask: Mapping[str, int], views: Sequence[NodeView]) -> str:
    """Args: views: at least one; only totals and ids are looked at."""
    view = min(views, key=lambda view: _distance(ask, view))
    parts = [
        f"{describe_one(name, ask[name])} is asked for, and it has "
        + (describe_one(name, view.total[name]) if view.total.get(name) else f"no {name!r}")
        for name in _lacks(ask, view)
    ]
    return f"node {view.node_id.hex()}, with {describe(dict(view.total))}, comes nearest: {'; '.join(parts)}"


def _lacks(ask: Mapping[str, int], view: NodeView) -> list[str]:
    return [name for name, units in ask.items() if units > view.total.get(name, 0)]


def _distance(ask: Mapping[str, int], view: NodeView) -> tuple[int, float]:
    lacks = _lacks(ask, view)
    return len(lacks), sum(1 - view.total.get(name, 0) / ask[name] for name in lacks)
