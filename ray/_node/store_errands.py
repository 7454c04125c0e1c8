"""What the node process asks its object store now and then: gathered for a moment, asked on a thread, one at a time.

Asking blocks, and a store may hang, so it is done on a thread that lives for that long; all else is the node's main
thread. If the store dies meanwhile, what was asked about has gone with it, and the question is dropped.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any, Generic, TypeVar

logger = logging.getLogger("ray.node")

GATHER_S = 0.5  # what is asked about comes in bursts, as when a program ends: one look at the store is for all of it
STORE_TIMEOUT_S = 10.0

Items = dict[bytes, Any]
Answer = TypeVar("Answer")


class StoreErrands(Generic[Answer]):
    def __init__(
        self,
        loop: Any,
        plasma_socket: str,
        about: str,
        prepare: Callable[[Items], Items],
        ask: Callable[[Any, Items], Answer],
        done: Callable[[Answer], None],
    ) -> None:
        """about: for the log. prepare(items), on the main thread, what has been gathered. ask(store, items), on another
        thread, with a client of the store. done(answer), on the main thread, if the store has answered."""
        self._loop, self._plasma_socket, self._about = loop, plasma_socket, about
        self._prepare, self._ask, self._done = prepare, ask, done
        self._items: Items = {}
        self._timer: Any = None
        self._asking = self._closed = False

    def add(self, items: Items) -> None:
        self._items.update(items)
        self._arm()

    def close(self) -> None:
        """The session ends, and the store with it. A thread that is still asking is a daemon."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()

    def _arm(self) -> None:
        if self._items and self._timer is None and not self._asking and not self._closed:
            self._timer = self._loop.call_later(GATHER_S, self._go)

    def _go(self) -> None:
        gathered, self._items = self._items, {}
        self._timer, self._asking = None, True
        items = self._prepare(gathered)
        threading.Thread(target=self._visit, args=(items,), name="ray-store-errand", daemon=True).start()

    def _visit(self, items: Items) -> None:
        from ray._native.plasma import PlasmaClient

        answers: list[Answer] = []
        try:
            store = PlasmaClient(self._plasma_socket, STORE_TIMEOUT_S)
            try:
                answers.append(self._ask(store, items))
            finally:
                store.disconnect()
        except OSError as error:
            logger.info("the store was not asked for %s: %s", self._about, error)
        except Exception:  # a bug of ours; the next errand must not suffer for it
            logger.exception("asking the store for %s failed", self._about)
        try:
            self._loop.call_soon_threadsafe(self._back, answers)
        except RuntimeError:
            pass  # the loop is closed: the session has ended

    def _back(self, answers: list[Answer]) -> None:
        self._asking = False
        for answer in answers:
            self._done(answer)
        self._arm()
