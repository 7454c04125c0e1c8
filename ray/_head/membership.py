"""Who belongs to the cluster, by node number; what each node is told of the others. Pure: `handle(event) -> actions`.

Runs in the head, on its loop's thread. Whether a silent node is dead is `monitor.py`'s to say; here that is an event. A
node that was ever admitted is in exactly one of

    JOINING  it has its number and the table of nodes; some that were there before don't know of it yet, so none of its
             processes may come into being: an id of theirs would mean nothing to those
    MEMBER   every living node knows it; work may be sent to it, and its processes may live
    RETURNED it was there before the head was restarted, and is again; all that have returned are told at once of each
             other (Gathered), and are members then. It may return once more: its connection may have broken without
             the head's having heard so
    GONE     its process, or the way to it, has ended; final: its number is never given to another

The head's own node never goes: with it this process ends. It is number 0, or the next number if an earlier head has
ended: what lived on its node is dead, and an id must not mean two things. What is told to one node arrives in the order
told, and what one node says comes in the order said; between nodes there is no order, hence the acknowledgement.

What nodes report is gathered, and told at the next Spread to all alike: only what has changed, in one message for each
node. A message for each report and each other node is 20 n^2 a second with n busy nodes (at 200: 2.7 s of the head's
processor each second, and 0.2 s so; `python -m tests.perf.views`).
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping
from typing import Any, NamedTuple, Union

from ray._scheduling.machine import InvalidTransition, Story

JOINING, MEMBER, RETURNED, GONE = "JOINING", "MEMBER", "RETURNED", "GONE"
STATES = (JOINING, MEMBER, RETURNED, GONE)


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


class Spread(NamedTuple):
    """A while has passed since the last one, and there is `news`."""


class Left(NamedTuple):
    number: int
    cause: str


class Returned(NamedTuple):
    """A node of an earlier head's, as `refusal_to_return` has let in. about: as for Joined."""

    number: int
    node_id: bytes
    about: Mapping[str, Any]


class Gathered(NamedTuple):
    """Whoever has not returned by now is dead."""


class Known(NamedTuple):
    """Made here: everybody who must know this node does."""

    number: int


class Admit(NamedTuple):
    """The answer to Joined, or to Returned once all are gathered: its number, and the rows of all others that
    live, in the order of their numbers."""

    number: int
    table: list[dict[str, Any]]


class Tell(NamedTuple):
    """An event for the node `to`: node_up(row), opened(), view(rows), node_down(number, cause)."""

    to: int
    name: str
    args: tuple[Any, ...]


class View(NamedTuple):
    """The event view(rows) for all these nodes, themselves among the rows. A row without node_id has a node's number
    and what has changed of it."""

    to: list[int]
    rows: list[dict[str, Any]]


Event = Union[Joined, Acknowledged, Reported, Spread, Left, Returned, Gathered, Known]
Action = Union[Admit, Tell, View]


class Node:
    __slots__ = ("cause", "number", "report", "row", "state", "story", "unaware")

    def __init__(self, number: int, row: dict[str, Any], unaware: set[int]) -> None:
        self.number = number
        self.row = row  # number, node_id, and what it said about itself: never changes
        self.report: Mapping[str, Any] = {}
        self.state = JOINING
        self.cause = ""  # of its end
        self.unaware = unaware  # living nodes that have yet to acknowledge it
        self.story = Story()

    def view(self) -> dict[str, Any]:
        return {**self.row, **self.report, "state": "ALIVE" if self.state != GONE else "DEAD"}

    def __repr__(self) -> str:
        return f"<Node {self.number} {self.state}, unknown to {sorted(self.unaware)}>"


