"""Which session a driver joins: the rules of `ray.init(address=)` and RAY_ADDRESS. Runs in ray.init; reads files only.

An address is "local" (a new session), "auto" (one that must be running), the folder of a session, "host:port" (the head
of a cluster that a node on this machine is part of), "ray://host:port" (a session behind a port, ray/client), or, given
nothing, whatever is found. RAY_ADDRESS has the same forms and speaks
where the argument doesn't. A folder is believed only if it is this user's own and nobody else can write to it: objects
from another user's session would be unpickled here.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import NamedTuple

from . import cluster_file, current
from . import session as sessions

FORMS = "None, 'auto', 'local', the folder of a session, 'host:port' or 'ray://host:port'"
VARIABLE = "RAY_ADDRESS"
CLIENT_PORT = 10001  # of `ray client server`, unless it is given
_HOST_AND_PORT = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):(\d{1,5})$")


class Door(NamedTuple):
    """Where `ray client server` lets clients into a session."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"ray://{self.host}:{self.port}"


def check(option: str, address: str) -> None:
    """Says whether address is one, without looking for what it names.

    Raises: ValueError: it is none.
    """
    if address.startswith("ray://"):
        _door(option, address)
        return
    if _HOST_AND_PORT.match(address):
        return
    if address not in ("auto", "local") and not address.startswith("/"):
        raise ValueError(f"{option}={address!r}: expected {FORMS}")


def resolve(address: str | None, environ: Mapping[str, str]) -> sessions.Session | Door | None:
    """The session to join, or the door to it, or None: a new one is to be started.

    Args: address: as `check` let it pass.
    Raises: ConnectionError: what must be running isn't.  ValueError, NotImplementedError: RAY_ADDRESS is no good.
    """
    source = "address"
    if address in (None, "auto") and environ.get(VARIABLE):
        required = address == "auto"
        source, address = VARIABLE, environ[VARIABLE]
        check("ray.init: environment variable " + VARIABLE, address)
        if required and address == "local":
            raise ConnectionError(
                "ray.init(address='auto') joins a cluster that runs, and the environment variable RAY_ADDRESS='local' "
                "asks for a new one: unset it, or leave address='auto' out"
            )
    if address == "local":
        return None
    if address is not None and address.startswith("ray://"):
        return _door(source, address)
    if address in (None, "auto"):
        folder = current.read()
        if folder is None and address is not None:
            raise ConnectionError(
                "ray.init(address='auto') found no running cluster of this user: start one with `ray start --head`, or "
                "leave the address out, and ray.init() starts a session of its own"
            )
    elif _HOST_AND_PORT.match(address):
        host, port = host_and_port(f"ray.init: {source}", address)
        folder = cluster_file.find(host, port)
        if folder is None:
            raise ConnectionError(
                f"ray.init: {source}={address!r}: no node of this user on this machine is part of a cluster whose head "
                f"listens there. `ray start --address={address}` makes this machine one of its nodes; from outside, "
                "programs join through ray://host:port"
            )
    else:
        folder = address
    return None if folder is None else _open(source, folder)


def resolve_here(address: str | None, environ: Mapping[str, str]) -> sessions.Session | None:
    """As `resolve`, for what must run on the session's own machine. Raises: ConnectionError: for a door, too."""
    found = resolve(address, environ)
    if isinstance(found, Door):
        raise ConnectionError(
            f"{found} is the way to a session from outside; this must run on the cluster's own machine"
        )
    return found


def host_and_port(option: str, text: str) -> tuple[str, int]:
    """(numeric host, port) of HOST:PORT. Raises: ValueError: it is none, or that host isn't known."""
    found = _HOST_AND_PORT.match(text)
    if found is None or not 0 < int(found[2]) < 65536:
        raise ValueError(f"{option}={text!r}: expected HOST:PORT of the cluster's head, such as 10.0.0.5:6379")
    return numeric(option, found[1].strip("[]")), int(found[2])


def numeric(option: str, host: str) -> str:
    """The address of a host. Raises: ValueError: nobody knows it."""
    import socket

    try:
        infos = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError as error:
        raise ValueError(f"{option}={host!r}: no such host: {error.strerror or error}") from None
    # IPv4 first: a name may have an IPv6 address on which nobody listens
    return str(min(infos, key=lambda info: info[0] != socket.AF_INET)[4][0])


def _door(source: str, address: str) -> Door:
    rest = address[len("ray://") :].rstrip("/")
    host, colon, port = rest.rpartition(":")
    if not colon or rest.endswith("]"):  # [::1] has colons of its own
        host, port = rest, str(CLIENT_PORT)
    host = host.strip("[]")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise ValueError(f"{source}={address!r}: expected ray://host or ray://host:port, such as ray://10.0.0.5:10001")
    return Door(host, int(port))


def _open(source: str, folder: str) -> sessions.Session:
    folder = folder.rstrip("/")
    given = f"ray.init: {source}={folder!r}"
    if not os.path.isdir(folder):
        raise ConnectionError(f"{given}: no such folder; the session that it named, if there was one, has ended")
    if not sessions.belongs_to_us(folder):
        raise ConnectionError(f"{given}: this folder belongs to another user, or others can write to it")
    if not sessions.alive(folder):
        raise ConnectionError(f"{given}: no session runs in it; it has ended, or this was never the folder of one")
    try:
        return sessions.open_existing(folder)
    except FileNotFoundError:
        raise ConnectionError(f"{given}: the session that ran in it has just ended") from None
