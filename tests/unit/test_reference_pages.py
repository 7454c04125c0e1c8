"""docs/api/reference/ is what tools/api_docs.py makes of the code; every public noun says what it is."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def api_docs() -> ModuleType:
    spec = importlib.util.spec_from_file_location("api_docs", ROOT / "tools" / "api_docs.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(
    sys.version_info[:2] != (3, 11), reason="signatures are printed a little differently by each Python"
)
def test_the_pages_are_up_to_date(api_docs: ModuleType) -> None:
    assert api_docs.differences() == [], "run: python tools/api_docs.py"


def test_every_noun_has_a_docstring(api_docs: ModuleType) -> None:
    assert [f"{module}.{name}" for module, name, noun in api_docs.nouns() if not api_docs.doc_of(noun)] == []


def test_sections_become_lists(api_docs: ModuleType) -> None:
    arguments = "Args:\n    first: one\n        and more.\n    second: two."
    doc = f"What it does.\n\n{arguments}\n\nRaises: ValueError: a.  TypeError: b."
    assert api_docs.paragraphs(doc).split("\n") == [
        *("What it does.", "", "**Args**", "", "* `first`: one", "  and more.", "* `second`: two.", ""),
        *("**Raises**", "", "* ValueError: a.", "* TypeError: b.", ""),
    ]


def test_a_signature_is_printed_without_quotes_and_addresses(api_docs: ModuleType) -> None:
    nothing = object()

    def f(a: int | str = "x'y", *, b: float | None = None, c: object = nothing) -> list[int]: ...

    printed = api_docs.signature("f", f)
    assert printed == 'f(a: int | str = "x\'y", *, b: float | None = None, c: object = ...) -> list[int]'
