"""ray.util.placement_group and the strategies that name a group."""

from __future__ import annotations

import os
import pickle
import re
import subprocess
import sys
import threading

import pytest

import ray
from ray.exceptions import (
    ActorDiedError,
    ActorPlacementGroupRemoved,
    GetTimeoutError,
    TaskPlacementGroupRemoved,
    WorkerCrashedError,
)
from ray.util import (
    get_current_placement_group,
    get_placement_group,
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy
from tests.wait import wait_until

FOUR = pytest.mark.parametrize("ray_start", [{"num_cpus": 4, "resources": {"slot": 4}}], indirect=True)


@ray.remote
def where():
    return get_current_placement_group()


@ray.remote
def place():
    """(group, captures children)."""
    context = ray.get_runtime_context()
    return context.get_placement_group_id(), context.should_capture_child_tasks_in_placement_group


@ray.remote
def parent(**options):
    return ray.get(place.options(**options).remote() if options else place.remote())


@ray.remote(max_retries=0)
def hold(counter):
    """Says that it runs, and does so until it is killed: without ray.get, which would lend its CPU."""
    counter.add.remote()
    threading.Event().wait()


@ray.remote(num_cpus=0)
class Counter:
    def __init__(self):
        self.n = 0

    def add(self):
        self.n += 1

    def count(self):
        return self.n


@ray.remote
class Actor:
    def where(self):
        return get_current_placement_group()

    def child(self):
        return ray.get(place.remote())

    def grandchild(self):
        actor = Actor.remote()
        return ray.get(actor.where.remote())


@ray.remote(num_cpus=1)
class Busy:
    def ready(self):
        return True


def in_group(group, index=-1, capture=None):
    return {"scheduling_strategy": PlacementGroupSchedulingStrategy(group, index, capture)}


def free(name="CPU"):
    return ray.available_resources().get(name, 0)


@pytest.fixture
def group(ray_shared):
    """{"CPU": 1} and {"CPU": 1} of the shared session's two."""
    made = placement_group([{"CPU": 1}, {"CPU": 1}])
    assert made.wait(60)
    yield made
    remove_placement_group(made)
    wait_until(lambda: free() == 2)


# --- making and removing -----------------------------------------------------------------------------------------


def test_a_group_takes_its_resources_and_gives_them_back(ray_shared):
    group = placement_group([{"CPU": 0.5}, {"CPU": 1}])
    assert group.wait(60)
    wait_until(lambda: free() == 0.5)  # a lease of a task before may have been held a little longer
    remove_placement_group(group)
    wait_until(lambda: free() == 2)
    assert not group.wait(0)


@pytest.mark.parametrize("ray_start", [{"num_cpus": 1}], indirect=True)
def test_the_end_of_a_group_takes_no_worker_that_had_nothing_left_to_do_in_it(ray_start):
    # Cause, once: the lease was kept for some milliseconds after the last task; so the worker was killed, and what it
    # owned died with it.
    @ray.remote
    def keep():
        return os.getpid(), [ray.put("kept")]

    @ray.remote
    def pid():
        return os.getpid()

    owner, refs = ray.get(keep.remote(), timeout=60)
    group = placement_group([{"CPU": 1}])
    assert group.wait(60)
    assert ray.get(pid.options(**in_group(group)).remote(), timeout=60) == owner
    remove_placement_group(group)
    wait_until(lambda: free() == 1)
    assert ray.get(refs[0], timeout=60) == "kept"


def test_ready_is_a_ref_of_the_group_itself(group):
    assert ray.get(group.ready(), timeout=60) == group
    assert ray.wait([group.ready(), group.ready()], num_returns=2, timeout=60)[1] == []
    assert ray.get(where.options(num_cpus=0).remote()) is None
    passed = ray.get(ray.remote(num_cpus=0)(lambda made: made).remote(group.ready()))
    assert passed == group and passed.bundle_specs == [{"CPU": 1}, {"CPU": 1}]


def test_a_group_that_does_not_fit_now_waits_until_it_does(group):
    second = placement_group([{"CPU": 1}])
    ready = second.ready()
    assert not second.wait(0.05)
    with pytest.raises(GetTimeoutError):
        ray.get(ready, timeout=0.05)
    assert placement_group_table(second)["state"] == "PENDING"
    remove_placement_group(group)
    assert ray.get(ready, timeout=60) == second
    assert placement_group_table(second)["state"] == "CREATED"
    remove_placement_group(second)


def test_a_group_waits_for_tasks_to_end_and_no_task_takes_what_it_holds(ray_shared):
    actor = Busy.remote()
    ray.get(actor.ready.remote())
    group = placement_group([{"CPU": 2}])
    assert not group.wait(0.05)
    ray.kill(actor)
    assert group.wait(60)
    task = where.remote()
    assert ray.wait([task], timeout=0.1)[0] == []
    remove_placement_group(group)
    assert ray.get(task, timeout=60) is None


def test_ready_of_a_removed_group_is_an_error(ray_shared):
    never = placement_group([{"CPU": 1}, {"CPU": 1}], strategy="STRICT_SPREAD")
    ready = never.ready()
    remove_placement_group(never)
    with pytest.raises(TaskPlacementGroupRemoved, match="remove_placement_group"):
        ray.get(ready, timeout=60)
    remove_placement_group(never)  # again: nothing


@pytest.mark.parametrize("strategy", ["PACK", "SPREAD", "STRICT_PACK"])
def test_on_one_node_all_bundles_lie_there(ray_shared, strategy):
    group = placement_group([{"CPU": 1}, {"CPU": 1}], strategy=strategy)
    assert group.wait(60)
    (node,) = {*placement_group_table(group)["bundles_to_node_id"].values()}
    assert node == ray.get_runtime_context().get_node_id()
    remove_placement_group(group)


@pytest.mark.parametrize(
    ("bundles", "strategy", "why"),
    [
        ([{"CPU": 1}, {"CPU": 1}], "STRICT_SPREAD", "each on a node of its own, and the cluster has 1"),
        ([{"CPU": 64}], "PACK", r"the largest of the cluster's 1 node\(s\) has CPU: 2 in all"),
        ([{"CPU": 1}, {"tape": 1}], "PACK", "has CPU: 2, tape: 0 in all"),
    ],
)
def test_a_group_that_can_never_be_placed_is_pending_and_says_why(ray_shared, capfd, bundles, strategy, why):
    group = placement_group(bundles, strategy=strategy)
    assert not group.wait(0.05)
    said = [""]

    def told():
        said[0] += capfd.readouterr().err
        return re.search(why, said[0])

    wait_until(told)
    row = placement_group_table(group)
    assert row["state"] == "PENDING" and re.search(why, row["why"])
    remove_placement_group(group)


def test_a_pending_group_holds_nothing(ray_shared):
    never = placement_group([{"CPU": 1}, {"CPU": 1}], strategy="STRICT_SPREAD")
    assert not never.wait(0.05)
    wait_until(lambda: free() == 2)
    remove_placement_group(never)


# --- finding -----------------------------------------------------------------------------------------------------


def test_a_named_group_is_found_by_its_name_until_it_is_removed(ray_shared):
    group = placement_group([{"CPU": 1}], name="mine")
    assert get_placement_group("mine") == group
    assert get_placement_group("mine").bundle_specs == [{"CPU": 1}]
    with pytest.raises(ValueError, match="'mine' is taken"):
        placement_group([{"CPU": 1}], name="mine")
    remove_placement_group(group)
    wait_until(lambda: placement_group_table(group)["state"] == "REMOVED")
    with pytest.raises(ValueError, match="no placement group is named 'mine'"):
        get_placement_group("mine")


def test_the_table_has_every_group_by_id(group):
    row = placement_group_table()[group.id.hex()]
    assert row == placement_group_table(group)
    assert row["bundles"] == {0: {"CPU": 1}, 1: {"CPU": 1}}
    assert row["strategy"] == "PACK" and row["state"] == "CREATED" and row["why"] == ""
    assert row["stats"]["scheduling_attempt"] == 1


def test_a_group_can_be_pickled_and_compared(group):
    copy = pickle.loads(pickle.dumps(group))
    assert copy == group and hash(copy) == hash(group) and copy.bundle_count == 2
    assert group != PlacementGroup.empty() and PlacementGroup.empty().is_empty


def test_the_state_api_lists_groups(group):
    from ray.util.state import get_placement_group as get_group_state
    from ray.util.state import list_placement_groups

    listed = list_placement_groups(filters=[("placement_group_id", "=", group.id.hex())], detail=True)
    assert [(row.state, row.is_detached, row.name) for row in listed] == [("CREATED", False, "")]
    node_id = ray.get_runtime_context().get_node_id()
    assert listed[0].bundles == [
        {"bundle_index": i, "unit_resources": {"CPU": 1.0}, "node_id": node_id} for i in range(2)
    ]
    assert get_group_state(group.id.hex()).placement_group_id == group.id.hex()


# --- running in one ----------------------------------------------------------------------------------------------


def test_a_task_in_a_group_draws_from_its_bundle(group):
    assert free() == 0
    assert ray.get(where.options(**in_group(group, 0)).remote(), timeout=60) == group
    assert ray.get([where.options(**in_group(group)).remote() for _ in range(6)], timeout=60) == [group] * 6


@FOUR
def test_a_bundle_runs_no_more_than_it_holds(ray_start):
    group = placement_group([{"CPU": 1, "slot": 1}, {"CPU": 2}])
    counter = Counter.remote()
    refs = [hold.options(**in_group(group, 1)).remote(counter) for _ in range(4)]
    wait_until(lambda: ray.get(counter.count.remote()) == 2)
    assert ray.wait(refs, timeout=0.1)[0] == []
    assert ray.get(counter.count.remote()) == 2
    assert free() == 1  # and the rest of the node is untouched
    anywhere = hold.options(**in_group(group)).remote(counter)
    wait_until(lambda: ray.get(counter.count.remote()) == 3)  # bundle 0 had room
    remove_placement_group(group)
    for ref in [*refs[:2], anywhere]:
        with pytest.raises((WorkerCrashedError, TaskPlacementGroupRemoved), match="placement group"):
            ray.get(ref, timeout=60)


def test_a_task_that_waits_in_a_bundle_lends_its_cpu_to_the_bundle_only(group):
    options = in_group(group, 0, True)
    assert ray.get(parent.options(**options).remote(), timeout=60) == (group.id.hex(), True)
    outside = where.remote()
    assert ray.wait([outside], timeout=0.1)[0] == []
    remove_placement_group(group)
    assert ray.get(outside, timeout=60) is None


def test_a_task_that_comes_before_its_group_has_a_place_waits_for_it(group):
    second = placement_group([{"CPU": 1}])
    early = where.options(**in_group(second)).remote()
    actor = Actor.options(num_cpus=0, **in_group(second)).remote()
    asked = actor.where.remote()
    assert ray.wait([early, asked], timeout=0.1)[0] == []
    remove_placement_group(group)
    assert ray.get([early, asked], timeout=60) == [second, second]
    remove_placement_group(second)


def test_the_older_options_name_a_group_too(group):
    options = {"placement_group": group, "placement_group_bundle_index": 1}
    assert ray.get(where.options(**options).remote(), timeout=60) == group
    assert ray.get(where.options(placement_group="default", num_cpus=0).remote(), timeout=60) is None


def test_an_actor_in_a_group_holds_its_bundle_until_it_ends(group):
    actor = Actor.options(num_cpus=1, **in_group(group, 0)).remote()
    assert ray.get(actor.where.remote(), timeout=60) == group
    waits = where.options(**in_group(group, 0)).remote()
    assert ray.wait([waits], timeout=0.1)[0] == []
    ray.kill(actor)
    assert ray.get(waits, timeout=60) == group


# --- children ----------------------------------------------------------------------------------------------------


def test_children_follow_their_parent_if_the_group_captures_them(group):
    inside = (group.id.hex(), True)
    assert ray.get(parent.options(**in_group(group, 0, True)).remote(), timeout=60) == inside
    assert ray.get(parent.options(num_cpus=0, **in_group(group, 0)).remote(num_cpus=0), timeout=60) == (None, False)


def test_a_child_leaves_the_group_by_saying_so(group):
    options = {"num_cpus": 0, "placement_group": None}
    assert ray.get(parent.options(**in_group(group, 0, True)).remote(**options), timeout=60) == (None, False)
    strategy = {"num_cpus": 0, "scheduling_strategy": PlacementGroupSchedulingStrategy(None)}
    assert ray.get(parent.options(**in_group(group, 0, True)).remote(**strategy), timeout=60) == (None, False)


def test_a_worker_that_ran_a_captured_parent_captures_nothing_afterwards(group):
    inside = (group.id.hex(), True)
    for _ in range(3):
        assert ray.get(parent.options(num_cpus=0, **in_group(group, 0, True)).remote(num_cpus=0), timeout=60) == inside
        assert ray.get(parent.options(num_cpus=0).remote(num_cpus=0), timeout=60) == (None, False)


def test_children_of_an_actor_follow_it_too(group):
    actor = Actor.options(num_cpus=0, **in_group(group, 0, True)).remote()
    assert ray.get(actor.child.remote(), timeout=60) == (group.id.hex(), True)
    assert ray.get(actor.grandchild.remote(), timeout=60) == group


# --- the group's end ---------------------------------------------------------------------------------------------


@FOUR
def test_removal_ends_what_runs_and_fails_what_waits(ray_start):
    group = placement_group([{"CPU": 2}])
    counter = Counter.remote()
    runs = hold.options(num_cpus=1, **in_group(group)).remote(counter)
    actor = Actor.options(num_cpus=1, max_restarts=-1, **in_group(group)).remote()
    assert ray.get(actor.where.remote(), timeout=60) == group
    wait_until(lambda: ray.get(counter.count.remote()) == 1)
    waits = where.options(num_cpus=2, **in_group(group)).remote()
    waiting_actor = Actor.options(num_cpus=1, **in_group(group)).remote()
    asked = waiting_actor.where.remote()
    remove_placement_group(group)
    with pytest.raises((WorkerCrashedError, TaskPlacementGroupRemoved), match="placement group"):
        ray.get(runs, timeout=60)
    with pytest.raises(TaskPlacementGroupRemoved, match=group.id.hex()):
        ray.get(waits, timeout=60)
    with pytest.raises(ActorPlacementGroupRemoved):
        ray.get(asked, timeout=60)
    # One that ran can't come back either.
    wait_until(lambda: _state_of(actor) == "DEAD")
    with pytest.raises((ActorDiedError, ActorPlacementGroupRemoved)):
        ray.get(actor.where.remote(), timeout=60)
    wait_until(lambda: free() == 4)
    with pytest.raises(TaskPlacementGroupRemoved):
        ray.get(where.options(**in_group(group)).remote(), timeout=60)
    with pytest.raises(ActorPlacementGroupRemoved):
        ray.get(Actor.options(**in_group(group)).remote().where.remote(), timeout=60)


def _state_of(actor):
    from ray import api

    rows = api.engine().rpc("actors")
    return next(row["state"] for row in rows if row["actor_id"] == actor._actor_id.hex())


def test_what_a_worker_made_ends_with_the_job_and_not_with_the_worker(ray_shared):
    @ray.remote(num_cpus=0, max_calls=1)
    def make():
        return placement_group([{"CPU": 1}])

    group = ray.get(make.remote(), timeout=60)
    assert group.wait(60)
    assert ray.get(where.options(**in_group(group)).remote(), timeout=60) == group
    remove_placement_group(group)
    wait_until(lambda: free() == 2)


# --- wrong -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"bundles": []}, ValueError, r"bundles=\[\]: expected one bundle"),
        ({"bundles": {"CPU": 1}}, ValueError, "bundles=.*expected a list of dicts"),
        ({"bundles": [[1]]}, ValueError, r"bundles\[0\]=\[1\]: expected a dict"),
        ({"bundles": [{"CPU": 1}, {}]}, ValueError, r"bundles\[1\]=\{\}: expected an amount above 0"),
        ({"bundles": [{"CPU": 0}]}, ValueError, r"bundles\[0\]=\{'CPU': 0\}: expected an amount above 0"),
        ({"bundles": [{"CPU": -1}]}, ValueError, r"bundles\[0\]\['CPU'\]=-1"),
        ({"bundles": [{"CPU": "2"}]}, TypeError, r"bundles\[0\]\['CPU'\]='2'"),
        ({"bundles": [{"GPU": 1.5}]}, ValueError, r"bundles\[0\]\['GPU'\]=1.5"),
        ({"bundles": [{3: 1}]}, ValueError, "resource name 3"),
        ({"bundles": [{"CPU": 1}], "strategy": "TIGHT"}, ValueError, "strategy='TIGHT': expected one of"),
        ({"bundles": [{"CPU": 1}], "name": 3}, TypeError, "name=3"),
        ({"bundles": [{"CPU": 1}], "lifetime": "long"}, ValueError, "lifetime='long': expected 'detached' or None"),
        (
            {"bundles": [{"CPU": 1}], "bundle_label_selector": [{}, {}]},
            ValueError,
            "one dict for each of the 1 bundles",
        ),
        ({"bundles": [{"CPU": 1}], "bundle_label_selector": {"a": "b"}}, TypeError, "expected a list of dicts"),
        ({"bundles": [{"CPU": 1}], "bundle_label_selector": [{"a": 1}]}, TypeError, r"bundle_label_selector\[0\]"),
        ({"bundles": [{"CPU": 1}], "_soft_target_node_id": "00"}, ValueError, "only for strategy='STRICT_PACK'"),
        (
            {"bundles": [{"CPU": 1}], "strategy": "STRICT_PACK", "_soft_target_node_id": "zz"},
            ValueError,
            "_soft_target_node_id='zz': expected a node's id in hexadecimal",
        ),
        (
            {"bundles": [{"CPU": 1}], "_max_cpu_fraction_per_node": 0},
            ValueError,
            "expected a number above 0, at most 1",
        ),
    ],
)
def test_a_wrong_argument_of_placement_group_is_named(ray_shared, arguments, error, message):
    with pytest.raises(error, match=message):
        placement_group(**arguments)


