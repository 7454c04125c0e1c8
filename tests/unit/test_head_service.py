"""The head behind a recorded Port: the contract's requests, the ends of jobs, Redis dying under it, a restart."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from ray._control import store
from ray._control.store import StoreUnavailable
from ray._head import early, function_cache, resumption
from ray._head.service import HeadService
from tests.unit.control_session import ControlPlane, control_plane, run, until
from tests.unit.test_control_tables import keys_of

NODE, DRIVER, WORKER = b"N" * 16, b"D" * 16, b"W" * 16
A, F = b"A" * 16, b"F" * 16
LATER, NEVER = b"L" * 16, b"N" * 16
CPU = 10_000


class Core:
    def __init__(self, tag: bytes, kind: str, job_id: bytes, namespace: str = "space") -> None:
        self.tag, self.pid, self.kind, self.job_id, self.namespace = tag, 7, kind, job_id, namespace


class RecordedPort:
    """Writes down what the head asks for; `eager` answers placements in the middle of the call."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.head: HeadService
        self.eager = False
        self.caught_up: list[Callable[[], None]] = []

    def place_actor(self, actor_id: bytes, spec: dict[str, Any], incarnation: int) -> None:
        self.calls.append(("place", actor_id, incarnation))
        self.spec = spec
        if self.eager:
            self.head.actor_placed(actor_id, NODE)
            self.head.actor_worker_started(actor_id, WORKER + bytes([incarnation]), 100, [])

    def cancel_placement(self, actor_id: bytes) -> None:
        self.calls.append(("cancel", actor_id))

    def become_actor(self, tag: bytes, actor_id: bytes, creation: bytes, incarnation: int, gpu_ids: list[Any]) -> None:
        self.calls.append(("become", tag, actor_id, creation, incarnation))

    def actor_state(
        self, core: bytes, actor_id: bytes, state: str, worker: bytes, incarnation: int, cause: Any
    ) -> None:
        self.calls.append(("state", core, state, incarnation))

    def kill_worker(self, worker_tag: bytes, why: str) -> None:
        self.calls.append(("kill", worker_tag))

    def ask_to_exit(self, worker_tag: bytes, why: str) -> None:
        self.calls.append(("exit", worker_tag))

    def expect_exit(self, worker_tag: bytes, why: str) -> None:
        self.calls.append(("expect", worker_tag))

    def release_actor(self, actor_id: bytes) -> None:
        self.calls.append(("release", actor_id))

    def job_over(self, job_id: bytes) -> None:
        self.calls.append(("job_over", job_id))

    def catch_up(self, then: Callable[[], None]) -> None:
        self.caught_up.append(then)

    def error(self, job_id: bytes, kind: str, message: str, extra: dict[str, Any]) -> None:
        self.calls.append(("error", job_id, kind, message))

    def take(self) -> list[tuple[Any, ...]]:
        calls, self.calls = self.calls, []
        return calls


class Session:
    def __init__(self, plane: ControlPlane | None) -> None:
        self.port = RecordedPort()
        self.head = HeadService(self.port, plane.store if plane is not None else None)
        self.port.head = self.head
        self.head.node_up(NODE, {"CPU": 2 * CPU}, "127.0.0.1", "here")
        self.driver = self.join(DRIVER)

    def join(self, tag: bytes) -> Core:
        return Core(tag, "driver", self.head.register_driver(tag, 7, {"entrypoint": "x.py", "namespace": "space"}))

    def worker(self, tag: bytes = WORKER) -> Core:
        return Core(tag, "worker", self.driver.job_id)

    def create(self, actor_id: bytes = A, core: Core | None = None, **spec: Any) -> None:
        self.head.event(
            core or self.driver, "create_actor", (actor_id, {"creation": b"how", "class_name": "C", **spec})
        )

    def start(self, actor_id: bytes = A, tag: bytes = WORKER) -> None:
        self.head.actor_placed(actor_id, NODE)
        self.head.actor_worker_started(actor_id, tag, 100, [])
        self.head.event(self.worker(tag), "actor_ready", (actor_id,))

    async def ask(self, method: str, *args: Any, core: Core | None = None) -> Any:
        return await self.head.rpc(core or self.driver, method, args)


@asynccontextmanager
async def session(**options: Any) -> AsyncIterator[tuple[Session, ControlPlane]]:
    async with control_plane(**options) as plane:
        s = Session(plane)
        yield s, plane
        s.head.check()
        await s.head.close()


