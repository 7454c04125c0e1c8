"""The tables, in real servers: rows come back as they went in, shards, forgetting a job, followers."""

from __future__ import annotations

import asyncio

import pytest

from ray._control.pubsub import Follower, announce
from ray._control.rows import ActorRow, ErrorRow, JobRow, NodeRow, ObjectRow, PlacementGroupRow, dumps, loads
from tests.unit.control_session import ERRORS_KEPT, ControlPlane, control_plane, run, until

JOB, OTHER_JOB = b"\x01\0\0\0", b"\x02\0\0\0"


def an_actor(number: int, job_id: bytes = JOB, detached: bool = False) -> ActorRow:
    return ActorRow(
        bytes([number]) * 16,
        "ALIVE",
        job_id,
        class_name="Größe",
        name=f"actor {number}",
        namespace="ns ö",
        detached=detached,
        resources={"CPU": 10_000},
        worker_tag=b"\xff" * 16,
        error=b"\x00\xff",
    )


def test_every_kind_of_row_survives_its_own_bytes() -> None:
    for row in (
        NodeRow(b"n" * 16, resources={"CPU": 40_000}, labels={"zone": "a"}),
        JobRow(JOB, entrypoint="python x.py", metadata={"user": "me"}),
        an_actor(1),
        PlacementGroupRow(b"p" * 16, bundles=[{"CPU": 10_000}], nodes=["ab"]),
        ErrorRow(JOB, "kind", "message", extra={"n": 1}),
        ObjectRow(b"o" * 28, 7, ["ab"]),
    ):
        assert loads(type(row), dumps(row)) == row


def test_rows_of_another_version_are_read_and_broken_ones_refused() -> None:
    assert loads(JobRow, b'{"job_id":"01000000","of_the_future":[1]}') == JobRow(JOB)
    for broken in (b"[]", b"{}", b"not json", b'{"job_id":"xyz"}'):
        with pytest.raises(ValueError):
            loads(JobRow, broken)


def test_tables_give_back_what_they_were_given_after_a_kill_of_every_server() -> None:
    async def test() -> None:
        async with control_plane(shards=2) as plane:
            tables = plane.tables
            actors = [an_actor(1), an_actor(2), an_actor(3, detached=True)]
            for row in actors:
                tables.actors.put(row)
                tables.actors.put_creation(row, b"creation of " + row.actor_id)
                tables.actors.put_name(row.namespace, row.name, row.actor_id)
                await tables.actors.put_checkpoint(row, b"an older state")
                await tables.actors.put_checkpoint(row, b"state of " + row.actor_id)
            tables.nodes.put(NodeRow(b"n" * 16))
            tables.jobs.put(JobRow(JOB))
            functions = {bytes([i]) * 16: b"blob %d" % i for i in range(50)}
            for function_id, blob in functions.items():
                tables.functions.put(JOB, function_id, blob)
                tables.objects.put(JOB, ObjectRow(function_id + b"x" * 12, len(blob)))
            errors = [ErrorRow(JOB, "kind", f"error {i}") for i in range(5)]
            for i, error in enumerate(errors):
                tables.errors.add(error, f"1-{i + 1}")
            tables.events.add(JOB, "1-1", [[1], [2]], "1-1")
            tables.events.add(JOB, "2-1", [[3]], "1-1")
            await plane.store.drain(5)
            for shard in range(3):
                plane.kill(shard)
            assert await tables.actors.names() == {(row.namespace, row.name): row.actor_id for row in actors}
            found = await tables.actors.all([JOB])
            assert sorted(found) == sorted((row, b"creation of " + row.actor_id) for row in actors)
            assert await tables.actors.all([]) == [(actors[2], b"creation of " + actors[2].actor_id)]
            for row in actors:
                assert await tables.actors.checkpoint(row) == b"state of " + row.actor_id
            assert await tables.nodes.get(b"n" * 16) == NodeRow(b"n" * 16)
            assert await tables.nodes.get(b"m" * 16) is None
            for function_id, blob in functions.items():
                assert await tables.functions.get(JOB, function_id) == blob
                assert await tables.functions.get(OTHER_JOB, function_id) is None
                assert await tables.objects.get(JOB, function_id + b"x" * 12) is not None
            assert await tables.errors.all(JOB) == errors
            assert await tables.events.all(JOB) == [[1], [2], [3]]
            sizes = [await plane.store.call(shard, "HLEN", f"ray:job:{JOB.hex()}:functions") for shard in range(3)]
            assert sizes[0] == 0 and sizes[1] and sizes[2] and sizes[1] + sizes[2] == 50  # type: ignore[operator]

    run(test)


