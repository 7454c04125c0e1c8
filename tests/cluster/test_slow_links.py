"""Machines on slow cables, and on such that lose frames: the same results, later."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest

import ray

from . import netns
from .hosts import Hosts

pytestmark = [
    pytest.mark.skipif(bool(netns.why_not()), reason=netns.why_not()),
    pytest.mark.skipif(not os.path.exists("/dev/net/tun"), reason="slow cables are TAP devices, of /dev/net/tun"),
]
N = 500_000


@ray.remote
class Place:
    def add_up(self, array: np.ndarray) -> int:
        return int(array.sum())

    def make(self, n: int) -> np.ndarray:
        return np.arange(n)

    def where(self) -> str:
        return str(ray.get_runtime_context().get_node_id())


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_a_delay_of_50_ms_and_lost_frames_change_no_result(engine: Any, tls: bool) -> None:
    engine.watch()
    with Hosts(2, {"node_silence_s": 4.0, "tls": tls}, delays={1: 0.05}) as hosts:
        hosts.join(1)
        for loss in (0.01,) if tls else (0.0, 0.01):
            hosts.network.cables[1].loss = loss
            place = Place.options(num_cpus=0, **hosts.on(1)).remote()
            assert ray.get([place.where.remote() for _ in range(100)], timeout=30) == [hosts.node_id(1)] * 100
            assert ray.get(place.add_up.remote(ray.put(np.arange(N))), timeout=30) == N * (N - 1) // 2
            assert (ray.get(place.make.remote(N), timeout=30) == np.arange(N)).all()
        assert hosts.network.cables[1].lost > 0
        assert hosts.is_alive(1)
    engine.stop()
