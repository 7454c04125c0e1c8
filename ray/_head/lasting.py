"""What is said only when it lasts: when a head that takes over from this one would know it, too.

In the head, on its loop's thread. A head that may be started again (`lasts`) goes on from what is in Redis' file. What
it has told anybody before it was written there could turn out otherwise afterwards, if the one who knew it died as
well: an actor that has left would be started again. So news that are final go by way of `say`. If Redis is given up,
nothing lasts any more, and nothing is waited for.
"""

from __future__ import annotations

import asyncio
import collections
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from ray._control.store import StoreUnavailable

if TYPE_CHECKING:
    from ray._head.service import HeadService

logger = logging.getLogger(__name__)


class Lasting:
    def __init__(self, head: HeadService) -> None:
        self._head = head
        self._to_say: collections.deque[Callable[[], None]] = collections.deque()  # in order
        self._saying: asyncio.Task[None] | None = None  # while there is something to say

    def say(self, what: Callable[[], None]) -> None:
        """Does it when all that is known now lasts, in order; at once, if this head can't come back."""
        if not self._head.lasts or self._head.tables is None:
            what()
            return
        self._to_say.append(what)
        if self._saying is None:
            self._saying = asyncio.get_running_loop().create_task(self._say())

    async def wait(self) -> None:
        """Returns when all that is known now lasts."""
        head = self._head
        if not head.lasts or head.tables is None:
            return
        head.groups.flush()
        try:
            await head.tables.last()
        except StoreUnavailable as error:  # its end was said to every job: this cluster goes on from memory alone
            logger.debug("nothing lasts any more: %s", error)

    async def _say(self) -> None:
        try:
            while self._to_say:
                known = len(self._to_say)  # what comes while it is written waits for the next time
                await self.wait()
                for _ in range(known):
                    self._to_say.popleft()()  # should one fail, the others are said with the next
        finally:
            self._saying = None
