"""What Python doesn't offer of libc: a process's title, its bond to its parent, the buffers of C's own streams.

Any process, main thread. Calls into libc through ctypes (2 ms, 0.3 MB): a compiled module for them would have to be
loaded by processes that need no other.
"""

from __future__ import annotations

import ctypes
import os
import signal

_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15
_PR_SET_CHILD_SUBREAPER = 36
_IOLBF = 1  # line buffering, in glibc and musl

_libc = ctypes.CDLL(None, use_errno=True)


def set_title(title: str) -> None:
    """Shows title in `ps`, `top` and `pgrep -f` for the calling process. Longer than the old command line: cut.

    The kernel reads a command line from the process's own memory, between two addresses it remembers. If the last byte
    there is not NUL it takes that for a rewritten title and shows the text up to its first NUL.
    """
    _libc.prctl(_PR_SET_NAME, ctypes.c_char_p(title.encode()[:15]), 0, 0, 0)
    with open("/proc/self/stat", "rb") as file:
        fields = file.read().rpartition(b")")[2].split()
    start, end = int(fields[45]), int(fields[46])  # arg_start, arg_end: fields 48 and 49 of proc(5)
    room = end - start
    if start == 0 or room < 8:
        return  # a kernel that hides them from us: the short name above is all there is
    text = title.encode()[: room - 2]
    ctypes.memset(start, 0, room)
    ctypes.memmove(start, text, len(text))
    ctypes.memset(end - 1, 1, 1)


def die_with_parent(parent_pid: int) -> bool:
    """Has the kernel SIGKILL this process when the parent thread that made it ends. False: the parent is gone already.

    The signal follows the parent *thread*: only what a main thread forks may rely on it. It is cleared in a child and
    by exec of a setuid program.
    """
    if _libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    return os.getppid() == parent_pid


def adopt_orphans() -> None:
    """Makes this process the parent of every descendant whose own parent ends, so that none escapes it."""
    if _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def line_buffer_c_stdout() -> None:
    """Output of C libraries leaves line by line also into a pipe, where C would keep it back up to 4 KiB."""
    _libc.setvbuf(ctypes.c_void_p.in_dll(_libc, "stdout"), None, _IOLBF, 0)


def flush_c_streams() -> None:
    """What C libraries have printed leaves before an os._exit, which would drop it."""
    _libc.fflush(None)
