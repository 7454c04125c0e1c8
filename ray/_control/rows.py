"""The rows of the control plane's tables, and how a row becomes bytes: JSON objects, so that a person can read them.

Vocabulary only: no I/O. Identities are bytes in Python and hexadecimal in JSON. A field that this version does not know
is skipped and one that is missing takes its default, so that versions can read each other's rows.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple, TypeVar


class NodeRow(NamedTuple):
    node_id: bytes
    state: str = "ALIVE"  # ALIVE | DEAD
    address: str = ""
    hostname: str = ""
    name: str = ""  # what people call it; the address unless `_node_name` was given
    resources: dict[str, int] = {}  # units of 1/10,000
    labels: dict[str, str] = {}
    pid: int = 0
    started_s: float = 0.0  # seconds since the epoch, as all times here
    died_s: float = 0.0
    cause: str = ""


class JobRow(NamedTuple):
    job_id: bytes
    state: str = "RUNNING"  # RUNNING | FINISHED | DIED
    driver_tag: bytes = b""
    driver_pid: int = 0
    entrypoint: str = ""
    namespace: str = ""
    started_s: float = 0.0
    ended_s: float = 0.0
    cause: str = ""
    metadata: dict[str, str] = {}
    surroundings: dict[str, Any] = {}  # what its workers need to be like its driver; nobody is shown it


class ActorRow(NamedTuple):
    actor_id: bytes
    state: str = "PENDING_PLACEMENT"
    job_id: bytes = b""
    owner_tag: bytes = b""
    class_name: str = ""
    name: str = ""
    namespace: str = ""
    detached: bool = False
    resources: dict[str, int] = {}
    placement_resources: dict[str, int] = {}
    runtime_env: str = ""  # JSON, as ray/runtime_env/_prepare.py makes it
    max_restarts: int = 0
    max_task_retries: int = 0
    max_concurrency: int = 1
    checkpoints: int = 0  # after so many calls; -1: its class decides; 0: none
    calls: dict[str, int] = {}  # options of every call: max_task_retries, max_pending_calls
    description: bytes = b""  # named actors: the class's table of methods, for handles made by name
    incarnation: int = 0
    restarts: int = 0
    node_id: bytes = b""
    worker_tag: bytes = b""
    worker_pid: int = 0
    created_s: float = 0.0
    died_s: float = 0.0
    cause: str = ""
    error: bytes = b""  # what __init__ raised, encoded by the worker
    strategy: Any = None  # as ray/_scheduling/strategy.py makes it plain


class PlacementGroupRow(NamedTuple):
    group_id: bytes
    state: str = "PENDING"
    job_id: bytes = b""
    name: str = ""
    namespace: str = ""
    strategy: str = "PACK"
    detached: bool = False
    bundles: list[dict[str, int]] = []
    nodes: list[str] = []  # of each bundle, hexadecimal; "" while it has none
    created_s: float = 0.0
    placed_s: float = 0.0  # when every bundle first had its place
    selectors: list[Any] = []  # of each bundle, as ray/_scheduling/labels.py draws them
    first: str = ""  # the preferred node, hexadecimal
    cpu_fraction: float = 1.0
    maker: bytes = b""  # tag of the process that is told of its state


class ErrorRow(NamedTuple):
    job_id: bytes
    kind: str
    message: str
    time_s: float = 0.0
    pid: int = 0
    extra: dict[str, Any] = {}


class ObjectRow(NamedTuple):
    object_id: bytes
    nbytes: int = 0
    nodes: list[str] = []  # hexadecimal ids of the nodes that hold a copy
    spilled_url: str = ""


Row = TypeVar("Row", NodeRow, JobRow, ActorRow, PlacementGroupRow, ErrorRow, ObjectRow)


def dumps(row: NamedTuple) -> bytes:
    return json.dumps(row._asdict(), default=_plain, separators=(",", ":")).encode()


def loads(kind: type[Row], data: bytes) -> Row:
    """Raises: ValueError: not a row of this kind."""
    given = json.loads(data)
    if not isinstance(given, dict):
        raise ValueError(f"a {kind.__name__} must be a JSON object, not {data[:80]!r}")
    types = kind.__annotations__  # strings, since annotations are not evaluated here
    fields: dict[str, Any] = {}
    for name, value in given.items():
        if name in types:
            fields[name] = bytes.fromhex(value) if types[name] in ("bytes", _BYTES) else value
    try:
        return kind(**fields)
    except TypeError as error:
        raise ValueError(f"a {kind.__name__} without its id: {data[:80]!r} ({error})") from None


_BYTES = NodeRow.__annotations__["node_id"]  # NamedTuple keeps a ForwardRef("bytes") in its annotations


def _plain(value: Any) -> Any:
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value).hex()
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    return str(value)  # in `extra`, which is whatever a process wanted to say
