"""ray.util.state: what runs, waits and is held, listed, filtered and counted."""

from __future__ import annotations

import os
import threading

import numpy as np
import pytest

import ray
from ray.util import state
from ray.util.state.common import ActorState, TaskState
from ray.util.state.exception import RayStateApiException, ServerUnavailable
from tests.wait import wait_until


@ray.remote
class Gate:
    """Lets tasks wait for a word."""

    def __init__(self):
        self._open = threading.Event()

    def open(self):
        self._open.set()

    def wait(self):
        self._open.wait(60)


@pytest.fixture
def gate(ray_shared):
    gate = Gate.options(max_concurrency=20).remote()
    yield gate
    ray.get(gate.open.remote())
    ray.kill(gate)


def of(name, **more):
    return state.list_tasks(filters=[("name", "=", name)], detail=True, limit=1000, **more)


def test_each_state_of_a_task_is_seen(gate):
    @ray.remote(num_cpus=2)
    def held(gate):
        ray.get(gate.wait.remote())
        return 1

    @ray.remote
    def after(x):
        return x

    @ray.remote
    def failing():
        raise ValueError("as it must")

    with pytest.raises(ValueError, match="as it must"):
        ray.get(failing.remote())
    running = held.remote(gate)
    wait_until(lambda: [t.state for t in of("held")] == ["RUNNING"])
    # Its CPUs are lent out while it waits, so that others run; what needs a resource that isn't there does not.
    queued = held.options(num_cpus=2, resources={"nothing": 1}).remote(gate)
    waiting = after.remote(running)
    by_id = {t.task_id: t for name in ("held", "after", "failing") for t in of(name)}
    assert by_id[running.task_id().hex()].state == "RUNNING"
    assert by_id[queued.task_id().hex()].state == "PENDING_NODE_ASSIGNMENT"
    assert by_id[queued.task_id().hex()].required_resources == {"CPU": 2, "nothing": 1}
    assert by_id[waiting.task_id().hex()].state == "PENDING_ARGS_AVAIL"
    ray.cancel(queued)
    with pytest.raises(ray.exceptions.TaskCancelledError):
        ray.get(queued)
    ray.get(gate.open.remote())
    assert ray.get(waiting) == 1
    ended = state.get_task(running)
    assert ended.state == "FINISHED" and ended.worker_pid and ended.end_time_ms >= ended.start_time_ms
    assert state.get_task(waiting.task_id().hex()).state == "FINISHED"
    cancelled = state.get_task(queued)
    assert (cancelled.state, cancelled.error_type) == ("FAILED", "TASK_CANCELLED")
    (failed,) = of("failing")
    assert (failed.state, failed.error_type) == ("FAILED", "TASK_EXECUTION_EXCEPTION")
    assert "as it must" in failed.error_message


def test_counts_are_exact_where_rows_are_a_sample(ray_shared):
    @ray.remote
    def one_of_many():
        return None

    @ray.remote
    class Counter:
        def inc(self):
            return None

    ray.get([one_of_many.remote() for _ in range(3000)])
    counter = Counter.remote()
    ray.get([counter.inc.remote() for _ in range(2000)])
    summary = state.summarize_tasks()["cluster"]["summary"]
    assert summary["one_of_many"]["state_counts"] == {"FINISHED": 3000}
    assert summary["one_of_many"]["type"] == "NORMAL_TASK"
    assert summary["Counter.inc"]["state_counts"] == {"FINISHED": 2000}
    assert summary["Counter.inc"]["type"] == "ACTOR_TASK"
    rows = of("one_of_many")
    assert 0 < len(rows) <= 1000 and rows.total >= 5000


def test_a_million_queued_tasks_are_counted(ray_shared):
    @ray.remote(resources={"nothing": 1})
    def never():
        return None

    refs = [never.remote() for _ in range(20_000)]
    counts = state.summarize_tasks()["cluster"]["summary"]["never"]["state_counts"]
    assert counts == {"PENDING_NODE_ASSIGNMENT": 20_000}
    rows = state.list_tasks(filters=[("name", "=", "never")], limit=10, raise_on_missing_output=False)
    assert len(rows) == 10 and rows[0].state == "PENDING_NODE_ASSIGNMENT"
    for ref in refs:
        ray.cancel(ref)


