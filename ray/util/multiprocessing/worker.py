"""The actor that is one process of a Pool: runs the initializer, then the calls it is given, one at a time.

With `multiprocessing`, whose workers are forks or import the program anew, functions that run in one process share its
globals: what the initializer assigned to one, the calls find there. Functions of `__main__` are sent here by value
though, each with a copy of the globals that it uses. `_SharedGlobals` makes those copies act as one.
"""

from __future__ import annotations

import functools
import itertools
import sys
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Callable

from ray.exceptions import RayTaskError

_MISSING = object()


class PoolWorker:
    """One process of a Pool."""

    def __init__(self, initializer: Callable[..., Any] | None, initargs: tuple[Any, ...]) -> None:
        self._globals = _SharedGlobals()
        if initializer is not None:
            with self._globals.of(initializer):
                initializer(*initargs)

    def apply(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        with self._globals.of(func):
            return func(*args, **kwargs)

    def map(self, func: Callable[..., Any], values: Iterable[Any]) -> list[Any]:
        with self._globals.of(func):
            return list(map(func, values))

    def starmap(self, func: Callable[..., Any], values: Iterable[Iterable[Any]]) -> list[Any]:
        with self._globals.of(func):
            return list(itertools.starmap(func, values))

    def each(self, func: Callable[..., Any], values: Iterable[Any]) -> list[tuple[bool, Any]]:
        """As map, but an error is the outcome of its value alone: a list of (True, result) or (False, error)."""
        with self._globals.of(func):
            return [_outcome(func, value) for value in values]


def _outcome(func: Callable[..., Any], value: Any) -> tuple[bool, Any]:
    try:
        return True, func(value)
    except Exception as error:
        # Can be pickled whatever the error is like, and keeps the traceback.
        return False, RayTaskError(getattr(func, "__qualname__", repr(func)), traceback.format_exc(), error)


class _SharedGlobals:
    """What functions that came by value have assigned to their globals in this process: module -> name -> value."""

    def __init__(self) -> None:
        self._assigned: dict[Any, dict[str, Any]] = {}

    @contextmanager
    def of(self, func: Any) -> Iterator[None]:
        """While func runs it sees what others have assigned; what it assigns is kept, also when it raises."""
        own = _copied_globals(func)
        if own is None:
            yield
            return
        assigned = self._assigned.setdefault(own.get("__name__"), {})
        own.update(assigned)
        before = dict(own)
        try:
            yield
        finally:
            assigned.update({k: v for k, v in own.items() if before.get(k, _MISSING) is not v})


def _copied_globals(func: Any) -> dict[str, Any] | None:
    """func's globals if they are a copy, and not those of a module of this process."""
    while isinstance(func, functools.partial):
        func = func.func
    found: dict[str, Any] | None = getattr(getattr(func, "__func__", func), "__globals__", None)
    if found is None or found is getattr(sys.modules.get(found.get("__name__", "")), "__dict__", None):
        return None
    return found
