"""A store of its own for each test that asks, audited at the end: its books must be right whatever the test did."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from ray import plasma
from ray._native.plasma import PlasmaClient, PlasmaStoreDied

STORE_BYTES = 64 << 20


@dataclass
class RunningStore:
    """A store process and its socket."""

    path: str
    process: subprocess.Popen[bytes]

    def native(self) -> PlasmaClient:
        return PlasmaClient(self.path)

    def connect(self) -> plasma.PlasmaClient:
        return plasma.connect(self.path)


@pytest.fixture
def store() -> Iterator[RunningStore]:
    """64 MiB."""
    with plasma.start_plasma_store(STORE_BYTES) as (path, process):
        yield RunningStore(path, process)
        if process.poll() is None:
            try:
                assert PlasmaClient(path).audit() == ""
            except (PlasmaStoreDied, FileNotFoundError):
                assert not os.path.exists(f"/proc/{process.pid}/exe"), "the store lives but does not answer"
