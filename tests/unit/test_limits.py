"""tests/perf/limits.py: what every comparison is measured against can be built, and measured."""

from __future__ import annotations

import pytest

from tests.perf import limits


def test_what_is_asked_for_is_measured() -> None:
    measured = limits.measure("futex", "memcpy")
    assert set(measured) == {"futex_round_trip_us"} | {
        f"memcpy_{threads}_thread_{kind}_gb_per_s" for threads in (1, 2) for kind in ("cold", "warm")
    }
    assert all(value > 0 for value in measured.values())


def test_what_it_cannot_measure_is_refused_by_name() -> None:
    with pytest.raises(RuntimeError, match="'bandwidth'"):
        limits.measure("bandwidth")
