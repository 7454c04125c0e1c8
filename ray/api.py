"""The public functions: check the arguments, then one call to the engine. Any thread of a driver or worker.

What is looked up on every call is `current()`, the engine of this process; there is none before `ray.init()`, after
`ray.shutdown()` and in a forked child, and then a function that needs one starts ray as `ray.init()` would. In a worker
there always is one. How a session starts and ends is in `_driver.py`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Callable, Protocol, TypeVar, overload

from ray import _aliases
from ray._core.engine import ObjectRefGenerator, current
from ray._driver import ensure_started, init, is_initialized, shutdown
from ray._native.references import ObjectRef
from ray._protocol.resources import UNITS

if TYPE_CHECKING:
    from ray._core.engine import Engine
    from ray.actor import ActorClass, ActorHandle
    from ray.remote_function import P, RemoteFunction

    class Decorator(Protocol):
        """What ray.remote(num_cpus=2) returns."""

        @overload
        def __call__(self, definition: type[T], /) -> ActorClass[T]: ...  # type: ignore[overload-overlap]
        @overload
        def __call__(  # type: ignore[overload-overlap]
            self, definition: Callable[P, Iterator[R]], /
        ) -> RemoteFunction[P, ObjectRefGenerator[R]]: ...
        @overload
        def __call__(self, definition: Callable[P, R], /) -> RemoteFunction[P, ObjectRef[R]]: ...

    class AnyReturns(Protocol):
        """What ray.remote(num_returns=2) returns: what a call returns depends on the number."""

        @overload
        def __call__(self, definition: type[T], /) -> ActorClass[T]: ...  # type: ignore[overload-overlap]
        @overload
        def __call__(self, definition: Callable[P, Any], /) -> RemoteFunction[P, Any]: ...


__all__ = [
    "available_resources",
    "cancel",
    "cluster_resources",
    "get",
    "get_actor",
    "init",
    "is_initialized",
    "kill",
    "nodes",
    "put",
    "remote",
    "shutdown",
    "wait",
]

R = TypeVar("R")
T = TypeVar("T")
_MISSING: Any = object()
_modules = sys.modules
FOREVER_S = 1e9  # 30 years: a longer timeout is none, and need not fit the engine's nanoseconds


def engine() -> Engine:
    """This process's engine, started if there is none."""
    ensure_started()
    found = current()
    assert found is not None
    return found


# --- defining ----------------------------------------------------------------------------------------------------


@overload
def remote(definition: type[T], /) -> ActorClass[T]: ...  # type: ignore[overload-overlap]
@overload
def remote(  # type: ignore[overload-overlap]
    definition: Callable[P, Iterator[R]], /
) -> RemoteFunction[P, ObjectRefGenerator[R]]: ...
@overload
def remote(definition: Callable[P, R], /) -> RemoteFunction[P, ObjectRef[R]]: ...
@overload
def remote(*, num_returns: Any, **options: Any) -> AnyReturns: ...
@overload
def remote(**options: Any) -> Decorator: ...
def remote(*args: Any, **options: Any) -> Any:
    """Makes a function a remote function, or a class an actor class: `@ray.remote`, or `@ray.remote(num_cpus=2)`.

    Options of both: num_cpus, num_gpus, resources, memory, accelerator_type, name, scheduling_strategy.
    Of functions: num_returns, max_calls, max_retries, retry_exceptions, timeout_s, priority.
    Of classes: max_restarts, max_task_retries, max_concurrency, concurrency_groups, allow_out_of_order_execution,
    namespace, lifetime, get_if_exists.

    Raises: TypeError, ValueError: an option is unknown or wrong, or the thing is neither a function nor a class.
    """
    if len(args) == 1 and not options:
        return _remote(args[0], {})
    if args or not options:
        raise TypeError(
            "ray.remote is used as @ray.remote, or with options, all by keyword, as @ray.remote(num_cpus=2); not with "
            + (f"{args!r} and {options!r}" if args else "empty brackets")
        )
    given = dict(options)
    return lambda definition: _remote(definition, given)


