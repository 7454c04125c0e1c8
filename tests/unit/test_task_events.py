"""Task events and errors: what is kept, how much of it, and that nonsense is counted and nothing else."""

from __future__ import annotations

import random

import pytest

from ray._head import errors, events
from ray._head.errors import ErrorLog, StreamIds
from ray._head.events import TaskEventLog, merge

JOB = b"\x01\0\0\0"
TASK = b"t" * 24


def test_events_leave_in_batches_and_the_oldest_batches_go() -> None:
    log = TaskEventLog(kept=1000)
    kept: dict[str, int] = {}
    for i in range(5000):
        if log.add(JOB, [(TASK, "RUNNING", float(i), {"name": "f"})]):
            for append in log.flush(float(i)):
                assert len(append.batch) == events.BATCH_MAX
                kept[append.entry_id] = len(append.batch)
                kept = {e: n for e, n in kept.items() if _key(e) >= _key(append.oldest_id)}
    assert sum(kept.values()) == 1000
    assert log.stats() == {"received": 5000, "waiting": 0, "dropped": 0, "malformed": 0}


def _key(entry_id: str) -> tuple[int, int]:
    ms, _, count = entry_id.partition("-")
    return int(ms), int(count)


def test_more_than_can_be_written_is_dropped_and_counted() -> None:
    log = TaskEventLog(kept=10)
    log.add(JOB, [(TASK, "RUNNING", 1.0)] * (events.WAITING_MAX + 7))
    assert log.stats()["dropped"] == 7
    assert sum(len(append.batch) for append in log.flush(1.0)) == events.WAITING_MAX
    log.add(JOB, [(TASK, "RUNNING", 1.0)])
    log.forget_job(JOB)
    assert log.flush(2.0) == [] and log.waiting == 0


@pytest.mark.parametrize(
    "nonsense",
    [
        None,
        17,
        (),
        (TASK,),
        (TASK, "RUNNING"),
        (b"short", "RUNNING", 1.0),
        ("t" * 24, "RUNNING", 1.0),
        (TASK, "SLEEPING", 1.0),
        (TASK, "RUNNING", "now"),
        (TASK, "RUNNING", 1.0, []),
        (TASK, "RUNNING", 1.0, {"nmae": "f"}),
        (TASK, "RUNNING", 1.0, {"name": 17}),
        (TASK, "RUNNING", 1.0, {"times": {"SLEEPING": 1.0}}),
        (TASK, "RUNNING", 1.0, {"times": {"RUNNING": "now"}}),
        (TASK, ["RUNNING"], 1.0),
        (TASK, "RUNNING", 1.0, {}, {}),
    ],
)
def test_what_is_no_event_is_counted_and_dropped(nonsense: object) -> None:
    log = TaskEventLog(kept=10)
    log.add(JOB, [nonsense, (TASK, "RUNNING", 1.0)])
    assert log.malformed == 1 and log.received == 1


@pytest.mark.parametrize("seed", range(10))
def test_merging_gives_the_same_task_in_whatever_order_its_events_came(seed: int) -> None:
    told = [
        [TASK.hex(), "SUBMITTED", 1.0, {"name": "f", "kind": "task"}],
        [TASK.hex(), "RUNNING", 2.0, {"pid": 7}],
        [TASK.hex(), "FINISHED", 3.0, {}],
    ]
    random.Random(seed).shuffle(told)
    assert merge(told) == [
        {
            "task_id": TASK.hex(),
            "state": "FINISHED",
            "times": {"SUBMITTED": 1.0, "RUNNING": 2.0, "FINISHED": 3.0},
            "name": "f",
            "kind": "task",
            "pid": 7,
        }
    ]


def test_one_late_event_can_carry_a_whole_life() -> None:
    (task,) = merge(
        [[TASK.hex(), "FAILED", 3.0, {"times": {"SUBMITTED": 1.0, "RUNNING": 2.0}, "error": "ValueError: x"}]]
    )
    assert task["state"] == "FAILED" and task["times"] == {"SUBMITTED": 1.0, "RUNNING": 2.0, "FAILED": 3.0}


def test_stream_ids_grow_also_when_the_clock_steps_back() -> None:
    ids = StreamIds()
    made = [ids.next(now) for now in (5.0, 5.0, 4.0, 6.0, 1.0)]
    assert made == sorted(made, key=_key) and len(set(made)) == 5


def test_errors_are_kept_per_job_newest_last_and_cut() -> None:
    log = ErrorLog(kept=3)
    for i in range(5):
        log.push(JOB, "kind", f"{i}", {}, 7, float(i))
    log.push(b"\x02\0\0\0", "kind", "x" * 10**6, {"a": b"\xff", "b": object(), 3: "c"}, 7, 9.0)
    assert [row.message for row in log.of_job(JOB)] == ["2", "3", "4"]
    (other,) = log.of_job(b"\x02\0\0\0")
    assert len(other.message) < errors.MESSAGE_CHARS_MAX + 100 and "more characters" in other.message
    assert other.extra["a"] == "ff" and other.extra["3"] == "c"
    assert [row.time_s for row in log.of_job(None)] == [2.0, 3.0, 4.0, 9.0]
    log.forget_job(JOB)
    assert log.of_job(JOB) == []
    with pytest.raises(TypeError, match="push_error takes"):
        log.push(JOB, 17, "m", {}, 7, 1.0)  # type: ignore[arg-type]


def test_a_flood_of_errors_is_shown_in_part_and_counted() -> None:
    log = ErrorLog(kept=10)
    shown = [log.push(JOB, "kind", f"{i}", {}, 7, i / 1000)[1] for i in range(2000)]  # for two seconds
    count = sum(entry is not None for entry in shown)
    assert errors.SHOWN_AT_ONCE <= count <= errors.SHOWN_AT_ONCE + 2 * errors.SHOWN_PER_S
    assert log.take_hidden() == [(JOB, 2000 - count)] and log.take_hidden() == []
    assert [row.message for row in log.of_job(JOB)] == [f"{i}" for i in range(1990, 2000)]
    assert log.push(JOB, "kind", "later", {}, 7, 100.0)[1] is not None


def test_calls_are_counted_even_when_their_events_are_not_kept() -> None:
    log = TaskEventLog(kept=0)
    log.count(JOB, [("f", "task", "FINISHED", 1000), ("f", "task", "FAILED", 1)])
    log.count(JOB, [["f", "task", "FINISHED", 5]])
    assert log.totals(JOB) == {("f", "task", "FINISHED"): 1005, ("f", "task", "FAILED"): 1}
    log.forget_job(JOB)
    assert log.totals(JOB) == {}


def test_names_without_end_are_counted_together() -> None:
    log = TaskEventLog(kept=10)
    for i in range(events.NAMES_MAX + 50):
        log.count(JOB, [(f"f{i}", "task", "FINISHED", 1)])
    totals = log.totals(JOB)
    assert len(totals) <= events.NAMES_MAX + 1 and totals[events.OTHER_NAMES, "task", "FINISHED"] == 50


@pytest.mark.parametrize(
    "nonsense",
    [None, (), ("f", "task", "FINISHED"), ("f", "task", "SLEEPING", 1), ("f", "task", "FINISHED", -1), (1,) * 4],
)
def test_a_count_that_is_none_is_counted_as_malformed(nonsense: object) -> None:
    log = TaskEventLog(kept=10)
    log.count(JOB, [nonsense])
    assert log.malformed == 1 and log.totals(JOB) == {}
