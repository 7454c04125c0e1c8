"""ray: ordinary Python functions and classes, run in parallel, sharing objects through shared memory.

your program     import ray             each name below is loaded when it is first used
public nouns     api, remote_function, actor, object_ref, ...   check the arguments, then one call
engine           _core                  inside every driver and worker: submit, execute, own, get
processes        _node, _head, plasma   one node process, one store, workers by fork; they meet in messages
vocabulary       _native, _protocol, _config, exceptions        bytes, ids, settings, errors
"""

TYPE_CHECKING = False  # typing.TYPE_CHECKING without importing typing: type checkers know the name
if TYPE_CHECKING:
    from ray import _aliases, actor, api, exceptions, types, util
    from ray._aliases import PYTHON_MODE, SCRIPT_MODE, SILENT_MODE, WORKER_MODE, error_info
    from ray._version import __version__
    from ray.actor import ActorHandle, method
    from ray.api import (
        available_resources,
        cancel,
        cluster_resources,
        get,
        get_actor,
        init,
        is_initialized,
        kill,
        nodes,
        put,
        remote,
        shutdown,
        wait,
    )
    from ray.job_config import JobConfig
    from ray.object_ref import ObjectRef
    from ray.object_ref import ObjectRef as ObjectID
    from ray.runtime_context import get_gpu_ids, get_runtime_context
    from ray.types import ActorID, FunctionID, JobID, NodeID, TaskID, WorkerID

_HOME = {  # public name: module that has it; "" stands for the submodule of that name
    "__version__": "_version",
    **dict.fromkeys(
        ["available_resources", "cancel", "cluster_resources", "get", "get_actor", "init", "is_initialized", "kill"],
        "api",
    ),
    **dict.fromkeys(["nodes", "put", "remote", "shutdown", "wait"], "api"),
    **dict.fromkeys(["ActorHandle", "method"], "actor"),
    **dict.fromkeys(["ActorID", "FunctionID", "JobID", "NodeID", "TaskID", "WorkerID"], "types"),
    **dict.fromkeys(["get_gpu_ids", "get_runtime_context"], "runtime_context"),
    "JobConfig": "job_config",
    "ObjectRef": "object_ref",
    **dict.fromkeys(["actor", "exceptions", "job_config", "plasma", "runtime_context", "types", "util"], ""),
}


def __getattr__(name: str) -> object:
    import importlib

    home, there = _HOME.get(name), name
    if home is None:
        if name.startswith("__"):  # copy, pickle and doctest ask modules for such names
            raise AttributeError(f"module 'ray' has no attribute {name!r}")
        from ray import _aliases

        if name not in _aliases.EXPORTS:
            raise AttributeError(f"module 'ray' has no attribute {name!r}")
        module, there = _aliases.EXPORTS[name]
        home = module.removeprefix("ray.")
    if not home:
        return importlib.import_module("ray." + name)
    value = getattr(importlib.import_module("ray." + home), there)
    globals()[name] = value  # from now on found without this function
    return value


def __dir__() -> list[str]:
    from ray import _aliases

    return sorted({*globals(), *_HOME, *_aliases.EXPORTS})


__all__ = [name for name in _HOME if not name.startswith("_")]
