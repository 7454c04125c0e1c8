"""Workers: when they start, wait, are lent, end. No process, virtual clock."""

from __future__ import annotations

from typing import Any

import pytest

from ray._node import worker_messages as wm
from ray._node import worker_pool as wp
from ray._scheduling.machine import InvalidTransition

JOB, OTHER = b"\1\0\0\0", b"\2\0\0\0"


class Bench:
    def __init__(self, **options: Any) -> None:
        self.pool = wp.WorkerPool(**{"idle_kept": 1, **options})
        self.now = 0.0
        self.do(wm.JobStarted(JOB))

    def do(self, event: Any) -> list[Any]:
        actions = self.pool.handle(event, self.now)
        self.pool.check()
        return actions

    def up(self, start: wm.StartWorker) -> list[Any]:
        """The worker is forked and registers."""
        self.do(wm.Forked(start.worker_id, 1000 + start.worker_id))
        return self.do(wm.Registered(start.worker_id, bytes([start.worker_id]) * 16))

    def idle(self, count: int = 1) -> list[int]:
        starts = self.do(wm.Prestart(JOB, count))
        for start in starts:
            self.up(start)
        return [start.worker_id for start in starts]

    def pass_time(self) -> list[Any]:
        """To the next deadline."""
        at = self.pool.deadline()
        assert at is not None
        self.now = at
        return self.do(wm.Tick())


def kinds(actions: list[Any]) -> list[str]:
    return [type(action).__name__ for action in actions]


def test_a_worker_starts_when_a_ticket_waits_and_is_assigned_when_it_has_registered() -> None:
    bench = Bench()
    (start,) = bench.do(wm.Acquire(7, JOB))
    assert kinds([start]) == ["StartWorker"] and bench.pool.stats()["tickets_waiting"] == 1
    assert bench.up(start) == [wm.Assigned(7, start.worker_id, bytes([start.worker_id]) * 16, 1000 + start.worker_id)]


def test_an_idle_worker_is_reused_and_the_one_used_last_comes_first() -> None:
    bench = Bench(idle_kept=5)
    first, second = bench.idle(2)
    assert [a.worker_id for a in bench.do(wm.Acquire(1, JOB))] == [second]
    bench.do(wm.Released(second, True))
    assert [a.worker_id for a in bench.do(wm.Acquire(2, JOB))] == [second]
    assert [a.worker_id for a in bench.do(wm.Acquire(3, JOB))] == [first]


def test_an_actor_gets_a_worker_that_has_run_nothing_since_objects_of_its_tasks_would_die_with_the_actor() -> None:
    bench = Bench(idle_kept=5)
    used, unused = bench.idle(2)
    assert [a.worker_id for a in bench.do(wm.Acquire(1, JOB))] == [unused]
    bench.do(wm.Released(unused, True))
    assert [a.worker_id for a in bench.do(wm.Acquire(2, JOB, fresh=True))] == [used]  # the other one, now
    (start,) = bench.do(wm.Acquire(3, JOB, fresh=True))
    assert kinds([start]) == ["StartWorker"]
    assert [a.worker_id for a in bench.do(wm.Acquire(4, JOB))] == [
        unused
    ]  # the actor's ticket doesn't hold up a task's
    assert [(a.ticket, a.worker_id) for a in bench.up(start)] == [(3, start.worker_id)]


@pytest.mark.parametrize("stops", [True, False])
def test_a_worker_asked_to_drop_a_dead_owners_task_is_reused_if_it_does_and_killed_if_not(stops: bool) -> None:
    bench = Bench(idle_kept=5)
    (worker,) = bench.idle(1)
    bench.do(wm.Acquire(1, JOB))
    assert bench.do(wm.ReclaimAsked(worker, "its owner has ended")) == []
    if stops:
        bench.do(wm.Reclaimed(worker))
        assert bench.do(wm.Released(worker, True)) == []
        assert [a.worker_id for a in bench.do(wm.Acquire(2, JOB))] == [worker]
    else:
        assert kinds(bench.pass_time()) == ["Kill"]


