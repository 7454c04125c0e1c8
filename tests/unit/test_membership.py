"""Nodes come, are known, report and go, as the head sees it."""

from __future__ import annotations

import random
from typing import Any

import pytest

from ray._head.membership import (
    GONE,
    JOINING,
    MEMBER,
    Acknowledged,
    Action,
    Admit,
    Gathered,
    Joined,
    Left,
    Membership,
    Reported,
    Returned,
    Spread,
    Tell,
    View,
    told,
)
from ray._node.cluster_view import KnownRows
from ray._scheduling.machine import InvalidTransition


def join(cluster: Membership, name: str) -> list[Action]:
    return cluster.handle(Joined(name.encode(), {"host": name, "port": 1, "total": {"CPU": 10_000}, "labels": {}}))


@pytest.fixture
def two() -> Membership:
    cluster = Membership()
    join(cluster, "head")
    join(cluster, "a")
    cluster.handle(Acknowledged(0, 1))
    return cluster


def test_the_first_is_number_0_and_open_at_once() -> None:
    cluster = Membership()
    admit, opened, view = join(cluster, "head")
    assert (admit, opened) == (Admit(0, []), Tell(0, "opened", ()))
    assert isinstance(view, Tell) and view.args[0][0]["number"] == 0  # its own row: so it knows its number
    assert cluster.state(0) == MEMBER


def test_a_node_is_opened_once_every_other_knows_it(two: Membership) -> None:
    admitted, *rest = join(two, "b")
    assert isinstance(admitted, Admit)
    assert (admitted.number, [row["host"] for row in admitted.table]) == (2, ["head", "a"])
    assert [(t.to, t.name, t.args[0]["number"]) for t in rest if isinstance(t, Tell)] == [
        (0, "node_up", 2),
        (1, "node_up", 2),
    ]
    assert two.handle(Acknowledged(1, 2)) == [] and two.state(2) == JOINING
    actions = two.handle(Acknowledged(0, 2))
    assert two.state(2) == MEMBER
    assert [t.name for t in told(actions, 2)] == ["opened", "view"]
    assert [row["number"] for row in told(actions, 2)[1].args[0]] == [0, 1, 2]
    assert [t.name for t in told(actions, 0) + told(actions, 1)] == ["view", "view"]


def test_nobody_waits_for_a_node_that_has_gone(two: Membership) -> None:
    join(two, "b")
    two.handle(Acknowledged(0, 2))
    actions = two.handle(Left(1, "its machine burned"))
    assert two.state(2) == MEMBER and "opened" in [t.name for t in told(actions, 2)]
    assert ("node_down", (1, "its machine burned")) in [(t.name, t.args) for t in told(actions, 0)]
    assert ("node_down", (1, "its machine burned")) in [(t.name, t.args) for t in told(actions, 2)]


def test_two_may_join_at_once(two: Membership) -> None:
    join(two, "b")
    join(two, "c")
    for number, of in [(0, 2), (1, 3), (1, 2), (0, 3)]:
        two.handle(Acknowledged(number, of))
    assert (two.state(2), two.state(3)) == (MEMBER, JOINING)  # 2 has yet to say that it knows 3
    two.handle(Acknowledged(2, 3))
    assert two.state(3) == MEMBER


def test_a_number_is_never_given_twice(two: Membership) -> None:
    two.handle(Left(1, "gone"))
    assert join(two, "a")[0] == Admit(
        2, [{"host": "head", "port": 1, "total": {"CPU": 10_000}, "labels": {}, "number": 0, "node_id": b"head"}]
    )
    assert Membership(next_number=two.next_number).next_number == 3


def test_reports_are_gathered_and_what_has_changed_goes_to_all_at_once(two: Membership) -> None:
    assert two.handle(Spread()) == [] and not two.news
    assert two.handle(Reported(1, {"available": {"CPU": 5_000}, "queued": 3})) == [] and two.news
    (view,) = two.handle(Spread())
    assert isinstance(view, View) and view.to == [0, 1] and not two.news
    (row,) = view.rows
    assert (row["available"], row["queued"], row["state"]) == ({"CPU": 5_000}, 3, "ALIVE")
    two.handle(Reported(0, {"available": {"CPU": 1_000}}))
    two.handle(Reported(1, {"available": {"CPU": 5_000}, "queued": 4}))
    two.handle(Reported(1, {"available": {"CPU": 5_000}, "queued": 5}))
    (view,) = two.handle(Spread())
    assert isinstance(view, View) and view.rows[1] == {"number": 1, "queued": 5}
    two.handle(Reported(1, {"available": {"CPU": 5_000}, "queued": 5}))
    assert not two.news


