"""One actor as the head knows it: a record, changed by `actor_directory.py` only, and its row for Redis. No I/O."""

from __future__ import annotations

from ray._control.rows import ActorRow
from ray._head.actor_messages import Created
from ray._scheduling.machine import Story
from ray._scheduling.strategy import plain_strategy, strategy_of_plain

PENDING_PLACEMENT = "PENDING_PLACEMENT"
PENDING_CREATION = "PENDING_CREATION"
ALIVE = "ALIVE"
RESTARTING = "RESTARTING"
DEAD = "DEAD"
STATES = (PENDING_PLACEMENT, PENDING_CREATION, ALIVE, RESTARTING, DEAD)

# Fields of a row that are not the spec's.
_OWN_FIELDS = (
    "actor_id state job_id owner_tag incarnation restarts node_id worker_tag worker_pid created_s died_s cause error"
).split()


class Actor:
    """One actor. Written by ActorDirectory only."""

    __slots__ = (
        "actor_id", "asked_node_id", "cause", "created_s", "creation", "died_s", "gpu_ids", "incarnation", "job_id",
        "kill_why", "node_id", "owner_tag", "placements_lost", "published", "restarts", "spec", "state", "story",
        "subscribers", "worker_pid", "worker_tag",
    )  # fmt: skip

    def __init__(self, event: Created, now: float) -> None:
        self.actor_id = event.actor_id
        self.job_id = event.job_id
        self.owner_tag = event.owner_tag
        self.spec = {key: value for key, value in event.spec.items() if key != "creation"}
        self.creation: bytes = event.spec["creation"]
        self.state = PENDING_PLACEMENT
        self.incarnation = 0
        self.restarts = 0
        self.placements_lost = 0  # since a worker was last there
        self.node_id = b""
        self.asked_node_id = b""  # of the node that was asked for a place last, until it has answered
        self.worker_tag = b""
        self.worker_pid = 0
        self.gpu_ids: list[int | str] = []
        self.cause: str | bytes = ""
        self.kill_why = ""  # somebody asked for its worker's death: what to tell when it comes
        self.created_s = now
        self.died_s = 0.0
        self.subscribers: dict[bytes, None] = {}  # tags, in the order they came
        self.published: tuple[str, bytes, int] = ("PENDING", b"", 0)
        self.story = Story()

    @property
    def name(self) -> str:
        return self.spec.get("name") or ""

    @property
    def namespace(self) -> str:
        return self.spec.get("namespace") or ""

    @property
    def detached(self) -> bool:
        return bool(self.spec.get("detached"))

    @property
    def max_restarts(self) -> int:
        return int(self.spec.get("max_restarts") or 0)

    def public_state(self) -> tuple[str, bytes, int]:
        """(state, worker tag, incarnation), as cores are told: a worker is nobody's business until it takes calls."""
        if self.state == ALIVE:
            return "ALIVE", self.worker_tag, self.incarnation
        if self.state == DEAD:
            return "DEAD", b"", self.incarnation
        return ("RESTARTING" if self.restarts else "PENDING"), b"", self.incarnation

    def row(self) -> ActorRow:
        spec = self.spec
        return ActorRow(
            actor_id=self.actor_id,
            state=self.state,
            job_id=self.job_id,
            owner_tag=self.owner_tag,
            class_name=spec.get("class_name", ""),
            name=self.name,
            namespace=self.namespace,
            detached=self.detached,
            resources=dict(spec.get("resources") or {}),
            placement_resources=dict(spec.get("placement_resources") or {}),
            runtime_env=spec.get("runtime_env") or "",
            max_restarts=self.max_restarts,
            max_task_retries=spec.get("max_task_retries", 0),
            max_concurrency=spec.get("max_concurrency", 1),
            checkpoints=spec.get("checkpoints") or 0,
            calls=dict(spec.get("calls") or {}),
            description=spec.get("description") or b"",
            incarnation=self.incarnation,
            restarts=self.restarts,
            node_id=self.node_id,
            worker_tag=self.worker_tag,
            worker_pid=self.worker_pid,
            created_s=self.created_s,
            died_s=self.died_s,
            cause=self.cause if isinstance(self.cause, str) else "its __init__ raised an exception",
            error=self.cause if isinstance(self.cause, bytes) else b"",
            strategy=plain_strategy(spec.get("strategy")),
        )

    def __repr__(self) -> str:
        name = f" name={self.name!r}" if self.name else ""
        return (
            f"<Actor {self.actor_id.hex()} {self.spec.get('class_name', '?')}{name} {self.state} "
            f"incarnation={self.incarnation} worker={self.worker_tag.hex() or None}>"
        )

    @classmethod
    def from_row(cls, row: ActorRow, creation: bytes) -> Actor:
        """The record that an earlier head saved."""
        spec = {key: value for key, value in row._asdict().items() if key not in _OWN_FIELDS}
        spec["strategy"] = strategy_of_plain(row.strategy)
        if row.state == DEAD:
            creation = b""  # it may not have been dropped any more
        actor = cls(Created(row.actor_id, {**spec, "creation": creation}, row.job_id, row.owner_tag), row.created_s)
        actor.state, actor.incarnation, actor.restarts = row.state, row.incarnation, row.restarts
        actor.node_id, actor.worker_tag, actor.worker_pid = row.node_id, row.worker_tag, row.worker_pid
        actor.cause, actor.died_s = row.error or row.cause, row.died_s
        actor.published = actor.public_state()
        actor.story.add(row.died_s or row.created_s, "-", "Restored", row.state)
        return actor
