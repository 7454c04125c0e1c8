"""Finds which attribute of a value can't be pickled, and says so.

Runs only after pickling has failed (or when a person asks), so it may take its time: it pickles the parts of the value
one by one, as the encoder would, and follows those that fail, down to what has no failing part itself. It looks at the
parts that pickle itself would see: what `__reduce_ex__` gives, the variables that a function uses, the members of a
class that goes by value. Every walk is bounded in depth and in objects tried.
"""

from __future__ import annotations

import functools
import inspect
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any, TextIO

from ray._native import serialization
from ray._serialization.reducers import NullFile

DEPTH_MAX = 24  # of a path in an error message
TRIES_MAX = 3000  # parts pickled for one message
_HALVING_FROM = 16  # containers longer than this are searched by halves, not item by item

_LIVES_HERE = (
    "make it where it is used (in the task, in the actor's __init__), since it means nothing in another process"
)
_HINTS = {
    "lock": _LIVES_HERE,
    "RLock": _LIVES_HERE,
    "socket": _LIVES_HERE,
    "generator": "pass a list, or the function that makes the generator, since a running one can't be copied",
    "coroutine": "pass the function and its arguments, since a running coroutine can't be copied",
    "async_generator": "pass a list, or the function that makes the generator, since a running one can't be copied",
    "frame": "drop the traceback or frame before sending it",
    "traceback": "send traceback.format_exc() in its place",
    "memoryview": "pass bytes(view), or the array that it shows",
    "module": "import it where it is used",
}
_NESTED = "What to try: a flat structure (a list of nodes, say), or a larger sys.setrecursionlimit() on both sides."
_ADVICE = "leave it out with __getstate__ or __reduce__, or say how with ray.util.register_serializer"


class FailureTuple:
    """Something that can't be pickled.

    Attributes:
        obj: the object at fault.  name: how its parent calls it.  parent: the object that contains it.
    """

    __slots__ = ("name", "obj", "parent")

    def __init__(self, obj: object, name: str, parent: object) -> None:
        self.obj: object = obj
        self.name: str = name
        self.parent: object = parent

    def __repr__(self) -> str:
        return f"FailTuple({self.name} [obj={_short(self.obj)}, parent={_short(self.parent)}])"


class _Search:
    """One walk: remembers what is above (a cycle ends it) and how many parts it may still try."""

    def __init__(self) -> None:
        self.tries_left = TRIES_MAX
        self.above: set[int] = set()

    def failure(self, value: object) -> Exception | None:
        """Why value can't be pickled, or None if it can."""
        self.tries_left -= 1
        try:
            serialization.pickler(NullFile(), _leave_out).dump(value)
        except MemoryError:
            raise
        except Exception as error:
            return error.with_traceback(None)  # its frames would keep the value, in a cycle with the error
        return None

    def failing_parts(self, value: object) -> Iterator[tuple[str, object, Exception]]:
        """(how value calls it, part, why) of each part that can't be pickled."""
        for parts in _parts(value):
            yield from self._failing(parts)

    def _failing(self, parts: list[tuple[str, object]]) -> Iterator[tuple[str, object, Exception]]:
        if len(parts) > _HALVING_FROM:
            half = len(parts) // 2
            for some in (parts[:half], parts[half:]):
                if self.tries_left > 0 and self.failure([part for _, part in some]) is not None:
                    yield from self._failing(some)
            return
        for name, part in parts:
            if self.tries_left <= 0:
                return
            if id(part) in self.above:
                continue
            error = self.failure(part)
            if error is not None:
                yield name, part, error


def _leave_out(buffer: object) -> None:
    """A buffer_callback: takes buffers out of the stream and forgets them."""


