"""Which placement groups there are, and on which nodes their bundles lie. Pure: `handle(event, now) -> actions`.

Runs in the head (on one machine: in the node process), on its loop's thread; no I/O, no clock. A group reserves
resources in bundles, all of them or none, in two phases: each node that is to hold some is asked to *prepare* them, and
only when all have, all are told to *commit*. A group is in exactly one of

    PENDING       holds nothing; found in `_waiting`, tried again whenever a node joins or reports, or a group goes
    RESERVING     nodes have been asked to prepare; `asked` says which, `prepared` which of them have
    CREATED       every bundle is held by its node and may be used
    RESCHEDULING  some of its bundles died with their node; those that are left stay in use; found in `_waiting`
    REMOVED       for ever; in `_removed`, oldest forgotten first

If a node dies, a group that was being reserved there gives everything back and waits; one that lay there is
rescheduled: only what was lost is placed anew. If the job that made a group ends, so does the group, unless it is
detached. Answers carry the number of the attempt they belong to: one from an earlier attempt is late, and is dropped.

Where all bundles go to one node, that node may let the request wait in its line, in turn with its leases: a take of
all at once holds nothing while it waits, so no two groups can wait for each other. Where several nodes are needed, each
must have room at once, or the attempt is given up.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from ray._control.rows import PlacementGroupRow
from ray._head.global_scheduler import GlobalScheduler
from ray._head.group_messages import (
    Action,
    CommitBundles,
    Create,
    DropGroup,
    Event,
    ForgetGroup,
    GroupCreated,
    GroupInfeasible,
    GroupLost,
    GroupRemoved,
    JobEnded,
    Missed,
    NodeDied,
    NodesChanged,
    PrepareBundles,
    Prepared,
    Refused,
    Remove,
    ReturnBundles,
    SaveGroup,
)
from ray._head.group_record import CREATED, PENDING, REMOVED, RESCHEDULING, RESERVING, STATES, Group
from ray._protocol.resources import describe
from ray._scheduling import bundle_policies, labels
from ray._scheduling.machine import InvalidTransition
from ray._scheduling.nearest import nearest

REMOVED_KEPT = 1000  # that the table still shows
FORGOTTEN_KEPT = 20_000  # ids of older ones: who asks for one of these need not wait for it
NO_RECORD = "the head was started again, and has no record of it: its disk has lost what was written last"
EARLY_KEPT = 1000  # removals of groups that are not known; the oldest is dropped first


class _Placed(NamedTuple):
    """Made by `_try`: nodes have been chosen for the bundles that lie nowhere."""

    nodes: bundle_policies.Placement
    may_wait: bool


Step = tuple[str, list[Action]]  # the next state and what to do
# What nodes hold of groups: group -> node -> bundle -> its state (ray/_node/bundles.py).
Found = Mapping[bytes, Mapping[bytes, Mapping[int, str]]]


class PlacementGroups:
    """All placement groups of a cluster. `handle` is the only way in.

    Args: placing: the ledger of nodes that actors are placed by, too: what groups hold is held there.
    """

    def __init__(self, placing: GlobalScheduler) -> None:
        self.late = 0  # events about groups, or attempts, that are no more
        # A head that takes over counts from elsewhere: answers to the earlier one's may still come.
        self.attempts_from = 0
        self._placing = placing
        self._nodes = bundle_policies.Nodes(placing.index)
        self._groups: dict[bytes, Group] = {}
        self._waiting: dict[bytes, None] = {}  # PENDING and RESCHEDULING, in the order they came
        self._by_name: dict[tuple[str, str], bytes] = {}
        self._removed: collections.deque[bytes] = collections.deque()
        self._forgotten: collections.OrderedDict[bytes, None] = collections.OrderedDict()
        # Removals that have overtaken the creation, which another process sent over a connection of its own: id -> why.
        self._early: collections.OrderedDict[bytes, str] = collections.OrderedDict()

    # -- questions ----------------------------------------------------------------------------------------------------

    def get(self, group_id: bytes) -> Group | None:
        return self._groups.get(group_id)

    def named(self, name: str, namespace: str) -> Group | None:
        """The group of that name that has not been removed."""
        group_id = self._by_name.get((namespace, name))
        return None if group_id is None else self._groups[group_id]

    def was_removed(self, group_id: bytes) -> bool:
        """A group that is not known at all, on the other hand, may be on its way from the process that makes it."""
        group = self._groups.get(group_id)
        return group_id in self._forgotten if group is None else group.state == REMOVED

    def removed(self) -> list[tuple[bytes, str]]:
        """(id, why) of each that is known to be gone: what a node that joins has to hear, since what it is asked for
        one of them would wait there for ever."""
        long_gone = [(group_id, "it was removed long ago") for group_id in self._forgotten]
        return long_gone + [(group_id, self._groups[group_id].why) for group_id in self._removed]

    def all(self) -> list[Group]:
        return list(self._groups.values())

    def of_job(self, job_id: bytes) -> list[Group]:
        return [g for g in self._groups.values() if g.job_id == job_id and g.state != REMOVED]

    def why_waiting(self, group: Group) -> str:
        """For a person: what a group that is not CREATED lacks."""
        views = self._placing.views()
        missing = group.missing()
        if bundle_policies.possible(self._nodes, missing, group.strategy, group.nodes, group.limits) is None:
            return self._why_infeasible(group)
        free = "; ".join(f"node {view.node_id.hex()[:8]} has {describe(_above_zero(view.available))}" for view in views)
        asks = describe(bundle_policies.total_of(missing))
        return (
            f"{group.title()} waits for resources: its {len(missing)} bundles that lie nowhere need {asks} "
            f"({group.strategy}), and free of what groups and actors hold: {free}"
        )

    # -- events in ----------------------------------------------------------------------------------------------------

    def handle(self, event: Event, now: float) -> list[Action]:
        """Raises: InvalidTransition: a bug of the head's own."""
        if isinstance(event, Create):
            return self._create(event, now)
        if isinstance(event, NodesChanged):
            return self._try_waiting(now)
        if isinstance(event, Missed):
            return self._missed(event.group_id)
        if isinstance(event, NodeDied):
            touched = [
                g for g in self._groups.values() if event.node_id in g.asked or event.node_id in g.nodes.values()
            ]
            actions = [action for group in touched for action in self._step(group, event, now)]
            return actions + self._try_waiting(now)
        if isinstance(event, JobEnded):
            going = [g for g in self.of_job(event.job_id) if not g.detached]
            why = "the job that created it has ended"
            actions = [action for g in going for action in self._step(g, Remove(g.group_id, why), now)]
            return actions + self._try_waiting(now)
        group = self._groups.get(event.group_id)
        if group is None:
            self.late += 1
            if isinstance(event, Remove) and event.group_id not in self._forgotten:
                self._early[event.group_id] = event.why
                if len(self._early) > EARLY_KEPT:
                    self._early.popitem(last=False)
            return []
        if isinstance(event, (Prepared, Refused)) and (event.attempt != group.attempt or group.state != RESERVING):
            self.late += 1  # the node was told since to give them back
            return []
        freed = isinstance(event, Remove) and group.state != REMOVED
        actions = self._step(group, event, now)
        return actions + self._try_waiting(now) if freed and self._waiting else actions

    def _step(self, group: Group, event: Any, now: float) -> list[Action]:
        """The one gate: looks the row up, lets it act, changes the state, keeps story and indexes."""
        before = group.state
        row = TRANSITIONS.get((before, type(event)))
        if row is None:
            raise InvalidTransition(f"no row for {event!r} in {before}: {group!r}; its story: {group.story}")
        after, actions = row(self, group, event, now)
        group.state = after
        group.story.add(now, before, type(event).__name__, after)
        if after in (PENDING, RESCHEDULING):
            self._waiting[group.group_id] = None
        else:
            self._waiting.pop(group.group_id, None)
        if after == REMOVED and before != REMOVED:
            actions += self._buried(group)
        elif after != before:
            actions.append(SaveGroup(group.group_id))
        return actions

    def _create(self, event: Create, now: float) -> list[Action]:
        if event.group_id in self._groups or event.group_id in self._forgotten:
            self.late += 1  # a repetition
            return []
        group = self._groups[event.group_id] = Group(event, now)
        group.attempt = self.attempts_from
        if group.name:
            self._by_name[group.namespace, group.name] = group.group_id
        group.story.add(now, "-", "Create", PENDING)
        self._waiting[group.group_id] = None
        early = self._early.pop(event.group_id, None)
        if early is not None:
            return self._step(group, Remove(group.group_id, early), now)
        return [SaveGroup(group.group_id), *self._try(group, now)]

    def _try_waiting(self, now: float) -> list[Action]:
        return [action for group_id in list(self._waiting) for action in self._try(self._groups[group_id], now)]

    def _try(self, group: Group, now: float) -> list[Action]:
        """Chooses nodes for what lies nowhere; if there are none, says once why that may take for ever."""
        missing = group.missing()
        nodes = bundle_policies.place(self._nodes, missing, group.strategy, group.nodes, group.limits)
        if nodes is None:
            nodes = bundle_policies.possible(self._nodes, missing, group.strategy, group.nodes, group.limits)
            if nodes is None:
                if group.said_infeasible:
                    return []
                group.said_infeasible = True
                return [GroupInfeasible(group.group_id, self._why_infeasible(group))]
            if len(set(nodes.values())) > 1 or group.limits.cpu_fraction < 1:
                # A node's report, or another group's end, brings us here again. (Its line knows of no fraction.)
                return []
        return self._step(group, _Placed(nodes, may_wait=len(set(nodes.values())) == 1), now)

    def _why_infeasible(self, group: Group) -> str:
        views = self._placing.views()
        asks = ", ".join("{" + describe(bundle) + "}" for bundle in group.bundles[:8])
        asks += f" and {len(group.bundles) - 8} more" if len(group.bundles) > 8 else ""
        what = f"{group.title()} can't be placed: it asks for {len(group.bundles)} bundles, {asks}, {group.strategy}"
        if group.strategy == bundle_policies.STRICT_SPREAD and len(group.bundles) > len(views):
            why = f"each on a node of its own, and the cluster has {len(views)}"
        else:
            largest: dict[str, int] = {}
            for view in views:
                for name, units in view.total.items():
                    largest[name] = max(largest.get(name, 0), units)
            asked = {name for bundle in group.bundles for name in bundle}
            offer = {name: largest.get(name, 0) for name in sorted(asked)}
            why = f"and of these the largest of the cluster's {len(views)} node(s) has {describe(offer)} in all"
            alone = [bundle for bundle in group.bundles if not any(_holds(view.total, bundle) for view in views)]
            if group.strategy == bundle_policies.STRICT_PACK:
                alone = [bundle_policies.total_of(dict(enumerate(group.bundles)))]
            if alone and views:
                why += f"; {nearest(alone[0], views)}"
        wanted = [labels.describe(selector) for selector in group.limits.selectors if selector]
        if wanted:
            why += f"; its bundles may only lie where {' or '.join(dict.fromkeys(wanted))}"
        if group.limits.cpu_fraction < 1:
            why += f"; it may have {group.limits.cpu_fraction:g} of each node's CPUs"
        return f"{what}; {why}. It stays pending until more or larger nodes join; remove it, or ask for less"

    # -- rows of TRANSITIONS ------------------------------------------------------------------------------------------

    def _reserve(self, group: Group, event: _Placed, now: float) -> Step:
        group.attempt += 1
        group.asked, group.prepared = {}, set()
        for index, node_id in sorted(event.nodes.items()):
            group.asked.setdefault(node_id, []).append(index)
        actions: list[Action] = []
        for node_id, indexes in group.asked.items():
            bundles = {index: group.bundles[index] for index in indexes}
            self._placing.hold(group.group_id, node_id, bundle_policies.total_of(bundles))
            actions.append(
                PrepareBundles(
                    group.group_id, node_id, group.attempt, bundles, group.job_id, group.title(), event.may_wait
                )
            )
        return RESERVING, actions

    def _prepared(self, group: Group, event: Prepared, now: float) -> Step:
        if event.node_id not in group.asked:
            self.late += 1
            return RESERVING, []
        group.prepared.add(event.node_id)
        if len(group.prepared) < len(group.asked):
            return RESERVING, []
        # All hold what they were asked for, and none can refuse any more: only its death can undo a commit.
        actions: list[Action] = [CommitBundles(group.group_id, node_id) for node_id in group.asked]
        for node_id, indexes in group.asked.items():
            group.nodes.update(dict.fromkeys(indexes, node_id))
        group.asked, group.prepared, group.placed_s = {}, set(), now
        return CREATED, [*actions, GroupCreated(group.group_id)]

    def _refused(self, group: Group, event: Refused, now: float) -> Step:
        """Tried again at the next change and not now: the same nodes would be chosen."""
        actions = self._given_up(group, "another node had no room for its part", but=event.node_id)
        return self._waits(group), actions

    def _node_died_reserving(self, group: Group, event: NodeDied, now: float) -> Step:
        actions = self._given_up(group, "a node that was to hold a part of it died", but=event.node_id)
        self._lose(group, event.node_id)
        return self._waits(group), actions

    def _node_died(self, group: Group, event: NodeDied, now: float) -> Step:
        was_whole = not group.missing()
        self._lose(group, event.node_id)
        return RESCHEDULING, [GroupLost(group.group_id)] if was_whole else []

    def _remove(self, group: Group, event: Remove, now: float) -> Step:
        group.why = event.why
        actions = self._given_up(group, event.why)
        by_node: dict[bytes, list[int]] = {}
        for index, node_id in group.nodes.items():
            by_node.setdefault(node_id, []).append(index)
        for node_id, indexes in by_node.items():
            self._let_go(group, node_id, indexes)
            actions.append(ReturnBundles(group.group_id, node_id, indexes, event.why))
        group.nodes = {}
        return REMOVED, [*actions, GroupRemoved(group.group_id, event.why)]

    def _already(self, group: Group, event: Remove, now: float) -> Step:
        return REMOVED, []

    # -- steps shared by the rows -------------------------------------------------------------------------------------

    def _waits(self, group: Group) -> str:
        return RESCHEDULING if group.placed_s else PENDING

    def _given_up(self, group: Group, why: str, but: bytes = b"") -> list[Action]:
        """The nodes that were asked to prepare give it back; but one, which holds nothing."""
        actions: list[Action] = []
        for node_id, indexes in group.asked.items():
            self._let_go(group, node_id, indexes)
            if node_id != but:
                actions.append(ReturnBundles(group.group_id, node_id, indexes, why))
        group.asked, group.prepared = {}, set()
        return actions

    def _let_go(self, group: Group, node_id: bytes, indexes: Iterable[int]) -> None:
        self._placing.let_go(group.group_id, node_id, bundle_policies.total_of({i: group.bundles[i] for i in indexes}))

    def _lose(self, group: Group, node_id: bytes) -> None:
        group.nodes = {index: node for index, node in group.nodes.items() if node != node_id}

    def _missed(self, group_id: bytes) -> list[Action]:
        if group_id in self._groups or group_id in self._forgotten:
            return []
        self._early.pop(group_id, None)
        return [DropGroup(group_id), GroupRemoved(group_id, NO_RECORD), *self._forget(group_id)]

    def _forget(self, group_id: bytes) -> list[Action]:
        self._forgotten[group_id] = None
        if len(self._forgotten) <= FORGOTTEN_KEPT:
            return []
        return [ForgetGroup(self._forgotten.popitem(last=False)[0])]

    def _buried(self, group: Group) -> list[Action]:
        """Frees the name; forgets the oldest beyond REMOVED_KEPT. Its row goes at once: what is read back is only that
        it was removed."""
        actions: list[Action] = [DropGroup(group.group_id)]
        if self._by_name.get((group.namespace, group.name)) == group.group_id:
            del self._by_name[group.namespace, group.name]
        self._removed.append(group.group_id)
        if len(self._removed) > REMOVED_KEPT:
            forgotten = self._removed.popleft()
            del self._groups[forgotten]
            actions += self._forget(forgotten)
        return actions

    # -- a head that restarts, and proofs -----------------------------------------------------------------------------

    def restore(
        self,
        rows: Iterable[PlacementGroupRow],
        now: float,
        found: Found | None = None,
        removed: Iterable[bytes] = (),
    ) -> list[Action]:
        """Takes what an earlier head wrote. Bundles that lay on nodes that are there still do, unless these say that
        they have given them back (the group was being removed); a reservation that was under way is given up everywhere
        and begun anew, unless nodes had been told to commit it: then all had prepared it. found: what nodes that have
        come back hold; what they hold for nobody is given back. removed: groups that are no more, oldest first, though
        a row may be left."""
        assert not self._groups
        self._forgotten.update(dict.fromkeys(removed))
        alive = {view.node_id for view in self._placing.views()}
        actions: list[Action] = []
        unclaimed = {
            (group_id, node_id): dict(held) for group_id, by in (found or {}).items() for node_id, held in by.items()
        }
        for row in rows:
            if row.group_id in self._forgotten:
                continue
            selectors = [tuple((k, op, tuple(values)) for k, op, values in selector) for selector in row.selectors]
            limits = bundle_policies.Limits(selectors, bytes.fromhex(row.first), row.cpu_fraction)
            made = Create(
                row.group_id, row.job_id, row.bundles, row.strategy, row.name, row.namespace, row.detached, limits
            )  # fmt: skip
            group = self._groups[row.group_id] = Group(made, row.created_s)
            group.attempt = self.attempts_from
            group.placed_s = row.placed_s
            lying = {i: bytes.fromhex(node) for i, node in enumerate(row.nodes) if node}
            group.nodes = {
                i: node for i, node in lying.items() if node in alive and _lies(i, node, row.group_id, found)
            }
            for node_id, there in (found or {}).get(row.group_id, {}).items():
                actions += self._adopt(group, node_id, there, found or {})
                unclaimed[row.group_id, node_id] = {i: s for i, s in there.items() if group.nodes.get(i) != node_id}
            if not group.missing() and not group.placed_s:
                group.placed_s = now
            for node_id in set(group.nodes.values()):
                held = {i: group.bundles[i] for i, node in group.nodes.items() if node == node_id}
                self._placing.hold(group.group_id, node_id, bundle_policies.total_of(held))
            if row.state == RESERVING and found is None:
                unsure = list(group.missing())
                actions += [ReturnBundles(row.group_id, n, unsure, "the head restarted") for n in sorted(alive)]
            group.state = CREATED if not group.missing() else self._waits(group)
            group.story.add(now, "-", "Restored", group.state)
            if group.name:
                self._by_name[group.namespace, group.name] = group.group_id
            if group.state != CREATED:
                self._waiting[group.group_id] = None
            if group.state != row.state:
                actions.append(SaveGroup(group.group_id))
        for (group_id, node_id), rest in unclaimed.items():
            if rest:
                actions.append(
                    ReturnBundles(group_id, node_id, sorted(rest), "the head was restarted, and needs them not")
                )
        return actions + self._try_waiting(now)

    def _adopt(self, group: Group, node_id: bytes, held: Mapping[int, str], found: Found) -> list[Action]:
        """Bundles that a node had prepared, or been told to commit, and whose row was not written any more."""
        everywhere = found.get(group.group_id, {})
        committed = any(state == "COMMITTED" for one in everywhere.values() for state in one.values())
        usable = {i for i, state in held.items() if state == "COMMITTED" or (committed and state == "PREPARED")}
        taken = [i for i in sorted(usable) if i in group.missing()]
        group.nodes.update(dict.fromkeys(taken, node_id))
        prepared = any(state == "PREPARED" and group.nodes.get(i) == node_id for i, state in held.items())
        return [CommitBundles(group.group_id, node_id)] if prepared else []

    def check(self) -> None:
        """Re-derives every index from the groups. Raises: AssertionError."""
        groups = self._groups.values()
        assert set(self._waiting) == {g.group_id for g in groups if g.state in (PENDING, RESCHEDULING)}
        assert set(self._removed) == {g.group_id for g in groups if g.state == REMOVED}
        named = {(g.namespace, g.name): g.group_id for g in groups if g.name and g.state != REMOVED}
        assert self._by_name == named
        held: dict[tuple[bytes, bytes], dict[str, int]] = {}
        for group in groups:
            indexes = range(len(group.bundles))
            assert group.state in STATES and set(group.nodes) <= set(indexes), group
            assert bool(group.asked) == (group.state == RESERVING), group
            assert group.prepared <= group.asked.keys(), group
            if group.state == CREATED:
                assert not group.missing(), group
            if group.state == REMOVED:
                assert not group.nodes, group
            if group.strategy == bundle_policies.STRICT_SPREAD:
                assert len(set(group.nodes.values())) == len(group.nodes), group
            if group.strategy == bundle_policies.STRICT_PACK:
                assert len(set(group.nodes.values())) <= 1, group
            on = {**group.nodes, **{i: node for node, indexes in group.asked.items() for i in indexes}}
            for node_id in set(on.values()):
                there = {i: group.bundles[i] for i, node in on.items() if node == node_id}
                held[group.group_id, node_id] = bundle_policies.total_of(there)
        self._placing.check_holds(held)

    def stats(self) -> dict[str, int]:
        counts = collections.Counter(group.state for group in self._groups.values())
        return {**{state: counts[state] for state in STATES}, "late": self.late}


