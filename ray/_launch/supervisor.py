"""PROCESS supervisor, title `ray supervisor`: starts a head's node process again when it has been killed.

Who starts it: `ray start --head`, unless that stays itself (--block, or in a container), where systemd or
Kubernetes does this work; after that the node process, when the supervisor has been killed (ray/_node/supervision.py).
So it is the parent of the node process, or a child of it that outlives it. Who talks to it: nobody. What it owns: a
handle on the session's lock, so that the folder is nobody else's while there is no node process. It ends with a node
process that ends for good (`ray stop`: the token is gone), or gives up after DEATHS_MAX deaths within WINDOW_S and says
so in logs/supervisor.err; the session can still be resumed by a person then, if it has a port for other nodes.

It sleeps in one system call. It imports little: 13 MB resident, of which 7 MB are its own (measured).
"""

from __future__ import annotations

import collections
import fcntl
import os
import pickle
import select
import socket
import sys
import time
from typing import Any, NoReturn

from ray._launch import client_server
from ray._launch import session as sessions
from ray._launch.node_process import (
    CONTROL_FD,
    LOCK_FD,
    NodeProcess,
    python_command,
    receive,
    send,
    start_node,
)
from ray._launch.title import set_title

DEATHS_MAX = 5
WINDOW_S = 60.0
PAUSE_FIRST_S = 0.1  # before the second start within WINDOW_S; the first is at once; doubles
_CONFIG_TIMEOUT_S = 10.0


def start(session: sessions.Session, config: dict[str, Any]) -> NodeProcess:
    """As `start_node`, but under a supervisor: that is the process returned; its `wait_ready` is the node's."""
    command = python_command("ray._launch.supervisor")
    # Without `site`: it needs nothing of what is installed, and its environment is for the node process to read.
    return start_node(session, config, [command[0], "-S", *command[1:]], log="supervisor")


def start_beside(session: sessions.Session, config: dict[str, Any]) -> NodeProcess:
    """The same by a node process, for itself. config: as `to_go_on` makes it. Returns: the supervisor."""
    return start(session, {**config, "beside": True})


def to_go_on(config: dict[str, Any], cluster_port: tuple[str, int] | None) -> dict[str, Any]:
    """For a node process that takes over from one with this config, on the same port."""
    return {**config, "resume": True, "cluster_port": cluster_port}


def main() -> NoReturn:
    """Called by the bootstrap of node_process.py; descriptors 0 to 4 are set."""
    control = socket.socket(fileno=CONTROL_FD)
    control.set_inheritable(False)
    os.set_inheritable(LOCK_FD, False)
    set_title("ray supervisor")
    try:
        config = pickle.loads(receive(control, _CONFIG_TIMEOUT_S))
    except EOFError:
        sys.exit(1)  # whoever started it has ended; without a holder of its lock the folder is swept
    sys.exit(_supervise(control, config))


def _supervise(control: socket.socket, config: dict[str, Any]) -> int:
    session = sessions.open_existing(config.pop("session_dir"))
    starter = config.pop("driver_pid")
    deaths: collections.deque[float] = collections.deque(maxlen=DEATHS_MAX)
    node: NodeProcess | None = None
    config["supervised"] = True
    if config.pop("beside", False):
        control.close()
        _outlive(starter)
        pid, code = starter, None
    else:
        node = _start(session, config)
        said = _first_word(node, config)
        try:
            send(control, said)
        except OSError:
            pass  # whoever started it has ended; the session is there nevertheless
        control.close()
        if said[0] != "ready":
            return node.wait_exit(None) or 0
        address = config.get("cluster_port")
        config = to_go_on(config, address and (address[0], said[1]["cluster_port"]))
    while True:
        if node is not None:
            pid, code = node.pid, node.wait_exit(None)
            node.close()
        if code == 0 or not os.path.exists(session.token_file):
            return 0
        deaths.append(time.monotonic())
        _say(f"the head's node process (pid {pid}) has died" + ("" if code is None else f" ({code})"))
        if len(deaths) == DEATHS_MAX and deaths[-1] - deaths[0] < WINDOW_S:
            address = config["cluster_port"]
            with_port = f" --port={address[1]}` goes on where it ended" if address else "` begins anew"
            _say(
                f"that was the {DEATHS_MAX}th time within {WINDOW_S:.0f} s: it is not started again. When the cause is "
                f"mended, `ray start --head{with_port}"
            )
            return 1
        recent = sum(1 for at in deaths if deaths[-1] - at < WINDOW_S)
        if recent > 1:
            time.sleep(PAUSE_FIRST_S * 2 ** (recent - 2))
        sessions.clear(session.folder)
        node = _start(session, config)
        said = _first_word(node, config)
        if said[0] == "ready":
            _say(f"it was started again (pid {node.pid})")
            client_server.start_again(session)
        else:
            _say(f"it could not be started again: {said[1]}")


def _start(session: sessions.Session, config: dict[str, Any]) -> NodeProcess:
    session.lock_fd = fcntl.fcntl(LOCK_FD, fcntl.F_DUPFD_CLOEXEC, LOCK_FD + 1)  # one for each node; ours stays
    return start_node(session, config)


def _first_word(node: NodeProcess, config: dict[str, Any]) -> Any:
    """("ready", what it says of itself), or ("refused" or "failed", why)."""
    try:
        return pickle.loads(node.first_word(config.get("start_timeout_s", 30.0)))
    except EOFError:
        return "failed", "the node process ended while starting; its log is in logs/node.err"
    except TimeoutError as error:
        node.end_now()
        return "failed", f"the node process was not ready in time: {error}"


def _outlive(starter: int) -> None:
    """Returns when the node process has ended that has started this one: our parent, while it lives."""
    try:
        ended_fd = os.pidfd_open(starter)
    except ProcessLookupError:
        return
    if os.getppid() == starter:  # asked after the pidfd was there: it is of that one
        poll = select.poll()
        poll.register(ended_fd, select.POLLIN)
        poll.poll()
    os.close(ended_fd)


def _say(text: str) -> None:
    print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}", file=sys.stderr, flush=True)