def test_a_subscription_to_an_unknown_actor_waits_until_every_node_has_said_what_it_had_to_say(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(early, "EARLY_SUBSCRIPTION_S", 0.01)

    async def test() -> None:
        s = Session(None)
        other, left = s.worker(b"V" * 16), s.worker(b"U" * 16)
        for core in (other, left):
            s.head.event(core, "actor_subscribe", (A,))
        s.head.event(left, "actor_unsubscribe", (A,))
        await until(lambda: len(s.port.caught_up) == 1)
        for actor_id in (LATER, NEVER):
            s.head.event(other, "actor_subscribe", (actor_id,))
        await asyncio.sleep(0.05)
        assert s.port.take() == [] and len(s.port.caught_up) == 1  # they wait for the next round
        s.create()
        assert ("state", other.tag, "PENDING", 0) in s.port.take()
        s.port.caught_up.pop()()
        assert s.port.take() == [] and len(s.port.caught_up) == 1
        s.create(LATER)
        assert ("state", other.tag, "PENDING", 0) in s.port.take()
        s.port.caught_up.pop()()
        assert s.port.take() == [("state", other.tag, "DEAD", 0)] and not s.port.caught_up

    run(test)


def test_an_actor_lives_and_dies_through_the_contracts_messages() -> None:
    async def test() -> None:
        s = Session(None)
        s.create(max_restarts=1, resources={"CPU": CPU})
        assert s.port.take() == [("place", A, 0)]
        assert s.port.spec["creation"] == b"how" and s.port.spec["job_id"] == s.driver.job_id
        s.start()
        assert s.port.take() == [("become", WORKER, A, b"how", 0), ("state", DRIVER, "ALIVE", 0)]
        s.head.worker_died(WORKER, "killed by SIGKILL")
        assert s.port.take() == [("release", A), ("state", DRIVER, "RESTARTING", 1), ("place", A, 1)]
        s.start(tag=b"V" * 16)
        s.head.event(s.driver, "kill_actor", (A, True))
        assert s.port.take()[-2:] == [("kill", b"V" * 16), ("state", DRIVER, "DEAD", 1)]
        s.head.worker_died(b"V" * 16, "killed by SIGKILL")
        assert s.port.take() == [("release", A)]
        s.head.check()

    run(test)


def test_a_shell_that_answers_in_the_middle_of_a_call_does_not_reorder_what_others_see() -> None:
    async def test() -> None:
        s = Session(None)
        s.port.eager = True
        s.create(max_restarts=1)
        s.head.event(Core(WORKER + b"\0", "worker", s.driver.job_id), "actor_ready", (A,))
        s.port.take()
        s.head.worker_died(WORKER + b"\0", "x")
        assert [call[0] for call in s.port.take()] == ["release", "state", "place", "become"]
        s.head.check()

    run(test)


def test_names_are_refused_as_an_error_to_who_asks_and_as_a_death_to_who_only_tells() -> None:
    async def test() -> None:
        s = Session(None)
        s.create(name="n", namespace="space")
        with pytest.raises(ValueError, match="the name 'n' is taken in namespace 'space'"):
            await s.ask("create_actor", b"2" * 16, {"creation": b"", "name": "n", "namespace": "space"})
        s.port.take()
        s.create(b"3" * 16, name="n", namespace="space")
        assert ("state", DRIVER, "DEAD", 0) in s.port.take()
        found = await s.ask("actor_by_name", "n")
        assert found["actor_id"] == A and found["class_name"] == "C" and found["state"] == "PENDING"
        assert "creation" not in found
        assert await s.ask("actor_by_name", "n", "elsewhere") is None
        assert [a["state"] for a in await s.ask("actors")] == ["PENDING_PLACEMENT", "DEAD"]

    run(test)


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("create_actor", (A,)),
        ("create_actor", (A, {})),
        ("create_actor", (b"short", {"creation": b""})),
        ("create_actor", (A, {"creation": b"", "max_restarts": -2})),
        ("create_actor", (A, {"creation": b"", "resources": {"CPU": -1}})),
        ("create_actor", (A, {"creation": b"", "name": 17})),
        ("create_actor", (A, {"creation": b"", "strategy": "SIDEWAYS"})),
        ("actor_failed", (A, "not bytes")),
        ("export_function", (F, "not bytes")),
        ("export_function", (b"short", b"blob")),
        ("push_error", ("kind", 17, {})),
        ("task_events", ("not a list",)),
        ("kill_actor", ([], True)),
        ("no_such_event", ()),
    ],
)
def test_nonsense_from_a_core_is_counted_and_changes_nothing(name: str, args: tuple[Any, ...]) -> None:
    async def test() -> None:
        s = Session(None)
        s.head.event(s.driver, name, args)
        assert s.head.stats()["malformed"] == 1
        assert s.port.take() == [] and await s.ask("actors") == []

    run(test)


