"""Makes a new worker live in its environment: variables, paths, folder, hook. In the worker, before its first task.

After the fork of the fork server, or after the exec of an environment that has an interpreter of its own. `context`
is what the builder said (`_tools.Site`); an environment of nothing but variables has none.
"""

from __future__ import annotations

import importlib
import json
import os
import pickle
import re
import sys
from typing import Any

_VARIABLE = re.compile(r"\$\{([^{}]*)\}")


def set_variables(text: str, context: dict[str, Any]) -> None:
    """The environment's variables, then the user's; what was built comes first in PATH and PYTHONPATH."""
    env = json.loads(text)
    variables = os.environ
    variables.update(context.get("env_vars") or {})
    if context.get("bin"):
        variables["PATH"] = os.pathsep.join([*context["bin"], variables.get("PATH", "")])
    # A value may refer to what was there before: "${PATH}:/opt/bin". All of them see the same "before".
    given = env.get("env_vars") or {}
    before = dict(variables)
    for name, value in given.items():
        variables[name] = _VARIABLE.sub(lambda found: before.get(found[1], ""), value)
    ours = [*(context.get("sys_path") or ()), *([context["site"]] if context.get("site") else [])]
    if ours:  # for the programs that tasks start
        variables["PYTHONPATH"] = os.pathsep.join([*ours, *filter(None, [variables.get("PYTHONPATH")])])


def set_paths(context: dict[str, Any]) -> None:
    """What was built comes first on sys.path; the working_dir is the current folder."""
    if context.get("cwd"):
        os.chdir(context["cwd"])
    given = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    first = list(context.get("sys_path") or ())
    first += [entry for entry in given if entry not in sys.path and entry not in first]
    if context.get("site") and not context.get("exec"):
        first += _of_site(context["site"])
        sys.executable = context["python"][0]
    if first:
        sys.path[:0] = first
        importlib.invalidate_caches()


def _of_site(folder: str) -> list[str]:
    """folder and what its .pth files add, as an interpreter started in it would have them."""
    import site

    before = list(sys.path)
    site.addsitedir(folder)
    added = [entry for entry in sys.path if entry not in before]
    sys.path[:] = before
    return added


def hook_of(text: str) -> str | None:
    """The setup hook of an environment: 'module.function', or the URI of a pickled one."""
    hook = json.loads(text).get("worker_process_setup_hook") if text else None
    return hook if hook is None else str(hook)


def run_hook(hook: str, session_dir: str) -> None:
    """Calls it. Raises: whatever it raises."""
    if "://" in hook:
        from . import _packages

        with open(_packages.path_of(session_dir, hook), "rb") as file:
            function = pickle.load(file)
    else:
        module, _, name = hook.rpartition(".")
        function = getattr(importlib.import_module(module), name)
    function()
