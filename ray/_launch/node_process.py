"""Starts the node process of a session. Runs in the driver, inside ray.init; main thread or not.

One socketpair joins the two: down it the configuration, up it one message, ready or failed, and afterwards nothing.
Its end tells each side that the other is gone at the latest when it happens (a forked child of the driver may hold a
copy, so the node watches the driver by pidfd as well). The node's lock on the session folder is a file description
that it inherits from us, so the session is never without a holder between our creating it and the node's running.
"""

from __future__ import annotations

import fcntl
import os
import pickle
import select
import signal
import socket
import sys
import time
from typing import Any

from .session import ENVIRONMENT_MARK, Session, kill_marked

CONTROL_FD = 3  # where the node process finds its end of the socketpair
LOCK_FD = 4  # ... and the session's lock
_FIRST_FREE_FD = 16

# `ray` must be the one that runs here, wherever that was found, and nothing in the working directory or beside our
# package may shadow the standard library: so the package is bound first and its folder then moved to the end.
_BOOTSTRAP = (
    "import sys; p = sys.path; p[:1] == [''] and p.pop(0); r = sys.argv.pop(1); p.insert(0, r); import ray; p.pop(0); "
    "r in p or p.append(r); from {module} import main; main()"
)
_ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def python_command(module: str, *arguments: str) -> list[str]:
    """The command line that runs main() of a module of this very `ray` in a new interpreter."""
    return [sys.executable, *_interpreter_flags(), "-c", _BOOTSTRAP.format(module=module), _ROOT, *arguments]


class NodeStartError(RuntimeError):
    """The node process could not start; the text is what it said."""


class NodeArgumentError(NodeStartError, ValueError):
    """The node process could not start with what it was given; the text names the argument."""


class NodeProcess:
    """The node process, seen from the driver that started it."""

    __slots__ = ("_control", "_exit_code", "_resumes", "ended_fd", "pid", "ready", "session")

    def __init__(self, session: Session, pid: int, control: socket.socket, resumes: bool = False) -> None:
        self._resumes = resumes  # it takes over a session: until it is ready, the folder is not its own to remove
        self.session: Session = session
        self.pid: int = pid
        self.ended_fd: int = os.pidfd_open(pid)  # readable once the process has ended; ours to close
        self._control = control
        self._exit_code: int | None = None
        self.ready: dict[str, Any] | None = None

    def wait_ready(self, timeout_s: float = 30.0) -> dict[str, Any]:
        """Waits until the node's sockets answer.

        Returns: {"pid", "resources", "plasma_capacity", "milestones": monotonic times,
            "processor_s": what the node process has used so far}.
        Raises: NodeStartError, NodeArgumentError (a ValueError): with the node's own words; the process and the
            session folder are gone then.
        Blocks: up to timeout_s.
        """
        if self.ready is not None:
            return self.ready
        try:
            kind, body = pickle.loads(receive(self._control, timeout_s))
        except TimeoutError:
            self.kill()
            raise NodeStartError(
                f"the node process did not get ready within {timeout_s:g} s and was killed; its log is in "
                f"{self.session.logs}/node.err (RAY_NODE_START_TIMEOUT_S sets the limit)"
            ) from None
        except EOFError:
            code = self.wait_exit(5.0)
            text = self._log_tail()
            self.discard()
            raise NodeStartError(f"the node process ended while starting, {_describe_exit(code)}{text}") from None
        if kind != "ready":
            self.wait_exit(5.0)
            self.discard()
            raise (NodeArgumentError if kind == "refused" else NodeStartError)(str(body))
        ready: dict[str, Any] = body
        self.ready = ready
        return ready

    def first_word(self, timeout_s: float) -> bytes:
        """What it says when it is ready, or can't be, for somebody else to read.

        Raises: TimeoutError; EOFError: it died."""
        return receive(self._control, timeout_s)

    def wait_exit(self, timeout_s: float | None) -> int | None:
        """The exit code (-signal for a signal) once the process has ended, or None at the end of timeout_s."""
        if self._exit_code is None:
            poll = select.poll()
            poll.register(self.ended_fd, select.POLLIN)
            if not poll.poll(None if timeout_s is None else timeout_s * 1000):
                return None
            try:
                _, status = os.waitpid(self.pid, 0)
                self._exit_code = os.waitstatus_to_exitcode(status)
            except ChildProcessError:
                self._exit_code = 0  # the user's program has reaped it (SIGCHLD ignored, or os.wait())
        return self._exit_code

    def kill(self) -> None:
        """SIGKILL; the kernel then ends all that the node process had started. Removes what is left of the session."""
        if self.ready is not None:
            self.session.condemn()
        self.end_now()
        self.discard()

    def end_now(self) -> None:
        """SIGKILL, and nothing else."""
        if self._exit_code is None:
            signal.pidfd_send_signal(self.ended_fd, signal.SIGKILL)
            self.wait_exit(None)

    def discard(self) -> None:
        """After the process has ended: nothing of the session remains."""
        if self._exit_code != 0:  # else it has ended all of them itself, and then removed the folder
            kill_marked(self.session.folder)
        if not self._resumes or self.ready is not None:
            self.session.remove()
        self.close()

    def close(self) -> None:
        """Closes our descriptors. The node process, if it still runs, does not end by this."""
        self._control.close()
        if self.ended_fd >= 0:
            os.close(self.ended_fd)
            self.ended_fd = -1

    def _log_tail(self) -> str:
        try:
            with open(self.session.logs + "/node.err", "rb") as file:
                text = file.read()[-4000:].decode(errors="replace").strip()
        except FileNotFoundError:
            return ""
        return f"; it wrote:\n{text}" if text else ""

    def __repr__(self) -> str:
        return f"NodeProcess(pid={self.pid}, {self.session!r})"


