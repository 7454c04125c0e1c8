"""From what a user wrote to a text that every process of the session understands. Runs in the process that submits.

`effective` is called once for each remote function or class with its options, not for each call. What lies on this
machine's disk (working_dir, py_modules) becomes a package in the session's folder, a setup hook that is a function
likewise, a conda file its content; then the child's environment is laid over the parent's, which is that of the process
itself: the job's, in a driver. The result is JSON with sorted keys, and its digest is the environment's name.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from . import _fields, _packages
from .runtime_env import RuntimeEnv


def check(option: str, value: Any) -> RuntimeEnv | None:
    """The environment that a user gave, validated; None if it asks for nothing.

    Raises: TypeError, ValueError, NotImplementedError: naming the field.
    """
    if not isinstance(value, Mapping):
        raise TypeError(f"{option}={value!r}: expected a dict or a ray.runtime_env.RuntimeEnv")
    for field in value:
        if not isinstance(field, str):
            raise TypeError(f"{option}: the field {field!r} is not a string")
    try:
        env = value if type(value) is RuntimeEnv else RuntimeEnv(**value)
    except (TypeError, ValueError, NotImplementedError) as error:
        raise type(error)(str(error).replace("runtime_env", option, 1)) from None
    _fields.together(env)  # one that was changed after it was made
    return env if env else None


def effective(env: Mapping[str, Any] | None, parent: str, session_dir: str, bytes_max: int) -> str:
    """The text of env laid over its parent's; "" if neither asks for anything.

    Args: session_dir: where packages go.
    Raises: ValueError: something that it names is not there, or too large.
    """
    if not env:
        return parent
    ready = prepare(env, session_dir, bytes_max)
    merged = merge(json.loads(parent), ready) if parent else ready
    return json.dumps(merged, sort_keys=True, separators=(",", ":")) if merged else ""


def merge(parent: Mapping[str, Any], child: Mapping[str, Any]) -> dict[str, Any]:
    """The child's fields replace the parent's; env_vars are merged, the child's values winning.

    A field of the parent's that can't stand beside one of the child's gives way: pip to conda, what is installed to
    an image.
    """
    merged = dict(parent)
    if any(child.get(name) is not None for name in _fields.INSTALLERS):
        for name in _fields.INSTALLERS:
            merged.pop(name, None)
        if child.get("conda") is not None:
            merged.pop("py_executable", None)
    if child.get("container") is not None or child.get("image_uri") is not None:
        merged = {name: merged[name] for name in ("config", "env_vars") if name in merged}
    elif set(child) - {"config", "env_vars"}:
        merged.pop("container", None)
        merged.pop("image_uri", None)
    if child.get("py_executable") is not None:
        merged.pop("conda", None)
    merged.update(child)
    if parent.get("env_vars") and child.get("env_vars"):
        merged["env_vars"] = {**parent["env_vars"], **child["env_vars"]}
    return {name: value for name, value in merged.items() if value is not None}


def prepare(env: Mapping[str, Any], session_dir: str, bytes_max: int) -> dict[str, Any]:
    """env without anything that only this process can see. Raises: ValueError."""
    ready: dict[str, Any] = {name: dict(value) if isinstance(value, Mapping) else value for name, value in env.items()}
    excludes: list[str] = ready.pop("excludes", None) or []
    if "working_dir" in ready:
        ready["working_dir"] = _working_dir(ready["working_dir"], session_dir, excludes, bytes_max)
    if "py_modules" in ready:
        ready["py_modules"] = [_py_module(one, session_dir, excludes, bytes_max) for one in ready["py_modules"]]
    conda = ready.get("conda")
    if isinstance(conda, str) and conda.endswith((".yml", ".yaml")):
        try:
            with open(conda, encoding="utf-8") as file:
                ready["conda"] = {"environment_yaml": file.read()}
        except OSError as error:
            raise ValueError(f"runtime_env: conda={conda!r} can't be read: {error.strerror}") from None
    hook = ready.get("worker_process_setup_hook")
    if callable(hook):
        ready["worker_process_setup_hook"] = _packages.store_bytes(session_dir, "hook", _pickled(hook))
    return ready


def _working_dir(given: str, session_dir: str, excludes: list[str], bytes_max: int) -> str:
    if _fields.scheme_of(given):
        return given
    path = os.path.abspath(os.path.expanduser(given))
    if os.path.isdir(path):
        return _packages.store_folder(session_dir, path, excludes, bytes_max)
    if os.path.isfile(path) and path.lower().endswith(".zip"):
        return _packages.store_file(session_dir, path, bytes_max)
    raise ValueError(f"runtime_env: working_dir={given!r}: expected a folder or a .zip file that exists")


def _py_module(given: str, session_dir: str, excludes: list[str], bytes_max: int) -> str:
    if _fields.scheme_of(given):
        return given
    path = os.path.abspath(os.path.expanduser(given))
    if os.path.isdir(path):
        return _packages.store_folder(session_dir, path, excludes, bytes_max, top=os.path.basename(path))
    if os.path.isfile(path) and path.endswith(".py"):
        return _packages.store_file(session_dir, path, bytes_max, name=os.path.basename(path))
    if os.path.isfile(path) and path.lower().endswith((".whl", ".zip")):
        return _packages.store_file(session_dir, path, bytes_max)
    raise ValueError(
        f"runtime_env: py_modules: {given!r}: expected a folder, a .py file, a .whl or a .zip file that exists"
    )


def _pickled(hook: Any) -> bytes:
    import cloudpickle  # type: ignore[import-untyped]

    try:
        return bytes(cloudpickle.dumps(hook))
    except Exception as error:
        raise ValueError(
            f"runtime_env: worker_process_setup_hook={hook!r} can't be pickled: {error}; give it as 'module.function'"
        ) from error
