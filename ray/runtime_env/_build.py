"""Builds an environment: one builder a field, in an order that lets later ones use what earlier ones made.

In a process of its own (`ray/_node/env_builder.py`), which may take minutes and whose tools may hang.
"""

from __future__ import annotations

import os
import shlex
from typing import Any

from . import _archives, _conda, _venv, _wrappers
from ._tools import BuildError, Site

__all__ = ["BuildError", "build"]


def build(session_dir: str, folder: str, env: dict[str, Any], bytes_max: int) -> dict[str, Any]:
    """Returns: {"context": what a worker has to know, "sizes": bytes by part}.  Raises: BuildError."""
    os.makedirs(folder, mode=0o700, exist_ok=True)
    site = Site(session_dir, folder, env, bytes_max)
    for field, make in _BUILDERS.items():
        if env.get(field):
            print(f"-- {field}", flush=True)
            make(site)
    return {"context": site.context, "sizes": site.sizes}


def _own_interpreter(site: Site) -> None:
    site.context.update(python=shlex.split(site.env["py_executable"]), exec=True)


# Requirements may lie in the working_dir; what wraps an interpreter comes after what chooses it.
_BUILDERS = {
    "working_dir": _archives.working_dir,
    "py_modules": _archives.py_modules,
    "pip": _venv.pip,
    "uv": _venv.uv,
    "conda": _conda.conda,
    "py_executable": _own_interpreter,
    "container": _wrappers.container,
    "image_uri": _wrappers.container,
    "nsight": _wrappers.nsight,
    "mpi": _wrappers.mpi,
}
