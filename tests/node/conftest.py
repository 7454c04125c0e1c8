"""Fixtures of the tests of the node alone. PROCESS: pytest, which plays the driver."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from .harness import Driver, wait_gone


@pytest.fixture
def folder() -> Iterator[str]:
    """A short path: sockets must fit below it. Must be empty again at the end: sessions leave nothing."""
    path = tempfile.mkdtemp(prefix="rt-", dir="/tmp")
    yield path
    left = os.listdir(path)
    shutil.rmtree(path)
    assert not left, f"left in the temp_dir: {left}"


@pytest.fixture
def start(folder: str) -> Iterator[Callable[..., Driver]]:
    """start(resources, **config) -> Driver. At the end each is shut down, and nothing of it may run."""
    drivers: list[Driver] = []

    def begin(resources: dict[str, float] | None = None, **config: Any) -> Driver:
        drivers.append(Driver(folder, resources, **config))
        return drivers[-1]

    yield begin
    for driver in drivers:
        if driver.node.ended_fd < 0 or driver.node.wait_exit(0) is not None:
            driver.node.close()
            continue
        pids = driver.pids()
        assert driver.stats()["bugs"] == 0
        driver.shutdown()
        wait_gone(pids)
