"""What each action of the node's machines is outside them: a message, a kill, a start, or an event for another machine.

Node process, its main thread. No decisions here: the machines have made them. An action that fails is a bug of ours,
and ends nothing but itself (`Node.feed` in shell.py).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ray.exceptions import ActorPlacementGroupRemoved, ActorUnschedulableError

from . import children
from . import lease_messages as lm
from . import worker_messages as wm
from .cores import startup

if TYPE_CHECKING:
    from .shell import Node

logger = logging.getLogger("ray.node")


class Actions:
    """`table`: kind of action -> what carries it out."""

    def __init__(self, node: Node, cpus: int) -> None:
        self.node = node
        self._many_workers = 100 + 10 * cpus  # where a person is told; doubles each time
        self.table: dict[type, Callable[[Any], None]] = {
            lm.Grant: self._grant,
            lm.Infeasible: lambda a: node.tell(a.tag, "lease_infeasible", a.req_id, a.message),
            lm.LeaseRefused: lambda a: node.tell(a.tag, "lease_refused", a.req_id, a.kind, a.message),
            lm.Spill: lambda a: node.tell(a.tag, "lease_spilled", a.req_id, a.number),
            lm.Stuck: lambda a: node.head.report_error(a.job_id, "pending", a.message, {}),
            lm.LeaseWanted: lambda a: node.tell(a.tag, "lease_wanted"),
            lm.LeaseFailed: lambda a: node.tell(a.tag, "lease_failed", a.req_id, a.cause),
            lm.LeaseEvicted: self._evict,
            lm.EvictionOver: lambda a: node.feed(node.pool, wm.Reclaimed(a.worker_id)),
            lm.LeaseLost: lambda a: node.tell(a.tag, "lease_lost", a.lease_id, a.cause),
            lm.AcquireWorker: lambda a: node.feed(node.pool, wm.Acquire(a.ticket, a.job_id, a.fresh, a.env)),
            lm.CancelAcquire: lambda a: node.feed(node.pool, wm.AcquireCancelled(a.ticket)),
            lm.ReleaseWorker: lambda a: node.feed(node.pool, wm.Released(a.worker_id, a.reusable)),
            lm.KillWorker: lambda a: node.feed(node.pool, wm.KillAsked(a.worker_id, a.why)),
            lm.ReclaimWorker: self._reclaim,
            lm.ActorPlaced: self._actor_placed,
            lm.ActorWorker: self._actor_worker,
            lm.ActorInfeasible: lambda a: node.head.actor_infeasible(a.actor_id, a.message),
            lm.ActorEnvBroken: lambda a: node.head.actor_env_failed(a.actor_id, a.cause),
            lm.ActorRefused: self._actor_refused,
            lm.BundlesPrepared: lambda a: node.head.bundles_prepared(node.node_id, a.group_id, a.attempt),
            lm.BundlesRefused: lambda a: node.head.bundles_refused(node.node_id, a.group_id, a.attempt, a.available),
            lm.ActorLost: lambda a: None,  # the head hears of the worker's death itself, by its tag
            wm.StartWorker: self._start_worker,
            wm.Assigned: lambda a: node.feed(
                node.scheduler, lm.WorkerAssigned(a.ticket, a.worker_id, a.tag, a.pid)
            ),
            wm.AskToExit: self._ask_to_exit,
            wm.Kill: self._kill,
            wm.WorkerGone: node.worker_gone,
            wm.StartsFailing: self._starts_failing,
            wm.EnvBroken: lambda a: node.feed(node.scheduler, lm.EnvBroken(a.job_id, a.env, a.cause)),
            **node.envs.carry_out,
        }  # fmt: skip

    def _grant(self, grant: lm.Grant) -> None:
        self.node.tell(
            grant.tag, "lease_grant", grant.req_id, grant.lease_id, grant.worker_tag, grant.worker_pid, grant.gpu_ids
        )

    def _actor_placed(self, action: lm.ActorPlaced) -> None:
        node = self.node
        node.head.actor_placed(action.actor_id, node.node_id, node.head_port.placed.get(action.actor_id))

    def _actor_worker(self, action: lm.ActorWorker) -> None:
        node = self.node
        asked = node.head_port.placed.get(action.actor_id)
        node.head.actor_worker_started(action.actor_id, action.worker_tag, action.worker_pid, action.gpu_ids, asked)

    def _actor_refused(self, action: lm.ActorRefused) -> None:
        kind = ActorPlacementGroupRemoved if action.kind == lm.GROUP_REMOVED else ActorUnschedulableError
        self.node.head.actor_refused(action.actor_id, kind(action.message, actor_id=action.actor_id.hex()))

    def _start_worker(self, action: wm.StartWorker) -> None:
        node = self.node
        job = node.cores.jobs[action.job_id]
        env = node.envs.machine.get(action.env)
        text, context = (env.text, env.context) if env is not None else ("", {})
        told = startup(node.session, node.settings, job, action.worker_id, text, context, node.number)
        if context.get("exec"):
            told["start_key"] = node.start_keys[action.worker_id] = os.urandom(16)
        descriptors = node.logs.open(action.worker_id, action.job_id)
        node.fork_link.request(action.worker_id, told, descriptors)
        if len(node.pool.workers) >= self._many_workers:
            self._warn_of_many_workers(action.job_id)

    def _warn_of_many_workers(self, job_id: bytes) -> None:
        """Nothing is wrong yet, but a program that nests without end should hear of it before memory runs out."""
        node = self.node
        count, self._many_workers = len(node.pool.workers), 2 * len(node.pool.workers)
        blocked = sum(lease.allocation.cpu_lent for lease in node.scheduler.leases() if lease.allocation)
        text = (
            f"{count} worker processes run on this node, {blocked} of them blocked in ray.get or ray.wait. Each task "
            "that waits for others keeps its process; deep recursion of tasks, or many actors, needs memory for all "
            "of them at once."
        )
        node.head.report_error(job_id, "many_workers", text, {"workers": count})

    def _reclaim(self, action: lm.ReclaimWorker) -> None:
        node = self.node
        core = node.cores.by_worker.get(action.worker_id)
        if core is None:
            node.feed(node.pool, wm.KillAsked(action.worker_id, action.why))
            return
        node.feed(node.pool, wm.ReclaimAsked(action.worker_id, action.why))
        core.tell("reclaim", action.tag)

    def _evict(self, action: lm.LeaseEvicted) -> None:
        node = self.node
        node.feed(node.pool, wm.ReclaimAsked(action.worker_id, action.cause))
        node.tell(action.tag, "lease_evicted", action.lease_id, action.cause)

    def _kill(self, action: wm.Kill) -> None:
        children.kill_group(action.pid)
        core = self.node.cores.by_worker.get(action.worker_id)
        if core is not None and core.pid != action.pid:  # in a container: no child of what we started
            children.kill_group(core.pid)

    def _ask_to_exit(self, action: wm.AskToExit) -> None:
        node = self.node
        core = node.cores.by_worker.get(action.worker_id)
        if core is not None:
            worker = node.pool.workers.get(action.worker_id)
            core.tell("exit", (worker.cause if worker is not None else None) or "")
        # else its connection has ended: it is exiting, or will be killed at its deadline

    def _starts_failing(self, action: wm.StartsFailing) -> None:
        text = f"{action.tries} workers in a row died while starting. The last one {action.cause}"
        logger.error("%s", text)
        self.node.head.report_error(action.job_id, "worker_start", text, {})
