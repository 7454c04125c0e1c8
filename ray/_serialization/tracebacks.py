"""The text of a remote exception: the user's frames, without ours.

Called in the worker that caught the exception, where the source files are. `show_internal_frames` (the environment's
RAY_BACKEND_TRACEBACK=1, which the driver hands to its workers) leaves everything in.
"""

from __future__ import annotations

import os
import traceback

from ray.exceptions import RayTaskError

_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
# Libraries in the package are user code to the engine: their frames say where a training run failed.
_LIBRARIES = tuple(_PACKAGE + name + os.sep for name in ("rllib", "util", "experimental"))
# Cython names a frame's file by its path in the source tree.
_NATIVE = tuple(f"ray{os.sep}{name}{os.sep}" for name in ("_core", "_native"))


def show_internal_frames() -> bool:
    """Whether the user asked for our frames too."""
    return os.environ.get("RAY_BACKEND_TRACEBACK", "0").lower() in ("1", "true", "yes")


def is_internal(filename: str) -> bool:
    """Whether a frame of that file is of no interest to users."""
    return (filename.startswith(_PACKAGE) and not filename.startswith(_LIBRARIES)) or filename.startswith(_NATIVE)


def format_remote(error: BaseException, internal: bool | None = None) -> str:
    """The traceback of error and of what led to it, as in a terminal, but for the heading line.

    Args:    internal: whether to leave our own frames in; None asks show_internal_frames().
    """
    if internal is None:
        internal = show_internal_frames()
    report = traceback.TracebackException.from_exception(error)
    _prune(report, error, internal)
    text = "".join(report.format())
    return text.removeprefix("Traceback (most recent call last):\n")


def _prune(report: traceback.TracebackException, error: BaseException, internal: bool) -> None:
    """Takes our frames out of report, and of the reports that hang on it. error is what report describes."""
    pending: list[tuple[traceback.TracebackException, BaseException]] = [(report, error)]
    seen: set[int] = set()
    while pending:
        report, error = pending.pop()
        if id(error) in seen:
            continue
        seen.add(id(error))
        if not internal:
            users = [frame for frame in report.stack if not is_internal(frame.filename)]
            if users:  # an error that is ours alone keeps its frames: without them nothing would be left
                report.stack[:] = users
        if isinstance(error, RayTaskError):
            # Its text already tells the hop that it came from, and with it everything behind.
            report.__cause__ = report.__context__ = None
            continue
        if report.__cause__ is not None and error.__cause__ is not None:
            pending.append((report.__cause__, error.__cause__))
        if report.__context__ is not None and error.__context__ is not None:
            pending.append((report.__context__, error.__context__))
        for inner, member in zip(getattr(report, "exceptions", None) or (), getattr(error, "exceptions", None) or ()):
            pending.append((inner, member))
