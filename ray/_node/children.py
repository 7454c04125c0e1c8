"""The processes below the node process: how they are started, reaped, and all ended. Its main thread only.

The node is a child subreaper: whatever its descendants leave behind becomes its child. So there is one reaper, here,
fed by SIGCHLD, and one way to end everything: kill children until none is left, since the children of a killed child
become ours. If the node itself is killed, the kernel kills what was bound to it by PR_SET_PDEATHSIG.
"""

from __future__ import annotations

import fcntl
import os
import pickle
import select
import signal
import socket
import time
from collections import deque
from collections.abc import Callable, Collection
from typing import Any

from ray._launch.node_process import python_command
from ray._protocol.frames import TIME_LIMIT_CAUSE, TIME_LIMIT_SIGNAL

RESTART_DELAY_FIRST_S, RESTART_DELAY_MAX_S = 0.1, 5.0  # of a fork server that ends before it is of any use
_DESCRIPTOR_FLOOR = 16  # descriptors for children are moved above it first, so that dup2 never meets itself


def describe_exit(result: os.waitid_result) -> str:
    """Text for people: "exited with code 3", "killed by SIGSEGV"."""
    if result.si_code == os.CLD_EXITED:
        return f"exited with code {result.si_status}"
    if result.si_status == TIME_LIMIT_SIGNAL:
        return TIME_LIMIT_CAUSE
    try:
        name = signal.Signals(result.si_status).name
    except ValueError:
        name = f"signal {result.si_status}"
    return f"killed by {name}" + (" (core dumped)" if result.si_code == os.CLD_DUMPED else "")


def spawn(
    argv: list[str], descriptors: dict[int, int], log: str | None = None, env: dict[str, str] | None = None
) -> int:
    """Starts a program in a session of its own, with /dev/null as input.

    Args:
        descriptors: number in the child -> descriptor of ours, 3 and up.
        log: file for stdout and stderr; None: ours.
    Returns: its pid.  Raises: OSError.
    """
    moved = {at: fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _DESCRIPTOR_FLOOR) for at, fd in descriptors.items()}
    actions: list[tuple[Any, ...]] = [(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)]
    if log is not None:
        actions.append((os.POSIX_SPAWN_OPEN, 1, log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600))
        actions.append((os.POSIX_SPAWN_DUP2, 1, 2))
    actions += [(os.POSIX_SPAWN_DUP2, fd, at) for at, fd in moved.items()]
    try:
        return os.posix_spawn(
            argv[0],
            argv,
            os.environ if env is None else env,
            file_actions=actions,
            setsid=True,
            setsigmask=(),
            setsigdef=(signal.SIGINT, signal.SIGTERM, signal.SIGPIPE, signal.SIGCHLD, signal.SIGHUP),
        )
    finally:
        for fd in moved.values():
            os.close(fd)


class Reaper:
    """Collects every child that ends and tells who asked to know.

    Args:
        loop: its add_signal_handler is used for SIGCHLD.
        on_unknown: called before a child that nobody has announced is given up as an orphan's; may announce it.
        not_ours: pids that another part of this process reaps.
    """

    def __init__(self, loop: Any, on_unknown: Callable[[], None], not_ours: Callable[[], Collection[int]]) -> None:
        self._loop = loop
        self._on_unknown = on_unknown
        self._not_ours = not_ours
        self._watched: dict[int, tuple[Callable[[os.waitid_result], None], bool]] = {}
        self.orphans_reaped = 0
        loop.add_signal_handler(signal.SIGCHLD, self.reap)

    def watch(self, pid: int, callback: Callable[[os.waitid_result], None], group: bool = False) -> None:
        """Calls back once pid has ended. group: what is left of its process group ends with it."""
        self._watched[pid] = (callback, group)

    def unwatch(self, pid: int) -> None:
        self._watched.pop(pid, None)

    def reap(self) -> None:
        """Collects all that have ended: signals of several children may have become one."""
        while True:
            try:
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if ended is None:
                return
            pid = ended.si_pid
            if pid not in self._watched and pid in self._not_ours():
                self._loop.call_soon(self.reap)  # its own pidfd wakes its keeper in this very turn of the loop
                return
            if pid not in self._watched:
                self._on_unknown()
            callback, group = self._watched.pop(pid, (None, False))
            if group:
                _kill_group(pid)  # before its pid is free for somebody else
            os.waitid(os.P_PID, pid, os.WEXITED)
            if callback is None:
                self.orphans_reaped += 1
            else:
                callback(ended)

    def close(self) -> None:
        self._loop.remove_signal_handler(signal.SIGCHLD)


