"""A head that takes over: what an earlier one wrote, and what nodes that have come back say of themselves.

In the head, on its loop's thread; reads Redis once, opens nothing. The order is what makes it right: first the rows,
then who is there, then what follows from the difference. What was asked of nodes and lost with the earlier head is
asked again or given up; what nodes have told and it had not written down they tell again afterwards, and whatever of
that it had written down changes nothing. When this head dies in the middle, the next one begins with the same rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from ray._control.rows import ActorRow, ErrorRow, JobRow, NodeRow, PlacementGroupRow
from ray._head import monitor
from ray._head.actor_directory import Claims

if TYPE_CHECKING:
    from ray._head.service import HeadService


class Saved(NamedTuple):
    """The rows of the tables."""

    jobs: list[JobRow]
    actors: list[tuple[ActorRow, bytes]]
    nodes: list[NodeRow]
    groups: list[PlacementGroupRow]
    removed_groups: list[bytes]
    errors: list[list[ErrorRow]]

    def dead(self) -> dict[bytes, str]:
        """Nodes that had been declared dead, and why."""
        return {row.node_id: row.cause for row in self.nodes if row.state == monitor.DEAD}


class Present(NamedTuple):
    """A node that has come back, as it describes itself (ray/_node/presence.py)."""

    node_id: bytes
    number: int
    total: Mapping[str, int]
    labels: Mapping[str, str]
    about: Mapping[str, Any]  # for `node_up`: address, hostname, pid, name
    workers: Iterable[bytes] = ()
    cores: Iterable[bytes] = ()
    actors: Mapping[bytes, int] = {}  # that have, or wait for, a place there -> incarnation
    bundles: Mapping[bytes, Mapping[int, str]] = {}
    followed: Mapping[bytes, Iterable[bytes]] = {}
    jobs: Iterable[bytes] = ()


async def read(head: HeadService) -> Saved:
    """Raises: StoreUnavailable."""
    tables = head.need_tables()
    jobs = await tables.jobs.all()
    return Saved(
        jobs,
        await tables.actors.all([row.job_id for row in jobs]),
        await tables.nodes.all(),
        await tables.placement_groups.all(),
        await tables.removed_groups.all(),
        [await tables.errors.all(row.job_id) for row in jobs],
    )


def restore(head: HeadService, saved: Saved, present: Iterable[Present] | None = None) -> None:
    """Fills the empty machines; `HeadService.reconcile` must follow. present: None: every node is there that was."""
    head.jobs.restore(saved.jobs, {job_id for node in present or () for job_id in node.jobs})
    head.actors.restore(saved.actors)
    head.monitor.restore(saved.nodes, {}, head.steady())
    if present is None:
        for row in head.monitor.all():
            if row.state != monitor.DEAD:
                head.node_joins(row.node_id, row.resources, row.labels)
        head.groups.restore(saved.groups, removed=saved.removed_groups)
    else:
        there = {node.node_id: node for node in present}
        for node in there.values():
            head.node_joins(node.node_id, node.total, node.labels)
        head.groups.restore(saved.groups, _found(there.values()), saved.removed_groups)
    for rows in saved.errors:
        head.errors.restore(rows)


def resume(head: HeadService, saved: Saved, present: list[Present], away: str) -> None:
    """Goes on where the earlier head ended. away: what to say of nodes that have not come back."""
    restore(head, saved, present)
    there = {node.node_id for node in present}
    for node in present:
        about = node.about
        head.node_up(node.node_id, node.total, about["host"], about["hostname"], about, watched=False)
    workers = [tag for node in present for tag in node.workers]
    cores = [tag for node in present for tag in node.cores]
    head.reconcile(workers, {*workers, *cores}, claims(present))
    # Only now: what died with these may have a new place already, as a node has claimed.
    for row in head.monitor.all():
        if row.state != monitor.DEAD and row.node_id not in there:
            head.node_down(row.node_id, away)


def claims(present: Iterable[Present]) -> Claims:
    """Which nodes say that they have a place for which actor, or look for one."""
    found: dict[bytes, dict[bytes, int]] = {}
    for node in present:
        for actor_id, incarnation in node.actors.items():
            found.setdefault(actor_id, {})[node.node_id] = incarnation
    return found


def _found(present: Iterable[Present]) -> dict[bytes, dict[bytes, Mapping[int, str]]]:
    found: dict[bytes, dict[bytes, Mapping[int, str]]] = {}
    for node in present:
        for group_id, bundles in node.bundles.items():
            found.setdefault(group_id, {})[node.node_id] = bundles
    return found
