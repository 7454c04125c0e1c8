"""One placement group as the head knows it: a record, changed by `placement_groups.py` only, and its row for Redis."""

from __future__ import annotations

from ray._control.rows import PlacementGroupRow
from ray._head.group_messages import Create
from ray._scheduling.machine import Story

PENDING, RESERVING, CREATED = "PENDING", "RESERVING", "CREATED"
RESCHEDULING, REMOVED = "RESCHEDULING", "REMOVED"
STATES = (PENDING, RESERVING, CREATED, RESCHEDULING, REMOVED)


class Group:
    """One placement group. Written by PlacementGroups only."""

    __slots__ = (
        "asked", "attempt", "bundles", "created_s", "detached", "group_id", "job_id", "limits", "name", "namespace",
        "nodes", "placed_s", "prepared", "said_infeasible", "state", "story", "strategy", "why",
    )  # fmt: skip

    def __init__(self, event: Create, now: float) -> None:
        self.group_id = event.group_id
        self.job_id = event.job_id
        self.bundles = event.bundles
        self.strategy = event.strategy
        self.name = event.name
        self.namespace = event.namespace
        self.detached = event.detached
        self.limits = event.limits
        self.state = PENDING
        self.nodes: dict[int, bytes] = {}  # bundle -> node that holds it, committed
        self.asked: dict[bytes, list[int]] = {}  # node -> bundles it is asked to prepare, while RESERVING
        self.prepared: set[bytes] = set()
        self.attempt = 0
        self.said_infeasible = False
        self.created_s = now
        self.placed_s = 0.0
        self.why = ""  # it was removed
        self.story = Story()

    def missing(self) -> dict[int, dict[str, int]]:
        return {i: bundle for i, bundle in enumerate(self.bundles) if i not in self.nodes}

    def title(self) -> str:
        name = f" {self.name!r}" if self.name else ""
        return f"placement group{name} ({self.group_id.hex()})"

    def row(self) -> PlacementGroupRow:
        return PlacementGroupRow(
            group_id=self.group_id,
            state=self.state,
            job_id=self.job_id,
            name=self.name,
            namespace=self.namespace,
            strategy=self.strategy,
            detached=self.detached,
            bundles=self.bundles,
            nodes=[self.nodes.get(i, b"").hex() for i in range(len(self.bundles))],
            created_s=self.created_s,
            placed_s=self.placed_s,
            selectors=[list(selector) for selector in self.limits.selectors],
            first=self.limits.first.hex(),
            cpu_fraction=self.limits.cpu_fraction,
        )

    def __repr__(self) -> str:
        return f"<Group {self.group_id.hex()} {self.strategy} {self.state} bundles={len(self.bundles)}>"