def test_a_worker_never_serves_another_job() -> None:
    bench = Bench()
    bench.idle()
    bench.do(wm.JobStarted(OTHER))
    assert kinds(bench.do(wm.Acquire(1, OTHER))) == ["StartWorker"]


def test_tickets_are_served_in_order() -> None:
    bench = Bench(starting_max=1)
    (start,) = bench.do(wm.Acquire(1, JOB))
    assert bench.do(wm.Acquire(2, JOB)) == []  # one start at a time
    actions = bench.up(start)
    assert actions[0].ticket == 1 and kinds(actions) == ["Assigned", "StartWorker"]


def test_a_cancelled_ticket_leaves_its_worker_idle_for_the_next() -> None:
    bench = Bench()
    (start,) = bench.do(wm.Acquire(1, JOB))
    bench.do(wm.AcquireCancelled(1))
    assert bench.up(start) == []
    assert [a.ticket for a in bench.do(wm.Acquire(2, JOB))] == [2]


def test_workers_idle_too_long_are_asked_to_exit_down_to_the_number_kept_and_then_no_timer_is_set() -> None:
    bench = Bench(idle_kept=1, idle_timeout_s=10.0)
    first, second, third = bench.idle(3)
    assert bench.pool.deadline() == 10.0
    assert bench.pass_time() == [wm.AskToExit(first), wm.AskToExit(second)]
    for worker_id in (first, second):
        assert bench.do(wm.Exited(worker_id, "exited with code 0"))[0].was_assigned is False
    assert bench.pool.deadline() is None
    assert [a.worker_id for a in bench.do(wm.Acquire(1, JOB))] == [third]


def test_a_worker_that_ignores_exit_is_killed() -> None:
    bench = Bench(idle_kept=0, exit_grace_s=5.0)
    (worker,) = bench.idle()
    assert bench.pass_time() == [wm.AskToExit(worker)]
    assert bench.pass_time() == [wm.Kill(worker, 1000 + worker)]
    assert bench.pool.deadline() is None


def test_a_worker_that_is_not_reusable_exits_and_another_starts_for_who_waits() -> None:
    bench = Bench(starting_max=1)
    (worker,) = bench.idle()
    bench.do(wm.Acquire(1, JOB))
    bench.do(wm.Acquire(2, JOB))
    assert kinds(bench.do(wm.Released(worker, False))) == ["AskToExit"]
    assert kinds(bench.do(wm.Exited(worker, "exited with code 0"))) == ["WorkerGone"]


def test_death_while_assigned_is_told_with_its_cause_and_why_we_killed_it_wins() -> None:
    bench = Bench()
    (worker,) = bench.idle()
    bench.do(wm.Acquire(1, JOB))
    assert bench.do(wm.KillAsked(worker, "killed by ray.cancel(force=True)")) == [wm.Kill(worker, 1000 + worker)]
    (gone,) = bench.do(wm.Exited(worker, "killed by SIGKILL"))
    assert gone.was_assigned and gone.cause == "killed by ray.cancel(force=True)"


def test_a_worker_killed_on_purpose_is_not_lent_again_while_it_dies() -> None:
    bench = Bench()
    (worker,) = bench.idle()
    bench.do(wm.Acquire(1, JOB))
    bench.do(wm.KillAsked(worker, "x"))
    bench.do(wm.Released(worker, True))
    assert kinds(bench.do(wm.Acquire(2, JOB))) == ["StartWorker"]


def test_starts_that_fail_are_tried_again_ever_more_slowly_and_a_person_is_told() -> None:
    bench = Bench(start_retries_max=3)
    (start,) = bench.do(wm.Acquire(1, JOB))
    waits, told = [], []
    for _ in range(5):
        bench.do(wm.Forked(start.worker_id, 1))
        actions = bench.do(wm.Exited(start.worker_id, "exited with code 1; it wrote: boom"))
        told += [a for a in actions if isinstance(a, wm.StartsFailing)]
        waits.append(bench.pool.deadline() - bench.now)
        (start,) = bench.pass_time()
    assert waits == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6])
    assert [(t.tries, "boom" in t.cause) for t in told] == [(3, True)]
    assert kinds(bench.up(start)) == ["Assigned"]


