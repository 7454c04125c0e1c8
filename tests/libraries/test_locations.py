"""ray.experimental.get_object_locations."""

from __future__ import annotations

import numpy as np
import pytest

import ray
from ray.experimental import get_object_locations


@ray.remote
def make(n):
    return np.zeros(n, "uint8")


def test_large_objects_are_on_a_node_and_small_ones_with_their_owner(ray_shared):
    large, made, small = ray.put(np.zeros(500_000, "uint8")), make.remote(300_000), ray.put(1)
    ray.wait([made])
    found = get_object_locations([large, made, small])
    here = [ray.get_runtime_context().get_node_id()]
    assert list(found) == [large, made, small]
    assert found[large]["node_ids"] == found[made]["node_ids"] == here
    assert 500_000 <= found[large]["object_size"] < 510_000
    assert found[small]["node_ids"] == []
    assert not any(where["did_spill"] for where in found.values())


def test_an_object_that_is_not_ready_is_nowhere(ray_shared):
    @ray.remote
    class Actor:
        async def never(self):
            import asyncio

            await asyncio.Event().wait()

    actor = Actor.remote()
    ref = actor.never.remote()
    assert get_object_locations([ref]) == {ref: {"node_ids": [], "object_size": None, "did_spill": False}}
    ray.kill(actor)


def test_wrong_arguments_are_named(ray_shared):
    with pytest.raises(TypeError, match="got int 3"):
        get_object_locations([3])
    with pytest.raises(ValueError, match="timeout_ms=0"):
        get_object_locations([], timeout_ms=0)
