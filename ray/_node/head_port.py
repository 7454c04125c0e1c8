"""What ray/_head asks of this node (its Port): places and workers for actors, messages to cores. Node's main thread.

Plain methods that never block and never raise for a dead peer: that it is dead is on its way to the head already.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ray._scheduling.strategy import InGroup, parse_strategy

from . import lease_messages as lm
from . import worker_messages as wm

if TYPE_CHECKING:
    from ray._head.group_messages import PrepareBundles

    from .shell import Node


class HeadPort:
    def __init__(self, node: Node) -> None:
        self._node = node
        self.placed: dict[bytes, int] = {}  # actors that have, or wait for, a place here -> their incarnation
        self._became: dict[bytes, bytes] = {}  # of these -> the worker that was told to become it

    def place_actor(self, actor_id: bytes, spec: dict[str, Any], incarnation: int) -> None:
        node = self._node
        self.placed[actor_id] = incarnation
        strategy = parse_strategy(spec.get("strategy"))
        request = lm.ActorRequested(
            actor_id,
            spec["job_id"],
            spec.get("resources") or {},
            spec.get("placement_resources") or {},
            f"actor {spec.get('class_name', '')}",
            place=strategy if isinstance(strategy, InGroup) else None,
            retriable=not 0 <= (spec.get("max_restarts") or 0) <= incarnation,
        )
        node.envs.request(("actor", actor_id), spec.get("runtime_env") or "", request)

    def cancel_placement(self, actor_id: bytes) -> None:
        self.release_actor(actor_id)

    def release_actor(self, actor_id: bytes) -> None:
        if self.placed.pop(actor_id, None) is not None:
            self._became.pop(actor_id, None)
            self._node.envs.withdraw(("actor", actor_id))
            self._node.feed(self._node.scheduler, lm.ActorReleased(actor_id))

    def become_actor(
        self, worker_tag: bytes, actor_id: bytes, creation: bytes, incarnation: int, gpu_ids: list[int | str]
    ) -> None:
        core = self._node.cores.by_tag.get(worker_tag)
        if (
            core is not None and self._became.get(actor_id) != worker_tag
        ):  # else said twice, by a head that was restarted
            self._became[actor_id] = worker_tag
            core.tell("become_actor", actor_id, creation, incarnation, gpu_ids)

    def actor_state(
        self, core_tag: bytes, actor_id: bytes, state: str, worker_tag: bytes, incarnation: int, cause: str | bytes
    ) -> None:
        if state == "DEAD" and self._node.uplink is not None:
            self._node.head.unfollow(core_tag, actor_id)
        core = self._node.cores.by_tag.get(core_tag)
        if core is not None:
            core.tell("actor_state", actor_id, state, worker_tag, incarnation, cause)

    def kill_worker(self, worker_tag: bytes, why: str) -> None:
        worker_id = self._worker_id(worker_tag)
        if worker_id:
            self._node.feed(self._node.pool, wm.KillAsked(worker_id, why))

    def ask_to_exit(self, worker_tag: bytes, why: str) -> None:
        worker_id = self._worker_id(worker_tag)
        if worker_id:
            self._node.feed(self._node.pool, wm.ExitAsked(worker_id, why))

    def expect_exit(self, worker_tag: bytes, why: str) -> None:
        worker_id = self._worker_id(worker_tag)
        if worker_id:
            self._node.feed(self._node.pool, wm.ExitAsked(worker_id, why, ask=False))

    def job_over(self, job_id: bytes) -> None:
        self._node.job_over(job_id)

    def prepare_bundles(self, order: PrepareBundles) -> None:
        asked = lm.PrepareBundles(
            order.group_id, order.attempt, order.bundles, order.job_id, order.name, order.may_wait
        )  # fmt: skip
        self._node.feed(self._node.scheduler, asked)

    def commit_bundles(self, node_id: bytes, group_id: bytes) -> None:
        self._node.feed(self._node.scheduler, lm.CommitBundles(group_id))

    def return_bundles(self, node_id: bytes, group_id: bytes, indexes: list[int], why: str) -> None:
        self._node.feed(self._node.scheduler, lm.ReturnBundles(group_id, indexes, why))

    def group_removed(self, group_id: bytes, why: str) -> None:
        self._node.feed(self._node.scheduler, lm.GroupRemoved(group_id, why))

    def group_state(self, core_tag: bytes, group_id: bytes, created: bool) -> None:
        core = self._node.cores.by_tag.get(core_tag)
        if core is not None:
            core.tell("group_state", group_id, created)

    def error(self, job_id: bytes, kind: str, message: str, extra: dict[str, Any]) -> None:
        for core in self._node.cores.drivers_of(job_id):
            core.tell("error", kind, message, extra)

    def catch_up(self, then: Callable[[], None]) -> None:
        """At once: what this node's sockets hold is read before any timer is served."""
        then()

    def node_dead(self, node_id: bytes, cause: str) -> None:
        """Nothing: without other nodes there is only this one, and its death is ours."""

    def _worker_id(self, tag: bytes) -> int:
        core = self._node.cores.by_tag.get(tag)
        if core is not None:
            return core.worker_id
        # its connection may have ended before its process has
        return next((w.worker_id for w in self._node.pool.workers.values() if w.tag == tag), 0)
