"""PROCESS: pytest, without an engine. Several tests here count the descriptors of this process, which an engine in it
opens and closes when it pleases: the one that tests of other folders share is ended first."""

from __future__ import annotations

from typing import Any

import pytest


@pytest.fixture(autouse=True, scope="session")
def no_engine(engine: Any) -> None:
    engine.stop()
