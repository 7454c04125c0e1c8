"""The rows of tests/perf/scale.py, small: many arguments, returns and objects at once, and a long queue."""

from __future__ import annotations

import time
from typing import Any

import pytest

import ray
from ray._core.engine import current
from tests.perf import scale, scale_rows
from tests.wait import Stopwatch, wait_until


@pytest.mark.parametrize(
    ("row", "size"), [("ref arguments", 2_000), ("returns", 1_000), ("get objects", 100), ("queued tasks", 100_000)]
)
def test_large_calls_and_long_queues_are_right_and_take_no_second_each(ray_shared: Any, row: str, size: int) -> None:
    began, watch = time.monotonic(), Stopwatch()
    value = scale_rows.ROWS[row][0](size)
    ours = watch.read() / (time.monotonic() - began)  # the part of the time in which the machine was free for this
    assert value > 20_000 * ours if row == "queued tasks" else value * ours < 1.0


def test_a_long_queue_leaves_nothing_behind(ray_shared: Any) -> None:
    @ray.remote
    def one() -> int:
        return 1

    engine = current()
    assert engine is not None
    assert sum(ray.get([one.remote() for _ in range(100_000)])) == 100_000
    wait_until(lambda: engine.rpc("stats")["scheduler"]["waiting"] == [])


def test_the_table_has_a_ratio_above_1_where_ours_is_better() -> None:
    rows = [(scale.ROWS[0], [0.5, 0.25]), (scale.ROWS[3], [10.0, 40.0]), (scale.ROWS[4], [None, 0.1])]
    lines = scale.table(rows, ["Ray", "this"]).splitlines()
    assert lines[2].endswith("| 500 | 250 | 2 × |")
    assert lines[3].endswith("| 10 | 40 | 4 × |")
    assert lines[4].endswith("| failed | 100 |  |")
