"""What a node finds on its machine, from made-up machines."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import pytest

from ray._config import Settings
from ray._node import detect


@pytest.fixture
def cgroup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(detect, "_CGROUP", str(tmp_path))
    return tmp_path


def test_cpus_are_cut_by_the_quota_of_either_version_of_control_groups(
    cgroup: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(detect.os, "sched_getaffinity", lambda pid: set(range(8)))
    assert detect.cpu_count() == 8
    for quota, cpus in (("max 100000", 8), ("250000 100000", 2), ("50000 100000", 1), ("9000000 100000", 8)):
        (cgroup / "cpu.max").write_text(quota + "\n")
        assert detect.cpu_count() == cpus, quota
    (cgroup / "cpu.max").unlink()
    (cgroup / "cpu").mkdir()
    (cgroup / "cpu/cpu.cfs_quota_us").write_text("300000")
    (cgroup / "cpu/cpu.cfs_period_us").write_text("100000")
    assert detect.cpu_count() == 3
    (cgroup / "cpu/cpu.cfs_quota_us").write_text("-1")
    assert detect.cpu_count() == 8


def test_memory_is_cut_by_the_control_group(cgroup: Path) -> None:
    machine = detect.memory_available()
    assert machine > 0 and detect.memory_total() >= machine
    (cgroup / "memory.max").write_text("max\n")
    (cgroup / "memory.current").write_text("5\n")
    assert detect.memory_total() >= machine * 0.5
    (cgroup / "memory.max").write_text("1000\n")
    assert detect.memory_available() <= 995 and detect.memory_total() == 1000


@pytest.mark.parametrize(
    ("visible", "ids"),
    [("", []), ("-1", []), ("0,2", [0, 2]), ("GPU-ab12, 3", ["GPU-ab12", 3]), ("1,-1,2", [1]), ("NoDevFiles", [])],
)
def test_gpus_are_those_of_cuda_visible_devices(
    visible: str, ids: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert detect.gpu_ids() == ids


@pytest.mark.parametrize(
    ("devices", "library", "ids"),
    [
        (["nvidia0", "nvidia1", "nvidiactl", "sda"], 2, [0, 1]),
        (["nvidia0", "nvidia1"], 1, [0]),  # a container was given one of them
        (["nvidia0", "nvidia3"], None, [0, 1]),  # a driver without its library
        (["nvidiactl", "sda"], 7, []),  # no device: the library is not even asked
    ],
)
def test_gpus_are_those_that_nvidias_library_counts(
    devices: list[str], library: int | None, ids: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Nvml:
        def __init__(self, name: str) -> None:
            if library is None:
                raise OSError(f"{name}: no such file")

        def nvmlInit_v2(self) -> int:
            return 0

        def nvmlDeviceGetCount_v2(self, count: Any) -> int:
            count._obj.value = library
            return 0

        def nvmlShutdown(self) -> int:
            return 0

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(detect.os, "listdir", lambda folder: devices)
    monkeypatch.setattr(ctypes, "CDLL", Nvml)
    assert detect.gpu_ids() == ids
    assert detect.node_resources({}, None, Settings())[0].get("GPU", 0) == 10_000 * len(ids)


def test_gpus_asked_for_are_taken_from_those_visible_and_too_many_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    total, ids = detect.node_resources({"GPU": 10_000}, None, Settings())
    assert total["GPU"] == 10_000 and ids == [4]
    with pytest.raises(ValueError, match=r"num_gpus=3.*'4,5'"):
        detect.node_resources({"GPU": 30_000}, None, Settings())
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert detect.node_resources({"GPU": 30_000}, None, Settings())[1] == [0, 1, 2]  # fake ones, for tests of programs


def test_the_stores_default_is_a_bounded_fraction_and_a_store_larger_than_the_machine_is_refused() -> None:
    settings = Settings()
    assert detect.store_default(10 * 2**30, settings) == 3 * 2**30
    assert detect.store_default(2**20, settings) == settings.object_store_memory_min
    assert detect.store_default(2**50, settings) == settings.object_store_memory_max
    total, _ = detect.node_resources({}, 2**27, settings)
    assert total["object_store_memory"] == 2**27 * 10_000
    with pytest.raises(ValueError, match=r"object_store_memory=.* more than"):
        detect.node_resources({}, 2**60, settings)
    assert detect.node_resources({}, 2**60, settings, store_folder="/")[0]["object_store_memory"]
