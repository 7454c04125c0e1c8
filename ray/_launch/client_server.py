"""Starts `ray client server` for a session, and again for a head's next node process, with which it ended.

Runs in `ray start`, and in the supervisor. The session's folder says where clients are let in (the file
`client_server`), and its logs what the server says of itself (client_server.log).
"""

from __future__ import annotations

import os

from .node_process import python_command
from .session import ENVIRONMENT_MARK, Session

# The shell ends at once, so that the server is no child of ours, and nobody has to hear of its end.
_IN_BACKGROUND = '"$0" "$@" </dev/null >/dev/null 2>>"$RAY_CLIENT_SERVER_LOG" &'


def start(session: Session, host: str, port: int) -> int:
    """Starts the server, which ends with the node process; returns its port.

    Raises: RuntimeError: with its own words.
    Blocks: until it listens.
    """
    import json
    import subprocess

    with open(_log(session), "wb") as log:
        server = subprocess.Popen(
            _command(session, host, port),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,
            env={**os.environ, ENVIRONMENT_MARK: session.folder},
        )
    assert server.stdout is not None
    with server.stdout:
        line = server.stdout.readline()
    if line:
        listens_on = int(json.loads(line)["port"])
        with open(_place(session), "w") as file:
            file.write(f"{host} {listens_on}")
        return listens_on
    server.wait()
    with open(log.name) as file:
        raise RuntimeError(f"--ray-client-server-port {port}: {file.read().strip()}")


def start_again(session: Session) -> None:
    """As `start`, on the same port, if there was one. Waits for nothing; what goes wrong is in the server's log."""
    try:
        with open(_place(session)) as file:
            host, _, port = file.read().partition(" ")
    except FileNotFoundError:
        return
    environment = {**os.environ, ENVIRONMENT_MARK: session.folder, "RAY_CLIENT_SERVER_LOG": _log(session)}
    command = ["/bin/sh", "-c", _IN_BACKGROUND, *_command(session, host, int(port))]
    os.waitpid(os.posix_spawn(command[0], command, environment, setsid=True), 0)


def _command(session: Session, host: str, port: int) -> list[str]:
    return python_command("ray.client.server", "--session", session.folder, "--host", host, "--port", str(port))


def _log(session: Session) -> str:
    return f"{session.logs}/client_server.log"


def _place(session: Session) -> str:
    return f"{session.folder}/client_server"