spared: set[int] = set()  # children that outlive this process: its supervisor


def kill_descendants(timeout_s: float = 5.0) -> int:
    """SIGKILLs and reaps every descendant of this process but those spared. Returns how many.

    Blocks: until they are gone; but no longer than timeout_s, for one stuck in the kernel (a dead network file system)
    dies when it comes back, and nobody need wait for that.

    Killing a child makes its children ours, so a few rounds find everything, however deep, daemonised or re-grouped.
    """
    count = 0
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        targets = [pid for pid in children_of(os.getpid()) if pid not in spared]
        if not targets:
            break
        for pid in targets:
            # All of them before waiting for any: a parent must not have the time to replace a child.
            for descendant in [pid, *_below(pid)]:
                _kill(descendant)
        for pid in targets:
            try:
                pidfd = os.pidfd_open(pid)
            except ProcessLookupError:
                continue  # collected by its keeper
            try:
                ended = select.poll()  # not select(), which takes no descriptor above 1,024: we may have as many
                ended.register(pidfd, select.POLLIN)
                ended.poll(max(0.0, deadline - time.monotonic()) * 1000)
                count += os.waitpid(pid, os.WNOHANG)[0] == pid
            except ChildProcessError:
                continue  # likewise
            finally:
                os.close(pidfd)
    return count


def children_of(pid: int) -> list[int]:
    """Pids whose parent is pid, over all its threads. An ended process has none."""
    found: list[int] = []
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/children") as file:
                found += map(int, file.read().split())
        return found
    except FileNotFoundError:
        # The process has ended; or one of its threads, whose children are another's now, who may have been read before;
        # or this is a kernel without CONFIG_PROC_CHILDREN.
        return _by_their_parent(pid)


