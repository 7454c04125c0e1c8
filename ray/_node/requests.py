"""What a connected process may say to the node, and what is done about it. Node's main thread.

Before `register` nothing else is understood. Arguments come from processes of the same session, but may still be
nonsense (a version mixed up, a bug): what cannot be used raises here, which the channel logs or returns to the
asker; no machine sees it.
"""

from __future__ import annotations

import asyncio
import inspect
import sys
import time
from typing import TYPE_CHECKING, Any

from ray._protocol.frames import ROLE_DRIVER, ROLE_NODE, ROLE_TOOL, ROLE_WORKER, TAG_BYTES
from ray._protocol.ids import node_number
from ray._scheduling.strategy import parse_strategy

from . import guests, pending, registration
from . import lease_messages as lm
from . import worker_messages as wm
from .cores import STILL_RUNS, Core
from .gathering import GATHERED, OF_NODES
from .store_row import store_row
from .tool_requests import ToolRequests

if TYPE_CHECKING:
    from .shell import Node


class Requests:
    def __init__(self, node: Node) -> None:
        self._node = node
        self.of_tools = ToolRequests(node)
        self._head_rpcs: frozenset[str] = frozenset()
        self._head_events: frozenset[str] = frozenset()

    def use_head(self, rpcs: frozenset[str], events: frozenset[str]) -> None:
        self._head_rpcs, self._head_events = rpcs, events

    def on_peer(self, peer: Any) -> None:
        """A connection that has proved itself: from now on it may register."""
        _Conversation(self, peer)

    # -- requests with an answer ------------------------------------------------------------------------------

    def rpc(self, core: Core | None, method: str, args: tuple[Any, ...]) -> Any:
        if core is not None and core.kind == "guest" and method not in guests.RPCS:
            raise PermissionError(f"{method}: ask your own node")
        if method in self._head_rpcs:
            return self._node.head.rpc(core, method, args)
        if core is not None and method in OF_NODES:
            raise PermissionError(f"{method}: only nodes ask each other that")
        if method in GATHERED and (self._node.cluster is not None or self._node.uplink is not None):
            return self._node.gathering.ask(method, args)
        handler = getattr(self, "rpc_" + method, None)
        if handler is None:
            raise AttributeError(f"the node has no method {method!r}")
        return handler(core, *args)

    def register(self, peer: Any, info: dict[str, Any], job_id: bytes | None = None) -> tuple[Core, dict[str, Any]]:
        """job_id: of a driver on a node that has joined: as the head has answered."""
        node = self._node
        kind, tag = info.get("kind"), info.get("tag")
        if node.ending is not None:
            raise RuntimeError("the session is ending")
        role = {"driver": ROLE_DRIVER, "worker": ROLE_WORKER}.get(str(kind))
        if role is None or role != peer.role:
            raise ValueError(f"register: kind must be 'driver' or 'worker' as said in the hello, not {kind!r}")
        if not isinstance(tag, bytes) or len(tag) != TAG_BYTES or tag != peer.tag:
            raise ValueError("register: tag must be the 16 bytes of the hello")
        if tag in node.cores.by_tag:
            raise ValueError("this session has a program with the same object_id_seed: give another, or none")
        if kind == "worker":
            core = registration.register_worker(node, peer, tag, info)
        else:
            core = registration.register_driver(node, peer, tag, info, job_id)
        answer = {
            "node_id": node.node_id,
            "number": node.number,
            "nodes": node.nodes,
            "job_id": core.job_id,
            "session_dir": node.session.folder,
            "plasma_socket": node.session.plasma_socket,
            "plasma_capacity": node.store.memory_bytes if node.store else 0,
            "resources": dict(node.scheduler.resources.total),
            "node_ip": node.node_ip,
            "namespace": core.namespace,
            "runtime_env": registration.env_of(node, core),
            "settings": node.settings.overrides(),
            "storage": node.config.get("storage"),
            "python_version": tuple(sys.version_info[:3]),
            "metrics_export_port": node.metrics_port,
        }
        return core, answer

    async def rpc_worker_exit_cause(self, core: Core, tag: bytes) -> str:
        """Of a worker to which that core had a connection. If it lives, what it was leased for is over nevertheless."""
        cause = await self._node.exit_cause(tag)
        worker = self._node.cores.by_tag.get(tag)
        if cause == STILL_RUNS and worker is not None and worker.worker_id:
            self._schedule(lm.HolderCutOff(core.tag, worker.worker_id))
        return cause

    async def rpc_worker_gone(self, core: Core, tag: bytes) -> str:
        return await self._node.exit_cause(tag, None)

    def rpc_cluster_resources(self, core: Core) -> dict[str, int]:
        return dict(self._node.scheduler.resources.total)

    def rpc_available_resources(self, core: Core) -> dict[str, int]:
        # CPUs taken back from a task that was blocked may be overdrawn for a while: that is none, to a user
        return {name: max(0, units) for name, units in self._node.scheduler.resources.available.items()}

    def rpc_why_pending(self, core: Core) -> list[dict[str, Any]]:
        """What waits, and why: requests here, actors that no node can hold, placement groups. See pending.py."""
        here = self._node.scheduler.why_pending(time.monotonic())
        if self._node.uplink is not None:
            return here
        groups = [row for row in self._node.head.groups.table() if row["state"] in ("PENDING", "RESCHEDULING")]
        actors = [pending.of_actor(*found) for found in self._node.head.placing.waiting()]
        return here + actors + [pending.of_group(row, time.time()) for row in groups]

    async def rpc_replicate(self, core: Core, key: bytes, source: int) -> None:
        """Our store gets a copy of an object that the store of the node with the number `source` has, and holds it for
        its owner, the asker, if that is a guest. A process of this node pins it itself, at once.

        Raises: ValueError: nonsense.  OSError, RuntimeError: it can't be had, or our store is down."""
        if not isinstance(key, bytes) or key[:TAG_BYTES] != core.tag:
            raise ValueError("replicate: a process asks for copies of its own objects, by key")
        row = next((row for row in self._node.nodes if row["number"] == source), None)
        if row is None:
            raise RuntimeError(f"node {source} is not known here")
        guest = core.kind == "guest"
        await self._node.transfers.replicate(key, row["host"], row["port"], hold=guest)
        if guest and self._node.cores.guests.get(core.tag) is not core:
            self._node.orphans.owner_died(core.tag)  # it has gone meanwhile

    async def rpc_stats(self, core: Core) -> dict[str, Any]:
        return self._node.stats()

    def rpc_status_here(self, core: Core) -> dict[str, Any]:
        return self.of_tools.status_here()

    async def rpc_shutdown(self, core: Core) -> None:
        """Workers end, their output reaches the driver, then this returns. Then everything goes, if the driver that
        says this is the one that started the session; of another, its job has gone."""
        node = self._node
        core.leaving = True
        if core is not node.founder:
            await node.leaving_jobs.end(core)
            return
        await node.end(f"shutdown() by pid {core.pid}", graceful=True)
        node.loop.create_task(node.leave_after_answer(core.peer))

    async def rpc_end_job_here(self, core: None, job_id: bytes) -> None:
        await self._node.leaving_jobs.end_here(job_id)

    def rpc_package_has(self, core: Core, uri: str) -> bool:
        return self._node.envs.inbox.has(uri)

    def rpc_package_put(self, core: Core, uri: str, offset: int, data: bytes, size: int) -> None:
        self._node.envs.inbox.put(core.tag, uri, offset, data, size)

    async def rpc_set_job_env(self, core: Core, text: str) -> None:
        if core.kind != "driver":
            raise PermissionError("set_job_env: only a driver says what its job's environment is")
        self._node.envs.set_of_job(core.job_id, text)
        if self._node.uplink is not None:
            await self._node.head.set_job_env(core.job_id, text)

    # -- events -----------------------------------------------------------------------------------------------

    def event(self, core: Core, name: str, args: tuple[Any, ...]) -> None:
        if core.kind == "guest" and name not in guests.EVENTS:
            raise PermissionError(f"{name}: tell your own node")
        if name in self._head_events:
            # An id of another kind is the head's to refuse.
            if name in ("actor_ready", "actor_failed") and args and isinstance(args[0], bytes):
                self._node.feed(self._node.scheduler, lm.ActorStarted(args[0]))
            self._node.head.event(core, name, args)
            return
        handler = getattr(self, "event_" + name, None)
        if handler is None:
            raise AttributeError(f"the node understands no event {name!r}")
        handler(core, *args)

    async def rpc_inspect(self, core: Core, what: str, rows_max: int, timeout_s: float) -> dict[str, Any]:
        return await self._node.inspection.ask(what, rows_max, timeout_s)

    def rpc_node_addresses(self, core: Core) -> list[dict[str, Any]]:
        """Of each node that lives: the number that the ids of its processes begin with, and where it is."""
        node = self._node
        return [{"number": node.number, "node_id": node.node_id.hex(), "ip": node.node_ip}]

    def rpc_workers(self, core: Core) -> list[dict[str, Any]]:
        return self._node.inspection.workers()

    async def rpc_metrics(self, core: Core, timeout_s: float) -> str:
        text: str = await self._node.metrics.text(timeout_s)
        return text

    def event_metrics(self, core: Core, kinds: dict[str, Any], items: list[Any]) -> None:
        self._node.metrics.take(core, kinds, items)

    async def rpc_stores(self, core: Core) -> list[dict[str, Any]]:
        """What the object store holds: store_row's columns and the node's id. [] while the store is away."""
        row = await store_row(self._node.session.plasma_socket)
        return [] if row is None else [{"node_id": self._node.node_id.hex(), **row}]

    def rpc_runtime_envs(self, core: Core) -> list[dict[str, Any]]:
        return self._node.inspection.runtime_envs()

    def event_inspected(self, core: Core, request: int, head: bytes, rows: bytes) -> None:
        self._node.inspection.inspected(core, request, head, rows)

    def event_lease_request(self, core: Core, req_id: int, resources: dict[str, int], info: dict[str, Any]) -> None:
        for name, units in resources.items():
            if not isinstance(name, str) or not isinstance(units, int) or units < 0:
                raise ValueError(f"lease_request: resources must be units >= 0 by name, not {name!r}: {units!r}")
        holds = info.get("holds")
        if holds is not None and not (
            isinstance(holds, dict) and all(isinstance(n, int) for pair in holds.items() for n in pair)
        ):
            raise ValueError(f"lease_request: holds must be bytes by number of a node, not {holds!r}")
        request = lm.LeaseRequested(
            core.tag,
            int(req_id),
            resources,
            str(info.get("name", "")),
            bool(info.get("exclusive_worker")),
            strategy=parse_strategy(info.get("strategy")),
            priority=int(info.get("priority", 0)),
            hops=int(info.get("hops", 0)),
            holds=holds,
            retriable=bool(info.get("retriable", True)),
        )
        self._node.envs.request(("task", core.tag, int(req_id)), str(info.get("runtime_env") or ""), request)

    def event_lease_cancel(self, core: Core, req_id: int) -> None:
        self._node.envs.withdraw(("task", core.tag, int(req_id)))
        self._schedule(lm.LeaseCancelled(core.tag, int(req_id)))

    def event_lease_return(self, core: Core, lease_id: int, reusable: bool = True) -> None:
        self._schedule(lm.LeaseReturned(core.tag, int(lease_id), bool(reusable)))

    def event_lease_busy(self, core: Core, lease_id: int) -> None:
        self._schedule(lm.LeaseBusy(core.tag, int(lease_id)))

    def event_blocked(self, core: Core) -> None:
        if core.worker_id:
            self._schedule(lm.Blocked(core.worker_id))

    def event_unblocked(self, core: Core) -> None:
        if core.worker_id:
            self._schedule(lm.Unblocked(core.worker_id))

    def event_kill_worker(self, core: Core, tag: bytes) -> None:
        target = self._node.cores.by_tag.get(tag)
        if target is not None and target.worker_id and target.job_id == core.job_id:
            self._node.feed(self._node.pool, wm.KillAsked(target.worker_id, "killed by ray.cancel(force=True)"))

    def event_results_lost(self, core: Core, tag: bytes, keys: list[bytes]) -> None:
        if not isinstance(tag, bytes) or not isinstance(keys, list) or not all(isinstance(key, bytes) for key in keys):
            raise TypeError(f"results_lost: a tag and a list of object ids, all bytes, not {tag!r} and {keys!r}")
        self._node.lost_results.forget(tag, [key for key in keys if key.startswith(core.tag)])

    def event_reclaimed(self, core: Core, reusable: bool = True) -> None:
        if core.worker_id:
            self._node.feed(self._node.pool, wm.Reclaimed(core.worker_id))
            self._schedule(lm.Reclaimed(core.worker_id, bool(reusable)))

    def event_exit_postponed(self, core: Core) -> None:
        if core.worker_id:
            self._node.feed(self._node.pool, wm.ExitPostponed(core.worker_id))

    def event_setup_done(self, core: Core) -> None:
        """Its environment's setup hook has returned: only now may it be leased."""
        if core.worker_id:
            self._node.feed(self._node.pool, wm.Registered(core.worker_id, core.tag))

    def event_setup_failed(self, core: Core, cause: str) -> None:
        if core.worker_id:
            self._node.feed(self._node.pool, wm.SetupFailed(core.worker_id, str(cause)))

    def event_goodbye(self, core: Core) -> None:
        """A driver that leaves in order, but not the one that started the session."""
        core.leaving = True

    def _schedule(self, event: Any) -> None:
        self._node.feed(self._node.scheduler, event)


