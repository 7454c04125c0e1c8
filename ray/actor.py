"""Actors: a class whose instances each live in a worker process of their own, and the handles through which they are
called.

Runs in drivers and workers, in the caller's thread. `ActorClass` is what `@ray.remote` makes of a class; `.remote()` on
it asks for an instance and at once returns an `ActorHandle`. A handle holds the engine's ActorRef (which counts: an
actor whose last handle anywhere is gone finishes what was submitted, then exits) and the class's table of methods. A
handle found by name (`ray.get_actor`, `get_if_exists`) doesn't count, nor does the one that an actor has of itself.
`handle.method` is looked up once per handle: the ActorMethod found is kept in the handle's `__dict__`, and its `remote`
is the engine's own `submit`, so a call costs two attribute look-ups and no Python frame of ours.

When the actor's process dies, the engine fails or retries the calls; nothing here holds state about that.
"""

from __future__ import annotations

import pickle
import weakref
from typing import TYPE_CHECKING, Any, Callable, Generic, NamedTuple, NoReturn, TypeVar

from ray import _options
from ray._core import tracing
from ray._core.checkpoints import CLASS_DECIDES, Checkpoint, Checkpointable, CheckpointContext
from ray._signature import Signature
from ray.exceptions import ActorAlreadyExistsError
from ray.types import ActorID

if TYPE_CHECKING:
    from ray._core.engine import ActorRef, ActorTemplate
    from ray._local_mode import InlineActor, InlineActorTemplate
    from ray.dag.class_node import ClassMethodNode, ClassNode

__all__ = [
    "ActorClass", "ActorClassInheritanceException", "ActorHandle", "ActorMethod", "Checkpoint", "CheckpointContext",
    "Checkpointable", "exit_actor", "list_named_actors", "method",
]  # fmt: skip

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])
_ASYNC_FLAGS = 0x80 | 0x100 | 0x200  # CO_COROUTINE, CO_ITERABLE_COROUTINE, CO_ASYNC_GENERATOR
_METHOD_MARK = "__ray_method_options__"


def method(*args: Any, **options: Any) -> Callable[[F], F]:
    """Decorates a method of an actor class with options of its own: `@ray.method(num_returns=2)`."""
    if args or not options:
        raise TypeError("ray.method takes keyword options only, such as @ray.method(num_returns=2)")

    def mark(function: F) -> F:
        name = getattr(function, "__name__", "?")
        checked = _options.check(_options.METHOD, options, f"method {name}")
        _options.returns_of(_options.is_generator(function), checked, f"method {name}")
        setattr(function, _METHOD_MARK, checked)
        return function

    return mark


def exit_actor() -> NoReturn:
    """Ends the actor whose method calls this, on purpose: it isn't restarted, and the calling method returns nothing.

    Raises: TypeError: not called from an actor's method.
    """
    from ray._core import engine

    current = engine.current()
    if current is None or current.context().get("actor_id") is None:
        raise TypeError("ray.actor.exit_actor() was called outside an actor; it is for methods of an actor class")
    engine.exit_actor()
    raise AssertionError("engine.exit_actor returned")


# --- what a handle knows of a class ------------------------------------------------------------------------------


class ActorClassInheritanceException(TypeError):
    """A class was to inherit from an actor class."""


class MethodDescription:
    """One row of a class's table of methods."""

    __slots__ = ("generator", "name", "options", "signature")

    def __init__(self, name: str, signature: Signature, options: dict[str, Any], generator: bool | None) -> None:
        self.name: str = name
        self.signature: Signature = signature
        self.options: dict[str, Any] = options  # canonical, of _options.METHOD
        self.generator: bool | None = generator

    def __reduce__(self) -> tuple[Any, ...]:
        return MethodDescription, (self.name, self.signature, self.options, self.generator)


