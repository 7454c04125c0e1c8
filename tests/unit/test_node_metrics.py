"""The node's sums of what cores measured, and Prometheus's text of them. No process."""

from __future__ import annotations

import pytest

from ray._node import metrics
from ray._node.metrics import Metrics

A, B = b"a" * 16, b"b" * 16
KINDS = {
    "served": ("counter", "How many.", ()),
    "level": ("gauge", "How\nhigh.", ()),
    "took": ("histogram", "", (0.5, 2.0)),
}


def test_counters_and_histograms_of_all_processes_add_up() -> None:
    m = Metrics()
    m.take(A, KINDS, [("served", (), 2.0), ("took", (), ([1, 0, 2], 9.5))])
    m.take(B, KINDS, [("served", (), 0.5), ("took", (), ([0, 3, 0], 3.0))])
    m.core_lost(A)
    assert m.text() == (
        "# HELP ray_served_total How many.\n# TYPE ray_served_total counter\nray_served_total 2.5\n"
        "# HELP ray_took \n# TYPE ray_took histogram\n"
        'ray_took_bucket{le="0.5"} 1\nray_took_bucket{le="2"} 4\nray_took_bucket{le="+Inf"} 6\n'
        "ray_took_sum 12.5\nray_took_count 6\n"
    )


def test_the_last_value_of_a_gauge_rules_while_its_process_lives() -> None:
    m = Metrics()
    m.take(A, KINDS, [("level", (("at", "x"),), (7.0, 100.0))])
    m.take(B, KINDS, [("level", (("at", "x"),), (5.0, 99.0)), ("level", (("at", "y"),), (1.5, 1.0))])
    assert 'ray_level{at="x"} 7\n' in m.text() and 'ray_level{at="y"} 1.5\n' in m.text()
    m.core_lost(A)
    assert 'at="x"' not in m.text() and 'at="y"' in m.text()
    m.core_lost(B)
    assert m.text() == "" and m.series == 0


def test_texts_are_escaped() -> None:
    m = Metrics()
    m.take(A, KINDS, [("level", (("at", 'a"b\\c\nd'),), (1.0, 1.0))])
    assert m.text().splitlines() == [
        "# HELP ray_level How\\nhigh.",
        "# TYPE ray_level gauge",
        'ray_level{at="a\\"b\\\\c\\nd"} 1',
    ]


def test_a_name_that_means_two_things_keeps_its_first_meaning() -> None:
    m = Metrics()
    m.take(A, KINDS, [("served", (), 2.0)])
    m.take(B, {"served": ("gauge", "", ())}, [("served", (), (9.0, 1.0))])
    assert "ray_served_total 2\n" in m.text() and m.dropped == 1


def test_series_without_end_are_dropped_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "SERIES_MAX", 3)
    m = Metrics()
    m.take(A, KINDS, [("served", (("user", str(i)),), 1.0) for i in range(5)])
    assert m.series == 3 and m.dropped == 2


@pytest.mark.parametrize(
    "items", [[("served",)], [("unknown", (), 1.0)], [("served", (), "many")], [("took", (), ([1], 1.0))]]
)
def test_nonsense_raises(items: list[object]) -> None:
    with pytest.raises((TypeError, ValueError, KeyError)):
        Metrics().take(A, KINDS, items)
