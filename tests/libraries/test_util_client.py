"""ray.util.client where there is no `ray://`; with one it is tested in tests/api/test_client.py."""

from __future__ import annotations

import ray


def test_ray_util_client_is_not_connected_beside_a_session_and_leaves_it_alone(ray_shared):
    assert not ray.util.client.ray.is_connected()
    ray.util.client.ray.disconnect()
    assert ray.is_initialized()
