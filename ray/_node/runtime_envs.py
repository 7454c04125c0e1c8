"""Decides which runtime environments are built, for whom they are ready, and which go when they take too much room.

Pure: `handle(event, now) -> actions`, no I/O. Runs in the node process, on its event loop. Whoever needs a worker in an
environment waits here first, holding no resources; the scheduler hears of the request when the environment is ready. An
environment is in exactly one of

    WAITING    to be built when fewer than builds_max are being built; found in `_line`
    BUILDING   a builder process works on it; has a deadline, unless it was asked for with none
    STOPPING   its builder was killed, because of its deadline or because nobody waits any more, and is not yet dead
    READY      built: waiters are granted at once
    (gone)     failed, or removed to make room: the next request builds it anew

One request or a thousand: an environment is built once. If its builder dies, everybody who waits is refused with what
the builder, or the tool it ran, last said; nothing is remembered of a failure, so a request made later tries again.
If a core dies, its requests are withdrawn.

An environment consists of parts (`ray/runtime_env/_parts.py`), which environments share. Once the parts take more
than cache_bytes, the environments used longest ago go until they don't, except those in use: waited for, granted and
not yet placed, or `in_use`, which is asked of the scheduler and the pool. Deadlines and the size are all that depends
on numbers.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from ray._scheduling.machine import InvalidTransition, Story
from ray.runtime_env._parts import needs_build, parts_of, setup_timeout_s

from . import env_messages as em

WAITING, BUILDING, STOPPING, READY, GONE = "WAITING", "BUILDING", "STOPPING", "READY", "GONE"


class Environment:
    __slots__ = (
        "cause", "context", "env", "granted", "key", "parts", "sizes", "state", "story", "text", "timeout_s", "waiters",
    )  # fmt: skip

    def __init__(self, key: str, text: str, timeout_default_s: float) -> None:
        self.key = key
        self.text = text
        self.env: dict[str, Any] = json.loads(text)
        self.parts = parts_of(self.env)
        self.timeout_s = setup_timeout_s(self.env, timeout_default_s)
        self.state = WAITING
        self.waiters: dict[em.Waiter, None] = {}  # in order
        self.granted: set[em.Waiter] = set()  # of whom `in_use` may not know yet
        self.context: dict[str, Any] = {}  # what a worker in it has to be told
        self.sizes: dict[str, int] = {}
        self.cause = ""  # why its builder was stopped, if those who wait are to hear of it
        self.story = Story()

    def __repr__(self) -> str:
        return f"Environment({self.key}, {self.state}, {len(self.waiters)} waiting, {self.story})"


class RuntimeEnvs:
    """The environments of one node. Call from one thread."""

    def __init__(
        self,
        in_use: Callable[[], set[str]],
        *,
        builds_max: int = 4,
        cache_bytes: int = 10 * 2**30,
        timeout_default_s: float = 600.0,
    ) -> None:
        self._in_use = in_use
        self._builds_max = builds_max
        self._cache_bytes = cache_bytes
        self._timeout_default_s = timeout_default_s
        self.envs: OrderedDict[str, Environment] = OrderedDict()  # used longest ago first
        self._line: OrderedDict[str, Environment] = OrderedDict()
        self._deadlines: dict[str, float] = {}
        self._waiting: dict[em.Waiter, str] = {}
        self._building = 0  # BUILDING and STOPPING
        self._actions: list[Any] = []
        self.built = 0
        self.failed = 0
        self.removed = 0

    # -- the gate ---------------------------------------------------------------------------------------------

    def handle(self, event: Any, now: float) -> list[Any]:
        HANDLERS[type(event)](self, event, now)
        self._start_builds(now)
        actions, self._actions = self._actions, []
        return actions

    def deadline(self) -> float | None:
        """When to send an em.Tick, or None."""
        return min(self._deadlines.values(), default=None)

    def _go(self, env: Environment, event: str, now: float) -> None:
        step = TRANSITIONS.get((env.state, event))
        if step is None:
            raise InvalidTransition(f"no row for {event} in {env.state}: {env!r}")
        before = env.state
        after = step(self, env, now)
        env.state = after
        env.story.add(now, before, event, after)

    # -- events -----------------------------------------------------------------------------------------------

    def _requested(self, event: em.Requested, now: float) -> None:
        if event.waiter in self._waiting:
            return  # said twice
        env = self.envs.get(event.key)
        if env is None:
            env = self.envs[event.key] = Environment(event.key, event.text, self._timeout_default_s)
            if needs_build(env.env):
                self._line[env.key] = env
            else:
                env.state = READY
            env.story.add(now, "-", "Requested", env.state)
        env.waiters[event.waiter] = None
        self._waiting[event.waiter] = event.key
        self._go(env, "Requested", now)

    def _withdrawn(self, event: em.Withdrawn, now: float) -> None:
        key = self._waiting.pop(event.waiter, None)
        if key is None:
            return  # it was granted or refused already
        env = self.envs[key]
        del env.waiters[event.waiter]
        if not env.waiters:
            self._go(env, "Abandoned", now)

    def _core_left(self, event: em.CoreLeft, now: float) -> None:
        for waiter in [waiter for waiter in self._waiting if waiter[0] == "task" and waiter[1] == event.tag]:
            self._withdrawn(em.Withdrawn(waiter), now)

    def _placed(self, event: em.Placed, now: float) -> None:
        for env in self.envs.values():
            env.granted.discard(event.waiter)

    def _built_event(self, event: em.Built, now: float) -> None:
        env = self.envs.get(event.key)
        if env is not None:
            env.context, env.sizes = event.context, event.sizes
            self._go(env, "Built", now)
            self._make_room(now)

    def _failed_event(self, event: em.BuildFailed, now: float) -> None:
        env = self.envs.get(event.key)
        if env is not None:
            if env.state == BUILDING:
                env.cause = event.cause
            self._go(env, "Failed", now)

    def _less_in_use(self, event: em.LessInUse, now: float) -> None:
        self._make_room(now)

    def _tick(self, event: em.Tick, now: float) -> None:
        for key, at in list(self._deadlines.items()):
            if at <= now:
                env = self.envs[key]
                env.cause = (
                    f"it was not set up within {env.timeout_s:g} s (config['setup_timeout_seconds'] sets the limit)"
                )
                self._go(env, "TimedOut", now)

    # -- steps ------------------------------------------------------------------------------------------------

    def _wait(self, env: Environment, now: float) -> str:
        return env.state

    def _grant(self, env: Environment, now: float) -> str:
        self.envs.move_to_end(env.key)
        for waiter in env.waiters:
            del self._waiting[waiter]
            env.granted.add(waiter)
            self._actions.append(em.Granted(waiter, env.key))
        env.waiters = {}
        return READY

    def _build(self, env: Environment, now: float) -> str:
        del self._line[env.key]
        self._building += 1
        if env.timeout_s is not None:
            self._deadlines[env.key] = now + env.timeout_s
        self._actions.append(em.StartBuild(env.key))
        return BUILDING

    def _ready(self, env: Environment, now: float) -> str:
        self._build_over(env)
        self.built += 1
        return self._grant(env, now)

    def _stop(self, env: Environment, now: float) -> str:
        self._deadlines.pop(env.key, None)
        self._actions.append(em.StopBuild(env.key))
        return STOPPING

    def _refuse(self, env: Environment, now: float) -> str:
        self._build_over(env)
        self.failed += 1
        for waiter in env.waiters:
            del self._waiting[waiter]
            self._actions.append(em.Refused(waiter, env.key, env.cause))
        env.waiters = {}
        del self.envs[env.key]
        return GONE

    def _stopped(self, env: Environment, now: float) -> str:
        if env.cause or not env.waiters:
            return self._refuse(env, now)
        self._build_over(env)  # somebody came while it was being stopped because nobody waited
        self._line[env.key] = env
        return WAITING

    def _drop(self, env: Environment, now: float) -> str:
        del self._line[env.key]
        del self.envs[env.key]
        return GONE

    def _remove(self, env: Environment, now: float) -> str:
        del self.envs[env.key]
        self.removed += 1
        self._actions.append(em.Forgotten(env.key))
        return GONE

    def _build_over(self, env: Environment) -> None:
        self._building -= 1
        self._deadlines.pop(env.key, None)

    # -- builds and room --------------------------------------------------------------------------------------

    def _start_builds(self, now: float) -> None:
        while self._line and self._building < self._builds_max:
            self._go(next(iter(self._line.values())), "Chosen", now)

    def _part_sizes(self) -> dict[str, int]:
        sizes: dict[str, int] = {}
        for env in self.envs.values():
            sizes.update(env.sizes)
        return sizes

    def _make_room(self, now: float) -> None:
        sizes = self._part_sizes()
        total = sum(sizes.values())
        if total <= self._cache_bytes:
            return
        in_use = self._in_use()
        for env in list(self.envs.values()):
            if total <= self._cache_bytes:
                return
            if env.state != READY or env.granted or env.key in in_use or not env.parts:
                continue
            self._go(env, "Removed", now)
            kept = {part for other in self.envs.values() for part in other.parts}
            free = tuple(part for part in env.parts if part not in kept)
            total -= sum(sizes.get(part, 0) for part in free)
            if free:
                self._actions.append(em.Remove(free))

    # -- for the shell, tests and tools -----------------------------------------------------------------------

    def get(self, key: str) -> Environment | None:
        return self.envs.get(key)

    def stats(self) -> dict[str, Any]:
        counts = {WAITING: 0, BUILDING: 0, STOPPING: 0, READY: 0}
        for env in self.envs.values():
            counts[env.state] += 1
        return {
            "envs": counts,
            "waiters": len(self._waiting),
            "bytes": sum(self._part_sizes().values()),
            "built": self.built,
            "failed": self.failed,
            "removed": self.removed,
        }

    def check(self) -> None:
        """Re-derives every index from the environments. Raises: AssertionError."""
        by_state: dict[str, set[str]] = {WAITING: set(), BUILDING: set(), STOPPING: set(), READY: set()}
        for env in self.envs.values():
            by_state[env.state].add(env.key)
            assert env.state != READY or not env.waiters, env
            assert env.state in (READY, STOPPING) or env.waiters, env
        assert set(self._line) == by_state[WAITING]
        assert self._building == len(by_state[BUILDING]) + len(by_state[STOPPING]) <= self._builds_max
        assert not self._line or self._building == self._builds_max
        assert self._deadlines.keys() <= by_state[BUILDING]
        waiting = {waiter: env.key for env in self.envs.values() for waiter in env.waiters}
        assert self._waiting == waiting

    def __repr__(self) -> str:
        return f"RuntimeEnvs({self.stats()})"


_Step = Callable[[RuntimeEnvs, Environment, float], str]

TRANSITIONS: dict[tuple[str, str], _Step] = {
    (WAITING, "Abandoned"): RuntimeEnvs._drop,
    (WAITING, "Requested"): RuntimeEnvs._wait,
    (WAITING, "Chosen"): RuntimeEnvs._build,
    (BUILDING, "Abandoned"): RuntimeEnvs._stop,
    (BUILDING, "TimedOut"): RuntimeEnvs._stop,
    (BUILDING, "Failed"): RuntimeEnvs._refuse,
    (BUILDING, "Requested"): RuntimeEnvs._wait,
    (BUILDING, "Built"): RuntimeEnvs._ready,
    (STOPPING, "Abandoned"): RuntimeEnvs._wait,
    (STOPPING, "Failed"): RuntimeEnvs._stopped,
    (STOPPING, "Requested"): RuntimeEnvs._wait,  # after a time-out it hears of that; else it is built again
    (STOPPING, "Built"): RuntimeEnvs._ready,  # it was quicker than the signal
    (READY, "Requested"): RuntimeEnvs._grant,
    (READY, "Removed"): RuntimeEnvs._remove,
}

HANDLERS: dict[type, Callable[[RuntimeEnvs, Any, float], None]] = {
    em.Requested: RuntimeEnvs._requested,
    em.Withdrawn: RuntimeEnvs._withdrawn,
    em.CoreLeft: RuntimeEnvs._core_left,
    em.Placed: RuntimeEnvs._placed,
    em.Built: RuntimeEnvs._built_event,
    em.BuildFailed: RuntimeEnvs._failed_event,
    em.LessInUse: RuntimeEnvs._less_in_use,
    em.Tick: RuntimeEnvs._tick,
}
