"""Spans of OpenTelemetry around calls, in a session started with `_tracing_startup_hook=`. Any thread of a core.

The hook, a function named as "module:function", runs once in each driver and worker and sets up where spans go. From
then on a call begins a span where it is made and one where it runs, whose parent is the first: the context travels as a
keyword argument that no function sees. Off, which is the usual case, this is asked once for each remote function and
method when it is first used, and never on a call.
"""

from __future__ import annotations

import functools
import importlib
from typing import Any, Callable

CONTEXT = "_ray_trace_ctx"  # the keyword argument
on = False


def load(hook: str) -> Callable[[], Any]:
    """The function that a hook names.

    Raises: ImportError: OpenTelemetry, or the module, is not there.  ValueError: it names no function.
    """
    try:
        importlib.import_module("opentelemetry.trace")
    except ImportError as error:
        raise ImportError(
            "_tracing_startup_hook: spans are those of OpenTelemetry, and it can't be imported here: "
            f"{error}. Install opentelemetry-api and opentelemetry-sdk, also where workers run"
        ) from None
    module, _, name = hook.partition(":")
    try:
        found = getattr(importlib.import_module(module), name, None)
    except ImportError as error:
        raise ImportError(f"_tracing_startup_hook={hook!r}: module {module!r} can't be imported: {error}") from error
    if not callable(found):
        raise ValueError(f"_tracing_startup_hook={hook!r}: module {module!r} has no function {name!r}")
    function: Callable[[], Any] = found
    return function


def start(hook: str) -> None:
    """Runs the hook and turns tracing on. Raises: as load, and whatever the hook raises."""
    global on
    load(hook)()
    from ray._core import engine

    on = True
    engine.set_target_wrapper(running)


def stop() -> None:
    """In a driver whose session ends."""
    global on
    if on:
        from ray._core import engine

        on = False
        engine.set_target_wrapper(None)


def _api() -> tuple[Any, Any]:
    """Its modules propagate and trace, by import_module: type checkers shall not need them."""
    return importlib.import_module("opentelemetry.propagate"), importlib.import_module("opentelemetry.trace")


def submitting(submit: Callable[..., Any], name: str, kind: str) -> Callable[..., Any]:
    """submit, in a span."""
    propagate, trace = _api()

    attributes = {"ray.remote": kind, "ray.function": name}
    tracer = trace.get_tracer("ray")

    def traced(*args: Any, **kwargs: Any) -> Any:
        with tracer.start_as_current_span(f"{name} ray.remote", kind=trace.SpanKind.PRODUCER, attributes=attributes):
            context: dict[str, str] = {}
            propagate.inject(context)
            return submit(*args, **{**kwargs, CONTEXT: context})

    return traced


def checking(check: Callable[[Any, Any], None]) -> Callable[[Any, Any], None]:
    """check(args, kwargs) of arguments among which the context is."""
    return lambda args, kwargs: check(args, {name: value for name, value in kwargs.items() if name != CONTEXT})


def running(target: Callable[..., Any], name: str) -> Callable[..., Any]:
    """What a worker calls in the place of target: the same kind of function, in a span."""
    import inspect

    propagate, trace = _api()

    tracer = trace.get_tracer("ray")

    def span(kwargs: dict[str, Any]) -> Any:
        context = propagate.extract(kwargs.pop(CONTEXT, None) or {})
        return tracer.start_as_current_span(
            f"{name} ray.remote_worker", context=context, kind=trace.SpanKind.CONSUMER, attributes=_attributes(name)
        )

    if inspect.iscoroutinefunction(target):

        @functools.wraps(target)
        async def coroutine(*args: Any, **kwargs: Any) -> Any:
            with span(kwargs):
                return await target(*args, **kwargs)

        return coroutine
    if inspect.isasyncgenfunction(target):

        @functools.wraps(target)
        async def async_generator(*args: Any, **kwargs: Any) -> Any:
            with span(kwargs):
                async for item in target(*args, **kwargs):
                    yield item

        return async_generator
    if inspect.isgeneratorfunction(target):

        @functools.wraps(target)
        def generator(*args: Any, **kwargs: Any) -> Any:
            with span(kwargs):
                yield from target(*args, **kwargs)

        return generator

    def function(*args: Any, **kwargs: Any) -> Any:
        with span(kwargs):
            return target(*args, **kwargs)

    return function


def _attributes(name: str) -> dict[str, Any]:
    import os

    from ray._core import engine

    running_engine = engine.current()
    context = running_engine.context() if running_engine is not None else {}
    found = {"ray.function": name, "ray.pid": os.getpid()}
    for key in ("job_id", "node_id", "task_id", "actor_id", "worker_tag"):
        if context.get(key):
            found["ray.worker_id" if key == "worker_tag" else "ray." + key] = context[key].hex()
    return found


__all__ = ["checking", "load", "running", "start", "stop", "submitting"]
