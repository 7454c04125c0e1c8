"""What all kinds of work over several nodes share: places to run at, the ledger, and functions that may run again.
LIBRARY of the chaos tests.

Tasks and methods that count write a line into the ledger, a file per piece of work, as they begin: so it is known how
often, and in which order, each has run, whatever became of the process.
"""

from __future__ import annotations

import itertools
import os
import random
from pathlib import Path
from typing import Any

import numpy as np

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from tests.chaos.faults import Faults

BIG = 200_000  # float64: 1.6 MB
CALL_S = 45.0  # no call may take longer; a link between two nodes may be dead for 25 s before it is noticed


class World:
    """What a driver's work needs to know of where it runs."""

    def __init__(self, faults: Faults, ledger: str, host: int) -> None:
        self.faults, self.ledger, self.host = faults, ledger, host
        self._numbers = itertools.count()

    def somewhere(self, r: random.Random) -> dict[str, Any]:
        """Options of what is to run on a node of those alive, or elsewhere if it dies."""
        node = r.choice([row["NodeID"] for row in ray.nodes() if row["Alive"]])
        return {"scheduling_strategy": NodeAffinitySchedulingStrategy(node, soft=True)}

    def page(self) -> str:
        """A new file of the ledger."""
        return f"{self.ledger}/{os.getpid()}-{next(self._numbers)}"

    def unique(self) -> str:
        return f"{self.host}-{os.getpid()}-{next(self._numbers)}"

    def __str__(self) -> str:
        return ", ".join(f"{count} x {kind}" for kind, count in self.faults.counts().items()) or "nothing"


def write(page: str, *row: object) -> None:
    fd = os.open(page, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(fd, (" ".join(map(str, row)) + "\n").encode())
    finally:
        os.close(fd)


def read(page: str) -> list[list[str]]:
    try:
        return [line.split() for line in Path(page).read_text().splitlines()]
    except FileNotFoundError:
        return []


def get(refs: Any) -> Any:
    return ray.get(refs, timeout=CALL_S)


@ray.remote(max_retries=-1)
def double(x: Any) -> Any:
    return x * 2


@ray.remote(max_retries=-1)
def make(number: int) -> np.ndarray:
    return np.full(BIG, float(number))


@ray.remote(max_retries=-1)
def first_of(box: list[Any]) -> float:
    return float(ray.get(box[0])[0])
