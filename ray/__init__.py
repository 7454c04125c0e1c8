"""ray: ordinary Python functions and classes, run in parallel, sharing objects through shared memory.

your program     import ray             each name below is loaded when it is first used
public nouns     api, remote_function, actor, object_ref, ...   check the arguments, then one call
engine           _core                  inside every driver and worker: submit, execute, own, get
processes        _node, _head, plasma   one node process, one store, workers by fork; they meet in messages
vocabulary       _native, _protocol, _config, exceptions        bytes, ids, settings, errors
"""

TYPE_CHECKING = False  # typing.TYPE_CHECKING without importing typing: type checkers know the name
if TYPE_CHECKING:  # "as" says that these are the package's own names (PEP 484)
    from ray import _private as _private
    from ray import _raylet as _raylet
    from ray import actor as actor
    from ray import client as client
    from ray import client_builder as client_builder
    from ray import cloudpickle as cloudpickle
    from ray import dag as dag
    from ray import exceptions as exceptions
    from ray import experimental as experimental
    from ray import log as log
    from ray import remote_function as remote_function
    from ray import runtime_env as runtime_env
    from ray import types as types
    from ray import util as util
    from ray._aliases import LOCAL_MODE as LOCAL_MODE
    from ray._aliases import PYTHON_MODE as PYTHON_MODE
    from ray._aliases import SCRIPT_MODE as SCRIPT_MODE
    from ray._aliases import SILENT_MODE as SILENT_MODE
    from ray._aliases import WORKER_MODE as WORKER_MODE
    from ray._aliases import error_info as error_info
    from ray._logging_config import LoggingConfig as LoggingConfig
    from ray._timeline import timeline as timeline
    from ray._version import __version__ as __version__
    from ray.actor import ActorHandle as ActorHandle
    from ray.actor import method as method
    from ray.api import available_resources as available_resources
    from ray.api import cancel as cancel
    from ray.api import cluster_resources as cluster_resources
    from ray.api import get as get
    from ray.api import get_actor as get_actor
    from ray.api import init as init
    from ray.api import is_initialized as is_initialized
    from ray.api import kill as kill
    from ray.api import nodes as nodes
    from ray.api import put as put
    from ray.api import remote as remote
    from ray.api import shutdown as shutdown
    from ray.api import wait as wait
    from ray.api import wait_async as wait_async
    from ray.job_config import JobConfig as JobConfig
    from ray.object_ref import ObjectRef as ObjectRef
    from ray.object_ref_generator import DynamicObjectRefGenerator as DynamicObjectRefGenerator
    from ray.object_ref_generator import ObjectRefGenerator as ObjectRefGenerator
    from ray.runtime_context import get_gpu_ids as get_gpu_ids
    from ray.runtime_context import get_runtime_context as get_runtime_context
    from ray.types import ActorID as ActorID
    from ray.types import FunctionID as FunctionID
    from ray.types import JobID as JobID
    from ray.types import Language as Language
    from ray.types import NodeID as NodeID
    from ray.types import TaskID as TaskID
    from ray.types import WorkerID as WorkerID

    ObjectID = ObjectRef  # the older name

_HOME = {  # public name: module that has it; "" stands for the submodule of that name
    "__version__": "_version",
    **dict.fromkeys(
        ["available_resources", "cancel", "cluster_resources", "get", "get_actor", "init", "is_initialized", "kill"],
        "api",
    ),
    **dict.fromkeys(["nodes", "put", "remote", "shutdown", "wait", "wait_async"], "api"),
    **dict.fromkeys(["ActorHandle", "method"], "actor"),
    **dict.fromkeys(["ActorID", "FunctionID", "JobID", "Language", "NodeID", "TaskID", "WorkerID"], "types"),
    **dict.fromkeys(["get_gpu_ids", "get_runtime_context"], "runtime_context"),
    "JobConfig": "job_config",
    "LoggingConfig": "_logging_config",
    "timeline": "_timeline",
    "ObjectRef": "object_ref",
    **dict.fromkeys(["DynamicObjectRefGenerator", "ObjectRefGenerator"], "object_ref_generator"),
    **dict.fromkeys(
        ["actor", "client", "client_builder", "exceptions", "job_config", "plasma", "runtime_context", "runtime_env"],
        "",
    ),
    **dict.fromkeys(["cloudpickle", "dag", "experimental", "log", "remote_function", "types", "util"], ""),
    **dict.fromkeys(["_private", "_raylet"], ""),  # what libraries reach for: see ray/_private
}


def __getattr__(name: str) -> object:
    import importlib

    home, there = _HOME.get(name), name
    if home is None:
        # copy, pickle and doctest ask modules for __names__, and `from ray import _core` asks here before it imports.
        if name.startswith("_"):
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
