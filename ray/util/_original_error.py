"""`original_error`: what user code raised, without the marks of its way here. For libraries whose model in the
standard library raises the exception itself. Pure; any thread."""

from __future__ import annotations

from ray.exceptions import RayTaskError


class RemoteTraceback(Exception):
    """Stands as the cause of an error that was raised in another process, and prints the traceback there."""

    def __str__(self) -> str:
        return f'\n"""\n{self.args[0]}"""'


def original_error(error: BaseException) -> BaseException:
    """The exception that a remote function raised, of exactly its class; error itself if it came from elsewhere."""
    if not isinstance(error, RayTaskError) or error.cause is None:
        return error
    error.cause.__cause__ = RemoteTraceback(str(error))
    return error.cause
