"""Fixtures that give a test several nodes on this machine. PROCESS: pytest, which is the driver, and plays the head."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .relay import Relay


@pytest.fixture
def relay(tmp_path: Path, engine: Any, request: pytest.FixtureRequest) -> Iterator[Relay]:
    """A driver on a node with one CPU, or what the test is parametrized with. At the end nothing is left."""
    relay = Relay(tmp_path)
    try:
        relay.start_head(engine, **{"num_cpus": 1, **getattr(request, "param", {})})
        yield relay
    finally:
        relay.close()
    engine.stop()
