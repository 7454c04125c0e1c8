"""Leases: who gets what, in which order, and what becomes of them when somebody dies. No process, virtual clock."""

from __future__ import annotations

from typing import Any

import pytest

from ray._node import lease_messages as lm
from ray._node import local_scheduler as ls
from ray._scheduling.machine import InvalidTransition
from ray._scheduling.node_resources import NodeResources

JOB = b"\1\0\0\0"
A, B, C = (bytes([n]) * 16 for n in (1, 2, 3))
CPU1, CPU2 = {"CPU": 10_000}, {"CPU": 20_000}


class Bench:
    """A scheduler whose worker pool answers at once: worker n for ticket n."""

    def __init__(self, total: dict[str, int] | None = None, **options: Any) -> None:
        self.machine = ls.LocalScheduler(NodeResources(total or {"CPU": 20_000}), **options)
        self.now = 0.0
        self.staffed = True
        self.held_tickets: list[int] = []
        for tag in (A, B, C):
            self.do(lm.CoreJoined(tag, JOB))

    def do(self, event: Any) -> list[Any]:
        done: list[Any] = []
        events = [event]
        while events:
            for action in self.machine.handle(events.pop(0), self.now):
                done.append(action)
                if isinstance(action, lm.AcquireWorker):
                    if self.staffed:
                        events.append(self.worker(action.ticket))
                    else:
                        self.held_tickets.append(action.ticket)
            self.machine.check()
        return done

    def worker(self, ticket: int) -> lm.WorkerAssigned:
        return lm.WorkerAssigned(ticket, ticket, bytes([ticket]) * 16, 1000 + ticket)

    def ask(self, tag: bytes, req_id: int, resources: dict[str, int], **more: Any) -> list[Any]:
        return self.do(lm.LeaseRequested(tag, req_id, resources, "f", **more))

    def free(self, name: str = "CPU") -> int:
        return self.machine.resources.available[name]


def grants(actions: list[Any]) -> list[tuple[bytes, int]]:
    return [(a.tag, a.req_id) for a in actions if isinstance(a, lm.Grant)]


def the(kind: type, actions: list[Any]) -> Any:
    (found,) = [a for a in actions if isinstance(a, kind)]
    return found


def test_a_request_is_granted_at_once_while_resources_are_free_and_waits_when_they_are_not() -> None:
    bench = Bench()
    assert grants(bench.ask(A, 1, CPU1)) == [(A, 1)]
    lease = the(lm.Grant, bench.ask(A, 2, CPU1)).lease_id
    assert grants(bench.ask(A, 3, CPU1)) == []
    assert grants(bench.do(lm.LeaseReturned(A, lease, True))) == [(A, 3)]


def test_fractions_share_a_cpu_exactly() -> None:
    bench = Bench({"CPU": 10_000})
    for req_id in range(10):
        assert grants(bench.ask(A, req_id, {"CPU": 1_000})) == [(A, req_id)]
    assert bench.free() == 0
    assert grants(bench.ask(A, 99, {"CPU": 1})) == []


def test_whole_gpus_are_distinct_and_fractions_share_the_fullest_that_has_room() -> None:
    bench = Bench({"CPU": 80_000, "GPU": 30_000})
    ids = [
        the(lm.Grant, bench.ask(A, n, {"GPU": units})).gpu_ids for n, units in enumerate([10_000, 5_000, 2_500, 2_500])
    ]
    assert ids == [[0], [1], [1], [1]]
    assert the(lm.Grant, bench.ask(A, 9, {"GPU": 10_000})).gpu_ids == [2]
    assert grants(bench.ask(A, 10, {"GPU": 1})) == []


def test_half_of_one_gpu_and_half_of_another_are_no_whole_gpu() -> None:
    bench = Bench({"GPU": 20_000})
    first = the(lm.Grant, bench.ask(A, 1, {"GPU": 6_000}))
    second = the(lm.Grant, bench.ask(A, 2, {"GPU": 6_000}))
    assert (first.gpu_ids, second.gpu_ids) == ([0], [1])
    assert grants(bench.ask(A, 3, {"GPU": 8_000})) == []
    assert grants(bench.do(lm.LeaseReturned(A, first.lease_id, True))) == [(A, 3)]