class ClassDescription:
    """The name and methods of an actor class: what is needed to call an instance without having the class."""

    __slots__ = ("__weakref__", "_pickled", "is_async", "key", "methods", "name")

    def __init__(self, key: bytes, name: str, methods: dict[str, MethodDescription], is_async: bool) -> None:
        self.key: bytes = key  # random, made with the ActorClass: equal keys mean one and the same description
        self.name: str = name
        self.methods: dict[str, MethodDescription] = methods
        self.is_async: bool = is_async
        self._pickled: bytes | None = None

    @classmethod
    def of(cls, actor_class: type) -> ClassDescription:
        import os

        methods: dict[str, MethodDescription] = {}
        is_async = False
        for klass in reversed(actor_class.__mro__[:-1]):  # without object
            for name, attribute in vars(klass).items():
                bound = isinstance(attribute, (staticmethod, classmethod))
                function = attribute.__func__ if bound else attribute
                if isinstance(function, type) or not callable(function):
                    methods.pop(name, None)  # a subclass may hide a method: `close = None`
                    continue
                flags = getattr(getattr(function, "__code__", None), "co_flags", 0)
                skip_first = not isinstance(attribute, staticmethod)
                signature = Signature.of(function, f"{actor_class.__name__}.{name}", skip_first)
                options = getattr(function, _METHOD_MARK, {})
                methods[name] = MethodDescription(name, signature, options, _options.is_generator(function))
                is_async = is_async or bool(flags & _ASYNC_FLAGS)
        made = cls(os.urandom(_KEY_BYTES), actor_class.__name__, methods, is_async)
        _descriptions[made.key] = made
        return made

    @property
    def pickled(self) -> bytes:
        """Its table of methods. Made once here and read once there, for handles are passed around by the thousand."""
        if self._pickled is None:
            table = (self.name, tuple(self.methods.values()), self.is_async)
            try:
                self._pickled = pickle.dumps(table, 5)
            except (
                pickle.PicklingError,
                AttributeError,
                TypeError,
            ):  # a class of the program's own in retry_exceptions
                from ray import cloudpickle

                self._pickled = cloudpickle.dumps(table, 5)
        return self._pickled

    def pack(self) -> bytes:
        """For those who make a handle without having got one: see unpack."""
        return self.key + self.pickled

    @staticmethod
    def unpack(packed: bytes) -> ClassDescription:
        return _description(packed[:_KEY_BYTES], packed[_KEY_BYTES:])

    def __reduce__(self) -> tuple[Any, ...]:
        return _description, (self.key, self.pickled)


_KEY_BYTES = 16

# By key: those made here and those met in pickles.
_descriptions: weakref.WeakValueDictionary[bytes, ClassDescription] = weakref.WeakValueDictionary()


def _description(key: bytes, pickled: bytes) -> ClassDescription:
    known = _descriptions.get(key)
    if known is None:
        name, methods, is_async = pickle.loads(pickled)
        known = ClassDescription(key, name, {m.name: m for m in methods}, is_async)
        known._pickled = pickled
        _descriptions[key] = known
    return known


# What every actor can be asked, besides its class's methods.
BUILT_IN = {
    "__ray_ready__": MethodDescription(
        "__ray_ready__", Signature("__ray_ready__", varargs=False, varkw=False), {}, False
    ),
    "__ray_call__": MethodDescription(
        "__ray_call__", Signature("__ray_call__", ("fn",), n_positional_only=1, n_required=1), {}, False
    ),
    "__ray_terminate__": MethodDescription(
        "__ray_terminate__", Signature("__ray_terminate__", varargs=False, varkw=False), {}, False
    ),
}


# --- calling -----------------------------------------------------------------------------------------------------


# What the engine calls the options of a call.
_ENGINE_NAMES = {
    "max_task_retries": "max_retries",
    "retry_exceptions": "retry_exceptions",
    "name": "name",
    "concurrency_group": "concurrency_group",
    "timeout_s": "timeout_s",
}