def test_what_every_node_says_costs_one_message_for_each_node() -> None:
    cluster = Membership()
    for number in range(50):
        join(cluster, f"n{number}")
        for other in range(number):
            cluster.handle(Acknowledged(other, number))
    for queued in (0, 1):
        assert all(cluster.handle(Reported(number, {"queued": queued})) == [] for number in range(50))
        (view,) = cluster.handle(Spread())
        assert isinstance(view, View) and len(view.to) == len(view.rows) == 50
    assert all(row.keys() == {"number", "queued"} for row in view.rows)


def test_nothing_is_said_any_more_of_a_node_that_has_gone(two: Membership) -> None:
    two.handle(Reported(1, {"queued": 1}))
    two.handle(Left(1, "gone"))
    assert not two.news and two.handle(Spread()) == []
    assert KnownRows().take([{"number": 1, "queued": 1}]) == []


def test_what_comes_late_changes_nothing(two: Membership) -> None:
    two.handle(Left(1, "gone"))
    assert (
        two.handle(Reported(1, {"queued": 1})) == two.handle(Acknowledged(0, 1)) == two.handle(Left(1, "again")) == []
    )
    assert two.state(1) == GONE


def test_a_stranger_is_a_bug(two: Membership) -> None:
    with pytest.raises(InvalidTransition, match="never joined"):
        two.handle(Reported(7, {}))


@pytest.mark.parametrize("seed", range(30))
def test_whatever_happens_everybody_who_lives_hears_the_same(seed: int) -> None:
    """Each node keeps a table of what it was told; messages of one node come in order, those of several mixed."""
    rng, cluster = random.Random(seed), Membership()
    inboxes: dict[int, list[Tell]] = {}
    tables: dict[int, set[int]] = {}
    opened: set[int] = set()
    known: dict[int, KnownRows] = {}
    views: dict[int, dict[int, int]] = {}  # by node: what it knows of how many wait where
    reported: dict[int, int] = {}

    def carry_out(actions: list[Action]) -> None:
        for action in actions:
            if isinstance(action, Admit):
                inboxes[action.number] = []
                tables[action.number] = {row["number"] for row in action.table}
                known[action.number], views[action.number] = KnownRows(), {}
                continue
            for number in action.to if isinstance(action, View) else [action.to]:
                inboxes[number] += told([action], number)
        cluster.check()

    def deliver(number: int) -> None:
        tell: Any = inboxes[number].pop(0)
        if tell.name == "node_up":
            tables[number].add(tell.args[0]["number"])
            carry_out(cluster.handle(Acknowledged(number, tell.args[0]["number"])))
        elif tell.name == "node_down":
            tables[number].discard(tell.args[0])
        elif tell.name == "view":
            for row in known[number].take(tell.args[0]):
                if row.alive:
                    views[number][row.number] = row.queued
                else:
                    views[number].pop(row.number, None)
        elif tell.name == "opened":
            opened.add(number)
            for other in set(cluster.living()) - {number}:  # what the acknowledgements are for
                assert number in tables[other]

    carry_out(join(cluster, "head"))
    for step in range(200):
        what = rng.random()
        if what < 0.1:
            carry_out(join(cluster, f"n{step}"))
        elif what < 0.15 and len(cluster.living()) > 1:
            carry_out(cluster.handle(Left(rng.choice(cluster.living()[1:]), "by chance")))
        elif what < 0.25:
            reporter = rng.choice(cluster.living())
            reported[reporter] = step
            carry_out(cluster.handle(Reported(reporter, {"queued": step})))
        elif what < 0.35:
            carry_out(cluster.handle(Spread()))
        else:
            waiting = [n for n in cluster.living() if inboxes[n]]
            if waiting:
                deliver(rng.choice(waiting))
    while any(inboxes[n] for n in cluster.living()) or cluster.news:
        for n in cluster.living():
            while inboxes[n]:
                deliver(n)
        carry_out(cluster.handle(Spread()))
    living = set(cluster.living())
    assert all(views[n] == {number: reported.get(number, 0) for number in living} for n in living)
    assert living <= opened
    assert all(tables[n] == living - {n} for n in living)


