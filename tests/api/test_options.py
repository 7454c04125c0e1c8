"""What options of tasks and actors hold and are called, seen from inside. The others: docs/api/options.md."""

from __future__ import annotations

import pytest

import ray
from ray.util import state

SESSION = {"num_cpus": 3, "resources": {"tape": 4}, "_memory": 10 * 2**30}


@ray.remote
def free():
    return ray.available_resources()


@ray.remote
class Holder:
    def free(self):
        return ray.available_resources()


@pytest.mark.parametrize("ray_start", [SESSION], indirect=True)
@pytest.mark.parametrize(
    "options, resource, left",
    [
        ({"num_cpus": 2}, "CPU", 1),
        ({"num_cpus": 0.5}, "CPU", 2.5),
        ({"resources": {"tape": 1.5}}, "tape", 2.5),
        ({"memory": 4 * 2**30}, "memory", 6 * 2**30),
    ],
)
def test_a_task_and_an_actor_hold_what_they_ask_for_while_they_run(ray_start, options, resource, left):
    assert ray.get(free.options(**options).remote())[resource] == left
    holder = Holder.options(**options).remote()
    assert ray.get(holder.free.remote())[resource] == left


def test_a_task_is_listed_under_the_name_that_it_was_given(ray_shared):
    ray.get(free.options(name="look around").remote())
    assert [row.state for row in state.list_tasks(filters=[("name", "=", "look around")])] == ["FINISHED"]


def test_a_method_is_listed_under_the_name_that_its_call_was_given(ray_shared):
    holder = Holder.remote()
    ray.get(holder.free.options(name="glance").remote())
    assert [row.state for row in state.list_tasks(filters=[("name", "=", "glance")])] == ["FINISHED"]


def test_runs_without_task_events_are_in_no_list_and_no_count(ray_shared):
    from ray.util.state import list_tasks, summarize_tasks

    def names():
        summary = summarize_tasks()["cluster"]["summary"]
        return {task.name for task in list_tasks(limit=10_000)} | set(summary)

    @ray.remote(max_retries=0)
    def seen(*_):
        return sorted(name for name in names() if "seen" in name)

    @ray.remote
    class Hidden:
        def unseen(self):
            return 1

        @ray.method(enable_task_events=True)
        def seen_all_the_same(self):
            return 1

    unseen = seen.options(name="unseen_task", enable_task_events=False)
    running = ray.get(unseen.remote())
    failing = unseen.remote(unseen.remote(1, ray.put(1)))
    ray.get([failing, seen.remote()])
    hidden = Hidden.options(enable_task_events=False).remote()
    ray.get([hidden.unseen.remote(), hidden.seen_all_the_same.remote()])
    seen_so = hidden.unseen.options(name="by_call", enable_task_events=True)
    ray.get(seen_so.remote())
    found = {name for name in names() if "seen" in name or "by_call" in name or "Hidden" in name}
    assert found == {"seen", "Hidden.seen_all_the_same", "by_call"}
    assert not [name for name in running if "unseen" in name]
