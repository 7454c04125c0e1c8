"""Types that only type checkers see: what the mypy plugin gives the methods of actors. Nothing here runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from typing_extensions import ParamSpec

    from ray.dag.class_node import ClassMethodNode

    P = ParamSpec("P")
else:
    P = TypeVar("P")  # as in remote_function.py

Out = TypeVar("Out")


class TypedMethod(Generic[P, Out]):
    """A method of an actor of a class that is known."""

    def remote(self, /, *args: P.args, **kwargs: P.kwargs) -> Out:
        raise NotImplementedError("this class is for type checkers")

    def options(self, **options: Any) -> TypedMethod[P, Any]:
        raise NotImplementedError("this class is for type checkers")

    def bind(self, /, *args: Any, **kwargs: Any) -> ClassMethodNode:
        raise NotImplementedError("this class is for type checkers")


__all__ = ["TypedMethod"]
