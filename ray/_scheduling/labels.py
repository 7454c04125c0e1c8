"""Which nodes a label selector admits. Pure; a vocabulary shared by whoever writes selectors and whoever obeys them.

A *selector* is a tuple of terms (key, operator, values), all of which must hold. As everywhere in the field, a node
that does not have the label at all satisfies `!in`: it is certainly not one of those values.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

IN, NOT_IN, EXISTS, MISSING = "in", "!in", "exists", "!exists"
OPERATORS = (IN, NOT_IN, EXISTS, MISSING)

Term = tuple[str, str, tuple[str, ...]]
Selector = tuple[Term, ...]

_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?"
_KEY = re.compile(rf"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]{{0,251}}[A-Za-z0-9])?/)?{_NAME}")
_VALUE = re.compile(rf"(?:{_NAME})?")
_LIST = re.compile(r"(!?)in\((.*)\)")


def parse_selector(given: Mapping[str, Any]) -> Selector:
    """Of {"key": "value", "key": "!value", "key": "in(a, b)", "key": "!in(a, b)"}.

    Raises: TypeError, ValueError: naming the key and what was wrong with it.
    """
    return tuple(_term(key, value) for key, value in given.items())


def check_key(key: Any) -> str:
    if not isinstance(key, str):
        raise TypeError(f"a label's name must be a string, not {key!r}")
    if not _KEY.fullmatch(key):
        raise ValueError(f"{key!r} can't be the name of a label: letters, digits, '-', '_', '.', and one '/'")
    return key


def check_value(key: str, value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"the value of label {key!r} must be a string, not {value!r}")
    if not _VALUE.fullmatch(value):
        raise ValueError(
            f"{value!r} can't be the value of label {key!r}: up to 63 letters, digits, '-', '_' and '.', the first and "
            "the last of them a letter or digit"
        )
    return value


def matches(labels: Mapping[str, str], selector: Iterable[Term]) -> bool:
    return all(_holds(labels, term) for term in selector)


def describe(selector: Iterable[Term]) -> str:
    """For messages: "zone in (a, b), gpu exists"."""
    words = []
    for key, operator, values in selector:
        if operator in (EXISTS, MISSING):
            words.append(f"{key} {'exists' if operator == EXISTS else 'does not exist'}")
        elif len(values) == 1:
            words.append(f"{key} {'=' if operator == IN else '!='} {values[0]}")
        else:
            words.append(f"{key} {'in' if operator == IN else 'not in'} ({', '.join(values)})")
    return ", ".join(words) or "anything"


def _holds(labels: Mapping[str, str], term: Term) -> bool:
    key, operator, values = term
    if operator == IN:
        return labels.get(key) in values
    if operator == NOT_IN:
        return labels.get(key) not in values
    return (key in labels) is (operator == EXISTS)


def _term(key: Any, value: Any) -> Term:
    key = check_key(key)
    if not isinstance(value, str):
        raise TypeError(f"the selector of label {key!r} must be a string like 'a', '!a' or 'in(a, b)', not {value!r}")
    found = _LIST.fullmatch(value.strip())
    if found:
        values = tuple(check_value(key, part.strip()) for part in found[2].split(","))
        if not all(values):
            raise ValueError(f"the selector {value!r} of label {key!r} has an empty value in its list")
        return key, NOT_IN if found[1] else IN, values
    if value.startswith("!"):
        return key, NOT_IN, (check_value(key, value[1:]),)
    return key, IN, (check_value(key, value),)
