"""Memory runs out: which task ends, what its caller sees, and that nobody else notices.

The limit is one on the node's workers (`worker_memory_bytes_max`), which other programs on this machine don't touch.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

import ray
from ray._core.engine import current
from tests.wait import wait_until

MIB = 2**20


def config(limit_mib: int, **more: Any) -> dict[str, Any]:
    return {
        "num_cpus": 3,
        "_system_config": {"worker_memory_bytes_max": limit_mib * MIB, "memory_monitor_refresh_ms": 20, **more},
    }


@ray.remote
def hold(mib: int, until: str, begun: str) -> int:
    """Has so much memory until a file is there."""
    block = bytearray(b"x" * (mib * MIB))
    Path(begun).touch()
    while not Path(until).exists():
        time.sleep(0.01)
    return len(block) // MIB


@ray.remote
def grow_once(mib: int, mark: str) -> str:
    """Uses far too much in its first run, nothing in the next."""
    tries = Path(mark)
    tries.write_text(tries.read_text() + "x" if tries.exists() else "x")
    if tries.read_text() == "x":
        block = bytearray(b"x" * (mib * MIB))
        time.sleep(60)
        return f"kept {len(block)}"
    return "fine"


@pytest.mark.parametrize("ray_start", [config(400)], indirect=True)
def test_the_newest_task_ends_and_runs_again_while_the_others_go_on(ray_start: Any, tmp_path: Path) -> None:
    stop, a, b = (str(tmp_path / name) for name in ("stop", "a", "b"))
    older = [hold.remote(30, stop, a), hold.remote(30, stop, b)]
    wait_until(lambda: Path(a).exists() and Path(b).exists())
    # One retry is all that it has, and that the watch's retry does not take it is seen below.
    again = grow_once.options(max_retries=1).remote(500, str(tmp_path / "tries"))
    wait_until(lambda: (tmp_path / "tries").exists())
    assert ray.wait([again], timeout=0.05)[0] == []
    Path(stop).touch()
    assert ray.get(again, timeout=60) == "fine"
    assert ray.get(older, timeout=60) == [30, 30]
    assert (tmp_path / "tries").read_text() == "xx"


@pytest.mark.parametrize("ray_start", [config(300)], indirect=True)
def test_without_retries_the_error_says_which_task_why_where_and_the_largest_processes(
    ray_start: Any, tmp_path: Path
) -> None:
    with pytest.raises(ray.exceptions.OutOfMemoryError) as caught:
        ray.get(grow_once.options(max_retries=0).remote(500, str(tmp_path / "tries")), timeout=60)
    text = str(caught.value)
    assert "grow_once() was ended" in text and f"of {300 * MIB} bytes" in text
    assert "memory_usage_threshold=0.95" in text and ray.get_runtime_context().get_node_id() in text
    largest = text.split("largest processes: ")[1]
    assert largest.count(" bytes (") == 5 and "ray worker, " in largest


@pytest.mark.parametrize("ray_start", [config(300)], indirect=True)
def test_the_only_task_of_its_owner_is_not_tried_for_ever(ray_start: Any, tmp_path: Path) -> None:
    @ray.remote(max_retries=1)
    def always(mark: str) -> None:
        with open(mark, "a") as file:
            file.write("x")
        block = bytearray(b"x" * (500 * MIB))
        time.sleep(60)
        del block

    with pytest.raises(ray.exceptions.OutOfMemoryError, match=r"tried 2 time\(s\)"):
        ray.get(always.remote(str(tmp_path / "tries")), timeout=30)
    assert (tmp_path / "tries").read_text() == "xx"


@pytest.mark.parametrize("ray_start", [config(300)], indirect=True)
def test_an_actor_ends_only_when_no_task_is_left_and_its_callers_hear_why(ray_start: Any, tmp_path: Path) -> None:
    @ray.remote
    class Hoard:
        def grow(self, mib: int) -> int:
            self.block = bytearray(b"x" * (mib * MIB))
            time.sleep(60)
            return mib

    hoard = Hoard.remote()
    with pytest.raises(ray.exceptions.OutOfMemoryError, match="No task runs here"):
        ray.get(hoard.grow.remote(500), timeout=60)
    with pytest.raises(ray.exceptions.ActorDiedError, match="actor Hoard"):
        ray.get(hoard.grow.remote(1), timeout=60)


OFTEN = {"num_cpus": 2, "_system_config": {"memory_monitor_refresh_ms": 20}}


@pytest.mark.parametrize("ray_start", [OFTEN], indirect=True)
def test_a_task_that_uses_more_than_its_memory_ends_and_one_that_does_not_stays(ray_start: Any, tmp_path: Path) -> None:
    @ray.remote(memory=400 * MIB, max_retries=0)
    def use(mib: int) -> int:
        block = bytearray(b"x" * (mib * MIB))
        time.sleep(0.5)
        return len(block) // MIB

    modest, greedy = use.remote(100), use.remote(600)
    with pytest.raises(ray.exceptions.OutOfMemoryError, match=rf"more than the {400 * MIB} bytes .* memory="):
        ray.get(greedy, timeout=60)
    assert ray.get(modest, timeout=60) == 100


@pytest.mark.parametrize("ray_start", [config(200, memory_monitor_refresh_ms=0)], indirect=True)
def test_nothing_is_watched_if_the_refresh_is_0(ray_start: Any, tmp_path: Path) -> None:
    stop, begun = str(tmp_path / "stop"), str(tmp_path / "begun")
    ref = hold.remote(300, stop, begun)
    wait_until(lambda: Path(begun).exists())
    assert ray.wait([ref], timeout=0.3)[0] == []
    Path(stop).touch()
    assert ray.get(ref, timeout=60) == 300


@pytest.mark.parametrize("ray_start", [config(400)], indirect=True)  # with little to watch over it looks often
def test_a_node_on_which_nothing_runs_does_not_look(ray_start: Any) -> None:
    @ray.remote
    def nap() -> None:
        time.sleep(0.3)

    engine = current()
    assert engine is not None

    def watch() -> dict[str, Any]:
        found: dict[str, Any] = engine.rpc("stats")["memory"]
        return found

    ref = nap.remote()
    wait_until(lambda: watch()["looks"] > 0)
    ray.get(ref)
    wait_until(lambda: watch()["state"] == "RESTING")
    before = watch()
    time.sleep(0.2)  # ten times the period
    assert watch() == before and not before["listens_to_pressure"]