def _remote(definition: Any, given: dict[str, Any]) -> Any:
    from ray import actor, remote_function

    if isinstance(definition, type):
        return actor.make(definition, given)
    if isinstance(definition, (remote_function.RemoteFunction, actor.ActorClass)):
        raise TypeError(
            f"ray.remote: {definition!r} is remote already; {definition.__name__}.options(...) changes its options"
        )
    # Compiled functions have types of their own: they are known by having a name and being callable, which is more than
    # an ordinary object with __call__ has.
    if callable(definition) and hasattr(definition, "__name__"):
        return remote_function.make(definition, given)
    raise TypeError(f"ray.remote: {definition!r} is neither a function nor a class")


# --- objects -----------------------------------------------------------------------------------------------------


@overload
def get(object_refs: ObjectRef[R], timeout: float | None = None) -> R: ...
@overload
def get(object_refs: list[ObjectRef[R]], timeout: float | None = None) -> list[R]: ...
@overload
def get(*, timeout: float | None = None, **older: Any) -> Any: ...
def get(object_refs: Any = _MISSING, timeout: float | None = None, **older: Any) -> Any:
    """The value of one ref, or the values of a list of refs in its order.

    Args: timeout: seconds; None waits for ever, 0 takes only what is there.
    Raises: GetTimeoutError: not all were there in time.  The task's own exception, if it failed.  ValueError: not refs.
    Blocks: yes; the caller's CPUs are lent out meanwhile.
    """
    if older or object_refs is _MISSING:
        object_refs = _older("get", object_refs, older)
    if timeout is not None:
        timeout = _timeout("get", timeout)
    running = current()
    if running is None:
        running = _engine_for("get", object_refs)
    if "asyncio" in _modules and timeout != 0:
        _warn_in_event_loop("ray.get()", "`await ref`, or `await asyncio.gather(*refs)`")
    try:
        if type(object_refs) is ObjectRef:
            return running.get_one(object_refs, timeout)
        if type(object_refs) is not list:
            if isinstance(object_refs, ObjectRefGenerator):
                return object_refs  # its refs come one by one: as in Ray, there is nothing to get yet
            object_refs = _list_for_get(object_refs)
        return running.get(object_refs, timeout)
    except Exception as error:
        raise _tidied(error, object_refs)  # noqa: B904  the same exception, so it is no cause of itself


def put(value: T, *, _replicas: int = 1, **older: Any) -> ObjectRef[T]:
    """Stores a value, which from then on never changes, and returns a ref to it.

    Args:
        _replicas: nodes whose stores are to have it, this one included: what is put is nobody's result and can't be
            made again, so it is lost with the last of them. When put returns, the copies are there. One that is lost
            later is made anew on another node, as long as this process lives and there is one. If fewer nodes can take
            it, a RuntimeWarning says how many have it, and why; the others get it when they join.
    Raises: TypeError: value is a ref, or can't be pickled, or _replicas is no int; ValueError: _replicas is not
        positive; ObjectStoreFullError: there is no room and none will come.
    Blocks: only while the store is full, or for copies on other nodes.
    """
    if _replicas != 1:
        return _put_replicated(value, _replicas, older)
    if older:
        _older("put", value, older)
    if isinstance(value, ObjectRef):
        raise TypeError(
            f"ray.put: {value!r} is an ObjectRef already; pass it on as it is, or put it into a list if a ref "
            "to a ref is wanted"
        )
    running = current()
    if running is None:
        running = engine()
    return running.put(value)


def _put_replicated(value: T, replicas: int, older: dict[str, Any]) -> ObjectRef[T]:
    if type(replicas) is not int:
        raise TypeError(f"ray.put: _replicas is the number of nodes that are to have the value, not {replicas!r}")
    if replicas < 1:
        raise ValueError(
            f"ray.put: _replicas={replicas} is not positive; 1 is this node alone, 2 survives the loss of any one node"
        )
    if older:
        _older("put", value, older)
    if replicas == 1 or isinstance(value, ObjectRef):
        return put(value)
    running = current()
    if running is None:
        running = engine()
    ref, copies, failures = running.put_replicated(value, replicas)
    if copies < replicas:
        import warnings

        why = "; ".join(f"node {number}: {text}" for number, text in failures.items())
        warnings.warn(
            f"ray.put: _replicas={replicas}, but the value is on {copies} {'node' if copies == 1 else 'nodes'} "
            f"({why or 'the cluster has no more nodes'}). What is missing is made up for when a node joins",
            RuntimeWarning,
            stacklevel=3,
        )
    return ref


