"""Environments of a node: when they are built, for whom they are ready, which go. No process, virtual clock."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from ray._node import env_messages as em
from ray._node.runtime_envs import BUILDING, READY, STOPPING, RuntimeEnvs

CORE, OTHER = b"c" * 16, b"o" * 16


class Bench:
    def __init__(self, **options: Any) -> None:
        self.used: set[str] = set()
        self.envs = RuntimeEnvs(lambda: self.used, **options)
        self.now = 0.0

    def do(self, event: Any) -> list[Any]:
        actions = self.envs.handle(event, self.now)
        self.envs.check()
        return actions

    def ask(self, key: str, number: int = 1, tag: bytes = CORE, **fields: Any) -> list[Any]:
        env = {"pip": {"packages": [key]}, **fields}
        return self.do(em.Requested(("task", tag, number), key, json.dumps(env)))

    def state(self, key: str) -> str:
        return self.envs.envs[key].state

    def part(self, key: str) -> str:
        return self.envs.envs[key].parts[0]


def granted(key: str, number: int = 1, tag: bytes = CORE) -> em.Granted:
    return em.Granted(("task", tag, number), key)


def test_however_many_ask_it_is_built_once_and_all_are_granted() -> None:
    bench = Bench()
    assert bench.ask("a", 1) == [em.StartBuild("a")]
    assert bench.ask("a", 2) == [] == bench.ask("a", 3, OTHER)
    assert bench.do(em.Built("a", {"x": 1}, {})) == [granted("a", 1), granted("a", 2), granted("a", 3, OTHER)]
    assert bench.ask("a", 4) == [granted("a", 4)] and bench.envs.get("a").context == {"x": 1}  # type: ignore[union-attr]
    assert bench.envs.stats()["built"] == 1


def test_an_environment_of_nothing_but_variables_is_ready_at_once() -> None:
    bench = Bench()
    assert bench.do(em.Requested(("job", b"j"), "v", json.dumps({"env_vars": {"A": "1"}}))) == [
        em.Granted(("job", b"j"), "v")
    ]


def test_a_failure_is_told_to_all_who_wait_and_the_next_request_builds_anew() -> None:
    bench = Bench()
    bench.ask("a", 1)
    bench.ask("a", 2)
    assert bench.do(em.BuildFailed("a", "pip says no")) == [
        em.Refused(("task", CORE, number), "a", "pip says no") for number in (1, 2)
    ]
    assert bench.ask("a", 3) == [em.StartBuild("a")]


def test_no_more_than_builds_max_are_built_at_a_time() -> None:
    bench = Bench(builds_max=2)
    assert [bench.ask(key, number) for number, key in enumerate("ab")] == [[em.StartBuild("a")], [em.StartBuild("b")]]
    assert bench.ask("c", 3) == []
    assert bench.do(em.Built("a", {}, {})) == [granted("a", 0), em.StartBuild("c")]


def test_a_build_that_takes_too_long_is_stopped_and_those_who_wait_hear_of_the_limit() -> None:
    bench = Bench()
    bench.ask("a", config={"setup_timeout_seconds": 7})
    assert bench.envs.deadline() == 7.0
    bench.now = 7.0
    assert bench.do(em.Tick()) == [em.StopBuild("a")] and bench.state("a") == STOPPING
    (refused,) = bench.do(em.BuildFailed("a", "killed by SIGKILL"))
    assert "not set up within 7 s" in refused.cause and bench.envs.deadline() is None


def test_minus_one_means_no_limit() -> None:
    bench = Bench()
    bench.ask("a", config={"setup_timeout_seconds": -1})
    assert bench.envs.deadline() is None


def test_a_build_that_nobody_waits_for_any_more_is_stopped() -> None:
    bench = Bench()
    bench.ask("a", 1)
    bench.ask("a", 2)
    assert bench.do(em.Withdrawn(("task", CORE, 1))) == []
    assert bench.do(em.CoreLeft(CORE)) == [em.StopBuild("a")]
    assert bench.do(em.BuildFailed("a", "killed")) == [] and not bench.envs.envs


def test_who_asks_while_a_build_is_being_stopped_gets_a_new_one() -> None:
    bench = Bench()
    bench.ask("a", 1)
    bench.do(em.Withdrawn(("task", CORE, 1)))
    assert bench.ask("a", 2) == []
    assert bench.do(em.BuildFailed("a", "killed")) == [em.StartBuild("a")] and bench.state("a") == BUILDING


def test_a_build_may_end_before_the_signal_reaches_it() -> None:
    bench = Bench()
    bench.ask("a", 1)
    bench.do(em.Withdrawn(("task", CORE, 1)))
    assert bench.do(em.Built("a", {}, {})) == [] and bench.state("a") == READY


def test_a_withdrawal_leaves_the_line() -> None:
    bench = Bench(builds_max=1)
    bench.ask("a")
    bench.ask("b", 2)
    assert bench.do(em.Withdrawn(("task", CORE, 2))) == [] and list(bench.envs.envs) == ["a"]
    assert bench.do(em.Withdrawn(("task", CORE, 2))) == []


def filled() -> Bench:
    """a, then b, each 60 of 100 bytes; a was used longest ago."""
    bench = Bench(cache_bytes=100)
    for number, key in enumerate("ab"):
        bench.ask(key, number)
        bench.do(em.Placed(("task", CORE, number)))
        if key == "a":
            bench.do(em.Built(key, {}, {bench.part(key): 60}))
            bench.do(em.Placed(("task", CORE, number)))
    return bench


def test_what_was_used_longest_ago_goes_when_there_is_too_much() -> None:
    bench = filled()
    gone = bench.part("a")
    actions = bench.do(em.Built("b", {}, {bench.part("b"): 60}))
    assert actions == [granted("b", 1), em.Forgotten("a"), em.Remove((gone,))]
    assert bench.envs.stats()["bytes"] == 60 and bench.ask("a", 9) == [em.StartBuild("a")]


def test_what_is_in_use_stays_until_it_is_not() -> None:
    bench = filled()
    bench.used = {"a", "b"}
    assert bench.do(em.Built("b", {}, {bench.part("b"): 60})) == [granted("b", 1)]
    bench.used = {"b"}
    assert [type(action) for action in bench.do(em.LessInUse())] == [em.Forgotten, em.Remove]


def test_what_was_granted_stays_until_it_is_placed() -> None:
    bench = filled()
    bench.ask("a", 5)
    bench.do(em.Built("b", {}, {bench.part("b"): 60}))
    assert bench.do(em.LessInUse()) == []
    bench.do(em.Placed(("task", CORE, 5)))
    assert em.Forgotten("a") in bench.do(em.LessInUse())


def test_a_part_that_another_environment_has_too_stays() -> None:
    bench = Bench(cache_bytes=10)
    text = {"pip": {"packages": ["x"]}}
    for number, variables in enumerate(({"A": "1"}, {"A": "2"})):
        waiter = ("task", CORE, number)
        bench.do(em.Requested(waiter, f"e{number}", json.dumps({**text, "env_vars": variables})))
        bench.used = {"e1"}
        bench.do(em.Placed(waiter))
        actions = bench.do(em.Built(f"e{number}", {}, {bench.part(f"e{number}"): 60}))
        bench.do(em.Placed(waiter))
    assert not [action for action in actions if isinstance(action, em.Remove)]
    assert bench.envs.stats()["bytes"] == 60


@pytest.mark.parametrize("seed", range(20))
def test_every_request_is_answered_whatever_happens(seed: int) -> None:
    """Random requests, withdrawals, ends of builds and time: in the end each that was not withdrawn is answered."""
    rng = random.Random(seed)
    bench = Bench(builds_max=2, cache_bytes=150)
    open_: dict[tuple[Any, ...], str] = {}
    building: set[str] = set()

    def take(actions: list[Any]) -> None:
        for action in actions:
            if isinstance(action, em.StartBuild):
                assert action.key not in building
                building.add(action.key)
            elif isinstance(action, (em.Granted, em.Refused)):
                assert open_.pop(action.waiter) == action.key
                if isinstance(action, em.Granted):
                    take(bench.do(em.Placed(action.waiter)))

    for number in range(400):
        bench.now += rng.random()
        roll = rng.random()
        if roll < 0.5:
            key = rng.choice("abcdef")
            open_["task", CORE, number] = key
            take(bench.ask(key, number, config={"setup_timeout_seconds": 5}))
        elif roll < 0.65 and open_:
            waiter = rng.choice(list(open_))
            del open_[waiter]
            take(bench.do(em.Withdrawn(waiter)))
        elif roll < 0.9 and building:
            key = rng.choice(sorted(building))
            building.discard(key)
            failed = rng.random() < 0.3 or bench.state(key) == STOPPING
            take(bench.do(em.BuildFailed(key, "x") if failed else em.Built(key, {}, {bench.part(key): 60})))
        else:
            take(bench.do(em.Tick()))
    while building:
        key = building.pop()
        take(bench.do(em.Built(key, {}, {bench.part(key): 60})))
    assert not open_, f"seed {seed}"
