"""ray.put."""

from __future__ import annotations

import pytest

import ray


def test_put_gives_a_new_ref_each_time(ray_shared):
    a, b = ray.put(1), ray.put(1)
    assert a != b
    assert ray.get([a, b]) == [1, 1]


def test_put_copies_so_that_later_changes_do_not_show(ray_shared):
    value = [1, 2]
    ref = ray.put(value)
    value.append(3)
    assert ray.get(ref) == [1, 2]
    ray.get(ref).append(4)
    assert ray.get(ref) == [1, 2]


def test_put_of_a_ref_is_refused(ray_shared):
    with pytest.raises(TypeError, match="is an ObjectRef already"):
        ray.put(ray.put(1))


def test_put_of_a_list_of_refs_keeps_what_they_refer_to(ray_shared):
    outer = ray.put([ray.put("a"), ray.put("b")])
    assert ray.get(ray.get(outer)) == ["a", "b"]


def test_put_of_what_cannot_be_pickled_names_the_attribute(ray_shared):
    import threading

    class Holder:
        def __init__(self):
            self.guard = threading.Lock()

    with pytest.raises(TypeError, match="guard"):
        ray.put({"x": Holder()})


def test_the_same_object_inside_another_stays_the_same(ray_shared):
    shared = [1]
    x, y = ray.get(ray.put((shared, shared)))
    assert x is y
    loop: list = []
    loop.append(loop)
    back = ray.get(ray.put(loop))
    assert back[0] is back


def test_older_keywords_are_accepted(ray_shared):
    assert ray.get(ray.put(1, weakref=False)) == 1


def test_put_in_a_task_belongs_to_the_task_s_worker_and_can_be_fetched(ray_shared):
    @ray.remote
    def make():
        return [ray.put("x" * 10), ray.put(b"y" * 1_000_000)]

    small, large = ray.get(make.remote())
    assert ray.get(small) == "x" * 10
    assert ray.get(large) == b"y" * 1_000_000
