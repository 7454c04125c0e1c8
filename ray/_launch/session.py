"""The folder of one run: sockets, token, logs. Used by the driver that starts a session and by every process in it.

A session lives in `<base>/s-<8 random chars>/`, mode 0700, where base is `/tmp/ray-<uid>/` (RAY_TMPDIR takes the place
of /tmp). The file `lock` in it is
flock'ed by an open file description that the driver creates and the node process inherits and keeps: **a session
whose lock can be taken is dead**, whatever killed it, and whoever starts the next session sweeps it away, together
with processes that still carry its name in their environment; but not the head of a cluster, which `ray start --head`
can take over (RESUMABLE). Creation and sweeping exclude each other by a flock on
the base folder, so that a half-made session is never mistaken for a dead one.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import signal
import stat
import time
from collections.abc import Iterator

SOCKET_PATH_BYTES_MAX = 107  # sun_path holds 108 with the final NUL
ENVIRONMENT_MARK = "RAY_SESSION_DIR"  # set for the node process: all its descendants carry it, also after exec
CURRENT = "current"  # a file in the base folder: see current.py
STANDING = "standing"  # a file in the folder of a session that `ray start` made
RESUMABLE = "resumable"  # a file in the folder of a cluster's head: its "HOST PORT"; it is not swept when it is dead
LINGERS_S = 5.0  # at most, for what is left of a killed node process; on a machine with a free CPU some milliseconds
_ALPHABET = "abcdefghijkmnpqrstuvwxyz23456789"  # 32 letters: one byte picks one without bias


class Session:
    """Paths of one session. Creating the object does no I/O; `create()` and `open_existing()` do."""

    __slots__ = ("folder", "lock_fd", "token")

    def __init__(self, folder: str, token: bytes, lock_fd: int = -1) -> None:
        self.folder: str = folder
        self.token: bytes = token  # 32 bytes, proved on every connection
        self.lock_fd: int = lock_fd  # held by the creator until the node process has it, then -1

    @property
    def node_socket(self) -> str:
        return self.folder + "/node.sock"

    @property
    def plasma_socket(self) -> str:
        return self.folder + "/plasma.sock"

    @property
    def objects_socket(self) -> str:
        """Where the store's object manager listens, in a session that can have other nodes."""
        return self.folder + "/objects.sock"

    @property
    def token_file(self) -> str:
        return self.folder + "/token"

    @property
    def redis_socket(self) -> str:
        return self.folder + "/redis.sock"

    @property
    def cores(self) -> str:
        return self.folder + "/c"

    @property
    def logs(self) -> str:
        return self.folder + "/logs"

    def core_socket(self, tag: bytes) -> str:
        return f"{self.folder}/c/{tag.hex()}"

    def worker_start(self, worker_id: int) -> str:
        """What a worker that is exec'ed is told (ray/_node/exec_worker.py)."""
        return f"{self.folder}/c/start-{worker_id}"

    def release_lock(self) -> None:
        """Closes this process's handle on the lock; the node process keeps its own."""
        if self.lock_fd >= 0:
            os.close(self.lock_fd)
            self.lock_fd = -1

    def condemn(self) -> None:
        """From now on nobody starts a process of it again: neither its supervisor, nor a node process that one."""
        _ignore_missing(os.unlink, self.token_file)

    def remove(self) -> None:
        """Removes the folder and all in it. Safe to call twice and in two processes at once."""
        remove_tree(self.folder)
        remove_if_empty(os.path.dirname(self.folder))

    def __repr__(self) -> str:
        return f"Session({self.folder!r})"