def start_node(
    session: Session, config: dict[str, Any], command: list[str] | None = None, log: str = "node"
) -> NodeProcess:
    """Spawns the node process of a session created here and returns at once; `wait_ready` tells how it went.

    Args:
        session: from `session.create()`; its lock passes to the node.
        config: all optional. "resources": dict[str, int] units that replace what the node would detect;
            "object_store_memory" bytes; "plasma_directory", "huge_pages", "num_redis_shards", "redis_password",
            "redis_max_memory"; "settings": overrides of ray._config; "watch_driver": False for a node that outlives
            us; "founder": False for one that ends with our process, but not with ray.shutdown(); "standing": True for
            one that drivers find as the current cluster (current.py);
            "job": {"sys_path", "cwd", "env"} of our workers, so that one can start before we register;
            "node_ip": shown by ray.nodes(). "cluster_port": (numeric host, port) where other nodes reach this one;
            "join": (numeric host, port) of the head whose cluster it joins; then the session has that cluster's token.
            "lasts": a head whose nodes wait for it if it dies; "resume": it takes over from one of these, which has.
        command, log: of the process between us and it, if there is to be one (supervisor.py), and of its log.
    Raises: NodeStartError: no process could be made.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    message = dict(config, session_dir=session.folder, driver_pid=os.getpid())
    environment = dict(os.environ)
    environment[ENVIRONMENT_MARK] = session.folder
    control_fd = fcntl.fcntl(theirs, fcntl.F_DUPFD_CLOEXEC, _FIRST_FREE_FD)
    lock_fd = fcntl.fcntl(session.lock_fd, fcntl.F_DUPFD_CLOEXEC, _FIRST_FREE_FD)
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    try:
        pid = os.posix_spawn(
            sys.executable,
            command or python_command("ray._node.main"),
            environment,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, f"{session.logs}/{log}.out", flags, 0o600),
                (os.POSIX_SPAWN_OPEN, 2, f"{session.logs}/{log}.err", flags, 0o600),
                (os.POSIX_SPAWN_DUP2, control_fd, CONTROL_FD),
                (os.POSIX_SPAWN_DUP2, lock_fd, LOCK_FD),
            ],
            setsid=True,  # Ctrl-C in the driver's terminal is the driver's to handle
            setsigmask=(),
            setsigdef=(signal.SIGINT, signal.SIGTERM, signal.SIGPIPE, signal.SIGCHLD, signal.SIGHUP),
        )
    except OSError as error:
        ours.close()
        session.release_lock()
        session.remove()
        raise NodeStartError(f"can't run {sys.executable}: {error.strerror}") from None
    finally:
        os.close(control_fd)
        os.close(lock_fd)
        theirs.close()
    session.release_lock()
    node = NodeProcess(session, pid, ours, bool(config.get("resume")))
    try:
        send(ours, message)
    except BrokenPipeError:
        pass  # it has ended already: wait_ready reads what it left and says why
    return node


def send(control: socket.socket, message: object) -> None:
    body = pickle.dumps(message, 5)
    control.sendall(len(body).to_bytes(4, "little") + body)


def receive(control: socket.socket, timeout_s: float) -> bytes:
    """One length-prefixed message. Raises: TimeoutError; EOFError: the other side is gone."""
    deadline = time.monotonic() + timeout_s
    received = bytearray()
    while len(received) < 4 or len(received) < 4 + int.from_bytes(received[:4], "little"):
        control.settimeout(max(0.001, deadline - time.monotonic()))
        try:
            more = control.recv(65536)
        except socket.timeout:  # is TimeoutError itself only since Python 3.10
            raise TimeoutError from None
        except ConnectionResetError:
            more = b""
        if not more:
            raise EOFError
        received += more
    return bytes(received[4:])


def _interpreter_flags() -> list[str]:
    """What the driver's interpreter was told that changes how user code in workers behaves."""
    flags = sys.flags
    given = ["-" + "O" * flags.optimize] if flags.optimize else []
    given += ["-B"] if flags.dont_write_bytecode and "PYTHONDONTWRITEBYTECODE" not in os.environ else []
    given += ["-I"] if flags.isolated else []
    given += ["-X", "utf8"] if flags.utf8_mode and os.environ.get("PYTHONUTF8") != "1" else []
    return given


def _describe_exit(code: int | None) -> str:
    if code is None:
        return "state unknown"
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
