"""The current cluster: the session that `ray start` made, and that a driver joins if it says nothing else.

One file, `current`, in this user's base folder (`/tmp/ray-<uid>/`, or below RAY_TMPDIR), mode 0700 like all in it, has
the path of that session's folder. The node process writes it when it is ready and takes it out as its last act; both,
and the sweeping of a name whose node was killed, under the base folder's flock. **A name whose session isn't alive is
no name**: whoever reads it asks the session's own lock.
"""

from __future__ import annotations

import fcntl
import os

from . import session as sessions


def read() -> str | None:
    """The folder of the current cluster, or None if none is running."""
    for base in sessions.bases(sessions.parent_of_base(None)):
        folder = _named_in(base)
        if folder is not None and sessions.alive(folder):
            return folder
    return None


def claim(folder: str) -> None:
    """Makes the session in folder the current one.

    Raises: ValueError: another one is, and alive.
    """
    while True:
        base, fd = sessions.open_base(sessions.parent_of_base(None), "RAY_TMPDIR")
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            if not sessions.same_folder(base, fd):
                continue  # removed between our open and our lock: its last session has just ended
            other = _named_in(base)
            if other is not None and other != folder and sessions.alive(other):
                raise ValueError(runs_already(other))
            draft = f"{base}/{sessions.CURRENT}.new"
            with open(draft, "w") as file:
                file.write(folder + "\n")
            os.replace(draft, f"{base}/{sessions.CURRENT}")  # a reader sees the old name or the new, never half of one
            return
        finally:
            os.close(fd)


def release(folder: str) -> None:
    """The session in folder ends: if it is the current one, there is none from now on."""
    for base in sessions.bases(sessions.parent_of_base(None)):
        try:
            fd = os.open(base, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            continue  # another session of it, the last one, has just removed it: then no name is in it either
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            if _named_in(base) == folder:
                os.unlink(f"{base}/{sessions.CURRENT}")
        finally:
            os.close(fd)
        sessions.remove_if_empty(base)


def runs_already(folder: str) -> str:
    """Said to whoever wants to start a second one."""
    return (
        f"a cluster of this user runs already, in {folder}. Programs join it with ray.init(); `ray stop` ends it, and "
        "then another can be started"
    )


def _named_in(base: str) -> str | None:
    try:
        with open(f"{base}/{sessions.CURRENT}") as file:
            return file.read().strip() or None
    except FileNotFoundError:
        return None