class _Conversation:
    """One connection: unregistered, then a core of this node or a guest."""

    def __init__(self, requests: Requests, peer: Any) -> None:
        self._requests = requests
        self._peer = peer
        self._core: Core | None = None
        self._early: list[tuple[str, tuple[Any, ...]]] | None = None  # what a guest says while its job is asked for
        self._admission: asyncio.Future[None] | None = None  # done when that is over
        peer.on_rpc, peer.on_event, peer.on_close = self._on_rpc, self._on_event, self._on_close

    def _on_rpc(self, method: str, args: tuple[Any, ...]) -> Any:
        if self._core is not None:
            return self._requests.rpc(self._core, method, args)
        if self._peer.role == ROLE_NODE and self._requests._node.cluster is not None:
            return self._requests._node.cluster.on_rpc(self._peer, method, args)
        if self._peer.role == ROLE_TOOL:
            return self._requests.of_tools.rpc(self._peer, method, args)
        if method == "register_guest" and len(args) == 1 and isinstance(args[0], dict) and self._early is None:
            self._early, self._admission = [], self._requests._node.loop.create_future()
            return self._register_guest(args[0])
        if self._admission is not None and not self._admission.done():
            return self._rpc_later(self._admission, method, args)
        resumed = self._requests._node.resumed
        if method == "register" and resumed is not None and not resumed.done():
            return self._rpc_later(resumed, method, args)  # the head's tables are being read back
        if method != "register" or len(args) != 1 or not isinstance(args[0], dict):
            raise PermissionError(f"{method}: register(info) comes first")
        node, info = self._requests._node, args[0]
        if node.ending is not None and info.get("kind") == "worker":
            return node.loop.create_future()  # it is being killed: it need not cry out first
        if node.uplink is not None and info.get("kind") == "driver":
            return self._register_driver_elsewhere(info)
        self._core, answer = self._requests.register(self._peer, args[0])
        return answer

    async def _rpc_later(self, awaited: asyncio.Future[None], method: str, args: tuple[Any, ...]) -> Any:
        await asyncio.shield(awaited)
        answer = self._on_rpc(method, args)
        return await answer if inspect.isawaitable(answer) else answer

    async def _register_driver_elsewhere(self, info: dict[str, Any]) -> dict[str, Any]:
        """The head gives it its job. Raises: ConnectionClosed, ValueError, RuntimeError."""
        node, tag = self._requests._node, info.get("tag")
        if not isinstance(tag, bytes) or node_number(tag) != node.number:
            raise ValueError(f"register: on this node of the cluster a tag begins with the number {node.number}")
        job_id = await node.head.new_job(tag, self._peer.pid, {**info, "kind": "driver"})
        try:
            if self._peer.closed:
                raise RuntimeError("it has gone")
            self._core, answer = self._requests.register(self._peer, info, job_id)
        except BaseException as error:
            node.head.driver_gone(tag, f"it did not get as far as registering: {error}", False)
            raise
        return answer

    async def _register_guest(self, info: dict[str, Any]) -> dict[str, Any]:
        try:
            self._core = await self._requests._node.guests.register(self._peer, info)
        finally:
            early, self._early = self._early or [], None  # of one that was not admitted, they are dropped
            assert self._admission is not None
            self._admission.set_result(None)
        for name, args in early:
            self._on_event(name, args)
        return {"node_id": self._requests._node.node_id}

    def _on_event(self, name: str, args: tuple[Any, ...]) -> None:
        if self._core is None and self._peer.role == ROLE_NODE and self._requests._node.cluster is not None:
            self._requests._node.cluster.on_event(self._peer, name, args)
            return
        if self._core is None and self._early is not None and len(self._early) < guests.EARLY_MAX:
            self._early.append((name, args))
            return
        if self._core is None:
            raise PermissionError(f"{name}: register(info) comes first")
        self._requests.event(self._core, name, args)

    def _on_close(self, why: str) -> None:
        if self._core is None:
            return
        if self._core.kind == "guest":
            self._requests._node.guests.left(self._core)
        else:
            self._requests._node.connection_ended(self._core, why)
