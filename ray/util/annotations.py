"""Decorators that say how stable a public class or function is. They add a note to its docstring; calls cost nothing,
unless a deprecated one was asked to warn. Pure, at import time."""

from __future__ import annotations

import functools
import inspect
import warnings
from typing import Any, Callable, TypeVar

T = TypeVar("T")

_STABILITIES = ("stable", "beta", "alpha")


class RayDeprecationWarning(DeprecationWarning):
    """Something of ray's API will go, or has been replaced. Shown by default, unlike its base."""


warnings.filterwarnings("default", category=RayDeprecationWarning, append=True)


def PublicAPI(*args: Any, stability: str = "stable", api_group: str = "Others") -> Any:
    """For users; `@PublicAPI` or `@PublicAPI(stability="beta")`.

    Args: stability: "stable" (changes only with a major release), "beta", or "alpha".
    """
    if stability not in _STABILITIES:
        raise ValueError(f"PublicAPI: stability={stability!r}: expected one of {', '.join(map(repr, _STABILITIES))}")
    note = "" if stability == "stable" else f"This API is in {stability} and may change before it is stable."
    return _decorate(args, "PublicAPI", note, api_group)


def DeveloperAPI(*args: Any, api_group: str = "Others") -> Any:
    """For those who build on ray; may change with a minor release. `@DeveloperAPI` or `@DeveloperAPI()`."""
    return _decorate(args, "DeveloperAPI", "This API is for developers and may change with a minor release.", api_group)


def Deprecated(*args: Any, message: str | None = None, warning: bool = False) -> Any:
    """Will go; `@Deprecated` or `@Deprecated(message="use g", warning=True)`.

    Args: message: what to use instead.  warning: warn of each use.
    """
    note = "Deprecated: this API may be removed." + (f" {message}" if message else "")
    made = _decorate(args, "Deprecated", note, "Others")
    if not warning:
        return made
    return _warning(made, note) if args else lambda definition: _warning(made(definition), note)


def _decorate(args: tuple[Any, ...], kind: str, note: str, group: str) -> Any:
    def mark(definition: T) -> T:
        if note:
            definition.__doc__ = f"{inspect.cleandoc(definition.__doc__ or '')}\n\n{note}".strip()
        definition._annotated = getattr(definition, "__name__", "")  # type: ignore[attr-defined]
        definition._annotated_type = kind  # type: ignore[attr-defined]
        definition._annotated_api_group = group  # type: ignore[attr-defined]
        return definition

    if not args:
        return mark
    if len(args) > 1 or not callable(args[0]):
        raise TypeError(f"{kind} is used as @{kind}, or with its arguments by keyword; it was given {args!r}")
    return mark(args[0])


def _warning(definition: Any, note: str) -> Any:
    """definition, which warns each time it is called, or, a class, instantiated."""
    said = f"{getattr(definition, '__qualname__', definition)}: {note}"

    def wrap(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def warn(*args: Any, **kwargs: Any) -> Any:
            warnings.warn(said, RayDeprecationWarning, stacklevel=2)
            return function(*args, **kwargs)

        return warn

    if isinstance(definition, type):
        definition.__init__ = wrap(definition.__init__)  # type: ignore[misc]
        return definition
    return wrap(definition)
