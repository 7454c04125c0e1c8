"""The TCP connection of a `ray://` client: a plain socket, or one with TLS over it. The loops of both its ends.

A `Link` is what greeting and tunnel need of it: never blocks, `recv_into` and `sendmsg` as of a socket. The waits here
are those of the greeting; from then on the tunnel waits by itself.

Whether TLS is spoken is the cluster's setting `tls`. The server says it in its first message (proof.py), so a client
needs to be told nothing; one that is told all the same (RAY_TLS, `wanted`) refuses a server that has it otherwise.
"""

from __future__ import annotations

import asyncio
import os
import socket
from typing import Union

from ray._native.channel import TlsSocket

Link = Union[socket.socket, TlsSocket]

CLOSED = "it closed the connection before it had proved itself"
TLS_VARIABLE = "RAY_TLS"  # of the setting `tls` (ray/_config.py)


def wanted(text: str | None) -> bool | None:
    """What RAY_TLS says. None: nothing. Raises: ValueError."""
    if text is None or text == "":
        return None
    if text.lower() not in ("0", "1", "false", "true"):
        raise ValueError(f"{TLS_VARIABLE}={text!r}: expected 1 or 0")
    return text.lower() in ("1", "true")


async def secured(sock: socket.socket, token: bytes, theirs: bool, ours: bool | None) -> Link:
    """What the dialling side goes on with. theirs: whether the server speaks TLS. ours: whether this side is told to.

    Raises: ValueError: the two differ.  FileNotFoundError: TLS, and there is no OpenSSL here.  ConnectionClosed: the
        server has not proved itself.  EOFError: it closed first.  OSError.
    """
    if ours is not None and ours != theirs:
        speaks, told = ("speaks TLS", "off") if theirs else ("does not speak TLS", "on")
        raise ValueError(
            f"the cluster there {speaks}, and this program is told to have it {told} ({TLS_VARIABLE}="
            f"{os.environ.get(TLS_VARIABLE)}): leave that out, since the cluster decides, or start its head "
            f"{'without' if theirs else 'with'} --tls"
        )
    if not theirs:
        return sock
    link = TlsSocket(sock, token, dialled=True)
    while not link.done:  # it says nothing before it was asked, so nothing is lost in this byte
        try:
            if link.recv_into(bytearray(1)) == 0:
                raise EOFError(CLOSED)
            raise ConnectionError("the server spoke before it was asked")
        except BlockingIOError:
            if not link.done:
                await _ready(link)
    return link


async def read_exactly(link: Link, nbytes: int) -> bytes:
    """Of TLS more may have come with it: whoever goes on reads once before he waits.

    Raises: EOFError: the other end closed first.  OSError.
    """
    message = bytearray(nbytes)
    room = memoryview(message)
    while len(room):
        try:
            got = link.recv_into(room)
        except BlockingIOError:
            await _ready(link)
            continue
        if got == 0:
            raise EOFError(CLOSED)
        room = room[got:]
    return bytes(message)


async def send_all(link: Link, data: bytes) -> None:
    """Raises: OSError."""
    while data:
        try:
            data = data[link.sendmsg([data]) :]
        except BlockingIOError:
            await _ready(link, sending=True)


async def _ready(link: Link, sending: bool = False) -> None:
    """Until the socket has something for us, or takes something from us."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def wake() -> None:
        if not done.done():
            done.set_result(None)

    reading = not sending
    writing = sending or (isinstance(link, TlsSocket) and link.wants_write)
    if reading:
        loop.add_reader(link, wake)
    if writing:
        loop.add_writer(link, wake)
    try:
        await done
    finally:
        if reading:
            loop.remove_reader(link)
        if writing:
            loop.remove_writer(link)
