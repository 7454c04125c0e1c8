"""docs/config.md shows the settings table that the code has."""

from __future__ import annotations

from pathlib import Path

from ray import _config

PAGE = Path(__file__).resolve().parents[2] / "docs" / "config.md"


def test_the_page_shows_the_table_of_the_code() -> None:
    assert PAGE.read_text() == _config.page() + "\n", (
        "python -c 'import ray._config; print(ray._config.page())' >docs/config.md"
    )
