"""The dask scheduler: turns a dask graph into ray tasks, all submitted at once, each with its dependencies' refs.

A library on the public API, in the process that computes. Nothing passes through it on the way: a task's result goes
from worker to worker, and is freed when the last task that needs it has ended, since nobody here keeps its ref. What a
dead worker had is made again, as for all tasks; an error of a task is raised by the computation.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import dask
from dask._task_spec import Alias, DataNode, convert_legacy_graph
from dask.core import flatten, reverse_dict
from dask.order import order
from dask.utils import ensure_dict

import ray
from ray.util._original_error import original_error
from ray.util.dask.callbacks import Hooks, around_task


def ray_dask_get(dsk: Any, keys: Any, **kwargs: Any) -> Any:
    """Computes keys of a dask graph with ray tasks. A dask scheduler: dask calls it.

    Args:
        dsk: the graph.
        keys: one key, or lists, perhaps nested, of keys.
        ray_remote_args: options of all tasks; `dask.annotate(ray_remote_args={...})` gives those of some.
        ray_callbacks: instances of RayDaskCallback.
        ray_persist: return refs and leave the results where they are.
    Returns: the values in the shape of keys.
    """
    return _get(dsk, keys, False, **kwargs)


def ray_dask_get_sync(dsk: Any, keys: Any, **kwargs: Any) -> Any:
    """As ray_dask_get, but one task after another, each waited for: to see which one fails."""
    return _get(dsk, keys, True, **kwargs)


def enable_dask_on_ray(**kwargs: Any) -> Any:
    """Makes ray_dask_get dask's scheduler, for good, or in a `with` statement, to whose end it lasts.

    Args: kwargs: further settings of dask.config.
    """
    return dask.config.set(scheduler=ray_dask_get, **kwargs)


def disable_dask_on_ray() -> Any:
    """Gives dask its own schedulers back."""
    return dask.config.set(scheduler=None)


def _get(
    dsk: Any,
    keys: Any,
    one_by_one: bool,
    ray_remote_args: Mapping[str, Any] | None = None,
    ray_callbacks: Iterable[Any] | None = None,
    ray_persist: bool = False,
    **_for_other_schedulers: Any,
) -> Any:
    hooks = Hooks(ray_callbacks)
    task_options = _annotated(dsk)
    graph = convert_legacy_graph(ensure_dict(dsk.__dask_graph__() if hasattr(dsk, "__dask_graph__") else dsk))
    wanted = set(flatten([keys]))  # type: ignore[no-untyped-call]
    missing = [key for key in wanted if key not in graph]
    if missing:
        raise KeyError(f"ray_dask_get: the graph has no key {missing[0]!r}")
    run = ray.remote(_run)
    if ray_remote_args:
        run = run.options(**ray_remote_args)
    # Dask's own order: depth first, so that intermediate results are needed, and freed, soon.
    dependencies = {key: set(node.dependencies) for key, node in graph.items()}
    users = {key: len(found) for key, found in reverse_dict(dependencies).items()}
    made: dict[Any, Any] = {}  # refs, or values that need no task
    for key in sorted(graph, key=order(graph, dependencies=dependencies).__getitem__):
        made[key] = _submit(run, key, graph[key], made, hooks, {**(ray_remote_args or {}), **task_options.get(key, {})})
        if one_by_one and isinstance(made[key], ray.ObjectRef):
            _fetch([made[key]])
        for needed in dependencies[key]:
            users[needed] -= 1
            if not users[needed] and needed not in wanted:
                del made[needed]  # the tasks that need it hold it now
    results = {key: made[key] for key in wanted}
    del made
    refs = [value for value in results.values() if isinstance(value, ray.ObjectRef)]
    hooks.call("ray_postsubmit_all", refs, dsk)
    if not ray_persist:
        values = dict(zip(refs, _fetch(refs)))
        results = {key: values[v] if isinstance(v, ray.ObjectRef) else v for key, v in results.items()}
    shaped = _in_shape(keys, results)
    hooks.call("ray_finish", shaped)
    return shaped


def _submit(run: Any, key: Any, node: Any, made: dict[Any, Any], hooks: Hooks, options: Mapping[str, Any]) -> Any:
    """The ref of this node's result, or its value if that needs no task."""
    if isinstance(node, Alias):
        return made[node.target]
    if isinstance(node, DataNode):
        return node.value
    needed = list(node.dependencies)
    arguments = [made[dependency] for dependency in needed]
    for hook in hooks["ray_presubmit"]:
        result = hook(node, key, arguments)
        if result is not None:
            return result
    if options:
        run = run.options(**options)
    ref = run.remote(node, key, needed, hooks["ray_pretask"], hooks["ray_posttask"], *arguments)
    hooks.call("ray_postsubmit", node, key, arguments, ref)
    return ref


def _run(node: Any, key: Any, needed: list[Any], before: list[Any], after: list[Any], *values: Any) -> Any:
    """The task: in a worker."""
    if not before and not after:
        return node(dict(zip(needed, values)))
    with around_task(before, after, key, values) as result:
        result.append(node(dict(zip(needed, values))))
    return result[0]


def _annotated(dsk: Any) -> dict[Any, Mapping[str, Any]]:
    """What dask.annotate(ray_remote_args=...) said, by key."""
    if hasattr(dsk, "__dask_annotations__"):
        return dict(dsk.__dask_annotations__().get("ray_remote_args", {}))
    found: dict[Any, Mapping[str, Any]] = {}
    for layer in getattr(dsk, "layers", {}).values():
        said = (layer.annotations or {}).get("ray_remote_args")
        if said is not None:
            found.update(dict.fromkeys(layer, said))
    return found


def _fetch(refs: list[Any]) -> list[Any]:
    try:
        return ray.get(refs)
    except ray.exceptions.RayTaskError as error:
        raise original_error(error) from error.cause.__cause__ if error.cause is not None else None


def _in_shape(keys: Any, results: Mapping[Any, Any]) -> Any:
    if isinstance(keys, list):
        return [_in_shape(key, results) for key in keys]
    return results[keys]
