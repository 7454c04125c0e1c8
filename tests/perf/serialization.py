"""How long a value takes to become bytes and back: ours beside pickle and cloudpickle, in one run.

    python -m tests.perf.serialization [--quick]

Encode is `encode` and writing the blob; decode is from that blob (where it would lie in shared memory, from an aligned
view of it). Times are the best of several rounds, in microseconds. The last column is ours against cloudpickle, both
ways together. The line of memcpy says what copying the biggest array once costs.
"""

from __future__ import annotations

import argparse
import dataclasses
import pickle
import timeit
from collections.abc import Callable
from typing import Any

import cloudpickle
import numpy as np

from ray._native import serialization

INLINE_BYTES_MAX = 100_000  # what is larger goes to the store


@dataclasses.dataclass
class Point:
    """Its class is in __main__, so it travels with each object: what that costs."""

    x: int
    y: float


class Ref:
    """Stands for ObjectRef: by itself it pickles as any object does."""

    def __init__(self, number: int) -> None:
        self.number = number


def values() -> dict[str, Any]:
    """The rows: name and value."""
    return {
        "None": None,
        "0": 0,
        "1.5": 1.5,
        'b"ok"': b"ok",
        '"x" * 20': "x" * 20,
        "(1, 2, 3)": (1, 2, 3),
        '{"a": 1}': {"a": 1},
        "list of 1,000 ints": list(range(1000)),
        "100 KB bytes": bytes(100_000),
        "1 KB array": np.zeros(128),
        "8 MB array": np.ones(1_000_000),
        "dict of 4 arrays, 8 MB": {str(i): np.ones(250_000) for i in range(4)},
        "object, imported class": argparse.Namespace(x=1, y=2.0),
        "object, class of __main__": Point(1, 2.0),
        "closure": (lambda factor: lambda value: value * factor)(3),
        "list of 10,000 refs": [Ref(i) for i in range(10_000)],
        "dict of 10,000 refs": {"refs": [Ref(i) for i in range(10_000)]},
    }


def aligned(blob: bytes) -> memoryview:
    """A copy of blob at a multiple of 64 bytes, as plasma would have it."""
    space = np.empty(len(blob) + 64, np.uint8)
    start = -space.ctypes.data % 64
    space[start : start + len(blob)] = np.frombuffer(blob, np.uint8)
    return memoryview(space.data)[start : start + len(blob)].toreadonly()


def best_us(function: Callable[[], object], seconds: float) -> float:
    """Microseconds of one call: the best of five rounds of about `seconds` in all."""
    timer = timeit.Timer(function)
    once = max(timer.timeit(1), 1e-7)
    number = max(1, int(seconds / 5 / once))
    return min(timer.repeat(5, number)) / number * 1e6


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tenth of the time, for a look")
    seconds = 0.03 if parser.parse_args().quick else 0.3
    serialization.set_ref_type(Ref)
    print(f"{'us':26} {'ours':>20} {'pickle':>20} {'cloudpickle':>20} {'gain':>7}")
    for name, value in values().items():
        print_row(name, value, seconds)
    source, target = np.ones(1_000_000), np.empty(1_000_000)
    print(f"{'memcpy of 8 MB':26} {best_us(lambda: np.copyto(target, source), seconds):>20.0f}")


def print_row(name: str, value: Any, seconds: float) -> None:
    """Measures one value all ways."""
    encoded = serialization.encode(value)
    blob, refs = encoded.to_bytes(), encoded.refs
    view = blob if len(blob) <= INLINE_BYTES_MAX else aligned(blob)
    ours = (
        best_us(lambda: serialization.encode(value).to_bytes(), seconds),
        best_us(lambda: serialization.decode(view, refs), seconds),
    )
    cells = [_cell(ours)]
    for module in (pickle, cloudpickle):
        try:
            stream = module.dumps(value, 5)
        except (AttributeError, pickle.PicklingError):
            cells.append("-")
            continue
        theirs = (
            best_us(lambda dumps=module.dumps: dumps(value, 5), seconds),  # type: ignore[misc]
            best_us(lambda stream=stream: pickle.loads(stream), seconds),  # type: ignore[misc]
        )
        cells.append(_cell(theirs))
    print(f"{name:26} {cells[0]:>20} {cells[1]:>20} {cells[2]:>20} {sum(theirs) / sum(ours):6.1f}x")


def _cell(pair: tuple[float, float]) -> str:
    return " / ".join(f"{us:.2f}" if us < 100 else f"{us:.0f}" for us in pair)


if __name__ == "__main__":
    main()
