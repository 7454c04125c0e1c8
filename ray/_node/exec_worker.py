"""PROCESS worker, started by exec: its environment has an interpreter of its own, or a program around it.

The fork server's child writes what it was told to a file in the session's folder and becomes the environment's
command: conda's Python, `nsys profile ... python`, `mpirun ... python`, `podman run ... python`. That starts `main`
here, which goes on as a forked worker would (`fork_server.py`). The process that the node knows is the command's; the
worker below it shows, when it registers, a key that only it was given. It dies with its parent, which dies with the
node; one in a container, which is nobody's child, ends when its connection to the node does. The node removes the
file.
"""

from __future__ import annotations

import os
import pickle
import sys
from typing import Any, NoReturn

_RANK_VARIABLES = ("OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK", "MPI_RANKID")


def become(startup: dict[str, Any]) -> NoReturn:
    """In the fork server's child: this process becomes the environment's command. Raises: OSError: there is none."""
    from ray._launch.node_process import python_command
    from ray._launch.session import Session

    context = startup["env_context"]
    path = Session(startup["session_dir"], b"").worker_start(startup["worker_id"])
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(pickle.dumps({**startup, "prefixes": [sys.prefix, sys.base_prefix]}))
    if context.get("image"):
        argv = [*context["python"], "-m", "ray._node.exec_worker", path]  # the image has a ray of its own
    else:
        argv = [*context["python"], *python_command("ray._node.exec_worker", path)[1:]]
    from ray.runtime_env import _enter

    os.environ.update(startup["env"])
    _enter.set_variables(startup["runtime_env"], context)
    sys.stderr.flush()
    try:
        os.execvp(argv[0], argv)
    except OSError as error:
        os.write(2, f"ray: {argv[0]} can't be run: {error.strerror}\n".encode())
        os._exit(127)


def main() -> NoReturn:
    """The interpreter that the command has started."""
    from ray._launch.title import die_with_parent, set_title

    parent = os.getppid()
    if parent > 1 and not die_with_parent(parent):
        os._exit(1)
    with open(sys.argv[1], "rb") as file:
        startup = pickle.load(file)
    code = 1
    try:
        rank = next((os.environ[name] for name in _RANK_VARIABLES if name in os.environ), "0")
        entry = os.environ.get("RAY_MPI_WORKER_ENTRY")
        _adjust_path(startup)
        from ray._node import fork_server

        fork_server.prepare_interpreter(startup)
        if entry is not None and rank != "0":
            set_title(f"ray mpi rank {rank}")
            _call(entry)
            code = 0
        else:
            set_title("ray worker")
            import importlib

            code = importlib.import_module(startup["settings"].get("worker_main", "ray._core.worker_main")).main(
                startup
            )
    except SystemExit as ending:
        code = ending.code if isinstance(ending.code, int) else (0 if ending.code is None else 1)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        from ray._node.fork_server import leave

        leave(code or 0)


def _adjust_path(startup: dict[str, Any]) -> None:
    """The driver's path without its interpreter's library; what that has installed comes last, for ray's own needs."""
    if sys.prefix in startup["prefixes"]:
        return  # the same interpreter, inside another program
    libraries = tuple(f"{prefix}/" for prefix in startup["prefixes"])
    installed = [entry for entry in startup["sys_path"] if "site-packages" in entry]
    startup["sys_path"] = [
        entry for entry in startup["sys_path"] if entry not in installed and not entry.startswith(libraries)
    ]
    sys.path += [entry for entry in installed if entry not in sys.path]


def _call(entry: str) -> None:
    import importlib

    module, _, name = entry.rpartition(".")
    getattr(importlib.import_module(module), name)()


if __name__ == "__main__":
    main()
