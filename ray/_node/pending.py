"""Why something is not running yet, in words for a person. Pure: reads what it is given, decides nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ray._protocol.resources import CPU, Shape, describe, describe_one, to_numbers
from ray._scheduling import labels
from ray._scheduling.strategy import NodeLabels

if TYPE_CHECKING:
    from ray._scheduling.node_resources import NodeResources

    from .leases import Lease, SchedulingClass
    from .local_scheduler import LocalScheduler

HOLDERS_SHOWN = 5


def infeasible(name: str, shape: Shape, missing: list[str], total: Mapping[str, int]) -> str:
    """The node never has as much as is asked, even when nothing runs."""
    ask = dict(shape)
    parts = []
    for resource in missing:
        if total.get(resource):
            parts.append(f"it asks for {describe_one(resource, ask[resource])}, "
                         f"and this node has {describe_one(resource, total[resource])} in all")  # fmt: skip
        else:
            parts.append(f"it asks for {describe_one(resource, ask[resource])}, and this node has no {resource!r}")
    return (
        f"{name or 'a task'} can't be scheduled: {'; '.join(parts)}. The node has {describe(total)}. It stays "
        "queued until a node with enough of it joins; cancel it, or ask for less."
    )


def no_such_node(name: str, node_id: bytes) -> str:
    return (
        f"{name or 'a task'} can't be scheduled: it is bound to node {node_id.hex()}, and there is no such node "
        "(any more). ray.nodes() lists those that there are; soft=True lets it run on another."
    )


def no_such_labels(name: str, strategy: NodeLabels, has: Mapping[str, str], alone: bool = True) -> str:
    wanted = " or ".join(labels.describe(selector) for selector in strategy.alternatives)
    if not alone:
        return (
            f"{name or 'a task'} can't be scheduled: no node of the cluster that could hold it is one with {wanted}. "
            "It stays queued until such a node joins; cancel it, or select by other labels."
        )
    return (
        f"{name or 'a task'} can't be scheduled: it asks for a node with {wanted}, and this node's labels are "
        f"{dict(has)}. It stays queued until such a node joins; cancel it, or select by other labels."
    )


def group_removed(lease: Lease, why: str) -> str:
    assert lease.place is not None
    what = lease.name or ("an actor" if lease.is_actor else "a task")
    return f"{what} was to run in placement group {lease.place.group_id.hex()}, which is gone: {why}"


# -- what waits, and for whom -----------------------------------------------------------------------------------------


def waiting(scheduler: LocalScheduler, now: float) -> list[dict[str, Any]]:
    """What waits on this node. Of each: kind ("task", "actor", "bundles"), name, count, resources that one of them
    needs, waited_s of the oldest, placement_group (hexadecimal, or ""), feasible, and why, in words."""
    found = []
    for line in scheduler.classes:
        first = line.first()
        found.append(
            _row(line.key.kind, first.name, line.count(), line.shape, now - line.oldest(), line.key.group_id, True)
            | {"why": _why_in_line(scheduler, line)}
        )
    aside: dict[Any, dict[str, Any]] = {}
    for lease in scheduler.leases():
        if lease.state != "QUEUED" or lease.waits == "in line":
            continue
        group_id = lease.place.group_id if lease.place is not None else b""
        why = lease.why or f"its placement group {group_id.hex()} has no place yet"
        kind = "actor" if lease.is_actor else "task"
        row = aside.setdefault(
            (kind, lease.name, lease.shape, why),
            _row(kind, lease.name, 0, lease.shape, now - lease.asked_at, group_id, not lease.why) | {"why": why},
        )
        row["count"] += 1
    return found + list(aside.values())


def of_actor(name: str, ask: Mapping[str, int], why: str) -> dict[str, Any]:
    """The same of an actor that waits in the head for a node that could hold it."""
    return _row("actor", name, 1, tuple(sorted(ask.items())), 0.0, b"", False) | {"why": why}


def of_group(row: Mapping[str, Any], now_s: float) -> dict[str, Any]:
    """The same of a placement group without a place, from its row in the head's table."""
    total: dict[str, int] = {}
    for bundle in row["bundles"]:
        for name, units in bundle.items():
            total[name] = total.get(name, 0) + units
    shape = tuple(sorted(total.items()))
    feasible = "can't be placed" not in row["why"]
    waited_s = now_s - row["created_s"]
    return _row("placement group", row["name"], 1, shape, waited_s, row["group_id"], feasible) | {"why": row["why"]}


