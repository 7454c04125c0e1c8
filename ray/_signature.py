"""How a remote function or actor method may be called, small enough to travel inside every actor handle. No I/O.

`inspect.signature` would do, but importing `inspect` costs more than the whole rest of `import ray`, and a bound
Signature is slow to check and big to pickle. `bounds` is what the hot path reads: a call with no keyword arguments and
a number of positional ones within the bounds is right without asking `check`. Anything else asks it, and it raises the
TypeError that a plain call would have raised, at the `.remote()` and not in some worker later.
"""

from __future__ import annotations

from typing import Any

ANY_NUMBER = 1 << 30  # "no upper bound" in `bounds`
_VARARGS, _VARKW = 0x04, 0x08  # CO_VARARGS, CO_VARKEYWORDS of code.co_flags


class Signature:
    """The parameters of one callable, without annotations or default values.

    `bounds` is (fewest, most) positional arguments of a call that needs no further check; (1, 0), which no call meets,
    where a keyword-only argument is required.
    """

    __slots__ = ("bounds", "keyword_only", "n_positional_only", "n_required", "name", "positional", "varargs", "varkw")

    def __init__(
        self,
        name: str,
        positional: tuple[str, ...] = (),
        n_positional_only: int = 0,
        n_required: int = 0,
        keyword_only: tuple[tuple[str, bool], ...] = (),
        varargs: bool = True,
        varkw: bool = True,
    ) -> None:
        self.name: str = name
        self.positional: tuple[str, ...] = positional
        self.n_positional_only: int = n_positional_only
        self.n_required: int = n_required
        self.keyword_only: tuple[tuple[str, bool], ...] = keyword_only  # (name, required)
        self.varargs: bool = varargs
        self.varkw: bool = varkw
        if any(required for _, required in keyword_only):
            self.bounds: tuple[int, int] = (1, 0)
        else:
            self.bounds = (n_required, ANY_NUMBER if varargs else len(positional))

    @classmethod
    def of(cls, function: Any, name: str, skip_first: bool = False) -> Signature:
        """The signature of function; of anything not written in Python, one that accepts every call.

        skip_first: function is found in a class and its first parameter will be bound.
        """
        code = getattr(function, "__code__", None)
        if code is None or not hasattr(code, "co_posonlyargcount"):
            return cls(name)
        n = code.co_argcount
        names = code.co_varnames
        varargs = bool(code.co_flags & _VARARGS)
        defaults = getattr(function, "__defaults__", None) or ()
        keyword_defaults = getattr(function, "__kwdefaults__", None) or {}
        # With skip_first and `def method(*args)` the bound instance lands in args: nothing to take away.
        skipped = 1 if skip_first and n else 0
        return cls(
            name,
            positional=tuple(names[skipped:n]),
            n_positional_only=max(0, code.co_posonlyargcount - skipped),
            n_required=max(0, n - len(defaults) - skipped),
            keyword_only=tuple((k, k not in keyword_defaults) for k in names[n : n + code.co_kwonlyargcount]),
            varargs=varargs,
            varkw=bool(code.co_flags & _VARKW),
        )

    def check(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Returns if the callable can be called so.

        Raises: TypeError: worded as Python words it.
        """
        given = len(args)
        if given > len(self.positional) and not self.varargs:
            most = len(self.positional)
            fewest = self.n_required
            takes = f"{most}" if fewest == most else f"from {fewest} to {most}"
            plural = "" if most == 1 and fewest == most else "s"
            were = "was" if given == 1 else "were"
            raise TypeError(f"{self.name}() takes {takes} positional argument{plural} but {given} {were} given")
        by_keyword = self.positional[self.n_positional_only :]
        for keyword in kwargs:
            if keyword in by_keyword:
                if self.positional.index(keyword) < given:
                    raise TypeError(f"{self.name}() got multiple values for argument {keyword!r}")
            elif not self.varkw and all(keyword != known for known, _ in self.keyword_only):
                if keyword in self.positional:
                    raise TypeError(
                        f"{self.name}() got a positional-only argument passed as keyword argument: {keyword!r}"
                    )
                raise TypeError(f"{self.name}() got an unexpected keyword argument {keyword!r}")
        self._missing(
            "positional",
            [
                parameter
                for i, parameter in enumerate(self.positional[: self.n_required])
                if i >= given and (i < self.n_positional_only or parameter not in kwargs)
            ],
        )
        self._missing("keyword-only", [name for name, needed in self.keyword_only if needed and name not in kwargs])

    def _missing(self, kind: str, names: list[str]) -> None:
        if not names:
            return
        quoted = [repr(name) for name in names]
        if len(quoted) > 2:
            listed = ", ".join(quoted[:-1]) + f", and {quoted[-1]}"
        else:
            listed = " and ".join(quoted)
        plural = "s" if len(names) > 1 else ""
        raise TypeError(f"{self.name}() missing {len(names)} required {kind} argument{plural}: {listed}")

    def _key(self) -> tuple[Any, ...]:
        return (
            self.name,
            self.positional,
            self.n_positional_only,
            self.n_required,
            self.keyword_only,
            self.varargs,
            self.varkw,
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return Signature, self._key()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Signature) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def __repr__(self) -> str:
        parts = list(self.positional)
        if self.varargs:
            parts.append("*args")
        elif self.keyword_only:
            parts.append("*")
        parts += [name for name, _ in self.keyword_only]
        if self.varkw:
            parts.append("**kwargs")
        return f"<Signature {self.name}({', '.join(parts)})>"
