"""What a node keeps for a head that is away."""

from __future__ import annotations

import random
from typing import Any

import pytest

from ray._node import outbox as module
from ray._node.outbox import Asked, Outbox, Told


def encode(number: int, name: str, args: tuple[Any, ...]) -> bytes:
    return f"{number} {name} {args}".encode()


def said(outbox: Outbox) -> list[Any]:
    return [entry.method if isinstance(entry, Asked) else entry.name for entry in outbox.again()]


def test_what_is_not_kept_by_the_head_is_said_again_in_the_order_it_was_said() -> None:
    outbox = Outbox(encode)
    outbox.tell("a", ())
    outbox.ask("b", (), None)
    c = outbox.ask("c", (), None)
    outbox.tell("d", ())
    outbox.ask("e", (), None)
    assert said(outbox) == ["a", "b", "c", "d", "e"]
    outbox.kept(1)
    outbox.answered(c)
    assert said(outbox) == ["b", "d", "e"]
    outbox.check()


def test_what_means_nothing_to_the_new_head_is_dropped() -> None:
    outbox = Outbox(encode)
    for name in ("x", "y", "x"):
        outbox.tell(name, ())
    outbox.drop(lambda entry: entry.name == "x")
    assert said(outbox) == ["y"]
    outbox.check()
    outbox.kept(3)
    assert said(outbox) == [] and outbox.stats()["bytes"] == 0


def test_beyond_the_bound_the_oldest_is_forgotten_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BYTES_MAX", 1000)
    outbox = Outbox(encode)
    for _ in range(10):
        outbox.tell("x", ())
    assert outbox.full
    outbox.forget_beyond_bound()
    assert not outbox.full and outbox.forgotten == 10 - len(list(outbox.told())) > 0
    outbox.check()


@pytest.mark.parametrize("seed", range(5))
def test_random_events_requests_and_words_of_the_head(seed: int) -> None:
    rng = random.Random(seed)
    outbox = Outbox(encode)
    model: list[Told | Asked] = []
    for step in range(500):
        kind = rng.random()
        if kind < 0.4:
            model.append(outbox.tell(f"t{step}", ()))
        elif kind < 0.7:
            model.append(outbox.ask(f"a{step}", (), None))
        elif kind < 0.85:
            upto = rng.randint(0, step)
            outbox.kept(upto)
            model = [entry for entry in model if isinstance(entry, Asked) or entry.number > upto]
        elif outbox.asked():
            entry = rng.choice(outbox.asked())
            outbox.answered(entry)
            model.remove(entry)
        assert outbox.again() == model
        outbox.check()
