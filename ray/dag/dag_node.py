"""What all nodes have in common: their arguments, and how a graph of them is run. No I/O of its own."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from typing import Any, Generic, NoReturn, TypeVar

Out = TypeVar("Out", covariant=True)  # what execute() returns


class DAGNode(Generic[Out]):
    """One step of a graph that runs later. Made by `.bind(...)`, never changed; `execute()` runs what leads to it."""

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any], before: tuple[DAGNode[Any], ...] = ()) -> None:
        """before: nodes that run first though they are no arguments."""
        self._args = args
        self._kwargs = kwargs
        self._needs = tuple(dict.fromkeys([*before, *nodes_in(args), *nodes_in(kwargs)]))
        self._stable_uuid = uuid.uuid4().hex

    def execute(self, /, *args: Any, **kwargs: Any) -> Out:
        """Runs the graph that ends here: each node in it once, those that it needs first.

        Args: args, kwargs: what the graph's InputNode stands for.
        Returns: an ObjectRef of a call's result (or what the call returns with its num_returns), an ActorHandle of an
            actor class, of a MultiOutputNode a list of these.
        Raises: TypeError: the graph has an InputNode and nothing was given, or has none and something was.
            ValueError: it has several InputNodes.
        Blocks: no: calls are submitted, and their results handed on as refs.
        """
        from ray.dag.input_node import InputNode

        order = in_order(self)
        inputs = [node for node in order if isinstance(node, InputNode)]
        if len(inputs) > 1:
            raise ValueError(f"the graph of {self!r} has {len(inputs)} InputNodes: use one, and inp[0], inp.name of it")
        if inputs and not args and not kwargs:
            raise TypeError(f"execute() of {self!r}: the graph has an InputNode: give what it stands for")
        if not inputs and (args or kwargs):
            raise TypeError(
                f"execute() of {self!r}: {len(args) + len(kwargs)} argument(s) were given, and the graph has no "
                "InputNode that stands for them"
            )
        results: dict[DAGNode[Any], Any] = {}
        for node in order:
            if isinstance(node, InputNode):
                results[node] = node.input_of(args, kwargs)
            else:
                results[node] = node._run(results)
        out: Out = results[self]
        return out

    def _run(self, results: dict[DAGNode[Any], Any]) -> Any:
        """This node alone. results: of all that it needs."""
        raise NotImplementedError

    def _arguments(self, results: dict[DAGNode[Any], Any]) -> tuple[Any, Any]:
        return replaced(self._args, results), replaced(self._kwargs, results)

    def get_args(self) -> tuple[Any, ...]:
        """The positional arguments that it was bound to."""
        return self._args

    def get_kwargs(self) -> dict[str, Any]:
        """The keyword arguments that it was bound to."""
        return dict(self._kwargs)

    def get_options(self) -> dict[str, Any]:
        """The options that its call was given."""
        return {}

    def get_stable_uuid(self) -> str:
        """An id of this node that its copies in other processes share."""
        return self._stable_uuid

    def apply_recursive(self, fn: Callable[[DAGNode[Any]], Any]) -> Any:
        """Calls fn once for each node, those that a node needs before it. Returns what it returned for this one."""
        last = None
        for node in in_order(self):
            last = fn(node)
        return last

    def experimental_compile(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Not built: a graph runs as ordinary calls, by execute()."""
        raise NotImplementedError("experimental_compile(): compiled graphs are not built; use execute()")

    def __copy__(self) -> DAGNode[Out]:
        return self  # nothing of it ever changes

    def __deepcopy__(self, memo: Any) -> DAGNode[Out]:
        return self

    def __iter__(self) -> NoReturn:
        # Where a node has __getitem__ (InputNode), Python would otherwise ask for [0], [1], ... for ever.
        raise TypeError(f"{self!r} can't be iterated over: what it will be is not known yet")

    def __repr__(self) -> str:
        return f"<{type(self).__name__}>"


# --- nodes among arguments ---------------------------------------------------------------------------------------


def nodes_in(value: Any) -> Iterator[DAGNode[Any]]:
    """The nodes in a value: itself, or inside lists, tuples, dicts and sets. Nowhere else is looked."""
    if isinstance(value, DAGNode):
        yield value
    elif isinstance(value, dict):
        for one in value.values():
            yield from nodes_in(one)
    elif isinstance(value, (list, tuple, set, frozenset)):
        for one in value:
            yield from nodes_in(one)


def replaced(value: Any, results: dict[DAGNode[Any], Any]) -> Any:
    """The value with results where nodes were. What has no node inside is the same object."""
    if isinstance(value, DAGNode):
        return results[value]
    if not isinstance(value, (dict, list, tuple, set, frozenset)) or next(nodes_in(value), None) is None:
        return value
    if isinstance(value, dict):
        return {key: replaced(one, results) for key, one in value.items()}
    parts = [replaced(one, results) for one in value]
    if isinstance(value, tuple) and hasattr(value, "_fields"):  # a named tuple takes them one by one
        return type(value)(*parts)
    kind: Any = next(kind for kind in (list, tuple, frozenset, set) if isinstance(value, kind))
    return kind(parts)


def in_order(last: DAGNode[Any]) -> list[DAGNode[Any]]:
    """Every node that leads to this one, and it, each after those it needs. A loop: chains may be long."""
    done: dict[DAGNode[Any], None] = {}
    waiting: list[tuple[DAGNode[Any], bool]] = [(last, False)]
    while waiting:
        node, needs_done = waiting.pop()
        if needs_done:
            done[node] = None
        elif node not in done:
            waiting.append((node, True))
            waiting += [(needed, False) for needed in reversed(node._needs) if needed not in done]
    return list(done)
