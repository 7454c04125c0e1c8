"""Joins the environments' machine to the rest of the node: a request for a worker passes here first. Node's main
thread.

Requests without an environment go straight to the scheduler. One with an environment waits in `RuntimeEnvs` until
that is ready, and only then is the scheduler told of it; if it can't be set up, whoever asked is told instead. The
builders are `env_builds.py`'s.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ray.runtime_env._parts import key_of

from . import env_messages as em
from . import lease_messages as lm
from . import worker_messages as wm
from . import worker_pool as wp
from .env_builds import EnvBuilds
from .package_fetch import PackageFetch
from .package_inbox import PackageInbox
from .runtime_envs import RuntimeEnvs

if TYPE_CHECKING:
    from .shell import Node

_KEYS_KEPT = 1024


class EnvGate:
    def __init__(self, node: Node) -> None:
        self._node = node
        settings = node.settings
        self.machine = RuntimeEnvs(
            self._in_use,
            builds_max=settings.runtime_env_builds_max,
            cache_bytes=settings.runtime_env_cache_bytes,
            timeout_default_s=settings.runtime_env_setup_timeout_s,
        )
        self.inbox = PackageInbox(node.session.folder, settings.runtime_env_package_bytes_max)
        self.packages = PackageFetch(node)
        self.builds = EnvBuilds(node, lambda event: node.feed(self.machine, event))
        self._requests: dict[em.Waiter, Any] = {}  # what the scheduler is to be told once the environment is ready
        self._keys: dict[str, str] = {}  # text -> key: many requests bring the same text
        self.carry_out: dict[type, Callable[[Any], None]] = {
            em.StartBuild: lambda a: self.builds.start(a.key, self.machine.envs[a.key].env),
            em.StopBuild: lambda a: self.builds.stop(a.key),
            em.Granted: self._granted,
            em.Refused: self._refused,
            em.Forgotten: lambda a: node.feed(node.pool, wm.EnvForgotten(a.key)),
            em.Remove: lambda a: self.builds.remove(a.parts),
        }

    def request(self, waiter: em.Waiter, text: str, request: Any) -> None:
        """Tells the scheduler of request, an lm.LeaseRequested or lm.ActorRequested, once its environment is ready.

        Raises: ValueError: text is no environment.
        """
        key = self._key(text)
        if not key:
            self._node.feed(self._node.scheduler, request)
            return
        self._requests[waiter] = request._replace(env=key)
        self._ask_for(waiter, key, text)

    def _ask_for(self, waiter: em.Waiter, key: str, text: str) -> None:
        lacking = self.packages.lacking(text)
        if lacking:
            self._node.loop.create_task(self._ask_when_here(lacking, waiter, key, text))
        else:
            self._node.feed(self.machine, em.Requested(waiter, key, text))

    async def _ask_when_here(self, lacking: list[str], waiter: em.Waiter, key: str, text: str) -> None:
        await self.packages.fetch(lacking)
        if waiter in self._requests and self._node.ending is None:
            self._node.feed(self.machine, em.Requested(waiter, key, text))

    def set_of_job(self, job_id: bytes, text: str) -> None:
        """A client's, whose packages could only be sent once it had registered. Raises: ValueError."""
        self._key(text)
        job = self._node.cores.jobs[job_id]
        job.runtime_env = text
        self.request_for_job(job_id, text, self._node.settings.prestart_workers)

    def request_for_job(self, job_id: bytes, text: str, prestart: int) -> None:
        """Builds a job's environment while nobody waits for it yet, and starts workers in it."""
        key = self._key(text)
        if key and (json.loads(text).get("config") or {}).get("eager_install", True):
            self._requests["job", job_id] = wm.Prestart(job_id, prestart, key)
            self._ask_for(("job", job_id), key, text)

    def withdraw(self, waiter: em.Waiter) -> None:
        if self._requests.pop(waiter, None) is not None:
            self._node.feed(self.machine, em.Withdrawn(waiter))

    def core_left(self, tag: bytes) -> None:
        for waiter in [waiter for waiter in self._requests if waiter[:2] == ("task", tag)]:
            del self._requests[waiter]
        self._node.feed(self.machine, em.CoreLeft(tag))
        self.inbox.sender_left(tag)

    def _granted(self, action: em.Granted) -> None:
        request = self._requests.pop(action.waiter, None)
        if request is not None:  # else it was withdrawn at this very moment
            target = self._node.pool if isinstance(request, wm.Prestart) else self._node.scheduler
            self._node.feed(target, request)
        self._node.feed(self.machine, em.Placed(action.waiter))

    def _refused(self, action: em.Refused) -> None:
        request = self._requests.pop(action.waiter, None)
        if isinstance(request, lm.LeaseRequested):
            self._node.tell(request.tag, "lease_failed", request.req_id, action.cause)
        elif isinstance(request, lm.ActorRequested):
            self._node.head.actor_env_failed(request.actor_id, action.cause)
        elif isinstance(request, wm.Prestart):
            text = f"The runtime environment of the job could not be set up: {action.cause}"
            self._node.head.report_error(request.job_id, "runtime_env", text, {})

    def _in_use(self) -> set[str]:
        workers = (worker.env for worker in self._node.pool.workers.values() if worker.state != wp.IDLE)
        return {*workers, *(lease.env for lease in self._node.scheduler.leases())}

    def _key(self, text: str) -> str:
        if not text:
            return ""
        key = self._keys.get(text)
        if key is None:
            if not isinstance(json.loads(text), dict):
                raise ValueError(f"runtime_env: no JSON object, but {text[:200]!r}")
            if len(self._keys) >= _KEYS_KEPT:
                self._keys.clear()
            key = self._keys[text] = key_of(text)
        return key
