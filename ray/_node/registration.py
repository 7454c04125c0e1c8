"""A process says who it is: a worker that we have started, or a driver. Node's main thread; called by requests.py.

From the answer on it is a Core, known to all machines here. What it says must fit what we know: a worker is one that
was forked here and not met yet, by the pid that the kernel vouches for; a driver gets its job of the head.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from . import lease_messages as lm
from . import worker_messages as wm
from .cores import Core, Job

if TYPE_CHECKING:
    from .shell import Node


def env_of(node: Node, core: Core) -> str:
    """The text of the environment that a core lives in; a driver's is its job's."""
    worker = node.pool.workers.get(core.worker_id)
    if worker is None:
        job = node.cores.jobs.get(core.job_id)
        return job.runtime_env if job is not None else ""
    env = node.envs.machine.get(worker.env)
    return env.text if env is not None else ""


def register_worker(node: Node, peer: Any, tag: bytes, info: dict[str, Any]) -> Core:
    """Raises: PermissionError: not a process that we forked.  RuntimeError: not ready to be leased."""
    worker_id = node.cores.worker_of_pid.get(peer.pid)
    if worker_id is None:
        node.fork_link.drain()  # the answer that names it may be there, not yet looked at
        worker_id = node.cores.worker_of_pid.get(peer.pid)
    key = node.start_keys.get(info.get("worker_id", 0))
    if key is not None and info.get("start_key") == key:
        worker_id = info["worker_id"]  # of our own starting, by the program around it
    worker = node.pool.workers.get(worker_id) if worker_id is not None else None
    if worker is None or worker.tag or worker_id in node.cores.by_worker:
        raise PermissionError(f"pid {peer.pid} is no worker that this node has started and not yet met")
    if not os.path.exists(node.session.core_socket(tag)):
        raise RuntimeError("a worker listens on its own socket before it registers: it may be leased at once")
    job = node.cores.jobs.get(worker.job_id)
    if job is None:
        raise RuntimeError("the job of this worker has ended")
    core = Core(peer, "worker", tag, worker.job_id, job.namespace)
    core.worker_id = worker.worker_id
    node.cores.add(core)
    node.feed(node.scheduler, lm.CoreJoined(tag, core.job_id))
    if not info.get("setup_pending"):
        # In the next turn: the answer to `register` leaves first.
        node.loop.call_soon(node.feed, node.pool, wm.Registered(worker.worker_id, tag))
    return core


def register_driver(node: Node, peer: Any, tag: bytes, info: dict[str, Any], job_id: bytes | None = None) -> Core:
    """job_id: as the head has answered, if it is on another node."""
    if job_id is None:
        job_id = node.head.register_driver(tag, peer.pid, info)
        assert job_id is not None
    job = Job(job_id, info)
    early = node.cores.jobs.get(job_id)
    if early is not None and not early.same_surroundings(job):
        node.feed(node.pool, wm.JobEnded(job_id))  # a worker started for it already finds other modules: start over
        early = None
    if early is None:
        node.feed(node.pool, wm.JobStarted(job_id))
    node.cores.jobs[job_id] = job
    if early is None:
        node.feed(node.pool, wm.Prestart(job_id, node.settings.prestart_workers))
    core = Core(peer, "driver", tag, job_id, job.namespace)
    core.log_to_driver = bool(info.get("log_to_driver", True))
    founds = node.config.get("founder", True) and node.config.get("watch_driver", True)
    if node.founder is None and founds and peer.pid == node.config.get("driver_pid"):
        node.founder = core
    node.cores.add(core)
    node.feed(node.scheduler, lm.CoreJoined(tag, job_id))
    node.loop.call_soon(node.logs.resume, job_id)  # behind the answer to `register`
    if job.runtime_env:
        node.loop.call_soon(node.envs.request_for_job, job_id, job.runtime_env, node.settings.prestart_workers)
    return core