def test_what_can_never_run_names_the_resource_the_ask_and_what_the_node_has() -> None:
    bench = Bench({"CPU": 20_000, "memory": 8 * 2**30 * 10_000})
    message = the(lm.Infeasible, bench.ask(A, 1, {"CPU": 160_000})).message
    assert "f can't be scheduled" in message and "CPU: 16" in message and "CPU: 2" in message
    message = the(lm.Infeasible, bench.ask(A, 2, {"GPU": 10_000})).message
    assert "no 'GPU'" in message and "memory: 8 GiB" in message
    assert bench.machine.stats()["infeasible"] == 2
    assert bench.do(lm.LeaseCancelled(A, 1)) == [] and bench.machine.stats()["infeasible"] == 1


def test_a_higher_priority_is_served_first_whoever_asked_first() -> None:
    bench = Bench({"CPU": 10_000})
    lease = the(lm.Grant, bench.ask(A, 0, CPU1)).lease_id
    for req_id, (tag, priority) in enumerate([(A, 0), (B, 5), (C, -1), (A, 5), (C, 9)], 1):
        bench.ask(tag, req_id, CPU1, priority=priority)
    order = []
    holder = A
    while granted := [a for a in bench.do(lm.LeaseReturned(holder, lease, True)) if isinstance(a, lm.Grant)]:
        (grant,) = granted
        order.append(grant.req_id)
        holder, lease = grant.tag, grant.lease_id
    assert order == [5, 2, 4, 1, 3]


def test_all_of_a_higher_priority_come_before_one_of_a_lower() -> None:
    bench = Bench({"CPU": 40_000})
    lease = the(lm.Grant, bench.ask(A, 0, {"CPU": 40_000})).lease_id
    for req_id in range(1, 5):
        bench.ask(B, req_id, CPU1)
        bench.ask(C, req_id, CPU1, priority=1)
    assert grants(bench.do(lm.LeaseReturned(A, lease, True))) == [(C, req_id) for req_id in range(1, 5)]


def test_a_holder_is_asked_back_for_a_higher_priority_of_its_own_but_not_for_a_lower() -> None:
    for held, asked, expected in ((0, 1, [A]), (1, 0, []), (0, 0, [])):
        bench = Bench({"CPU": 10_000})
        bench.ask(A, 0, CPU1, priority=held)
        done = bench.ask(A, 1, CPU1, priority=asked)
        assert [a.tag for a in done if isinstance(a, lm.LeaseWanted)] == expected


def test_owners_take_turns_so_a_long_queue_does_not_shut_out_a_short_one() -> None:
    bench = Bench({"CPU": 10_000})
    lease = the(lm.Grant, bench.ask(A, 0, CPU1)).lease_id
    for req_id in range(1, 6):
        bench.ask(A, req_id, CPU1)
    bench.ask(B, 1, CPU1)
    order = []
    for owner in (A, A, B, A, A, A):
        grant = the(lm.Grant, bench.do(lm.LeaseReturned(owner if not order else order[-1][0], lease, True)))
        order.append((grant.tag, grant.req_id))
        lease = grant.lease_id
    assert order.index((B, 1)) <= 1


def test_jobs_take_turns_so_one_with_many_owners_gets_no_more_than_one_with_a_driver_alone() -> None:
    bench = Bench({"CPU": 10_000})
    others = [bytes([n]) * 16 for n in range(100, 120)]
    for tag in others:
        bench.do(lm.CoreJoined(tag, b"\2\0\0\0"))
    lease = the(lm.Grant, bench.ask(others[0], 0, CPU1))
    for tag in others:
        bench.ask(tag, 1, CPU1)
    for req_id in range(1, 5):
        bench.ask(A, req_id, CPU1)
    order = []
    for _ in range(8):
        lease = the(lm.Grant, bench.do(lm.LeaseReturned(lease.tag, lease.lease_id, True)))
        order.append(lease.tag)
    assert [tag == A for tag in order] in ([True, False] * 4, [False, True] * 4)
    assert len({tag for tag in order if tag != A}) == 4, "its owners take turns"


def test_classes_take_turns() -> None:
    bench = Bench({"CPU": 10_000, "x": 990_000})
    lease = the(lm.Grant, bench.ask(A, 0, CPU1)).lease_id
    small, other = CPU1, {"CPU": 10_000, "x": 10_000}
    for req_id in range(1, 4):
        bench.ask(A, req_id, small)
    for req_id in range(11, 14):
        bench.ask(A, req_id, other)
    order = []
    while grant := [g for g in bench.do(lm.LeaseReturned(A, lease, True)) if isinstance(g, lm.Grant)]:
        order.append(grant[0].req_id)
        lease = grant[0].lease_id
    assert order == [1, 11, 2, 12, 3, 13]


