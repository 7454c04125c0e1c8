"""What cores may ask the head and tell it: the names of wire_format.md, arguments checked, answered from the machines.

In the head, on its loop's thread. A core that sends nonsense gets an exception (RPC) or is counted and logged (event);
nothing of it reaches a machine. What comes from a process whose job has ended is late, and is dropped: it would bring
back what was forgotten.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, Any, Protocol

from ray._head import actor_messages as am
from ray._head import events, monitor
from ray._head.actor_record import DEAD, Actor
from ray._head.early import EarlySubscriptions
from ray._protocol.frames import ACTOR_ID_BYTES, FUNCTION_ID_BYTES
from ray._protocol.resources import UNITS
from ray._scheduling.strategy import parse_strategy
from ray.exceptions import ActorAlreadyExistsError

if TYPE_CHECKING:
    from ray._head.service import HeadService

logger = logging.getLogger(__name__)

MALFORMED_LOGGED_MAX = 100  # then they are only counted: a core gone mad must not fill the disk
KV_BYTES_MAX = 512 * 1024 * 1024  # Redis's bound of a value


class Caller(Protocol):
    """A core process, as the shell knows it."""

    tag: bytes
    pid: int
    kind: str  # "driver" | "worker"
    job_id: bytes
    namespace: str


class Requests:
    """`rpc` and `event` on behalf of a core."""

    def __init__(self, head: HeadService) -> None:
        self._head = head
        self.malformed = 0  # events that made no sense
        self._early = EarlySubscriptions(head)

    async def rpc(self, caller: Caller, method: str, args: tuple[Any, ...], again: bool = False) -> Any:
        """again: it was asked of a head that has ended since, and may have been done by that."""
        handler = _RPC_HANDLERS.get(method)
        if handler is None:
            raise LookupError(f"the head has no method {method!r}")
        if again and method in ("kv_put", "kv_del"):
            return await handler(self, caller, *args, again=True)
        return await handler(self, caller, *args)

    def event(self, caller: Caller, name: str, args: tuple[Any, ...]) -> None:
        handler = _EVENT_HANDLERS.get(name)
        try:
            if handler is None:
                raise LookupError("no such event")
            handler(self, caller, *args)
        except (TypeError, ValueError, LookupError, AttributeError) as error:
            self.malformed += 1
            if self.malformed <= MALFORMED_LOGGED_MAX:
                logger.warning("event %r from %s pid %d: %s", name, caller.kind, caller.pid, error, exc_info=True)

    def _tell(self, event: Any) -> None:
        """To the actor directory, about one actor."""
        _check_id("actor_id", event.actor_id, ACTOR_ID_BYTES)
        self._head.actor_event(event)

    # -- told ---------------------------------------------------------------------------------------------------------

    def _on_create_actor(self, caller: Caller, actor_id: bytes, spec: dict[str, Any]) -> None:
        if self._head.job_lives(caller.job_id):  # else it is late
            self._create_actor(caller, actor_id, spec)

    def _create_actor(self, caller: Caller, actor_id: bytes, spec: dict[str, Any]) -> None:
        _check_spec(spec)
        if not self._head.job_lives(caller.job_id):
            raise ValueError("create_actor: the job of the process that asks has ended")
        created = am.Created(actor_id, spec, caller.job_id, spec.get("owner_tag") or caller.tag)
        self._tell(created)
        self._early.over(actor_id)

    async def _rpc_create_actor(self, caller: Caller, actor_id: bytes, spec: dict[str, Any]) -> None:
        _check_id("actor_id", actor_id, ACTOR_ID_BYTES)
        _check_spec(spec)
        if self._head.actors.get(actor_id) is None:
            refusal = self._head.actors.name_refusal(spec)
            if refusal is not None:
                raise ActorAlreadyExistsError(refusal, name=spec["name"], namespace=spec.get("namespace"))
        self._create_actor(caller, actor_id, spec)

    def _on_actor_ready(self, caller: Caller, actor_id: bytes) -> None:
        self._tell(am.Ready(actor_id, caller.tag))

    async def _rpc_actor_exiting(self, caller: Caller, actor_id: bytes, why: str) -> None:
        """Answered when it lasts: the worker then tells its caller, and no head may start it again after that."""
        self._tell(am.Exiting(actor_id, caller.tag, str(why)))
        await self._head.lasting.wait()

    def _on_actor_failed(self, caller: Caller, actor_id: bytes, error: bytes) -> None:
        if not isinstance(error, bytes) or not error:
            raise TypeError(f"actor_failed: error must be an encoded exception, not {type(error).__name__}")
        self._tell(am.InitFailed(actor_id, caller.tag, error))

    def _on_kill_actor(self, caller: Caller, actor_id: bytes, no_restart: bool) -> None:
        self._tell(am.Kill(actor_id, bool(no_restart)))

    def _on_actor_out_of_scope(self, caller: Caller, actor_id: bytes) -> None:
        _check_id("actor_id", actor_id, ACTOR_ID_BYTES)
        actor = self._head.actors.get(actor_id)
        if actor is not None and not actor.detached:
            self._tell(am.OutOfScope(actor_id))

    def _on_actor_subscribe(self, caller: Caller, actor_id: bytes) -> None:
        _check_id("actor_id", actor_id, ACTOR_ID_BYTES)
        if self._head.actors.get(actor_id) is None:
            self._early.add(actor_id, caller.tag)
            return
        self._tell(am.Subscribe(actor_id, caller.tag))

    def _on_actor_unsubscribe(self, caller: Caller, actor_id: bytes) -> None:
        self._early.discard(actor_id, caller.tag)
        self._tell(am.Unsubscribe(actor_id, caller.tag))

    def _on_create_group(self, caller: Caller, group_id: bytes, spec: dict[str, Any]) -> None:
        if self._head.job_lives(caller.job_id):  # else it is late
            self._head.groups.create(caller, group_id, spec)

    async def _rpc_create_group(self, caller: Caller, group_id: bytes, spec: dict[str, Any]) -> None:
        self._head.groups.create(caller, group_id, spec)

    def _on_remove_group(self, caller: Caller, group_id: bytes) -> None:
        self._head.groups.remove(caller, group_id)

    def _on_export_function(self, caller: Caller, function_id: bytes, blob: bytes) -> None:
        _check_id("function_id", function_id, FUNCTION_ID_BYTES)
        if not isinstance(blob, bytes):
            raise TypeError(f"export_function: blob must be bytes, not {type(blob).__name__}")
        if self._head.job_lives(caller.job_id):
            self._head.functions.put(caller.job_id, function_id, blob)

    def _on_push_error(self, caller: Caller, kind: str, message: str, extra: dict[str, Any]) -> None:
        self._head.report_error(caller.job_id, kind, message, extra, caller.pid)

    def _on_task_events(self, caller: Caller, batch: list[Any], counts: Iterable[Any] = ()) -> None:
        if not isinstance(batch, list) or not isinstance(counts, (list, tuple)):
            raise TypeError(f"task_events takes lists, not {type(batch).__name__} and {type(counts).__name__}")
        if self._head.job_lives(caller.job_id):
            self._head.keep_task_events(caller.job_id, batch)
            self._head.events.count(caller.job_id, counts)

    # -- asked --------------------------------------------------------------------------------------------------------

    async def _rpc_function(self, caller: Caller, function_id: bytes) -> bytes | None:
        _check_id("function_id", function_id, FUNCTION_ID_BYTES)
        return await self._head.functions.get(caller.job_id, function_id)

    async def _rpc_actor_by_name(
        self, caller: Caller, name: str, namespace: str | None = None
    ) -> dict[str, Any] | None:
        actor = self._head.actors.named(name, caller.namespace if namespace is None else namespace)
        if actor is None:
            return None
        state, worker_tag, incarnation = actor.public_state()
        return {
            **actor.spec,
            "actor_id": actor.actor_id,
            "job_id": actor.job_id,
            "state": state,
            "worker_tag": worker_tag,
            "incarnation": incarnation,
        }

    async def _rpc_actor_checkpoint(self, caller: Caller, actor_id: bytes) -> bytes | None:
        """What the worker of an earlier incarnation saved last."""
        return await self._head.need_tables().actors.checkpoint(self._own_actor(caller, actor_id).row())

    async def _rpc_save_actor_checkpoint(self, caller: Caller, actor_id: bytes, data: bytes) -> None:
        actor = self._own_actor(caller, actor_id)
        if not isinstance(data, bytes):
            raise TypeError(f"save_actor_checkpoint: data must be bytes, not {type(data).__name__}")
        tables = self._head.need_tables().actors
        await tables.put_checkpoint(actor.row(), data)
        if actor.state == DEAD:  # meanwhile: what was removed with it is there again
            tables.remove_creation(actor.row())

    def _own_actor(self, caller: Caller, actor_id: bytes) -> Actor:
        """Raises: LookupError: the caller is not that actor's worker, or the actor is dead."""
        _check_id("actor_id", actor_id, ACTOR_ID_BYTES)
        actor = self._head.actors.of_worker(caller.tag)
        if actor is None or actor.actor_id != actor_id or actor.state == DEAD:
            raise LookupError(f"actor {actor_id.hex()} is dead, or another process is its worker")
        return actor

    async def _rpc_named_actors(self, caller: Caller, all_namespaces: bool = False) -> list[tuple[str, str]]:
        """(namespace, name) of each that lives, or is being made."""
        return [key for key in self._head.actors.names() if all_namespaces or key[0] == caller.namespace]

    async def _rpc_group_wait(self, caller: Caller, group_id: bytes, timeout_s: float | None) -> bool:
        return await self._head.groups.wait(group_id, timeout_s)

    async def _rpc_group_ready(self, caller: Caller, group_id: bytes) -> None:
        await self._head.groups.ready(group_id)

    async def _rpc_group_named(
        self, caller: Caller, name: str, namespace: str | None = None
    ) -> tuple[bytes, list[dict[str, int]]] | None:
        group = self._head.groups.groups.named(name, namespace or caller.namespace)
        return None if group is None else (group.group_id, group.bundles)

    async def _rpc_groups(self, caller: Caller, group_id: bytes | None = None) -> list[dict[str, Any]]:
        return self._head.groups.table(group_id)

    async def _rpc_actors(self, caller: Caller) -> list[dict[str, Any]]:
        return [_readable(actor.row()) for actor in self._head.actors.all()]

    async def _rpc_jobs(self, caller: Caller) -> list[dict[str, Any]]:
        rows = [_readable(row) for row in self._head.jobs.all()]
        for row in rows:
            del row["surroundings"]  # its driver's environment is nobody else's business
        return rows

    async def _rpc_errors(self, caller: Caller, job_id: bytes | None = None) -> list[dict[str, Any]]:
        return [
            {**row.extra, "type": row.kind, "message": row.message, "job_id": row.job_id.hex(), "pid": row.pid,
             "timestamp": row.time_s}
            for row in self._head.errors.of_job(job_id)
        ]  # fmt: skip

    async def _rpc_nodes(self, caller: Caller) -> list[dict[str, Any]]:
        return [
            {
                "NodeID": row.node_id.hex(),
                "Alive": row.state != monitor.DEAD,
                "NodeManagerAddress": row.address,
                "NodeManagerHostname": row.hostname,
                "NodeName": row.name,
                "Resources": {name: units / UNITS for name, units in row.resources.items()} if not row.died_s else {},
                "Labels": row.labels,
                "DeathReason": row.cause,
            }
            for row in self._head.monitor.all()
        ]

    async def _rpc_task_table(self, caller: Caller, job_id: bytes | None = None) -> list[dict[str, Any]]:
        self._head.flush_events()  # the question sees what was told before it
        tables = self._head.need_tables()
        return events.merge(await tables.events.all(caller.job_id if job_id is None else job_id))

    async def _rpc_node_table(self, caller: Caller) -> list[dict[str, Any]]:
        return [_readable(row) for row in self._head.monitor.all()]

    async def _rpc_nodes_are(self, caller: Caller, node_ids: list[str], timeout_s: float) -> list[str]:
        return sorted(await self._head.nodes_are(node_ids, timeout_s))

    async def _rpc_task_history(self, caller: Caller) -> list[dict[str, Any]]:
        """Of each job that lives: the batches of its events as they are kept (JSON), and how many calls ended how.

        The asker decodes and merges: this process has others to serve."""
        self._head.flush_events()
        tables = self._head.need_tables()
        return [
            {
                "job_id": row.job_id.hex(),
                "batches": await tables.events.batches(row.job_id),
                "totals": self._head.events.totals(row.job_id),
            }
            for row in self._head.jobs.all()
            if self._head.job_lives(row.job_id)
        ]

    async def _rpc_object_locations(self, caller: Caller, object_id: bytes) -> dict[str, Any] | None:
        row = await self._head.need_tables().objects.get(caller.job_id, object_id)
        return None if row is None else _readable(row)

    async def _rpc_kv_put(
        self,
        caller: Caller,
        key: bytes,
        value: bytes,
        overwrite: bool = True,
        namespace: bytes | str | None = None,
        *,
        again: bool = False,
    ) -> bool:
        """Returns whether the key is new."""
        space, key, data = _space(namespace), _kv_bytes("key", key), _kv_bytes("value", value)
        if len(data) > KV_BYTES_MAX:
            raise ValueError(
                f"kv_put: the value has {len(data)} bytes; at most {KV_BYTES_MAX} fit. Use ray.put for large data"
            )
        return await self._head.need_tables().kv.put(space, key, data, bool(overwrite), again)

    async def _rpc_kv_get(self, caller: Caller, key: bytes, namespace: bytes | str | None = None) -> bytes | None:
        space, key = _space(namespace), _kv_bytes("key", key)
        return await self._head.need_tables().kv.get(space, key)

    async def _rpc_kv_del(
        self, caller: Caller, key: bytes, namespace: bytes | str | None = None, *, again: bool = False
    ) -> bool:
        space, key = _space(namespace), _kv_bytes("key", key)
        return await self._head.need_tables().kv.delete(space, key) or again  # it was (perhaps) there

    async def _rpc_kv_exists(self, caller: Caller, key: bytes, namespace: bytes | str | None = None) -> bool:
        space, key = _space(namespace), _kv_bytes("key", key)
        return await self._head.need_tables().kv.exists(space, key)

    async def _rpc_kv_keys(self, caller: Caller, prefix: bytes, namespace: bytes | str | None = None) -> list[bytes]:
        space, prefix = _space(namespace), _kv_bytes("prefix", prefix)
        return await self._head.need_tables().kv.keys(space, prefix)

    async def _rpc_head_stats(self, caller: Caller) -> dict[str, Any]:
        return self._head.stats()


