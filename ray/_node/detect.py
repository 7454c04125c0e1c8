"""What this machine has: CPUs, memory, GPUs. Read once, when the node process starts; plain files and one library
call.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from ray._config import Settings
from ray._protocol.resources import CPU, GPU, MEMORY, OBJECT_STORE_MEMORY, UNITS, Resources

_CGROUP = "/sys/fs/cgroup"
_CGROUP_MEMORY = (  # limit and usage: version 2, version 1
    ("memory.max", "memory.current"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
)


def cpu_count() -> int:
    """CPUs this process may use: its affinity mask, cut by the quota of its control group; at least 1."""
    count = len(os.sched_getaffinity(0))
    quota = _cgroup_cpu_quota()
    return max(1, min(count, quota) if quota else count)


def memory_available() -> int:
    """Bytes that programs could still use: the kernel's estimate, cut by what the control group leaves."""
    available = _meminfo("MemAvailable")
    for limit_file, usage_file in _CGROUP_MEMORY:
        limit, used = _read_int(limit_file), _read_int(usage_file)
        if limit is not None and used is not None:  # "max" reads as None: no limit
            available = min(available, max(0, limit - used))
    return available


def memory_total() -> int:
    """Bytes that programs here could ever use: of the machine, with its swap, or of the control group."""
    limits = [limit for limit_file, _ in _CGROUP_MEMORY if (limit := _read_int(limit_file)) is not None]
    return min([_meminfo("MemTotal") + _meminfo("SwapTotal"), *limits])


def gpu_ids() -> list[int | str]:
    """Ids of the GPUs this process may use, as in CUDA_VISIBLE_DEVICES if that is set (numbers, or UUIDs as text)."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        chosen: list[int | str] = []
        for entry in visible.split(","):
            entry = entry.strip()
            if not entry or entry == "-1" or entry == "NoDevFiles":
                break  # CUDA, too, ignores everything from the first invalid entry on
            chosen.append(int(entry) if entry.isdigit() else entry)
        return chosen
    return list(range(_gpus_present()))


def node_resources(
    given: Resources, store_bytes: int | None, settings: Settings, store_folder: str | None = None
) -> tuple[Resources, list[int | str]]:
    """The node's totals: what was given, the rest detected. Also the ids of its GPUs.

    Args: store_folder: where the store's memory is a file, on whatever disk or huge pages; None: in memory.
    Raises: ValueError: more GPUs asked for than CUDA_VISIBLE_DEVICES allows; a store larger than the machine.
    """
    total = dict(given)
    if CPU not in total:
        total[CPU] = cpu_count() * UNITS
    if GPU not in total:
        ids = gpu_ids()
        if ids:
            total[GPU] = len(ids) * UNITS
    else:
        # As many as asked for, present or not: that is how programs are tried out without GPUs.
        wanted = total[GPU] // UNITS
        visible = gpu_ids() if "CUDA_VISIBLE_DEVICES" in os.environ else [*range(wanted)]
        if wanted > len(visible):
            raise ValueError(
                f"num_gpus={wanted}, but CUDA_VISIBLE_DEVICES={os.environ['CUDA_VISIBLE_DEVICES']!r} names only "
                f"{len(visible)}"
            )
        ids = visible[:wanted]
    available = memory_available()
    if store_bytes is None:
        store_bytes = store_default(available, settings, store_folder)
    elif store_folder is None and store_bytes > memory_total():
        raise ValueError(
            f"object_store_memory={store_bytes} ({store_bytes / 2**30:.1f} GiB) is more than the {memory_total()} "
            f"bytes ({memory_total() / 2**30:.1f} GiB) of memory that this machine, or its control group, has"
        )
    total[OBJECT_STORE_MEMORY] = store_bytes * UNITS
    if MEMORY not in total:
        total[MEMORY] = max(0, available - store_bytes) * UNITS
    return {name: units for name, units in total.items() if units}, ids


def store_default(available: int, settings: Settings, folder: str | None = None) -> int:
    """Bytes of the object store when nobody said: a fraction of what is available, whole MiB, within bounds.

    On huge pages all that are free: they were set aside for this, and nothing else can use them.
    """
    fraction = int(available * settings.object_store_memory_fraction)
    if folder is not None and os.path.isdir(folder):
        room = os.statvfs(folder)
        if room.f_blocks:
            fraction = min(fraction, room.f_bavail * room.f_frsize * 9 // 10)  # some is left for the file system itself
        else:  # a hugetlbfs without a size of its own tells nothing but its page's
            fraction = _huge_pages_free(room.f_frsize) * room.f_frsize
    bounded = max(settings.object_store_memory_min, min(fraction, settings.object_store_memory_max))
    return bounded >> 20 << 20


def oom_kills() -> int:
    """How many processes the kernel has killed for want of memory here so far; tells why a worker got SIGKILL."""
    for path, key in ((f"{_CGROUP}/memory.events", "oom_kill "), ("/proc/vmstat", "oom_kill ")):
        try:
            with open(path) as file:
                for line in file:
                    if line.startswith(key):
                        return int(line.split()[1])
        except OSError:
            continue
    return 0


def _gpus_present() -> int:
    """Asks NVIDIA's management library, which sees what a container was given; none of it is loaded without devices."""
    try:
        devices = [n for n in os.listdir("/dev") if n.startswith("nvidia") and n[6:].isdigit()]
    except OSError:
        return 0
    if not devices:
        return 0
    import ctypes

    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
        if nvml.nvmlInit_v2() == 0:
            count = ctypes.c_uint()
            found = nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)) == 0
            nvml.nvmlShutdown()
            if found:
                return count.value
    except (OSError, AttributeError):
        return len(devices)  # a driver without its library, or an ancient one: each GPU still has its device file
    return len(devices)


def _meminfo(name: str) -> int:
    with open("/proc/meminfo") as file:
        for line in file:
            if line.startswith(name + ":"):
                return int(line.split()[1]) * 1024
    return 0


def _cgroup_cpu_quota() -> int | None:
    try:
        with open(f"{_CGROUP}/cpu.max") as file:  # version 2: "quota period" or "max period"
            quota, period = file.read().split()
        if quota == "max":
            return None
    except (OSError, ValueError):
        found = _read_int("cpu/cpu.cfs_quota_us"), _read_int("cpu/cpu.cfs_period_us")
        if found[0] is None or found[1] is None or found[0] <= 0:
            return None
        quota, period = map(str, found)
    return max(1, int(quota) // int(period))


def _read_int(name: str) -> int | None:
    try:
        with open(f"{_CGROUP}/{name}") as file:
            return int(file.read())
    except (OSError, ValueError):
        return None


def _huge_pages_free(page_bytes: int) -> int:
    try:
        with open(f"/sys/kernel/mm/hugepages/hugepages-{page_bytes >> 10}kB/free_hugepages") as file:
            return int(file.read())
    except (OSError, ValueError):  # another file system that doesn't tell its size
        return 0


def node_labels(node_id: bytes, total: Mapping[str, int], given: Mapping[str, str] | None) -> dict[str, str]:
    """What was given, and what ray itself gives: the node's id, and its accelerator if a resource names one."""
    labels = {"ray.io/node-id": node_id.hex()}
    prefix = "accelerator_type:"
    types = sorted(name.removeprefix(prefix) for name in total if name.startswith(prefix))
    if types:
        labels["ray.io/accelerator-type"] = types[0]
    return {**labels, **(given or {})}
