"""Brings packages of runtime environments from the node that has them. Node's main thread, in a cluster only.

A package lies in the session folder of the node whose program packed it. A node that is to start a worker in an
environment asks the head for what it lacks; the head gives what it has, and first asks the other nodes for what it
hasn't. One transfer for each package at a time, however many wait for it. A package that nobody has (any more) stays
away, and the environment's builder then says which one it is.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ray.runtime_env import _packages

if TYPE_CHECKING:
    from .shell import Node

logger = logging.getLogger("ray.node")

PIECE_BYTES = 1 << 20
ASK_S = 30.0  # for a piece


class PackageFetch:
    def __init__(self, node: Node) -> None:
        self._node = node
        self._fetching: dict[str, asyncio.Task[None]] = {}

    def lacking(self, text: str) -> list[str]:
        """URIs that an environment names and this node hasn't. None on a single machine."""
        node = self._node
        if node.uplink is None and (node.cluster is None or not node.cluster.uplinks):
            return []
        return [uri for uri in _packages.named_in(text) if not node.envs.inbox.has(uri)]

    async def fetch(self, uris: Iterable[str]) -> None:
        """Never raises: what didn't come is logged, and found missing by whoever needs it."""
        for uri in uris:
            task = self._fetching.get(uri)
            if task is None:
                task = self._fetching[uri] = self._node.loop.create_task(self._fetch(uri))
                task.add_done_callback(lambda _, uri=uri: self._fetching.pop(uri, None))  # type: ignore[misc]
            await asyncio.shield(task)

    async def read(self, uri: str, offset: int) -> tuple[int, bytes] | None:
        """For another node: (size of the package, a piece of it at offset). None: it is not to be had here."""
        if not self._node.envs.inbox.has(uri) and self._node.cluster is not None:
            await self.fetch([uri])
        return self._node.envs.inbox.piece(uri, offset, PIECE_BYTES)

    async def _fetch(self, uri: str) -> None:
        for source in self._sources():
            try:
                if await self._fetch_from(source, uri):
                    return
            except (ConnectionError, TimeoutError, OSError, ValueError) as error:
                logger.warning("package %s could not be fetched: %s", uri, error)
        logger.warning("no node has package %s (any more)", uri)

    def _sources(self) -> list[Any]:
        node = self._node
        if node.uplink is not None:
            return [node.uplink.peer]
        return list(node.cluster.uplinks.values()) if node.cluster is not None else []

    async def _fetch_from(self, source: Any, uri: str) -> bool:
        inbox, offset = self._node.envs.inbox, 0
        try:
            while True:
                piece = await source.rpc("package_read", uri, offset, timeout_s=ASK_S)
                if piece is None:
                    return False
                size, data = piece
                inbox.put(self._node.node_id, uri, offset, data, size)
                offset += len(data)
                if offset == size:
                    return True
                if not data:
                    raise ValueError("it became shorter while it was read")
        except BaseException:
            inbox.sender_left(self._node.node_id)
            raise