@pytest.mark.parametrize("ray_start", [{"num_cpus": 2, "labels": {"zone": "a"}}], indirect=True)
def test_bundles_lie_only_where_the_labels_are_that_they_ask_for(ray_start):
    here = placement_group([{"CPU": 1}, {"CPU": 1}], bundle_label_selector=[{"zone": "in(a, b)"}, {}])
    assert here.wait(60)
    remove_placement_group(here)
    elsewhere = placement_group([{"CPU": 1}], bundle_label_selector=[{"zone": "b"}])
    assert not elsewhere.wait(0)
    assert "its bundles may only lie where zone = b" in placement_group_table(elsewhere)["why"]


@FOUR
def test_a_group_leaves_the_share_of_cpus_that_it_was_told_to(ray_start):
    half = placement_group([{"CPU": 1}, {"CPU": 1}], _max_cpu_fraction_per_node=0.5)
    assert half.wait(60)
    more = placement_group([{"CPU": 1}], _max_cpu_fraction_per_node=0.5)
    assert not more.wait(0) and placement_group_table(more)["state"] == "PENDING"
    never = placement_group([{"CPU": 3}], _max_cpu_fraction_per_node=0.5)
    assert "it may have 0.5 of each node's CPUs" in placement_group_table(never)["why"]
    remove_placement_group(never)
    remove_placement_group(half)
    assert more.wait(60)


