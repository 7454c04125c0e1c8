"""ray.experimental.shuffle.simple_shuffle."""

from __future__ import annotations

import pytest

import ray
from ray.experimental.shuffle import ObjectStoreWriterNonStreaming, simple_shuffle
from tests.wait import wait_until


def read(i):
    return range(10 * i, 10 * i + 10)


def by_remainder(items, n):
    for item in items:
        yield item % n, item


@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("streaming", [True, False])
def test_each_item_goes_to_the_partition_that_the_partitioner_says(ray_shared, outputs, streaming):
    def write(j, items):
        return j, sorted(ray.get(items) if streaming else items)

    found = simple_shuffle(
        input_reader=read,
        input_num_partitions=4,
        output_num_partitions=outputs,
        output_writer=write,
        partitioner=by_remainder,
        streaming=streaming,
    )
    assert found == [(j, list(range(j, 40, outputs))) for j in range(outputs)]


def test_round_robin_by_default_and_a_tracker_hears_of_each_task(ray_shared):
    @ray.remote
    class Tracker:
        def __init__(self):
            self.maps = self.reduces = 0

        def inc(self):
            self.maps += 1

        def inc2(self):
            self.reduces += 1

        def counts(self):
            return self.maps, self.reduces

    tracker = Tracker.remote()
    found = simple_shuffle(
        input_reader=read,
        input_num_partitions=2,
        output_num_partitions=5,
        output_writer=lambda j, items: sorted(items),
        object_store_writer=ObjectStoreWriterNonStreaming,
        tracker=tracker,
    )
    assert found == [[j, j + 5, j + 10, j + 15] for j in range(5)]
    wait_until(lambda: ray.get(tracker.counts.remote()) == (2, 5))


def test_wrong_arguments_are_named(ray_shared):
    with pytest.raises(ValueError, match="input_num_partitions=0"):
        simple_shuffle(
            input_reader=read, input_num_partitions=0, output_num_partitions=1, output_writer=lambda j, items: None
        )
    with pytest.raises(TypeError, match=r"output_num_partitions=1\.5"):
        simple_shuffle(
            input_reader=read, input_num_partitions=1, output_num_partitions=1.5, output_writer=lambda j, items: None
        )
