"""Where and how plasma_store spills objects, from the settings: its command line. Node's main thread, at its start.

The directories must exist, but for the session's own; whoever named one that does not, or that can't be written to,
hears of it from `ray.init`, before anything is spilled.
"""

from __future__ import annotations

import json
import os
from typing import Any

OWN_FOLDER = "spill"  # in the session's folder
_PARAMS = ("directory_path", "buffer_size")


def directories(config: str, directory: str) -> list[str] | None:
    """The directories that object_spilling_config and object_spilling_directory name.

    Returns: []: none is named. None: nothing shall be spilled.
    Raises: ValueError: it is not understood, or both name one.
    """
    named = [directory] if directory else []
    if not config:
        return named
    try:
        parsed = json.loads(config)
    except ValueError as error:
        raise ValueError(f"object_spilling_config is not JSON: {error}; it is {config!r}") from None
    kind = parsed.get("type") if isinstance(parsed, dict) else None
    if kind == "none":
        if named:
            raise ValueError(
                "object_spilling_config says type 'none', and object_spilling_directory names one: give one of them"
            )
        return None
    if kind != "filesystem":
        raise ValueError(
            f"object_spilling_config: type must be 'filesystem' (or 'none'), it is {kind!r}; for example "
            '{"type": "filesystem", "params": {"directory_path": "/mnt/disk"}}'
        )
    paths: Any = (parsed.get("params") or {}).get("directory_path")
    paths = [paths] if isinstance(paths, str) else paths
    if not isinstance(paths, list) or not paths or not all(isinstance(path, str) and path for path in paths):
        raise ValueError(
            f"object_spilling_config: params.directory_path must be a path or a list of paths, it is {paths!r}"
        )
    if named and named != paths:
        raise ValueError(
            "object_spilling_config and object_spilling_directory name different directories: give one of them"
        )
    return paths


def check(paths: list[str]) -> None:
    """Raises: ValueError: one of them is no directory that we may write to."""
    for path in paths:
        if not os.path.isdir(path):
            raise ValueError(f"object spilling: {path!r} is no directory on this machine")
        if not os.access(path, os.W_OK | os.X_OK):
            raise ValueError(f"object spilling: no right to create files in {path!r} (uid {os.getuid()})")


def arguments(settings: Any, session_folder: str) -> list[str]:
    """Raises: ValueError: as `directories` and `check`. OSError: the session's own folder can't be made."""
    paths = directories(settings.object_spilling_config, settings.object_spilling_directory)
    if paths is None:
        return []
    check(paths)
    if not paths:
        paths = [os.path.join(session_folder, OWN_FOLDER)]
        os.makedirs(paths[0], mode=0o700, exist_ok=True)
    said = [word for path in paths for word in ("--spill-directory", os.path.abspath(path))]
    if settings.object_spilling_bytes_max > 0:
        said += ["--spill-bytes-max", str(settings.object_spilling_bytes_max)]
    said += ["--spill-batch", str(max(1, settings.min_spilling_size))]
    said += ["--spill-threads", str(settings.max_io_workers)]
    return [*said, "--spill-disk-use", str(settings.local_fs_capacity_threshold)]