@pytest.mark.parametrize("target", ["this", "gone"])
def test_a_soft_target_that_is_gone_keeps_no_group_from_its_place(ray_shared, target):
    node = ray.nodes()[0]["NodeID"] if target == "this" else "ff" * 16
    group = placement_group([{"CPU": 1}], strategy="STRICT_PACK", _soft_target_node_id=node)
    assert group.wait(60)
    remove_placement_group(group)


@pytest.mark.parametrize("index", [2, 100, -2])
def test_a_bundle_index_out_of_range_is_a_value_error_at_the_call(group, index):
    with pytest.raises(ValueError, match=rf"placement_group_bundle_index={index}: expected 0 to 1"):
        where.options(**in_group(group, index))
    with pytest.raises(ValueError, match=f"placement_group_bundle_index={index}"):
        Actor.options(placement_group=group, placement_group_bundle_index=index)


def test_what_fits_into_no_bundle_is_a_value_error_at_the_call(group):
    with pytest.raises(ValueError, match=r"asks for CPU: 2, which can never fit into any bundle .*\{CPU: 1\}"):
        where.options(num_cpus=2, **in_group(group))
    with pytest.raises(ValueError, match="can never fit into bundle 1"):
        Actor.options(resources={"tape": 1}, **in_group(group, 1))


def test_options_that_contradict_each_other_are_refused(group):
    with pytest.raises(ValueError, match="exclude each other"):
        where.options(placement_group=group, **in_group(group))
    with pytest.raises(ValueError, match="no placement_group was given"):
        where.options(placement_group_bundle_index=1)
    with pytest.raises(TypeError, match="placement_group='mine'"):
        where.options(placement_group="mine")
    with pytest.raises(TypeError, match="placement_group='mine'"):
        PlacementGroupSchedulingStrategy("mine")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="expected a PlacementGroup"):
        remove_placement_group("mine")  # type: ignore[arg-type]


def test_ray_util_has_the_function_whichever_way_the_module_was_imported():
    code = (
        "import ray.util, ray.util.placement_group\n"
        "from ray.util import placement_group\n"
        "from ray.util.placement_group import placement_group as other, PlacementGroup\n"
        "assert ray.util.placement_group is placement_group is other and callable(other)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
