"""Pickled functions and classes on their way from who defined them to who runs them. In the head, on its loop's thread.

The newest CACHE_BYTES_MAX stay in memory, so that a worker's question costs no trip to Redis and is answered while
Redis is away; all of them are in Redis until their job is forgotten. A task may reach its worker before the definition
has reached us, over another socket: a question for something unknown therefore waits a little for it.
"""

from __future__ import annotations

import asyncio
import collections

from ray._control.store import StoreUnavailable
from ray._control.tables import FunctionTable

CACHE_BYTES_MAX = 64 * 1024 * 1024
WAIT_S = 5.0  # for a definition still on its way; its exporter has sent it before the task


class FunctionCache:
    """table None: nothing but the cache (tests)."""

    def __init__(self, table: FunctionTable | None) -> None:
        self._table = table
        self._blobs: collections.OrderedDict[tuple[bytes, bytes], bytes] = collections.OrderedDict()
        self._bytes = 0
        self._waiting: dict[tuple[bytes, bytes], set[asyncio.Future[bytes]]] = {}

    def put(self, job_id: bytes, function_id: bytes, blob: bytes) -> None:
        """The id is the blob's hash, so a second put changes nothing."""
        key = (job_id, function_id)
        for future in self._waiting.pop(key, ()):
            if not future.done():
                future.set_result(blob)
        if key in self._blobs:
            return
        if self._table is not None:
            self._table.put(job_id, function_id, blob)
        self._keep(key, blob)

    async def get(self, job_id: bytes, function_id: bytes) -> bytes | None:
        """None: nobody has exported it, nor does within WAIT_S.

        Raises: StoreUnavailable: it may be in Redis, which does not answer."""
        key = (job_id, function_id)
        blob = self._blobs.get(key)
        if blob is not None:
            self._blobs.move_to_end(key)
            return blob
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        waiting = self._waiting.setdefault(key, set())
        waiting.add(future)  # before Redis is asked: it may be exported meanwhile
        try:
            if self._table is not None:
                blob = await self._table.get(job_id, function_id)
                if blob is not None:
                    self._keep(key, blob)
                    return blob
            return await asyncio.wait_for(future, WAIT_S)
        except asyncio.TimeoutError:
            return None
        except StoreUnavailable:
            if future.done():
                return future.result()
            raise
        finally:
            waiting.discard(future)
            if not waiting and self._waiting.get(key) is waiting:
                del self._waiting[key]

    def forget_job(self, job_id: bytes) -> None:
        for key in [key for key in self._blobs if key[0] == job_id]:
            self._bytes -= len(self._blobs.pop(key))

    def write_anew(self) -> None:
        if self._table is not None:
            for (job_id, function_id), blob in self._blobs.items():
                self._table.put(job_id, function_id, blob)

    def close(self) -> None:
        """Whoever still waits hears that there is no such function."""
        for futures in self._waiting.values():
            for future in futures:
                if not future.done():
                    future.set_exception(asyncio.TimeoutError())

    def stats(self) -> dict[str, int]:
        """cached, cached_bytes, waiting (questions for something unknown)."""
        return {"cached": len(self._blobs), "cached_bytes": self._bytes, "waiting": len(self._waiting)}

    def _keep(self, key: tuple[bytes, bytes], blob: bytes) -> None:
        if key not in self._blobs:
            self._blobs[key] = blob
            self._bytes += len(blob)
        while self._bytes > CACHE_BYTES_MAX and len(self._blobs) > 1:
            self._bytes -= len(self._blobs.popitem(last=False)[1])
