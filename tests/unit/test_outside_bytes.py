"""What comes from outside and is nonsense raises the error that is named for it, nothing else, and has no effect."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ray._head.requests import EVENTS
from ray._head.service import HeadService
from ray._node.gate import Refused, parse_preamble
from ray._protocol.frames import PREAMBLE_MAGIC
from ray._scheduling import strategy
from tests.unit.test_head_service import Core, RecordedPort

plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.binary(max_size=20) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)
head_of_it = PREAMBLE_MAGIC + (1).to_bytes(2, "little")
preambles = st.tuples(st.integers(0, 4), st.just(bytes(5)) | st.binary(min_size=5, max_size=5), st.binary(max_size=16))


@given(
    st.binary(min_size=32, max_size=32)
    | preambles.map(lambda p: head_of_it + bytes([p[0]]) + p[1] + p[2] + bytes(16 - len(p[2])))
)
def test_the_first_bytes_of_a_connection_are_a_preamble_or_refused(preamble: bytes) -> None:
    try:
        destination, tag = parse_preamble(preamble)
    except Refused:
        return
    assert preamble.startswith(PREAMBLE_MAGIC) and not any(preamble[11:16])
    assert (destination, tag) == (1, preamble[16:]) or (destination in (0, 2) and tag == b"")


@given(
    plain
    | st.tuples(st.sampled_from(("node", "labels", "group")), plain, plain)
    | st.tuples(st.just("labels"), st.lists(st.lists(st.tuples(plain, plain, plain)).map(tuple)), st.just(()))
)
@example(("labels", 5, ()))
@example(("labels", ((("zone", ["in"], ()),),), ()))
@example(("node", b"", None))
def test_a_scheduling_strategy_is_one_of_the_forms_or_a_value_error(given_: Any) -> None:
    try:
        found = strategy.parse_strategy(given_)
    except ValueError:
        return
    assert isinstance(found, strategy.Strategy.__args__)  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", sorted(EVENTS - {"actor_subscribe"}))
@settings(max_examples=40)
@given(st.lists(plain, max_size=4))
def test_an_event_of_a_core_never_raises_whatever_it_says(name: str, args: list[Any]) -> None:
    head = HeadService(RecordedPort(), None)
    head.event(Core(b"c" * 16, "worker", b"none"), name, tuple(args))
    head.check()