# -- a head that takes over --------------------------------------------------------------------------------------------


def again(cluster: Membership, number: int, name: str) -> list[Action]:
    about = {"host": name, "port": 1, "total": {"CPU": 10_000}, "labels": {}}
    return cluster.handle(Returned(number, name.encode(), about))


def test_nodes_that_come_back_keep_their_numbers_and_the_heads_own_gets_the_next() -> None:
    cluster = Membership(next_number=5, earlier={1: b"a", 2: b"b"})
    assert again(cluster, 2, "b") == again(cluster, 1, "a") == []
    admits = cluster.handle(Gathered())
    assert [(a.number, [row["number"] for row in a.table]) for a in admits if isinstance(a, Admit)] == [
        (1, [2]),
        (2, [1]),
    ]
    assert cluster.state(1) == cluster.state(2) == MEMBER
    admit, *rest = join(cluster, "head")
    assert isinstance(admit, Admit) and admit.number == 5
    assert sorted((t.to, t.name) for t in rest if isinstance(t, Tell)) == [(1, "node_up"), (2, "node_up")]
    assert cluster.state(5) == JOINING, "it may have processes when both know it"
    cluster.handle(Acknowledged(1, 5))
    cluster.handle(Acknowledged(2, 5))
    assert cluster.state(5) == MEMBER
    cluster.check()


def test_who_is_late_was_never_there_or_was_declared_dead_may_not_come_back() -> None:
    cluster = Membership(next_number=3, earlier={1: b"a", 2: b"b"})
    again(cluster, 1, "a")
    assert "in use" in str(cluster.refusal_to_return(1, b"other"))
    assert "another node's" in str(cluster.refusal_to_return(3, b"stranger"))
    assert "another node's" in str(cluster.refusal_to_return(2, b"a")), "one node, two numbers"
    cluster.handle(Gathered())
    assert "gathered its nodes" in str(cluster.refusal_to_return(2, b"b"))
    cluster.handle(Left(1, "it was silent"))
    assert "declared dead" in str(cluster.refusal_to_return(1, b"a"))
    with pytest.raises(InvalidTransition):
        again(cluster, 2, "b")
    assert "declared dead" in str(Membership().refusal_to_return(1, b"a")), "a head that took over from nobody"


def test_one_whose_connection_broke_unheard_may_come_back_over_another_while_the_rest_is_waited_for() -> None:
    """It was refused, "number 1 is in use", and ended itself: its first connection's end came behind the second's
    beginning. Found by the simulation, seed 55."""
    cluster = Membership(next_number=3, earlier={1: b"a", 2: b"b"})
    again(cluster, 1, "a")
    assert cluster.refusal_to_return(1, b"a") is None
    assert again(cluster, 1, "a") == []
    assert "in use" in str(cluster.refusal_to_return(1, b"other"))
    assert [a.number for a in cluster.handle(Gathered()) if isinstance(a, Admit)] == [1]
    assert "in use" in str(cluster.refusal_to_return(1, b"a")), "as a member it has been told of the others"
    cluster.check()


def test_whom_an_earlier_head_has_given_up_may_not_come_back_to_the_next() -> None:
    """It was let in by the third head, though the second had not seen it among its nodes, had declared it dead and
    given its work to others: each asked only whether the number was below its own. Found by the simulation, seed 1."""
    cluster = Membership(next_number=4, earlier={2: b"b", 3: b"c"})
    assert "declared dead" in str(cluster.refusal_to_return(1, b"a"))
    assert again(cluster, 2, "b") == again(cluster, 3, "c") == []
    assert cluster.given_up({b"b", b"other"}) == [2], "as the tables say, though not the file"
    assert "declared dead" in str(cluster.refusal_to_return(2, b"b"))
    assert [a.number for a in cluster.handle(Gathered()) if isinstance(a, Admit)] == [3]
    cluster.check()


def test_one_that_is_lost_while_the_others_are_waited_for_may_come_back_once_more() -> None:
    cluster = Membership(next_number=3, earlier={1: b"a", 2: b"b"})
    again(cluster, 1, "a")
    assert cluster.handle(Left(1, "its connection ended")) == []
    assert cluster.state(1) is None
    again(cluster, 1, "a")
    assert [a.number for a in cluster.handle(Gathered()) if isinstance(a, Admit)] == [1]
    cluster.check()