def create(temp_dir: str | None = None, token: bytes | None = None) -> Session:
    """Makes a new session folder and sweeps dead ones.

    Args: temp_dir: where the base folder is made; None: RAY_TMPDIR, or /tmp. token: of the cluster that it is part of.
    Raises: ValueError: temp_dir is no writable folder, or so long that socket paths would not fit.
    Blocks: for as long as another process of this user creates or sweeps.
    """
    parent = parent_of_base(temp_dir)
    longest = f"{parent}/ray-{os.getuid()}-xxxxxxxx/s-xxxxxxxx/c/{'0' * 32}"
    source = _named_by(temp_dir)
    if len(os.fsencode(longest)) > SOCKET_PATH_BYTES_MAX:
        room = SOCKET_PATH_BYTES_MAX - (len(os.fsencode(longest)) - len(os.fsencode(parent)))
        raise ValueError(
            f"{source}={parent!r} is too long: the path of a Unix socket has {SOCKET_PATH_BYTES_MAX} bytes, "
            f"so {source} may have at most {room}"
        )
    if parent != "/tmp":
        try:
            os.makedirs(parent, exist_ok=True)
        except OSError as error:
            raise ValueError(f"{source}={parent!r} can't be used: {error.strerror}") from None
    while True:
        base, base_fd = open_base(parent, source)
        try:
            fcntl.flock(base_fd, fcntl.LOCK_EX)
            if not same_folder(base, base_fd):
                continue  # the last session of it ended and removed it between our open and our lock
            condemned = _condemn_dead(base)
            session = _make(base, token or os.urandom(32))
        finally:
            os.close(base_fd)
        for folder in condemned:  # outside the lock: a big folder must not hold up another init
            remove_tree(folder)
        return session