def stuck(scheduler: LocalScheduler, line: SchedulingClass, now: float) -> str:
    """Why this class would wait on even if every task that runs came to its end; empty if it wouldn't.

    What doesn't end by itself: actors, bundles of placement groups, and tasks that are blocked in ray.get or ray.wait,
    but for the CPUs that these have lent.
    """
    ledgers = _ledgers(scheduler, line)
    reasons: list[str] = []
    for ledger in ledgers:
        lasting = _holders(scheduler, ledger, lasting_only=True)
        short = []
        for name, units in line.shape:
            held = sum(holds.get(name, 0) for _, holds in lasting)
            if ledger.total.get(name, 0) - held < units:
                short.append(name)
        if not short:
            return ""
        reasons += [text for text, holds in lasting if any(holds.get(name) for name in short)]
    if not reasons:
        return ""
    first = line.first()
    running = [lease for lease in scheduler.leases() if lease.state in ("HELD", "STAFFING") and not lease.blocked]
    cycle = (
        ""
        if any(not lease.is_actor for lease in running)
        else " No task on this node runs that is not blocked: if they wait for each other, they wait for ever."
    )
    return (
        f"{first.name or 'a task'} has waited {now - line.oldest():.0f} s for {describe(dict(line.shape))}, and "
        f"nothing that runs will free it by coming to its end: {_listed(reasons)}.{cycle}"
    )


def _why_in_line(scheduler: LocalScheduler, line: SchedulingClass) -> str:
    parts = []
    for ledger in _ledgers(scheduler, line):
        lacking = ledger.lacking(line.shape)
        if not lacking:
            return "it is about to be given what it needs, or stands back for one that has waited longer"
        holders = _holders(scheduler, ledger, lasting_only=False)
        for name in lacking:
            free = max(0, ledger.available.get(name, 0))
            holding = [text for text, holds in holders if holds.get(name)]
            parts.append(
                f"it needs {describe_one(name, dict(line.shape)[name])}; of {describe_one(name, ledger.total[name])} "
                f"in all, {free / 10_000:g} is free; {_listed(holding) or 'nobody holds the rest: it is in pieces'}"
            )
    return "; ".join(parts)


def _ledgers(scheduler: LocalScheduler, line: SchedulingClass) -> list[NodeResources]:
    """Those from which this class may draw: the node's, or those of its bundles."""
    if not line.key.group_id:
        return [scheduler.resources]
    usable = scheduler.bundles.usable(line.key.group_id, line.key.bundle)
    return [bundle.ledger for bundle in usable if bundle.ledger is not None]


def _holders(
    scheduler: LocalScheduler, ledger: NodeResources, lasting_only: bool
) -> list[tuple[str, Mapping[str, int]]]:
    """(who, in words; what they hold) of a ledger, those that hold the most first."""
    found: list[tuple[str, Mapping[str, int]]] = []
    for lease in scheduler.leases():
        of = scheduler.resources if lease.bundle is None else lease.bundle.ledger
        if lease.allocation is None or of is not ledger or (lasting_only and not (lease.is_actor or lease.blocked)):
            continue
        units = lease.allocation.units
        holds = {n: u for n, u in units.items() if not (n == CPU and lease.allocation.cpu_lent)}
        if holds:
            blocked = " and is blocked in ray.get or ray.wait" if lease.blocked else ""
            found.append((f"{lease.name or 'a task'} (pid {lease.pid}) holds {describe(holds)}{blocked}", holds))
    if ledger is scheduler.resources:
        for group_id, here in scheduler.bundles.groups.items():
            for bundle in here.bundles.values():
                if bundle.allocation is not None:
                    holds = bundle.allocation.units
                    text = f"placement group {group_id.hex()} holds {describe(holds)} in its bundle {bundle.index}"
                    found.append((text, holds))
    return sorted(found, key=lambda item: -sum(item[1].values()))


def _listed(texts: list[str]) -> str:
    more = f", and {len(texts) - HOLDERS_SHOWN} more" if len(texts) > HOLDERS_SHOWN else ""
    return "; ".join(texts[:HOLDERS_SHOWN]) + more


def _row(
    kind: str, name: str, count: int, shape: Shape, waited_s: float, group_id: bytes, feasible: bool
) -> dict[str, Any]:
    return {
        "kind": kind,
        "name": name,
        "count": count,
        "resources": to_numbers(dict(shape)),
        "waited_s": waited_s,
        "placement_group": group_id.hex(),
        "feasible": feasible,
    }
