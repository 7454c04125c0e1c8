"""What the head's service wants of its shell: `Port`. README.md draws when what is called."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from ray._head.group_messages import PrepareBundles


class Port(Protocol):
    """What the shell does for the head. No method blocks or raises; what concerns a dead process is ignored: its death
    is reported anyway."""

    def place_actor(self, actor_id: bytes, spec: dict[str, Any], incarnation: int) -> None:
        """Hold spec["resources"] (spec["placement_resources"] must be free at that moment) and find a worker of its
        own.

        Answered, now or later, by `actor_placed`, then `actor_worker_started`; or by `actor_placement_lost`, and it is
        asked again. spec is the creator's, with "job_id" and "node_id" added."""

    def cancel_placement(self, actor_id: bytes) -> None:
        """It needs no place any more. Also said of actors that never asked for one."""

    def become_actor(
        self, worker_tag: bytes, actor_id: bytes, creation: bytes, incarnation: int, gpu_ids: list[int | str]
    ) -> None:
        """The event of that name, to that worker."""

    def actor_state(
        self, core_tag: bytes, actor_id: bytes, state: str, worker_tag: bytes, incarnation: int, cause: str | bytes
    ) -> None:
        """The event of that name, to that core."""

    def kill_worker(self, worker_tag: bytes, why: str) -> None:
        """SIGKILL; `worker_died` follows as always."""

    def ask_to_exit(self, worker_tag: bytes, why: str) -> None:
        """The event `exit`; SIGKILL if it has not gone within a grace."""

    def expect_exit(self, worker_tag: bytes, why: str) -> None:
        """It leaves by itself (exit_actor): SIGKILL if it has not gone within the same grace."""

    def release_actor(self, actor_id: bytes) -> None:
        """Its worker is dead, or was never there: its resources come back."""

    def job_over(self, job_id: bytes) -> None:
        """Its driver is gone and its last actor dead: its workers have nothing to do any more."""

    def prepare_bundles(self, order: PrepareBundles) -> None:
        """Have that node hold these together. Answered by `bundles_prepared` or `bundles_refused`."""

    def commit_bundles(self, node_id: bytes, group_id: bytes) -> None:
        """What that node has prepared for the group may be used."""

    def return_bundles(self, node_id: bytes, group_id: bytes, indexes: list[int], why: str) -> None:
        """These come back, whatever state they are in; what runs inside ends."""

    def group_removed(self, group_id: bytes, why: str) -> None:
        """To every node: a request that names the group is refused."""

    def group_state(self, core_tag: bytes, group_id: bytes, created: bool) -> None:
        """The event of that name, to that core."""

    def error(self, job_id: bytes, kind: str, message: str, extra: dict[str, Any]) -> None:
        """The event `error`, to the drivers of that job."""

    def catch_up(self, then: Callable[[], None]) -> None:
        """Calls then(), now or later, when each node has said what its processes had sent it before this, or is dead.
        Not called again before that."""

    def node_dead(self, node_id: bytes, cause: str) -> None:
        """It was declared dead: the others hear of it, and it is heard no more."""
