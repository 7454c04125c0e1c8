"""docs/api/init.md names every argument of ray.init, and for each a test that exists."""

from __future__ import annotations

import re
from pathlib import Path

from ray import _aliases
from ray._init_options import ARGUMENTS, OF_A_SESSION

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "api" / "init.md").read_text()
ROWS = re.findall(r"^\| (`[^|]+`) \| (yes|no) \| ([^|]+) \| `([^`|]+)` \|$", PAGE, re.M)
OLDER = PAGE[PAGE.index("Older names:") :]


def test_each_argument_has_one_row_in_the_order_of_the_code() -> None:
    named = [name for names, *_ in ROWS for name in re.findall(r"`(\w+)`", names)]
    assert named == list(ARGUMENTS)


def test_the_page_says_which_are_refused_when_joining() -> None:
    of_a_session = {name for names, yes, *_ in ROWS if yes == "yes" for name in re.findall(r"`(\w+)`", names)}
    assert of_a_session == set(OF_A_SESSION) - {"num_custom_resource"}


def test_each_older_name_is_on_the_page() -> None:
    assert not [name for name in [*_aliases.INIT, "num_custom_resource"] if f"`{name}" not in OLDER]


def test_each_test_that_the_page_names_exists() -> None:
    for names, _, _, test in ROWS:
        path, _, function = test.partition("::")
        file = ROOT / path if path.startswith("tests/") else ROOT / "tests" / "api" / path
        assert file.exists(), f"{names}: {path} is not there"
        assert f"def {function}(" in file.read_text(), f"{names}: {path} has no {function}"
