"""Spilling: objects that are referred to but not read go to disk when the store is full, and come back when needed."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import signal
import subprocess
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import ray
from ray._native.plasma import PlasmaClient
from ray.cli import main as cli_main
from ray.exceptions import GetTimeoutError, ObjectLostError, ObjectStoreFullError, OutOfDiskError
from ray.experimental import get_object_locations
from tests.chaos.session import pids, store
from tests.wait import wait_until

STORE_BYTES = 64 << 20
BIG = 4 << 20
MANY = 3 * STORE_BYTES // BIG
SMALL_STORE = {"object_store_memory": STORE_BYTES}


def big(number: int, nbytes: int = BIG) -> np.ndarray:
    """Each number another array, of which no two pieces are alike."""
    return np.random.default_rng(number).integers(0, 256, nbytes, dtype=np.uint8)


def stats() -> dict[str, int]:
    with store() as client:
        return client.stats()


def all_is_freed() -> None:
    """Nothing is kept any more: no object in memory, none on disk, and no file."""
    gc.collect()
    wait_until(lambda: stats()["disk_objects"] == 0 and stats()["sealed_bytes"] < BIG, what="the disk to be freed")
    wait_until(lambda: not spill_files(), what="the files to be closed")
    with store() as client:
        assert client.audit() == ""


def spill_files() -> list[str]:
    """Descriptors of plasma_store that are open on unnamed files of a folder, as /proc shows them."""
    folder = f"/proc/{pids('plasma_store')[0]}/fd"
    found = []
    for name in os.listdir(folder):
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            if " (deleted)" in (target := os.readlink(f"{folder}/{name}")) and "memfd" not in target:
                found.append(f"{folder}/{name}")
    return found


def wait_for_room(client: PlasmaClient) -> None:
    """Until refs that were dropped are freed: what is brought back ahead of its use gets what is free then only."""
    wait_until(lambda: client.stats()["free_bytes"] > STORE_BYTES // 2)


small_store = pytest.mark.parametrize("ray_start", [SMALL_STORE], indirect=True)


@small_store
def test_three_times_as_much_is_put_as_there_is_room_and_comes_back_as_it_was(ray_start):
    refs = [ray.put(big(i)) for i in range(MANY)]
    now = stats()
    assert now["spilled_objects"] >= MANY * 2 // 3
    assert now["evicted_objects"] == 0
    for i, ref in enumerate(refs):
        assert np.array_equal(ray.get(ref), big(i))
    assert stats()["restored_objects"] > 0
    del ref, refs
    all_is_freed()


@small_store
def test_what_will_be_wanted_soon_comes_back_although_nobody_waits_for_it(ray_start):
    refs = [ray.put(big(i)) for i in range(MANY)]
    with store() as client:
        spilled = [ref for ref in refs if client.ahead([ref.binary()])][:4]
        before = client.stats()
        assert len(spilled) == 4
        del refs  # those are freed: now there is room
        assert client.ahead([ref.binary() for ref in spilled]) <= 4
        wait_until(lambda: client.ahead([ref.binary() for ref in spilled]) == 0, what="the objects to come back")
        now = client.stats()
        assert now["restored_objects"] > before["restored_objects"]
        for ref in spilled:
            assert ray.get(ref).size == BIG
        assert client.stats()["restored_objects"] == now["restored_objects"]
        assert client.ahead([b"no such object", spilled[0].binary()]) == 0


@small_store
def test_who_takes_what_is_on_disk_one_after_the_other_finds_the_next_there(ray_start):
    refs = [ray.put(big(i)) for i in range(MANY)]
    with store() as client:
        states = {key: row["state"] for key, row in client.list().items()}
        in_order = [ref.binary() for ref in refs[:6]]
        assert [states[key] for key in in_order] == ["spilled"] * 6
        del refs[6:]
        wait_for_room(client)
        assert client.get(in_order[3]) and client.get(in_order[1])  # not in order: nothing more is read
        assert client.get(in_order[2])
        assert [row["state"] for key, row in client.list().items() if key == in_order[0]] == ["spilled"]
        wait_until(lambda: client.list()[in_order[4]]["state"] == "sealed", what="the next to come back")
    del refs
    all_is_freed()


@small_store
def test_wait_has_what_is_on_disk_brought_back_unless_it_is_told_not_to(ray_start):
    refs = [ray.put(big(i)) for i in range(MANY)]
    with store() as client:
        spilled = [ref for ref in refs if client.list()[ref.binary()]["state"] == "spilled"][:4]
        del refs
        wait_for_room(client)

        def on_disk() -> int:
            rows = client.list()
            return sum(rows[ref.binary()]["state"] == "spilled" for ref in spilled)

        assert on_disk() == len(spilled) == 4
        assert ray.wait(spilled, num_returns=4, fetch_local=False) == (spilled, [])
        assert on_disk() == 4
        assert len(ray.wait(spilled, num_returns=1)[0]) == 1
        wait_until(lambda: on_disk() == 0, what="them to come back")
        for ref in spilled:
            assert ray.get(ref).size == BIG


@small_store
def test_a_get_of_many_spilled_objects_gives_each_as_it_was(ray_start):
    refs = [ray.put(big(i)) for i in range(MANY)]
    half = STORE_BYTES // BIG // 2
    for first in range(0, MANY, half):
        values = ray.get(refs[first : first + half])
        assert all(np.array_equal(value, big(first + i)) for i, value in enumerate(values))
        del values
    del refs
    all_is_freed()


@small_store
def test_what_is_on_disk_is_seen_to_be_there(ray_start, capsys):
    refs = [ray.put(big(i)) for i in range(MANY)]
    with store() as client:

        def spilled() -> set[str]:
            return {key.hex() for key, row in client.list().items() if row["state"] == "spilled"}

        def is_done() -> bool:  # with what it writes ahead
            before = spilled()
            time.sleep(0.2)
            return spilled() == before

        wait_until(is_done)
        on_disk = spilled()
    rows = ray.util.state.list_objects(detail=True)
    assert {row.object_id for row in rows if row.spilled} == on_disk
    assert cli_main(["memory"]) == 0
    said = capsys.readouterr().out
    assert f"in {len(on_disk)} objects" in said and " disk " in said
    assert get_object_locations([refs[0]])[refs[0]]["did_spill"] == (refs[0].hex() in on_disk)
    now = stats()
    (node,) = ray.util.state.list_nodes(detail=True)
    assert (node.spilled_objects, node.spilled_bytes) == (len(on_disk), now["spilled_bytes"])
    assert node.object_store_bytes == now["sealed_bytes"]
    assert cli_main(["status", "--address", ray_start["session_dir"]]) == 0
    assert f"  {len(on_disk)} objects of {now['spilled_bytes'] / 2**30:.2f} GiB on disk\n" in capsys.readouterr().out


@small_store
def test_the_timeout_of_a_get_counts_while_an_object_is_brought_back(ray_start):
    refs = [ray.put(big(i)) for i in range(MANY)]
    with store() as client:
        spilled_keys = {key for key, row in client.list().items() if row["state"] == "spilled"}
    number, spilled = next((i, ref) for i, ref in enumerate(refs) if ref.binary() in spilled_keys)
    (pid,) = pids("plasma_store")
    os.kill(pid, signal.SIGSTOP)  # as a disk that doesn't answer
    try:
        wait_until(lambda: Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T")
        with pytest.raises(GetTimeoutError, match="is on disk"):
            ray.get(spilled, timeout=0.2)
    finally:
        os.kill(pid, signal.SIGCONT)
    assert np.array_equal(ray.get(spilled, timeout=30), big(number))
    del spilled, refs
    all_is_freed()


@small_store
def test_results_of_tasks_are_spilled_and_given_to_other_tasks(ray_start):
    @ray.remote
    def make(i):
        return big(i)

    @ray.remote
    def same(value, i):
        return bool(np.array_equal(value, big(i)))

    made = [make.remote(i) for i in range(MANY)]
    assert all(ray.get([same.remote(ref, i) for i, ref in enumerate(made)], timeout=120))
    assert stats()["written_objects"] > 0
    del made
    all_is_freed()


@small_store
def test_what_is_read_stays_where_it_is(ray_start):
    reading = [ray.get(ray.put(big(i))) for i in range(4)]
    places = [array.ctypes.data for array in reading]
    refs = [ray.put(big(100 + i)) for i in range(MANY)]
    for i, array in enumerate(reading):
        assert array.ctypes.data == places[i]
        assert np.array_equal(array, big(i))
    assert len(ray.wait(refs, num_returns=len(refs))[0]) == len(refs)  # they are there, wherever


@pytest.mark.parametrize("ray_start", [{**SMALL_STORE, "_system_config": {"store_full_timeout_s": 0.5}}], indirect=True)
def test_a_store_full_of_what_is_being_read_is_full(ray_start):
    reading = []
    with pytest.raises(ObjectStoreFullError, match="pinned"):
        for i in range(MANY):
            reading.append(ray.get(ray.put(big(i))))
    assert len(reading) > MANY // 4
    del reading[:]
    gc.collect()
    assert ray.get(ray.put(7)) == 7
    assert np.array_equal(ray.get(ray.put(big(1))), big(1))


def test_an_unpinned_object_is_evicted_and_not_spilled(ray_start):
    with store() as client:
        key = b"nobody's"
        client.put(key, bytes(BIG))
    refs = [ray.put(big(i)) for i in range(3)]
    now = stats()
    assert now["written_objects"] == 0
    del refs


@small_store
def test_a_task_that_dies_while_it_reads_what_was_spilled_leaves_nothing(ray_start, tmp_path):
    refs = [ray.put(big(i)) for i in range(MANY)]

    @ray.remote(max_retries=2)
    def die_once(value, path):
        if not os.path.exists(path):
            Path(path).touch()
            os._exit(1)
        return int(value[0])

    got = ray.get([die_once.remote(refs[i], str(tmp_path / str(i))) for i in range(2)], timeout=60)
    assert got == [int(big(i)[0]) for i in range(2)]
    del refs
    all_is_freed()


def damage() -> None:
    """Overwrites all that the store has on disk."""
    for path in spill_files():
        with open(path, "r+b", buffering=0) as file:
            size = file.seek(0, os.SEEK_END)
            for at in range(100_000, size, 1 << 20):
                file.seek(at)
                file.write(b"\xaa" * 64)


@small_store
def test_a_damaged_result_is_made_again_and_a_damaged_put_is_lost(ray_start):
    @ray.remote
    def make(i):
        return big(i)

    results = [make.remote(i) for i in range(3)]
    ray.wait(results, num_returns=3)
    puts = [ray.put(big(100 + i)) for i in range(MANY)]
    damage()
    for i, ref in enumerate(results):
        assert np.array_equal(ray.get(ref, timeout=60), big(i))
    with pytest.raises(ObjectLostError):
        ray.get(puts[0])
    assert stats()["damaged_objects"] >= 4
    del ref, results, puts
    all_is_freed()


def test_a_cap_is_kept_and_the_one_who_puts_is_told(engine):
    engine.start(
        num_cpus=1,
        object_store_memory=STORE_BYTES,
        _system_config={"object_spilling_bytes_max": STORE_BYTES, "store_full_timeout_s": 0.5},
    )
    refs = []
    with pytest.raises(OutOfDiskError, match="no more than 67108864 are allowed"):
        for i in range(MANY):
            refs.append(ray.put(big(i)))
    assert len(refs) > 1.5 * STORE_BYTES // BIG
    assert stats()["disk_bytes"] <= STORE_BYTES
    for i, ref in enumerate(refs[:4]):
        assert np.array_equal(ray.get(ref), big(i))
    del ref, refs[: len(refs) // 2]
    again = [ray.put(big(i)) for i in range(4)]
    assert np.array_equal(ray.get(again[0]), big(0))
    del refs, again
    all_is_freed()


@contextlib.contextmanager
def small_disk(engine, path: Path, size: str) -> Iterator[str]:
    path.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(path)], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip(f"no right to mount: {mounted.stderr.decode()}")
    try:
        yield str(path)
    finally:
        engine.stop()
        subprocess.run(["umount", str(path)], check=True)


def test_a_full_disk_is_an_error_that_says_so_and_another_disk_helps(engine, tmp_path):
    with small_disk(engine, tmp_path / "a", "40m") as full, small_disk(engine, tmp_path / "b", "40m") as other:
        engine.start(
            num_cpus=1,
            object_store_memory=STORE_BYTES,
            _system_config={
                "object_spilling_config": json.dumps(
                    {"type": "filesystem", "params": {"directory_path": [full, other]}}
                ),
                "local_fs_capacity_threshold": 1.0,
                "store_full_timeout_s": 0.5,
            },
        )
        refs = []
        with pytest.raises(OutOfDiskError, match="No space left on device"):
            for i in range(MANY):
                refs.append(ray.put(big(i)))
        assert len(refs) * BIG > STORE_BYTES + (50 << 20)  # both disks are used
        assert os.listdir(full) == os.listdir(other) == []  # by files without a name
        for i, ref in enumerate(refs):
            assert np.array_equal(ray.get(ref), big(i))
        del ref, refs
        all_is_freed()


def test_where_it_spills_is_chosen_by_name_too(engine, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        engine.start(num_cpus=1, object_store_memory=STORE_BYTES, object_spilling_directory=str(tmp_path))
    refs = [ray.put(big(i)) for i in range(MANY)]
    assert all(os.readlink(path).startswith(str(tmp_path)) for path in spill_files())
    assert spill_files()
    del refs
    all_is_freed()


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ("{", "is not JSON"),
        ('{"type": "smart_open", "params": {}}', "type must be 'filesystem'"),
        ('{"type": "filesystem", "params": {}}', "directory_path must be a path"),
        ('{"type": "filesystem", "params": {"directory_path": "/nowhere/at/all"}}', "is no directory"),
    ],
)
def test_a_wrong_place_is_refused_by_init(engine, config, text):
    engine.stop()
    with pytest.raises(ValueError, match=text):
        ray.init(_system_config={"object_spilling_config": config})
    assert not ray.is_initialized()


def test_without_spilling_a_store_of_kept_objects_is_full(engine):
    engine.start(
        num_cpus=1,
        object_store_memory=STORE_BYTES,
        _system_config={"object_spilling_config": '{"type": "none"}', "store_full_timeout_s": 0.5},
    )
    refs = []
    with pytest.raises(ObjectStoreFullError):
        for i in range(MANY):
            refs.append(ray.put(big(i)))
    assert stats()["spilled_objects"] == 0


def test_nothing_is_left_after_the_session(engine):
    info = engine.start(num_cpus=1, object_store_memory=STORE_BYTES)
    refs = [ray.put(big(i)) for i in range(MANY)]
    folders = [os.path.dirname(os.readlink(path)) for path in spill_files()]
    assert folders
    del refs
    engine.stop()
    assert info is not None
    assert not any(os.path.exists(folder) for folder in folders)
