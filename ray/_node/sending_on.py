"""What the local scheduler does about other nodes: which requests it sends on, and what it says of those that it can't.

Pure, a part of `local_scheduler.py`, as `group_leases.py` is: the first argument of each is the scheduler. Which node
is the right one, `spillback.py` knows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ray._scheduling.policies import NodeView
from ray._scheduling.strategy import NodeAffinity, NodeLabels, Strategy

from . import lease_messages as lm
from . import pending
from .leases import INFEASIBLE, NOWHERE, TASK, Lease
from .spillback import PATIENCE_S

if TYPE_CHECKING:
    from .local_scheduler import LocalScheduler


def viewed(of: LocalScheduler, event: lm.View, now: float) -> None:
    had_others = bool(of.neighbours)
    of.neighbours.update(event.rows, now)
    if had_others or of.neighbours:  # also when the last other node has left: what waited for it hears so
        look_elsewhere(of, now)


def look_elsewhere(of: LocalScheduler, now: float) -> None:
    """Everything that waits is looked at again. What has room here has been served before."""
    aside = [lease for lease in [*of._infeasible.values(), *of._for_group.values()] if not lease.is_actor]
    waiting: list[Any] = [
        waiter
        for key, waiting in of._lines.classes.items()
        if key.kind == TASK and of.neighbours.any_room(key.shape)
        for line in waiting.lines()
        for waiter in line
    ]
    for lease in aside + waiting:
        if sent_on(of, lease, now) or lease.waits != INFEASIBLE:
            continue
        refusal = not_this_node(of, lease.strategy, lease.name)
        for_good = refusal is not None and refusal[0]
        if (lease.told_infeasible and not for_good) or of.neighbours.has_able(lease.strategy, lease.shape):
            continue
        if refusal is not None and for_good:
            of._actions.append(lm.LeaseRefused(lease.tag, lease.req_id, lm.UNSCHEDULABLE, refusal[1]))
            of._go(lease, "Refused", now)
        else:  # it was to be sent on, and the node that could have met it has left meanwhile
            of._say_infeasible(lease)


def sent_on(of: LocalScheduler, lease: Lease, now: float) -> bool:
    """Sends a queued request to the node that should rather run it, if there is one."""
    if lease.waits == NOWHERE and lease.hops > of.neighbours.hops_max:
        of.neighbours.look_soon(now)  # if it can't be met here either: not at once, see spillback.py
        return False
    if lease.place is not None:
        usable = [b.ledger for b in of.bundles.usable(lease.place.group_id, lease.place.bundle)]
        able = [ledger for ledger in usable if ledger is not None and not ledger.missing(lease.shape)]
        room = lease.waits == NOWHERE and any(not ledger.lacking(lease.shape) for ledger in able)
        number = of.neighbours.with_bundle(lease, bool(able), room)
    else:
        here = as_seen(of, taken=lease.waits != NOWHERE or lease.key in of._lines.classes)
        patient = now - lease.asked_at >= PATIENCE_S
        number = of.neighbours.elsewhere(lease, here, patient)
        if number is None and lease.hops >= of.neighbours.hops_max and not patient:
            of.neighbours.look_soon(now)  # it may go on a little later, whether or not a view comes
    if number is None:
        return False
    of.neighbours.sent(number, lease, now)
    of._actions.append(lm.Spill(lease.tag, lease.req_id, number))
    of._go(lease, "Spilled", now)
    return True


def as_seen(of: LocalScheduler, taken: bool) -> NodeView:
    """This node, in the terms in which others are known. taken: what is free here is for others."""
    return NodeView(of.node_id, of.resources.total, {} if taken else of.resources.available, labels=of.labels)


def not_this_node(of: LocalScheduler, strategy: Strategy, name: str) -> tuple[bool, str] | None:
    """(whether for good, why) a request can't run here for what it says about nodes; None: it can."""
    if isinstance(strategy, NodeAffinity) and not strategy.soft and strategy.node_id != of.node_id:
        return True, pending.no_such_node(name, strategy.node_id)
    if isinstance(strategy, NodeLabels) and not strategy.admits(of.labels):
        return False, pending.no_such_labels(name, strategy, of.labels, not of.neighbours)
    return None