class Membership:
    def __init__(self, next_number: int = 0, earlier: Mapping[int, bytes] | None = None) -> None:
        """next_number: of a head that takes over from another: no number below it is given again, and its nodes may
        return until Gathered. earlier: those nodes, number -> id; whom that head had given up is not among them."""
        self._next = next_number
        self.gathering = next_number > 0
        self._earlier = dict(earlier or {})
        self._nodes: dict[int, Node] = {}
        self._news: dict[int, dict[str, Any]] = {}  # rows for the next Spread, by number; of members only

    @property
    def news(self) -> bool:
        """Whether there is something to spread."""
        return bool(self._news)

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

    def refusal_to_return(self, number: int, node_id: bytes) -> str | None:
        """Why a node that was cut off, or whose head was away, may not go on; None: it may."""
        node = self._nodes.get(number)
        if node is not None and node.state == GONE:
            return f"it was declared dead meanwhile, and its work was given to others: {node.cause}"
        if node is not None and node.state == RETURNED and node.row["node_id"] == node_id:
            return None  # over a new connection: of the end of the one before nothing has been heard yet
        if node is not None:
            return f"number {number} is in use"
        if not self.gathering:
            return "it was declared dead: it was not there when the head, which had been restarted, gathered its nodes"
        if self._earlier.get(number) != node_id:
            return f"node {number} was declared dead before the head was restarted, or its number was another node's"
        return None

    def given_up(self, node_ids: Container[bytes]) -> list[int]:
        """An earlier head had declared these dead, as its tables say. Returns: those of them that have returned, and
        are to be refused now."""
        late = [n.number for n in self._nodes.values() if n.state == RETURNED and n.row["node_id"] in node_ids]
        for number in late:
            del self._nodes[number]
        self._earlier = {number: i for number, i in self._earlier.items() if i not in node_ids}
        return late

    def handle(self, event: Event, now: float = 0.0) -> list[Action]:
        """Raises: InvalidTransition: a bug of the head's own."""
        if isinstance(event, Joined):
            return self._join(event, now)
        if isinstance(event, Returned):
            return self._return(event, now)
        if isinstance(event, Gathered):
            return self._gathered(event, now)
        if isinstance(event, Spread):
            news, self._news = self._news, {}
            return [View([node.number for node in self._members()], list(news.values()))] if news else []
        node = self._nodes.get(event.of if isinstance(event, Acknowledged) else event.number)
        if node is None:
            raise InvalidTransition(f"{event!r} is about a node that never joined")
        row = TRANSITIONS.get((node.state, type(event)))
        if row is None:
            raise InvalidTransition(f"no row for {event!r} in {node.state}: {node!r}; its story: {node.story}")
        before = node.state
        node.state, actions = row(self, node, event)
        if before == RETURNED and isinstance(event, Left):
            del self._nodes[node.number]  # nobody has heard of it from this head: it may return once more
        elif node.state != before:
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

    def _return(self, event: Returned, now: float) -> list[Action]:
        refusal = self.refusal_to_return(event.number, event.node_id)
        if refusal is not None:
            raise InvalidTransition(refusal)
        row = {**event.about, "number": event.number, "node_id": event.node_id}
        node = self._nodes[event.number] = Node(event.number, row, set())
        node.state = RETURNED
        node.story.add(now, "-", "Returned", RETURNED)
        return []

    def _gathered(self, event: Gathered, now: float) -> list[Action]:
        """What they still know of others that have not returned, they drop by the table."""
        self.gathering = False
        back = sorted((node for node in self._nodes.values() if node.state == RETURNED), key=lambda node: node.number)
        for node in back:
            node.state = MEMBER
            node.story.add(now, RETURNED, "Gathered", MEMBER)
        return [Admit(node.number, [other.row for other in back if other is not node]) for node in back]

    def _known_at_last(self, node: Node, now: float = 0.0) -> list[Action]:
        return [] if node.unaware else self.handle(Known(node.number), now)

    def _living(self) -> list[Node]:
        return [node for node in self._nodes.values() if node.state != GONE]

    def _members(self) -> list[Node]:
        return [node for node in self._nodes.values() if node.state == MEMBER]

    # -- rows of TRANSITIONS ------------------------------------------------------------------------------------------

    def _aware(self, node: Node, event: Acknowledged) -> tuple[str, list[Action]]:
        node.unaware.discard(event.number)
        if node.unaware:
            return JOINING, []
        state, actions = self._open(node, event)
        return state, actions

    def _open(self, node: Node, event: Any) -> tuple[str, list[Action]]:
        """Whole rows: of all for the newcomer, itself among them, and of that for the others."""
        others = self._members()
        views = [other.view() for other in [*others, node]]
        actions: list[Action] = [Tell(node.number, "opened", ()), Tell(node.number, "view", (views,))]
        return MEMBER, [*actions, View([other.number for other in others], [node.view()])] if others else actions

    def _keep(self, node: Node, event: Reported) -> tuple[str, list[Action]]:
        node.report = dict(event.report)
        return JOINING, []

    def _spread(self, node: Node, event: Reported) -> tuple[str, list[Action]]:
        before, node.report = node.report, dict(event.report)
        if not before:  # so it is of a node that has come back, whose row not everybody need have
            self._news[node.number] = node.view()
            return MEMBER, []
        changed = {name: value for name, value in node.report.items() if before.get(name) != value}
        if changed:
            self._news.setdefault(node.number, {"number": node.number}).update(changed)
        return MEMBER, []

    def _leave(self, node: Node, event: Left) -> tuple[str, list[Action]]:
        node.state = GONE  # before the others are looked at
        node.report, node.unaware, node.cause = {}, set(), event.cause
        self._news.pop(node.number, None)
        actions: list[Action] = []
        for other in self._living():
            if other.state == RETURNED:
                continue  # it has not been told of anybody
            actions += [
                Tell(other.number, "view", ([node.view()],)),
                Tell(other.number, "node_down", (node.number, event.cause)),
            ]
        return GONE, actions

    def _lose(self, node: Node, event: Left) -> tuple[str, list[Action]]:
        return GONE, []

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
        assert all(self.state(number) == MEMBER for number in self._news)
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
    (RETURNED, Left): Membership._lose,
    (GONE, Acknowledged): Membership._again,  # on its way when the node went
    (GONE, Reported): Membership._again,
    (GONE, Left): Membership._again,  # the end of its connection, after its silence
}


def told(actions: Iterable[Action], number: int) -> list[Tell]:
    """What of these is for that node."""
    found = []
    for action in actions:
        if isinstance(action, View) and number in action.to:
            found.append(Tell(number, "view", (action.rows,)))
        elif isinstance(action, Tell) and action.to == number:
            found.append(action)
    return found
