"""docs/api/options.md names every option of tasks, actors and methods, and for each a test that exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ray import _aliases, _options

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "api" / "options.md").read_text()
ROWS = re.findall(r"^\| `(\w+)` \| ([TAM ]+) \| ([^|]+) \| `([^`|]+)` \|$", PAGE, re.M)
TABLES = {"T": _options.TASK, "A": _options.ACTOR, "M": _options.METHOD}


@pytest.mark.parametrize("kind", TABLES)
def test_each_option_has_one_row_that_says_what_it_is_of(kind: str) -> None:
    assert sorted(name for name, of, *_ in ROWS if kind in of.split()) == sorted(TABLES[kind])


def test_no_row_is_there_twice() -> None:
    assert len({name for name, *_ in ROWS}) == len(ROWS)


def test_each_older_name_is_on_the_page() -> None:
    older = PAGE[PAGE.index("Older names:") :]
    assert not [name for name in _aliases.OPTIONS if f"`{name}`" not in older]


def test_each_test_that_the_page_names_exists() -> None:
    for name, _, _, test in ROWS:
        path, _, function = test.partition("::")
        file = ROOT / path if path.startswith("tests/") else ROOT / "tests" / "api" / path
        assert file.exists(), f"{name}: {path} is not there"
        assert f"def {function}(" in file.read_text(), f"{name}: {path} has no {function}"
