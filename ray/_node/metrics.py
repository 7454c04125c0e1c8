"""The metrics of all processes of the node, added up, and the text that Prometheus reads. Node's main thread.

Cores hand over what they measured at most once a second (`ray/_metrics.py`): counters and histograms as what came on
top, gauges as their value. A core's death leaves what it counted and takes its gauges. Pure; metrics_export.py adds
what the node itself knows, and lets it out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

SERIES_MAX = 100_000  # combinations of name and tags; further ones are dropped and counted
KINDS = ("counter", "gauge", "histogram")

Tags = tuple[tuple[str, str], ...]


class Family(NamedTuple):
    kind: str
    description: str
    boundaries: tuple[float, ...]
    series: dict[Tags, Any]  # counter: float; gauge: (value, time, core's tag); histogram: (counts, sum)


class Metrics:
    """Adds up."""

    def __init__(self) -> None:
        self.families: dict[str, Family] = {}
        self.series = 0
        self.dropped = 0  # values: there were too many series, or the name means something else in another process

    def take(self, tag: bytes, kinds: dict[str, Any], items: Iterable[Any]) -> None:
        """What the core `tag` hands over.

        Raises: TypeError, ValueError, KeyError: it makes no sense; what came before it counts.
        """
        for name, tags, value in items:
            kind, description, boundaries = kinds[name]
            family = self.families.get(name)
            if family is None:
                if kind not in KINDS:
                    raise ValueError(f"metrics: {name!r} is of no known kind: {kind!r}")
                family = self.families[name] = Family(kind, str(description), tuple(boundaries), {})
            elif (family.kind, family.boundaries) != (kind, tuple(boundaries)):
                self.dropped += 1
                continue
            if tags not in family.series:
                if self.series >= SERIES_MAX:
                    self.dropped += 1
                    continue
                self.series += 1
            self._add(family, tags, value, tag)

    def _add(self, family: Family, tags: Tags, value: Any, tag: bytes) -> None:
        known = family.series.get(tags)
        if family.kind == "counter":
            family.series[tags] = (known or 0.0) + float(value)
        elif family.kind == "gauge":
            if known is None or value[1] >= known[1]:
                family.series[tags] = (float(value[0]), float(value[1]), tag)
        else:
            counts, total = known or ([0] * (len(family.boundaries) + 1), 0.0)
            if len(value[0]) != len(counts):
                raise ValueError("metrics: a histogram's counts are not those of its boundaries")
            family.series[tags] = ([a + b for a, b in zip(counts, value[0])], total + value[1])

    def core_lost(self, tag: bytes) -> None:
        for family in self.families.values():
            if family.kind == "gauge":
                for tags in [tags for tags, value in family.series.items() if value[2] == tag]:
                    del family.series[tags]
                    self.series -= 1

    def show(self, name: str, description: str, values: Mapping[Tags, float]) -> None:
        """A gauge of the node's own, in the place of what it was."""
        self.families[name] = Family("gauge", description, (), {tags: (v, 0.0, b"") for tags, v in values.items()})

    def text(self) -> str:
        """In Prometheus's text format; names begin with ray_."""
        lines: list[str] = []
        for name, family in sorted(self.families.items()):
            if not family.series:
                continue
            full = "ray_" + name
            if family.kind == "counter" and not full.endswith("_total"):
                full += "_total"
            lines += [f"# HELP {full} {_escaped(family.description)}", f"# TYPE {full} {family.kind}"]
            for tags, value in sorted(family.series.items()):
                if family.kind == "histogram":
                    lines += _histogram(full, tags, value, family.boundaries)
                else:
                    lines.append(f"{full}{_braces(tags)} {_number(value if family.kind == 'counter' else value[0])}")
        return "".join(line + "\n" for line in lines)


def _histogram(name: str, tags: Tags, value: Any, boundaries: tuple[float, ...]) -> list[str]:
    counts, total = value
    lines, so_far = [], 0
    for end, count in zip((*boundaries, math.inf), counts):
        so_far += count
        lines.append(f"{name}_bucket{_braces((*tags, ('le', _number(end))))} {so_far}")
    return [*lines, f"{name}_sum{_braces(tags)} {_number(total)}", f"{name}_count{_braces(tags)} {so_far}"]


def _number(value: float) -> str:
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return str(int(value)) if value == int(value) and abs(value) < 2**53 else repr(float(value))


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n")


def _braces(tags: Tags) -> str:
    if not tags:
        return ""
    quoted = ((key, _escaped(value).replace('"', '\\"')) for key, value in tags)
    return "{" + ",".join(f'{key}="{value}"' for key, value in quoted) + "}"