def take_over(folder: str) -> Session:
    """The session in folder, whose node process has died, for another one to go on with. What is left of its processes
    is killed, and their sockets go; logs, the token and Redis' files stay.

    Raises: FileNotFoundError: there is none. BlockingIOError: it is alive.
    Blocks: up to LINGERS_S if the lock is held: a child that the node process had only just forked has the lock, as it
            has the port where nodes are listened for, until it comes to its exec or hears of its parent's death.
    """
    session = open_existing(folder)
    session.lock_fd = os.open(folder + "/lock", os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    deadline = time.monotonic() + LINGERS_S
    while True:
        try:
            fcntl.flock(session.lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() > deadline:
                session.release_lock()
                raise BlockingIOError(f"the session in {folder} is alive") from None
        time.sleep(0.01)  # there is no event for the end of a lock that could be waited for with a limit
    clear(folder)
    return session


def clear(folder: str) -> None:
    """After the death of a node process: kills what is left of its processes, and removes what they listened on and
    what they had spilled.

    Blocks: until those have ended, up to LINGERS_S: while one lives the port where nodes are listened for may be taken.
    """
    kill_marked(folder, LINGERS_S)
    for entry in list(os.scandir(folder)):
        if stat.S_ISSOCK(entry.stat(follow_symlinks=False).st_mode):
            _ignore_missing(os.unlink, entry.path)
    remove_tree_contents(folder + "/c")
    remove_tree(folder + "/spill")


def mark_resumable(folder: str, host: str, port: int) -> None:
    """The session in folder is a cluster's head, which other nodes reach there: if it dies, it can be taken over."""
    with open(f"{folder}/{RESUMABLE}.new", "w") as file:
        file.write(f"{host} {port}")
    os.replace(f"{folder}/{RESUMABLE}.new", f"{folder}/{RESUMABLE}")


def resumable(temp_dir: str | None = None) -> list[tuple[str, str, int]]:
    """(folder, host, port) of this user's dead sessions that can be taken over, the last one first."""
    found = []
    for base in bases(parent_of_base(temp_dir)):
        for name in _names(base):
            folder = f"{base}/{name}"
            address = _resumable_at(folder) if name.startswith("s-") else None
            if address is not None and not alive(folder):
                found.append((os.stat(f"{folder}/{RESUMABLE}").st_mtime, folder, *address))
    return [(folder, host, port) for _, folder, host, port in sorted(found, reverse=True)]


def _resumable_at(folder: str) -> tuple[str, int] | None:
    try:
        with open(f"{folder}/{RESUMABLE}") as file:
            host, _, port = file.read().partition(" ")
    except (FileNotFoundError, NotADirectoryError):
        return None
    return host, int(port)


def belongs_to_us(folder: str) -> bool:
    """Whether folder is this user's, and nobody else can write to it: what lies in it may be believed."""
    fd = _open_if_ours(folder)
    if fd is None:
        return False
    os.close(fd)
    return True


def open_existing(folder: str) -> Session:
    """The session in folder, for a process that joins it. Raises: FileNotFoundError: no session is there."""
    with open(folder + "/token") as file:
        return Session(folder, bytes.fromhex(file.read().strip()))


def alive(folder: str) -> bool:
    """Whether some node process holds the lock of the session in folder."""
    try:
        fd = os.open(folder + "/lock", os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def is_held(session: Session) -> bool:
    """Whether it goes on: if no node process answers in it, somebody starts one (again)."""
    return os.path.exists(session.token_file) and alive(session.folder)


def parent_of_base(temp_dir: str | None) -> str:
    """Where the base folder is, or will be."""
    return os.path.abspath(os.fspath(temp_dir)) if temp_dir is not None else os.environ.get("RAY_TMPDIR") or "/tmp"


def _named_by(temp_dir: str | None) -> str:
    return "_temp_dir" if temp_dir is not None else "RAY_TMPDIR"


def sessions(temp_dir: str | None = None) -> list[str]:
    """Folders of this user's live sessions, newest first."""
    found = []
    for base in bases(parent_of_base(temp_dir)):
        for name in _names(base):
            folder = f"{base}/{name}"
            if name.startswith("s-") and alive(folder):
                found.append((os.stat(folder).st_mtime, folder))
    return [folder for _, folder in sorted(found, reverse=True)]


def remove_if_empty(base: str) -> None:
    try:
        os.rmdir(base)  # fails while other sessions live in it, as it should
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.ENOENT, errno.EEXIST, errno.EBUSY):
            raise


def remove_tree(folder: str) -> None:
    """rm -rf without shutil (12 ms to import). Never follows a link; what vanishes meanwhile is fine."""
    try:
        entries = list(os.scandir(folder))
    except FileNotFoundError:
        return
    except NotADirectoryError:
        entries = []
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            remove_tree(entry.path)
        else:
            _ignore_missing(os.unlink, entry.path)
    for _ in range(3):
        try:
            os.rmdir(folder)
            return
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno != errno.ENOTEMPTY:
                raise
            remove_tree_contents(folder)  # a dying process added a file after our scan


def remove_tree_contents(folder: str) -> None:
    for entry in os.scandir(folder):
        if entry.is_dir(follow_symlinks=False):
            remove_tree(entry.path)
        else:
            _ignore_missing(os.unlink, entry.path)


def marked(folder: str) -> list[int]:
    """Pids of this user's processes whose first environment names the session in folder, the node process first.

    /proc/<pid>/environ shows the environment at the last exec, so forked children count too.
    """
    mark = f"{ENVIRONMENT_MARK}={folder}".encode()
    found = []
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) == os.getpid():
            continue
        try:
            with open(f"/proc/{name}/environ", "rb") as file:
                if mark in file.read().split(b"\0"):
                    found.append(int(name))
        except (FileNotFoundError, PermissionError, ProcessLookupError):
            continue  # ended meanwhile, or of another user: not ours to judge
    return sorted(found)  # whatever else there is, the node process has started it


def kill_marked(folder: str, wait_s: float = 0.0) -> list[int]:
    """SIGKILLs the processes of a session; returns their pids.

    Used only for sessions whose node process is gone or hangs: the kernel has killed its children, but not what user
    code in workers had started.

    Blocks: up to wait_s, until they have ended.
    """
    killed: dict[int, int] = {}  # pid -> pidfd
    for pid in marked(folder):
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        killed[pid] = pidfd
        try:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        except ProcessLookupError:
            continue
    deadline = time.monotonic() + wait_s
    for pidfd in killed.values():
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        poll.poll(max(0.0, deadline - time.monotonic()) * 1000)
        os.close(pidfd)
    return list(killed)


# -- how it is done -------------------------------------------------------------------------------------------


def open_base(parent: str, source: str) -> tuple[str, int]:
    """A folder of ours under parent that nobody else can write to. In /tmp the usual name may be squatted."""
    for attempt in range(64):
        base = f"{parent}/ray-{os.getuid()}" if attempt == 0 else f"{parent}/ray-{os.getuid()}-{_random_name()}"
        if attempt == 1:  # an earlier session may already have fled to another name
            for other in bases(parent):
                fd = _open_if_ours(other)
                if fd is not None:
                    return other, fd
        try:
            os.mkdir(base, 0o700)
        except FileExistsError:
            pass  # judged by what it is, below
        except OSError as error:
            raise ValueError(
                f"{source}={parent!r} can't be used: mkdir {os.path.basename(base)}: {error.strerror}"
            ) from None
        fd = _open_if_ours(base)
        if fd is not None:
            return base, fd
    raise RuntimeError(f"no folder could be made in {parent!r}: every name tried belongs to somebody else")


def _open_if_ours(path: str) -> int | None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None  # a link, a file, somebody's 0700 folder, or gone again
    found = os.fstat(fd)
    if found.st_uid == os.getuid() and not stat.S_IMODE(found.st_mode) & 0o022:
        if stat.S_IMODE(found.st_mode) != 0o700:
            os.fchmod(fd, 0o700)
        return fd
    os.close(fd)
    return None


def same_folder(path: str, fd: int) -> bool:
    try:
        now, held = os.stat(path, follow_symlinks=False), os.fstat(fd)
    except FileNotFoundError:
        return False
    return (now.st_dev, now.st_ino) == (held.st_dev, held.st_ino)


def bases(parent: str) -> Iterator[str]:
    """The base folders of this user below parent: one, unless somebody squatted the usual name."""
    usual = f"ray-{os.getuid()}"
    for name in _names(parent):
        if name == usual or name.startswith(usual + "-"):
            fd = _open_if_ours(f"{parent}/{name}")
            if fd is not None:
                os.close(fd)
                yield f"{parent}/{name}"


def _names(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return []


def _make(base: str, token: bytes) -> Session:
    folder = f"{base}/s-{_random_name()}"
    os.mkdir(folder, 0o700)  # 40 random bits: a collision raises, and there is nobody else in base
    for name in ("c", "logs", "redis"):
        os.mkdir(f"{folder}/{name}", 0o700)
    fd = os.open(folder + "/token", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    os.write(fd, token.hex().encode())
    os.close(fd)
    lock_fd = os.open(folder + "/lock", os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return Session(folder, token, lock_fd)


def _random_name() -> str:
    return "".join(_ALPHABET[byte & 31] for byte in os.urandom(8))


def _condemn_dead(base: str) -> list[str]:
    """Renames dead sessions out of the way (base is locked by us) and returns what to remove."""
    condemned = []
    for name in _names(base):
        folder = f"{base}/{name}"
        if name == CURRENT:
            _drop_current_of_dead(base)
        elif name == CURRENT + ".new":
            _ignore_missing(os.unlink, folder)  # who wrote it was killed half-way: it held the lock that we hold
        elif name.startswith("dead-"):
            condemned.append(folder)  # its sweeper was killed half-way
        elif name.startswith("s-") and not os.path.exists(f"{folder}/{RESUMABLE}") and not alive(folder):
            kill_marked(folder)
            away = f"{base}/dead-{name[2:]}"
            try:
                os.rename(folder, away)
            except FileNotFoundError:
                continue  # its own process has just removed it
            condemned.append(away)
    return condemned


def _drop_current_of_dead(base: str) -> None:
    """The session that base's CURRENT names was killed, and nobody was left to take its name out. base is locked."""
    try:
        with open(f"{base}/{CURRENT}") as file:
            folder = file.read().strip()
    except FileNotFoundError:
        return
    if not alive(folder):
        _ignore_missing(os.unlink, f"{base}/{CURRENT}")


def _ignore_missing(action: object, path: str) -> None:
    try:
        action(path)  # type: ignore[operator]
    except FileNotFoundError:
        return
