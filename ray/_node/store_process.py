"""The plasma_store process, seen from the node: started, watched, started again when it dies. Node's main thread.

Its life is bound to ours three times over: by a lifeline pipe whose write end only we have, by what it does about
that itself (PR_SET_PDEATHSIG), and by our killing it at the end. When it dies, what was only in it is lost: cores
are told `store_died`, then `store_back` once the new one answers, and rebuild what they need.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

from . import children

FAILED_STARTS_MAX = 5  # in a row; one that has served is always started again
RESTART_DELAY_FIRST_S = 0.05  # after a failed start; doubles
_LIFELINE_FD, _READY_FD = 3, 4
_SERVING = b"\1"  # what it writes to its ready descriptor once it serves; text there is an error


def binary() -> str:
    return os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "plasma", "plasma_store")


class StoreProcess:
    """States: starting (ready_fd open), serving, down (a restart is due), given up, stopped."""

    def __init__(
        self,
        socket_path: str,
        log: str,
        memory_bytes: int,
        directory: str | None,
        huge_pages: bool,
        objects: tuple[str, str] | None = None,
        spill: Sequence[str] = (),
        tls: bool = False,
    ) -> None:
        """objects: the object manager's socket, and the file with the token that other nodes' stores must know.
        spill: arguments of plasma_store, see spill_options. tls: for what goes to other stores and comes from them."""
        self._socket_path = socket_path
        self._log = log
        self._arguments = ["--memory", str(memory_bytes), "--socket", socket_path]
        if directory is not None:
            self._arguments += ["--directory", directory]
        if huge_pages:
            self._arguments.append("--huge-pages")
        if objects is not None:
            self._arguments += ["--objects-socket", objects[0], "--token-file", objects[1]]
            self._arguments += ["--tls"] if tls else []
        self._arguments += spill
        # Of the node's gate, once it is open: a store that is started again knows it before it is asked for anything.
        self.reached_at: tuple[str, int] | None = None
        self.memory_bytes = memory_bytes
        self.pid = 0
        self.restarts = 0
        self.why_down = "it has not been started"
        self._said = ""
        self._lifeline = -1
        self._ready_fd = -1
        self._failed_starts = 0  # since one last served
        self._starting = True  # until it serves
        self._stopped = False
        self._loop: Any = None

    def spawn(self) -> None:
        """Starts the process; needs no event loop yet. Raises: OSError, FileNotFoundError: the binary is not built."""
        self._starting = True
        if not os.path.exists(binary()):
            raise FileNotFoundError(f"{binary()} is missing: build it (pip install . or ninja plasma_store)")
        where = [] if self.reached_at is None else ["--reached-at", "{}:{}".format(*self.reached_at)]
        lifeline_read, self._lifeline = os.pipe2(os.O_CLOEXEC)
        self._ready_fd, ready_write = os.pipe2(os.O_CLOEXEC)
        try:
            self.pid = children.spawn(
                [binary(), *self._arguments, *where, "--lifeline-fd", str(_LIFELINE_FD), "--ready-fd", str(_READY_FD)],
                {_LIFELINE_FD: lifeline_read, _READY_FD: ready_write},
                log=self._log,
            )
        finally:
            os.close(lifeline_read)
            os.close(ready_write)
        os.set_blocking(self._ready_fd, False)

    def attach(
        self,
        loop: Any,
        watch: Callable[..., None],
        on_ready: Callable[[], None],
        on_died: Callable[[str], None],
        on_given_up: Callable[[str], None],
    ) -> None:
        """From now on events are delivered: on_ready after each start, on_died after each death but ours."""
        self._loop, self._watch = loop, watch
        self._on_ready, self._on_died, self._on_given_up = on_ready, on_died, on_given_up
        self._watch_this()

    def _watch_this(self) -> None:
        self._watch(self.pid, self._ended)
        self._loop.add_reader(self._ready_fd, self._ready)

    def _ready(self) -> None:
        said = os.read(self._ready_fd, 4096)  # never blocks: it is readable, or its writer has ended
        self._close_ready()
        if said == _SERVING:
            self.why_down = ""
            self._starting = False
            self._failed_starts = 0
            self._on_ready()
        else:  # an error, or nothing: it is ending, and the reaper says when
            self._said = said.decode("utf-8", "replace").strip()

    def _ended(self, result: os.waitid_result) -> None:
        if self._ready_fd >= 0:
            self._ready()  # its own words on why it could not serve, if it got that far
        self._close_lifeline()
        self.pid = 0
        if self._stopped:
            return
        self.why_down = self._said or f"plasma_store {children.describe_exit(result)}{self._last_words()}"
        self._said = ""
        served = not self._starting
        self._on_died(self.why_down)
        if served:
            self.restarts += 1
            self._restart()
            return
        self._failed_starts += 1
        if self._failed_starts > FAILED_STARTS_MAX:
            self._on_given_up(f"{self.why_down}; that was start {self._failed_starts} to fail, no other follows")
            return
        self._loop.call_later(RESTART_DELAY_FIRST_S * 2**self._failed_starts, self._restart)

    def _restart(self) -> None:
        if self._stopped:
            return
        try:
            os.unlink(self._socket_path)  # the dead one's: it would refuse connections until the new one binds
        except FileNotFoundError:
            pass  # it had not got that far
        try:
            self.spawn()
        except OSError as error:
            self._on_given_up(f"plasma_store can't be started again: {error}")
            return
        self._watch_this()

    def stop(self) -> None:
        """Ends it at once: what it holds has no readers any more. Its end is the reaper's to collect."""
        self._stopped = True
        self._close_ready()
        self._close_lifeline()
        if self.pid:
            children.kill_group(self.pid)

    def _close_ready(self) -> None:
        if self._ready_fd >= 0:
            if self._loop is not None:
                self._loop.remove_reader(self._ready_fd)
            os.close(self._ready_fd)
            self._ready_fd = -1

    def _close_lifeline(self) -> None:
        if self._lifeline >= 0:
            os.close(self._lifeline)
            self._lifeline = -1

    def _last_words(self) -> str:
        try:
            with open(self._log, "rb") as file:
                file.seek(0, os.SEEK_END)
                file.seek(max(0, file.tell() - 2000))
                text = file.read().decode("utf-8", "replace").strip()
        except OSError:
            return ""
        return f"; its last words: {text}" if text else ""
