"""A call of a remote function in a graph."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ray.dag.dag_node import DAGNode, Out

if TYPE_CHECKING:
    from ray.remote_function import RemoteFunction


class FunctionNode(DAGNode[Out]):
    """What `f.bind(...)` returns. `execute()` gives what `f.remote(...)` would: a ref."""

    def __init__(self, function: RemoteFunction[..., Out], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        super().__init__(args, kwargs)
        self._function = function

    def _run(self, results: dict[DAGNode[Any], Any]) -> Any:
        args, kwargs = self._arguments(results)
        return self._function.remote(*args, **kwargs)

    def get_options(self) -> dict[str, Any]:
        """The options that the function was given."""
        return dict(self._function._options)

    def __repr__(self) -> str:
        return f"<FunctionNode {self._function.__name__}>"
