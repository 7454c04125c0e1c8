"""Who ends when memory runs out, and when it is looked at: by example, then at random. No process, virtual clock."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from ray._node import memory_usage as usage
from ray._node import memory_watch as mw
from ray._protocol.frames import OUT_OF_MEMORY, OUT_OF_MEMORY_AGAIN
from ray._scheduling.machine import InvalidTransition

GIB = 2**30
A, B = b"a" * 16, b"b" * 16


def task(worker_id: int, since: float, owner: bytes = A, retriable: bool = True, **more: Any) -> mw.Running:
    return mw.Running(worker_id, 100 + worker_id, f"f{worker_id}", owner, since, retriable=retriable, **more)


def actor(worker_id: int, since: float, retriable: bool = False) -> mw.Running:
    return mw.Running(worker_id, 100 + worker_id, f"actor {worker_id}", A, since, True, retriable)


def reading(used: float, limit: float = 10 * GIB, what: str = "the machine") -> mw.Reading:
    return mw.Reading(int(used), int(limit), what)


def watch(**options: Any) -> mw.MemoryWatch:
    made = mw.MemoryWatch(**{"threshold": 0.9, "refresh_s": 0.25, "growth_bytes_s": GIB, **options})
    made.handle(mw.Began(), 0.0)
    return made


def look(machine: mw.MemoryWatch, used: float, running: list[mw.Running], now: float = 1.0) -> list[Any]:
    return machine.handle(mw.Looked([reading(used)], running), now)


def ended(actions: list[Any]) -> list[int]:
    return [action.victim.worker_id for action in actions if isinstance(action, mw.EndWorker)]


def test_the_newest_task_that_may_be_retried_is_first_then_others_then_actors() -> None:
    running = [
        task(1, 1.0),
        task(2, 2.0, owner=B),
        task(3, 3.0, retriable=False),
        task(4, 2.5, retriable=False),
        actor(5, 9.0),
        actor(6, 8.0, retriable=True),
        actor(7, 7.0, retriable=True),
    ]
    order = []
    while running:
        victim = mw.choose(running)
        assert victim is not None
        order.append(victim.worker_id)
        running.remove(victim)
    assert order == [2, 1, 3, 4, 6, 7, 5]
    assert mw.choose([]) is None


def test_one_ends_at_a_time_and_the_next_only_when_it_is_gone_and_memory_is_still_short() -> None:
    machine = watch()
    running = [task(1, 1.0), task(2, 2.0), task(3, 3.0)]
    actions = look(machine, 9.5 * GIB, running)
    assert ended(actions) == [3] and mw.ShortOfMemory(True) in actions and mw.LookAgain(0.25) in actions
    assert ended(look(machine, 9.6 * GIB, running, 1.25)) == []
    assert machine.handle(mw.Ended(3), 1.3) == [mw.LookAgain(0.0)]
    assert ended(look(machine, 9.2 * GIB, running[:2], 1.3)) == [2]
    machine.handle(mw.Ended(2), 1.4)
    actions = look(machine, 5 * GIB, running[:1], 1.4)
    assert ended(actions) == [] and mw.ShortOfMemory(False) in actions


def test_a_victim_that_does_not_die_is_waited_for_only_so_long() -> None:
    machine = watch()
    running = [task(1, 1.0), task(2, 2.0)]
    assert ended(look(machine, 9.5 * GIB, running, 1.0)) == [2]
    assert ended(look(machine, 9.5 * GIB, running, 1.0 + mw.DYING_MAX_S / 2)) == []
    assert len(ended(look(machine, 9.5 * GIB, running, 1.0 + mw.DYING_MAX_S))) == 1


def test_why_says_which_task_which_limit_and_the_threshold() -> None:
    (end,) = [a for a in look(watch(), 9.5 * GIB, [task(1, 1.0), task(2, 2.0)]) if isinstance(a, mw.EndWorker)]
    assert end.why.startswith(OUT_OF_MEMORY) and end.why.endswith(OUT_OF_MEMORY_AGAIN)
    for part in (
        "f2",
        "pid 102",
        "the machine",
        f"{int(9.5 * GIB)} bytes",
        f"{10 * GIB} bytes",
        "95.0%",
        "0.9",
        "newest",
    ):
        assert part in end.why, (part, end.why)


@pytest.mark.parametrize(
    "running",
    [
        [task(1, 1.0)],
        [task(1, 1.0, owner=B), task(2, 2.0)],
        [task(1, 1.0, retriable=False)],
        [actor(1, 1.0, retriable=True)],
    ],
    ids=["the only one", "the only one of its owner", "not retriable", "an actor"],
)
def test_the_try_is_counted_where_trying_again_would_meet_the_same(running: list[mw.Running]) -> None:
    (end,) = [a for a in look(watch(), 9.5 * GIB, running) if isinstance(a, mw.EndWorker)]
    assert OUT_OF_MEMORY_AGAIN not in end.why


def test_the_tightest_limit_counts_whichever_it_is() -> None:
    machine = watch()
    readings = [reading(1 * GIB), reading(0.95 * GIB, GIB, "the control group of this node")]
    actions = machine.handle(mw.Looked(readings, [task(1, 1.0)]), 1.0)
    (end,) = [a for a in actions if isinstance(a, mw.EndWorker)]
    assert "the control group of this node had" in end.why


def test_a_worker_over_its_own_memory_ends_however_much_is_free() -> None:
    machine = watch()
    greedy = task(1, 1.0, memory_bytes=GIB, rss_bytes=GIB + 1)
    modest = task(2, 2.0, memory_bytes=GIB, rss_bytes=GIB)
    actions = look(machine, GIB, [greedy, modest])
    assert ended(actions) == [1] and machine.state == mw.WATCHING
    (end,) = [a for a in actions if isinstance(a, mw.EndWorker)]
    assert "memory=" in end.why and f"{GIB + 1} bytes" in end.why and OUT_OF_MEMORY_AGAIN not in end.why
    assert ended(look(machine, GIB, [greedy, modest], 1.25)) == [], "it is dying"


def test_it_looks_the_more_often_the_less_is_free_and_not_at_all_while_nothing_runs() -> None:
    machine = watch()
    one = [task(1, 1.0)]
    assert look(machine, 1 * GIB, one)[-1] == mw.LookAgain(4.0)  # 8 GiB until the threshold, at 1 GiB/s
    assert look(machine, 8 * GIB, one)[-1] == mw.LookAgain(0.5)
    assert look(machine, 8.9 * GIB, one)[-1] == mw.LookAgain(0.25)
    assert machine.handle(mw.Looked([reading(0, 1000 * GIB)], one), 2.0)[-1] == mw.LookAgain(mw.LOOK_EVERY_MAX_S)
    nearly = task(1, 1.0, memory_bytes=GIB, rss_bytes=GIB // 2)
    assert look(machine, 1 * GIB, [nearly])[-1] == mw.LookAgain(0.25)
    assert look(machine, 9.9 * GIB, []) == [mw.Rest()] and machine.state == mw.RESTING
    assert machine.handle(mw.Pressure(), 3.0) == []
    assert machine.handle(mw.Began(), 4.0) == [mw.LookAgain(0.25)]
    assert machine.handle(mw.Pressure(), 4.1) == [mw.LookAgain(0.0)]


def test_a_look_that_nobody_asked_for_is_a_bug_and_tells_the_story() -> None:
    machine = watch()
    look(machine, 0, [])
    with pytest.raises(InvalidTransition, match="RESTING"):
        look(machine, 0, [])


@pytest.mark.parametrize("seed", range(30))
def test_at_random_the_oldest_is_spared_memory_comes_back_and_everything_ends(seed: int) -> None:
    """Tasks come with random sizes that grow while they run; whoever ends for want of memory comes again. What must
    hold: one dying at a time, never a task while a newer retriable one runs, and in the end all are done."""
    rng = random.Random(seed)
    limit, now = 100.0, 0.0
    machine = mw.MemoryWatch(0.9, 0.25, 20.0)
    waiting = [(number, rng.uniform(5, 80)) for number in range(20)]
    running: dict[int, list[Any]] = {}  # number: [Running, size now, size wanted, done at]
    dying: dict[int, float] = {}
    look_at: float | None = None
    short = False
    done: set[int] = set()
    kills = 0
    for _ in range(20_000):
        now += 0.05
        while waiting and len(running) < 4 and not (short and running):
            number, wanted = waiting.pop(0)
            running[number] = [task(number, now), 1.0, wanted, now + rng.uniform(0.5, 3)]
        events: list[Any] = []
        for number, row in list(running.items()):
            row[1] = min(row[2], row[1] + 2.0)
            if number in dying and now >= dying[number]:
                del running[number], dying[number]
                waiting.append((number, row[2]))
                events.append(mw.Ended(number))
            elif number not in dying and now >= row[3]:
                done.add(number)
                del running[number]
                events.append(mw.Ended(number))
        if running and look_at is None:
            events.append(mw.Began())
        if look_at is not None and now >= look_at:
            used = sum(row[1] for row in running.values())
            events.append(mw.Looked([mw.Reading(int(used), int(limit), "it")], [row[0] for row in running.values()]))
        for event in events:
            for action in machine.handle(event, now):
                if isinstance(action, mw.LookAgain):
                    look_at = now + action.after_s
                elif isinstance(action, mw.Rest):
                    look_at = None
                    assert not running
                elif isinstance(action, mw.ShortOfMemory):
                    short = action.short
                else:
                    assert isinstance(action, mw.EndWorker)
                    kills += 1
                    assert not dying, f"seed {seed}: two at once"
                    assert action.victim.since == max(row[0].since for row in running.values()), f"seed {seed}"
                    dying[action.victim.worker_id] = now + rng.uniform(0.0, 0.5)
        if len(done) == 20:
            break
    assert len(done) == 20, f"seed {seed}: {waiting} never came to an end"
    assert machine.ended == kills


def fake_groups(tmp_path: Path, own: str, files: dict[str, str]) -> list[usage.Group]:
    for name, text in files.items():
        path = tmp_path / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (tmp_path / "own").write_text(own)
    return usage.control_groups(str(tmp_path / "cgroup"), str(tmp_path / "own"))


def test_groups_of_version_2_bind_at_every_level_and_inactive_file_cache_counts_as_free(tmp_path: Path) -> None:
    groups = fake_groups(
        tmp_path,
        "0::/outer/inner\n",
        {
            "cgroup.controllers": "memory\n",
            "outer/inner/memory.current": "500\n",
            "outer/inner/memory.max": "max\n",
            "outer/inner/memory.stat": "anon 1\ninactive_file 100\n",
            "outer/memory.current": "700\n",
            "outer/memory.max": "1000\n",
            "outer/memory.stat": "anon 1\ninactive_file 300\n",
        },
    )
    found = [usage.of_group(group, 10_000) for group in groups]
    assert found == [None, mw.Reading(400, 1000, "the control group of this node")]


def test_groups_of_version_1_are_found_also_where_the_path_is_the_hosts(tmp_path: Path) -> None:
    groups = fake_groups(
        tmp_path,
        "9:name=systemd:/\n4:cpu,memory:/docker/0123\n0::/\n",
        {
            "memory/memory.usage_in_bytes": "900\n",
            "memory/memory.limit_in_bytes": "1000\n",
            "memory/memory.stat": "inactive_file 1\ntotal_inactive_file 200\n",
        },
    )
    assert [usage.of_group(group, 10_000) for group in groups] == [
        mw.Reading(700, 1000, "the control group of this node")
    ]
    assert usage.of_group(groups[0], 1000) is None, "no limit below the machine's"


def test_the_machine_and_a_process_have_plausible_sizes_and_the_largest_are_named_with_bytes() -> None:
    import os

    machine = usage.of_machine()
    assert 0 < machine.used_bytes < machine.limit_bytes
    before = usage.own_bytes(os.getpid())
    block = bytearray(b"x" * (64 << 20))
    assert 60 << 20 < usage.own_bytes(os.getpid()) - before < 70 << 20
    del block
    text = usage.largest(names={os.getpid(): "these tests"})
    assert text.count("pid ") >= 1 and " bytes (" in text
