"""`ray simulate`: what it plays comes out as arithmetic says it must, the same each time; and the command itself."""

from __future__ import annotations

import json

import pytest

from ray._protocol.resources import UNITS
from ray._scheduling.strategy import Spread
from ray._simulation.agenda import Agenda
from ray._simulation.plan import Outcome, Plan, drawing, play
from tests.unit.test_cli import ray_command

EIGHT = {"CPU": 8 * UNITS}


def virtual(outcome: Outcome) -> dict[str, object]:
    real = ("wall_s", "peak_mb", "lease_us", "place_us", "row_us")
    return {name: value for name, value in outcome.row().items() if name not in real}


def test_things_happen_in_the_order_of_their_times_then_of_being_put_down() -> None:
    agenda, done = Agenda(), []
    for delay_s, name in ((2.0, "late"), (1.0, "a"), (1.0, "b")):
        agenda.later(delay_s, done.append, name)
    while agenda.next_at() < 10:
        agenda.step()
    assert done == ["a", "b", "late"] and (agenda.now, agenda.events) == (2.0, 3)


def test_one_node_runs_as_many_tasks_at_a_time_as_it_has_cpus() -> None:
    outcome = play(Plan(nodes=1, node=EIGHT, tasks=80, task_s=1.0))
    assert (outcome.tasks_done, outcome.tasks_left, outcome.nodes_used) == (80, 0, 1)
    assert 10.0 < outcome.makespan_s < 10.1 and outcome.used > 0.98
    assert 4.0 < outcome.wait_s["p50"] < 5.1 and 9.0 < outcome.wait_s["max"] < 9.1


@pytest.mark.parametrize("strategy", [Spread(), Plan(1, EIGHT).strategy])
def test_long_tasks_use_all_of_many_nodes_whatever_the_strategy(strategy: Spread) -> None:
    outcome = play(Plan(nodes=20, node=EIGHT, tasks=20 * 8 * 3, task_s=30.0, strategy=strategy))
    assert outcome.nodes_used == 20 and outcome.makespan_s < 92 and outcome.used > 0.97
    assert 0 < outcome.hops <= 1.1


def test_tasks_that_come_slower_than_they_are_done_hardly_wait() -> None:
    outcome = play(Plan(nodes=4, node=EIGHT, tasks=400, task_s=0.1, per_s=100))
    assert outcome.wait_s["p99"] < 0.02 and 4.0 < outcome.makespan_s < 4.2


def test_several_drivers_share_the_work() -> None:
    outcome = play(Plan(nodes=10, node=EIGHT, tasks=803, task_s=0.5, vary=0.5, drivers=4))
    assert outcome.tasks_done == 803 and outcome.nodes_used == 10


def test_actors_come_up_and_hold_what_they_ask_for() -> None:
    outcome = play(Plan(nodes=5, node=EIGHT, actors=45, actor={"CPU": UNITS}, actor_start_s=0.5))
    assert (outcome.actors_up, outcome.actors_left) == (40, 5)
    assert outcome.actor_wait_s["p50"] >= 0.5
    assert play(Plan(nodes=5, node=EIGHT, actors=400)).actors_up == 400  # they hold nothing


def test_what_no_node_can_hold_is_said() -> None:
    plan = Plan(nodes=3, node=EIGHT, tasks=2, task={"GPU": UNITS})
    outcome = play(plan)
    assert outcome.tasks_left == 2 and "GPU" in outcome.impossible
    assert "2 tasks and 0 actors never start" in drawing(plan, [outcome])


def test_the_same_plan_has_the_same_outcome() -> None:
    plan = Plan(nodes=12, node=EIGHT, tasks=300, task_s=0.2, vary=0.9, drivers=3, actors=30, strategy=Spread())
    assert virtual(play(plan)) == virtual(play(plan))


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (["--nodes", "0"], "at least one node"),
        (["--tasks", "0"], "nothing to do"),
        (["--vary", "2"], "varies by 0 to 1"),
        (["--task-resources", "disk"], "--task-resources must be JSON"),
        (["--resources", "[1]"], "must be an object"),
    ],
)
def test_the_command_refuses_what_makes_no_sense(wrong: list[str], says: str) -> None:
    done = ray_command("simulate", *wrong)
    assert done.returncode == 2 and says in done.stderr and done.stderr.startswith("ray simulate: ")


def test_the_command_draws_a_line_for_each_number_of_nodes() -> None:
    done = ray_command("simulate", "--nodes", "1", "4", "--tasks", "32", "--per-node", "--task-s", "1", "--actors", "2")
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines() if line.strip()[:1].isdigit()]
    assert [line[0] for line in lines] == ["1", "4"] * 3
    assert lines[1][2] == "#" * 24 and len(lines[0][2]) == 6  # four nodes are four times as fast


def test_the_command_gives_all_numbers_as_json() -> None:
    done = ray_command("simulate", "--nodes", "2", "--tasks", "32", "--json", "--spread")
    [row] = json.loads(done.stdout)
    assert row["tasks_done"] == 32 and row["nodes"] == 2 and row["lease_us"] > 0