def unpicklable(value: object, name: str, error: Exception) -> TypeError:
    """The error to raise for a value that pickling failed on with `error`; the caller calls the value `name`."""
    known = "a value" if name == "value" else name
    if isinstance(error, RecursionError):  # each part would fail the same way
        return TypeError(f"can't pickle {known}: it is nested too deeply (RecursionError: {error}). {_NESTED}")
    path, culprit, why = find_culprit(value, error)
    kind = type(culprit)
    full = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    reason = f"{type(why).__name__}: {why}".splitlines()[0][:300]
    hint = _HINTS.get(kind.__name__)
    if hint is None and hasattr(culprit, "fileno"):
        hint = _LIVES_HERE
    advice = f"{hint}; or {_ADVICE}" if hint is not None else _ADVICE
    return TypeError(f"can't pickle {known}: value{path} is {_article(full)} ({reason}). What to try: {advice}.")


def find_culprit(value: object, error: Exception) -> tuple[str, object, Exception]:
    """(path from value, the innermost part that can't be pickled, why). The path is empty if that is value itself."""
    search = _Search()
    path = ""
    while len(search.above) < DEPTH_MAX:
        search.above.add(id(value))
        found = next(search.failing_parts(value), None)
        if found is None:
            break
        name, value, error = found
        path += name
    return path, value, error


# ---- the parts of a value, as pickle sees them -----------------------------------------------------------------------


def _parts(value: Any) -> Iterator[list[tuple[str, object]]]:
    """Groups of (name, part)."""
    kind = type(value)
    if kind in (list, tuple):
        yield [(f"[{index}]", item) for index, item in enumerate(value)]
    elif kind is dict:
        yield [(f"[{_short(key)}]", item) for key, item in value.items()]
        yield [(f".keys()[{_short(key)}]", key) for key in value]
    elif kind in (set, frozenset):
        yield [(f"{{{_short(item)}}}", item) for item in value]
    elif kind is types.FunctionType:
        yield _function_parts(value)
    elif kind is types.MethodType:
        yield [(".__self__", value.__self__), (".__func__", value.__func__)]
    elif isinstance(value, functools.partial):
        yield [(".func", value.func), (".args", value.args), (".keywords", value.keywords)]
    elif isinstance(value, type):
        if serialization.goes_by_value(value):
            yield _class_parts(value)
    elif isinstance(value, property):
        yield [(".fget", value.fget), (".fset", value.fset), (".fdel", value.fdel)]
    elif isinstance(value, (staticmethod, classmethod)):
        yield [(".__func__", value.__func__)]
    elif isinstance(value, types.CellType):
        yield [(".cell_contents", value.cell_contents)] if value != types.CellType() else []
    else:
        yield from _reduced_parts(value)


def _function_parts(function: types.FunctionType) -> list[tuple[str, object]]:
    if not serialization.goes_by_value(function):
        return []
    parts: list[tuple[str, object]] = []
    captured = inspect.getclosurevars(function)
    parts += [(f" -> captured variable {name!r}", part) for name, part in captured.nonlocals.items()]
    parts += [(f" -> global variable {name!r}", part) for name, part in captured.globals.items()]
    # Functions within it use globals too; getclosurevars looks at the outer code only.
    seen = set(captured.globals)
    for name in sorted(_global_names(function.__code__) - seen):
        if name in function.__globals__:
            parts.append((f" -> global variable {name!r}", function.__globals__[name]))
    for index, default in enumerate(function.__defaults__ or ()):
        parts.append((f".__defaults__[{index}]", default))
    for name, default in (function.__kwdefaults__ or {}).items():
        parts.append((f".__kwdefaults__[{name!r}]", default))
    parts += [(f".{name}", part) for name, part in function.__dict__.items()]
    return parts


def _global_names(code: types.CodeType) -> set[str]:
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= _global_names(constant)
    return names


def _class_parts(cls: type) -> list[tuple[str, object]]:
    parts: list[tuple[str, object]] = [(f".{name}", part) for name, part in vars(cls).items() if not _is_plumbing(name)]
    return parts + [(f".__bases__[{index}]", base) for index, base in enumerate(cls.__bases__) if base is not object]


def _is_plumbing(name: str) -> bool:
    return name in ("__dict__", "__weakref__", "__module__", "__doc__", "_abc_impl", "__slots__", "__annotations__")