def test_the_fork_servers_death_fails_its_starts_and_they_are_asked_again() -> None:
    bench = Bench()
    (start,) = bench.do(wm.Acquire(1, JOB))
    bench.do(wm.ForkFailed(start.worker_id, "the fork server was killed by SIGKILL"))
    (again,) = bench.pass_time()
    assert again.worker_id != start.worker_id


def test_a_worker_that_never_registers_is_killed_and_replaced() -> None:
    bench = Bench(start_timeout_s=30.0)
    (start,) = bench.do(wm.Acquire(1, JOB))
    bench.do(wm.Forked(start.worker_id, 5))
    assert bench.pass_time() == [wm.Kill(start.worker_id, 5)]
    assert bench.now == 30.0
    gone, *_ = bench.do(wm.Exited(start.worker_id, "killed by SIGKILL"))
    assert "did not register within 30 s" in gone.cause
    assert kinds(bench.pass_time()) == ["StartWorker"]


def test_the_end_of_a_job_ends_all_its_workers_also_those_not_forked_yet() -> None:
    bench = Bench(idle_kept=9)
    idle, assigned = bench.idle(2)
    bench.do(wm.Acquire(1, JOB))
    assert kinds(bench.do(wm.Acquire(2, JOB))) == ["Assigned"]
    bench.do(wm.Released(idle, True))
    bench.do(wm.Prestart(JOB, 2))
    (late,) = [worker for worker in bench.pool.workers.values() if worker.state == wp.STARTING]
    assert {(type(a).__name__, a.worker_id) for a in bench.do(wm.JobEnded(JOB))} == {
        ("AskToExit", idle),
        ("Kill", assigned),
    }
    assert kinds(bench.do(wm.Forked(late.worker_id, 77))) == ["Kill"]
    for worker_id in list(bench.pool.workers):
        bench.do(wm.Exited(worker_id, "x"))
    assert bench.pool.deadline() is None
    assert bench.do(wm.Acquire(4, JOB)) == []


def test_prestart_asks_only_for_what_is_missing() -> None:
    bench = Bench(idle_kept=9)
    assert len(bench.do(wm.Prestart(JOB, 2))) == 2
    assert bench.do(wm.Prestart(JOB, 2)) == []
    assert bench.do(wm.Acquire(1, JOB)) == []  # one is on the way already


def test_repeated_and_late_news_is_ignored() -> None:
    bench = Bench()
    (worker,) = bench.idle()
    for event in (wm.Registered(worker, b"x" * 16), wm.Exited(99, ""), wm.Released(worker, True), wm.JobEnded(b"none")):
        assert bench.do(event) == []
    assert bench.pool.ignored == 4


def test_a_missing_row_raises_with_the_story_of_the_worker() -> None:
    bench = Bench()
    (worker,) = bench.idle()
    with pytest.raises(InvalidTransition, match=r"Released in IDLE.*STARTING --Registered--> IDLE"):
        bench.pool._go(bench.pool.workers[worker], "Released", 0.0)


def test_a_worker_that_owns_what_others_need_may_stay_after_it_was_asked_to_exit() -> None:
    bench = Bench(idle_kept=0)
    (worker,) = bench.idle()
    assert bench.pass_time() == [wm.AskToExit(worker)]
    bench.do(wm.ExitPostponed(worker))
    assert bench.pool.deadline() is None
    assert kinds(bench.do(wm.Acquire(1, JOB))) == ["StartWorker"]  # but it gets no more work