_R = Requests
_RPC_HANDLERS: dict[str, Callable[..., Awaitable[Any]]] = {
    name: getattr(_R, "_rpc_" + name)
    for name in (
        "actor_by_name", "actor_checkpoint", "actor_exiting", "actors", "create_actor", "create_group", "errors",
        "function", "group_named", "group_ready", "group_wait", "groups", "head_stats", "jobs", "kv_del", "kv_exists",
        "kv_get", "kv_keys", "kv_put", "named_actors", "node_table", "nodes", "nodes_are", "object_locations",
        "save_actor_checkpoint", "task_history", "task_table",
    )
}  # fmt: skip
_EVENT_HANDLERS: dict[str, Callable[..., None]] = {
    name: getattr(_R, "_on_" + name)
    for name in (
        "actor_failed", "actor_out_of_scope", "actor_ready", "actor_subscribe", "actor_unsubscribe",
        "create_actor", "create_group", "export_function", "kill_actor", "push_error", "remove_group", "task_events",
    )
}  # fmt: skip
RPCS = frozenset(_RPC_HANDLERS)
EVENTS = frozenset(_EVENT_HANDLERS)


def _check_id(name: str, given: object, size: int) -> None:
    if not isinstance(given, bytes) or len(given) != size:
        raise ValueError(f"{name} must be {size} bytes, not {given!r}")


