"""Fixtures that give a test several nodes on this machine. PROCESS: pytest, which is a driver on the head's node."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from .nodes import Nodes


@pytest.fixture
def nodes(engine: Any, request: pytest.FixtureRequest) -> Iterator[Nodes]:
    """A head with one CPU, or what the test is parametrized with. At the end nothing is left."""
    engine.watch()
    nodes = Nodes()
    try:
        nodes.start_head(**{"num_cpus": 1, **getattr(request, "param", {})})
        yield nodes
    finally:
        nodes.close()
    engine.stop()
