"""The tables of the control plane: the only file that knows the name of a key.

Runs wherever a `Store` does (the node's loop). Methods named put/remove/add/forget are writes: queued, repeatable,
nobody waits. Those that are `async` read or need the answer.

    ray:nodes  ray:jobs  ray:placement_groups     hash, id -> row                            main server
    ray:placement_groups:removed                  hash, id -> when                           main server
    ray:uplinks                                   hash, node number -> last event heard      main server
    ray:actors:detached                           hash, actor id -> row                      main server
    ray:names                                     hash, namespace \\0 name -> actor id       main server
    ray:creations:detached                        hash, actor id -> creation bytes           main server
    ray:checkpoints:detached                      hash, actor id -> what its worker saved    main server
    ray:kv:NAMESPACE                              hash, key -> value                         main server
    ray:job:JOB:actors  :creations  :checkpoints  as the three above, of actors that end with their job
    ray:job:JOB:functions                         hash, function id -> blob                  sharded by function id
    ray:job:JOB:objects                           hash, object id -> row                     sharded by object id
    ray:job:JOB:errors                            stream of rows                             sharded by job id
    ray:job:JOB:events                            stream of batches                          sharded by job id

All that belongs to a job is in keys that carry its id, so that forgetting a job is to unlink a handful of keys, however
much is in them. Rows of finished jobs stay in ray:jobs, a bounded number of them (`_head/jobs.py`).
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from typing import Any, Generic

from ray._control.resp import Reply
from ray._control.rows import ActorRow, ErrorRow, JobRow, NodeRow, ObjectRow, PlacementGroupRow, Row, dumps, loads
from ray._control.store import Store

MAIN = 0
_JOB_TABLES = ("actors", "creations", "checkpoints", "functions", "objects", "errors", "events")


class Table(Generic[Row]):
    """Rows of one kind in one hash on the main server, by id."""

    def __init__(self, store: Store, key: str, kind: type[Row]) -> None:
        self._store = store
        self._key = key
        self._kind: type[Row] = kind
        self.channel = key + ":changed"  # of `pubsub.announce`

    def put(self, row: Row) -> None:
        self._store.write(MAIN, "HSET", self._key, row[0].hex(), dumps(row))

    def remove(self, *ids: bytes) -> None:
        if ids:
            self._store.write(MAIN, "HDEL", self._key, *(i.hex() for i in ids))

    async def get(self, row_id: bytes) -> Row | None:
        data = await self._store.call(MAIN, "HGET", self._key, row_id.hex())
        return None if data is None else loads(self._kind, _bytes(data))

    async def all(self) -> list[Row]:
        reply = await self._store.call(MAIN, "HGETALL", self._key)
        return [loads(self._kind, data) for data in _pairs(reply).values()]


class RemovedGroupTable:
    """Placement groups that are no more: whoever names one must hear so from a head that takes over, too."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def put(self, group_ids: Iterable[bytes], removed_s: float) -> None:
        flat = [item for group_id in group_ids for item in (group_id.hex(), f"{removed_s:.3f}")]
        if flat:
            self._store.write(MAIN, "HSET", "ray:placement_groups:removed", *flat)

    def remove(self, *group_ids: bytes) -> None:
        if group_ids:
            self._store.write(MAIN, "HDEL", "ray:placement_groups:removed", *(i.hex() for i in group_ids))

    async def all(self) -> list[bytes]:
        """Oldest first."""
        reply = _pairs(await self._store.call(MAIN, "HGETALL", "ray:placement_groups:removed"))
        return [bytes.fromhex(i.decode()) for i, _ in sorted(reply.items(), key=lambda item: float(item[1]))]