async def keys_of(plane: ControlPlane) -> set[str]:
    found: set[str] = set()
    for shard in range(plane.store.shards):
        reply = await plane.store.call(shard, "SCAN", "0", "COUNT", 10_000)
        found |= {key.decode() for key in reply[1]}  # type: ignore[index,union-attr]
    return found


@pytest.mark.parametrize("shards", [0, 2])
def test_forgetting_a_job_leaves_no_key_of_it_and_all_of_the_others(shards: int) -> None:
    async def test() -> None:
        async with control_plane(shards=shards) as plane:
            tables = plane.tables
            for number, job_id in ((1, JOB), (2, OTHER_JOB)):
                row = an_actor(number, job_id)
                tables.actors.put(row)
                tables.actors.put_creation(row, b"c")
                await tables.actors.put_checkpoint(row, b"s")
                tables.actors.put_name("ns", row.name, row.actor_id)
                tables.errors.add(ErrorRow(job_id, "k", "m"), "1-1")
                tables.events.add(job_id, "1-1", [[1]], "1-1")
                for i in range(20):
                    tables.functions.put(job_id, bytes([i]) * 16, b"blob")
                    tables.objects.put(job_id, ObjectRow(bytes([i]) * 28))
            tables.forget_job(JOB, [("ns", "actor 1")])
            keys = await keys_of(plane)
            assert not [key for key in keys if JOB.hex() in key]
            assert len([key for key in keys if OTHER_JOB.hex() in key]) == 7
            assert await tables.actors.names() == {("ns", "actor 2"): b"\x02" * 16}

    run(test)


def test_the_key_value_table_keeps_namespaces_apart_and_does_not_overwrite_unasked() -> None:
    async def test() -> None:
        async with control_plane() as plane:
            kv = plane.tables.kv
            assert await kv.put(b"", b"key", b"1", False) is True
            assert await kv.put(b"", b"key", b"2", False) is False
            assert await kv.get(b"", b"key") == b"1"
            assert await kv.put(b"", b"key", b"2", True) is False
            assert await kv.get(b"", b"key") == b"2"
            assert await kv.get(b"other", b"key") is None
            assert await kv.exists(b"", b"key") and not await kv.exists(b"", b"no")
            assert await kv.delete(b"", b"key") is True
            assert await kv.delete(b"", b"key") is False

    run(test)


def test_keys_by_prefix_takes_the_prefix_literally_and_finds_thousands() -> None:
    async def test() -> None:
        async with control_plane() as plane:
            kv = plane.tables.kv
            odd = [b"a*b", b"a?b", b"a[1]b", b"a\\b", b"axb", b"\x00\xff\n", b"^", b"-"]
            for key in odd:
                await kv.put(b"n", key, b"", True)
            for key in odd:
                assert await kv.keys(b"n", key) == [key]
            assert await kv.keys(b"n", b"") == sorted(odd)
            for i in range(3000):
                plane.store.write(0, "HSET", "ray:kv:n", f"many/{i:05}", "v")
            assert await kv.keys(b"n", b"many/") == [b"many/%05d" % i for i in range(3000)]

    run(test)


