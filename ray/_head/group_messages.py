"""What the placement groups' machine is told (events) and what it wants done (actions). Values only; see
`placement_groups.py`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Union

from ray._scheduling import bundle_policies

# -- events -----------------------------------------------------------------------------------------------------------


class Create(NamedTuple):
    group_id: bytes
    job_id: bytes
    bundles: list[dict[str, int]]
    strategy: str = bundle_policies.PACK
    name: str = ""
    namespace: str = ""
    detached: bool = False
    limits: bundle_policies.Limits = bundle_policies.ANYWHERE


class Prepared(NamedTuple):
    """A node holds the bundles that it was asked for."""

    group_id: bytes
    node_id: bytes
    attempt: int


class Refused(NamedTuple):
    """A node has no room for them, and holds nothing."""

    group_id: bytes
    node_id: bytes
    attempt: int
    available: Mapping[str, int]


class Remove(NamedTuple):
    group_id: bytes
    why: str = "remove_placement_group() was called"


class Missed(NamedTuple):
    """Nodes held bundles of it for an earlier head, and nobody who makes it has said Create to this one: the disk has
    lost its row. If it is known, nothing happens."""

    group_id: bytes


class JobEnded(NamedTuple):
    job_id: bytes


class NodeDied(NamedTuple):
    """The nodes of the global scheduler no longer have it."""

    node_id: bytes


class NodesChanged(NamedTuple):
    """A node has joined, or has more free than before: groups that wait may fit now."""


# -- actions ----------------------------------------------------------------------------------------------------------


class PrepareBundles(NamedTuple):
    group_id: bytes
    node_id: bytes
    attempt: int
    bundles: dict[int, dict[str, int]]
    job_id: bytes
    name: str
    may_wait: bool  # in the node's line, until there is room; else it refuses


class CommitBundles(NamedTuple):
    group_id: bytes
    node_id: bytes


class ReturnBundles(NamedTuple):
    """What the node holds or prepares of them comes back; leases inside end, with this cause."""

    group_id: bytes
    node_id: bytes
    indexes: list[int]
    why: str


class GroupRemoved(NamedTuple):
    """Whoever waits for it, or for a place in it, waits for nothing."""

    group_id: bytes
    why: str


class GroupCreated(NamedTuple):
    group_id: bytes


class GroupLost(NamedTuple):
    """Some of its bundles are gone with their node: it is CREATED no more, until they have a new place."""

    group_id: bytes


class GroupInfeasible(NamedTuple):
    """It waits for a node that may never come; said once per group."""

    group_id: bytes
    message: str


class SaveGroup(NamedTuple):
    group_id: bytes


class DropGroup(NamedTuple):
    group_id: bytes


class ForgetGroup(NamedTuple):
    """That it was removed need not be known any more."""

    group_id: bytes


Event = Union[Create, Prepared, Refused, Remove, Missed, JobEnded, NodeDied, NodesChanged]
Action = Union[
    PrepareBundles,
    CommitBundles,
    ReturnBundles,
    GroupRemoved,
    GroupCreated,
    GroupLost,
    GroupInfeasible,
    SaveGroup,
    DropGroup,
    ForgetGroup,
]
