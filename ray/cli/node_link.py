"""One question to the node process of a session, on behalf of a command. PROCESS of a person's shell.

The command proves the session's token like every process and says that it is a tool; it registers with nobody. The node
process's end while it is asked is `ConnectionClosed`, a `ConnectionError`.
"""

from __future__ import annotations

import os
import select
from typing import Any

from ray._launch.session import Session


def ask(session: Session, method: str, *args: Any, timeout_s: float) -> tuple[Any, int]:
    """Returns: (the answer, a pidfd of the node process, for the caller to close).

    Raises: ConnectionError: it is gone.  TimeoutError: it didn't answer.  What it raised itself.
    """
    import asyncio

    from ray._transport.server import connect_unix

    async def conversation() -> tuple[Any, int]:
        try:
            dialled = connect_unix(session.node_socket, session.token, os.urandom(16))
            peer = await asyncio.wait_for(dialled, timeout_s)
        except FileNotFoundError:
            raise ConnectionError(f"the session in {session.folder} is just starting or ending") from None
        except asyncio.TimeoutError:  # is TimeoutError itself only since Python 3.11
            raise TimeoutError(f"the node process of {session.folder} did not answer within {timeout_s:g} s") from None
        try:
            pidfd = os.pidfd_open(peer.pid)
        except ProcessLookupError:
            peer.close()
            raise ConnectionError(f"the node process of {session.folder} has just ended") from None
        try:
            return await peer.rpc(method, *args, timeout_s=timeout_s), pidfd
        except BaseException:
            os.close(pidfd)
            raise
        finally:
            peer.close()

    return asyncio.run(conversation())


def has_ended(pidfd: int, timeout_s: float | None) -> bool:
    """Waits for the end of the process. Blocks: up to timeout_s; None: for ever."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(None if timeout_s is None else timeout_s * 1000))
