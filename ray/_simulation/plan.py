"""What a person who plans a cluster asks, and the numbers that they get. Pure but for the clock of `wall_s`.

outcome = play(Plan(nodes=100, node={"CPU": 16 * UNITS}, tasks=100_000, task_s=0.1))
"""

from __future__ import annotations

import math
import resource
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ray._protocol.resources import UNITS, describe, shape_of
from ray._scheduling.strategy import DEFAULT, Strategy

from .asking import Driver
from .planned import PlannedCluster

PATIENCE_S = 120.0  # virtual, beyond the longest task: if nothing has come to an end for so long, nothing will


@dataclass(frozen=True)
class Plan:
    """A cluster of equal nodes and its work. Amounts of resources in units of 1/10,000, times in seconds."""

    nodes: int
    node: Mapping[str, int]  # what each has
    tasks: int = 0
    task: Mapping[str, int] = field(default_factory=lambda: {"CPU": UNITS})  # what each asks for
    task_s: float = 0.1
    vary: float = 0.0  # a task may take so much of task_s longer or shorter, evenly
    per_s: float = 0.0  # tasks come at this rate; 0: all at once
    drivers: int = 1  # that share the tasks, on as many nodes
    strategy: Strategy = DEFAULT
    actors: int = 0  # created at the start, and there until the end
    actor: Mapping[str, int] = field(default_factory=dict)  # what each holds
    actor_start_s: float = 0.0


@dataclass
class Outcome:
    """What became of it. Virtual seconds; `_us`: real microseconds of this machine, medians."""

    nodes: int
    tasks_done: int
    tasks_left: int
    makespan_s: float  # until the last task or actor was over or up
    tasks_per_s: float
    used: float  # of the resource that tasks use most of, the part of what all nodes have, over the makespan
    wait_s: dict[str, float]  # of tasks, from submission to start: p50, p99, max
    nodes_used: int  # that ran tasks
    actors_up: int
    actors_left: int
    actors_per_s: float
    actor_wait_s: dict[str, float]  # from creation to __init__'s end
    leases: int  # requests for them
    hops: float  # nodes that sent a request on, on the average
    lease_us: float  # a node's answer to a request
    place_us: float  # the head's choice of a node for an actor
    reports_per_s: float  # of what is free, by all nodes; the head passes each on to every other node
    row_us: float  # to take one in
    impossible: str  # what was said of work that no node can ever take; ""
    events: int
    wall_s: float
    peak_mb: float  # of this process so far

    def row(self) -> dict[str, Any]:
        return dict(vars(self))


def play(plan: Plan) -> Outcome:
    """Raises: ValueError: there is nothing to play."""
    _check(plan)
    began = time.monotonic()
    cluster = PlannedCluster(plan.nodes, plan.node, plan.actor_start_s)
    agenda = cluster.agenda
    homes = cluster.nodes[: min(plan.drivers, plan.nodes)]
    drivers = [Driver(cluster, home, plan.task, plan.task_s, plan.vary, plan.strategy) for home in homes]
    for number in range(plan.actors):
        agenda.later(cluster.between(0, 0), cluster.create_actor, number.to_bytes(16, "big"), plan.actor, plan.strategy)
    submitted = _submit(plan, cluster, drivers)
    patience_s = PATIENCE_S + 2 * plan.task_s + plan.actor_start_s
    progress, ended_s = -1, 0.0
    while progress < plan.tasks + plan.actors:
        for _ in range(256):
            if agenda.next_at() == math.inf:
                break
            agenda.step()
        now = sum(driver.done for driver in drivers) + len(cluster.actors_ready)
        if now != progress:
            progress, ended_s = now, agenda.now
        if agenda.next_at() == math.inf or agenda.now > max(ended_s, submitted) + patience_s:
            break
    return _outcome(plan, cluster, drivers, time.monotonic() - began)


def _check(plan: Plan) -> None:
    if plan.nodes < 1 or plan.drivers < 1:
        raise ValueError("a cluster has at least one node and one driver")
    if plan.tasks < 0 or plan.actors < 0 or plan.tasks + plan.actors == 0:
        raise ValueError("there is nothing to do: ask for tasks, actors or both")
    if not plan.task_s >= 0 or not 0 <= plan.vary <= 1 or not plan.per_s >= 0 or not plan.actor_start_s >= 0:
        raise ValueError("times and rates are not below zero, and a task varies by 0 to 1 of its time")


