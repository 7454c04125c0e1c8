"""The channel on asyncio, for shells: `Peer` (one process at the other end), `serve_unix`, `connect_unix`,
`connect_tcp`.

Any process with an event loop may use it; the engine inside drivers and workers doesn't (it works on the channel in
place). Imports nothing heavier than asyncio, pickle and logging.
"""

from ray._native.channel import ConnectionClosed
from ray._transport.peer import Peer
from ray._transport.server import Server, connect_tcp, connect_unix, serve_unix

__all__ = ["ConnectionClosed", "Peer", "Server", "connect_tcp", "connect_unix", "serve_unix"]