def test_a_task_whose_worker_dies_has_failed(ray_shared):
    @ray.remote(max_retries=0)
    def die():
        os._exit(3)

    state.summarize_tasks()  # what earlier tests did in this second is reported, and there is room to remember ours
    ref = die.remote()
    with pytest.raises(ray.exceptions.WorkerCrashedError):
        ray.get(ref)
    row = state.get_task(ref)
    assert (row.state, row.error_type) == ("FAILED", "WORKER_DIED")


def test_actors_are_listed_with_their_state(ray_shared):
    @ray.remote
    class Listed:
        def pid(self):
            return os.getpid()

    living, dying = Listed.options(name="listed-one").remote(), Listed.remote()
    pid = ray.get(living.pid.remote())
    ray.get(dying.pid.remote())
    ray.kill(dying)
    wait_until(lambda: state.get_actor(dying._actor_id.hex()).state == "DEAD")
    rows = state.list_actors(filters=[("class_name", "=", "Listed"), ("state", "=", "alive")], detail=True)
    assert [(row.actor_id, row.pid, row.name) for row in rows] == [(living._actor_id.hex(), pid, "listed-one")]
    assert isinstance(rows[0], ActorState) and rows[0].is_detached is False
    assert "kill" in state.get_actor(dying._actor_id.hex()).death_cause["error_message"]
    counts = state.summarize_actors()["cluster"]["summary"]["Listed"]["state_counts"]
    assert counts == {"ALIVE": 1, "DEAD": 1}
    ray.kill(living)


def test_objects_say_who_holds_how_much_and_why(ray_shared):
    big = ray.put(np.zeros(2**20, np.uint8))
    (row,) = state.get_objects(big.hex())
    assert row.object_size >= 2**20 and row.in_object_store and row.is_owner
    assert (row.pid, row.type, row.reference_type) == (os.getpid(), "DRIVER", "LOCAL_REFERENCE")
    assert row.pinned_by_pids == [os.getpid()]
    box = ray.put([big])
    key = big.hex()
    del big
    (row,) = state.get_objects(key)
    assert row.reference_type == "CAPTURED_IN_OBJECT" and row.local_references == 0
    assert state.list_objects(filters=[("object_id", "=", key)])[0].object_id == key
    del box
    wait_until(lambda: state.get_objects(key) == [])


def test_a_borrower_has_a_row_of_its_own(gate):
    @ray.remote
    def keep(box, gate):
        ray.get(gate.wait.remote())
        return len(box)

    ref = ray.put(np.zeros(2**20, np.uint8))
    result = keep.remote([ref], gate)
    wait_until(lambda: [t.state for t in of("keep")] == ["RUNNING"])
    rows = {row.is_owner: row for row in state.get_objects(ref.hex())}
    assert set(rows) == {True, False}
    assert rows[True].pid == os.getpid() and rows[True].reference_type == "USED_BY_PENDING_TASK"
    assert rows[False].type == "WORKER"
    ray.get(gate.open.remote())
    ray.get(result)


def test_what_is_in_nobodys_hands_is_a_row_too(ray_start):
    """A program that puts something into the store behind the engine's back."""
    from ray import plasma

    client = plasma.connect(ray_start["object_store_address"])
    client.put_raw_buffer(b"x" * 5000)
    (row,) = [r for r in state.list_objects() if r.reference_type == "UNKNOWN_STATUS"]
    assert row.object_size == 5000 and row.pid == os.getpid()
    client.disconnect()


def test_nodes_workers_and_jobs(ray_shared):
    @ray.remote
    def pid():
        return os.getpid()

    worker_pid = ray.get(pid.remote())
    (node,) = state.list_nodes(detail=True)
    context = ray.get_runtime_context()
    assert node.node_id == context.get_node_id() and node.state == "ALIVE" and node.is_head_node
    assert node.resources_total["CPU"] == 2 and node.start_time_ms > 0
    assert state.get_node(node.node_id) == node
    drivers = state.list_workers(filters=[("worker_type", "=", "DRIVER")])
    assert [(d.pid, d.worker_id) for d in drivers] == [(os.getpid(), context.get_worker_id())]
    (worker,) = state.list_workers(filters=[("pid", "=", str(worker_pid))])
    assert worker.is_alive and state.get_worker(worker.worker_id).pid == worker_pid
    (job,) = state.list_jobs(filters=[("status", "=", "RUNNING")], detail=True)
    assert job.job_id == context.get_job_id() and job.driver_info["pid"] == str(os.getpid())
    assert state.get_job(job.job_id) == job and state.get_job("ffffffff") is None