def test_an_actor_that_fits_no_node_is_reported_and_starts_when_one_comes() -> None:
    async def test() -> None:
        s = Session(None)
        s.create(resources={"GPU": CPU})
        ((what, job_id, _, message),) = s.port.take()
        assert what == "error" and job_id == s.driver.job_id and "GPU: 1" in message
        s.head.node_up(b"M" * 16, {"GPU": CPU}, "10.0.0.2", "there")
        assert s.port.take() == [("place", A, 0)]

    run(test)


def test_the_end_of_a_driver_leaves_no_key_of_its_job() -> None:
    async def test() -> None:
        async with session(shards=1) as (s, plane):
            other = s.join(b"E" * 16)
            for core in (s.driver, other):
                s.head.event(core, "export_function", (F, b"blob"))
                s.head.event(core, "push_error", ("kind", "message", {}))
                s.head.event(core, "task_events", ([(b"t" * 24, "RUNNING", 1.0)],))
                s.create(core.tag, core, name=core.tag.decode(), max_restarts=-1)
            s.start(DRIVER)
            assert len(await s.ask("task_table")) == 1
            s.head.driver_gone(DRIVER, "killed by SIGKILL", False)
            assert [row["state"] for row in await s.ask("jobs")] == ["ENDING", "RUNNING"]
            s.head.worker_died(WORKER, "killed by SIGKILL")  # only now is nothing of it left
            # A worker that has not noticed yet must not bring keys back.
            late = s.worker(b"L" * 16)
            s.head.event(late, "push_error", ("kind", "late", {}))
            s.head.event(late, "export_function", (F, b"late"))
            s.head.event(late, "task_events", ([(b"t" * 24, "RUNNING", 1.0)],))
            s.create(b"9" * 16, late)
            keys = await keys_of(plane)
            assert not [key for key in keys if s.driver.job_id.hex() in key], keys
            assert [key for key in keys if other.job_id.hex() in key]
            assert [row["state"] for row in await s.ask("jobs")] == ["DIED", "RUNNING"]
            assert await plane.tables.actors.names() == {("", "E" * 16): b"E" * 16}

    run(test)


def test_a_detached_actor_keeps_its_jobs_code_until_it_is_dead() -> None:
    async def test() -> None:
        async with session() as (s, plane):
            s.head.event(s.driver, "export_function", (F, b"blob"))
            s.create(detached=True, name="keeper", max_restarts=1)
            s.start()
            s.head.driver_gone(DRIVER, "it called ray.shutdown()", True)
            assert await s.ask("function", F, core=s.worker()) == b"blob"
            found = await s.ask("actor_by_name", "keeper", "")
            assert found["state"] == "ALIVE"
            s.head.event(s.worker(), "kill_actor", (A, True))
            s.head.worker_died(WORKER, "killed by SIGKILL")
            assert [row["state"] for row in await s.ask("jobs")] == ["FINISHED"]
            assert not [key for key in await keys_of(plane) if s.driver.job_id.hex() in key]

    run(test)


def test_a_function_is_waited_for_if_the_task_was_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(function_cache, "WAIT_S", 1.0)

    async def test() -> None:
        async with session() as (s, _plane):
            asked = [asyncio.ensure_future(s.ask("function", F, core=s.worker())) for _ in range(3)]
            await asyncio.sleep(0.02)
            s.head.event(s.driver, "export_function", (F, b"blob"))
            assert await asyncio.gather(*asked) == [b"blob"] * 3
            assert await s.ask("function", b"?" * 16) is None
            assert s.head.stats()["functions"]["waiting"] == 0

    run(test)