class ActorMethod:
    """One method of one actor, seen through one handle. `.remote(...)` submits a call and returns its ObjectRef(s)."""

    __slots__ = ("_class_name", "_method", "_options", "_ref", "remote")

    remote: Callable[..., Any]

    def __init__(
        self, ref: ActorRef | InlineActor, class_name: str, method: MethodDescription, options: dict[str, Any]
    ) -> None:
        # And not the handle: its __dict__ holds this object, and such a cycle would outlive the last `del handle`.
        self._ref = ref
        self._class_name = class_name
        self._method = method
        self._options = options
        returns, window = _options.returns_of(method.generator, options, f"method {method.name}")
        check = tracing.checking(method.signature.check) if tracing.on else method.signature.check
        engine_options: dict[str, Any] = {"arity": method.signature.bounds, "check": check}
        engine_options.update(window=window, generator=method.generator)
        for name, engine_name in _ENGINE_NAMES.items():
            if options.get(name) is not None:
                engine_options[engine_name] = options[name]
        if "enable_task_events" in options:
            engine_options["unlisted"] = not options["enable_task_events"]
        self.remote = ref.method(method.name, returns, engine_options)
        if tracing.on:
            self.remote = tracing.submitting(self.remote, f"{class_name}.{method.name}", "actor")

    def options(self, **options: Any) -> ActorMethod:
        """The same method with some options replaced."""
        checked = _options.check(_options.METHOD, options, f"method {self._method.name}")
        return ActorMethod(self._ref, self._class_name, self._method, {**self._options, **checked})

    def _remote(self, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
        """Older spelling of `.options(**options).remote(*args, **kwargs)`."""
        target = self.options(**options) if options else self
        return target.remote(*(args or ()), **(kwargs or {}))

    def bind(self, /, *args: Any, **kwargs: Any) -> ClassMethodNode:
        """A call that is written down and runs later, as part of a graph: see ray.dag."""
        from ray.dag.class_node import ClassMethodNode

        return ClassMethodNode(self, self._method.name, args, kwargs, {})

    def __call__(self, /, *args: Any, **kwargs: Any) -> NoReturn:
        name = self._method.name
        raise TypeError(f"{name} is a method of an actor and can't be called directly: use .{name}.remote(...)")

    def __reduce__(self) -> tuple[Any, ...]:
        return ActorMethod, (self._ref, self._class_name, self._method, self._options)

    def __repr__(self) -> str:
        return f"<ActorMethod {self._class_name}.{self._method.name} of {self._ref.actor_id.hex()}>"


class ActorHandle(Generic[T]):
    """Refers to one actor, which lives while any handle does. May be passed to tasks and actors, and inside objects;
    pickled by other means (`ray.cloudpickle.dumps`) the copy doesn't count, as one found by name doesn't.

    Besides the methods of its class every actor can be asked `__ray_ready__` (True once `__init__` is over),
    `__ray_call__` (runs `fn(self, *args, **kwargs)` in the actor) and `__ray_terminate__` (leaves after the calls
    that came before).
    """

    if TYPE_CHECKING:
        _ray_ref: ActorRef | InlineActor
        _ray_class: ClassDescription

    def __init__(self, ref: ActorRef | InlineActor, description: ClassDescription) -> None:
        self.__dict__["_ray_ref"] = ref
        self.__dict__["_ray_class"] = description

    def __getattr__(self, name: str) -> ActorMethod:
        # Only the first look-up of a name comes here.
        if name.startswith("_ray"):
            raise AttributeError(name)  # half unpickled or half copied: never recurse
        description = self._ray_class
        found = description.methods.get(name) or BUILT_IN.get(name)
        if found is None:
            hint = _options.nearest(name, list(description.methods))
            raise AttributeError(
                f"actor class {description.name} has no method {name!r}{hint} (only methods can be reached through a "
                "handle, not other attributes)"
            )
        made = ActorMethod(self._ray_ref, description.name, found, found.options)
        self.__dict__[name] = made
        return made

    @property
    def _actor_id(self) -> ActorID:
        return ActorID(self._ray_ref.actor_id)

    _ray_actor_id = _actor_id

    def __dir__(self) -> list[str]:
        return sorted({*object.__dir__(self), *self._ray_class.methods, *BUILT_IN})

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ActorHandle) and self._ray_ref.actor_id == other._ray_ref.actor_id

    def __hash__(self) -> int:
        return hash(self._ray_ref.actor_id)

    def __reduce__(self) -> tuple[Any, ...]:
        return ActorHandle, (self._ray_ref, self._ray_class)

    def __repr__(self) -> str:
        return f"Actor({self._ray_class.name}, {self._ray_ref.actor_id.hex()})"


# --- creating ----------------------------------------------------------------------------------------------------


# Classes whose template is bound to the engine that runs now.
_bound: weakref.WeakSet[ActorClass[Any]] = weakref.WeakSet()


def unbind() -> None:
    """The engine has ended: the next `.remote()` of each class binds it to the next one."""
    for actor_class in list(_bound):
        actor_class._made = None
    _bound.clear()


class ActorClassMetadata(NamedTuple):
    """What other libraries read of an actor class."""

    modified_class: type
    class_name: str


