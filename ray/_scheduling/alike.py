"""Nodes between which nothing decides: the same is free on them, and the same in all. Pure; used for placement groups.

A cluster of thousands of nodes has a few kinds of machines, each in a few states, so a group's place is looked for
among *kinds* and not among nodes: of one kind the node that joined first is taken. At worst every node is a kind of its
own, and it costs what looking at all nodes costs.

`Alike` follows a `NodeIndex` by its log, when it is asked.
"""

from __future__ import annotations

import bisect
from collections.abc import Mapping
from typing import Generic

from ray._protocol.resources import Resources
from ray._scheduling import labels
from ray._scheduling.labels import Selector
from ray._scheduling.node_index import Entry, Key, NodeIndex

Amounts = frozenset[tuple[str, int]]


class Kind(Generic[Key]):
    """Nodes that are alike, in the order they joined."""

    __slots__ = ("admits", "available", "keys", "orders", "total")

    def __init__(self, available: Mapping[str, int], total: Mapping[str, int], admits: tuple[bool, ...]) -> None:
        self.available: Resources = dict(available)
        self.total: Resources = dict(total)
        self.admits = admits  # by selector
        self.orders: list[int] = []  # of joining, ascending
        self.keys: list[Key] = []  # the nodes themselves, in that order


class Alike(Generic[Key]):
    """Args: selectors: by which of these admit them nodes are told apart, too.
    empty: as if nothing were used anywhere."""

    def __init__(self, index: NodeIndex[Key], selectors: tuple[Selector, ...], empty: bool) -> None:
        self._index = index
        self._selectors = selectors
        self._empty = empty
        self._kinds: dict[tuple[Amounts, Amounts, tuple[bool, ...]], Kind[Key]] = {}
        self._where: dict[Key, tuple[int, tuple[Amounts, Amounts, tuple[bool, ...]]]] = {}
        self._seen = -1

    def kinds(self) -> list[Kind[Key]]:
        self._seen, changed = self._index.changes(self._seen)
        if changed is None:
            self._kinds, self._where = {}, {}
            for node in self._index:
                self._add(node)
        else:
            for key in changed:
                self._remove(key)
                entry = self._index.get(key)
                if entry is not None:
                    self._add(entry)
        return list(self._kinds.values())

    def kind_of(self, key: Key) -> tuple[int, Kind[Key]] | None:
        """(its order of joining, its kind) as of the last `kinds()`; None: there is no such node."""
        found = self._where.get(key)
        return None if found is None else (found[0], self._kinds[found[1]])

    def _add(self, node: Entry[Key]) -> None:
        available = node.total if self._empty else node.available
        admits = tuple(labels.matches(node.labels, selector) for selector in self._selectors)
        which = frozenset(available.items()), frozenset(node.total.items()), admits
        kind = self._kinds.get(which)
        if kind is None:
            kind = self._kinds[which] = Kind(available, node.total, admits)
        at = bisect.bisect(kind.orders, node.order)
        kind.orders.insert(at, node.order)
        kind.keys.insert(at, node.key)
        self._where[node.key] = node.order, which

    def _remove(self, key: Key) -> None:
        found = self._where.pop(key, None)
        if found is None:
            return
        order, which = found
        kind = self._kinds[which]
        at = bisect.bisect_left(kind.orders, order)
        del kind.orders[at], kind.keys[at]
        if not kind.orders:
            del self._kinds[which]