@pytest.mark.parametrize("postponed", ["before", "after"])
def test_a_worker_whose_job_is_over_may_not_stay_whatever_it_owns(postponed: str) -> None:
    bench = Bench(idle_kept=0)
    (worker,) = bench.idle()
    if postponed == "before":
        bench.pass_time()
        bench.do(wm.ExitPostponed(worker))
    bench.do(wm.JobEnded(JOB))
    if postponed == "after":
        assert kinds(bench.do(wm.ExitPostponed(worker))) == ["Kill"]
    assert bench.pool.deadline() is None
    assert kinds(bench.do(wm.Exited(worker, "SIGKILL"))) == ["WorkerGone"]


def test_nothing_starts_any_more_once_the_session_ends() -> None:
    bench = Bench()
    (start,) = bench.do(wm.Acquire(1, JOB))
    bench.do(wm.NoMoreStarts())
    bench.do(wm.Exited(start.worker_id, "x"))
    assert bench.do(wm.Acquire(2, JOB)) == [] and bench.pool.deadline() is None


# -- kinds: a job's workers in one environment --------------------------------------------------------------------


def test_a_worker_is_lent_only_to_tickets_of_its_own_environment() -> None:
    bench = Bench(idle_kept=5)
    (plain,) = bench.idle()
    (start,) = bench.do(wm.Acquire(1, JOB, env="e"))
    assert start == wm.StartWorker(start.worker_id, JOB, "e") and start.worker_id != plain
    assert [a.worker_id for a in bench.up(start)] == [start.worker_id]
    assert [a.worker_id for a in bench.do(wm.Acquire(2, JOB))] == [plain]
    bench.do(wm.Released(start.worker_id, True))
    assert [a.worker_id for a in bench.do(wm.Acquire(3, JOB, env="e"))] == [start.worker_id]


def test_the_one_idle_longest_goes_first_whatever_its_environment() -> None:
    bench = Bench(idle_kept=1)
    bench.idle()
    bench.now = 1.0
    (start,) = bench.do(wm.Prestart(JOB, 1, "e"))
    bench.up(start)
    assert kinds(bench.pass_time()) == ["AskToExit"] and bench.pool.workers[1].state == "EXITING"


def test_a_setup_hook_that_raised_is_told_to_who_waits_and_no_other_worker_is_started() -> None:
    bench = Bench()
    (start,) = bench.do(wm.Acquire(1, JOB, env="e"))
    bench.do(wm.Forked(start.worker_id, 1001))
    actions = bench.do(wm.SetupFailed(start.worker_id, "ArithmeticError"))
    assert actions == [wm.EnvBroken(JOB, "e", "ArithmeticError"), wm.Kill(start.worker_id, 1001)]
    assert kinds(bench.do(wm.Exited(start.worker_id, "killed"))) == ["WorkerGone"]
    assert bench.pool.stats()["tickets_waiting"] == 0 and bench.pool.deadline() is None
    assert kinds(bench.do(wm.Acquire(2, JOB, env="e"))) == ["StartWorker"], "who asks anew is answered anew"


def test_an_environment_in_which_no_worker_comes_up_is_given_up_for_those_who_wait() -> None:
    bench = Bench(start_retries_max=2)
    (start,) = bench.do(wm.Acquire(1, JOB, env="e"))
    bench.do(wm.Exited(start.worker_id, "exited with code 127"))
    (again,) = bench.pass_time()
    actions = bench.do(wm.Exited(again.worker_id, "exited with code 127"))
    (broken,) = [action for action in actions if isinstance(action, wm.EnvBroken)]
    assert broken.env == "e" and "2 workers in a row" in broken.cause and "127" in broken.cause
    assert bench.pool.stats()["tickets_waiting"] == 0


def test_idle_workers_of_an_environment_that_is_removed_are_asked_to_leave() -> None:
    bench = Bench(idle_kept=5)
    bench.idle()
    (start,) = bench.do(wm.Prestart(JOB, 1, "e"))
    bench.up(start)
    assert bench.do(wm.EnvForgotten("e")) == [wm.AskToExit(start.worker_id)]
    assert bench.do(wm.EnvForgotten("other")) == []