class ActorTable:
    """Actors, their names, and the bytes that create them. `row.detached` decides in which key a row is."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def put(self, row: ActorRow) -> None:
        self._store.write(MAIN, "HSET", _actors_key(row.job_id, row.detached), row.actor_id.hex(), dumps(row))

    def put_creation(self, row: ActorRow, creation: bytes) -> None:
        """Once per actor; what a head that restarts gives to the next incarnation's worker."""
        self._store.write(MAIN, "HSET", _creations_key(row.job_id, row.detached), row.actor_id.hex(), creation)

    def put_name(self, namespace: str, name: str, actor_id: bytes) -> None:
        self._store.write(MAIN, "HSET", "ray:names", f"{namespace}\0{name}", actor_id.hex())

    def remove_name(self, namespace: str, name: str) -> None:
        self._store.write(MAIN, "HDEL", "ray:names", f"{namespace}\0{name}")

    def remove(self, row: ActorRow) -> None:
        self._store.write(MAIN, "HDEL", _actors_key(row.job_id, row.detached), row.actor_id.hex())
        self.remove_creation(row)

    def remove_creation(self, row: ActorRow) -> None:
        """And what was saved of its state: it won't be made again."""
        self._store.write(MAIN, "HDEL", _creations_key(row.job_id, row.detached), row.actor_id.hex())
        if row.checkpoints:
            self._store.write(MAIN, "HDEL", _checkpoints_key(row.job_id, row.detached), row.actor_id.hex())

    async def put_checkpoint(self, row: ActorRow, data: bytes) -> None:
        """Replaces the one before. Waits for Redis: what was accepted is in its file."""
        key = _checkpoints_key(row.job_id, row.detached)
        await self._store.call(MAIN, "HSET", key, row.actor_id.hex(), data)

    async def checkpoint(self, row: ActorRow) -> bytes | None:
        data = await self._store.call(MAIN, "HGET", _checkpoints_key(row.job_id, row.detached), row.actor_id.hex())
        return None if data is None else _bytes(data)

    async def all(self, jobs: Iterable[bytes]) -> list[tuple[ActorRow, bytes]]:
        """(row, creation) of every detached actor and of the actors of these jobs; creation b"" if it is gone."""
        found: list[tuple[ActorRow, bytes]] = []
        for job_id, detached in [(b"", True), *((job, False) for job in jobs)]:
            rows = _pairs(await self._store.call(MAIN, "HGETALL", _actors_key(job_id, detached)))
            creations = _pairs(await self._store.call(MAIN, "HGETALL", _creations_key(job_id, detached)))
            found += [(loads(ActorRow, data), creations.get(actor_id, b"")) for actor_id, data in rows.items()]
        return found

    async def names(self) -> dict[tuple[str, str], bytes]:
        """(namespace, name) -> actor id."""
        reply = _pairs(await self._store.call(MAIN, "HGETALL", "ray:names"))
        return {_split_name(key): bytes.fromhex(value.decode()) for key, value in reply.items()}


