"""PROCESS worker: forked by the node's fork server, runs tasks or one actor until the node says exit or dies.

Talks to: the node (one connection, first of all), drivers and other workers (they dial its socket, or it dials theirs).
Owns: the objects its tasks create. If it dies, the node tells the lease's holder, which retries the tasks; the objects
it owned fail with OwnerDiedError. If the node dies, the kernel kills it.
"""

from __future__ import annotations

import faulthandler
import functools
import os
import signal
import sys
import traceback
from typing import Any, TextIO

from ray._core.engine import Engine, Executor
from ray._native import serialization
from ray._native.references import ObjectRef
from ray._protocol.frames import LOG_NAME_MARK
from ray._protocol.ids import new_tag

serialization.set_ref_type(ObjectRef)


def warm_up() -> None:
    """Imports, in the fork server, what the first task of most programs needs."""
    import cloudpickle  # noqa: F401


class _NamedStream:
    """stdout or stderr that tells the node which function the lines that follow come from."""

    def __init__(self, stream: TextIO, executor: Executor) -> None:
        self._stream = stream
        self._executor = executor
        self._name: str | None = None

    def write(self, text: str) -> int:
        name = self._executor.current_name
        if name != self._name and name is not None:
            self._name = name
            self._stream.write(f"{LOG_NAME_MARK.decode()}{name}\n")
        return self._stream.write(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, attribute: str) -> Any:
        return getattr(self._stream, attribute)

    def __iter__(self) -> Any:
        return iter(self._stream)


def _set_up_logging(engine: Engine) -> None:
    """After stderr has got its name, for the handler keeps it."""
    said = os.environ.pop("_RAY_WORKER_LOGGING", None)  # _logging_config.VARIABLE; most workers never import that
    if said is not None:
        from ray import _logging_config

        _logging_config.apply(_logging_config.LoggingConfig.loads(said), _logging_config.context_of(engine))


def _setup_hook(startup: dict[str, Any]) -> str | None:
    if not startup.get("runtime_env"):
        return None
    from ray.runtime_env import _enter  # here: most workers have no use for it

    return _enter.hook_of(startup["runtime_env"])


def _set_up(engine: Engine, hook: str) -> bool:
    """The environment's setup hook. No task comes before the node has heard that it is over."""
    from ray.runtime_env import _enter

    try:
        _enter.run_hook(hook, str(engine.session_dir))
    except BaseException:
        what = "a function" if hook.startswith("gcs://") else hook
        engine.event("setup_failed", f"its worker_process_setup_hook ({what}) raised:\n{traceback.format_exc()}")
        engine.close()
        return False
    engine.event("setup_done")
    return True


def main(startup: dict[str, Any]) -> int:
    """Serves until told to exit. `startup`: see "A worker's start" in docs/internals/wire_format.md."""
    token = startup["token"]
    tag = new_tag(startup.get("node_number", 0))
    engine = Engine(startup["session_dir"], bytes.fromhex(token) if isinstance(token, str) else token, tag, False)
    executor = Executor(engine)
    os.environ.setdefault("PYTHONBREAKPOINT", "ray.util.pdb.set_trace")  # breakpoint() waits for `ray debug`
    faulthandler.enable(2)  # a crash of compiled code says in which line of Python it was
    # Only ray.cancel sends it: the terminal's Ctrl-C doesn't reach this process group.
    signal.signal(signal.SIGINT, executor.on_sigint)
    sys.unraisablehook = functools.partial(executor.on_unraisable, sys.unraisablehook)
    sys.stdout = _NamedStream(sys.stdout, executor)  # type: ignore[assignment]
    sys.stderr = _NamedStream(sys.stderr, executor)  # type: ignore[assignment]
    _set_up_logging(engine)
    hook = _setup_hook(startup)
    said = {"kind": "worker", "job_id": startup.get("job_id"), "setup_pending": hook is not None}
    if "start_key" in startup:
        said.update(worker_id=startup["worker_id"], start_key=startup["start_key"])
    tracing_hook = (startup.get("settings") or {}).get("tracing_startup_hook")
    if tracing_hook:
        from ray._core import tracing

        tracing.start(tracing_hook)  # if it fails this worker never was one, and a person hears why
    try:
        engine.connect(startup["node_socket"], said)
    except RuntimeError as error:
        if str(error) == "the session is ending":
            return 0  # started for a task whose driver has left meanwhile
        raise
    if hook is not None and not _set_up(engine, hook):
        return 1
    try:
        executor.serve()
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        engine.close()
    return 0
