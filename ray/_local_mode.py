"""Local mode: `ray.init(local_mode=True)`, or `driver_mode=ray.PYTHON_MODE`. Every call runs in the driver, at once.

For debugging: a breakpoint in a task stops the program itself. There is a session as always, so that objects, errors,
resources and names are the real ones; but what `.remote()` would have sent to a worker runs before it returns, in the
thread that called. What passes through a call is copied as it would be on its way to a worker, so a program that
relies on sharing fails here as it does there. What can't be the same: nothing runs at the same time as anything else,
nothing can be cancelled, and the globals of a function are the driver's own.

An actor is a plain object that lives while a handle of it does, or, with lifetime="detached", while the session does.
Two threads that call one actor take turns; an actor that calls itself goes right in, where elsewhere it would wait for
itself.
"""

from __future__ import annotations

import contextlib
import contextvars
import os
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from ray import exceptions
from ray._core import engine as engine_module
from ray._native.references import ObjectRef

if TYPE_CHECKING:
    from ray._core.engine import Engine

_running: contextvars.ContextVar[dict[str, Any]] = contextvars.ContextVar("ray call", default={})  # noqa: B039  never changed


class LocalMode:
    """What runs inline in this driver: the calls that are under way, and the actors."""

    def __init__(self, engine: Engine, namespace: str) -> None:
        self.engine = engine
        self.namespace = namespace
        self.actors: weakref.WeakValueDictionary[bytes, InlineActor] = weakref.WeakValueDictionary()
        self.names: weakref.WeakValueDictionary[tuple[str, str], InlineActor] = weakref.WeakValueDictionary()
        self.detached: set[InlineActor] = set()
        engine.local_context = _running.get

    def copied(self, value: Any) -> Any:
        """A value as it would be in a worker: what is mutable is another object there. A ref becomes what it refers to.

        Raises: the error that the ref refers to.  TypeError: it can't be pickled.
        """
        return self.engine.get_one(value if isinstance(value, ObjectRef) else self.engine.put(value), None)

    @contextlib.contextmanager
    def running(self, **about: Any) -> Iterator[None]:
        """Inside it, get_runtime_context() tells of that call."""
        token = _running.set(about)
        try:
            yield
        finally:
            _running.reset(token)

    def answer(self, call: Call, produce: Callable[[], Any], actor: InlineActor | None = None) -> Any:
        """Runs a call and returns its refs: what produce() returned, or the error that it raised, in each.

        KeyboardInterrupt passes through: it is the person at the terminal, who means this process.
        """
        seq = self.engine.reserve()
        task_id = self.engine.tag + seq.to_bytes(8, "little")
        about = {"task_id": task_id, "task_name": call.name, "resources": call.resources}
        if actor is not None:
            about["actor_id"] = actor.actor_id
        tries_left = call.max_retries
        while True:
            try:
                with self.running(**about):
                    value = produce()
                return self._refs(call, seq, value)
            except (KeyboardInterrupt, GeneratorExit, engine_module._ActorExit):
                raise
            except BaseException as error:
                if isinstance(error, Exception) and tries_left != 0 and call.retries(error):
                    tries_left -= 1
                    continue
                return self._failed(call, seq, error, actor)

    def _refs(self, call: Call, seq: int, value: Any) -> Any:
        count = call.num_returns
        if count == 0:
            return None
        if count == 1:
            return self.engine.settled(seq, 0, value, f"the value returned by {call.name}()")
        values = value if isinstance(value, (tuple, list)) else None
        if values is None and hasattr(value, "__iter__") and not isinstance(value, (str, bytes, dict, set)):
            values = list(value)
        if values is None or len(values) != count:
            got = f"a {type(value).__name__}" if values is None else f"{len(values)} values"
            raise ValueError(
                f"{call.name}() was declared with num_returns={count} and must return a tuple or list of that length, "
                f"but returned {got}"
            )
        return [
            self.engine.settled(seq, i, one, f"value {i} returned by {call.name}()") for i, one in enumerate(values)
        ]

    def _failed(self, call: Call, seq: int, error: BaseException, actor: InlineActor | None = None) -> Any:
        name: str | None = call.name
        if isinstance(error, SystemExit):
            said = f"{call.name}() called sys.exit({error.code!r}), which would have ended its worker"
            error, name = exceptions.WorkerCrashedError(said), None
        elif isinstance(error, exceptions.ActorDiedError) and actor is not None and actor.instance is None:
            name = None  # the call has not run: the error is its own
        shown = None if actor is None or actor.instance is None else repr(actor.instance)
        refs = [self.engine.failed(seq, i, error, name, shown) for i in range(call.num_returns)]
        return None if not refs else refs[0] if call.num_returns == 1 else refs

    # -- in the place of the engine's -------------------------------------------------------------------------------

    def task_template(self, function: Callable[..., Any], name: str, options: dict[str, Any]) -> InlineTask:
        _refuse_env(name, options)
        return InlineTask(self, function, name, options)

    def actor_template(self, actor_class: type, name: str, options: dict[str, Any]) -> InlineActorTemplate:
        _refuse_env(name, options)
        return InlineActorTemplate(self, actor_class, name, options)

    def kill_actor(self, actor: InlineActor, no_restart: bool) -> None:
        actor.kill(no_restart)

    def named(self, name: str, namespace: str) -> InlineActor | None:
        return self.names.get((namespace, name))

    def all_named(self, all_namespaces: bool) -> list[tuple[str, str]]:
        return [key for key in self.names.keys() if all_namespaces or key[0] == self.namespace]

    def own_actor(self) -> tuple[InlineActor, bytes] | None:
        """Of the actor whose method runs, as Engine.own_actor."""
        actor = self.actors.get(_running.get().get("actor_id", b""))
        return None if actor is None else (actor, actor.description)

    # -- actors -------------------------------------------------------------------------------------------------------

    def create(
        self, actor_class: type, class_name: str, options: dict[str, Any], args: Any, kwargs: dict[str, Any]
    ) -> InlineActor:
        """Raises: ActorAlreadyExistsError: its name is taken."""
        name = options.get("name") or ""
        key = (options.get("namespace") or self.namespace, name)
        if name and key in self.names:
            raise exceptions.ActorAlreadyExistsError(
                f"an actor named {name!r} exists already in namespace {key[0]!r}: choose another name, or pass "
                "get_if_exists=True to get that one"
            )
        actor = InlineActor(self, actor_class, class_name, options, args, kwargs)
        self.actors[actor.actor_id] = actor
        if name:
            self.names[key] = actor
        if options.get("detached"):
            self.detached.add(actor)
        return actor

    def forget(self, actor: InlineActor) -> None:
        """It is dead: its name is free again."""
        self.detached.discard(actor)
        for key, named in list(self.names.items()):
            if named is actor:
                del self.names[key]