def _reduced_parts(value: Any) -> Iterator[list[tuple[str, object]]]:
    """The parts of an object of any other class: the arguments and the state that its __reduce_ex__ gives."""
    try:
        reduced = serialization.reduce(value)
    except Exception:  # then value itself is at fault, and that error is known already
        return
    if not isinstance(reduced, tuple):
        return
    yield [
        (".__class__" if part is type(value) else f".__reduce__()[1][{index}]", part)
        for index, part in enumerate(reduced[1] or ())
    ]
    state = reduced[2] if len(reduced) > 2 else None
    slots: object = None
    if isinstance(state, tuple) and len(state) == 2 and isinstance(state[1], dict):
        state, slots = state  # of a class with __slots__
    for members in (state, slots):
        if isinstance(members, dict):
            yield [
                (f".{key}" if str(key).isidentifier() else f"[{_short(key)}]", part) for key, part in members.items()
            ]
        elif members is not None:
            yield [(".__getstate__()", members)]
    if len(reduced) > 3 and reduced[3] is not None:
        yield [(f"[{index}]", item) for index, item in enumerate(reduced[3])]
    if len(reduced) > 4 and reduced[4] is not None:
        yield [(f"[{_short(key)}]", item) for key, item in reduced[4]]
    yield [(".__reduce__()[0]", reduced[0])]


# ---- for a person ----------------------------------------------------------------------------------------------------


def inspect_serializability(
    base_obj: object, name: str | None = None, depth: int = 3, print_file: TextIO | None = None
) -> tuple[bool, set[FailureTuple]]:
    """Finds what in base_obj can't be sent to a task, an actor or the object store, and prints it as a tree.

    Args:
        base_obj: anything.  name: what to call it in the printout.
        depth: how many levels below base_obj to look.  print_file: where to print, stdout by default.

    Returns: (whether base_obj can be pickled, the innermost things found that can't).
    """
    if not isinstance(depth, int) or depth < 1:
        raise ValueError(f"depth must be an int of at least 1, but it is {depth!r}")
    name = name or getattr(base_obj, "__qualname__", None) or type(base_obj).__qualname__
    out = print_file if print_file is not None else sys.stdout
    search = _Search()
    error = search.failure(base_obj)
    if error is None:
        print(f"{name} can be pickled.", file=out)
        return True, set()
    print(f"{name} can't be pickled ({_reason(error)}):", file=out)
    failures: set[FailureTuple] = set()
    _print_tree(search, base_obj, name, None, depth, "", lambda line: print(line, file=out), failures)
    if search.tries_left <= 0:
        print(f"(stopped looking after {TRIES_MAX} parts: there may be more)", file=out)
    return False, failures


def _print_tree(
    search: _Search,
    value: object,
    name: str,
    parent: object,
    depth: int,
    indent: str,
    write: Callable[[str], None],
    failures: set[FailureTuple],
) -> None:
    search.above.add(id(value))
    parts = list(search.failing_parts(value)) if depth > 0 else []
    search.above.discard(id(value))
    if not parts:
        failures.add(FailureTuple(value, name.removeprefix(".").removeprefix(" -> "), parent))
    for index, (part_name, part, error) in enumerate(parts):
        last = index == len(parts) - 1
        write(f"{indent}{'└── ' if last else '├── '}{part_name.strip()}: {_short(part)}  ({_reason(error)})")
        search.above.add(id(value))
        _print_tree(search, part, part_name, value, depth - 1, indent + ("    " if last else "│   "), write, failures)
        search.above.discard(id(value))


def _reason(error: Exception) -> str:
    return (f"{error}".splitlines() or [type(error).__name__])[0][:200]


def _short(value: object) -> str:
    try:
        text = repr(value)
    except Exception:  # a __repr__ of the user's own that raises must not hide the message that it was wanted for
        text = f"<{type(value).__qualname__} at {id(value):#x}>"
    return text if len(text) <= 60 else text[:57] + "..."


def _article(noun: str) -> str:
    return f"{'an' if noun[:1].lower() in 'aeiou' else 'a'} {noun}"


__all__ = ["FailureTuple", "find_culprit", "inspect_serializability", "unpicklable"]
