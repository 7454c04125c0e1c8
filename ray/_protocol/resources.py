"""Amounts of resources as they travel: dict[str, int] in units of 1/10,000, so that sums of fractions are exact.

No I/O, no state. The public API calls `parse` on what a user wrote; everything behind it deals in units only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

UNITS = 10_000
CPU, GPU, MEMORY, OBJECT_STORE_MEMORY = "CPU", "GPU", "memory", "object_store_memory"

Resources = dict[str, int]
Shape = tuple[tuple[str, int], ...]  # the same amounts as a sorted, hashable tuple: names a scheduling class


def shape_of(resources: Mapping[str, int]) -> Shape:
    return tuple(sorted((name, units) for name, units in resources.items() if units))


def parse_amount(amount: Any, argument: str) -> int:
    """Units of what a user gave for one resource.

    Raises: TypeError: not a number.  ValueError: negative, NaN, infinite, or finer than 1/10,000.
    """
    if isinstance(amount, bool) or not isinstance(amount, (int, float)):
        # numpy and Fraction amounts have __float__ but are neither; strings have not.
        if isinstance(amount, (bool, str, bytes)) or not hasattr(amount, "__float__"):
            raise TypeError(f"{argument} must be a number, not {amount!r} ({type(amount).__name__})")
        amount = float(amount)
    if isinstance(amount, int):
        units = amount * UNITS
    else:
        if amount != amount or amount in (float("inf"), float("-inf")):
            raise ValueError(f"{argument} must be a finite number, not {amount!r}")
        units = round(amount * UNITS)
        if amount > 0 and abs(units - amount * UNITS) > 1e-6 * max(1.0, amount * UNITS):
            raise ValueError(f"{argument}={amount!r} is finer than 1/{UNITS:,}, the smallest step of a resource")
    if units < 0:
        raise ValueError(f"{argument} must be >= 0, not {amount!r}")
    return units


def check_gpu(units: int, argument: str = "num_gpus") -> int:
    if units > UNITS and units % UNITS:
        raise ValueError(f"{argument}={units / UNITS} must be a whole number above 1: only one GPU can be shared")
    return units


def parse(
    num_cpus: Any = None, num_gpus: Any = None, memory: Any = None, resources: Mapping[str, Any] | None = None
) -> Resources:
    """Units of what a user asked for; zero amounts are dropped, None means not given.

    Raises: TypeError, ValueError: naming the argument, what was given and what would do.
    """
    units: Resources = {}
    if num_cpus is not None:
        units[CPU] = parse_amount(num_cpus, "num_cpus")
    if num_gpus is not None:
        units[GPU] = check_gpu(parse_amount(num_gpus, "num_gpus"))
    if memory is not None:
        units[MEMORY] = parse_amount(memory, "memory")
    if resources is not None:
        if not isinstance(resources, Mapping):
            raise TypeError(f"resources must be a dict of name to amount, not {type(resources).__name__}")
        for name, amount in resources.items():
            if not isinstance(name, str) or not name:
                raise TypeError(f"resources: a name must be a non-empty string, not {name!r}")
            if name in (CPU, GPU, MEMORY):
                argument = {CPU: "num_cpus", GPU: "num_gpus", MEMORY: "memory"}[name]
                raise ValueError(f"resources: {name!r} has an argument of its own, {argument}=")
            units[name] = parse_amount(amount, f"resources[{name!r}]")
    return {name: amount for name, amount in units.items() if amount}


def to_numbers(resources: Mapping[str, int]) -> dict[str, float]:
    """Amounts as a user sees them."""
    return {name: units / UNITS for name, units in resources.items()}


def describe(resources: Mapping[str, int]) -> str:
    """For messages: "CPU: 2, memory: 7.1 GiB", or "nothing"."""
    return ", ".join(describe_one(name, resources[name]) for name in sorted(resources)) or "nothing"


def describe_one(name: str, units: int) -> str:
    if name in (MEMORY, OBJECT_STORE_MEMORY):
        amount = float(units / UNITS)
        for suffix in ("bytes", "KiB", "MiB", "GiB"):
            if amount < 1024 or suffix == "GiB":
                break
            amount /= 1024
        return f"{name}: {amount:.4g} {suffix}"
    return f"{name}: {units / UNITS:g}"
