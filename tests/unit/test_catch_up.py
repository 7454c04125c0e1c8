"""Rounds in which every node says what it had to say."""

from __future__ import annotations

from ray._node.catch_up import CatchUp


def test_a_round_ends_when_all_have_answered_or_are_gone() -> None:
    asked: list[tuple[int, int]] = []
    ended: list[int] = []
    catching_up = CatchUp(lambda number, of_round: asked.append((number, of_round)))
    catching_up.begin([1, 2, 3], lambda: ended.append(1))
    assert sorted(asked) == [(1, 1), (2, 1), (3, 1)]
    catching_up.answered(1, 1)
    catching_up.gone(3)
    catching_up.gone(7)
    catching_up.answered(1, 1)
    assert not ended
    catching_up.answered(2, 1)
    assert ended == [1]
    catching_up.begin([1], lambda: ended.append(2))
    catching_up.answered(1, 1)  # late: of the round before
    assert ended == [1]
    catching_up.answered(1, 2)
    assert ended == [1, 2]


def test_a_round_that_is_asked_for_during_another_follows_it() -> None:
    asked: list[tuple[int, int]] = []
    ended: list[int] = []
    numbers = {1: None, 2: None}
    catching_up = CatchUp(lambda number, of_round: asked.append((number, of_round)))
    for n in range(3):
        catching_up.begin(numbers, lambda n=n: ended.append(n))  # type: ignore[misc]
    assert sorted(asked) == [(1, 1), (2, 1)]
    del numbers[2]
    catching_up.gone(2)
    catching_up.answered(1, 1)
    assert ended == [0] and asked[2:] == [(1, 2)]
    catching_up.answered(1, 2)
    assert ended == [0, 1]
    catching_up.answered(1, 3)
    assert ended == [0, 1, 2] and len(asked) == 4


def test_a_round_without_nodes_ends_at_once_and_may_begin_the_next() -> None:
    ended: list[int] = []
    catching_up = CatchUp(lambda number, of_round: None)

    def again() -> None:
        ended.append(len(ended))
        if len(ended) < 3:
            catching_up.begin([], again)

    catching_up.begin([], again)
    assert ended == [0, 1, 2]
