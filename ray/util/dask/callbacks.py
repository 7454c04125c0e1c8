"""RayDaskCallback: what a user wants to have called while dask's tasks run on ray.

A library on the public API. The hooks that see a task run, `_ray_pretask` and `_ray_posttask`, are called in the
worker, on a copy of the callback; all others in the process that computes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Callable

from dask.callbacks import Callback

# Names of the hooks, and of the arguments of RayDaskCallback.
HOOKS = ("ray_presubmit", "ray_postsubmit", "ray_pretask", "ray_posttask", "ray_postsubmit_all", "ray_finish")


class RayDaskCallback(Callback):
    """Subclass it and define any of the `_ray_...` methods, or give functions for them by name without the underscore.

        with RayDaskCallback(ray_posttask=lambda key, result, pre_state: print(key)):
            x.compute(scheduler=ray_dask_get)

    It is active inside `with`, or between `register()` and `unregister()`, or given as `ray_callbacks=[...]`.

    `_ray_presubmit(task, key, deps)`: before a task is submitted; what it returns, unless None, is the task's result,
    and it isn't submitted.
    `_ray_postsubmit(task, key, deps, object_ref)`: after it was.
    `_ray_pretask(key, object_refs)`: in the worker before the task runs; `object_refs` are its arguments' values.
    `_ray_posttask(key, result, pre_state)`: in the worker afterwards; pre_state is what `_ray_pretask` returned.
    `_ray_postsubmit_all(object_refs, dsk)`: once all are submitted.
    `_ray_finish(result)`: with the results, once they are there.
    """

    active_callbacks: list[RayDaskCallback] = []

    def __init__(self, **hooks: Callable[..., Any]) -> None:
        unknown = [name for name in hooks if name not in HOOKS]
        if unknown:
            raise TypeError(f"RayDaskCallback: unknown argument {unknown[0]!r}: expected some of {', '.join(HOOKS)}")
        for name, hook in hooks.items():
            setattr(self, f"_{name}", hook)

    def __enter__(self) -> RayDaskCallback:
        self.register()
        return self

    def __exit__(self, *_error: object) -> None:
        self.unregister()

    def register(self) -> None:
        """Active from now on."""
        self.active_callbacks.append(self)

    def unregister(self) -> None:
        """No longer active."""
        self.active_callbacks.remove(self)


class Hooks:
    """The hooks of all callbacks of one computation, by name; only those that somebody has defined."""

    def __init__(self, given: Iterable[Any] | None) -> None:
        callbacks = [*RayDaskCallback.active_callbacks, *(given or ())]
        for callback in callbacks:
            if not isinstance(callback, RayDaskCallback):
                raise TypeError(f"ray_callbacks: {callback!r}: expected instances of RayDaskCallback")
        self._hooks: Mapping[str, list[Callable[..., Any]]] = {
            name: [hook for callback in callbacks if (hook := getattr(callback, f"_{name}", None)) is not None]
            for name in HOOKS
        }

    def __getitem__(self, name: str) -> list[Callable[..., Any]]:
        return self._hooks[name]

    def call(self, name: str, *args: Any) -> None:
        for hook in self._hooks[name]:
            hook(*args)


@contextmanager
def around_task(
    before: list[Callable[..., Any]], after: list[Callable[..., Any]], key: Any, values: tuple[Any, ...]
) -> Iterator[list[Any]]:
    """In the worker: calls the hooks around a task, whose result the caller puts into the list."""
    states = [hook(key, values) for hook in before]
    result: list[Any] = []
    yield result
    states += [None] * (len(after) - len(states))
    for hook, state in zip(after, states):
        hook(key, result[0], state)
