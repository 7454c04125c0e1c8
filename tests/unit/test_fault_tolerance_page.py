"""The page on deaths names tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "internals" / "fault-tolerance.md"


def test_each_test_that_the_page_names_exists() -> None:
    named = re.findall(r"`((?:cpp_)?tests/[\w/]+\.(?:py|cc))(?:::(\w+))?`", PAGE.read_text())
    assert len(named) > 10
    for path, function in named:
        file = ROOT / path
        assert file.exists(), f"{PAGE.name} names {path}, which is not there"
        assert not function or f"def {function}(" in file.read_text(), f"{path} has no {function}"


def test_each_exception_that_the_page_names_exists() -> None:
    names = set(re.findall(r"`(\w+Error)`", PAGE.read_text()))
    text = (ROOT / "ray" / "exceptions.py").read_text()
    assert names and not [name for name in names if f"class {name}(" not in text]