def _submit(plan: Plan, cluster: PlannedCluster, drivers: Sequence[Driver]) -> float:
    """Each driver submits its share. Returns: when the last task comes."""
    shares = [plan.tasks // len(drivers) + (i < plan.tasks % len(drivers)) for i in range(len(drivers))]
    if not plan.per_s:
        for driver, share in zip(drivers, shares):
            cluster.agenda.later(0.0, driver.submit, share)
        return 0.0
    apart_s = len(drivers) / plan.per_s

    def one_more(driver: Driver, left: int) -> None:
        driver.submit(1)
        if left > 1:
            cluster.agenda.later(apart_s, one_more, driver, left - 1)

    for i, (driver, share) in enumerate(zip(drivers, shares)):
        if share:
            cluster.agenda.later(apart_s * i / len(drivers), one_more, driver, share)
    return plan.tasks / plan.per_s


def _outcome(plan: Plan, cluster: PlannedCluster, drivers: Sequence[Driver], wall_s: float) -> Outcome:
    costs = cluster.costs
    done = sum(driver.done for driver in drivers)
    waited = sorted(wait for driver in drivers for wait in driver.waited)
    actors = sorted(cluster.actors_ready)
    busy_s = sum(driver.busy_s for driver in drivers)
    span_s = max([driver.last_s for driver in drivers] + [cluster.last_actor_s])
    shape = shape_of(plan.task)
    parts = [busy_s * units / (plan.nodes * plan.node[name]) for name, units in shape if plan.node.get(name)]
    requested = sum(driver.requested for driver in drivers)
    first = requested - sum(driver.sent_on for driver in drivers)
    return Outcome(
        nodes=plan.nodes,
        tasks_done=done,
        tasks_left=plan.tasks - done,
        makespan_s=span_s,
        tasks_per_s=done / span_s if span_s else 0.0,
        used=min(1.0, max(parts, default=0.0) / span_s) if span_s else 0.0,
        wait_s=_spread(waited),
        nodes_used=len({number for driver in drivers for number in driver.places}),
        actors_up=len(actors),
        actors_left=plan.actors - len(actors),
        actors_per_s=len(actors) / cluster.last_actor_s if actors else 0.0,
        actor_wait_s=_spread(actors),
        leases=first,
        hops=(requested - first) / first if first else 0.0,
        lease_us=_median(costs.decided) * 1e6,
        place_us=_median(costs.placed) * 1e6,
        reports_per_s=costs.reports / span_s if span_s else 0.0,
        row_us=_median(costs.rows) * 1e6,
        impossible=cluster.impossible,
        events=cluster.agenda.events,
        wall_s=wall_s,
        peak_mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    )


def _median(values: Sequence[float]) -> float:
    return statistics.median(values) if values else 0.0


def _spread(values: Sequence[float]) -> dict[str, float]:
    """Args: values: sorted."""
    if not values:
        return {"p50": 0.0, "p99": 0.0, "max": 0.0}
    return {"p50": values[len(values) // 2], "p99": values[(len(values) - 1) * 99 // 100], "max": values[-1]}


# -- for a person ------------------------------------------------------------------------------------------------------

BAR = 24


def drawing(plan: Plan, outcomes: Sequence[Outcome]) -> str:
    """A line for each number of nodes, with bars."""
    fastest = max([outcome.tasks_per_s for outcome in outcomes] + [0.0])
    lines = [f"each node: {describe(dict(plan.node))}"]
    if plan.tasks:
        lines += ["", f"{'nodes':>6} {'tasks/s':>10} {'':{BAR}} {'used':>5} {'wait p50':>9} {'p99':>9} {'all over':>9}"]
        for o in outcomes:
            bar = "#" * round(BAR * o.tasks_per_s / fastest) if fastest else ""
            lines.append(
                f"{o.nodes:>6} {o.tasks_per_s:>10,.0f} {bar:{BAR}} {o.used:>5.0%} {_time(o.wait_s['p50']):>9} "
                f"{_time(o.wait_s['p99']):>9} {_time(o.makespan_s):>9}"
            )
    if plan.actors:
        lines += ["", f"{'nodes':>6} {'actors up':>10} {'a second':>10} {'wait p50':>9} {'p99':>9}"]
        lines += [
            f"{o.nodes:>6} {o.actors_up:>10,} {o.actors_per_s:>10,.0f} {_time(o.actor_wait_s['p50']):>9} "
            f"{_time(o.actor_wait_s['p99']):>9}"
            for o in outcomes
        ]
    lines += [
        "",
        "what deciding takes, measured here; of a node: the part of a processor that takes in what others report",
    ]
    lines.append(
        f"{'nodes':>6} {'leases':>9} {'hops':>5} {'a lease':>9} {'an actor':>9} {'reports/s':>10} {'of a node':>9}"
    )
    for o in outcomes:
        taken_in = o.reports_per_s * o.row_us / 1e6
        lines.append(
            f"{o.nodes:>6} {o.leases:>9,} {o.hops:>5.2f} {_time(o.lease_us / 1e6):>9} {_time(o.place_us / 1e6):>9} "
            f"{o.reports_per_s:>10,.0f} {taken_in:>9.1%}"
        )
    for o in outcomes:
        if o.tasks_left or o.actors_left:
            why = o.impossible or "nothing that runs will make room for them"
            lines.append(
                f"\nWith {o.nodes} nodes {o.tasks_left:,} tasks and {o.actors_left:,} actors never start: {why}"
            )
    return "\n".join(lines)


def _time(seconds: float) -> str:
    if seconds >= 100:
        return f"{seconds:,.0f} s"
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e6:.3g} us"
