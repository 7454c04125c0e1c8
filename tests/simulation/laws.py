"""What must hold: after each event, when everything has settled, and when everybody has left.

Each law is written from outside, by what the simulated processes have seen and done, and beside it the machines' own
`check()` re-derives their indexes. `unsettled` and `leftovers` return sentences, so that a run can wait for them to
come true; the first that never does is the failure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ray._head import actor_record, jobs
from ray._head import group_record as gr
from ray._head.membership import MEMBER
from ray._node.cluster_view import report_of
from ray._node.lease_messages import GROUP_REMOVED
from ray._scheduling import bundle_policies
from ray._scheduling.policies import NodeView, index_of
from ray._scheduling.strategy import InGroup, NodeAffinity, NodeLabels, parse_strategy

if TYPE_CHECKING:
    from .cluster import Cluster
    from .drivers import Driver, Task
    from .heads import Head
    from .nodes import Node
    from .workers import Worker


class Laws:
    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.died: set[bytes] = set()  # nodes whose end, or whose link's end, was a fault of the simulation
        self.dead: set[bytes] = set()  # nodes that the head has declared dead
        self.silent: set[bytes] = set()  # of these: since nothing was heard of them
        self.faults = 0  # of workers, nodes and links so far
        self.incarnations: dict[bytes, int] = {}
        self.removed: set[bytes] = set()  # groups of which a head has said so
        self.exited: set[bytes] = set()  # actors whose callers have been told so

    # -- after each event ---------------------------------------------------------------------------------------------

    def node(self, node: Node) -> None:
        """Nothing is overcommitted, as its own ledger says and as those see it who hold leases."""
        node.scheduler.check()
        total = node.total
        bundles = [b for g in node.scheduler.bundles.groups.values() for b in g.bundles.values() if b.allocation]
        lends = {x.lease_id: x for x in node.scheduler.leases() if x.blocked}
        node.lent |= lends.keys() & node.granted.keys()
        node.lent &= node.granted.keys()
        for name in total:
            used = sum(b.allocation.units.get(name, 0) for b in bundles if b.allocation)
            for lease_id, (shape, of_group) in node.granted.items():
                if not of_group and not (name == "CPU" and lease_id in node.lent):
                    used += shape.get(name, 0)
            assert used <= total[name], f"{node} has given {used} of {total[name]} {name}"

    def head(self, head: Head) -> None:
        head.service.check()
        assert head.service._requests.malformed == 0

    def declared_dead(self, node_id: bytes, cause: str) -> None:
        self.dead.add(node_id)
        if "silent for" in cause:
            self.silent.add(node_id)
        assert node_id in self.died, f"a node that lives is declared dead: {cause}"

    def granted(self, node: Node, lease: Any) -> None:
        if lease.place is not None:
            bundle = lease.bundle
            assert bundle.group_id == lease.place.group_id and lease.place.bundle in (-1, bundle.index), lease
            assert bundle.index in node.place_of(bundle.group_id), f"{lease} runs in a bundle that is not there"

    def legal_place(self, task: Task, node: Node) -> None:
        strategy = task.strategy
        assert all(node.total.get(name, 0) >= units for name, units in task.shape.items()), (task, node)
        if isinstance(strategy, NodeAffinity) and not strategy.soft:
            assert node.node_id == strategy.node_id, (task, node)
        if isinstance(strategy, NodeLabels):
            assert strategy.admits(node.scheduler.labels), (task, node)

    def legal_actor(self, actor_id: bytes, node: Node) -> None:
        actor = self.cluster.head.service.actors.get(actor_id)
        if actor is None:
            return
        strategy = parse_strategy(actor.spec.get("strategy"))
        if isinstance(strategy, NodeAffinity) and not strategy.soft:
            assert node.node_id == strategy.node_id, (actor, node)

    def legal_refusal(self, strategy: Any, shape: dict[str, int], kind: str) -> None:
        if kind == GROUP_REMOVED:
            assert isinstance(strategy, InGroup)
            known = strategy.group_id in self.removed or strategy.group_id in self.cluster.removed
            known = known or self.cluster.head.service.groups.groups.was_removed(strategy.group_id)
            assert known, "refused, but not removed"
        else:
            assert isinstance(strategy, NodeAffinity) and not strategy.soft, strategy
            there = [n for n in self.cluster.living() if n.node_id == strategy.node_id]
            could = [n for n in there if all(n.total.get(name, 0) >= units for name, units in shape.items())]
            assert not could or could[0].node_id in self.dead, f"refused, but there is {there}"

    def legal_failure(self, task: Task) -> None:
        assert self.faults or isinstance(task.strategy, InGroup), f"{task} has failed, and nothing has died"

    def becomes(self, worker: Worker, actor_id: bytes, incarnation: int) -> None:
        """No two workers are one actor. Of nodes whose connection broke this is not known: they have been declared dead
        at once, and do what they were told until they hear so. Those that were silent must know better."""
        assert worker.node.node_id not in self.silent, (
            f"{worker.node} stood still, and makes {actor_id.hex()} all the same"
        )
        if worker.node.node_id in self.dead:
            return
        last = self.incarnations.get(actor_id, -1)
        assert incarnation > last, f"incarnation {incarnation} of actor {actor_id.hex()} after {last}"
        self.incarnations[actor_id] = incarnation
        for node in self.cluster.living():
            for other in node.workers.values():
                if other is not worker and other.actor_id == actor_id and node.node_id not in self.dead:
                    raise AssertionError(f"actor {actor_id.hex()} lives twice: on {node} and {worker.node}")

    # -- when all is quiet --------------------------------------------------------------------------------------------

    def unsettled(self, keepers: bool) -> list[str]:
        """keepers: drivers still keep what they don't use, so groups and what is in them may wait."""
        if not self.cluster.head.alive or self.cluster.head.returning is not None:
            return ["the head is away"]
        found = self._table() + self._views() + self._blocked()
        for driver in list(self.cluster.drivers):
            found += self._leases(driver)
            found += [text for task in driver.tasks if (text := self._waits(driver, task, keepers))]
            if not keepers:
                found += self._told(driver)
        if not keepers:
            found += self._groups() + self._actors()
        return found

    def _table(self) -> list[str]:
        head, living = self.cluster.head, self.cluster.living()
        found = [f"{n} has not been admitted" for n in living if n.number < 0]
        numbers = {n.number for n in living}
        for node in living:
            if head.members.state(node.number) != MEMBER or not node.opened:
                found.append(f"{node} is not a member")
            if node.uplink.outbox.stats()["told"] or node.uplink.outbox.stats()["asked"]:
                found.append(f"{node} keeps what the head has heard: {node.uplink.outbox.stats()}")
            if set(node.table) - node.down | {node.number} != numbers:
                found.append(f"node {node.number} knows {sorted(set(node.table) - node.down)} of {sorted(numbers)}")
        found += [f"a driver of {driver.home} has not come up" for driver in self.cluster.starting]
        if set(head.members.living()) != numbers or set(head.service.placing._nodes) != {n.node_id for n in living}:
            found.append(f"the head knows {head.members.living()} of {sorted(numbers)}")
        return found

    def _blocked(self) -> list[str]:
        found = []
        for node in self.cluster.living():
            for lease in node.scheduler.leases():
                worker = node.workers.get(lease.worker_id)
                if lease.state == "ENDING":
                    found.append(f"{lease} is still ending")
                if lease.state == "HELD" and worker is not None and lease.blocked != worker.blocked:
                    found.append(f"{lease} is blocked: {lease.blocked}, its worker: {worker.blocked}")
        return found

    def _views(self) -> list[str]:
        found = []
        for node in self.cluster.living():
            seen = node.scheduler.neighbours._by_number
            for other in self.cluster.living():
                if other is node:
                    continue
                there = seen.get(other.number)
                report = report_of(other)  # type: ignore[arg-type]
                if there is None:
                    found.append(f"node {node.number} has no view of node {other.number}")
                elif (there.reported.available, there.reported.queued) != (report["available"], report["queued"]):
                    found.append(f"node {node.number} sees {there.reported}, and node {other.number} reports {report}")
                elif dict(there.reported.bundles) != report["bundles"]:
                    found.append(f"node {node.number} sees other bundles than node {other.number} has")
        return found

    def _leases(self, driver: Driver) -> list[str]:
        """What it believes to have asked and to hold is what nodes believe."""
        found = []
        for node in self.cluster.living():
            asked = {r for r, q in driver.queue_of.items() if q.requests[r][0] == node.number}
            core = node.scheduler._cores.get(driver.tag)
            waits = set(core.requests) if core else set()
            held = set(core.held) if core else set()
            holds = {lease_id for number, lease_id in driver.leases if number == node.number}
            if asked != waits:
                found.append(f"{driver.tag.hex()[:8]} waits for {asked} at {node}, which has {waits}")
            if holds != held:
                found.append(f"{driver.tag.hex()[:8]} holds {holds} of {node}, which has lent it {held}")
        return found

    def _waits(self, driver: Driver, task: Task, keepers: bool) -> str:
        if task.over:
            assert task.state != "done" or task.attempt in task.started
            return ""
        if task.child is not None and not task.child.over:
            return ""  # it waits for that
        if isinstance(task.strategy, InGroup):
            group = self.cluster.head.service.groups.groups.get(task.strategy.group_id)
            if keepers or group is None:
                return ""  # whoever wanted to make the group has died before he could say so
            if group.state in (gr.PENDING, gr.RESERVING, gr.RESCHEDULING):
                return ""
            if group.state == gr.CREATED and not self._has_room(task, task.strategy):
                return ""
            return f"{task} waits, and its group is {group}"
        queue = next(q for q in driver.queues.values() if task in q.tasks or task.state == "running")
        able = self._able(task)
        if able:
            asked = {number for number, _ in queue.requests.values()}
            free = [n for n in able if not keepers or n.number in asked]  # others don't know that somebody waits
            free = [n for n in free if all(_free_of_lasting(n).get(name, 0) >= u for name, u in task.shape.items())]
            return f"{task} is not over, and {free[0]} could run it" if free else ""
        if not queue.infeasible:
            return f"{task} is impossible, and nobody has said so"
        return ""

    def _has_room(self, task: Task, place: InGroup) -> bool:
        """Whether a bundle that it may use could hold it, beside the actors in there."""
        for node in self.cluster.living():
            group = node.scheduler.bundles.groups.get(place.group_id)
            for index, bundle in group.bundles.items() if group else ():
                if place.bundle in (-1, index) and bundle.ledger is not None:
                    free = dict(bundle.ledger.total)
                    for lease in bundle.leases.values():
                        for name, units in (
                            lease.allocation.units.items() if lease.is_actor and lease.allocation else ()
                        ):
                            free[name] -= units
                    if all(free.get(name, 0) >= units for name, units in task.shape.items()):
                        return True
        return False

    def _able(self, task: Task) -> list[Node]:
        """The nodes that may run it and can ever hold it."""
        able = [n for n in self.cluster.living() if all(n.total.get(x, 0) >= u for x, u in task.shape.items())]
        strategy = task.strategy
        if isinstance(strategy, NodeAffinity):
            named = [n for n in able if n.node_id == strategy.node_id]
            return named if named or not strategy.soft else able
        if isinstance(strategy, NodeLabels):
            return [n for n in able if strategy.admits(n.scheduler.labels)]
        return able

    def _told(self, driver: Driver) -> list[str]:
        """It knows of its actors and groups what the head knows."""
        found = []
        service = self.cluster.head.service
        for actor_id, (state, incarnation) in driver.actors.items():
            actor = service.actors.get(actor_id)
            if actor is None:
                found.append(f"actor {actor_id.hex()} was never created")
            elif (state, incarnation) != (actor.public_state()[0], actor.public_state()[2]):
                found.append(f"{actor} was last said to be {state} {incarnation}")
        for group_id, state in driver.groups.items():
            group = service.groups.groups.get(group_id)
            if group is None and state == "REMOVED":
                continue  # and it was forgotten with the head that knew
            if group is None or (group.state == gr.CREATED) != (state == "CREATED"):
                found.append(f"{group} was last said to be {state}")
            elif group_id in self.cluster.removed and group.state != gr.REMOVED:
                found.append(f"{group} was removed")
        return found

    def _groups(self) -> list[str]:
        found = self.bundles()
        living = self.cluster.living()
        views = [NodeView(n.node_id, n.total, n.scheduler.resources.available) for n in living]
        nodes_now = bundle_policies.Nodes(index_of(views))
        for group in self.cluster.head.service.groups.groups.all():
            if group.state in (gr.PENDING, gr.RESCHEDULING):
                nodes = bundle_policies.place(nodes_now, group.missing(), group.strategy, group.nodes)
                if nodes is not None and all(_takes(n, [group.bundles[i] for i in nodes if nodes[i] == n.node_id])
                                             for n in living):  # fmt: skip
                    found.append(f"{group} waits, and there is room: {group.story}")
            elif group.state == gr.RESERVING:
                waits = [n for n in living if (g := n.scheduler.bundles.groups.get(group.group_id)) and g.reservation]
                if not waits or len(group.asked) > 1:
                    found.append(f"{group} is being reserved, and nobody knows of it: {group.story}")
            elif group.state == gr.CREATED:
                lying = {(i, n.node_id) for n in living for i in n.place_of(group.group_id)}
                if lying != set(group.nodes.items()):
                    found.append(f"{group} lies on {lying}, the head says {group.nodes}")
            elif any(group.group_id in n.scheduler.bundles.groups for n in living):
                found.append(f"{group} is removed, and has something somewhere")
        return found

    def bundles(self) -> list[str]:
        """No bundle lies twice, and no strategy is broken, on nodes that are not believed dead."""
        seen: dict[tuple[bytes, int], Node] = {}
        for node in self.cluster.living():
            if node.node_id in self.dead:
                continue
            for group_id in node.scheduler.bundles.groups:
                for index in node.place_of(group_id):
                    other = seen.setdefault((group_id, index), node)
                    if other is not node:
                        return [f"bundle {index} of {group_id.hex()} lies on {other} and {node}"]
        return []

    def _actors(self) -> list[str]:
        found = []
        service, living = self.cluster.head.service, self.cluster.living()
        workers = {w.tag: w for n in living for w in n.workers.values()}
        found += [f"{worker} leaves, and hears nothing of the head" for worker in workers.values() if worker.leaving]
        for actor in service.actors.all():
            strategy = parse_strategy(actor.spec.get("strategy"))
            if actor.worker_tag and actor.worker_tag not in workers:
                found.append(f"{actor} has a worker that is no more")
            if actor.actor_id in self.exited and actor.state != actor_record.DEAD:
                found.append(f"{actor} has exited: {actor.story}")
            if isinstance(strategy, InGroup) and actor.state != actor_record.DEAD:
                if strategy.group_id in self.removed:
                    found.append(f"{actor} is in a group that was removed: {actor.story}")
            if actor.state == actor_record.DEAD and actor.worker_tag:
                found.append(f"{actor} is dead, and its worker is not")
            if actor.state == actor_record.PENDING_CREATION and actor.worker_tag:
                found.append(f"{actor} is being made")
            killer = self.cluster.killed.get(actor.actor_id)
            if killer is not None and killer.alive and actor.state != actor_record.DEAD:
                found.append(f"{actor} was killed")
            if actor.state not in (actor_record.ALIVE, actor_record.DEAD) and not isinstance(strategy, InGroup):
                ask = {**actor.spec["placement_resources"], **actor.spec["resources"]}
                bound = isinstance(strategy, NodeAffinity) and not strategy.soft
                fitting = [n for n in living if not bound or n.node_id == strategy.node_id]
                if not fitting:
                    found.append(f"{actor} is bound to a node that is gone: {actor.story}")
                fitting = [n for n in fitting if all(n.total.get(x, 0) >= u for x, u in ask.items())]
                holding = [n for n in living if actor.actor_id in n.placed]
                if fitting and not holding:
                    found.append(f"{actor} waits nowhere: {actor.story}")
                for node in holding:
                    if not node.scheduler.resources.lacking(tuple(ask.items())):
                        found.append(f"{actor} waits at {node}, which has room: {actor.story}")
        for worker in workers.values():
            mine = service.actors.of_worker(worker.tag)
            if worker.actor_id and (mine is None or mine.actor_id != worker.actor_id):
                found.append(f"worker {worker.tag.hex()} is actor {worker.actor_id.hex()}, and the head says {mine}")
        for node in living:
            at = {a for a, number in service.port.placed_at.items() if number == node.number}  # type: ignore
            if node.placed.keys() != at:
                found.append(f"{node} places {len(node.placed)} actors, of {len(at)}")
        return found

    # -- when everybody has left --------------------------------------------------------------------------------------

    def leftovers(self) -> list[str]:
        if not self.cluster.head.alive or self.cluster.head.returning is not None:
            return ["the head is away"]
        found = []
        for node in self.cluster.living():
            stats = node.scheduler.stats()
            if any(stats["leases"].values()) or node.scheduler.resources.available != node.total or stats["bundles"]:
                found.append(f"{node} still has something: {[*node.scheduler.leases()][:3]}")
            if node.cores or node.workers or node.placed or node.tickets:
                found.append(f"{node} has {list(node.cores)} {list(node.workers)} {node.placed} {node.tickets}")
        service = self.cluster.head.service
        found += [f"{a} lives on" for a in service.actors.all() if a.state != actor_record.DEAD or a.worker_tag]
        found += [f"job {j.job_id.hex()} is {j.state}" for j in service.jobs.all() if j.state in _LIVING_JOBS]
        found += [f"{g} lives on" for g in service.groups.groups.all() if g.state != gr.REMOVED]
        if service.placing._assigned or service.placing._waiting:
            found.append(f"the head has assigned {service.placing._assigned}")
        return found


_LIVING_JOBS = (jobs.RUNNING, jobs.ENDING)


def _takes(node: Node, bundles: list[dict[str, int]]) -> bool:
    """Whether a node has room for all of these together: two halves of GPUs are none, which the head can't see."""
    taken = node.scheduler.resources.take_all([tuple(bundle.items()) for bundle in bundles])
    for allocation in taken or ():
        node.scheduler.resources.give_back(allocation)
    return taken is not None


def _free_of_lasting(node: Node) -> dict[str, int]:
    """What a node has if every task on it that runs gives back what it holds. Of GPUs, as
    much as the emptiest one has: half of one and half of another are no GPU."""
    resources = node.scheduler.resources
    free, gpus = dict(resources.available), list(resources.gpu_free)
    for lease in node.scheduler.leases():
        if lease.blocked:
            continue  # it waits for a task that may wait in vain itself: that one is looked at by itself
        if lease.allocation is not None and not lease.is_actor and lease.place is None:
            for name, units in lease.allocation.units.items():
                if not (name == "CPU" and lease.allocation.cpu_lent):
                    free[name] += units
            for slot, units in lease.allocation.gpu_slots:
                gpus[slot] += units
    return {**free, "GPU": max(gpus, default=0)}
