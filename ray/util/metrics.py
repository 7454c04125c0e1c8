"""Counter, Gauge and Histogram: numbers that tasks, actors and drivers report, for Prometheus.

The values of all processes of a node come together there: counters and histograms add up, and of a gauge the value that
was set last is shown, for as long as the process that set it lives. `prometheus_text()` and `ray metrics` print them
with those of the system; `ray.init(_metrics_export_port=9090)` serves them at http://127.0.0.1:9090/metrics. There each
name begins with `ray_`, and a counter's ends with `_total`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

from ray import _inspect
from ray._metrics import COUNTER, GAUGE, HISTOGRAM, Tags, registry

_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_TAG = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")
_NAME_CHARS_MAX = 200
_TAG_CHARS_MAX = 1000


class Metric:
    """What the three kinds have in common. Can be pickled, and so be captured by a remote function."""

    _kind = ""

    def __init__(self, name: str, description: str = "", tag_keys: tuple[str, ...] | None = None) -> None:
        """Args:
            name: letters, digits, "_" and ":", not beginning with a digit.
            description: for people.
            tag_keys: what each value is to be tagged with.
        Raises: TypeError, ValueError: about one argument, or the name stands for a metric of another kind.
        """
        who = type(self).__name__
        if not isinstance(name, str):
            raise TypeError(f"{who}: name={name!r}: expected a str")
        if not _NAME.fullmatch(name) or len(name) > _NAME_CHARS_MAX:
            raise ValueError(
                f"{who}: name={name!r}: expected letters, digits, '_' and ':', not beginning with a digit, at most "
                f"{_NAME_CHARS_MAX}"
            )
        if not isinstance(description, str):
            raise TypeError(f"{who}: description={description!r}: expected a str")
        if tag_keys is not None and not isinstance(tag_keys, tuple):
            raise TypeError(f"{who}: tag_keys={tag_keys!r}: expected a tuple of str")
        for key in tag_keys or ():
            if not isinstance(key, str):
                raise TypeError(f"{who}: tag_keys={tag_keys!r}: {key!r} is not a str")
            if not _TAG.fullmatch(key):
                raise ValueError(f"{who}: tag_keys={tag_keys!r}: {key!r} is not letters, digits and '_'")
        self._name = name
        self._description = description
        self._tag_keys = tag_keys or ()
        self._default_tags: dict[str, str] = {}
        self._usual: Tags | None = None  # the tags of a value that is given none
        registry.declare(name, self._kind, description, self._boundaries())

    def set_default_tags(self, default_tags: dict[str, str]) -> Metric:
        """Tags for values that are given without; returns the metric itself.

        Raises: ValueError: a key that is not among tag_keys.  TypeError: a value that is not a str.
        """
        self._check_tags(default_tags)
        self._default_tags = dict(default_tags)
        self._usual = None
        return self

    @property
    def info(self) -> dict[str, Any]:
        """name, description, tag_keys and default_tags."""
        return {
            "name": self._name,
            "description": self._description,
            "tag_keys": self._tag_keys,
            "default_tags": dict(self._default_tags),
        }

    def _boundaries(self) -> tuple[float, ...]:
        return ()

    def _check_tags(self, tags: object) -> None:
        if not isinstance(tags, dict):
            raise TypeError(f"{self._name}: tags={tags!r}: expected a dict")
        for key, value in tags.items():
            if key not in self._tag_keys:
                raise ValueError(f"{self._name}: unrecognized tag key {key!r}; tag_keys are {self._tag_keys!r}")
            if not isinstance(value, str):
                raise TypeError(f"{self._name}: tag {key!r} is {value!r}: tag values must be str")

    def _tags(self, tags: dict[str, str] | None) -> Tags:
        if tags is None and self._usual is not None:
            return self._usual
        if tags is not None:
            self._check_tags(tags)
        final = {**self._default_tags, **(tags or {})}
        missing = [key for key in self._tag_keys if key not in final]
        if missing:
            raise ValueError(f"{self._name}: missing value for tag key(s): {', '.join(missing)}")
        made = tuple((key, final[key][:_TAG_CHARS_MAX]) for key in self._tag_keys)
        if tags is None:
            self._usual = made
        return made

    def _check_value(self, value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise TypeError(f"{self._name}: value={value!r}: expected an int or float")
        if math.isnan(value):
            raise ValueError(f"{self._name}: value is not a number (nan)")
        return float(value)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_usual": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        registry.declare(self._name, self._kind, self._description, self._boundaries())

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._name!r}, tag_keys={self._tag_keys!r})"


class Counter(Metric):
    """A number that only grows."""

    _kind = COUNTER

    def inc(self, value: float = 1.0, tags: dict[str, str] | None = None) -> None:
        """Adds value (> 0). Raises: ValueError, TypeError: about the value or the tags."""
        amount = self._check_value(value)
        if not 0 < amount < math.inf:
            raise ValueError(f"{self._name}: value={value!r}: a counter grows, by a finite number > 0")
        registry.add(self._name, self._tags(tags), amount)


class Gauge(Metric):
    """A number that goes up and down."""

    _kind = GAUGE

    def set(self, value: float | None, tags: dict[str, str] | None = None) -> None:
        """Makes it value; None changes nothing. Raises: ValueError, TypeError: about the value or the tags."""
        if value is not None:
            registry.set(self._name, self._tags(tags), self._check_value(value))


class Histogram(Metric):
    """How many values fell between which boundaries."""

    _kind = HISTOGRAM

    def __init__(
        self,
        name: str,
        description: str = "",
        boundaries: Sequence[float] | None = None,
        tag_keys: tuple[str, ...] | None = None,
    ) -> None:
        """Args:
        boundaries: upper ends of the buckets, > 0 and growing; a last bucket takes all above.
        name, description, tag_keys: as of every metric.
        """
        if boundaries is None or isinstance(boundaries, str) or not len(boundaries):
            raise ValueError(f"Histogram: boundaries={boundaries!r}: expected numbers, such as [0.1, 1.0, 10.0]")
        for end in boundaries:
            if isinstance(end, bool) or not isinstance(end, (int, float)):
                raise TypeError(f"Histogram: boundaries={boundaries!r}: {end!r} is not a number")
            if not 0 < end < math.inf:
                raise ValueError(f"Histogram: boundaries={boundaries!r}: {end!r} is not a finite number > 0")
        if any(b <= a for a, b in zip(boundaries, boundaries[1:])):
            raise ValueError(f"Histogram: boundaries={boundaries!r}: expected each to be above the one before")
        self.boundaries: list[float] = list(boundaries)
        super().__init__(name, description, tag_keys)

    def _boundaries(self) -> tuple[float, ...]:
        return tuple(float(end) for end in self.boundaries)

    def observe(self, value: float, tags: dict[str, str] | None = None) -> None:
        """Counts value in its bucket. Raises: ValueError, TypeError: about the value or the tags."""
        registry.observe(self._name, self._tags(tags), self._check_value(value))

    @property
    def info(self) -> dict[str, Any]:
        """name, description, tag_keys, default_tags and boundaries."""
        return {**super().info, "boundaries": self.boundaries}


def prometheus_text(address: str | None = None, timeout: float = 10.0) -> str:
    """All metrics of the node, those of the system too, in the text format that Prometheus reads.

    Args: address: as of `ray.util.state.list_tasks`.  timeout: seconds that processes have to hand over theirs.
    Raises: ConnectionError: there is no session.
    Blocks: until every process has answered, or timeout has passed.
    """
    with _inspect.source(address, timeout) as session:
        text: str = session.rpc("metrics", timeout, timeout=timeout + 10.0)
        return text


__all__ = ["Counter", "Gauge", "Histogram", "Metric", "prometheus_text"]