def wait(
    object_refs: list[ObjectRef[R]] = _MISSING,
    num_returns: int = 1,
    timeout: float | None = None,
    fetch_local: bool = True,
    **older: Any,
) -> tuple[list[ObjectRef[R]], list[ObjectRef[R]]]:
    """Waits until num_returns of the refs are ready, or timeout seconds have passed. A generator (ObjectRefGenerator)
    among them is ready when its next ref is there, or its end.

    Args:
        object_refs: distinct.  timeout: None waits for ever, 0 polls.
        fetch_local: what is ready but in the memory of another node, or on disk, is brought here as far as there is
            room, so that a get after this finds it; that is not waited for. False starts nothing.
    Returns: (ready, rest), each in the order given; at most num_returns are in ready.
    Raises: TypeError, ValueError: an argument is not as said above.
    Blocks: yes; the caller's CPUs are lent out meanwhile.
    """
    if older or object_refs is _MISSING:
        object_refs = _older("wait", object_refs, older)
    if timeout is not None:
        timeout = _timeout("wait", timeout)
    if type(object_refs) is not list:
        given = "a single ObjectRef: put it into a list" if isinstance(object_refs, ObjectRef) else repr(object_refs)
        raise TypeError(f"ray.wait: expected a list of ObjectRefs, got {given}")
    if type(num_returns) is not int:
        num_returns = _whole("wait", "num_returns", num_returns)
    if not object_refs:
        return [], []
    if not 0 < num_returns <= len(object_refs):
        raise ValueError(
            f"ray.wait: num_returns={num_returns}: expected 1 to {len(object_refs)}, the number of refs given"
        )
    running = current()
    if running is None:
        running = _engine_for("wait", object_refs)
    if "asyncio" in _modules and timeout != 0:
        _warn_in_event_loop("ray.wait()", "`await ray.wait_async(refs)`")
    try:
        return running.wait(object_refs, num_returns, timeout, fetch_local)
    except TypeError:
        _check_refs("wait", object_refs, TypeError)  # names the element, if that is what it was
        raise


async def wait_async(
    object_refs: list[ObjectRef[R]], num_returns: int = 1, timeout: float | None = None, fetch_local: bool = True
) -> tuple[list[ObjectRef[R]], list[ObjectRef[R]]]:
    """`ray.wait` for coroutines: the event loop goes on meanwhile, and one future waits for all the refs together.

    Args:
        object_refs: distinct.  timeout: seconds; None waits for ever, 0 polls.
        fetch_local: as in `ray.wait`.
    Returns: (ready, rest), each in the order given; at most num_returns are in ready.
    Raises: TypeError, ValueError: an argument is wrong.
    """
    if timeout is not None:
        timeout = _timeout("wait_async", timeout)
    refs = list(object_refs) if type(object_refs) is list else object_refs  # it may be changed while we wait
    ready, rest = wait(refs, num_returns, 0, fetch_local)
    if len(ready) == num_returns or not rest or timeout == 0:
        return ready, rest
    from asyncio import get_running_loop

    from ray._core.engine import stop_waiting, when_ready

    settled, waiter = when_ready(refs, num_returns)

    def time_is_over() -> None:
        if not settled.done():
            settled.set_result(None)

    timer = None if timeout is None else get_running_loop().call_later(timeout, time_is_over)
    try:
        await settled
    finally:
        stop_waiting(waiter)
        if timer is not None:
            timer.cancel()
    return wait(refs, num_returns, 0, fetch_local)


_warned = False