class Call:
    """What is known of a call before it is made: of a remote function, or of an actor's method."""

    __slots__ = ("arity", "check", "max_retries", "name", "num_returns", "resources", "retry_exceptions")

    def __init__(self, name: str, num_returns: Any, options: dict[str, Any]) -> None:
        if not isinstance(num_returns, int):
            raise NotImplementedError(
                f"{name}: num_returns={num_returns!r} is not built in local mode in this version of ray; leave "
                "local_mode=True out"
            )
        self.name: str = name
        self.num_returns: int = num_returns
        self.arity: Any = options["arity"]
        self.check: Any = options["check"]
        self.resources: dict[str, int] = options.get("resources") or {}
        self.max_retries: Any = options.get("max_retries", 0)
        self.retry_exceptions: Any = options.get("retry_exceptions", False)

    def retries(self, error: Exception) -> bool:
        wanted = self.retry_exceptions
        return wanted is True or (bool(wanted) and isinstance(error, tuple(wanted)))

    def bound(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Raises: TypeError: the function can't be called so."""
        fewest, most = self.arity
        if kwargs or not fewest <= len(args) <= most:
            self.check(args, kwargs)


class InlineTask:
    """In the place of the engine's TaskTemplate."""

    def __init__(self, mode: LocalMode, function: Callable[..., Any], name: str, options: dict[str, Any]) -> None:
        self._mode = mode
        self._function = function
        self._call = Call(name, options["num_returns"], options)

    def submit(self, /, *args: Any, **kwargs: Any) -> Any:
        self._call.bound(args, kwargs)
        copied = self._mode.copied

        def produce() -> Any:
            return self._function(*map(copied, args), **{name: copied(value) for name, value in kwargs.items()})

        return self._mode.answer(self._call, produce)


class InlineActor:
    """In the place of the engine's ActorRef: the actor itself. One an actor, whoever refers to it."""

    def __init__(
        self, mode: LocalMode, actor_class: type, name: str, options: dict[str, Any], args: Any, kwargs: Any
    ) -> None:
        self.actor_id: bytes = os.urandom(16)
        self.class_name = name
        self.options = options
        self.description: bytes = options["description"]
        self.instance: Any = None  # None: dead
        self._mode = mode
        self._class = actor_class
        self._arguments = args, kwargs
        self._restarts_left = options.get("max_restarts", 0)
        self._death: BaseException | None = None
        self._turn = threading.RLock()
        self._make()

    @property
    def state(self) -> str:
        return "DEAD" if self.instance is None else "ALIVE"

    def _make(self) -> None:
        copied = self._mode.copied
        args, kwargs = self._arguments
        try:
            with self._mode.running(actor_id=self.actor_id, resources=self.options.get("resources") or {}):
                self.instance = self._class(*map(copied, args), **{k: copied(v) for k, v in kwargs.items()})
        except Exception as error:
            # As a worker would send it, so that whoever calls gets the same.
            ref = self._mode.engine.failed(self._mode.engine.reserve(), 0, error, f"{self.class_name}.__init__", None)
            try:
                self._mode.engine.get_one(ref, None)
            except Exception as remote:
                died = exceptions.ActorDiedError(
                    f"the actor {self.class_name} (id {self.actor_id.hex()}) died in its constructor:\n{remote}"
                )
                died.cause = died.__cause__ = getattr(remote, "cause", None) or remote
                self._death = died

    def end(self, why: str) -> None:
        """Calls from now on fail."""
        self.instance = None
        self._death = exceptions.ActorDiedError(
            f"the actor {self.class_name} (id {self.actor_id.hex()}) is dead: {why}"
        )
        self._mode.forget(self)

    def kill(self, no_restart: bool) -> None:
        if not no_restart and self._restarts_left != 0 and self.instance is not None:
            self._restarts_left -= 1
            self._make()
            return
        self.end("ray.kill() was called on it")

    def method(self, name: str, num_returns: Any, options: dict[str, Any]) -> Callable[..., Any]:
        call = Call(f"{self.class_name}.{name}", num_returns, options)

        def submit(*args: Any, **kwargs: Any) -> Any:
            call.bound(args, kwargs)
            try:
                return self._mode.answer(call, lambda: self._run(name, args, kwargs), self)
            except engine_module._ActorExit:
                self.end("it has left by exit_actor()")
                left = exceptions.ActorDiedError(f"the actor {self.class_name} has left by exit_actor()")
                return self._mode._failed(call, self._mode.engine.reserve(), left, self)

        return submit

    def _run(self, name: str, args: Any, kwargs: Any) -> Any:
        with self._turn:
            if self.instance is None:
                assert self._death is not None
                raise self._death
            copied = self._mode.copied
            given = [copied(value) for value in args]
            if name == "__ray_ready__":
                return True
            if name == "__ray_terminate__":
                self.end("__ray_terminate__() was called on it")
                return None
            if name == "__ray_call__":
                function, *given = given
                given.insert(0, self.instance)
            else:
                function = getattr(self.instance, name)
            result = function(*given, **{key: copied(value) for key, value in kwargs.items()})
            return _finished(result) if hasattr(result, "__await__") else result

    def __reduce__(self) -> tuple[Any, ...]:
        return find, (self.actor_id,)


class InlineActorTemplate:
    """In the place of the engine's ActorTemplate."""

    def __init__(self, mode: LocalMode, actor_class: type, name: str, options: dict[str, Any]) -> None:
        self._mode = mode
        self._class = actor_class
        self._name = name
        self._options = options

    def create(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> InlineActor:
        return self._mode.create(self._class, self._name, self._options, args, kwargs)


def _refuse_env(name: str, options: dict[str, Any]) -> None:
    if options.get("runtime_env"):
        raise NotImplementedError(
            f"{name}: a runtime_env is of a process, and in local mode everything runs in the driver: leave one "
            "of the two out"
        )


def find(actor_id: bytes) -> InlineActor:
    """What a pickled handle is of."""
    from ray import _driver

    mode = _driver.local_mode()
    actor = None if mode is None else mode.actors.get(actor_id)
    if actor is None:
        raise exceptions.ActorDiedError(f"actor {actor_id.hex()} ran inline in a driver, and has ended")
    return actor


def _finished(coroutine: Any) -> Any:
    """What a coroutine of an asyncio actor returns: run to its end, on a loop of its own."""
    import asyncio

    async def run() -> Any:
        return await coroutine

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(run())
    # The caller is a coroutine itself, and a loop can't be entered twice: another thread runs this one meanwhile.
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(contextvars.copy_context().run, asyncio.run, run()).result()
