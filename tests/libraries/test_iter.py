"""ray.util.iter: parallel iterators, against what the same steps give in one process."""

from __future__ import annotations

import itertools
import os

import pytest

import ray
from ray.exceptions import ActorDiedError
from ray.util.iter import ParallelIteratorWorker, from_actors, from_items, from_iterators, from_range
from tests.wait import wait_until


def double(x):
    return 2 * x


def fail_at_3(x):
    if x == 3:
        raise ValueError("three")
    return x


@pytest.fixture(scope="module")
def _numbers(engine):
    engine.share()
    return from_items(list(range(10)), num_shards=2)


@pytest.fixture
def numbers(ray_shared, _numbers):
    """0 to 9 in two shards: the even ones and the odd ones."""
    return _numbers


# --- making and gathering --------------------------------------------------------------------------------------------


def test_items_are_dealt_out_and_gathered_in_turn(numbers):
    assert numbers.num_shards() == 2
    assert list(numbers.gather_sync()) == list(range(10))
    assert [list(shard) for shard in numbers.shards()] == [[0, 2, 4, 6, 8], [1, 3, 5, 7, 9]]
    assert list(numbers.batch_across_shards()) == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]
    assert numbers.take(3) == [0, 1, 2]


@pytest.mark.parametrize("batch_ms", [0, 5])
@pytest.mark.parametrize("num_async", [1, 4])
def test_gather_async_gives_everything_once(numbers, batch_ms, num_async):
    assert sorted(numbers.gather_async(batch_ms=batch_ms, num_async=num_async)) == list(range(10))
    assert list(numbers.get_shard(1, batch_ms, num_async)) == [1, 3, 5, 7, 9]


def test_from_range_and_from_iterators(ray_shared):
    assert [list(shard) for shard in from_range(7, 3).shards()] == [[0, 1], [2, 3], [4, 5, 6]]
    uneven = from_iterators([range(1), lambda: (c for c in "abc")])
    assert list(uneven.gather_sync()) == [0, "a", "b", "c"]
    assert list(uneven.batch_across_shards()) == [[0, "a"], ["b"], ["c"]]
    assert list(from_range(0).gather_sync()) == []


def test_repeated_items_come_again_and_again(ray_shared):
    assert from_items([1, 2, 3], num_shards=1, repeat=True).take(7) == [1, 2, 3, 1, 2, 3, 1]
    assert from_range(2, 2, repeat=True).take(5) == [0, 1, 0, 1, 0]
    with pytest.raises(ValueError, match="no items to repeat"):
        from_items([1], num_shards=2, repeat=True).take(3)


def test_actors_of_a_users_class_may_be_the_shards(ray_shared):
    @ray.remote
    class Worker(ParallelIteratorWorker):
        def __init__(self, first):
            self.asked = 0
            super().__init__(self.items, False)
            self.first = first

        def items(self):
            for i in range(3):
                self.asked += 1
                yield self.first + i

        def how_many(self):
            return self.asked

    actors = [Worker.remote(0), Worker.remote(10)]
    it = from_actors(actors)
    assert it.take(2) == [0, 10]
    assert ray.get([actor.how_many.remote() for actor in actors]) == [1, 1]  # no further than was asked for
    pairs = list(it.gather_async().zip_with_source_actor())
    assert sorted((actors.index(actor), item) for actor, item in pairs) == [
        (i, 10 * i + j) for i in (0, 1) for j in range(3)
    ]


# --- transforming ----------------------------------------------------------------------------------------------------


