"""ray.wait."""

from __future__ import annotations

import math
import time

import pytest

import ray
from tests.wait import wait_until, within


@ray.remote
def when(path, value):
    """Returns value once the file exists."""
    wait_until(path.exists)
    return value


@ray.remote
def echo(x):
    return x


def test_wait_returns_what_is_ready_and_the_rest_each_in_the_order_given(ray_shared, tmp_path):
    late = when.remote(tmp_path / "go", 1)
    early = [echo.remote(i) for i in range(3)]
    ready, rest = ray.wait([early[2], late, early[0], early[1]], num_returns=3)
    assert ready == [early[2], early[0], early[1]]
    assert rest == [late]
    (tmp_path / "go").touch()
    assert ray.wait([late]) == ([late], [])


def test_wait_returns_at_most_num_returns(ray_shared):
    refs = [ray.put(i) for i in range(5)]
    assert ray.wait(refs, num_returns=2) == (refs[:2], refs[2:])
    assert ray.wait(refs) == (refs[:1], refs[1:])


@pytest.mark.parametrize("timeout", [0, 0.05])
def test_wait_gives_up_after_timeout_seconds(ray_shared, tmp_path, timeout):
    late = when.remote(tmp_path / "go", 1)
    done = ray.put(2)
    start = time.monotonic()
    with within(timeout + 2):
        assert ray.wait([late, done], num_returns=2, timeout=timeout) == ([done], [late])
    assert timeout <= time.monotonic() - start
    (tmp_path / "go").touch()
    ray.get(late)


def test_a_failed_task_is_ready(ray_shared):
    @ray.remote
    def fail():
        raise ValueError

    ref = fail.remote()
    assert ray.wait([ref], timeout=30) == ([ref], [])


def test_wait_on_nothing_returns_nothing(ray_shared):
    assert ray.wait([]) == ([], [])


@pytest.mark.parametrize("refs", ["abc", 5, None, {"a": 1}], ids=repr)
def test_wait_on_something_that_is_not_a_list_is_an_error(ray_shared, refs):
    with pytest.raises(TypeError, match="expected a list of ObjectRefs"):
        ray.wait(refs)


def test_wait_on_one_ref_says_to_put_it_into_a_list(ray_shared):
    with pytest.raises(TypeError, match="put it into a list"):
        ray.wait(ray.put(1))


def test_wait_on_a_mix_is_an_error(ray_shared):
    with pytest.raises(TypeError, match="element 1 is int"):
        ray.wait([ray.put(1), 5])


def test_wait_on_one_ref_twice_is_an_error(ray_shared):
    ref = ray.put(1)
    with pytest.raises(ValueError, match="twice"):
        ray.wait([ref, ref])


@pytest.mark.parametrize("num_returns", [0, -1, 3, 1.0, "1", None, True], ids=repr)
def test_a_bad_num_returns_names_itself(ray_shared, num_returns):
    with pytest.raises((ValueError, TypeError), match="num_returns"):
        ray.wait([ray.put(1), ray.put(2)], num_returns=num_returns)


@pytest.mark.parametrize("timeout", [-1, math.nan, "5"], ids=repr)
def test_a_bad_timeout_names_itself(ray_shared, timeout):
    with pytest.raises((ValueError, TypeError), match="timeout"):
        ray.wait([ray.put(1)], timeout=timeout)


def test_results_are_handled_as_they_come(ray_shared):
    pending = [echo.remote(i) for i in range(100)]
    seen = []
    while pending:
        ready, pending = ray.wait(pending)
        seen += ray.get(ready)
    assert sorted(seen) == list(range(100))


def test_the_older_keyword_is_understood(ray_shared):
    ref = ray.put(1)
    assert ray.wait(object_ids=[ref], num_returns=1, timeout=60) == ([ref], [])
