"""What a task's process is like: environment variables, files, packages. The public classes, and one file per kind.

`RuntimeEnv` is what users write (`_fields.py` checks each field); `_prepare.py` makes of it, in the process that
submits, a text that any process of the session understands; `_build.py` builds, in a process of its own, what the text
names, one folder for each distinct part; `_enter.py` makes a new worker live in what was built. Which environment is
built when, and for whom, is decided by `ray/_node/runtime_envs.py`.
"""

from .runtime_env import RuntimeEnv, RuntimeEnvConfig

__all__ = ["RuntimeEnv", "RuntimeEnvConfig"]
