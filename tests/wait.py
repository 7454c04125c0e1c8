"""Waiting for what has no event to wait for: a condition on another process, a file, a counter. LIBRARY of tests."""

from __future__ import annotations

import time
from typing import Any, Callable


def wait_until(condition: Callable[[], Any], timeout_s: float = 10.0, *, what: str = "") -> Any:
    """Asks condition() until it returns something true, and returns that.

    Raises: AssertionError: not within timeout_s; says what was waited for and what condition() returned last. What
            condition() raises passes through at once.
    Blocks: yes, asking a hundred times a second.
    """
    deadline = time.monotonic() + timeout_s
    while not (last := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {timeout_s} s for {what or condition!r}; the last answer was {last!r}")
        time.sleep(0.01)
    return last
