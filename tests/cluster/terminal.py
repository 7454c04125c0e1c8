"""A person at a terminal, who types into the shell that a command opens. LIBRARY."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time
from pathlib import Path

# A prompt is the end of what has come so far: `root@host:~# `, `bash-5.2$ `.
PROMPT = re.compile(r"(?:^|\n)[^\n]*[$#] \Z")
# What a terminal is told beside text: titles, colours, modes.
CONTROL = re.compile(r"\x1b\][^\x07]*\x07|\x1b\[[?0-9;]*[A-Za-z]|\r")


def converse(
    command: str, lines: list[str], cwd: Path, environment: dict[str, str], timeout_s: float = 60
) -> list[str]:
    """Runs `command` with a terminal and types `lines`, one at each prompt. Returns: what was said after each.

    Raises: AssertionError: it ends before the last line or with another status than 0, or stays for too long.
    """
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 500, 0, 0))  # no line is broken
    process = subprocess.Popen(
        # setsid: the terminal is the command's own, as `docker -t` wants it.
        ["setsid", "--ctty", "bash", "-l", "-c", command],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        cwd=cwd,
        env={**environment, "TERM": "dumb"},
    )
    os.close(theirs)
    deadline = time.monotonic() + timeout_s
    try:
        said = _until_prompt(ours, deadline)
        answers = []
        for line in lines:
            assert said is not None, f"{command}: ended before {line!r} was typed; it said {answers}"
            os.write(ours, line.encode() + b"\n")
            said = _until_prompt(ours, deadline)
            answers.append(_answer(said if said is not None else "", line))
        assert said is None, f"{command}: still runs after {lines}"
        status = process.wait(timeout=max(0.1, deadline - time.monotonic()))
        assert status == 0, f"{command}: status {status} after {answers}"
        return answers
    finally:
        os.close(ours)
        process.kill()
        process.wait()


def _until_prompt(terminal: int, deadline: float) -> str | None:
    """What comes until there is a prompt; None: the end, of the terminal and so of the command."""
    text = b""
    while True:
        left = deadline - time.monotonic()
        assert left > 0 and select.select([terminal], [], [], left)[0], f"no prompt came after {text!r}"
        try:
            new = os.read(terminal, 65536)
        except OSError:  # EIO: nobody has it open any more
            return None
        if not new:
            return None
        text += new
        shown = CONTROL.sub("", text.decode(errors="replace"))
        if PROMPT.search(shown):
            return shown


def _answer(shown: str, line: str) -> str:
    """Without the line that the terminal shows as it is typed, and without the next prompt."""
    shown = shown.partition("\n")[2] if line[:20] in shown.partition("\n")[0] else shown
    return PROMPT.sub("\n", shown).lstrip("\n")
