"""Jobs: from a driver's registration to the last of its keys."""

from __future__ import annotations

import pytest

from ray._head import jobs
from ray._head.jobs import DriverGone, DriverRegistered, Emptied, EndActors, ForgetJob, JobTable
from ray._scheduling.machine import InvalidTransition

DRIVER = b"d" * 16


def registered(table: JobTable, tag: bytes = DRIVER) -> bytes:
    table.handle(DriverRegistered(tag, 7, {"entrypoint": "x.py", "namespace": "n"}), 1.0)
    job_id = table.of_driver(tag)
    assert job_id is not None
    return job_id


def test_ids_count_up_and_a_repeated_registration_keeps_its_job() -> None:
    table = JobTable()
    first = registered(table)
    assert first == b"\x01\0\0\0" == registered(table)
    assert registered(table, b"e" * 16) == b"\x02\0\0\0"
    table.check()


@pytest.mark.parametrize(("intended", "state"), [(True, jobs.FINISHED), (False, jobs.DIED)])
def test_a_job_ends_with_its_driver_and_is_forgotten_when_nothing_needs_it(intended: bool, state: str) -> None:
    table = JobTable()
    job_id = registered(table)
    actions = table.handle(DriverGone(DRIVER, "killed by SIGKILL", intended), 2.0)
    assert EndActors(job_id, "killed by SIGKILL") in actions and ForgetJob(job_id) not in actions
    assert table.in_state(jobs.ENDING) == [job_id]
    assert ForgetJob(job_id) in table.handle(Emptied(job_id), 3.0)
    row = table.get(job_id)
    assert row is not None and (row.state, row.started_s, row.ended_s) == (state, 1.0, 2.0)
    assert table.handle(DriverGone(DRIVER, "again", True), 4.0) == []
    table.check()


def test_finished_jobs_are_shown_for_a_while_only() -> None:
    table = JobTable()
    for i in range(jobs.ENDED_KEPT + 3):
        job_id = registered(table, b"%016d" % i)
        table.handle(DriverGone(b"%016d" % i, "", True), 2.0)
        dropped = [a for a in table.handle(Emptied(job_id), 3.0) if isinstance(a, jobs.DropJobRow)]
        assert len(dropped) == (1 if i >= jobs.ENDED_KEPT else 0)
        table.check()
    assert len(table.all()) == jobs.ENDED_KEPT


def test_a_running_job_cannot_be_emptied() -> None:
    table = JobTable()
    job_id = registered(table)
    with pytest.raises(InvalidTransition, match="DriverRegistered"):
        table.handle(Emptied(job_id), 2.0)


def test_restored_jobs_go_on_and_no_id_is_used_twice() -> None:
    table = JobTable()
    first, second = registered(table), registered(table, b"e" * 16)
    table.handle(DriverGone(DRIVER, "", True), 2.0)
    after = JobTable()
    after.restore(table.all())
    after.check()
    assert after.in_state(jobs.ENDING) == [first] and after.of_driver(b"e" * 16) == second
    assert registered(after, b"f" * 16) == b"\x03\0\0\0"


def test_the_id_of_a_job_that_only_nodes_know_of_is_not_used_again() -> None:
    table = JobTable()
    registered(table)
    after = JobTable()
    after.restore(table.all(), known=[b"\x01\0\0\0", b"\x05\0\0\0"])
    after.check()
    assert registered(after, b"f" * 16) == b"\x06\0\0\0"
