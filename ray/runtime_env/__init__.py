"""What a task's process is like: environment variables, files, packages. The public classes, and one file per kind.

`RuntimeEnv` is what users write (`_fields.py` checks each field); `_prepare.py` makes of it, in the process that
submits, a text that any process of the session understands; `_build.py` builds, in a process of its own, what the text
names, one folder for each distinct part; `_enter.py` makes a new worker live in what was built. Which environment is
built when, and for whom, is decided by `ray/_node/runtime_envs.py`.
"""

TYPE_CHECKING = False  # typing.TYPE_CHECKING without importing typing
if TYPE_CHECKING:
    from .runtime_env import RuntimeEnv, RuntimeEnvConfig

__all__ = ["RuntimeEnv", "RuntimeEnvConfig"]


def __getattr__(name: str) -> object:
    # Loaded on first use: the node and the workers import parts of this package, and have no use for the classes.
    if name not in __all__:
        raise AttributeError(f"module 'ray.runtime_env' has no attribute {name!r}")
    from . import runtime_env

    return getattr(runtime_env, name)
