"""A function that runs in a worker process: what `@ray.remote` makes of a function. Lives in drivers and workers alike.

Nothing of ours runs on a call: the instance attribute `remote` is the engine's own `submit`, put there by the first
call (the class's method of that name, below, is what the first call finds). That first call is also where ray starts by
itself in a program that has not called `ray.init()`.

Threads: the attribute is set once; two threads that both make the first call build two equal templates and one is kept.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any, Callable, Generic, NoReturn, TypeVar, overload

from ray import _options
from ray._signature import Signature

if TYPE_CHECKING:
    from typing_extensions import ParamSpec

    from ray._core.engine import TaskTemplate
    from ray._local_mode import InlineTask
    from ray.dag.function_node import FunctionNode
    from ray.object_ref import ObjectRef

    P = ParamSpec("P")
else:
    P = TypeVar("P")  # typing has ParamSpec since Python 3.10 only, and while programs run nobody looks at it

Out = TypeVar("Out")  # what a call returns: ObjectRef[int], of a generator function ObjectRefGenerator[int]
_COROUTINE = 0x80  # CO_... flag of a code object


# Functions whose `remote` is bound to the engine that runs now.
_bound: weakref.WeakSet[RemoteFunction[..., Any]] = weakref.WeakSet()


def unbind() -> None:
    """The engine has ended: the next call of each function binds it to the next one."""
    for function in list(_bound):
        function.__dict__.pop("remote", None)
    _bound.clear()


class RemoteFunction(Generic[P, Out]):
    """Call it with `.remote(...)`: returns, at once, an ObjectRef of the result, a list of them if num_returns says so,
    or of a generator function an ObjectRefGenerator."""

    def __init__(self, function: Callable[P, Any], options: dict[str, Any]) -> None:
        """options: as _options.check returned them."""
        self._function = function
        self._options = options
        self._variants: _options.Variants[RemoteFunction[P, Out]] = _options.Variants()
        # By hand and not by functools.update_wrapper, which would also copy the function's __dict__ over our
        # attributes.
        self.__wrapped__ = function
        self.__name__: str = getattr(function, "__name__", type(function).__name__)
        self.__qualname__: str = getattr(function, "__qualname__", self.__name__)
        self.__module__ = getattr(function, "__module__", "__main__") or "__main__"
        self.__doc__ = getattr(function, "__doc__", None)

    # Arguments are those of the function. A call with a ref among its first five positional arguments is taken as it
    # is: no type says "the same parameters, each of them or a ref to it".
    @overload
    def remote(self, /, *args: P.args, **kwargs: P.kwargs) -> Out: ...
    @overload
    def remote(self, a: ObjectRef[Any], /, *more: Any, **kwargs: Any) -> Out: ...
    @overload
    def remote(self, a: Any, b: ObjectRef[Any], /, *more: Any, **kwargs: Any) -> Out: ...
    @overload
    def remote(self, a: Any, b: Any, c: ObjectRef[Any], /, *more: Any, **kwargs: Any) -> Out: ...
    @overload
    def remote(self, a: Any, b: Any, c: Any, d: ObjectRef[Any], /, *more: Any, **kwargs: Any) -> Out: ...
    @overload
    def remote(self, a: Any, b: Any, c: Any, d: Any, e: ObjectRef[Any], /, *more: Any, **kwargs: Any) -> Out: ...
    def remote(self, /, *args: Any, **kwargs: Any) -> Any:
        """Submits one task. Never blocks on the task; ObjectRefs among the arguments are replaced by their values
        there.

        Raises: TypeError: the function can't be called with these arguments, or one of them can't be pickled.
        """
        submit = self._submitter()
        self.__dict__["remote"] = submit
        _bound.add(self)
        return submit(*args, **kwargs)

    @overload
    def options(self, *, num_returns: Any, **options: Any) -> RemoteFunction[P, Any]: ...
    @overload
    def options(self, **options: Any) -> RemoteFunction[P, Out]: ...
    def options(self, **options: Any) -> Any:
        """The same function with some options replaced; this one stays as it is."""
        return self._variants.get(options, self._variant)

    def _variant(self, options: dict[str, Any]) -> RemoteFunction[P, Out]:
        merged = {**self._options, **_options.check(_options.TASK, options, f"remote function {self.__name__}")}
        _options.returns_of(_options.is_generator(self._function), merged, f"remote function {self.__name__}")
        _options.check_placement(merged, f"remote function {self.__name__}", _options.task_resources(merged))
        return RemoteFunction(self._function, merged)

    def _remote(self, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
        """Older spelling of `.options(**options).remote(*args, **kwargs)`."""
        target = self.options(**options) if options else self
        return target.remote(*(args or ()), **(kwargs or {}))

    def bind(self, /, *args: Any, **kwargs: Any) -> FunctionNode[Out]:
        """A call that is written down and runs later, as part of a graph: see ray.dag."""
        from ray.dag.function_node import FunctionNode

        return FunctionNode(self, args, kwargs)

    def __call__(self, /, *args: Any, **kwargs: Any) -> NoReturn:
        raise TypeError(
            f"{self.__name__} is a remote function and can't be called directly: use {self.__name__}.remote(...), "
            f"whose result ray.get() fetches, or {self.__name__}.__wrapped__(...) to run it here and now"
        )

    def _submitter(self) -> Callable[..., Any]:
        submit = self._template().submit
        from ray._core import tracing

        return tracing.submitting(submit, self.__name__, "task") if tracing.on else submit

    def _template(self) -> TaskTemplate | InlineTask:
        from ray import _driver

        _driver.ensure_started()
        from ray._core import tracing
        from ray._core.engine import TaskTemplate

        signature = Signature.of(self._function, self.__name__)
        engine_options = _options.task_template(self._options)
        generator = _options.is_generator(self._function)
        returns, window = _options.returns_of(generator, self._options, self.__name__)
        engine_options.update(num_returns=returns, window=window, generator=generator)
        engine_options["arity"] = signature.bounds
        engine_options["check"] = tracing.checking(signature.check) if tracing.on else signature.check
        engine_options["runtime_env"] = _driver.effective_env(self._options.get("runtime_env"))
        local = _driver.local_mode()
        make: Any = TaskTemplate if local is None else local.task_template
        return make(self._function, self._options.get("name") or self.__name__, engine_options)

    def __reduce__(self) -> tuple[Any, ...]:
        # Functions refer to other remote functions, and to themselves, as globals: this is how those travel.
        return RemoteFunction, (self._function, self._options)

    def __repr__(self) -> str:
        return f"<RemoteFunction {self.__module__}.{self.__qualname__}>"


def make(function: Any, given: dict[str, Any]) -> RemoteFunction[..., Any]:
    """What @ray.remote(**given) makes of function."""
    name = getattr(function, "__name__", type(function).__name__)
    flags = getattr(getattr(function, "__code__", None), "co_flags", 0)
    if flags & (_COROUTINE | _options.ASYNC_GENERATOR):
        raise ValueError(
            f"{name} is an async function, and a task has no event loop: make it a method of an actor class, or give "
            f"ray.remote a plain function that calls asyncio.run({name}())"
        )
    checked = _options.check(_options.TASK, given, f"remote function {name}")
    _options.returns_of(_options.is_generator(function), checked, f"remote function {name}")
    _options.check_placement(checked, f"remote function {name}", _options.task_resources(checked))
    return RemoteFunction(function, checked)