def _warn_in_event_loop(call: str, instead: str) -> None:
    """Says, once, that a blocking call in a coroutine holds up every other coroutine of its loop."""
    global _warned
    if _warned:
        return
    running_loop = getattr(_modules["asyncio"], "_get_running_loop", None)
    if running_loop is not None and running_loop() is not None:
        _warned = True
        import logging

        logging.getLogger("ray").warning("%s blocks the event loop it was called in; use %s instead", call, instead)


def _older(function: str, object_refs: Any, older: dict[str, Any]) -> Any:
    """The refs, if they or something else came under an older name."""
    resolved = _aliases.resolve(_aliases.CALLS, older, f"ray.{function}")
    unknown = [name for name in resolved if name != "object_refs"]
    if unknown:
        raise TypeError(f"ray.{function}() got an unexpected keyword argument {unknown[0]!r}")
    if "object_refs" in resolved:
        if object_refs is not _MISSING:
            raise TypeError(f"ray.{function}() got multiple values for argument 'object_refs'")
        return resolved["object_refs"]
    if object_refs is _MISSING:
        raise TypeError(f"ray.{function}() missing 1 required positional argument: 'object_refs'")
    return object_refs


def _whole(function: str, name: str, value: Any) -> int:
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"ray.{function}: {name}={value!r}: expected a whole number")
    return int(value.__index__())


def _timeout(function: str, timeout: Any) -> float | None:
    if type(timeout) is not float and type(timeout) is not int:
        if isinstance(timeout, (bool, str, bytes)) or not hasattr(timeout, "__float__"):
            raise TypeError(f"ray.{function}: timeout={timeout!r}: expected a number of seconds, or None")
    seconds = float(timeout)
    if not seconds >= 0:  # and so not NaN either
        raise ValueError(
            f"ray.{function}: timeout={timeout!r}: expected a number of seconds >= 0, or None to wait for ever"
        )
    return seconds if seconds < FOREVER_S else None


def _tidied(error: Exception, object_refs: Any) -> Exception:
    """The error of a get as a person should see it."""
    from ray.exceptions import RayError

    if isinstance(error, RayError):
        # The frames between the user's line and the error are all of the compiled engine, and say nothing.
        return error if "RAY_INTERNAL_FRAMES" in os.environ else error.with_traceback(None)
    if isinstance(error, TypeError) and isinstance(object_refs, list):
        _check_refs("get", object_refs, ValueError)  # names the element, if that is what it was
    return error


def _list_for_get(object_refs: Any) -> list[Any]:
    if isinstance(object_refs, list):
        return list(object_refs)
    raise ValueError(
        f"ray.get: expected an ObjectRef or a list of ObjectRefs, got "
        f"{type(object_refs).__name__} {_short(object_refs)}"
    )


def _check_refs(function: str, object_refs: Sequence[Any], kind: type[Exception]) -> None:
    for i, ref in enumerate(object_refs):
        if not isinstance(ref, ObjectRef) and not (function == "wait" and isinstance(ref, ObjectRefGenerator)):
            raise kind(
                f"ray.{function}: expected a list of ObjectRefs, and element {i} is {type(ref).__name__} {_short(ref)}"
            ) from None


def _engine_for(function: str, object_refs: Any) -> Engine:
    """ray isn't running: refs, if these are any, come from a session that has ended."""
    refs = object_refs if isinstance(object_refs, list) else [object_refs]
    if any(isinstance(ref, ObjectRef) for ref in refs):
        from ray.exceptions import RaySystemError

        raise RaySystemError(
            f"ray.{function}: ray isn't running in this process, and these refs belong to a session that has ended "
            "(or to the process that this one was forked from); call ray.init() and make them anew"
        )
    return engine()


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


# --- ending things -----------------------------------------------------------------------------------------------


