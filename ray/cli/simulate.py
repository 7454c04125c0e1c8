"""`ray simulate`: how a cluster that is only planned would do its work. PROCESS of a shell: computes, owns nothing."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from typing import Any

EXPLAINED = """The schedulers and worker pools are the real ones, under a virtual clock; processes, links and the work
itself are played: a message takes 0.3 ms between nodes, a worker's start 6 ms. What is not played: arguments and
results, memory, the driver's own speed, and anything that fails. The same command gives the same virtual times
everywhere; how long deciding takes is measured here."""


def add(commands: Any) -> None:
    """Adds the command to argparse's `commands`."""
    command = commands.add_parser(
        "simulate",
        help="plays a cluster of any size: throughput, waiting, use, cost of decisions",
        description=EXPLAINED,
    )
    several = {"type": int, "nargs": "+", "metavar": "N"}
    command.add_argument("--nodes", default=[1, 10, 100], help="how many; several are played in turn", **several)
    command.add_argument("--num-cpus", type=float, default=8, metavar="N", help="of each node (8)")
    command.add_argument("--num-gpus", type=float, default=0, metavar="N", help="of each node (0)")
    command.add_argument("--resources", default="{}", metavar="JSON", help='of each node, as {"disk": 4}')
    tasks = command.add_argument_group("tasks")
    tasks.add_argument("--tasks", type=int, default=None, metavar="N", help="how many (1,000 a node, if no actors)")
    tasks.add_argument("--per-node", action="store_true", help="so many tasks and actors for each node, not in all")
    tasks.add_argument("--task-s", type=float, default=0.1, metavar="S", help="how long each takes (0.1)")
    tasks.add_argument("--vary", type=float, default=0.0, metavar="PART", help="by so much of it more or less (0)")
    tasks.add_argument("--per-s", type=float, default=0.0, metavar="N", help="submitted in a second (all at once)")
    tasks.add_argument("--task-cpus", type=float, default=1, metavar="N", help="that each asks for (1)")
    tasks.add_argument("--task-gpus", type=float, default=0, metavar="N", help="that each asks for (0)")
    tasks.add_argument("--task-resources", default="{}", metavar="JSON", help="that each asks for")
    tasks.add_argument("--spread", action="store_true", help="by the strategy SPREAD; actors too")
    tasks.add_argument("--drivers", type=int, default=1, metavar="N", help="that share the tasks, a node each (1)")
    actors = command.add_argument_group("actors")
    actors.add_argument("--actors", type=int, default=0, metavar="N", help="created at the start (0)")
    actors.add_argument("--actor-cpus", type=float, default=0, metavar="N", help="that each holds (0)")
    actors.add_argument("--actor-gpus", type=float, default=0, metavar="N", help="that each holds (0)")
    actors.add_argument("--actor-start-s", type=float, default=0.0, metavar="S", help="what its __init__ takes (0)")
    command.add_argument("--json", action="store_true", help="all numbers: a list with an object for each N of --nodes")
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    from ray._simulation import plan as plans

    outcomes = []
    try:
        base = plan_of(options)
        for nodes in options.nodes:
            times = nodes if options.per_node else 1
            plan = dataclasses.replace(base, nodes=nodes, tasks=base.tasks * times, actors=base.actors * times)
            outcomes.append(plans.play(plan))
    except (ValueError, TypeError) as error:
        print(f"ray simulate: {error}", file=sys.stderr)
        return 2
    if options.json:
        print(json.dumps([outcome.row() for outcome in outcomes], indent=1))
    else:
        print(plans.drawing(base, outcomes))
    return 0 if all(o.tasks_left == o.actors_left == 0 for o in outcomes) else 1


def plan_of(options: argparse.Namespace) -> Any:
    """Raises: ValueError, TypeError: naming what was given and what would do."""
    from ray._protocol.resources import parse
    from ray._scheduling.strategy import DEFAULT, Spread
    from ray._simulation.plan import Plan

    tasks = options.tasks
    if tasks is None:
        tasks = 0 if options.actors else 1000
        if not options.actors:
            options.per_node = True
    return Plan(
        nodes=options.nodes[0],
        node=parse(options.num_cpus, options.num_gpus, None, _amounts(options, "resources")),
        tasks=tasks,
        task=parse(options.task_cpus, options.task_gpus, None, _amounts(options, "task_resources")),
        task_s=options.task_s,
        vary=options.vary,
        per_s=options.per_s,
        drivers=options.drivers,
        strategy=Spread() if options.spread else DEFAULT,
        actors=options.actors,
        actor=parse(options.actor_cpus, options.actor_gpus),
        actor_start_s=options.actor_start_s,
    )


def _amounts(options: argparse.Namespace, name: str) -> dict[str, Any]:
    text, option = getattr(options, name), "--" + name.replace("_", "-")
    try:
        given = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{option} must be JSON, as '{{\"disk\": 4}}', not {text!r}: {error}") from None
    if not isinstance(given, dict):
        raise ValueError(f"{option} must be an object, as '{{\"disk\": 4}}', not {text!r}")
    return given