def test_holders_are_asked_once_to_give_back_when_somebody_else_waits() -> None:
    bench = Bench()
    bench.ask(A, 1, CPU1)
    bench.ask(A, 2, CPU1)
    assert [a for a in bench.ask(A, 3, CPU1) if isinstance(a, lm.LeaseWanted)] == []  # only itself, for the same
    assert [a.tag for a in bench.ask(B, 1, CPU1) if isinstance(a, lm.LeaseWanted)] == [A]
    assert [a for a in bench.ask(B, 2, CPU1) if isinstance(a, lm.LeaseWanted)] == []


def test_a_holder_of_one_class_is_asked_for_its_own_request_of_another() -> None:
    bench = Bench()
    bench.ask(A, 1, CPU1)
    assert [a.tag for a in bench.ask(A, 2, CPU2) if isinstance(a, lm.LeaseWanted)] == [A]


def test_a_blocked_task_lends_its_cpus_and_takes_them_back_at_once() -> None:
    bench = Bench({"CPU": 10_000, "GPU": 10_000})
    parent = the(lm.Grant, bench.ask(A, 1, {"CPU": 10_000, "GPU": 10_000}))
    bench.ask(B, 1, CPU1)
    bench.ask(C, 1, {"GPU": 10_000})
    assert grants(bench.do(lm.Blocked(parent.worker_id))) == [(B, 1)]  # CPUs only: the GPU's memory is still in use
    bench.do(lm.Unblocked(parent.worker_id))
    assert bench.free() == -10_000
    bench.do(lm.Unblocked(parent.worker_id))  # repeated: harmless
    assert bench.free() == -10_000


def test_nested_blocking_of_any_depth_never_deadlocks() -> None:
    bench = Bench({"CPU": 10_000})
    for depth in range(50):
        grant = the(lm.Grant, bench.ask(A, depth, CPU1))
        bench.do(lm.Blocked(grant.worker_id))
    assert bench.free() == 10_000


def test_the_death_of_a_worker_frees_its_resources_and_tells_the_owner() -> None:
    bench = Bench({"CPU": 10_000})
    grant = the(lm.Grant, bench.ask(A, 1, CPU1))
    bench.do(lm.Blocked(grant.worker_id))
    lost = the(lm.LeaseLost, bench.do(lm.WorkerLost(grant.worker_id, "killed by SIGKILL")))
    assert lost == lm.LeaseLost(A, grant.lease_id, "killed by SIGKILL")
    assert bench.free() == 10_000
    assert bench.do(lm.LeaseReturned(A, grant.lease_id, True)) == []  # it crossed with the news


def test_a_lease_whose_holder_lost_its_connection_to_a_worker_that_lives_is_over() -> None:
    """To its holder the worker is dead, and nobody would give it back: found by the simulation, seed 8001263."""
    bench = Bench({"CPU": 10_000})
    grant = the(lm.Grant, bench.ask(A, 1, CPU1))
    assert bench.do(lm.HolderCutOff(B, grant.worker_id)) == []
    actions = bench.do(lm.HolderCutOff(A, grant.worker_id))
    assert the(lm.LeaseLost, actions).lease_id == grant.lease_id
    reclaim = the(lm.ReclaimWorker, actions)
    assert (reclaim.worker_id, reclaim.tag) == (grant.worker_id, A) and bench.free() == 0
    assert bench.do(lm.HolderCutOff(A, grant.worker_id)) == bench.do(lm.LeaseReturned(A, grant.lease_id, True)) == []
    the(lm.ReleaseWorker, bench.do(lm.Reclaimed(grant.worker_id, True)))
    assert bench.free() == 10_000


@pytest.mark.parametrize(("stops", "reusable"), [(True, True), (True, False), (False, False)])
def test_the_death_of_an_owner_reclaims_its_workers_and_frees_when_they_have_stopped_or_are_dead(
    stops: bool, reusable: bool
) -> None:
    bench = Bench({"CPU": 10_000})
    grant = the(lm.Grant, bench.ask(A, 1, CPU1))
    bench.ask(A, 2, CPU1)
    bench.ask(B, 1, CPU1)
    actions = bench.do(lm.CoreLeft(A))
    assert the(lm.ReclaimWorker, actions).worker_id == grant.worker_id
    assert grants(actions) == [] and bench.free() == 0
    if stops:
        after = bench.do(lm.Reclaimed(grant.worker_id, reusable))
        assert the(lm.ReleaseWorker, after).reusable == reusable
    else:
        after = bench.do(lm.WorkerLost(grant.worker_id, "killed by SIGKILL"))
    assert grants(after) == [(B, 1)]