def kill(actor: ActorHandle[Any], *, no_restart: bool = True) -> None:
    """Ends an actor at once, without letting it finish; calls not yet answered fail with ActorDiedError.

    Args: no_restart: False lets max_restarts bring it back.
    Raises: ValueError: not a handle of an actor.
    """
    from ray.actor import ActorHandle

    if not isinstance(actor, ActorHandle):
        hint = "; ray.cancel() is for tasks" if isinstance(actor, ObjectRef) else ""
        raise ValueError(f"ray.kill: expected the handle of an actor, got {type(actor).__name__} {_short(actor)}{hint}")
    if not isinstance(no_restart, bool):
        raise TypeError(f"ray.kill: no_restart={no_restart!r}: expected True or False")
    from ray import _driver

    running, local = engine(), _driver.local_mode()
    who: Any = actor._ray_ref
    (running if local is None else local).kill_actor(who, no_restart)


def cancel(
    object_ref: ObjectRef[Any] | ObjectRefGenerator[Any], *, force: bool = False, recursive: bool = True
) -> None:
    """Cancels the task that makes this object; `get` of it then raises TaskCancelledError. One that has finished stays
    so. Given an ObjectRefGenerator, its task: what has come may still be taken, and the last ref raises.

    Args:
        force: kill the worker instead of raising KeyboardInterrupt in the task.  Not for actors.
        recursive: cancel the tasks that it has submitted, too.
    Raises: TypeError: not an ObjectRef.  ValueError: force on a call to an actor.
    """
    if isinstance(object_ref, ObjectRefGenerator):
        object_ref = object_ref.completed()
    if not isinstance(object_ref, ObjectRef):
        hint = "; ray.kill() is for actors" if hasattr(object_ref, "_ray_ref") else ""
        raise TypeError(
            f"ray.cancel: expected an ObjectRef, got {type(object_ref).__name__} {_short(object_ref)}{hint}"
        )
    for name, value in (("force", force), ("recursive", recursive)):
        if not isinstance(value, bool):
            raise TypeError(f"ray.cancel: {name}={value!r}: expected True or False")
    running = current()
    if running is None:
        running = _engine_for("cancel", object_ref)
    running.cancel(object_ref, force, recursive)


def get_actor(name: str, namespace: str | None = None) -> ActorHandle[Any]:
    """A handle of the actor that was created with this name=.

    Raises: ValueError: there is none.
    """
    from ray import actor

    return actor.by_name(name, namespace)


# --- asking ------------------------------------------------------------------------------------------------------


def nodes() -> list[dict[str, Any]]:
    """The machines of the cluster, each as a dict.

    Its keys: "NodeID", "Alive" (and "alive"), "Resources", "Labels", "NodeName", "NodeManagerAddress",
    "NodeManagerHostname", "DeathReason" and "DeathReasonMessage"; "NodeManagerPort" and "ObjectManagerPort", 0 where
    there is none; of the machine that asks also "RayletSocketName", "ObjectStoreSocketName" and "MetricsExportPort".
    """
    running = engine()
    found: list[dict[str, Any]] = running.rpc("nodes")
    for node in found:
        own = node["NodeID"] == running.info["node_id"].hex()
        node.setdefault("NodeManagerPort", 0)
        node.setdefault("ObjectManagerPort", 0)
        node["alive"], node["DeathReasonMessage"] = node["Alive"], str(node["DeathReason"] or "")
        node["RayletSocketName"] = f"{running.session_dir}/node.sock" if own else ""
        node["ObjectStoreSocketName"] = running.info["plasma_socket"] if own else ""
        node["MetricsExportPort"] = (running.info.get("metrics_export_port") or 0) if own else 0
    return found


def cluster_resources() -> dict[str, float]:
    """What all machines have together, by resource."""
    return _in_wholes(engine().rpc("cluster_resources"))


def available_resources() -> dict[str, float]:
    """What nobody holds at the moment, by resource."""
    return _in_wholes(engine().rpc("available_resources"))


def _in_wholes(units_by_name: dict[str, int]) -> dict[str, float]:
    return {name: units / UNITS for name, units in units_by_name.items()}


def errors_of_this_job() -> list[dict[str, Any]]:
    running = engine()
    found: list[dict[str, Any]] = running.rpc("errors", running.context()["job_id"])
    return found
