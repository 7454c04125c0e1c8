"""The folder of one run: sockets, token, logs. Used by the driver that starts a session and by every process in it.

A session lives in `<base>/s-<8 random chars>/`, mode 0700, where base is `/tmp/ray-<uid>/`. The file `lock` in it is
flock'ed by an open file description that the driver creates and the node process inherits and keeps: **a session
whose lock can be taken is dead**, whatever killed it, and whoever starts the next session sweeps it away, together
with processes that still carry its name in their environment. Creation and sweeping exclude each other by a flock on
the base folder, so that a half-made session is never mistaken for a dead one.
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import stat
from collections.abc import Iterator

SOCKET_PATH_BYTES_MAX = 107  # sun_path holds 108 with the final NUL
ENVIRONMENT_MARK = "RAY_SESSION_DIR"  # set for the node process: all its descendants carry it, also after exec
_ALPHABET = "abcdefghijkmnpqrstuvwxyz23456789"  # 32 letters: one byte picks one without bias


class Session:
    """Paths of one session. Creating the object does no I/O; `create()` and `open_existing()` do."""

    __slots__ = ("folder", "lock_fd", "token")

    def __init__(self, folder: str, token: bytes, lock_fd: int = -1) -> None:
        self.folder = folder
        self.token = token  # 32 bytes, proved on every connection
        self.lock_fd = lock_fd  # held by the creator until the node process has it, then -1

    @property
    def node_socket(self) -> str:
        return self.folder + "/node.sock"

    @property
    def plasma_socket(self) -> str:
        return self.folder + "/plasma.sock"

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

    def release_lock(self) -> None:
        """Closes this process's handle on the lock; the node process keeps its own."""
        if self.lock_fd >= 0:
            os.close(self.lock_fd)
            self.lock_fd = -1

    def remove(self) -> None:
        """Removes the folder and all in it. Safe to call twice and in two processes at once."""
        remove_tree(self.folder)
        for base in (os.path.dirname(self.folder),):
            try:
                os.rmdir(base)  # fails while other sessions live in it, as it should
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.ENOENT, errno.EEXIST, errno.EBUSY):
                    raise

    def __repr__(self) -> str:
        return f"Session({self.folder!r})"


def create(temp_dir: str | None = None) -> Session:
    """Makes a new session folder and sweeps dead ones.

    Args: temp_dir: where the base folder is made; None: /tmp.
    Raises: ValueError: temp_dir is no writable folder, or so long that socket paths would not fit.
    Blocks: for as long as another process of this user creates or sweeps.
    """
    parent = "/tmp" if temp_dir is None else os.path.abspath(os.fspath(temp_dir))
    longest = f"{parent}/ray-{os.getuid()}-xxxxxxxx/s-xxxxxxxx/c/{'0' * 32}"
    if len(os.fsencode(longest)) > SOCKET_PATH_BYTES_MAX:
        room = SOCKET_PATH_BYTES_MAX - (len(os.fsencode(longest)) - len(os.fsencode(parent)))
        raise ValueError(
            f"_temp_dir={parent!r} is too long: the path of a Unix socket has {SOCKET_PATH_BYTES_MAX} bytes, "
            f"so _temp_dir may have at most {room}"
        )
    if temp_dir is not None:
        try:
            os.makedirs(parent, exist_ok=True)
        except OSError as error:
            raise ValueError(f"_temp_dir={parent!r} can't be used: {error.strerror}") from None
    while True:
        base, base_fd = _open_base(parent)
        try:
            fcntl.flock(base_fd, fcntl.LOCK_EX)
            if not _same_folder(base, base_fd):
                continue  # the last session of it ended and removed it between our open and our lock
            condemned = _condemn_dead(base)
            session = _make(base)
        finally:
            os.close(base_fd)
        for folder in condemned:  # outside the lock: a big folder must not hold up another init
            remove_tree(folder)
        return session


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


def sessions(temp_dir: str | None = None) -> list[str]:
    """Folders of this user's live sessions, newest first (for address="auto")."""
    found = []
    parent = "/tmp" if temp_dir is None else os.path.abspath(os.fspath(temp_dir))
    for base in _bases(parent):
        for name in _names(base):
            folder = f"{base}/{name}"
            if name.startswith("s-") and alive(folder):
                found.append((os.stat(folder).st_mtime, folder))
    return [folder for _, folder in sorted(found, reverse=True)]


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


def kill_marked(folder: str) -> list[int]:
    """SIGKILLs every process of this user whose first environment names the session in folder; returns their pids.

    Used only for sessions whose node process is gone: the kernel has killed its children, but not what user code in
    workers had started. /proc/<pid>/environ shows the environment at the last exec, so forked children count too.
    """
    mark = f"{ENVIRONMENT_MARK}={folder}".encode()
    killed = []
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) == os.getpid():
            continue
        try:
            with open(f"/proc/{name}/environ", "rb") as file:
                if mark in file.read().split(b"\0"):
                    os.kill(int(name), signal.SIGKILL)
                    killed.append(int(name))
        except (FileNotFoundError, PermissionError, ProcessLookupError):
            continue  # ended meanwhile, or of another user: not ours to judge
    return killed


# -- how it is done -------------------------------------------------------------------------------------------


def _open_base(parent: str) -> tuple[str, int]:
    """A folder of ours under parent that nobody else can write to. In /tmp the usual name may be squatted."""
    for attempt in range(64):
        base = f"{parent}/ray-{os.getuid()}" if attempt == 0 else f"{parent}/ray-{os.getuid()}-{_random_name()}"
        if attempt == 1:  # an earlier session may already have fled to another name
            for other in _bases(parent):
                fd = _open_if_ours(other)
                if fd is not None:
                    return other, fd
        try:
            os.mkdir(base, 0o700)
        except FileExistsError:
            pass  # judged by what it is, below
        except OSError as error:
            raise ValueError(
                f"_temp_dir={parent!r} can't be used: mkdir {os.path.basename(base)}: {error.strerror}"
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


def _same_folder(path: str, fd: int) -> bool:
    try:
        now, held = os.stat(path, follow_symlinks=False), os.fstat(fd)
    except FileNotFoundError:
        return False
    return (now.st_dev, now.st_ino) == (held.st_dev, held.st_ino)


def _bases(parent: str) -> Iterator[str]:
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


def _make(base: str) -> Session:
    folder = f"{base}/s-{_random_name()}"
    os.mkdir(folder, 0o700)  # 40 random bits: a collision raises, and there is nobody else in base
    for name in ("c", "logs", "redis"):
        os.mkdir(f"{folder}/{name}", 0o700)
    token = os.urandom(32)
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
        if name.startswith("dead-"):
            condemned.append(folder)  # its sweeper was killed half-way
        elif name.startswith("s-") and not alive(folder):
            kill_marked(folder)
            away = f"{base}/dead-{name[2:]}"
            try:
                os.rename(folder, away)
            except FileNotFoundError:
                continue  # its own process has just removed it
            condemned.append(away)
    return condemned


def _ignore_missing(action: object, path: str) -> None:
    try:
        action(path)  # type: ignore[operator]
    except FileNotFoundError:
        return