@pytest.mark.parametrize("how", ["cancelled", "owner left"])
def test_a_request_that_ends_while_its_worker_starts_gives_everything_back(how: str) -> None:
    bench = Bench({"CPU": 10_000})
    bench.staffed = False
    bench.ask(A, 1, CPU1)
    assert bench.free() == 0
    actions = bench.do(lm.LeaseCancelled(A, 1) if how == "cancelled" else lm.CoreLeft(A))
    assert the(lm.CancelAcquire, actions).ticket == bench.held_tickets[0]
    assert bench.free() == 10_000
    # The pool had assigned one at the same moment: it goes back.
    release = the(lm.ReleaseWorker, bench.do(bench.worker(bench.held_tickets[0])))
    assert release.reusable


def test_a_worker_that_is_not_reusable_or_was_exclusive_is_retired() -> None:
    bench = Bench()
    grant = the(lm.Grant, bench.ask(A, 1, CPU1))
    assert not the(lm.ReleaseWorker, bench.do(lm.LeaseReturned(A, grant.lease_id, False))).reusable
    grant = the(lm.Grant, bench.ask(A, 2, CPU1, exclusive=True))
    assert not the(lm.ReleaseWorker, bench.do(lm.LeaseReturned(A, grant.lease_id, True))).reusable


def test_nobody_can_return_the_lease_of_another() -> None:
    bench = Bench()
    grant = the(lm.Grant, bench.ask(A, 1, CPU1))
    assert bench.do(lm.LeaseReturned(B, grant.lease_id, True)) == []
    assert bench.free() == 10_000 and bench.machine.ignored == 1


def test_a_large_request_gets_its_turn_behind_an_endless_stream_of_small_ones() -> None:
    bench = Bench(starvation_s=2.0)
    held = [the(lm.Grant, bench.ask(A, n, CPU1)).lease_id for n in range(2)]
    bench.ask(B, 1, CPU2)
    served_at = None
    for n in range(2, 200):
        bench.now += 0.1
        bench.ask(A, n, CPU1)
        if held:
            actions = bench.do(lm.LeaseReturned(A, held.pop(0), True))
            if (B, 1) in grants(actions):
                served_at = bench.now
                break
            held += [a.lease_id for a in actions if isinstance(a, lm.Grant)]
    assert served_at is not None and 2.0 <= served_at <= 3.0


def test_holding_back_ends_so_that_small_requests_a_large_one_depends_on_still_run() -> None:
    bench = Bench(starvation_s=2.0)
    first = the(lm.Grant, bench.ask(A, 1, CPU1))
    the(lm.Grant, bench.ask(A, 2, CPU1))  # runs until the small one below is done
    bench.ask(B, 1, CPU2)
    bench.now = 2.5
    bench.do(lm.LeaseReturned(A, first.lease_id, True))
    assert grants(bench.ask(A, 3, CPU1)) == []
    at = bench.machine.deadline()
    assert at == 3.0
    bench.now = at
    assert grants(bench.do(lm.Tick())) == [(A, 3)]
    assert bench.machine.deadline() == 10.0  # the look at who may be stuck; nothing else waits for time alone now


def test_an_actor_that_runs_on_no_cpu_is_placed_though_all_cpus_are_taken() -> None:
    bench = Bench({"CPU": 10_000})
    bench.ask(A, 1, CPU1)
    actions = bench.do(lm.ActorRequested(C, JOB, {}, CPU1, "actor X"))
    assert the(lm.ActorPlaced, actions).actor_id == C and the(lm.ActorWorker, actions).actor_id == C


def test_an_actor_needs_what_placement_asks_for_to_exist_somewhere() -> None:
    bench = Bench({"GPU": 10_000})
    assert "no 'CPU'" in the(lm.ActorInfeasible, bench.do(lm.ActorRequested(C, JOB, {}, CPU1, "actor X"))).message
    bench.do(lm.ActorReleased(C))
    assert bench.machine.stats()["infeasible"] == 0


