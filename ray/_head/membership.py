"""Who belongs to the cluster, by node number; what each node is told of the others. Pure: `handle(event) -> actions`.

Runs in the head, on its loop's thread. Whether a silent node is dead is `monitor.py`'s to say; here that is an event. A
node that was ever admitted is in exactly one of

    JOINING  it has its number and the table of nodes; some that were there before don't know of it yet, so none of its
             processes may come into being: an id of theirs would mean nothing to those
    MEMBER   every living node knows it; work may be sent to it, and its processes may live
    GONE     its process, or the way to it, has ended; final: its number is never given to another

The head's own node is number 0 and never goes: with it this process ends. What is told to one node arrives in the order
told, and what one node says comes in the order said; between nodes there is no order, hence the acknowledgement.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, Union

from ray._scheduling.machine import InvalidTransition, Story

JOINING, MEMBER, GONE = "JOINING", "MEMBER", "GONE"
STATES = (JOINING, MEMBER, GONE)


class Joined(NamedTuple):
    """Never seen before; `node_id` is its own choice. about: host, port, total, labels."""

    node_id: bytes
    about: Mapping[str, Any]


class Acknowledged(NamedTuple):
    """Node `number` has `of` in its table now, as have its processes."""

    number: int
    of: int


class Reported(NamedTuple):
    """What is free there, what waits (ray/_node/cluster_view.py)."""

    number: int
    report: Mapping[str, Any]


class Left(NamedTuple):
    number: int
    cause: str


class Known(NamedTuple):
    """Made here: everybody who must know this node does."""

    number: int


class Admit(NamedTuple):
    """The answer to Joined: its number, and the rows of all others that live, in the order of their numbers."""

    number: int
    table: list[dict[str, Any]]


class Tell(NamedTuple):
    """An event for the node `to`: node_up(row), opened(), view(rows), node_down(number, cause)."""

    to: int
    name: str
    args: tuple[Any, ...]


Event = Union[Joined, Acknowledged, Reported, Left, Known]
Action = Union[Admit, Tell]


class Node:
    __slots__ = ("number", "report", "row", "state", "story", "unaware")

    def __init__(self, number: int, row: dict[str, Any], unaware: set[int]) -> None:
        self.number = number
        self.row = row  # number, node_id, and what it said about itself: never changes
        self.report: Mapping[str, Any] = {}
        self.state = JOINING
        self.unaware = unaware  # living nodes that have yet to acknowledge it
        self.story = Story()

    def view(self) -> dict[str, Any]:
        return {**self.row, **self.report, "state": "ALIVE" if self.state != GONE else "DEAD"}

    def __repr__(self) -> str:
        return f"<Node {self.number} {self.state}, unknown to {sorted(self.unaware)}>"


class Membership:
    def __init__(self, next_number: int = 0) -> None:
        """next_number: of a head that takes over from another: no number below it is given again."""
        self._next = next_number
        self._nodes: dict[int, Node] = {}

    @property
    def next_number(self) -> int:
        return self._next

    def living(self) -> list[int]:
        return [number for number, node in self._nodes.items() if node.state != GONE]

    def number_of(self, node_id: bytes) -> int | None:
        """Of a node that lives."""
        found = (n.number for n in self._nodes.values() if n.state != GONE and n.row["node_id"] == node_id)
        return next(found, None)

    def state(self, number: int) -> str | None:
        node = self._nodes.get(number)
        return None if node is None else node.state

    def handle(self, event: Event, now: float = 0.0) -> list[Action]:
        """Raises: InvalidTransition: a bug of the head's own."""
        if isinstance(event, Joined):
            return self._join(event, now)
        node = self._nodes.get(event.of if isinstance(event, Acknowledged) else event.number)
        if node is None:
            raise InvalidTransition(f"{event!r} is about a node that never joined")
        row = TRANSITIONS.get((node.state, type(event)))
        if row is None:
            raise InvalidTransition(f"no row for {event!r} in {node.state}: {node!r}; its story: {node.story}")
        before = node.state
        node.state, actions = row(self, node, event)
        if node.state != before:
            node.story.add(now, before, type(event).__name__, node.state)
        if isinstance(event, Left) and node.state != before:  # it need not acknowledge anything any more
            for other in self._living():
                if other.number != node.number and event.number in other.unaware:
                    actions += self.handle(Acknowledged(event.number, other.number), now)
        return actions

    def _join(self, event: Joined, now: float) -> list[Action]:
        others = self._living()
        number, self._next = self._next, self._next + 1
        row = {**event.about, "number": number, "node_id": event.node_id}
        node = self._nodes[number] = Node(number, row, {other.number for other in others})
        node.story.add(now, "-", "Joined", JOINING)
        actions: list[Action] = [Admit(number, [other.row for other in others])]
        actions += [Tell(other.number, "node_up", (row,)) for other in others]
        return actions + self._known_at_last(node, now)

    def _known_at_last(self, node: Node, now: float = 0.0) -> list[Action]:
        return [] if node.unaware else self.handle(Known(node.number), now)

    def _living(self) -> list[Node]:
        return [node for node in self._nodes.values() if node.state != GONE]

    def _members_but(self, number: int) -> list[Node]:
        return [node for node in self._nodes.values() if node.state == MEMBER and node.number != number]

    # -- rows of TRANSITIONS ------------------------------------------------------------------------------------------

    def _aware(self, node: Node, event: Acknowledged) -> tuple[str, list[Action]]:
        node.unaware.discard(event.number)
        if node.unaware:
            return JOINING, []
        state, actions = self._open(node, event)
        return state, actions

    def _open(self, node: Node, event: Any) -> tuple[str, list[Action]]:
        others = self._members_but(node.number)
        views = [other.view() for other in others]
        actions: list[Action] = [Tell(node.number, "opened", ())]
        if views:
            actions.append(Tell(node.number, "view", (views,)))
        return MEMBER, actions + [Tell(other.number, "view", ([node.view()],)) for other in others]

    def _keep(self, node: Node, event: Reported) -> tuple[str, list[Action]]:
        node.report = dict(event.report)
        return JOINING, []

    def _spread(self, node: Node, event: Reported) -> tuple[str, list[Action]]:
        node.report = dict(event.report)
        return MEMBER, [Tell(other.number, "view", ([node.view()],)) for other in self._members_but(node.number)]

    def _leave(self, node: Node, event: Left) -> tuple[str, list[Action]]:
        node.state = GONE  # before the others are looked at
        node.report, node.unaware = {}, set()
        actions: list[Action] = []
        for other in self._living():
            actions += [
                Tell(other.number, "view", ([node.view()],)),
                Tell(other.number, "node_down", (node.number, event.cause)),
            ]
        return GONE, actions

    def _again(self, node: Node, event: Any) -> tuple[str, list[Action]]:
        return node.state, []

    # -- proved -------------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Re-derives what must hold. Raises: AssertionError."""
        living = set(self.living())
        assert all(number < self._next for number in self._nodes)
        for node in self._nodes.values():
            assert node.unaware <= living - {node.number}, node
            assert bool(node.unaware) == (node.state == JOINING), node
        ids = [self._nodes[number].row["node_id"] for number in living]
        assert len(set(ids)) == len(ids)


Row = Callable[[Membership, Node, Any], "tuple[str, list[Action]]"]
TRANSITIONS: dict[tuple[str, type], Row] = {
    (JOINING, Known): Membership._open,  # there was nobody to tell
    (JOINING, Acknowledged): Membership._aware,
    (JOINING, Reported): Membership._keep,
    (JOINING, Left): Membership._leave,
    (MEMBER, Acknowledged): Membership._again,  # said twice
    (MEMBER, Reported): Membership._spread,
    (MEMBER, Left): Membership._leave,
    (GONE, Acknowledged): Membership._again,  # on its way when the node went
    (GONE, Reported): Membership._again,
    (GONE, Left): Membership._again,  # the end of its connection, after its silence
}


def told(actions: Iterable[Action], number: int) -> list[Tell]:
    """What of these is for that node."""
    return [action for action in actions if isinstance(action, Tell) and action.to == number]
