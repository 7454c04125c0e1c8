"""Which node comes first by some measure, without looking at all of them. Pure; a part of both schedulers.

For each *question* that is asked - a measure, a shape, terms that a node's labels must meet - there is a heap of the
nodes that can answer it; an entry is as old as the node's state when it was put there, and is thrown away when it comes
up and the node has changed since. A change of a node costs one entry in a log; a heap takes in what the log has for it
when its question is asked again. So a change costs the same however many questions there are, and a choice the
logarithm of the number of nodes. On 2,000 nodes a choice took 10 ms by looking at each.

A measure is a function of one node and a shape: the smallest value comes first, of equals the node that joined first;
None: this node can't answer. `alike.py` sorts the same nodes into those between which nothing decides.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import Any, Generic, TypeVar

from ray._protocol.resources import Shape
from ray._scheduling import labels as node_labels
from ray._scheduling.labels import Term

_NO_LABELS: Mapping[str, str] = {}
QUESTIONS_MAX = 64  # with a heap each; the one asked longest ago goes first

Key = TypeVar("Key", bound=Hashable)


class Entry(Generic[Key]):
    """What is known of a node. Written by NodeIndex.put only."""

    __slots__ = ("available", "key", "labels", "order", "total", "turn", "version", "waits")

    def __init__(self, key: Key, order: int) -> None:
        self.key = key
        self.order = order  # of joining: who came first wins a tie
        self.version = 0
        self.total: Mapping[str, int] = {}
        self.available: Mapping[str, int] = {}
        self.labels: Mapping[str, str] = {}
        self.waits = 0  # how many wait, or were put, there
        self.turn = 0  # when it was last chosen in turn


Measure = Callable[[Entry[Any], Shape], Any]  # those in use are in policies.py
Question = tuple[Measure, Shape, tuple[Term, ...]]


class _Heap(Generic[Key]):
    __slots__ = ("entries", "seen")

    def __init__(self) -> None:
        self.entries: list[tuple[Any, int, int, Key]] = []  # measure, order, version, node
        self.seen = -1  # of the log; -1: nothing yet


class NodeIndex(Generic[Key]):
    """Call from one thread."""

    def __init__(self) -> None:
        self._nodes: dict[Key, Entry[Key]] = {}
        self._heaps: dict[Question, _Heap[Key]] = {}
        self._next = 0
        self._log: list[Key] = []  # the nodes that were put, the last of them last
        self._log_from = 0  # how many of them have been dropped from its beginning

    def put(
        self,
        key: Key,
        total: Mapping[str, int],
        available: Mapping[str, int],
        labels: Mapping[str, str] | None = None,
        waits: int = 0,
        turn: int = 0,
    ) -> None:
        """A node that is new, or has changed. No mapping is copied: after a change it must be put again."""
        node = self._nodes.get(key)
        if node is None:
            self._next += 1
            node = self._nodes[key] = Entry(key, self._next)
        node.version += 1
        node.total, node.available, node.labels = total, available, labels or _NO_LABELS
        node.waits, node.turn = waits, turn
        log = self._log
        log.append(key)
        if len(log) > 2 * len(self._nodes) + 64:  # who has not come this far looks at all nodes instead
            dropped = len(log) // 2
            del log[:dropped]
            self._log_from += dropped

    def drop(self, key: Key) -> None:
        if self._nodes.pop(key, None) is not None:
            self._log.append(key)

    def get(self, key: Key) -> Entry[Key] | None:
        return self._nodes.get(key)

    def order(self, key: Key) -> int:
        """Of joining; the first is 1."""
        return self._nodes[key].order

    def __len__(self) -> int:
        return len(self._nodes)

    def __iter__(self) -> Iterator[Entry[Key]]:
        """In the order they joined."""
        return iter(self._nodes.values())

    def first(self, measure: Measure, shape: Shape, terms: tuple[Term, ...] = ()) -> tuple[Any, Key] | None:
        """(its measure, the node), or None: no node answers.

        Args: terms: what the node's labels must meet, all of it."""
        question = measure, shape, terms
        heap = self._heaps.pop(question, None)
        if heap is None:
            if len(self._heaps) >= QUESTIONS_MAX:
                del self._heaps[next(iter(self._heaps))]
            heap = _Heap()
        self._heaps[question] = heap  # the last to go
        if heap.seen != self._log_from + len(self._log):
            self._catch_up(heap, measure, shape, terms)
        entries, nodes = heap.entries, self._nodes
        while entries:
            value, order, version, key = entries[0]
            node = nodes.get(key)
            if node is not None and node.version == version and node.order == order:
                return value, key
            heapq.heappop(entries)
        return None

    def changes(self, seen: int) -> tuple[int, list[Key] | None]:
        """(where the log ends now, the nodes that were put or dropped since `seen`; None: look at all of them)."""
        end = self._log_from + len(self._log)
        if seen < self._log_from or end - seen > len(self._nodes):
            return end, None
        return end, self._log[seen - self._log_from :]

    def _catch_up(self, heap: _Heap[Key], measure: Measure, shape: Shape, terms: tuple[Term, ...]) -> None:
        heap.seen, changed = self.changes(heap.seen)
        afresh = changed is None or len(heap.entries) > 2 * len(self._nodes) + 16
        if afresh:
            heap.entries = []
        for key in self._nodes if changed is None or afresh else changed:
            node = self._nodes.get(key)
            if node is None or (terms and not node_labels.matches(node.labels, terms)):
                continue
            value = measure(node, shape)
            if value is not None:
                entry = value, node.order, node.version, key
                if afresh:
                    heap.entries.append(entry)
                else:
                    heapq.heappush(heap.entries, entry)
        if afresh:
            heapq.heapify(heap.entries)
