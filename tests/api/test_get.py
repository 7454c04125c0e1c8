"""ray.get."""

from __future__ import annotations

import math
import threading
import time

import numpy as np
import pytest

import ray
from ray.exceptions import GetTimeoutError
from tests.wait import wait_until, within


@ray.remote
def echo(x):
    return x


@ray.remote
def when(path, value):
    """value, once path is there"""
    wait_until(path.exists)
    return value


@ray.remote
def sleep(seconds):
    time.sleep(seconds)
    return seconds


def test_get_of_a_ref_gives_the_value_and_of_a_list_the_values_in_its_order(ray_shared):
    assert ray.get(echo.remote(1)) == 1
    assert ray.get([echo.remote(i) for i in range(20)]) == list(range(20))
    assert ray.get([]) == []


def test_get_of_one_ref_twice_in_a_list_gives_the_value_twice(ray_shared):
    ref = echo.remote("x")
    assert ray.get([ref, ref]) == ["x", "x"]


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        2**80,
        -1.5,
        math.inf,
        "text ☃",
        b"bytes",
        (1, [2, {3: {4}}]),
        "long " * 50_000,
        b"x" * 1_000_000,
        list(range(100_000)),
        {"a": [1] * 1000},
        range(5),
        ValueError("a value, not raised"),
    ],
    ids=lambda v: type(v).__name__,
)
def test_values_come_back_equal_whether_put_returned_or_passed(ray_shared, value):
    for result in (ray.get(ray.put(value)), ray.get(echo.remote(value)), ray.get(echo.remote(ray.put(value)))):
        assert type(result) is type(value)
        assert repr(result) == repr(value)


@pytest.mark.parametrize("size", [0, 10, 1_000_000])
def test_an_array_comes_back_read_only(ray_shared, size):
    array = np.arange(size, dtype=np.float64)
    result = ray.get(echo.remote(array))
    np.testing.assert_array_equal(result, array)
    assert not result.flags.writeable or size == 0
    array[:] = -1  # ours, not the object's
    if size:
        assert ray.get(ray.put(np.ones(size)))[0] == 1


def test_an_array_outlives_its_ref(ray_shared):
    array = ray.get(ray.put(np.arange(1_000_000)))
    for _ in range(5):
        ray.put(np.zeros(1_000_000))
    assert array[-1] == 999_999


@pytest.mark.parametrize("thing", [1, "ref", b"x" * 28, None, {"a": 1}, ()], ids=repr)
def test_get_of_something_that_is_not_a_ref_says_what_it_got(ray_shared, thing):
    with pytest.raises(ValueError, match="expected an ObjectRef or a list of ObjectRefs"):
        ray.get(thing)


def test_get_of_a_mix_names_the_element_that_is_not_a_ref(ray_shared):
    with pytest.raises(ValueError, match="element 1 is int 5"):
        ray.get([ray.put(1), 5, ray.put(2)])


def test_get_of_an_actor_handle_is_an_error(ray_shared):
    @ray.remote
    class Actor: ...

    with pytest.raises(ValueError, match="ActorHandle"):
        ray.get(Actor.remote())


@pytest.mark.parametrize("timeout", [-1, -0.001, math.nan, "5", [1]], ids=repr)
def test_a_bad_timeout_names_itself(ray_shared, timeout):
    with pytest.raises((ValueError, TypeError), match="timeout"):
        ray.get(ray.put(1), timeout=timeout)


def test_a_timeout_raises_and_the_task_goes_on(ray_shared, tmp_path):
    ref = when.remote(tmp_path / "go", 0.3)
    with within(0.25), pytest.raises(GetTimeoutError):
        ray.get(ref, timeout=0.02)
    with pytest.raises(TimeoutError):
        ray.get([ref, ray.put(1)], timeout=0)
    (tmp_path / "go").touch()
    assert ray.get(ref, timeout=30) == 0.3


@pytest.mark.parametrize("timeout", [60, 60.5, np.float32(60), 1e18, math.inf])
def test_a_timeout_is_any_number_of_seconds(ray_shared, timeout):
    assert ray.get(sleep.remote(0.05), timeout=timeout) == 0.05
    ref = sleep.remote(0.05)
    assert ray.wait([ref], timeout=timeout) == ([ref], [])


def test_timeout_0_takes_what_is_there(ray_shared):
    assert ray.get(ray.put([1]), timeout=0) == [1]


def test_get_of_a_list_raises_the_first_error_without_waiting_for_the_rest(ray_shared, tmp_path):
    @ray.remote
    def fail():
        raise KeyError("early")

    ref = when.remote(tmp_path / "go", 1)
    with pytest.raises(KeyError, match="early"):
        ray.get([fail.remote(), ref])
    (tmp_path / "go").touch()
    assert ray.get(ref) == 1


def test_get_in_threads_while_the_main_thread_waits_too(ray_shared):
    refs = [sleep.remote(0.02 * i) for i in range(6)]
    results: dict[int, float] = {}
    threads = [threading.Thread(target=lambda i=i: results.update({i: ray.get(refs[i])})) for i in range(6)]
    for thread in threads:
        thread.start()
    assert ray.get(refs[5]) == 0.1
    for thread in threads:
        thread.join()
    assert results == {i: 0.02 * i for i in range(6)}


def test_get_of_refs_inside_refs_gives_refs(ray_shared):
    inner = ray.put("inside")
    (back,) = ray.get(echo.remote([inner]))
    assert back == inner
    assert ray.get(back) == "inside"


def test_the_older_keyword_is_understood(ray_shared):
    assert ray.get(object_ids=ray.put(3)) == 3
    assert ray.get(object_ids=[ray.put(3)], timeout=60) == [3]
    with pytest.raises(TypeError, match="unexpected keyword argument 'object_idz'"):
        ray.get(object_idz=ray.put(3))
    with pytest.raises(TypeError, match="missing"):
        ray.get()


def test_blocking_in_a_coroutine_is_warned_about_once(ray_shared, monkeypatch):
    import asyncio
    import logging

    from ray import api

    said: list[str] = []
    monkeypatch.setattr(api, "_warned", False)
    monkeypatch.setattr(logging.getLogger("ray"), "warning", lambda text, *args: said.append(text % args))

    async def main():
        ray.get(ray.put(1), timeout=0)  # can't block
        assert not said
        for _ in range(2):
            ray.get(ray.put(1))

    asyncio.run(main())
    assert len(said) == 1 and "await ref" in said[0]
