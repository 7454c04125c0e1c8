"""Before a node joins: finds the head, proves the token, compares versions. In `ray start` and ray.cluster_utils.

So that what is wrong is said in the person's own shell within seconds, before any process has been started. The head
looks again when the node joins (cluster_head.py).
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import threading
import time
from collections.abc import Mapping
from typing import Any

from ray._native.channel import WHY_WITH_TLS, check_tls
from ray._protocol.frames import ROLE_TOOL
from ray._transport import ConnectionClosed, connect_tcp

from .cluster_head import CLOCK_SKEW_S_MAX, refuse_other_version

TIMEOUT_S = 5.0


def own_address(host: str, port: int) -> str:
    """The address of this machine that others reach it by, if `host` does. Sends nothing.

    Raises: ConnectionError: there is no way to that host."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((host, port))
        except OSError as error:
            raise ConnectionError(f"{host}:{port} can't be reached from here: {error.strerror}") from None
        return str(probe.getsockname()[0])


def ask_head(host: str, port: int, token: bytes) -> dict[str, Any]:
    """What the head says to whoever wants to join: "settings" of the cluster.

    Raises: ConnectionError: nobody listens there, it is no head, or it has another token.  ValueError: it is of
        another version, or its clock is another.
    Blocks: up to TIMEOUT_S.
    """
    found: list[Any] = []

    def ask() -> None:  # a thread of its own: whoever calls may have an event loop running
        try:
            found.append(asyncio.run(_ask(host, port, token)))
        except BaseException as error:
            found.append(error)

    asking = threading.Thread(target=ask, name="ray-ask-head")
    asking.start()
    asking.join()
    answer = found[0]
    if isinstance(answer, (ConnectionRefusedError, ConnectionClosed, TimeoutError, asyncio.TimeoutError, OSError)):
        raise ConnectionError(f"the head of the cluster at {host}:{port} can't be joined: {_why(answer)}") from None
    if isinstance(answer, BaseException):
        raise ConnectionError(f"{host}:{port}: {answer}") from None
    try:
        refuse_other_version(answer["version"], answer["python_version"])
    except ValueError as error:
        raise ValueError(f"the cluster at {host}:{port} can't be joined: {error}") from None
    skew_s = time.time() - answer["time_s"]
    if abs(skew_s) > CLOCK_SKEW_S_MAX:
        raise ValueError(
            f"the cluster at {host}:{port} can't be joined: this machine's clock is {abs(skew_s):.0f} s "
            f"{'ahead of' if skew_s > 0 else 'behind'} the head's, and at most {CLOCK_SKEW_S_MAX:.0f} s are allowed: "
            "set the clocks, by NTP for example"
        )
    info: dict[str, Any] = answer
    return info


def settings_of(host: str, port: int, info: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a node that joins: the cluster's (info: what `ask_head` returned), and what is its own.

    Raises: ValueError: it is asked to speak TLS to a cluster that doesn't, or the reverse.  FileNotFoundError: the
        cluster speaks TLS, and this machine can't.
    """
    theirs = bool(info["settings"].get("tls", False))
    if bool(own.get("tls", theirs)) != theirs:
        speaks, wanted = ("speaks TLS", "off") if theirs else ("does not speak TLS", "on")
        raise ValueError(
            f"the cluster at {host}:{port} {speaks}, and this machine is told to have it {wanted} (--tls, "
            "--system-config or RAY_TLS): leave that out, since the head decides, or start the head otherwise"
        )
    if theirs:
        check_tls()
    return {**info["settings"], **own}


# What it would log is in the error that the asker raises; a person's shell need not show it twice.
logging.getLogger("ray._transport").addHandler(logging.NullHandler())


async def _ask(host: str, port: int, token: bytes) -> Any:
    """Whether the cluster speaks TLS is known only by asking. Without it first: a head that has it answers nobody but
    to say so, and proves itself to nobody; so whoever makes this side try it the other way has gained nothing."""

    async def dial(tls: bool) -> Any:
        dialled = connect_tcp(host, port, token, os.urandom(16), role=ROLE_TOOL, tls=tls)
        return await asyncio.wait_for(dialled, TIMEOUT_S)

    try:
        peer = await dial(False)
    except ConnectionClosed as refused:
        if refused.why != WHY_WITH_TLS:
            raise
        peer = await dial(True)
    try:
        return await peer.rpc("cluster_info", timeout_s=TIMEOUT_S)
    finally:
        peer.close()


def _why(error: BaseException) -> str:
    if isinstance(error, (TimeoutError, asyncio.TimeoutError)):
        return f"no answer within {TIMEOUT_S:g} s (wrong address, or a firewall?)"
    if isinstance(error, ConnectionClosed):
        return (
            f"{error}. Has it another token? This machine's comes from RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or "
            "~/.ray/auth_token, and must be that of the head's machine"
        )
    return str(error) or type(error).__name__