def test_placement_groups_are_listed_with_what_they_wait_for(ray_shared):
    from ray.util.placement_group import placement_group, remove_placement_group

    made = placement_group([{"CPU": 1}], name="made")
    waits = placement_group([{"CPU": 1, "nothing": 1}], name="waits")
    assert made.wait(30)
    rows = {row.name: row for row in state.list_placement_groups(detail=True)}
    assert rows["made"].state == "CREATED" and rows["made"].bundles[0]["unit_resources"] == {"CPU": 1}
    assert rows["waits"].state == "PENDING" and "nothing" in rows["waits"].stats["why"]
    assert state.get_placement_group(rows["made"].placement_group_id).name == "made"
    for group in (made, waits):
        remove_placement_group(group)


def test_runtime_environments_that_are_built_are_listed(ray_start):
    @ray.remote(runtime_env={"env_vars": {"LISTED": "yes"}})
    def inside():
        import os

        return os.environ["LISTED"]

    assert ray.get(inside.remote()) == "yes"
    (row,) = state.list_runtime_envs()
    assert row.success and row.runtime_env["env_vars"] == {"LISTED": "yes"}


def test_a_row_reads_like_a_dict(ray_shared):
    (node,) = state.list_nodes()
    assert node["node_id"] == node.node_id == node.get("node_id") and node.get("nothing", 7) == 7
    assert dict(node) == node.asdict()
    assert node.start_time_ms is None  # only in detail
    with pytest.raises(KeyError):
        node["nothing"]


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"filters": [("color", "=", "red")]}, ValueError, "color"),
        ({"filters": [("state", ">", "A")]}, ValueError, "predicate"),
        ({"filters": [("state", "=")]}, ValueError, "expected"),
        ({"filters": "state=RUNNING"}, TypeError, "filters"),
        ({"limit": 0}, ValueError, "limit"),
        ({"limit": 10_001}, ValueError, "limit"),
        ({"limit": 1.5}, TypeError, "limit"),
        ({"timeout": 0}, ValueError, "timeout"),
        ({"timeout": "long"}, TypeError, "timeout"),
        ({"address": 7}, TypeError, "address"),
        ({"address": "nowhere"}, ValueError, "nowhere"),
        ({"address": "/nowhere"}, ServerUnavailable, "nowhere"),
    ],
)
def test_bad_arguments_are_named(ray_shared, arguments, error, says):
    with pytest.raises(error, match=says):
        state.list_tasks(**arguments)


@pytest.mark.parametrize("given", [None, 7, "", b"ab"])
def test_an_id_is_text(ray_shared, given):
    with pytest.raises(TypeError, match="id="):
        state.get_actor(given)


def test_what_a_silent_process_would_have_said_is_missed_aloud(ray_shared, tmp_path):
    """A coroutine that blocks its loop keeps its whole process from answering."""

    @ray.remote
    class Blocked:
        async def ready(self):
            return True

        async def sleep(self, folder):
            (folder / "begun").touch()
            wait_until((folder / "go").exists)  # blocks the loop: that is what it is about

    actor = Blocked.remote()
    ray.get(actor.ready.remote())
    ref = actor.sleep.remote(tmp_path)
    wait_until((tmp_path / "begun").exists)
    with pytest.raises(RayStateApiException, match="did not answer"):
        state.list_tasks(timeout=0.2)
    rows = state.list_tasks(timeout=0.2, raise_on_missing_output=False)
    assert any("did not answer" in warning for warning in rows.warnings)
    assert [row.state for row in rows if row.name == "Blocked.sleep"] == ["SUBMITTED_TO_WORKER"]
    (tmp_path / "go").touch()
    ray.get(ref)


def test_a_process_outside_the_session_may_look(ray_start):
    import subprocess
    import sys

    @ray.remote
    def seen_from_outside():
        return None

    ray.get(seen_from_outside.remote())
    code = (
        "import sys; from ray.util.state import list_tasks, list_objects, list_nodes\n"
        "rows = list_tasks(address=sys.argv[1])\n"
        "print([row.name for row in rows], len(list_nodes(sys.argv[1])), len(list_objects(sys.argv[1])))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, ray_start["address"]], capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "['seen_from_outside'] 1 0\n", done.stderr


def test_columns_of_tasks_can_be_asked_for():
    assert "state" in TaskState.filterable_columns() and "error_message" not in TaskState.filterable_columns()
    assert "start_time_ms" in TaskState.columns() and "start_time_ms" not in TaskState.base_columns()
