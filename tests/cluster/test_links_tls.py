"""The same links as in test_links.py, cut and restored, with everything on them through TLS."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from . import netns
from .hosts import Hosts
from .test_links import (
    SILENCE_S,
    hosts,
    test_a_link_that_is_restored_in_time_loses_nothing,
    test_a_transfer_that_a_cut_link_interrupts_is_made_good,
    test_two_machines_work_as_one,
)

__all__ = [
    "hosts",
    "test_a_link_that_is_restored_in_time_loses_nothing",
    "test_a_transfer_that_a_cut_link_interrupts_is_made_good",
    "test_two_machines_work_as_one",
]
pytestmark = pytest.mark.skipif(bool(netns.why_not()), reason=netns.why_not())


@pytest.fixture(scope="module")
def running(engine: Any) -> Iterator[Hosts]:
    engine.watch()
    with Hosts(2, {"node_silence_s": SILENCE_S, "tls": True}) as hosts:
        yield hosts
    engine.stop()
