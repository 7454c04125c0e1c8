"""The table that lays ours beside the peer's: ratios the right way round, failures seen, README kept but the table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.perf import compare


@pytest.fixture
def results() -> dict[str, Any]:
    return {
        "machine": "a machine",
        "engines": ["Ray 2.60.0", "this"],
        "limits": {"futex_round_trip_us": 4.0},
        "rows": {
            "calls": {"Ray 2.60.0": [10.0, 30.0, 20.0], "this": [400.0, 400.0, 1.0]},
            "broken": {"Ray 2.60.0": [10.0], "this": [None]},
        },
        "start": {"Ray 2.60.0": [{"whole_s": 6.0}], "this": [{"whole_s": 0.5}]},
    }


def test_a_rate_s_ratio_is_ours_over_theirs_of_the_medians(results: dict[str, Any]) -> None:
    assert "| calls | 20 | 400 | 20 × |" in compare.table(results)


def test_a_cost_s_ratio_is_theirs_over_ours(results: dict[str, Any]) -> None:
    assert "| import, init, first result, shutdown, s | 6 | 0.5 | 12 × |" in compare.table(results)


def test_a_row_that_failed_says_so_and_has_no_ratio(results: dict[str, Any]) -> None:
    assert "| broken | 10 | failed |  |" in compare.table(results)


def test_the_machine_and_its_limits_stand_below(results: dict[str, Any]) -> None:
    text = compare.table(results)
    assert "| futex round trip us | 4 |" in text
    assert "Measured on a machine." in text


def test_writing_the_readme_replaces_the_table_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compare, "ROOT", tmp_path)
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{compare.README_BEGIN}\nold\n{compare.README_END}\nafter\n")
    compare.write_readme("new")
    assert readme.read_text() == f"before\n{compare.README_BEGIN}\nnew\n{compare.README_END}\nafter\n"
    readme.write_text("no markers")
    with pytest.raises(SystemExit, match="lacks the lines"):
        compare.write_readme("new")
    assert readme.read_text() == "no markers"


def test_the_readme_has_a_place_for_the_table() -> None:
    text = (compare.ROOT / "README.md").read_text()
    assert 0 < text.index(compare.README_BEGIN) < text.index(compare.README_END)
