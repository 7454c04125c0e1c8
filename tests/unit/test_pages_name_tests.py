"""The pages that name a test for each claim name tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DEATHS = ROOT / "docs" / "internals" / "fault-tolerance.md"
PAGES = [DEATHS, ROOT / "docs" / "security.md"]
NAMED = re.compile(r"`((?:cpp_)?tests/[\w/]+\.(?:py|cc))(?:::(\w+))?`")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_each_test_that_the_page_names_exists(page: Path) -> None:
    named = NAMED.findall(page.read_text())
    for path, function in named:
        file = ROOT / path
        assert file.exists(), f"{page.name} names {path}, which is not there"
        defined = rf"^TEST\(\w+, {function}\)" if path.endswith(".cc") else rf"^(async )?def {function}\("
        assert not function or re.search(defined, file.read_text(), re.M), f"{path} has no {function}"
    assert len(named) > 10


def test_each_exception_that_the_page_names_exists() -> None:
    names = set(re.findall(r"`(\w+Error)`", DEATHS.read_text()))
    text = (ROOT / "ray" / "exceptions.py").read_text()
    assert names and not [name for name in names if f"class {name}(" not in text]
