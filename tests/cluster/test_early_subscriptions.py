"""An actor is not taken for dead because its creator's node process stood still when somebody else asked for it."""

from __future__ import annotations

import os
import signal
import threading
from typing import Any

import ray
from ray._head.early import EARLY_SUBSCRIPTION_S

from .nodes import Nodes
from .test_objects import on


@ray.remote(num_cpus=0)
class Created:
    def value(self) -> int:
        return 7


@ray.remote(num_cpus=0)
class Creator:
    def meet(self, user: Any) -> bool:
        self.user = user
        return ray.get(user.ended.remote(), timeout=60)

    def create(self, node_pid: int) -> None:
        os.kill(node_pid, signal.SIGSTOP)
        self.created = Created.remote()
        self.user.use.remote([self.created])


@ray.remote(num_cpus=0, max_concurrency=2)
class User:
    def __init__(self) -> None:
        self.outcome = threading.Event()

    def use(self, box: list[Any]) -> None:
        try:
            self.value: Any = ray.get(box[0].value.remote(), timeout=60)
        except ray.exceptions.RayError as error:
            self.value = error
        self.outcome.set()

    def ended(self, timeout_s: float = 0.0) -> bool:
        return self.outcome.wait(timeout_s)

    def get(self) -> Any:
        return self.value


def test_an_actor_whose_creation_is_still_on_its_way_is_not_dead(nodes: Nodes) -> None:
    nodes.add_node({"CPU": 1})
    pid = int(nodes.stats(1)["pids"]["node"])
    user = User.remote()
    creator = Creator.options(**on(nodes, 1)).remote()
    assert not ray.get(creator.meet.remote(user), timeout=60)
    ray.get(creator.create.remote(pid), timeout=60)
    try:
        assert not ray.get(user.ended.remote(2.5 * EARLY_SUBSCRIPTION_S), timeout=60)
    finally:
        os.kill(pid, signal.SIGCONT)
    assert ray.get(user.ended.remote(60.0), timeout=60)
    assert ray.get(user.get.remote(), timeout=60) == 7
