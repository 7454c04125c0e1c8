"""The head's Port over all nodes of a cluster: each call goes to the node that it concerns. Head's node, main thread.

To the head's own node it is a call, to another an event of the same name on its uplink, in order. What concerns a node
that is gone is dropped: its death is on its way to the head, or was it that said so. By what a call is routed: an actor
by the node it was given to last, a process by the number its tag begins with, a job's driver by its tag.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ray._protocol.ids import node_number

if TYPE_CHECKING:
    from ray._head.group_messages import PrepareBundles

    from .cluster_head import ClusterHead
    from .head_port import HeadPort


class ClusterPort:
    def __init__(self, own: HeadPort, cluster: ClusterHead) -> None:
        self._own = own
        self._cluster = cluster
        self._actor_at: dict[bytes, int] = {}  # actor -> number of the node that has, or looks for, a place for it

    # -- by node

    def place_actor(self, actor_id: bytes, spec: dict[str, Any], incarnation: int) -> None:
        number = self._cluster.number_of(spec["node_id"])
        if number is None:
            return  # it has died: NodeDead has reached the directory, or follows
        self._actor_at[actor_id] = number
        self._cluster.tell_job(number, spec["job_id"])
        self._send(number, "place_actor", actor_id, spec, incarnation)

    def actor_is_at(self, actor_id: bytes, number: int) -> None:
        """An earlier head had given it to that node, which still has it, or looks for its place."""
        self._actor_at[actor_id] = number

    def cancel_placement(self, actor_id: bytes) -> None:
        self._release("cancel_placement", actor_id)

    def release_actor(self, actor_id: bytes) -> None:
        self._release("release_actor", actor_id)

    def _release(self, name: str, actor_id: bytes) -> None:
        number = self._actor_at.pop(actor_id, None)
        if number is not None:
            self._send(number, name, actor_id)

    def prepare_bundles(self, order: PrepareBundles) -> None:
        number = self._cluster.number_of(order.node_id)
        if number == self._cluster.own:
            self._own.prepare_bundles(order)
        elif number is not None:
            self._cluster.tell_job(number, order.job_id)
            fields = (order.group_id, order.attempt, order.bundles, order.job_id, order.name, order.may_wait)
            self._cluster.tell(number, "prepare_bundles", *fields)

    def commit_bundles(self, node_id: bytes, group_id: bytes) -> None:
        self._send(self._cluster.number_of(node_id), "commit_bundles", node_id, group_id)

    def return_bundles(self, node_id: bytes, group_id: bytes, indexes: list[int], why: str) -> None:
        self._send(self._cluster.number_of(node_id), "return_bundles", node_id, group_id, indexes, why)

    # -- by process

    def become_actor(
        self, worker_tag: bytes, actor_id: bytes, creation: bytes, incarnation: int, gpu_ids: list[int | str]
    ) -> None:
        self._send(node_number(worker_tag), "become_actor", worker_tag, actor_id, creation, incarnation, gpu_ids)

    def actor_state(
        self, core_tag: bytes, actor_id: bytes, state: str, worker_tag: bytes, incarnation: int, cause: str | bytes
    ) -> None:
        args = (core_tag, actor_id, state, worker_tag, incarnation, cause)
        self._send(node_number(core_tag), "actor_state", *args)

    def kill_worker(self, worker_tag: bytes, why: str) -> None:
        self._send(node_number(worker_tag), "kill_worker", worker_tag, why)

    def ask_to_exit(self, worker_tag: bytes, why: str) -> None:
        self._send(node_number(worker_tag), "ask_to_exit", worker_tag, why)

    def expect_exit(self, worker_tag: bytes, why: str) -> None:
        self._send(node_number(worker_tag), "expect_exit", worker_tag, why)

    def group_state(self, core_tag: bytes, group_id: bytes, created: bool) -> None:
        self._send(node_number(core_tag), "group_state", core_tag, group_id, created)

    # -- by job, or to all

    def error(self, job_id: bytes, kind: str, message: str, extra: dict[str, Any]) -> None:
        self._send(self._cluster.number_of_driver(job_id), "error", job_id, kind, message, extra)

    def job_over(self, job_id: bytes) -> None:
        self._cluster.job_over(job_id)
        self._to_all("job_over", job_id)

    def group_removed(self, group_id: bytes, why: str) -> None:
        self._to_all("group_removed", group_id, why)

    def catch_up(self, then: Callable[[], None]) -> None:
        self._cluster.catching_up.begin(self._cluster.uplinks, then)

    def node_dead(self, node_id: bytes, cause: str) -> None:
        self._cluster.node_dead(node_id, cause)

    def _send(self, number: int | None, name: str, *args: Any) -> None:
        if number == self._cluster.own:
            getattr(self._own, name)(*args)
        elif number is not None:
            self._cluster.tell(number, name, *args)

    def _to_all(self, name: str, *args: Any) -> None:
        for number in (self._cluster.own, *self._cluster.uplinks):
            self._send(number, name, *args)