def _by_their_parent(pid: int) -> list[int]:
    """The same, from what all processes say: right in every case, and slow."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb") as file:
                    if int(file.read().rpartition(b")")[2].split()[1]) == pid:
                        found.append(int(name))
            except (FileNotFoundError, ProcessLookupError):
                continue
    return found


def _below(pid: int) -> list[int]:
    found = []
    for child in children_of(pid):
        found += [child, *_below(child)]
    return found


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return  # ended meanwhile; or a setuid program of the user's, which is not ours to end


def kill_group(pid: int) -> None:
    """SIGKILLs the worker pid and what it started that stayed in its process group."""
    _kill_group(pid)
    _kill(pid)  # just forked, it may have no group yet


def _kill_group(pid: int) -> None:
    try:
        os.killpg(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return  # nobody is left in it


class ForkServerLink:
    """The node's end of the pair to the fork server; starts another when that dies.

    Args:
        on_forked, on_failed: called as (worker_id, pid) and (worker_id, cause), once for each request.
    """

    def __init__(
        self,
        loop: Any,
        reaper_watch: Callable[[int, Callable[[os.waitid_result], None]], None],
        pid: int,
        control: socket.socket,
        worker_main: str,
        log: str,
        on_forked: Callable[[int, int], None],
        on_failed: Callable[[int, str], None],
        on_died: Callable[[str], None],
    ) -> None:
        self._loop = loop
        self._watch = reaper_watch
        self._worker_main = worker_main
        self._log = log
        self._on_forked = on_forked
        self._on_failed = on_failed
        self._on_died = on_died
        self._waiting: dict[int, None] = {}  # worker ids asked for, not answered
        self._unsent: deque[tuple[bytes, tuple[int, int]]] = deque()
        self._closed = False
        self.restarts = 0
        self._useless = 0  # how many in a row have ended without an answer
        self._adopt(pid, control)

    def _adopt(self, pid: int, control: socket.socket) -> None:
        self.pid = pid
        self._control: socket.socket | None = control
        control.setblocking(False)
        self._loop.add_reader(control.fileno(), self.drain)
        self._watch(pid, self._died)

    def request(self, worker_id: int, startup: dict[str, Any], descriptors: tuple[int, int]) -> None:
        """Asks for a worker; takes over the descriptors, its stdout and stderr."""
        self._waiting[worker_id] = None
        self._unsent.append((pickle.dumps({"worker_id": worker_id, "startup": startup}), descriptors))
        if len(self._unsent) == 1:
            self._send()

    def expect(self, worker_id: int) -> None:
        """A request that was made before this object existed."""
        self._waiting[worker_id] = None

    def _send(self) -> None:
        while self._unsent and self._control is not None:
            body, descriptors = self._unsent[0]
            try:
                socket.send_fds(self._control, [body], list(descriptors))
            except BlockingIOError:
                self._loop.add_writer(self._control.fileno(), self._send)
                return
            except (BrokenPipeError, ConnectionResetError, ConnectionRefusedError):
                return  # it is dead: _died fails the requests
            except OSError as error:  # a request too large to send can only be our caller's
                self._unsent.popleft()
                self._answer_failed(pickle.loads(body)["worker_id"], f"the fork server can't be asked: {error}")
            else:
                self._unsent.popleft()
            for fd in descriptors:
                os.close(fd)
        if self._control is not None:
            self._loop.remove_writer(self._control.fileno())

    def drain(self) -> None:
        """Handles the answers that are there. Also called before an unknown worker is judged: its answer may be."""
        while not self._closed and self._control is not None:
            try:
                data = self._control.recv(65536)
            except BlockingIOError:
                return
            except ConnectionResetError:
                data = b""
            if not data:
                self._loop.remove_reader(self._control.fileno())  # dead or dying: the reaper says when
                return
            answer = pickle.loads(data)
            self._useless = 0
            if self._waiting.pop(answer["worker_id"], 0) == 0:
                continue
            if "pid" in answer:
                self._on_forked(answer["worker_id"], answer["pid"])
            else:
                self._on_failed(answer["worker_id"], answer["error"])

    def _answer_failed(self, worker_id: int, cause: str) -> None:
        self._waiting.pop(worker_id, None)
        self._on_failed(worker_id, cause)

    def _died(self, ended: os.waitid_result) -> None:
        self.drain()  # what it still answered is true
        self._hang_up()
        self.pid = 0
        while self._unsent:
            for fd in self._unsent.popleft()[1]:
                os.close(fd)
        waiting, self._waiting = self._waiting, {}
        if self._closed:
            return
        cause = f"the fork server was {describe_exit(ended)}" if ended.si_code != os.CLD_EXITED else (
            f"the fork server {describe_exit(ended)}"
        )  # fmt: skip
        self.restarts += 1
        # One that has answered was killed; those that never do may be unable to live: not in a tight loop, then.
        if self._useless == 0:
            self._restart()
        else:
            delay_s = RESTART_DELAY_FIRST_S * 2 ** min(self._useless, 10)
            self._loop.call_later(min(delay_s, RESTART_DELAY_MAX_S), self._restart)
        self._useless += 1
        self._on_died(cause)
        for worker_id in waiting:
            self._on_failed(worker_id, cause)

    def _restart(self) -> None:
        """By exec, not fork: this process has an event loop and much else that a worker must not inherit."""
        if self._closed:
            return
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            pid = spawn(
                python_command("ray._node.fork_server", "3", str(os.getpid()), self._worker_main),
                {3: theirs.fileno()},
                log=self._log,
            )
        finally:
            theirs.close()
        self._adopt(pid, ours)
        if self._unsent:
            self._send()

    def close(self) -> None:
        """No more workers: the fork server ends by itself."""
        self._closed = True
        self._hang_up()

    def _hang_up(self) -> None:
        if self._control is not None:
            self._loop.remove_reader(self._control.fileno())
            self._loop.remove_writer(self._control.fileno())
            self._control.close()
            self._control = None
