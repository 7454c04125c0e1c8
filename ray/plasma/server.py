"""Starting the `plasma_store` process. LIBRARY; the engine's node process has its own launcher (ray._launch).

The store is given a pipe (--ready-fd) on which it says that it serves, or why not; and the end of another
(--lifeline-fd) whose closing ends it, so it dies with the process that started it, of whatever that dies.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

STOP_TIMEOUT_S = 10.0
ERROR_BYTES_MAX = 4096


def store_binary() -> str:
    """The path of the plasma_store executable.
    Raises: FileNotFoundError: the package was not built.
    """
    path = Path(__file__).with_name("plasma_store")
    if not os.access(path, os.X_OK):
        raise FileNotFoundError(
            f"{path} is missing: build it with `pip install .`, or cmake -DRAY_INPLACE=ON and ninja"
        )
    return str(path)


def launch(
    memory_bytes: int,
    socket_path: str,
    directory: str | None = None,
    huge_pages: bool = False,
    objects_socket: str | None = None,
    token_file: str | None = None,
    tls: bool = False,
    reached_at: tuple[str, int] | None = None,
) -> tuple[subprocess.Popen[bytes], int]:
    """Starts a store and waits until it serves. With objects_socket and token_file it runs an object manager too; tls:
    which speaks TLS with those of other nodes; reached_at: where they reach it, if that is known already.

    Returns: the process, and the lifeline: a descriptor whose closing ends it.
    Raises:  OSError: it does not start; the text is the store's own.
    """
    command = [store_binary(), "--memory", str(memory_bytes), "--socket", socket_path]
    if directory is not None:
        command += ["--directory", directory]
    if huge_pages:
        command.append("--huge-pages")
    if objects_socket is not None and token_file is not None:
        command += ["--objects-socket", objects_socket, "--token-file", token_file, *(["--tls"] if tls else [])]
        command += ["--reached-at", "{}:{}".format(*reached_at)] if reached_at is not None else []
    ready_read, ready_write = os.pipe()
    life_read, life_write = os.pipe()
    try:
        command += ["--ready-fd", str(ready_write), "--lifeline-fd", str(life_read)]
        process = subprocess.Popen(command, pass_fds=[ready_write, life_read], stdin=subprocess.DEVNULL)
    except BaseException:
        os.close(ready_read)
        os.close(life_write)
        raise
    finally:
        os.close(ready_write)
        os.close(life_read)
    with open(ready_read, "rb") as ready:
        said = ready.read(ERROR_BYTES_MAX)
    if said == b"\x01":
        return process, life_write
    os.close(life_write)
    process.kill()
    process.wait()
    raise OSError(f"plasma_store did not start: {said.decode(errors='replace') or f'exit code {process.returncode}'}")


@contextmanager
def start_plasma_store(
    plasma_store_memory: int,
    use_valgrind: bool = False,
    use_profiler: bool = False,
    plasma_directory: str | None = None,
    use_hugepages: bool = False,
    external_store: str | None = None,
) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A store of its own for the length of a with block: (socket path, process).

    Raises: OSError: it does not start. ValueError: use_valgrind, use_profiler or external_store is given; there is no
            support for them.
    """
    for name, given in (
        ("use_valgrind", use_valgrind),
        ("use_profiler", use_profiler),
        ("external_store", external_store),
    ):
        if given:
            raise ValueError(f"{name} must not be set, it is {given!r}: this store has no such thing")
    folder = tempfile.mkdtemp(prefix="plasma-")  # 0700: nobody else reaches the socket
    try:
        path = os.path.join(folder, "plasma.sock")
        process, lifeline = launch(plasma_store_memory, path, plasma_directory, use_hugepages)
        try:
            yield path, process
        finally:
            os.close(lifeline)
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:  # stopped by a debugger, for one
                process.kill()
                process.wait()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