def test_transforms_do_in_shards_what_they_do_here(numbers):
    assert list(numbers.for_each(double).gather_sync()) == [2 * x for x in range(10)]
    assert list(numbers.filter(lambda x: x > 6).gather_sync()) == [8, 7, 9]
    assert list(numbers.batch(2).gather_sync()) == [[0, 2], [1, 3], [4, 6], [5, 7], [8], [9]]
    assert list(numbers.batch(2).flatten().gather_sync()) == list(range(10))
    assert list(numbers.combine(lambda x: [x, x] if x < 2 else []).gather_sync()) == [0, 1, 0, 1]
    assert list(numbers.transform(lambda items: itertools.islice(items, 1)).gather_sync()) == [0, 1]
    assert list(numbers.for_each(double).filter(lambda x: x < 6).batch(10).gather_sync()) == [[0, 4], [2]]


def test_transforms_of_a_local_iterator(numbers, capsys):
    local = numbers.gather_sync()
    assert list(local.for_each(double).filter(lambda x: x > 3).batch(3).take(2)) == [[4, 6, 8], [10, 12, 14]]
    assert numbers.gather_sync().combine(lambda x: [x] * x).take(4) == [1, 2, 2, 3]
    numbers.show(2)
    assert capsys.readouterr().out == "0\n1\n"


def test_what_was_taken_from_a_local_iterator_is_gone(numbers):
    local = numbers.gather_sync()
    assert (local.take(3), next(local), local.take(2), list(local)) == ([0, 1, 2], 3, [4, 5], [6, 7, 8, 9])


def test_transforms_run_in_the_actors_and_tasks_of_for_each_elsewhere(numbers):
    def pid(_x):
        return os.getpid()

    in_actors = set(numbers.for_each(pid).gather_sync())
    assert len(in_actors) == 2
    in_tasks = set(numbers.for_each(pid, max_concurrency=3).gather_sync())
    assert in_tasks & (in_actors | {os.getpid()}) == set()
    assert list(numbers.for_each(double, max_concurrency=3).gather_sync()) == [2 * x for x in range(10)]
    assert list(numbers.for_each(double, max_concurrency=0, resources={"num_cpus": 0.5}).gather_sync()) == [
        2 * x for x in range(10)
    ]


def test_shuffles_give_the_same_items_in_another_order(numbers):
    shuffled = list(numbers.local_shuffle(3, seed=1).gather_sync())
    assert sorted(shuffled) == list(range(10))
    assert shuffled != list(range(10))
    assert shuffled == list(numbers.local_shuffle(3, seed=1).gather_sync())
    assert [x % 2 for x in shuffled] == [0, 1] * 5  # within shards
    assert sorted(numbers.gather_sync().shuffle(4)) == list(range(10))


# --- shards ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("batch_ms", [0, 2])
def test_repartition_keeps_the_items(numbers, n, batch_ms):
    again = numbers.for_each(double).repartition(n, batch_ms)
    assert again.num_shards() == n
    assert sorted(again.gather_sync()) == [2 * x for x in range(10)]
    assert sorted(again.for_each(double).gather_async()) == [4 * x for x in range(10)]  # a pass of its own
    if n == 3:
        assert [sorted(shard) for shard in again.shards()] == [[0, 2, 12, 14], [4, 6, 16, 18], [8, 10]]
    assert sorted(again.repartition(2).gather_sync()) == [2 * x for x in range(10)]


def test_union_and_select_shards(numbers):
    both = numbers.union(numbers.for_each(lambda x: -x).union(numbers.repartition(1)))
    assert both.num_shards() == 5
    assert sorted(both.gather_async()) == sorted([*range(10), *(-x for x in range(10)), *range(10)])
    assert list(both.select_shards([1, 3]).gather_sync()) == [1, -1, 3, -3, 5, -5, 7, -7, 9, -9]


def test_several_passes_at_once_do_not_disturb_one_another(numbers):
    one, other = numbers.gather_sync(), numbers.gather_async()
    assert [next(one), next(one)] == [0, 1]
    assert sorted(other) == list(range(10))
    assert list(one) == list(range(2, 10))


