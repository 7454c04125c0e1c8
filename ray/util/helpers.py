"""Loops over `ray.wait` that everybody writes: results as they come, and a bounded number of tasks at once.

A library on the public API, in the caller's thread. Generators: nothing happens before the first result is asked for,
and nothing after the caller has stopped asking. An error of a task is raised where its result would have come, and ends
the generator, as errors do; with yield_obj_refs=True it comes as a ref, and the caller decides.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import ray


def as_completed(
    refs: Sequence[ray.ObjectRef[Any]], *, chunk_size: int = 10, yield_obj_refs: bool = False, **kwargs: Any
) -> Iterator[Any]:
    """The values of refs in the order in which they become ready.

    Args:
        refs: distinct.
        chunk_size: how many are fetched at most in one go.
        yield_obj_refs: give the refs instead of their values.
        kwargs: for ray.wait, such as fetch_local=False.
    Raises: TypeError, ValueError: an argument is wrong; raised at once.  The error of a task, in its turn.
    """
    _check_chunk_size("as_completed", chunk_size)
    return _as_completed(list(refs), chunk_size, yield_obj_refs, kwargs)


def _as_completed(
    pending: list[ray.ObjectRef[Any]], chunk_size: int, yield_obj_refs: bool, kwargs: dict[str, Any]
) -> Iterator[Any]:
    while pending:
        ready, pending = _wait(pending, chunk_size, kwargs)
        yield from ready if yield_obj_refs else ray.get(ready)


def map_unordered(
    fn: Any,
    items: Iterable[Any],
    *,
    backpressure_size: int | None = 100,
    chunk_size: int = 10,
    yield_obj_refs: bool = False,
    **kwargs: Any,
) -> Iterator[Any]:
    """The values of fn.remote(item) for each item, in the order in which they become ready.

    Args:
        fn: a remote function, or a method of an actor.
        items: may be endless; read as tasks are submitted.
        backpressure_size: how many tasks there are at once, at most; None means no limit.
        chunk_size, yield_obj_refs, kwargs: as for `as_completed`.
    Raises: TypeError, ValueError: an argument is wrong; raised at once.  The error of a task, in its turn.
    """
    _check_chunk_size("map_unordered", chunk_size)
    if not hasattr(fn, "remote"):
        raise TypeError(f"map_unordered: fn={fn!r}: expected a remote function: decorate it with @ray.remote")
    if backpressure_size is not None:
        if isinstance(backpressure_size, bool) or not isinstance(backpressure_size, int):
            raise TypeError(f"map_unordered: backpressure_size={backpressure_size!r}: expected a whole number, or None")
        if backpressure_size < 1:
            raise ValueError(f"map_unordered: backpressure_size={backpressure_size}: expected at least 1, or None")
    return _map_unordered(fn, iter(items), backpressure_size, chunk_size, yield_obj_refs, kwargs)


def _map_unordered(
    fn: Any,
    items: Iterator[Any],
    running_max: int | None,
    chunk_size: int,
    yield_obj_refs: bool,
    kwargs: dict[str, Any],
) -> Iterator[Any]:
    pending: list[ray.ObjectRef[Any]] = []
    more = True
    while more or pending:
        while more and (running_max is None or len(pending) < running_max):
            try:
                pending.append(fn.remote(next(items)))
            except StopIteration:
                more = False
        if pending:
            ready, pending = _wait(pending, chunk_size, kwargs)
            yield from ready if yield_obj_refs else ray.get(ready)


def _wait(
    refs: list[ray.ObjectRef[Any]], chunk_size: int, kwargs: dict[str, Any]
) -> tuple[list[ray.ObjectRef[Any]], list[ray.ObjectRef[Any]]]:
    """Waits for one, and takes with it what else is ready: a wait for each would look through all refs each time."""
    ready, rest = ray.wait(refs, num_returns=1, **kwargs)
    if ready and rest and chunk_size > 1:
        also, rest = ray.wait(rest, num_returns=min(chunk_size - 1, len(rest)), **{**kwargs, "timeout": 0})
        ready = ready + also
    return ready, rest


def _check_chunk_size(function: str, chunk_size: Any) -> None:
    if isinstance(chunk_size, bool) or not isinstance(chunk_size, int):
        raise TypeError(f"{function}: chunk_size={chunk_size!r}: expected a whole number")
    if chunk_size < 1:
        raise ValueError(f"{function}: chunk_size={chunk_size}: expected at least 1")
