"""docs/internals/states.md is what the transition tables say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_page_of_states_is_what_the_tables_say() -> None:
    checked = subprocess.run([sys.executable, str(ROOT / "tools" / "states.py"), "--check"], check=False)
    assert checked.returncode == 0, "docs/internals/states.md is not current: run python tools/states.py"
