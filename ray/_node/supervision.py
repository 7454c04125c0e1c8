"""The head's node process has a supervisor (ray/_launch/supervisor.py), and sees to it that it keeps one.

Node's main thread. The supervisor starts the node process again when that has died, and the other way round: whoever
is killed first, the other is there. At first the supervisor is our parent, and its end is an event of a pidfd; one that
we have started is a child, which the reaper collects. Of both at the same time nobody is left; and one of the two that
is killed while the other is still starting has not been missed yet.
"""

from __future__ import annotations

import fcntl
import logging
import os
import time
from typing import TYPE_CHECKING, Any

from ray._launch import session as sessions
from ray._launch import supervisor
from ray._launch.node_process import LOCK_FD, NodeStartError

from . import children

if TYPE_CHECKING:
    from .shell import Node

logger = logging.getLogger("ray.node")

PAUSE_FIRST_S, PAUSE_MAX_S = 0.1, 5.0  # before the second start of one that ends at once; doubles
USEFUL_S = 10.0  # one that has lived for so long was able to


class Supervision:
    def __init__(self, node: Node, cluster_port: tuple[str, int] | None) -> None:
        """From when this node is ready. cluster_port: where it listens, for whoever takes over."""
        self._node = node
        config = {name: value for name, value in node.config.items() if name not in ("driver_pid", "session_dir")}
        self._config = supervisor.to_go_on(config, cluster_port)
        self._useless = 0  # of those we have started: how many in a row have ended at once
        self._parent_fd = -1
        self._watch_parent(node.config["driver_pid"])

    def _watch_parent(self, pid: int) -> None:
        self._parent_fd = os.pidfd_open(os.getppid())
        if os.getppid() != pid:  # asked again: else the pidfd might be of another process
            self._forget_parent()
            self._start("the supervisor has ended while this node started")
            return
        self._node.loop.add_reader(self._parent_fd, self._parent_ended)

    def _parent_ended(self) -> None:
        self._forget_parent()
        self._start("the supervisor has ended")

    def _forget_parent(self) -> None:
        if self._parent_fd >= 0:
            self._node.loop.remove_reader(self._parent_fd)
            os.close(self._parent_fd)
            self._parent_fd = -1

    def _start(self, why: str) -> None:
        node = self._node
        if node.ending is not None or not os.path.exists(node.session.token_file):
            return  # this node is to end as well, and for good
        logger.warning("%s: another is started", why)
        own = sessions.Session(
            node.session.folder, node.session.token, fcntl.fcntl(LOCK_FD, fcntl.F_DUPFD_CLOEXEC, LOCK_FD + 1)
        )
        try:
            started = supervisor.start_beside(own, self._config)
        except NodeStartError as error:
            logger.error("the head has no supervisor: %s", error)
            return
        began = time.monotonic()
        children.spared.add(started.pid)
        node.reaper.watch(started.pid, lambda ended: self._child_ended(started.pid, began, ended))
        started.close()

    def _child_ended(self, pid: int, began: float, ended: Any) -> None:
        children.spared.discard(pid)
        why = f"the supervisor (pid {pid}) {children.describe_exit(ended)}"
        if time.monotonic() - began > USEFUL_S:
            self._useless = 0
        pause_s = 0.0 if self._useless == 0 else min(PAUSE_FIRST_S * 2 ** min(self._useless, 10), PAUSE_MAX_S)
        self._useless += 1
        self._node.loop.call_later(pause_s, self._start, why)

    def close(self) -> None:
        self._forget_parent()