class FunctionTable:
    """Pickled functions and classes, exported once per definition by the job that defined them."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def put(self, job_id: bytes, function_id: bytes, blob: bytes) -> None:
        self._store.write(
            self._store.shard_of(function_id), "HSET", _job_key(job_id, "functions"), function_id.hex(), blob
        )

    async def get(self, job_id: bytes, function_id: bytes) -> bytes | None:
        shard = self._store.shard_of(function_id)
        data = await self._store.call(shard, "HGET", _job_key(job_id, "functions"), function_id.hex())
        return None if data is None else _bytes(data)


class KvTable:
    """What users and libraries keep by key, in namespaces. Each call waits for Redis: an accepted value is in its
    file."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def put(self, namespace: bytes, key: bytes, value: bytes, overwrite: bool, again: bool = False) -> bool:
        """Returns whether the key is new (as the first writer was told, even if Redis died before it could be told).
        again: it may have been put by an attempt whose answer was lost."""
        if overwrite:
            return await self._store.call(MAIN, "HSET", _kv_key(namespace), key, value) == 1
        reply, repeated = await self._store.call_noting_repeat(MAIN, "HSETNX", _kv_key(namespace), key, value)
        if reply == 0 and (repeated or again):  # perhaps it was our own first attempt that put it there
            return await self.get(namespace, key) == value
        return reply == 1

    async def get(self, namespace: bytes, key: bytes) -> bytes | None:
        data = await self._store.call(MAIN, "HGET", _kv_key(namespace), key)
        return None if data is None else _bytes(data)

    async def delete(self, namespace: bytes, key: bytes) -> bool:
        """Returns whether it was there; if Redis died in between, whether it may have been."""
        reply, repeated = await self._store.call_noting_repeat(MAIN, "HDEL", _kv_key(namespace), key)
        return reply == 1 or repeated

    async def exists(self, namespace: bytes, key: bytes) -> bool:
        return await self._store.call(MAIN, "HEXISTS", _kv_key(namespace), key) == 1

    async def keys(self, namespace: bytes, prefix: bytes) -> list[bytes]:
        """Sorted. By HSCAN in steps, since HKEYS of a large namespace would hold up everybody else; values pass by as
        well, because Redis 6 and 7.0 cannot leave them out."""
        found: set[bytes] = set()  # a scan may give a key twice
        cursor: bytes = b"0"
        pattern = b"".join(b"\\" + bytes((c,)) if c in b"*?[]\\^-" else bytes((c,)) for c in prefix) + b"*"
        while True:
            reply = await self._store.call(MAIN, "HSCAN", _kv_key(namespace), cursor, "MATCH", pattern, "COUNT", 1000)
            assert isinstance(reply, list)
            cursor = _bytes(reply[0])
            found.update(_pairs(reply[1]))
            if cursor == b"0":
                return sorted(found)


class ErrorTable:
    """The errors of each job, newest kept."""

    def __init__(self, store: Store, kept: int) -> None:
        self._store = store
        self._kept = kept

    def add(self, row: ErrorRow, entry_id: str) -> None:
        """entry_id: "milliseconds-counter", larger than any before it in this job: it makes the write repeatable."""
        key = _job_key(row.job_id, "errors")
        shard = self._store.shard_of(row.job_id)
        self._store.write(shard, "XADD", key, "MAXLEN", "~", self._kept, entry_id, "row", dumps(row))

    async def all(self, job_id: bytes) -> list[ErrorRow]:
        """Oldest first, `kept` at most."""
        key = _job_key(job_id, "errors")
        reply = await self._store.call(self._store.shard_of(job_id), "XREVRANGE", key, "+", "-", "COUNT", self._kept)
        return [loads(ErrorRow, fields[b"row"]) for _, fields in reversed(_entries(reply))]


class EventTable:
    """Task events of each job in batches; `_head/events.py` says what one is, and which batches are old enough to
    go."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def add(self, job_id: bytes, entry_id: str, batch: list[list[Any]], oldest_id: str) -> None:
        """Appends a batch and drops those before oldest_id. entry_id as for errors."""
        key = _job_key(job_id, "events")
        data = json.dumps(batch, separators=(",", ":"))
        shard = self._store.shard_of(job_id)
        self._store.write(shard, "XADD", key, "MINID", "=", oldest_id, entry_id, "batch", data)

    async def batches(self, job_id: bytes) -> list[bytes]:
        """All batches kept, each a JSON list of events, in the order they were received."""
        key = _job_key(job_id, "events")
        reply = await self._store.call(self._store.shard_of(job_id), "XRANGE", key, "-", "+")
        return [fields[b"batch"] for _, fields in _entries(reply)]

    async def all(self, job_id: bytes) -> list[list[Any]]:
        """All events kept, in the order they were received."""
        return [event for batch in await self.batches(job_id) for event in json.loads(batch)]


class ObjectTable:
    """On which nodes copies of a job's large objects are. Small ones have no place but their owner."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def put(self, job_id: bytes, row: ObjectRow) -> None:
        shard = self._store.shard_of(row.object_id)
        self._store.write(shard, "HSET", _job_key(job_id, "objects"), row.object_id.hex(), dumps(row))

    def remove(self, job_id: bytes, object_id: bytes) -> None:
        self._store.write(self._store.shard_of(object_id), "HDEL", _job_key(job_id, "objects"), object_id.hex())

    async def get(self, job_id: bytes, object_id: bytes) -> ObjectRow | None:
        shard = self._store.shard_of(object_id)
        data = await self._store.call(shard, "HGET", _job_key(job_id, "objects"), object_id.hex())
        return None if data is None else loads(ObjectRow, _bytes(data))


