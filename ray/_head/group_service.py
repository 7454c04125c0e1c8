"""Placement groups as the head's service sees them: who asks, who waits, what is written. The head's loop's thread.

Carries out what `placement_groups.py` decides: messages to nodes through the Port, rows into Redis, answers to those
that wait for a group, and actors that are to run in one. Creating a group never waits for Redis: rows are written once
a turn of the loop, so that a group that is made, placed and removed in one turn costs no write at all. If a waiter's
process dies, its answer goes nowhere; if Redis dies, rows are written when it is back (`write_anew`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

from ray import exceptions
from ray._head import actor_messages as am
from ray._head import group_messages as gm
from ray._head import group_record as gr
from ray._head import placement_groups as pg
from ray._scheduling.bundle_policies import STRATEGIES, Limits
from ray._scheduling.strategy import GROUP_ID_BYTES, InGroup

if TYPE_CHECKING:
    from ray._head.requests import Caller
    from ray._head.service import HeadService


class GroupService:
    def __init__(self, head: HeadService) -> None:
        self._head = head
        self.groups = pg.PlacementGroups(head.placing)
        self._waiters: dict[bytes, list[asyncio.Future[bool]]] = {}
        self._actors: dict[bytes, dict[bytes, am.Place]] = {}  # by group: those that wait for it to be placed
        self._group_of: dict[bytes, bytes] = {}  # of each of these
        self._makers: dict[bytes, bytes] = {}  # group -> tag of the process that made it, and is told of its state
        self._turn = 0  # actors that may go into any bundle take the group's nodes in turn
        self._unsaved: dict[bytes, None] = {}
        self._saved: set[bytes] = set()  # have a row in Redis
        self._flushing = False

    # -- what cores ask and tell --------------------------------------------------------------------------------------

    def create(self, caller: Caller, group_id: bytes, spec: dict[str, Any]) -> None:
        """Raises: ValueError, TypeError: it makes no sense, or the name is taken."""
        bundles, strategy = spec.get("bundles"), spec.get("strategy")
        if not isinstance(group_id, bytes) or len(group_id) != GROUP_ID_BYTES:
            raise ValueError(f"create_group: group_id must be {GROUP_ID_BYTES} bytes, not {group_id!r}")
        if strategy not in STRATEGIES:
            raise ValueError(f"create_group: strategy must be one of {', '.join(STRATEGIES)}, not {strategy!r}")
        if not isinstance(bundles, list) or not bundles or not all(_is_bundle(bundle) for bundle in bundles):
            raise ValueError(f"create_group: bundles must be dicts of units > 0 by name, not {bundles!r}")
        if not self._head.job_lives(caller.job_id):
            raise ValueError("create_group: the job of the process that asks has ended")
        name, namespace = str(spec.get("name") or ""), str(spec.get("namespace") or caller.namespace)
        if name and self.groups.named(name, namespace) is not None:
            raise ValueError(
                f"placement group name {name!r} is taken in namespace {namespace!r}: "
                f"ray.util.get_placement_group({name!r}) gives it; or choose another"
            )
        detached = bool(spec.get("detached"))
        self._makers[group_id] = caller.tag
        limits = _limits(spec, len(bundles))
        self.handle(gm.Create(group_id, caller.job_id, bundles, strategy, name, namespace, detached, limits))

    def remove(self, caller: Caller, group_id: bytes) -> None:
        if self._makers.get(group_id) == caller.tag:
            del self._makers[group_id]  # it knows
        self.handle(gm.Remove(group_id))

    async def wait(self, group_id: bytes, timeout_s: float | None) -> bool:
        """Whether every bundle has its place before timeout_s have passed. False at once if the group is removed."""
        group = self.groups.get(group_id)
        if group is not None and group.state == gr.CREATED:
            return True
        if self.groups.was_removed(group_id):
            return False
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[bool] = loop.create_future()
        waiters = self._waiters.setdefault(group_id, [])
        waiters.append(waiter)
        timer = None if timeout_s is None else loop.call_later(timeout_s, _settle, waiter, False)
        try:
            return await waiter
        finally:
            if timer is not None:
                timer.cancel()
            if waiter in waiters:
                waiters.remove(waiter)
            if not waiters and self._waiters.get(group_id) is waiters:
                del self._waiters[group_id]

    async def ready(self, group_id: bytes) -> None:
        """Raises: TaskPlacementGroupRemoved: it was removed first."""
        if not await self.wait(group_id, None):
            raise self._removed_error(exceptions.TaskPlacementGroupRemoved, group_id)

    def _removed_error(self, kind: Any, group_id: bytes) -> exceptions.RayError:
        group = self.groups.get(group_id)
        why = f": {group.why}" if group is not None and group.why else ""
        error: exceptions.RayError = kind(f"the placement group is gone{why}", placement_group_id=group_id.hex())
        return error

    def table(self, group_id: bytes | None = None) -> list[dict[str, Any]]:
        """Each group as plain values, for tools; one, or those that are known."""
        found = self.groups.all() if group_id is None else [self.groups.get(group_id)]
        return [self._plain(group) for group in found if group is not None]

    def _plain(self, group: gr.Group) -> dict[str, Any]:
        row = group.row()._asdict()
        return {
            **row,
            "attempts": group.attempt - self.groups.attempts_from,
            "why": group.why or self._why_pending(group),
        }

    def _why_pending(self, group: gr.Group) -> str:
        return self.groups.why_waiting(group) if group.state in (gr.PENDING, gr.RESCHEDULING) else ""

    # -- actors in groups ---------------------------------------------------------------------------------------------

    def place_actor(self, action: am.Place, place: InGroup) -> None:
        """On the node of its bundle, now or when there is one."""
        group = self.groups.get(place.group_id)
        if self.groups.was_removed(place.group_id):
            self._refuse_actor(action.actor_id, place.group_id)
            return
        nodes = []
        if group is not None and group.state in (gr.CREATED, gr.RESCHEDULING):
            hold = action.spec.get("resources") or {}
            wanted = range(len(group.bundles)) if place.bundle < 0 else [place.bundle]
            nodes = [group.nodes[i] for i in wanted if i in group.nodes and _holds(group.bundles[i], hold)]
            if not nodes:  # none could hold it: its node says so
                nodes = [group.nodes[i] for i in wanted if i in group.nodes]
        if not nodes:
            self._actors.setdefault(place.group_id, {})[action.actor_id] = action
            self._group_of[action.actor_id] = place.group_id
            return
        self._turn += 1
        self._head.assign_actor(action.actor_id, nodes[self._turn % len(nodes)])

    def drop_actor(self, actor_id: bytes) -> None:
        """It waits no more."""
        group_id = self._group_of.pop(actor_id, None)
        if group_id is not None:
            del self._actors[group_id][actor_id]
            if not self._actors[group_id]:
                del self._actors[group_id]

    def _refuse_actor(self, actor_id: bytes, group_id: bytes) -> None:
        error = self._removed_error(exceptions.ActorPlacementGroupRemoved, group_id)
        self._head.actor_unplaceable(actor_id, error)

    # -- the machine --------------------------------------------------------------------------------------------------

    def handle(self, event: gm.Event) -> None:
        self._head.run(lambda: self.groups.handle(event, self._head.now()))

    def carry_out(self, action: Any) -> None:
        port = self._head.port
        if isinstance(action, gm.PrepareBundles):
            port.prepare_bundles(action)
        elif isinstance(action, gm.CommitBundles):
            port.commit_bundles(action.node_id, action.group_id)
        elif isinstance(action, gm.ReturnBundles):
            port.return_bundles(action.node_id, action.group_id, action.indexes, action.why)
        elif isinstance(action, gm.GroupInfeasible):
            group = self.groups.get(action.group_id)
            assert group is not None
            extra = {"placement_group_id": group.group_id.hex()}
            self._head.report_error(group.job_id, "placement_group_infeasible", action.message, extra)
        elif isinstance(action, gm.GroupCreated):
            self._head.lasting.say(lambda: self._created(action.group_id))
        elif isinstance(action, gm.GroupRemoved):
            # Nodes refuse for good what names it: a head that takes over must know why.
            self._head.lasting.say(lambda: port.group_removed(action.group_id, action.why))
            self._wake(action.group_id, False)
            self._tell_maker(action.group_id, False)
            self._makers.pop(action.group_id, None)
            for actor_id in list(self._actors.get(action.group_id, ())):
                self.drop_actor(actor_id)
                self._refuse_actor(actor_id, action.group_id)
        elif isinstance(action, gm.GroupLost):
            self._tell_maker(action.group_id, False)
        elif isinstance(action, gm.ForgetGroup):
            if self._head.lasts and self._head.tables is not None:
                self._head.tables.removed_groups.remove(action.group_id)
        else:  # SaveGroup, DropGroup
            self._unsaved[action.group_id] = None
            if not self._flushing and self._head.tables is not None:
                self._flushing = True
                self._head.later(0.0, self.flush)

    def _created(self, group_id: bytes) -> None:
        """Everybody hears of it when a head that takes over would know it, too."""
        group = self.groups.get(group_id)
        if group is None or group.state != gr.CREATED:
            return  # it has lost its place meanwhile, or was removed
        self._wake(group_id, True)
        self._tell_maker(group_id, True)
        for place in list(self._actors.get(group_id, {}).values()):
            self.drop_actor(place.actor_id)
            self._head.place(place)

    def _wake(self, group_id: bytes, created: bool) -> None:
        for waiter in self._waiters.pop(group_id, ()):
            _settle(waiter, created)

    def _tell_maker(self, group_id: bytes, created: bool) -> None:
        tag = self._makers.get(group_id)
        if tag is not None:
            self._head.port.group_state(tag, group_id, created)

    def missed(self, group_ids: Iterable[bytes]) -> None:
        """Nodes held bundles of these as the earlier head ended. What processes had asked that one, and it had not
        answered, they ask again: then whichever nobody knows is lost."""
        unknown = [i for i in group_ids if self.groups.get(i) is None and not self.groups.was_removed(i)]
        if unknown:
            self._head.port.catch_up(partial(self._all_asked_again, unknown))

    def _all_asked_again(self, group_ids: list[bytes]) -> None:
        for group_id in group_ids:
            self.handle(gm.Missed(group_id))

    # -- Redis --------------------------------------------------------------------------------------------------------

    def flush(self) -> None:
        """Writes what has changed since the last turn of the loop."""
        self._flushing = False
        unsaved, self._unsaved = self._unsaved, {}
        tables = self._head.tables
        if tables is None:
            return
        gone = []
        removed = []
        for group_id in unsaved:
            group = self.groups.get(group_id)
            if group is not None and group.state != gr.REMOVED:
                tables.placement_groups.put(group.row()._replace(maker=self._makers.get(group_id, b"")))
                self._saved.add(group_id)
                continue
            removed.append(group_id)
            if group_id in self._saved:
                self._saved.discard(group_id)
                gone.append(group_id)
        if self._head.lasts:
            tables.removed_groups.put(removed, self._head.now())
        tables.placement_groups.remove(*gone)

    def write_anew(self) -> None:
        tables = self._head.tables
        if self._head.lasts and tables is not None:
            tables.removed_groups.put((group_id for group_id, _ in self.groups.removed()), self._head.now())
        for group in self.groups.all():
            if group.state != gr.REMOVED:
                self._unsaved[group.group_id] = None
        self.flush()

    def restore(self, rows: Iterable[Any], found: pg.Found | None = None, removed: Iterable[bytes] = ()) -> None:
        """found, removed: as for PlacementGroups.restore. Whoever made a group is told again how it is."""
        saved = list(rows)
        self._saved.update(row.group_id for row in saved)
        self._makers.update((row.group_id, row.maker) for row in saved if row.maker)
        self._head.run(lambda: self.groups.restore(saved, self._head.now(), found, removed))
        for group in self.groups.all():
            self._tell_maker(group.group_id, group.state == gr.CREATED)


def _settle(waiter: asyncio.Future[bool], value: bool) -> None:
    if not waiter.done():
        waiter.set_result(value)


def _is_bundle(given: object) -> bool:
    return (
        isinstance(given, dict)
        and bool(given)
        and all(isinstance(name, str) and isinstance(units, int) and units > 0 for name, units in given.items())
    )


def _limits(spec: dict[str, Any], n_bundles: int) -> Limits:
    """Raises: ValueError: it is none."""
    selectors, first, fraction = spec.get("selectors") or (), spec.get("first") or b"", spec.get("cpu_fraction", 1.0)
    if len(selectors) not in (0, n_bundles) or not all(len(term) == 3 for terms in selectors for term in terms):
        raise ValueError(f"create_group: selectors must be one for each of {n_bundles} bundles, not {selectors!r}")
    if not isinstance(first, bytes) or not isinstance(fraction, float) or not 0 < fraction <= 1:
        raise ValueError(f"create_group: first={first!r}, cpu_fraction={fraction!r}: expected bytes and a share")
    return Limits(tuple(selectors), first, fraction)


def _holds(bundle: dict[str, int], ask: dict[str, int]) -> bool:
    return all(bundle.get(name, 0) >= units for name, units in ask.items())
