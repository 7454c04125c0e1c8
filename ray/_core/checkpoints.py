"""Checkpoints of an actor's state, so that its next process goes on where they end. LIBRARY inside an actor's worker.

Main thread, between two calls: `start_actor` restores after `__init__` of a restarted actor, `run_one` says after each
call that it has run, before the answer leaves. So when a checkpoint is made after every call, nothing that was
answered is ever lost. What is kept goes to the head as one value that replaces the one before, in Redis: it is all
there or not at all, whoever dies in between, and it ends with the actor.

Two ways, one for each kind of class:

    checkpoint_interval=n         Snapshots: every n calls the whole state is kept, in that value itself
    a ray.actor.Checkpointable    Milestones: the class says when, and keeps its state where it likes; the value is the
                                  list of ids under which it did

A checkpoint that fails is told to the driver and made again later; the calls go on. A restore that fails ends the actor
as an error of its `__init__` would: to go on from nothing would be wrong.
"""

from __future__ import annotations

import pickle
import time
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, NamedTuple

from ray._protocol.ids import ActorCheckpointID, ActorID

if TYPE_CHECKING:
    from ray._core.engine import Engine

CLASS_DECIDES = -1  # as an interval: the class is a Checkpointable
KEPT = 20  # ids of Milestones; older ones have expired
BYTES_MAX = 64 * 1024 * 1024  # of a Snapshot: it passes through the node process and Redis, which others need too


class CheckpointContext(NamedTuple):
    """What `should_checkpoint` is told."""

    actor_id: ActorID
    num_tasks_since_last_checkpoint: int
    time_elapsed_ms_since_last_checkpoint: int


class Checkpoint(NamedTuple):
    """One of those that `load_checkpoint` may choose from."""

    checkpoint_id: ActorCheckpointID
    timestamp: int  # when it was made, in milliseconds since the epoch


class Checkpointable(ABC):
    """An actor class that keeps its own state: inherit from it, and give `@ray.remote` a max_restarts.

    After each call `should_checkpoint` is asked; if it says True, `save_checkpoint` is called. A restarted actor runs
    `__init__`, then `load_checkpoint`. Calls run one at a time.
    """

    @abstractmethod
    def should_checkpoint(self, checkpoint_context: CheckpointContext) -> bool:
        """Whether to make one now."""

    @abstractmethod
    def save_checkpoint(self, actor_id: ActorID, checkpoint_id: ActorCheckpointID) -> None:
        """Keeps the state somewhere that this process' death doesn't reach, under this id."""

    @abstractmethod
    def load_checkpoint(self, actor_id: ActorID, available_checkpoints: list[Checkpoint]) -> ActorCheckpointID | None:
        """Takes the state up again. available_checkpoints: not empty, the newest first.

        Returns: the id of the one that was loaded; None to go on from `__init__`.
        """

    @abstractmethod
    def checkpoint_expired(self, actor_id: ActorID, checkpoint_id: ActorCheckpointID) -> None:
        """There are 20 newer ones: what was kept under this id is needed no more."""


class Checkpoints(ABC):
    """Of the actor that this process is."""

    def __init__(self, engine: Engine, actor: Any, actor_id: bytes) -> None:
        self._engine = engine
        self._actor = actor
        self._actor_id = actor_id
        self._calls = 0  # since the last checkpoint

    def restore(self) -> None:
        """In a restarted actor, after `__init__`. Raises: what the class raises, and StoreUnavailable."""
        kept = self._engine.rpc("actor_checkpoint", self._actor_id)
        if kept is not None:
            self._take_up(pickle.loads(kept))

    def after_call(self) -> None:
        """A call has run, and isn't answered yet."""
        self._calls += 1
        try:
            self._consider()
        except Exception as error:  # the class's own code raised, or Redis is away: the actor goes on
            name = type(self._actor).__name__
            self._engine.event(
                "push_error",
                "checkpoint",
                f"no checkpoint of actor {name} ({self._actor_id.hex()}) was made: {type(error).__name__}: {error}",
                {"actor_id": self._actor_id.hex()},
            )

    def _keep(self, value: Any) -> None:
        self._engine.rpc("save_actor_checkpoint", self._actor_id, pickle.dumps(value, 5))
        self._calls = 0

    @abstractmethod
    def _take_up(self, kept: Any) -> None: ...

    @abstractmethod
    def _consider(self) -> None: ...


class Snapshots(Checkpoints):
    """The state, every `interval` calls: what `__ray_save__` returns, or without it the instance's attributes."""

    def __init__(self, engine: Engine, actor: Any, actor_id: bytes, interval: int) -> None:
        super().__init__(engine, actor, actor_id)
        self._interval = interval
        self._by_hooks = hasattr(actor, "__ray_save__")

    def _take_up(self, kept: bytes) -> None:
        state = pickle.loads(kept)
        if self._by_hooks:
            self._actor.__ray_restore__(state)
        else:
            self._actor.__dict__.clear()
            self._actor.__dict__.update(state)

    def _consider(self) -> None:
        if self._calls % self._interval:
            return  # also after a failure: the next try comes an interval later
        import cloudpickle

        state = cloudpickle.dumps(self._actor.__ray_save__() if self._by_hooks else self._actor.__dict__, 5)
        if len(state) > BYTES_MAX:
            raise ValueError(
                f"the state has {len(state)} bytes pickled, and {BYTES_MAX} may be kept; let the class inherit from "
                "ray.actor.Checkpointable and write its state where it likes"
            )
        self._keep(state)


class Milestones(Checkpoints):
    """Ids under which a Checkpointable has kept its state."""

    def __init__(self, engine: Engine, actor: Checkpointable, actor_id: bytes) -> None:
        super().__init__(engine, actor, actor_id)
        self._made: list[Checkpoint] = []  # the newest first
        self._last_s = time.monotonic()

    def _take_up(self, kept: list[tuple[bytes, int]]) -> None:
        self._made = [Checkpoint(ActorCheckpointID(key), timestamp) for key, timestamp in kept]
        chosen = self._actor.load_checkpoint(ActorID(self._actor_id), list(self._made))
        if chosen is not None and all(chosen != one.checkpoint_id for one in self._made):
            raise ValueError(
                f"load_checkpoint returned {chosen!r}: expected the checkpoint_id of one of available_checkpoints, or "
                "None"
            )

    def _consider(self) -> None:
        elapsed_ms = int((time.monotonic() - self._last_s) * 1000)
        actor_id = ActorID(self._actor_id)
        if not self._actor.should_checkpoint(CheckpointContext(actor_id, self._calls, elapsed_ms)):
            return
        new = Checkpoint(ActorCheckpointID.from_random(), int(time.time() * 1000))
        self._actor.save_checkpoint(actor_id, new.checkpoint_id)
        # In this order a death in between leaves a checkpoint that nobody knows, never one that is known and not there.
        made, expired = [new, *self._made][:KEPT], self._made[KEPT - 1 :]
        self._keep([(one.checkpoint_id.binary(), one.timestamp) for one in made])
        self._made, self._last_s = made, time.monotonic()
        for one in expired:
            self._actor.checkpoint_expired(actor_id, one.checkpoint_id)


def of_actor(engine: Engine, actor: Any, actor_id: bytes, interval: int) -> Checkpoints:
    """interval: n, or CLASS_DECIDES."""
    if interval == CLASS_DECIDES:
        return Milestones(engine, actor, actor_id)
    return Snapshots(engine, actor, actor_id, interval)
