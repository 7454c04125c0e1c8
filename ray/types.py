"""The kinds of id, under the public name. No I/O.

`ray.ObjectRef` is not here: it is a reference that is counted, not a plain value (see `ray.object_ref`).
"""

from __future__ import annotations

import enum

from ray._protocol.ids import ActorCheckpointID, ActorID, BaseID, FunctionID, JobID, NodeID, TaskID, WorkerID

__all__ = [
    "ActorCheckpointID",
    "ActorID",
    "BaseID",
    "FunctionID",
    "JobID",
    "Language",
    "NodeID",
    "TaskID",
    "WorkerID",
]


class Language(enum.Enum):
    """In what a worker is written. Here each is PYTHON; the others are names that libraries compare with."""

    PYTHON = 0
    JAVA = 1
    CPP = 2