def _lies(index: int, node_id: bytes, group_id: bytes, found: Found | None) -> bool:
    """Whether a node holds a bundle that the row says lies there; found None: nobody was asked."""
    return found is None or found.get(group_id, {}).get(node_id, {}).get(index) in ("PREPARED", "COMMITTED")


def _holds(total: Mapping[str, int], bundle: Mapping[str, int]) -> bool:
    return all(total.get(name, 0) >= units for name, units in bundle.items())


def _above_zero(amounts: Mapping[str, int]) -> dict[str, int]:
    return {name: max(0, units) for name, units in amounts.items()}


Row = Callable[[PlacementGroups, Group, Any, float], Step]
_P = PlacementGroups

TRANSITIONS: dict[tuple[str, type], Row] = {
    # A node dies or the group goes: drawn first, since they may come at any time.
    (RESERVING, NodeDied): _P._node_died_reserving,
    (CREATED, NodeDied): _P._node_died,
    (RESCHEDULING, NodeDied): _P._node_died,
    (PENDING, Remove): _P._remove,
    (RESERVING, Remove): _P._remove,
    (CREATED, Remove): _P._remove,
    (RESCHEDULING, Remove): _P._remove,
    (REMOVED, Remove): _P._already,
    # The way to a place: chosen, prepared by every node, committed.
    (PENDING, _Placed): _P._reserve,
    (RESCHEDULING, _Placed): _P._reserve,
    (RESERVING, Refused): _P._refused,
    (RESERVING, Prepared): _P._prepared,
}
