"""What ray/_node knows as `node.head`, on a node that has joined: HeadService's methods, said over the uplink.

Node's main thread. What only tells is an event and returns at once; the head hears it in the order told. What asks is
awaited; if the head goes meanwhile, it is asked again when it is back, or ConnectionClosed is raised if that can't be.
Requests and events of cores that are the head's travel with who asks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from ray._head.requests import EVENTS, RPCS

if TYPE_CHECKING:
    from ray._head.requests import Caller

    from .uplink import Uplink

# The methods of HeadService that a node may call by an event of that name.
TOLD = frozenset(
    (
        *("driver_gone", "worker_died", "actor_placed", "actor_worker_started", "actor_placement_lost"),
        *("actor_infeasible", "actor_env_failed", "actor_refused", "bundles_prepared", "bundles_refused"),
        *("report_error",),
    )
)


class RemoteCaller(NamedTuple):
    """A core of another node, as its node describes it."""

    tag: bytes
    pid: int
    kind: str
    job_id: bytes
    namespace: str


class RemoteHead:
    RPCS, EVENTS = RPCS, EVENTS

    def __init__(self, uplink: Uplink) -> None:
        self._uplink = uplink
        self.followed: dict[bytes, set[bytes]] = {}  # core -> actors of which it is told: a new head must hear of it

    # -- for cores and tools

    async def rpc(self, caller: Caller | None, method: str, args: tuple[Any, ...]) -> Any:
        if caller is not None:
            self._follow(caller, method, args)
        return await self._uplink.rpc("core_rpc", _described(caller), method, args)

    def event(self, caller: Caller, name: str, args: tuple[Any, ...]) -> None:
        self._follow(caller, name, args)
        self._uplink.event("core_event", _described(caller), name, args)

    def _follow(self, caller: Caller, name: str, args: tuple[Any, ...]) -> None:
        if name in ("actor_subscribe", "create_actor"):
            self.followed.setdefault(caller.tag, set()).add(args[0])
        elif name == "actor_unsubscribe":
            self.unfollow(caller.tag, args[0])

    def unfollow(self, tag: bytes, actor_id: bytes) -> None:
        """Nothing more will be said of that actor to that core."""
        actors = self.followed.get(tag)
        if actors is not None:
            actors.discard(actor_id)
            if not actors:
                del self.followed[tag]

    async def new_job(self, tag: bytes, pid: int, info: Mapping[str, Any]) -> bytes:
        """The job of a driver of this node."""
        job_id: bytes = await self._uplink.rpc("register_driver", tag, pid, dict(info))
        return job_id

    async def job_info(self, job_id: bytes) -> dict[str, Any] | None:
        """What the job's workers need. None: it is over."""
        info: dict[str, Any] | None = await self._uplink.rpc("job_info", job_id)
        return info

    async def set_job_env(self, job_id: bytes, text: str) -> None:
        await self._uplink.rpc("set_job_env", job_id, text)

    def job_goes_on(self, job_id: bytes) -> bool:
        """Only the head knows; it says `job_over` in any case."""
        return True

    async def job_will_go_on(self, job_id: bytes) -> bool:
        return bool(await self._uplink.rpc("job_goes_on", job_id))

    # -- told

    def driver_gone(self, tag: bytes, cause: str, intended: bool) -> None:
        self.followed.pop(tag, None)
        self._uplink.event("driver_gone", tag, cause, intended)

    def worker_died(self, tag: bytes, cause: str) -> None:
        self.followed.pop(tag, None)
        self._uplink.event("worker_died", tag, cause)

    def actor_placed(self, actor_id: bytes, node_id: bytes, incarnation: int | None) -> None:
        self._uplink.event("actor_placed", actor_id, node_id, incarnation)

    def actor_worker_started(
        self, actor_id: bytes, worker_tag: bytes, worker_pid: int, gpu_ids: list[int | str], incarnation: int | None
    ) -> None:
        self._uplink.event("actor_worker_started", actor_id, worker_tag, worker_pid, list(gpu_ids), incarnation)

    def actor_infeasible(self, actor_id: bytes, message: str) -> None:
        self._uplink.event("actor_infeasible", actor_id, message)

    def actor_env_failed(self, actor_id: bytes, cause: str) -> None:
        self._uplink.event("actor_env_failed", actor_id, cause)

    def actor_refused(self, actor_id: bytes, error: Exception) -> None:
        self._uplink.event("actor_refused", actor_id, error)

    def bundles_prepared(self, node_id: bytes, group_id: bytes, attempt: int) -> None:
        self._uplink.event("bundles_prepared", node_id, group_id, attempt)

    def bundles_refused(self, node_id: bytes, group_id: bytes, attempt: int, available: Mapping[str, int]) -> None:
        self._uplink.event("bundles_refused", node_id, group_id, attempt, dict(available))

    def report_error(self, job_id: bytes, kind: str, message: str, extra: Mapping[str, Any]) -> None:
        self._uplink.event("report_error", job_id, kind, message, dict(extra))

    async def close(self) -> None:
        self._uplink.close()
        if self._uplink.peer is not None:
            self._uplink.peer.close("the node has ended")


def _described(caller: Caller | None) -> RemoteCaller | None:
    if caller is None:
        return None
    return RemoteCaller(caller.tag, caller.pid, caller.kind, caller.job_id, caller.namespace)