def test_shards_may_be_passed_to_tasks(numbers):
    @ray.remote
    def total(shard):
        return sum(shard)

    assert ray.get([total.remote(shard) for shard in numbers.for_each(double).shards()]) == [40, 50]
    started = numbers.gather_sync()
    next(started)
    with pytest.raises(TypeError, match="has been started"):
        total.remote(started)


def test_local_iterators_unite_and_duplicate(numbers):
    evens, odds = numbers.shards()
    assert evens.union(odds, round_robin_weights=[2, 1]).take(6) == [0, 2, 1, 4, 6, 3]
    evens, odds = numbers.shards()
    assert list(evens.union(odds, round_robin_weights=["*", 1])) == [0, 2, 4, 6, 8, 1, 3, 5, 7, 9]
    one, two = numbers.gather_sync().duplicate(2)
    assert one.take(3) == [0, 1, 2]
    assert list(two) == list(range(10))
    assert list(one) == list(range(3, 10))


# --- what goes wrong, what ends --------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_ms", [0, 50])
def test_an_error_comes_where_the_item_would_have_come(ray_shared, batch_ms):
    it = from_items(list(range(6)), num_shards=1).for_each(fail_at_3)
    gathered = it.gather_async(batch_ms=batch_ms)
    assert [next(gathered), next(gathered), next(gathered)] == [0, 1, 2]
    with pytest.raises(ValueError, match="three"):
        next(gathered)


def test_an_actors_death_is_an_error(ray_shared):
    def die_at_2(x):
        if x == 2:
            os._exit(1)
        return x

    with pytest.raises(ActorDiedError):
        list(from_items([0, 1, 2, 3], num_shards=2).for_each(die_at_2).gather_sync())


def test_actors_forget_a_pass_that_has_ended_or_was_given_up(ray_shared):
    @ray.remote
    class Worker(ParallelIteratorWorker):
        def __init__(self):
            super().__init__(range(100), False)

        def passes(self):
            return len(self._passes)

    actor = Worker.remote()
    it = from_actors([actor])
    assert len(list(it.gather_async())) == 100
    gathered = it.gather_sync()
    assert gathered.take(3) == [0, 1, 2]
    assert ray.get(actor.passes.remote()) == 1
    del gathered
    wait_until(lambda: ray.get(actor.passes.remote()) == 0)
    assert sorted(it.repartition(2).gather_sync()) == list(range(100))
    wait_until(lambda: ray.get(actor.passes.remote()) == 0)


def test_it_has_no_order_of_its_own(numbers):
    with pytest.raises(TypeError, match="gather_sync"):
        iter(numbers)
    assert repr(numbers.for_each(double).batch(2)).startswith("ParallelIterator[from_iterators[2].for_each().batch(2)")


@pytest.mark.parametrize(
    ("use", "error", "says"),
    [
        (lambda it: from_items([], num_shards=0), ValueError, "num_shards=0"),
        (lambda it: from_range(-1), ValueError, "n=-1"),
        (lambda it: from_actors([]), ValueError, "at least one shard"),
        (lambda it: it.batch(0), ValueError, "n=0"),
        (lambda it: it.batch(1.5), TypeError, r"n=1\.5"),
        (lambda it: it.repartition(0), ValueError, "num_partitions=0"),
        (lambda it: it.gather_async(batch_ms=-1), ValueError, "batch_ms=-1"),
        (lambda it: it.gather_async(num_async=0), ValueError, "num_async=0"),
        (lambda it: it.get_shard(2), ValueError, "expected 0 to 1"),
        (lambda it: it.select_shards([]), ValueError, "empty"),
        (lambda it: it.union(3), TypeError, "other=3"),
        (lambda it: it.gather_sync().union(it.gather_sync(), round_robin_weights=[1]), ValueError, "expected 2"),
        (lambda it: it.for_each(double, max_concurrency=-1), ValueError, "max_concurrency=-1"),
    ],
)
def test_wrong_arguments_are_named(numbers, use, error, says):
    with pytest.raises(error, match=says):
        use(numbers)
