"""PROCESS node that is not as it should be, for tests of what the others make of it. Run instead of ray/_node/main.py.

What is odd is in the environment: "host=ADDRESS", under which the others are told to reach it; "version=0.1" or
"time_s=4000", which it says of itself; or "all jobs are over", which it believes of every job.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

VARIABLE = "RAY_TEST_ODD_NODE"


@contextlib.contextmanager
def being(what: str) -> Iterator[None]:
    os.environ[VARIABLE] = what
    try:
        yield
    finally:
        del os.environ[VARIABLE]


def main() -> None:
    from ray._node import guests, uplink
    from ray._node.main import main as real_main

    what, _, value = os.environ[VARIABLE].partition("=")
    if what in ("host", "version", "time_s"):
        real_about = uplink.about
        uplink.about = lambda node: {**real_about(node), what: type(real_about(node)[what])(value)}
    else:
        assert what == "all jobs are over", what

        async def over(self: Any, job_id: bytes) -> Any:
            raise RuntimeError(f"job {job_id.hex()} is over: nothing of it can run here any more")

        guests.Guests._ask = over  # type: ignore[method-assign]
    real_main()