class ActorClass(Generic[T]):
    """A class whose instances are actors. Create one with `.remote(...)`, which takes the arguments of `__init__`."""

    def __init__(
        self, actor_class: type[T], options: dict[str, Any], description: ClassDescription | None = None
    ) -> None:
        """options: as _options.check returned them."""
        self._class = actor_class
        self._options = options
        self._description = description or ClassDescription.of(actor_class)
        self._made: ActorTemplate | InlineActorTemplate | None = None
        self._variants: _options.Variants[ActorClass[T]] = _options.Variants()
        self.__name__: str = actor_class.__name__
        self.__qualname__ = actor_class.__qualname__
        self.__module__ = actor_class.__module__
        self.__doc__ = actor_class.__doc__
        self.__wrapped__ = actor_class

    def remote(self, /, *args: Any, **kwargs: Any) -> ActorHandle[T]:
        """Asks for an actor and returns its handle at once; an error of its `__init__` is raised by the first call's
        result.

        Raises: TypeError: `__init__` can't be called with these arguments, or one of them can't be pickled.
            ValueError: its name= is taken in the namespace.
        Blocks: only for an answer of the node, and only if it is named.
        """
        self._signature().check(args, kwargs)
        if not self._options.get("get_if_exists"):
            return self._create(args, kwargs)
        while True:
            existing = self._existing()
            if existing is not None:
                return existing
            try:
                return self._create(args, kwargs)
            except ActorAlreadyExistsError:
                continue  # somebody else was faster: theirs is found now, unless it is gone already

    def _create(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> ActorHandle[T]:
        template = self._made
        if template is None:
            template = self._made = self._template()
            _bound.add(self)
        return ActorHandle(template.create(args, kwargs), self._description)

    def options(self, **options: Any) -> ActorClass[T]:
        """The same class with some options replaced; this one stays as it is."""
        return self._variants.get(options, self._variant)

    def _variant(self, options: dict[str, Any]) -> ActorClass[T]:
        merged = {**self._options, **_options.check(_options.ACTOR, options, f"actor class {self.__name__}")}
        made = ActorClass(self._class, merged, self._description)
        made._check_together()
        return made

    def _check_together(self) -> None:
        """Refuses options that make no sense beside each other, or for this class."""
        of, options = f"actor class {self.__name__}", self._options
        if options.get("get_if_exists") and not options.get("name"):
            raise ValueError(f"{of}: get_if_exists=True needs name=, by which the actor is looked up")
        _options.check_placement(options, of, _options.actor_resources(options)[0])
        interval = options.get("checkpoint_interval", 0)
        decides = issubclass(self._class, Checkpointable)
        if interval <= 0 and not decides:
            return
        if interval > 0:
            given = f"{of}: checkpoint_interval={interval}"
            if decides:
                raise ValueError(f"{given}, but as a Checkpointable the class itself says when: leave it out")
            if options.get("max_restarts") == 0:
                raise ValueError(
                    f"{given} with max_restarts=0: nobody would read the checkpoints; leave max_restarts out"
                )
            if hasattr(self._class, "__ray_save__") != hasattr(self._class, "__ray_restore__"):
                raise ValueError(f"{given} needs both __ray_save__ and __ray_restore__, or neither")
        if self._description.is_async or (options.get("max_concurrency") or 1) > 1:
            raise ValueError(
                f"{of}: its state can be checkpointed only between two calls, so they must run one at a time: no async "
                "methods, no max_concurrency"
            )

    def _remote(self, args: Any = None, kwargs: Any = None, **options: Any) -> ActorHandle[T]:
        """Older spelling of `.options(**options).remote(*args, **kwargs)`."""
        target = self.options(**options) if options else self
        return target.remote(*(args or ()), **(kwargs or {}))

    def bind(self, /, *args: Any, **kwargs: Any) -> ClassNode[T]:
        """An actor that each run of a graph makes: see ray.dag."""
        from ray.dag.class_node import ClassNode

        return ClassNode(self, args, kwargs)

    @property
    def __ray_actor_class__(self) -> type[T]:
        return self._class

    @property
    def __ray_metadata__(self) -> ActorClassMetadata:
        return ActorClassMetadata(self._class, self.__name__)

    def _signature(self) -> Signature:
        init = self._description.methods.get("__init__")
        if init is not None:
            return init.signature
        new = self._description.methods.get("__new__")
        return new.signature if new else Signature(self.__name__, varargs=False, varkw=False)

    def _existing(self) -> ActorHandle[T] | None:
        from ray import api

        try:
            return api.get_actor(self._options["name"], self._options.get("namespace"))
        except ValueError:
            return None  # nobody has the name: this call creates it

    def _template(self) -> ActorTemplate | InlineActorTemplate:
        from ray import _driver

        _driver.ensure_started()
        from ray._core.engine import ActorTemplate

        returns = {name: m.options.get("num_returns", 1) for name, m in self._description.methods.items()}
        asked = {name: m.options.get("concurrency_group") for name, m in self._description.methods.items()}
        _options.check_groups(self._options.get("concurrency_groups"), asked, f"actor class {self.__name__}")
        engine_options = _options.actor_template(self._options, self._description.is_async)
        engine_options["description"] = self._description.pack()
        if issubclass(self._class, Checkpointable):
            engine_options["checkpoints"] = CLASS_DECIDES
        engine_options["runtime_env"] = _driver.effective_env(self._options.get("runtime_env"))
        local = _driver.local_mode()
        if local is not None:
            return local.actor_template(self._class, self.__name__, engine_options)
        return ActorTemplate(self._class, self.__name__, returns, engine_options)

    def __call__(self, /, *args: Any, **kwargs: Any) -> NoReturn:
        raise TypeError(
            f"{self.__name__} is an actor class and can't be instantiated directly: use {self.__name__}.remote(...) "
            f"to start an actor, or {self.__name__}.__wrapped__(...) for a plain object in this process"
        )

    def __mro_entries__(self, bases: tuple[Any, ...]) -> NoReturn:
        raise ActorClassInheritanceException(
            f"{self.__name__} is an actor class, and a class can't inherit from one: inherit from a plain class, and "
            "decorate each class whose instances shall be actors with @ray.remote"
        )

    def __getattr__(self, name: str) -> Any:
        # Static methods, class methods and constants are as reachable as on the plain class.
        if name.startswith("_"):
            raise AttributeError(f"actor class has no attribute {name!r}")
        return getattr(self._class, name)

    def __reduce__(self) -> tuple[Any, ...]:
        return ActorClass, (self._class, self._options, self._description)

    def __repr__(self) -> str:
        return f"<ActorClass {self.__module__}.{self.__qualname__}>"


def make(actor_class: type[T], given: dict[str, Any]) -> ActorClass[T]:
    """What @ray.remote(**given) makes of actor_class."""
    if issubclass(actor_class, BaseException):
        raise TypeError(f"{actor_class.__name__} is an exception class; an actor class can't be one")
    checked = _options.check(_options.ACTOR, given, f"actor class {actor_class.__name__}")
    made = ActorClass(actor_class, checked)
    made._check_together()
    return made


# --- finding -----------------------------------------------------------------------------------------------------


def by_name(name: str, namespace: str | None) -> ActorHandle[Any]:
    """What ray.get_actor returns."""
    from ray import _driver, api

    _options.text("ray.get_actor: name", name)
    if namespace is not None:
        _options.text("ray.get_actor: namespace", namespace)
    engine = api.engine()
    where = namespace or _driver.namespace()
    local = _driver.local_mode()
    found = engine.rpc("actor_by_name", name, where) if local is None else local.named(name, where)
    if found is None:
        raise ValueError(
            f"no actor is named {name!r} in namespace {where!r}: it was not created with name={name!r} there, or it "
            "has ended. ray.util.list_named_actors(all_namespaces=True) shows which there are"
        )
    if not isinstance(found, dict):
        return ActorHandle(found, ClassDescription.unpack(found.description))
    from ray._core.engine import actor_from_parts

    ref = actor_from_parts(found["actor_id"], found["class_name"], None, found["calls"])
    return ActorHandle(ref, ClassDescription.unpack(found["description"]))


def itself() -> ActorHandle[Any] | None:
    """The handle of the actor that runs this, which keeps it alive only where it is passed on; None outside actors."""
    from ray import _driver, api

    engine, local = api.engine(), _driver.local_mode()
    own: Any = engine.own_actor() if local is None else local.own_actor()
    return None if own is None else ActorHandle(own[0], ClassDescription.unpack(own[1]))


def list_named_actors(all_namespaces: bool = False) -> list[str] | list[dict[str, str]]:
    """The names of the actors that live or are being made, oldest first.

    Args:
        all_namespaces: of all namespaces, and not only of the caller's.

    Returns: the names; with all_namespaces a dict with "name" and "namespace" of each.
    """
    from ray import _driver, api

    _options.boolean("ray.util.list_named_actors: all_namespaces", all_namespaces)
    engine, local = api.engine(), _driver.local_mode()
    found = engine.rpc("named_actors", all_namespaces) if local is None else local.all_named(all_namespaces)
    if all_namespaces:
        return [{"name": name, "namespace": namespace} for namespace, name in found]
    return [name for _, name in found]
