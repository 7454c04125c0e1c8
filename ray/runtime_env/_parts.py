"""What of an environment has to be built: its parts, each a folder named by what it is made from. Pure.

Read by the node, which keeps count of the parts' sizes, and by the builder, which makes them: two environments with the
same pip packages share that part.
"""

from __future__ import annotations

import json

# Not through hashlib, which loads OpenSSL: 3 ms and 3 MB, in a node process that needs it for nothing else.
from _blake2 import blake2b
from collections.abc import Mapping
from typing import Any

BUILT = ("working_dir", "py_modules", "pip", "uv", "conda", "container", "image_uri", "nsight", "mpi", "py_executable")
WORKING_DIR_VARIABLE = "RAY_RUNTIME_ENV_CREATE_WORKING_DIR"  # in a requirement: where the working_dir lies
FOLDER = "runtime_envs"  # below the session's


def key_of(text: str) -> str:
    """The name of an environment: equal for equal ones. How it is to be set up is no part of it."""
    if not text:
        return ""
    env = json.loads(text)
    env.pop("config", None)
    if not env:
        return ""
    return blake2b(json.dumps(env, sort_keys=True).encode(), digest_size=12).hexdigest()


def needs_build(env: Mapping[str, Any]) -> bool:
    """Whether anything has to be made or looked for; environment variables and hooks need nothing."""
    return any(env.get(field) for field in BUILT)


def part(kind: str, *made_from: Any) -> str:
    text = json.dumps(made_from, sort_keys=True)
    return f"{kind}-{blake2b(text.encode(), digest_size=12).hexdigest()}"


def working_dir(env: Mapping[str, Any]) -> str:
    return part("working_dir", env["working_dir"])


def packages(kind: str, env: Mapping[str, Any]) -> str:
    """Of pip or uv."""
    given = env[kind]
    beside = env.get("working_dir") if WORKING_DIR_VARIABLE in json.dumps(given) else None
    return part(kind, given, beside)


def parts_of(env: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the folders that env is built of."""
    names = []
    if env.get("working_dir"):
        names.append(working_dir(env))
    names += [part("py_modules", uri) for uri in env.get("py_modules") or ()]
    names += [packages(kind, env) for kind in ("pip", "uv") if env.get(kind)]
    if isinstance(env.get("conda"), Mapping):
        names.append(part("conda", env["conda"]))
    return tuple(names)


def setup_timeout_s(env: Mapping[str, Any], default_s: float) -> float | None:
    """None: no limit."""
    given = (env.get("config") or {}).get("setup_timeout_seconds", default_s)
    return None if given == -1 else float(given)