def _check_spec(spec: object) -> None:
    """Of create_actor: what the machines rely on. Raises: TypeError, ValueError: naming the field."""
    if not isinstance(spec, dict):
        raise TypeError(f"create_actor: spec must be a dict, not {type(spec).__name__}")
    if not isinstance(spec.get("creation"), bytes):
        raise TypeError("create_actor: spec['creation'] must be bytes")
    kinds = {"class_name": str, "name": str, "namespace": str, "owner_tag": bytes, "description": bytes, "calls": dict}
    kinds["runtime_env"] = str
    for field, kind in kinds.items():
        if not isinstance(spec.get(field) or kind(), kind):
            raise TypeError(f"create_actor: spec[{field!r}] must be {kind.__name__}, not {spec[field]!r}")
    restarts = spec.get("max_restarts") or 0
    if not isinstance(restarts, int) or restarts < -1:
        raise ValueError(f"create_actor: max_restarts must be -1 (always) or 0 and up, not {restarts!r}")
    for field in ("resources", "placement_resources"):
        amounts = spec.get(field) or {}
        if not isinstance(amounts, dict) or not all(isinstance(u, int) and u >= 0 for u in amounts.values()):
            raise ValueError(f"create_actor: spec[{field!r}] must be a dict of units >= 0, not {amounts!r}")
    parse_strategy(spec.get("strategy"))


def _kv_bytes(what: str, given: object) -> bytes:
    if isinstance(given, str):
        return given.encode()
    if not isinstance(given, bytes):
        raise TypeError(f"kv: {what} must be bytes or str, not {type(given).__name__}")
    return given


def _space(namespace: bytes | str | None) -> bytes:
    return b"" if namespace is None else _kv_bytes("namespace", namespace)


def _readable(row: Any) -> dict[str, Any]:
    """For people and tools: ids in hexadecimal."""
    return {key: value.hex() if isinstance(value, bytes) else value for key, value in row._asdict().items()}
