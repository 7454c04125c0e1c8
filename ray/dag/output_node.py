"""Several ends of one graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ray.dag.dag_node import DAGNode


class MultiOutputNode(DAGNode["list[Any]"]):
    """A graph with several results: `execute()` gives what each of its nodes gives, as a list."""

    def __init__(self, args: Sequence[DAGNode[Any]]) -> None:
        """Raises: ValueError: not a list of nodes."""
        if isinstance(args, DAGNode) or not isinstance(args, (list, tuple)):
            raise ValueError(f"MultiOutputNode: {args!r}: expected a list of nodes, such as [f.bind(1), g.bind(2)]")
        for one in args:
            if not isinstance(one, DAGNode):
                raise ValueError(f"MultiOutputNode: {one!r} is no node; bind() makes one")
        super().__init__(tuple(args), {})

    def _run(self, results: dict[DAGNode[Any], Any]) -> list[Any]:
        return [results[node] for node in self._args]