def test_actors_that_start_are_few_at_a_time_unless_they_wait_for_one_another() -> None:
    bench = Bench(actors_starting_max=1)
    first = the(lm.ActorWorker, bench.do(lm.ActorRequested(A, JOB, {}, CPU1)))
    assert bench.do(lm.ActorRequested(B, JOB, {}, CPU1)) == []
    assert the(lm.ActorWorker, bench.do(lm.Blocked(first.worker_id))).actor_id == B
    assert bench.do(lm.ActorRequested(C, JOB, {}, CPU1)) == []
    assert the(lm.ActorWorker, bench.do(lm.ActorStarted(B))).actor_id == C


def test_an_actor_holds_its_resources_until_it_is_released_or_its_worker_dies() -> None:
    bench = Bench({"CPU": 20_000, "GPU": 10_000})
    runs_on = {"CPU": 10_000, "GPU": 10_000}
    worker = the(lm.ActorWorker, bench.do(lm.ActorRequested(C, JOB, runs_on, {})))
    assert worker.gpu_ids == [0] and bench.free("GPU") == 0
    assert not the(lm.ReleaseWorker, bench.do(lm.ActorReleased(C))).reusable
    worker = the(lm.ActorWorker, bench.do(lm.ActorRequested(C, JOB, runs_on, {})))
    assert the(lm.ActorLost, bench.do(lm.WorkerLost(worker.worker_id, "x"))).actor_id == C
    assert bench.free("GPU") == 10_000


def test_a_missing_row_raises_with_the_story_of_the_lease() -> None:
    bench = Bench()
    bench.ask(A, 1, CPU1)
    lease = next(iter(bench.machine._leases.values()))
    with pytest.raises(InvalidTransition, match=r"Fits in HELD.*QUEUED --Fits--> STAFFING"):
        bench.machine._go(lease, "Fits", 0.0)


# -- environments --------------------------------------------------------------------------------------------------


def test_requests_in_different_environments_are_different_classes() -> None:
    bench = Bench({"CPU": 10_000})
    lease = the(lm.Grant, bench.ask(A, 1, CPU1, env="e")).lease_id
    assert the(lm.LeaseWanted, bench.ask(A, 2, CPU1, env="f")).tag == A, "its own idle lease is of no use to it"
    actions = bench.do(lm.LeaseReturned(A, lease, True))
    assert the(lm.AcquireWorker, actions).env == "f" and grants(actions) == [(A, 2)]


def test_an_environment_in_which_no_worker_comes_up_ends_those_that_wait_for_one() -> None:
    bench = Bench()
    bench.staffed = False
    bench.ask(A, 1, CPU1, env="e")
    bench.do(lm.ActorRequested(b"a" * 16, JOB, CPU1, CPU1, env="e"))
    bench.ask(B, 1, CPU1)
    actions = bench.do(lm.EnvBroken(JOB, "e", "no"))
    assert the(lm.LeaseFailed, actions) == lm.LeaseFailed(A, 1, "no")
    assert the(lm.ActorEnvBroken, actions) == lm.ActorEnvBroken(b"a" * 16, "no")
    assert bench.machine.stats()["leases"]["STAFFING"] == 1 and bench.free() == 10_000


def test_short_of_memory_nothing_starts_beside_a_task_that_goes_on_but_one_if_none_does() -> None:
    bench = Bench({"CPU": 40_000})
    first = the(lm.Grant, bench.ask(A, 1, CPU1))
    bench.do(lm.ShortOfMemory(True))
    assert grants(bench.ask(A, 2, CPU1)) == grants(bench.ask(B, 1, CPU1)) == []
    assert grants(bench.do(lm.Blocked(first.worker_id))) == [(A, 2)], "what it waits for may be what waits here"
    assert grants(bench.do(lm.Unblocked(first.worker_id))) == []
    assert grants(bench.do(lm.ShortOfMemory(False))) == [(B, 1)]


def test_short_of_memory_actors_and_bundles_are_not_held_back() -> None:
    bench = Bench({"CPU": 40_000})
    bench.ask(A, 1, CPU1)
    bench.do(lm.ShortOfMemory(True))
    actions = bench.do(lm.ActorRequested(b"x" * 16, JOB, CPU1, CPU1))
    assert the(lm.ActorWorker, actions).actor_id == b"x" * 16