class UplinkTable:
    """Up to which event the head has heard each node, and done what followed: a head that takes over skips those."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def put(self, heard: dict[int, int]) -> None:
        """By node number. Returns when it, and every write before it, is in Redis' files."""
        others = (self._store.call(shard, "PING") for shard in range(1, self._store.shards))
        await asyncio.gather(*others)
        flat = [item for number, event in heard.items() for item in (str(number), str(event))]
        await self._store.call(MAIN, "HSET", "ray:uplinks", *flat)

    async def all(self) -> dict[int, int]:
        reply = _pairs(await self._store.call(MAIN, "HGETALL", "ray:uplinks"))
        return {int(number): int(event) for number, event in reply.items()}

    def remove(self, number: int) -> None:
        self._store.write(MAIN, "HDEL", "ray:uplinks", str(number))


class Tables:
    """All tables over one store."""

    def __init__(self, store: Store, errors_kept: int) -> None:
        self.store = store
        self.nodes: Table[NodeRow] = Table(store, "ray:nodes", NodeRow)
        self.jobs: Table[JobRow] = Table(store, "ray:jobs", JobRow)
        self.placement_groups: Table[PlacementGroupRow] = Table(store, "ray:placement_groups", PlacementGroupRow)
        self.removed_groups = RemovedGroupTable(store)
        self.actors = ActorTable(store)
        self.functions = FunctionTable(store)
        self.kv = KvTable(store)
        self.errors = ErrorTable(store, errors_kept)
        self.events = EventTable(store)
        self.objects = ObjectTable(store)
        self.uplinks = UplinkTable(store)

    async def last(self) -> None:
        """Returns when every write so far is in Redis' files. Raises: StoreUnavailable."""
        await asyncio.gather(*(self.store.call(shard, "PING") for shard in range(self.store.shards)))

    def forget_job(self, job_id: bytes, names: Iterable[tuple[str, str]] = ()) -> None:
        """Drops every key of a job on all servers, and these (namespace, name) of its actors. UNLINK frees in the
        background."""
        keys = [_job_key(job_id, table) for table in _JOB_TABLES]
        for shard in range(self.store.shards):
            self.store.write(shard, "UNLINK", *keys)
        for namespace, name in names:
            self.actors.remove_name(namespace, name)


def _job_key(job_id: bytes, table: str) -> str:
    return f"ray:job:{job_id.hex()}:{table}"


def _actors_key(job_id: bytes, detached: bool) -> str:
    return "ray:actors:detached" if detached else _job_key(job_id, "actors")


def _creations_key(job_id: bytes, detached: bool) -> str:
    return "ray:creations:detached" if detached else _job_key(job_id, "creations")


def _checkpoints_key(job_id: bytes, detached: bool) -> str:
    return "ray:checkpoints:detached" if detached else _job_key(job_id, "checkpoints")


def _kv_key(namespace: bytes) -> bytes:
    return b"ray:kv:" + namespace


def _split_name(key: bytes) -> tuple[str, str]:
    namespace, _, name = key.decode().partition("\0")
    return namespace, name


def _bytes(reply: Reply) -> bytes:
    assert isinstance(reply, bytes), reply
    return reply


def _pairs(reply: Reply) -> dict[bytes, bytes]:
    """Of a flat list of fields and values."""
    assert isinstance(reply, list), reply
    flat = [_bytes(item) for item in reply]
    return dict(zip(flat[::2], flat[1::2]))


def _entries(reply: Reply) -> list[tuple[str, dict[bytes, bytes]]]:
    """Of a stream's range: (id, fields)."""
    assert isinstance(reply, list), reply
    found = []
    for entry in reply:
        assert isinstance(entry, list), entry
        found.append((_bytes(entry[0]).decode(), _pairs(entry[1])))
    return found