def test_functions_beyond_the_cache_come_from_redis(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(function_cache, "CACHE_BYTES_MAX", 1000)

    async def test() -> None:
        async with session(shards=2) as (s, _plane):
            ids = [bytes([i]) * 16 for i in range(20)]
            for i in ids:
                s.head.event(s.driver, "export_function", (i, i * 20))
            assert s.head.stats()["functions"]["cached_bytes"] <= 1000
            for i in ids:
                assert await s.ask("function", i) == i * 20

    run(test)


def test_everything_but_kv_goes_on_while_redis_is_dead_and_is_in_it_afterwards() -> None:
    async def test() -> None:
        async with session() as (s, plane):
            assert await s.ask("kv_put", b"k", b"1") is True
            plane.kill()
            s.head.event(s.driver, "export_function", (F, b"blob"))
            s.create(name="n")
            s.start()
            assert await s.ask("function", F) == b"blob"
            assert (await s.ask("actor_by_name", "n", ""))["state"] == "ALIVE"
            assert await s.ask("kv_get", b"k") == b"1"  # waits for the restart
            rows = await plane.tables.actors.all([s.driver.job_id])
            assert [(row.state, creation) for row, creation in rows] == [("ALIVE", b"how")]

    run(test)


def test_redis_given_up_fails_kv_by_name_and_is_told_to_every_job() -> None:
    async def test() -> None:
        async with control_plane(binary="/bin/false") as plane:
            s = Session(plane)
            await until(lambda: [call for call in s.port.calls if call[0] == "error"], "the jobs to be told")
            with pytest.raises(StoreUnavailable, match="is not started again"):
                await s.ask("kv_get", b"k")
            s.create()
            assert ("place", A, 0) in s.port.take()  # the rest goes on from memory
            (error,) = await s.ask("errors", s.driver.job_id)
            assert error["type"] == "control_plane"
            await s.head.close()

    run(test)


def test_tables_are_written_anew_after_writes_were_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        async with session() as (s, plane):
            await s.ask("kv_get", b"k")
            monkeypatch.setattr(store, "QUEUE_BYTES_MAX", 1)  # from here on every write is dropped
            s.create(name="n")
            s.start()
            s.head.event(s.driver, "export_function", (F, b"blob"))
            monkeypatch.setattr(store, "QUEUE_BYTES_MAX", 1 << 20)
            plane.kill()
            await until(lambda: plane.store.stats()[0]["connections"] == 2)
            ((row, creation),) = await plane.tables.actors.all([s.driver.job_id])
            assert (row.state, creation) == ("ALIVE", b"how")
            assert await plane.tables.actors.names() == {("", "n"): A}
            assert await plane.tables.functions.get(s.driver.job_id, F) == b"blob"

    run(test)


def test_a_head_that_restarts_reads_everything_back_and_buries_what_died_meanwhile() -> None:
    async def test() -> None:
        async with session() as (s, plane):
            other = s.join(b"E" * 16)
            for actor_id, tag, core, spec in (
                (A, WORKER, s.driver, {"max_restarts": 1, "name": "a"}),
                (b"2" * 16, b"V" * 16, s.driver, {"max_restarts": 1}),
                (b"3" * 16, b"U" * 16, other, {}),
                (b"4" * 16, b"T" * 16, other, {"detached": True, "name": "keeper"}),
            ):
                s.create(actor_id, core, **spec)
                s.start(actor_id, tag)
            s.create(b"5" * 16)
            s.head.event(s.driver, "export_function", (F, b"blob"))
            s.head.event(s.driver, "push_error", ("kind", "message", {"a": 1}))
            await plane.store.drain(5)

            port = RecordedPort()
            head = HeadService(port, plane.store)
            port.head = head
            await head.load()
            head.check()
            head.reconcile([WORKER, b"U" * 16, b"T" * 16], [DRIVER, WORKER])  # V and driver E died meanwhile
            head.check()
            states = {a.actor_id: a.state for a in head.actors.all()}
            assert states == {
                A: "ALIVE",
                b"2" * 16: "RESTARTING",
                b"3" * 16: "DEAD",
                b"4" * 16: "ALIVE",
                b"5" * 16: "PENDING_PLACEMENT",
            }
            asked = {call[1] for call in port.calls if call[0] == "place"}
            assert asked == {b"2" * 16, b"5" * 16}
            assert port.spec["creation"] == b"how"
            assert ("kill", b"U" * 16) in port.calls
            assert await head.rpc(s.driver, "function", (F,)) == b"blob"
            assert [e["message"] for e in await head.rpc(s.driver, "errors", (None,))] == ["message"]
            assert head.register_driver(b"G" * 16, 1, {}) == b"\x03\0\0\0"
            found = await head.rpc(s.driver, "actor_by_name", ("keeper", ""))
            assert found["actor_id"] == b"4" * 16

    run(test)


def test_a_head_that_restarts_knows_of_the_groups_that_were_removed() -> None:
    async def test() -> None:
        async with session() as (s, plane):
            s.head.lasts = True
            told: list[bytes] = []
            s.port.group_removed = lambda group_id, why: told.append(group_id)  # type: ignore[attr-defined]
            group_id = b"g" * 16
            s.head.event(s.driver, "create_group", (group_id, {"bundles": [{"GPU": 1}], "strategy": "PACK"}))
            s.head.event(s.driver, "remove_group", (group_id,))
            assert told == [], "nodes refuse for good what names it: only when it lasts"
            await until(lambda: told == [group_id])

            port = RecordedPort()
            head = HeadService(port, plane.store)
            port.head = head
            await head.load()
            head.reconcile([], [DRIVER])
            strategy = ("group", group_id, -1, False)
            spec = {"creation": b"how", "strategy": strategy}
            head.event(s.driver, "create_actor", (A, spec))
            actor = head.actors.get(A)
            assert actor is not None and actor.state == "DEAD", "its group is gone"
            assert head.groups.groups.was_removed(group_id)

    run(test)


def test_a_worker_becomes_an_actor_when_it_lasts_that_it_is_to_be_this_one() -> None:
    """Else a head that takes over would make it a second time. Found by the simulation, seed 131."""

    async def test() -> None:
        async with session() as (s, _):
            s.head.lasts = True
            s.create(A)
            s.create(b"2" * 16)
            for actor_id, tag in ((A, WORKER), (b"2" * 16, b"V" * 16)):
                s.head.actor_placed(actor_id, NODE)
                s.head.actor_worker_started(actor_id, tag, 100, [])
            s.head.event(s.driver, "kill_actor", (A, True))
            assert not [call for call in s.port.calls if call[0] == "become"]
            await until(lambda: any(call[0] == "become" for call in s.port.calls))
            assert [call[1] for call in s.port.calls if call[0] == "become"] == [b"V" * 16], "the other is dead"

    run(test)


def test_the_end_of_a_job_is_seen_to_by_the_next_head_though_its_groups_were_still_there() -> None:
    """A head died when it had written that the job ends, and nothing more. Found by the simulation, seed 139."""

    async def test() -> None:
        async with session() as (s, plane):
            s.head.event(s.driver, "create_group", (b"g" * 16, {"bundles": [{"GPU": 1}], "strategy": "PACK"}))
            s.create(A, s.worker())  # its owner is a worker, which lives on
            await plane.store.drain(5)
            ((row),) = await plane.tables.jobs.all()
            plane.tables.jobs.put(row._replace(state="ENDING", cause="killed"))

            port = RecordedPort()
            head = HeadService(port, plane.store)
            port.head = head
            for name in ("return_bundles", "group_removed", "group_state"):
                setattr(port, name, lambda *args: None)
            await head.load()
            head.reconcile([], [WORKER])
            head.check()
            actor = head.actors.get(A)
            assert actor is None or actor.state == "DEAD"
            assert not head.groups.groups.of_job(row.job_id) and head.jobs.all()[0].state == "DIED"

    run(test)


def test_an_actor_of_a_node_that_has_not_come_back_is_where_the_earlier_head_had_placed_it_anew() -> None:
    """It was placed a second time, on another node. Found by the simulation, seed 6000168."""

    async def test() -> None:
        async with session() as (s, plane):
            away, other = b"n" * 16, b"o" * 16
            s.head.node_up(away, {"CPU": CPU}, "127.0.0.2", "away")
            s.create(max_restarts=-1)
            s.head.actor_placed(A, away)
            s.head.actor_worker_started(A, WORKER, 100, [])
            s.head.event(s.worker(), "actor_ready", (A,))
            await plane.store.drain(5)

            port = RecordedPort()
            head = HeadService(port, plane.store)
            port.head = head
            port.node_dead = lambda *args: None  # type: ignore[attr-defined]
            about = {"host": "h", "hostname": "h"}
            nodes = [
                resumption.Present(NODE, 1, {"CPU": 2 * CPU}, {}, about, cores=[DRIVER], actors={A: 1}),
                resumption.Present(other, 2, {"CPU": 2 * CPU}, {}, about),
            ]
            resumption.resume(head, await resumption.read(head), nodes, "it did not come back")
            head.check()
            actor = head.actors.get(A)
            assert actor is not None and (actor.state, actor.incarnation) == ("RESTARTING", 1)
            assert actor.asked_node_id == NODE and not [call for call in port.calls if call[0] == "place"]

    run(test)


def test_what_a_job_that_has_ended_says_is_late_and_no_mistake() -> None:
    async def test() -> None:
        s = Session(None)
        s.head.driver_gone(DRIVER, "it left", True)
        s.head.event(s.driver, "create_actor", (A, {"creation": b"how"}))
        s.head.event(s.driver, "create_group", (b"g" * 16, {"bundles": [{"CPU": 1}], "strategy": "PACK"}))
        assert s.head.stats()["malformed"] == 0 and s.head.actors.get(A) is None
        with pytest.raises(ValueError, match="has ended"):
            await s.ask("create_actor", A, {"creation": b"how"})

    run(test)


def test_nodes_and_errors_have_the_names_that_users_know() -> None:
    async def test() -> None:
        s = Session(None)
        (row,) = await s.ask("nodes")
        assert row["Alive"] and row["NodeID"] == NODE.hex() and row["Resources"] == {"CPU": 2.0}
        s.head.event(s.driver, "push_error", ("task", "it failed", {"name": "f"}))
        (error,) = await s.ask("errors", s.driver.job_id)
        assert (error["type"], error["message"], error["pid"]) == ("task", "it failed", 7)
        s.head.node_down(NODE, "goodbye")
        (row,) = await s.ask("nodes")
        assert not row["Alive"] and row["Resources"] == {} and row["DeathReason"] == "goodbye"

    run(test)


@pytest.mark.parametrize(
    ("method", "args", "message"),
    [
        ("kv_put", (17, b"v"), "key must be bytes or str"),
        ("kv_put", ("k", None), "value must be bytes or str"),
        ("kv_get", ("k", 17), "namespace must be bytes or str"),
        ("function", (b"short",), "function_id must be 16 bytes"),
    ],
)
def test_bad_arguments_are_named(method: str, args: tuple[Any, ...], message: str) -> None:
    async def test() -> None:
        with pytest.raises((TypeError, ValueError), match=message):
            await Session(None).ask(method, *args)

    run(test)


def test_an_unknown_method_is_said_to_be_unknown() -> None:
    async def test() -> None:
        with pytest.raises(LookupError, match="no method 'eval'"):
            await Session(None).ask("eval", "1")

    run(test)


def test_a_flood_of_errors_reaches_the_driver_as_some_and_a_count() -> None:
    async def test() -> None:
        s = Session(None)
        for i in range(1000):
            s.head.event(s.driver, "push_error", ("task", f"{i}", {}))
        await s.head.close()
        told = s.port.take()
        assert len(told) < 400
        assert "further errors of this job are not shown" in told[-1][3]

    run(test)


def test_a_bug_costs_one_event_and_is_counted() -> None:
    async def test() -> None:
        s = Session(None)
        s.create()
        s.head.actor_worker_started(A, WORKER, 100, [])  # the shell's mistake: it has no place yet
        assert s.head.bugs == 1 and s.head.stats()["bugs"] == 1
        s.head.event(s.driver, "kill_actor", (A, True))
        assert s.head.actors.all()[0].state == "DEAD"

    run(test)


def test_only_an_actor_s_own_worker_saves_its_state_and_death_takes_it() -> None:
    async def test() -> None:
        async with session() as (s, plane):
            s.create(checkpoints=1, max_restarts=1)
            s.start()
            assert await s.ask("actor_checkpoint", A, core=s.worker()) is None
            await s.ask("save_actor_checkpoint", A, b"one", core=s.worker())
            await s.ask("save_actor_checkpoint", A, b"two", core=s.worker())
            assert await s.ask("actor_checkpoint", A, core=s.worker()) == b"two"
            with pytest.raises(LookupError, match="another process is its worker"):
                await s.ask("save_actor_checkpoint", A, b"forged")  # the driver
            with pytest.raises(TypeError, match="data must be bytes"):
                await s.ask("save_actor_checkpoint", A, "text", core=s.worker())
            crossing = asyncio.ensure_future(s.ask("save_actor_checkpoint", A, b"three", core=s.worker()))
            await asyncio.sleep(0)  # it is on its way to Redis
            s.head.event(s.driver, "kill_actor", (A, True))
            await crossing
            with pytest.raises(LookupError, match="is dead"):
                await s.ask("save_actor_checkpoint", A, b"late", core=s.worker())
            assert not [key for key in await keys_of(plane) if "checkpoints" in key]

    run(test)
