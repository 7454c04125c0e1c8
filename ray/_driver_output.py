"""What the driver prints of its session: lines that workers wrote, and errors nobody has fetched. Runs in the receiving
thread.

The engine calls `on_log_lines` and `on_error`; neither blocks for anything but the terminal itself. A line is written
with one `write`, so that two threads' lines never mix. A stream that is closed or gone (a window closed, a pipe's
reader ended) loses the output and nothing else: it must not take the engine's receiver with it.
"""

from __future__ import annotations

import functools
import importlib
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TextIO

# Lines that are reports to a library and no text to be read: how they begin, and the module whose `on_line` gets the
# rest. It also has `instance().print(...)`, which prints without disturbing what it has drawn.
_REPORTS, _REPORTS_TO = "__ray_tqdm__ ", "ray.experimental.tqdm_ray"
# Cyan, magenta, green, yellow, blue: told apart on light and on dark ground. A worker keeps its colour.
_COLOURS = (36, 35, 32, 33, 34)


def on_log_lines(lines: Iterable[Sequence[Any]]) -> None:
    """Prints lines of workers, each behind `(name pid=123)`; of other nodes, behind `(name pid=123, ip=10.0.0.2)`.

    Args: lines: (what ran, pid of the worker, "stdout" or "stderr", text without its newline[, address of its node]).
    """
    parts: dict[str, list[str]] = {}
    for name, pid, stream, text, *where in lines:
        out = stream_named(stream)
        if out is None:
            continue
        if text.startswith(_REPORTS):
            importlib.import_module(_REPORTS_TO).on_line(text[len(_REPORTS) :].rstrip())
            continue
        prefix = f"({name} pid={pid}, ip={where[0]})" if where else f"({name} pid={pid})"
        if wants_colour(out):
            prefix = f"\x1b[{_COLOURS[pid % len(_COLOURS)]}m{prefix}\x1b[0m"
        # A progress bar ends its lines with \r; what it overwrote is not worth repeating.
        shown = text.rstrip("\r\n").rsplit("\r", 1)[-1]
        parts.setdefault(stream, []).append(f"{prefix} {shown}\n")
    if parts:
        _above_reports(functools.partial(_write_all, parts))


def _write_all(parts: dict[str, list[str]]) -> None:
    for stream, texts in parts.items():
        write(stream_named(stream), "".join(texts))


def _above_reports(print_it: Callable[[], object]) -> None:
    drawing = sys.modules.get(_REPORTS_TO)
    if drawing is None:
        print_it()
    else:
        drawing.instance().print(print_it)


def on_error(kind: str, message: str, extra: dict[str, Any] | None = None) -> None:
    """Prints something that went wrong in the background and that no `ray.get` may ever show.

    Args: kind: a word such as "task", "infeasible", "worker_died". extra: of which the driver shows nothing.
    """
    if os.environ.get("RAY_IGNORE_UNHANDLED_ERRORS") == "1":
        return
    out = sys.stderr
    head = f"ray: {kind}: "
    if out is not None and wants_colour(out):
        head = f"\x1b[31m{head}\x1b[0m"
    write(out, head + message.rstrip("\n") + "\n")


def stream_named(stream: str) -> TextIO | None:
    return sys.stderr if stream == "stderr" else sys.stdout


def wants_colour(out: TextIO) -> bool:
    if "NO_COLOR" in os.environ:
        return False
    try:
        return out.isatty()
    except (AttributeError, ValueError):  # a stand-in without isatty; a closed file
        return False


def write(out: TextIO | None, text: str) -> None:
    if out is None:
        return
    try:
        out.write(text)
        out.flush()
    except UnicodeEncodeError:
        encoding = getattr(out, "encoding", None) or "ascii"
        write(out, text.encode(encoding, "backslashreplace").decode(encoding))
    except (OSError, ValueError):
        return  # the reader is gone, or the stream was closed: there is nobody to tell
