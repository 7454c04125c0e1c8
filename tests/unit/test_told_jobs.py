"""The head tells a node of a job before the first order that concerns it: ClusterHead.tell_job, with a node of the
test's."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from ray._node.cluster_head import ClusterHead
from ray._node.cores import Job

JOB = b"\1\0\0\0"


class Telling(ClusterHead):
    def __init__(self) -> None:
        self._node: Any = SimpleNamespace(cores=SimpleNamespace(jobs={JOB: Job(JOB, {})}), head=None)
        self._told_jobs = {1: set()}
        self.own = 0
        self.told: list[tuple[Any, ...]] = []

    def tell(self, number: int, name: str, *args: Any) -> None:
        self.told.append((number, name, *args))


def test_a_node_that_has_asked_for_a_job_is_told_of_it_before_its_first_order_all_the_same() -> None:
    # Cause, once: the order overtook the answer inside the node, whose pool then ignored an actor of a job that it had
    # not met: the actor was "being given a worker" for ever.
    cluster = Telling()
    info = cluster._on_node_rpc(1, "job_info", (JOB,))
    assert info == Job(JOB, {}).surroundings()
    cluster.tell_job(1, JOB)
    assert cluster.told == [(1, "job", JOB, info)]
    cluster.tell_job(1, JOB)
    assert len(cluster.told) == 1
