"""What a request may say about where it runs, and how that travels. Pure vocabulary of both schedulers.

On the wire a strategy is None, a word or a short tuple of plain values, so that it can be a part of a key:

    None                                    by the default; a task inside a group that captures follows its parent
    "DEFAULT"                               by the default, whatever the parent does
    "SPREAD"                                wherever the fewest are
    ("node", node_id, soft)                 on that node
    ("labels", (selector, ...), preferred)  on a node that the first selector admits, else the second, ...; among
                                            those, rather on one that preferred admits too
    ("group", group_id, bundle, capture)    in that bundle of a placement group; -1: in any
"""

from __future__ import annotations

from typing import Any, NamedTuple, Union

from ray._scheduling import labels

UNKNOWN_STRATEGY = (
    "scheduling_strategy must be None, 'DEFAULT', 'SPREAD', a node affinity, node labels or a placement group, not {!r}"
)
GROUP_ID_BYTES = 16


class Default(NamedTuple):
    """Pack to half full, then spread; the node that holds the arguments first."""


class Spread(NamedTuple):
    """Wherever the fewest are."""


class NodeAffinity(NamedTuple):
    """On this node. soft: elsewhere by the default if it is not there or can never hold it."""

    node_id: bytes
    soft: bool = False


class NodeLabels(NamedTuple):
    """On a node whose labels the first of these selectors admits, else the second, and so on."""

    alternatives: tuple[labels.Selector, ...]
    preferred: labels.Selector = ()

    def admits(self, node_labels: dict[str, str]) -> bool:
        return any(labels.matches(node_labels, selector) for selector in self.alternatives)


class InGroup(NamedTuple):
    """In one bundle of a placement group, or in any of them."""

    group_id: bytes
    bundle: int = -1
    capture: bool = False  # tasks that it submits go into the group as well


Strategy = Union[Default, Spread, NodeAffinity, NodeLabels, InGroup]
DEFAULT = Default()


def parse_strategy(given: object) -> Strategy:
    """Of what a core sent.

    Raises: ValueError: none of the forms above."""
    if given is None or given == "DEFAULT":
        return DEFAULT
    if given == "SPREAD":
        return Spread()
    if isinstance(given, (tuple, list)) and given:
        kind, rest = given[0], given[1:]
        if kind == "node" and len(rest) == 2 and isinstance(rest[0], bytes):
            return NodeAffinity(rest[0], bool(rest[1]))
        if kind == "group" and len(rest) == 3 and _is_group(*rest):
            return InGroup(rest[0], rest[1], bool(rest[2]))
        if (
            kind == "labels"
            and len(rest) == 2
            and isinstance(rest[0], (tuple, list))
            and _are_selectors(*rest[0], rest[1])
        ):
            return NodeLabels(tuple(rest[0]), rest[1])
    raise ValueError(UNKNOWN_STRATEGY.format(given))


def _is_group(group_id: object, bundle: object, capture: object) -> bool:
    return isinstance(group_id, bytes) and len(group_id) == GROUP_ID_BYTES and isinstance(bundle, int) and bundle >= -1


def _are_selectors(*given: object) -> bool:
    return all(
        isinstance(selector, tuple)
        and all(
            isinstance(term, tuple)
            and len(term) == 3
            and isinstance(term[0], str)
            and isinstance(term[1], str)
            and term[1] in labels.OPERATORS
            and isinstance(term[2], tuple)
            and all(isinstance(value, str) for value in term[2])
            for term in selector
        )
        for selector in given
    )


def plain_strategy(given: Any) -> Any:
    """For a row of a table: ids as hexadecimal, tuples as lists."""
    if isinstance(given, (tuple, list)):
        return [plain_strategy(part) for part in given]
    return {"id": given.hex()} if isinstance(given, bytes) else given


def strategy_of_plain(plain: Any) -> Any:
    if isinstance(plain, list):
        return tuple(strategy_of_plain(part) for part in plain)
    return bytes.fromhex(plain["id"]) if isinstance(plain, dict) else plain