def test_the_first_writer_is_told_so_even_if_the_server_dies_before_it_answers() -> None:
    async def test() -> None:
        async with control_plane() as plane:
            kv = plane.tables.kv
            for i in range(20):
                await kv.exists(b"n", b"warm")
                call = asyncio.ensure_future(kv.put(b"n", b"%d" % i, b"mine", False))
                await asyncio.sleep(0)  # sent, and perhaps carried out
                if i % 5 == 0:
                    plane.kill()
                assert await call is True

    run(test)


def test_errors_and_events_are_bounded() -> None:
    async def test() -> None:
        async with control_plane() as plane:
            for i in range(1000):
                plane.tables.errors.add(ErrorRow(JOB, "k", f"{i}"), f"1-{i + 1}")
                plane.tables.events.add(JOB, f"1-{i + 1}", [[i]], f"1-{max(1, i - 8)}")
            kept = await plane.tables.errors.all(JOB)
            assert [row.message for row in kept] == [f"{i}" for i in range(1000 - ERRORS_KEPT, 1000)]
            assert await plane.store.call(0, "XLEN", f"ray:job:{JOB.hex()}:errors") < 1000  # type: ignore[operator]
            assert await plane.tables.events.all(JOB) == [[i] for i in range(990, 1000)]

    run(test)


# -- followers ---------------------------------------------------------------------------------------------------


def test_a_follower_sees_the_rows_there_are_and_each_change() -> None:
    async def test() -> None:
        async with control_plane() as plane:
            seen: dict[bytes, NodeRow | None] = {}
            plane.tables.nodes.put(NodeRow(b"1" * 16))
            await plane.store.drain(5)
            nodes = plane.tables.nodes
            follower = Follower(
                plane.servers.addresses[0], plane.servers.password, plane.store, nodes, seen.__setitem__
            )
            await until(lambda: seen)
            nodes.put(NodeRow(b"2" * 16, state="DEAD"))
            announce(plane.store, nodes, b"2" * 16)
            nodes.remove(b"1" * 16)
            announce(plane.store, nodes, b"1" * 16)
            await until(lambda: seen == {b"1" * 16: None, b"2" * 16: NodeRow(b"2" * 16, state="DEAD")})
            await follower.close()

    run(test)


def test_a_follower_catches_up_with_what_changed_while_it_was_cut_off() -> None:
    async def test() -> None:
        async with control_plane() as plane:
            nodes, seen = plane.tables.nodes, {}
            for i in range(3):
                nodes.put(NodeRow(b"%d" % i * 16))
            await plane.store.drain(5)
            follower = Follower(
                plane.servers.addresses[0], plane.servers.password, plane.store, nodes, seen.__setitem__
            )
            await until(lambda: len(seen) == 3)
            plane.kill()
            nodes.put(NodeRow(b"0" * 16, state="DEAD"))  # never announced
            nodes.remove(b"1" * 16)
            await until(lambda: seen[b"0" * 16].state == "DEAD" and seen[b"1" * 16] is None)
            assert follower.subscriptions >= 2
            nodes.put(NodeRow(b"2" * 16, state="DEAD"))
            announce(plane.store, nodes, b"2" * 16)
            await until(lambda: seen[b"2" * 16].state == "DEAD")
            await follower.close()

    run(test)


@pytest.mark.parametrize("detached", [False, True])
def test_what_was_saved_of_an_actor_s_state_goes_with_its_creation(detached: bool) -> None:
    async def test() -> None:
        async with control_plane() as plane:
            tables = plane.tables
            row = an_actor(1, detached=detached)._replace(checkpoints=1)
            tables.actors.put_creation(row, b"c")
            assert await tables.actors.checkpoint(row) is None
            await tables.actors.put_checkpoint(row, b"s")
            tables.actors.remove_creation(row)
            assert await tables.actors.checkpoint(row) is None

    run(test)
