"""What a graph is given when it runs: a place for it while the graph is written down."""

from __future__ import annotations

from typing import Any

from ray.dag.dag_node import DAGNode


class DAGInputData:
    """What an InputNode becomes where `execute` was given more than one positional argument."""

    __slots__ = ("args", "kwargs")

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.args: tuple[Any, ...] = args
        self.kwargs: dict[str, Any] = kwargs

    def __getitem__(self, key: int | str) -> Any:
        if isinstance(key, int):
            if not -len(self.args) <= key < len(self.args):
                raise IndexError(f"the graph uses input [{key}], and execute() was given {len(self.args)} arguments")
            return self.args[key]
        if key not in self.kwargs:
            raise KeyError(f"the graph uses input {key!r}, and execute() was given {', '.join(self.kwargs) or 'none'}")
        return self.kwargs[key]

    def __repr__(self) -> str:
        return f"DAGInputData(args={self.args!r}, kwargs={self.kwargs!r})"


class InputNode(DAGNode[Any]):
    """Stands for what `execute` is given: one value, or by `inp[0]`, `inp["x"]` and `inp.x` a part of it.

        with InputNode() as inp:
            dag = f.bind(inp.x, inp.y)
        ray.get(dag.execute(x=1, y=2))

    Of several arguments, [0] is a positional one, and a name one that was given by keyword. Of one positional argument
    they are its own items and attributes.
    """

    def __init__(self, input_type: Any = None) -> None:
        """input_type: for people and tools that read the graph; nothing checks it."""
        super().__init__((), {})
        self._input_type = input_type

    def input_of(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What it stands for in a run that was given these."""
        return args[0] if len(args) == 1 and not kwargs else DAGInputData(args, kwargs)

    def __enter__(self) -> InputNode:
        return self

    def __exit__(self, *exc: object) -> None:
        return None

    def __getitem__(self, key: Any) -> InputAttributeNode:
        return InputAttributeNode(self, key, False)

    def __getattr__(self, name: str) -> InputAttributeNode:
        if name.startswith("_"):
            raise AttributeError(name)  # what copy and pickle ask for
        return InputAttributeNode(self, name, True)


class InputAttributeNode(DAGNode[Any]):
    """A part of the graph's input; parts of it can be asked for in the same way."""

    def __init__(self, of: InputNode | InputAttributeNode, key: Any, is_attribute: bool) -> None:
        super().__init__((), {}, (of,))
        self._of = of
        self._key = key
        self._is_attribute = is_attribute

    def _run(self, results: dict[DAGNode[Any], Any]) -> Any:
        whole = results[self._of]
        if self._is_attribute and not isinstance(whole, DAGInputData):
            return getattr(whole, self._key)
        return whole[self._key]

    def __getitem__(self, key: Any) -> InputAttributeNode:
        return InputAttributeNode(self, key, False)

    def __getattr__(self, name: str) -> InputAttributeNode:
        if name.startswith("_"):
            raise AttributeError(name)
        return InputAttributeNode(self, name, True)

    def __repr__(self) -> str:
        part = f".{self._key}" if self._is_attribute else f"[{self._key!r}]"
        return f"{self._of!r}{part}"
