"""Cuts a damaged tail off the append-only file with which a Redis server refuses to start. Called by `redis_server.py`.

What a killed server leaves half written, the next one drops by itself. But a power cut may leave a file whose length is
on the disk while its last bytes are not: zeros, or what the blocks held before. None of that had been flushed, and all
before it is whole, so a session can be resumed without it. The bytes are kept beside the file. More than TAIL_BYTES_MAX
is no tail: then the file was damaged otherwise, and a person has to decide.

Where the damage begins, the server's own checker says, which is part of its binary.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess

REFUSAL = "Bad file format reading the append only file"  # in the server's last words
TAIL_BYTES_MAX = 16 * 1024 * 1024  # more than is written between two flushes
CHECK_TIMEOUT_S = 60.0


class Unrepairable(Exception):
    """Nothing that is understood would make the file readable."""


def cut_damaged_tail(binary: str, folder: str) -> str:
    """Returns what was done, for the log. Blocks: while the file is read.

    Raises: Unrepairable: nothing was changed, and why.  OSError: the disk does not take the copy."""
    path = _written_last(folder)
    if path is None:
        raise Unrepairable(f"{folder} has no append-only file")
    analysed = _analysed(binary, path)
    if analysed is None:
        raise Unrepairable(f"what is wrong with {path} can't be told: {binary} has no checker")
    size, good = analysed
    if good >= size:
        raise Unrepairable(f"{path} is damaged, but not at its end")
    if size - good > TAIL_BYTES_MAX:
        raise Unrepairable(
            f"{path} is damaged from byte {good} of {size} on, which is more than a power cut explains; nothing was "
            "changed. `redis-check-aof --fix` would cut that off"
        )
    kept = f"{path}.damaged-{good}"
    with open(path, "rb") as file, open(os.open(kept, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as tail:
        file.seek(good)
        shutil.copyfileobj(file, tail)
    os.truncate(path, good)
    return f"{path} was damaged, as after a power cut: its last {size - good} bytes were cut off, and are in {kept}"


def _written_last(folder: str) -> str | None:
    """Of a server of before Redis 7 the only one; of a later one the increment that was being written."""
    found = [
        os.path.join(path, name)
        for path in (folder, os.path.join(folder, "appendonlydir"))
        if os.path.isdir(path)
        for name in os.listdir(path)
        if name.startswith("appendonly") and name.endswith(".aof") and ".base." not in name
    ]
    return max(found, key=os.path.getmtime, default=None)


def _analysed(binary: str, path: str) -> tuple[int, int] | None:
    """(bytes, of which so many are good). The binary is the checker when it is called by that name."""
    name = "valkey-check-aof" if "valkey" in os.path.basename(binary) else "redis-check-aof"
    try:
        done = subprocess.run(
            [name, path], executable=binary, capture_output=True, timeout=CHECK_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.search(rb"size=(\d+), ok_up_to=(\d+)", done.stdout)
    return None if found is None else (int(found[1]), int(found[2]))
