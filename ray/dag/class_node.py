"""An actor in a graph, and calls of its methods.

An actor that a graph makes is made anew by each run. Calls of its methods run in the order in which they were bound: a
run of one of them includes those bound before it. Of an actor that lives already (`handle.method.bind()`) only the
calls that the graph names are made.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, TypeVar

from ray.dag.dag_node import DAGNode, nodes_in
from ray.dag.input_node import InputAttributeNode, InputNode

if TYPE_CHECKING:
    from ray.actor import ActorClass, ActorHandle, ActorMethod  # noqa: F401  (in quotes below)

T = TypeVar("T")


class ClassNode(DAGNode["ActorHandle[T]"], Generic[T]):
    """What `Actor.bind(...)` returns: an actor that each run makes. `node.method.bind(...)` is a call of it."""

    def __init__(self, actor_class: ActorClass[T], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Raises: ValueError: an argument is the graph's input."""
        super().__init__(args, kwargs)
        if any(isinstance(node, (InputNode, InputAttributeNode)) for node in (*nodes_in(args), *nodes_in(kwargs))):
            raise ValueError(
                f"{actor_class.__name__}.bind(): an actor can't be made from the graph's InputNode: bind a method "
                "of it to that"
            )
        self._class = actor_class
        self._last_call: ClassMethodNode | None = None

    def _run(self, results: dict[DAGNode[Any], Any]) -> Any:
        args, kwargs = self._arguments(results)
        return self._class.remote(*args, **kwargs)

    def get_options(self) -> dict[str, Any]:
        """The options that the class was given."""
        return dict(self._class._options)

    def __getattr__(self, name: str) -> BoundLater:
        if name.startswith("_"):
            raise AttributeError(name)  # half unpickled or half copied: never recurse
        methods = self._class._description.methods
        if name not in methods:
            from ray import _options

            hint = _options.nearest(name, list(methods))
            raise AttributeError(f"actor class {self._class.__name__} has no method {name!r}{hint}")
        return BoundLater(self, name, {})

    def __repr__(self) -> str:
        return f"<ClassNode {self._class.__name__}>"


class BoundLater:
    """A method of an actor that is still to be made: `.bind(...)` makes a node of a call."""

    __slots__ = ("_actor", "_name", "_options")

    def __init__(self, actor: ClassNode[Any], name: str, options: dict[str, Any]) -> None:
        self._actor = actor
        self._name = name
        self._options = options

    def options(self, **options: Any) -> BoundLater:
        """The same with options of the call, such as num_returns. They are checked when the graph runs."""
        return BoundLater(self._actor, self._name, {**self._options, **options})

    def bind(self, /, *args: Any, **kwargs: Any) -> ClassMethodNode:
        """A call with these arguments, which may be nodes."""
        actor = self._actor
        before = (actor,) if actor._last_call is None else (actor, actor._last_call)
        made = ClassMethodNode(actor, self._name, args, kwargs, self._options, before)
        actor._last_call = made
        return made

    def __repr__(self) -> str:
        return f"<method {self._name} of {self._actor!r}>"


class ClassMethodNode(DAGNode[Any]):
    """A call of an actor's method. `execute()` gives what `.remote(...)` would."""

    def __init__(
        self,
        actor: ClassNode[Any] | ActorMethod,
        name: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        options: dict[str, Any],
        before: tuple[DAGNode[Any], ...] = (),
    ) -> None:
        """actor: one that is still to be made, or the method of one that lives."""
        super().__init__(args, kwargs, before)
        self._actor = actor
        self._name = name
        self._options = options

    def _run(self, results: dict[DAGNode[Any], Any]) -> Any:
        actor = self._actor
        method: ActorMethod = getattr(results[actor], self._name) if isinstance(actor, ClassNode) else actor
        if self._options:
            method = method.options(**self._options)
        args, kwargs = self._arguments(results)
        return method.remote(*args, **kwargs)

    def get_method_name(self) -> str:
        """Of the method that it calls."""
        return self._name

    def get_options(self) -> dict[str, Any]:
        """The options that the call was given."""
        return dict(self._options)

    def __repr__(self) -> str:
        return f"<ClassMethodNode {self._name} of {self._actor!r}>"
