"""Every setting of the engine, in one table. Vocabulary only: no I/O, imported by all processes, must stay cheap.

A process reads its settings once, when it starts: the driver from the table, the environment (`RAY_<NAME>`) and
`ray.init(_system_config={...})`, later ones winning; it hands the result to the node, and the node to its workers
(`Settings.overrides()`), so that all processes of a session agree whatever their own environment says.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class Setting:
    """One row: name, default, unit, who reads it, why this value, what more of it costs."""

    __slots__ = ("cost", "default", "name", "reader", "unit", "why")

    def __init__(self, name: str, default: Any, unit: str, reader: str, why: str, cost: str) -> None:
        self.name = name
        self.default = default
        self.unit = unit
        self.reader = reader
        self.why = why
        self.cost = cost

    @property
    def environment_name(self) -> str:
        return "RAY_" + self.name.upper()


TABLE: tuple[Setting, ...] = (
    # -- starting -------------------------------------------------------------------------------------------------
    Setting(
        "node_start_timeout_s", 30.0, "seconds", "driver",
        "A node is ready in 0.1 s; a machine under heavy load may need much longer.",
        "A node that hangs is reported later.",
    ),
    Setting(
        "worker_main", "ray._core.worker_main", "module name", "fork server",
        "The module whose main(startup) a new worker runs; tests put a stand-in here.", "-",
    ),
    Setting(
        "worker_start_timeout_s", 30.0, "seconds", "node",
        "From fork to registration takes about 10 ms; a worker that needs this long is stuck.",
        "A stuck worker is replaced later.",
    ),
    Setting(
        "prestart_workers", 1, "workers", "node",
        "One worker starts while the driver is still in init(), so that the first task finds it warm.",
        "5-10 MB each, whether used or not.",
    ),
    Setting(
        "worker_start_retries_max", 5, "starts", "node",
        "Workers that die one after another before they register have one cause; further tries repeat it.",
        "More noise before a person is told.",
    ),
    # -- leases and workers -----------------------------------------------------------------------------------------
    Setting(
        "idle_worker_timeout_s", 10.0, "seconds", "node",
        "Starting a worker costs 10 ms: keeping one longer than a pause between bursts buys nothing.",
        "Memory of idle workers.",
    ),
    Setting(
        "idle_workers_kept", -1, "workers a job", "node",
        "Idle workers that are never reaped while their job lives; -1 means one a CPU.", "Memory of idle workers.",
    ),
    Setting(
        "workers_starting_max", 8, "workers", "node",
        "Starting is bound by the processor: more at once only makes each of them slower.", "Longer start latencies.",
    ),
    Setting(
        "actors_starting_max", 0, "actors", "node",
        "Actors whose __init__ runs at the same time without holding a CPU; 0 means 4 for each CPU.",
        "More processes compete for the CPUs while they start.",
    ),
    Setting(
        "lease_starvation_s", 2.0, "seconds", "node",
        "A request older than this may gather the resources it needs while smaller ones wait.",
        "A large request waits longer behind a stream of small ones.",
    ),
    Setting(
        "object_spilling_config", "", "JSON", "node",
        "Where objects go for which the store has no room: {\"type\": \"filesystem\", \"params\": {\"directory_path\": "
        "PATH or [PATH, ...]}}; empty means object_spilling_directory, or `spill` in the session's folder. "
        "{\"type\": \"none\"} switches spilling off.", "-",
    ),
    Setting(
        "object_spilling_directory", "", "path", "node",
        "The same as a plain path. Best a local disk; a tmpfs would only move the memory elsewhere.", "-",
    ),
    Setting(
        "object_spilling_bytes_max", 0, "bytes", "node",
        "What the objects on all disks together may take; 0 leaves it to the disks.", "Less disk for everything else.",
    ),
    Setting(
        "local_fs_capacity_threshold", 0.95, "part of a disk", "node",
        "A disk that is used to more than this gets no more objects: other programs need room on it too.",
        "A fuller disk.",
    ),
    Setting(
        "min_spilling_size", 100 << 20, "bytes", "node",
        "So much room is made at once, an eighth of the store at most: a disk likes large writes, and the next writers "
        "find room.", "Objects leave memory earlier than they would have to.",
    ),
    Setting(
        "max_io_workers", 2, "threads", "node",
        "Threads of plasma_store that write and read spilled objects; one disk is kept busy by few.",
        "More processor time taken from tasks at once.",
    ),
    Setting(
        "store_full_timeout_s", 10.0, "seconds", "driver, worker",
        "How long a writer or reader waits for room in a full store while nothing is being spilled.",
        "ObjectStoreFullError comes later.",
    ),
    Setting(
        "spill_hops_max", 4, "nodes", "node",
        "Views of other nodes are some tenths of a second old; a request that was sent on so often waits where it is.",
        "Under bursts a request may travel longer before it waits in a line.",
    ),
    Setting(
        "worker_exit_grace_s", 5.0, "seconds", "node",
        "Between exit() to a worker and SIGKILL: atexit handlers and output of the user may take a moment.",
        "A worker that ignores exit() holds memory longer.",
    ),
    Setting(
        "shutdown_grace_s", 2.0, "seconds", "node",
        "The same, when the whole session ends; then everything is killed.", "ray.shutdown() takes longer.",
    ),
    Setting(
        "timeout_grace_s", 2.0, "seconds", "worker",
        "Between the interruption of a call that runs over its timeout_s and force; `finally` may take a moment.",
        "A call that does not react holds its worker longer.",
    ),
    # -- clusters ---------------------------------------------------------------------------------------------------
    Setting(
        "heartbeat_s", 1.0, "seconds", "node",
        "A joined node tells the head so often that it is there, from a thread that does nothing else.",
        "A message a second for each node at 1.0.",
    ),
    Setting(
        "node_silence_s", 10.0, "seconds", "node",
        "A node, or a head, that nothing is heard of for so long is cut off. A process that ends is noticed at once.",
        "A machine that loses its power is noticed later; below some seconds a stalled switch looks like a death.",
    ),
    Setting(
        "head_restart_wait_s", 60.0, "seconds", "node",
        "So long a joined node looks for a head that is gone and may come back, while its work goes on; 0: it ends "
        "itself at once.",
        "A node whose head never comes back ends itself later; one that is cut off works on alone for longer.",
    ),
    # -- runtime environments -----------------------------------------------------------------------------------
    Setting(
        "runtime_env_cache_bytes", 10 * 2**30, "bytes a node", "node",
        "What is built for environments that nobody uses is kept up to this; those used longest ago go first.", "Disk.",
    ),
    Setting(
        "runtime_env_package_bytes_max", 512 * 2**20, "bytes a package", "driver, worker, node",
        "A working_dir larger than this was meant to leave something out: data belongs in objects or in files.",
        "Disk, and time before the first task.",
    ),
    Setting(
        "runtime_env_builds_max", 4, "builds", "node",
        "pip and conda keep a processor and the disk busy; more at once only makes each of them slower.",
        "Tasks that run meanwhile get less of the machine.",
    ),
    Setting(
        "runtime_env_setup_timeout_s", 600.0, "seconds", "node",
        "Of environments that do not say setup_timeout_seconds, and of a worker's start in one.",
        "A build that hangs is reported later.",
    ),
    Setting(
        "object_manager", False, "yes or no", "node",
        "The store of a session that has a port for other nodes fetches from and serves their stores anyway; this is "
        "for tests of that without other nodes.", "A thread that sleeps.",
    ),
    Setting(
        "tls", False, "yes or no", "node, driver, worker",
        "Whether what nodes and ray:// clients say over TCP is encrypted (docs/security.md). Who joins takes it "
        "over from the head. It needs OpenSSL 3 or 1.1.1 on each machine.",
        "Processor time for each byte between machines.",
    ),
    # -- memory ---------------------------------------------------------------------------------------------------
    Setting(
        "object_store_memory_fraction", 0.3, "of available memory", "node",
        "The store is shared memory that nothing else can use once touched.", "Less memory for the workers' own heaps.",
    ),
    Setting(
        "object_store_memory_max", 200 * 2**30, "bytes", "node",
        "Bounds the default on very large machines; ray.init(object_store_memory=) may exceed it.", "-",
    ),
    Setting(
        "object_store_memory_min", 64 * 2**20, "bytes", "node",
        "Below this no real object fits; it is also the smallest value that ray.init accepts.", "-",
    ),
    Setting(
        "memory_usage_threshold", 0.95, "of the memory there is", "node",
        "Above it the newest task that may be retried is ended, before the kernel ends whatever is largest.",
        "Closer to what the kernel does by itself; less, and memory is left unused.",
    ),
    Setting(
        "memory_monitor_refresh_ms", 250, "milliseconds", "node",
        "The shortest time between two looks at the memory in use while something runs; far from the limit they are "
        "up to 10 s apart, and an idle node does not look. 0: memory is not watched.",
        "A task that allocates fast may meet the kernel's killer first.",
    ),
    Setting(
        "worker_memory_bytes_max", 0, "bytes", "node",
        "What all workers of this node may use together, without the object store: for a machine that is shared with "
        "others. 0: what the machine, or its control group, has.", "-",
    ),
    Setting(
        "task_oom_retries", -1, "tries", "driver and workers",
        "How often a task that may be retried, and was ended for want of memory while others ran, runs again without "
        "counting against its max_retries; -1: always.",
        "A program that can't fit is tried longer.",
    ),
    # -- logs -----------------------------------------------------------------------------------------------------
    Setting(
        "log_line_bytes_max", 64 * 2**10, "bytes", "node",
        "A longer line is forwarded in pieces: a worker printing without newlines must not grow the node.",
        "Memory of the node, for each worker.",
    ),
    Setting(
        "log_file_bytes_max", 64 * 2**20, "bytes a file", "node",
        "A worker's output file that has grown to this is renamed to .1, replacing the one before.",
        "Twice this on the disk, for each stream of each worker, while the session lives.",
    ),
    Setting(
        "log_files_kept", 1000, "files", "node",
        "Output files of dead workers; the oldest go. With max_calls=1 a job would leave one for each task.",
        "Disk, for as long as the session lives.",
    ),
    Setting(
        "log_backlog_bytes_max", 4 * 2**20, "bytes a driver", "node",
        "Output a slow driver has not read yet; beyond it the node stops reading pipes and workers block in print.",
        "Memory of the node.",
    ),
    # -- node -----------------------------------------------------------------------------------------------------
    Setting(
        "task_events_kept", 10_000, "events", "node",
        "What `ray timeline` can look back on; written to Redis in batches.", "Memory of Redis.",
    ),
    Setting(
        "object_reconstruction", True, "true or false", "driver and workers",
        "A result that was lost with its store, or its node, is made again by the task that made it.",
        "False: it is lost, and a get of it raises ObjectLostError.",
    ),
    Setting(
        "record_ref_creation_sites", False, "true or false", "driver and workers",
        "`ray memory` then says which line of the program made each object.",
        "About a microsecond for each ref, and the text of the line in memory.",
    ),
    Setting(
        "tracing_startup_hook", "", "module:function", "driver and workers",
        "What `ray.init(_tracing_startup_hook=)` gives; empty: calls make no spans.", "Two spans for each call.",
    ),
    Setting(
        "errors_kept", 1_000, "errors", "node",
        "ray.errors() of a job that fails in a loop must not grow without bound.", "Memory of Redis.",
    ),
)  # fmt: skip

_BY_NAME = {row.name: row for row in TABLE}


def _convert(row: Setting, given: Any, source: str) -> Any:
    kind = type(row.default)
    try:
        if kind is bool:
            if isinstance(given, str):
                return {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}[given.lower()]
            if given in (True, False):
                return bool(given)
            raise ValueError(given)
        if kind is str and not isinstance(given, str):
            raise ValueError(given)
        if kind is int and isinstance(given, (bool, float)):
            raise ValueError(given)
        return kind(given)
    except (ValueError, TypeError, KeyError):
        raise ValueError(
            f"{source}: {row.name} must be {kind.__name__} ({row.unit}), not {given!r}; the default is {row.default!r}"
        ) from None


def page() -> str:
    """The table as docs/config.md shows it."""
    rows = [f"| `{row.name}` | {row.default!r} {row.unit} | {row.reader} | {row.why} | {row.cost} |" for row in TABLE]
    return "\n".join(
        [
            "# Settings",
            "",
            "`ray.init(_system_config={name: value})`, or the environment variable `RAY_` and the name in capitals;",
            "the former wins. Read once, when a session starts. This page is printed from `ray/_config.py` by",
            "`python -c 'import ray._config; print(ray._config.page())'`.",
            "",
            "| name | default | read by | why this value | more of it costs |",
            "|---|---|---|---|---|",
            *rows,
        ]
    )


class Settings:
    """The settings of one session, as attributes. Immutable; `overrides()` is what children are given."""

    __slots__ = ("_overrides", *(row.name for row in TABLE))
    _overrides: dict[str, Any]

    def __init__(self, overrides: Mapping[str, Any] | None = None, environ: Mapping[str, str] | None = None) -> None:
        """Args:
            overrides: wins over the environment; None: nothing.
            environ: where `RAY_<NAME>` is looked up; None: nowhere (a child takes what its parent decided).
        Raises: ValueError: an unknown name, or a value of the wrong type.
        """
        chosen: dict[str, Any] = {}
        if environ is not None:
            for row in TABLE:
                for name in ("RAY_" + row.name, row.environment_name):  # the former is how Ray spells its settings
                    if name in environ:
                        chosen[row.name] = _convert(row, environ[name], "environment")
        for name, given in (overrides or {}).items():
            if name not in _BY_NAME:
                raise ValueError(f"_system_config: no setting named {name!r}; known: {', '.join(sorted(_BY_NAME))}")
            chosen[name] = _convert(_BY_NAME[name], given, "_system_config")
        object.__setattr__(self, "_overrides", chosen)
        for row in TABLE:
            object.__setattr__(self, row.name, chosen.get(row.name, row.default))

    def __getattr__(self, name: str) -> Any:  # only for names that are no setting; also tells mypy that fields exist
        raise AttributeError(f"no setting named {name!r}")

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"settings are read once at start; {name} can't be changed afterwards")

    def overrides(self) -> dict[str, Any]:
        return dict(self._overrides)

    def __repr__(self) -> str:
        return f"Settings({self._overrides})"
