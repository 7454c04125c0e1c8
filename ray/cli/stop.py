"""`ray stop`: ends what this user's `ray start` made, and nothing else. PROCESS of a person's shell.

The node process is asked to end: workers may finish what they print, then all of it goes, and its folder with it. One
that doesn't answer is killed, and what it had started with it. Sessions of programs (`ray.init()` that started one)
are theirs to end.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from typing import Any

from ray._launch import current
from ray._launch import session as sessions
from ray._launch.session import Session
from ray.cli import node_link

GRACE_S = 15.0  # workers have two seconds (shutdown_grace_s); the rest is for a machine under load


def add(commands: Any) -> None:
    """Adds the command to argparse's `commands`."""
    command = commands.add_parser("stop", help="end the cluster that `ray start` made")
    command.add_argument("--force", "-f", action="store_true", help="kill it, without letting anything finish")
    command.add_argument(
        "--temp-dir", metavar="PATH", help="look below this folder, too, where `ray start --temp-dir` was given it"
    )
    command.add_argument(
        "--grace-period", "-g", type=float, metavar="SECONDS", help="after so long it is killed; 15 by default"
    )
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    grace_s = GRACE_S if options.grace_period is None else options.grace_period
    if not grace_s >= 0:
        print(f"ray stop: --grace-period {grace_s:g}: expected seconds >= 0", file=sys.stderr)
        return 2
    found = standing(options.temp_dir)
    for session in found:
        how = stop(session, force=options.force, grace_s=grace_s)
        print(f"{how} ray in {session.folder}.")
    left = [folder for folder, _, _ in sessions.resumable(options.temp_dir)]
    for folder in left:
        remove_dead(folder)
        print(f"Removed what was left of ray in {folder}: it can't be resumed any more.")
    if not found and not left:
        print("No cluster of this user runs that `ray start` made.")
    return 0


def remove_dead(folder: str) -> None:
    """A head that was killed will not be resumed."""
    session = sessions.take_over(folder)
    session.remove()
    current.release(folder)
    session.release_lock()


def standing(temp_dir: str | None = None) -> list[Session]:
    """The live sessions of this user that `ray start` made."""
    folders = dict.fromkeys([*sessions.sessions(), *(sessions.sessions(temp_dir) if temp_dir else ())])
    named = current.read()
    if named is not None:
        folders.setdefault(named)  # it may lie below a --temp-dir
    found = []
    for folder in folders:
        if os.path.exists(f"{folder}/{sessions.STANDING}"):
            try:
                found.append(sessions.open_existing(folder))
            except FileNotFoundError:
                continue  # it has just ended
    return found


def stop(session: Session, *, force: bool, grace_s: float = GRACE_S) -> str:
    """Ends a session, whoever uses it. Returns "Stopped" or "Killed". Blocks: until all of it has ended."""
    if not force:
        deadline = time.monotonic() + grace_s
        try:
            _, pidfd = node_link.ask(session, "stop", timeout_s=grace_s)
        except (ConnectionError, TimeoutError):
            pass  # it is ending already, or hangs: looked at below
        else:
            try:
                if node_link.has_ended(pidfd, max(0.0, deadline - time.monotonic())):
                    _wait_for_rest(session, deadline)
                    return "Stopped"
            finally:
                os.close(pidfd)
    _kill(session)
    return "Killed"


def _wait_for_rest(session: Session, deadline: float) -> None:
    """The supervisor of a head ends when it has seen the node process's end."""
    for pid in sessions.marked(session.folder):
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        node_link.has_ended(pidfd, max(0.0, deadline - time.monotonic()))
        os.close(pidfd)


def _kill(session: Session) -> None:
    """By force: the node process, whose death takes all else with it, then the session's leavings."""
    session.condemn()
    while left := sessions.marked(session.folder):  # asked again: one of them may just have started another
        for pid in left:
            try:
                pidfd = os.pidfd_open(pid)
            except ProcessLookupError:
                continue
            try:
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                node_link.has_ended(pidfd, None)
            except ProcessLookupError:
                pass  # the death of its parent was its own
            finally:
                os.close(pidfd)
    session.remove()
    current.release(session.folder)
