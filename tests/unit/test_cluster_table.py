"""The table of `python -m tests.perf.cluster`: what is compared, and whether an aim was met."""

from __future__ import annotations

from tests.perf import cluster

RATIO = cluster.Row("transfer", "copies", "plain", "≥ 0.8 of it", at_least=0.8)
COST = cluster.Row("killed", "recovery", "", "≤ 100", at_most=100)


def test_of_a_ratio_the_median_of_the_rounds_ratios_counts() -> None:
    assert cluster.counted(RATIO, [[1.0, 2.0], [9.0, 10.0], [30.0, 10.0]]) == 0.9
    assert cluster.met(RATIO, [[1.0, 2.0], [9.0, 10.0], [30.0, 10.0]]) == "yes"
    assert cluster.met(RATIO, [[1.0, 2.0]]) == "no"


def test_a_cost_meets_its_aim_from_below() -> None:
    assert cluster.met(COST, [[17.0], [90.0], [1000.0]]) == "yes"
    assert cluster.met(COST, [[101.0]]) == "no"


def test_a_row_that_failed_says_so() -> None:
    text = cluster.table([(COST, []), (RATIO, [[9.0, 10.0]])])
    assert "| recovery | failed | | | ≤ 100 | no |" in text
    assert "| copies | 9 | plain: 10 | 0.90 | ≥ 0.8 of it | yes |" in text


def test_each_row_is_one_that_can_be_measured() -> None:
    from tests.perf import cluster_rows

    assert {row.name for row in cluster.ROWS} == set(cluster_rows.ROWS)
