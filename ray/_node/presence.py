"""What a joined node says of itself to a head that has come back (`rejoin`). Node's main thread; no decisions.

The head has the rows of its tables; what only nodes know comes from here: who lives, what each holds, what is to be
said to whom. What has happened here and is not told yet (outbox.py) is told afterwards, in order: so somebody whose end
is still to be told counts as living, and the head hears of it with its true cause.
"""

from __future__ import annotations

from collections.abc import Container
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .outbox import Told
    from .shell import Node

_OF_AN_ACTOR = frozenset(
    ("actor_placed", "actor_worker_started", "actor_placement_lost", "actor_infeasible", "actor_env_failed",
     "actor_refused")
)  # fmt: skip
_OF_A_RESERVATION = frozenset(("bundles_prepared", "bundles_refused"))


def presence(node: Node, cluster_id: str) -> dict[str, Any]:
    """The argument of `rejoin`: what `join` says, and

    cluster_id, number; workers, cores: tags; actors: {id: incarnation} that have, or wait for, a place here; bundles:
    {group: {index: state}}; groups: ids of those, and of others that something here waits for; jobs: {id: what their
    workers need}; followed: {tag: actor ids}.
    """
    from .uplink import about

    assert node.uplink is not None
    told = list(node.uplink.outbox.told())
    workers = [worker.tag for worker in node.pool.workers.values() if worker.tag]
    workers += [entry.args[0] for entry in told if entry.name == "worker_died"]
    cores = list(node.cores.by_tag) + [entry.args[0] for entry in told if entry.name == "driver_gone"]
    return {
        **about(node),
        "cluster_id": cluster_id,
        "number": node.number,
        "workers": workers,
        "cores": cores,
        "actors": dict(node.head_port.placed),
        "bundles": {
            group_id: {index: bundle.state for index, bundle in here.bundles.items()}
            for group_id, here in node.scheduler.bundles.groups.items()
            if here.bundles
        },
        "groups": list(node.scheduler.bundles.groups),
        "jobs": {job_id: job.surroundings() for job_id, job in node.cores.jobs.items()},
        "followed": {tag: sorted(actors) for tag, actors in node.head.followed.items()},
    }


def obsolete(entry: Told, held: Container[bytes]) -> bool:
    """Whether a head that has come back must not hear this any more: reservations were begun anew; and so was the
    search for a place of each actor that this node does not hold (any more). held: those of its `actors` which the
    head let it keep."""
    return entry.name in _OF_A_RESERVATION or (entry.name in _OF_AN_ACTOR and entry.args[0] not in held)
