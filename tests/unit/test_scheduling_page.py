"""docs/internals/scheduling.md shows the transition tables that the code has."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parents[2] / "docs" / "internals" / "scheduling.md"


@pytest.mark.parametrize("module", ["ray._node.local_scheduler", "ray._node.worker_pool"])
def test_the_page_shows_the_table_of_the_code(module: str) -> None:
    rows = "".join(
        f"| {state} | {event} | {step.__name__.strip('_').replace('_', ' ')} |\n"
        for (state, event), step in importlib.import_module(module).TRANSITIONS.items()
    )
    wanted = f"<!-- table: {module} -->\n| state | event | step |\n|---|---|---|\n{rows}<!-- end -->"
    found = re.search(rf"<!-- table: {re.escape(module)} -->.*?<!-- end -->", PAGE.read_text(), re.S)
    assert found is not None and found.group() == wanted, f"paste this into the page:\n{wanted}"
