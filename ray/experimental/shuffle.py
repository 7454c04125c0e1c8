"""simple_shuffle: a distributed shuffle in two rounds of tasks, as an example of what can be built on them.

A library on the public API, in the process that calls. Each map task reads one input partition and deals its items out
to one part for each output partition; each reduce task gets its part of every map task. Parts go through the object
store from worker to worker. What a dead worker had is made again by ray.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Callable

import ray


class ObjectStoreWriter:
    """Collects the items of one part. This one stores each item by itself as soon as it comes."""

    def __init__(self) -> None:
        self.results: list[Any] = []

    def add(self, item: Any) -> None:
        """One more item."""
        self.results.append(ray.put(item))

    def finish(self) -> list[Any]:
        """What the output writer gets of this part: refs."""
        return self.results


class ObjectStoreWriterNonStreaming(ObjectStoreWriter):
    """Keeps the items, and stores the part as one object."""

    def add(self, item: Any) -> None:
        """One more item."""
        self.results.append(item)


def round_robin_partitioner(input_stream: Iterable[Any], num_partitions: int) -> Iterator[tuple[int, Any]]:
    """(output partition, item) for each item: the partitions in turn."""
    for i, item in enumerate(input_stream):
        yield i % num_partitions, item


def simple_shuffle(
    *,
    input_reader: Callable[[int], Iterable[Any]],
    input_num_partitions: int,
    output_num_partitions: int,
    output_writer: Callable[[int, list[Any]], Any],
    partitioner: Callable[[Iterable[Any], int], Iterable[tuple[int, Any]]] = round_robin_partitioner,
    object_store_writer: Callable[[], ObjectStoreWriter] = ObjectStoreWriter,
    tracker: Any = None,
    streaming: bool = True,
) -> list[Any]:
    """Deals the items of all input partitions out to output partitions.

    Args:
        input_reader: gives the items of one input partition, by its number. Called in a task.
        output_writer: called in a task with the number of an output partition and all that its parts hold: refs if
            object_store_writer stores items by themselves, else items.
        partitioner: gives (output partition, item) for each item.
        object_store_writer: makes what collects a part.
        tracker: an actor whose inc.remote() and inc2.remote() are called when a map or a reduce task has ended.
        streaming: False keeps the items of a part together, as ObjectStoreWriterNonStreaming does.
    Returns: what output_writer returned for each output partition, in their order.
    """
    for name, given in (
        ("input_num_partitions", input_num_partitions),
        ("output_num_partitions", output_num_partitions),
    ):
        if isinstance(given, bool) or not isinstance(given, int):
            raise TypeError(f"simple_shuffle: {name}={given!r}: expected a whole number")
        if given < 1:
            raise ValueError(f"simple_shuffle: {name}={given}: expected at least 1")
    if not streaming and object_store_writer is ObjectStoreWriter:
        object_store_writer = ObjectStoreWriterNonStreaming

    @ray.remote(num_returns=output_num_partitions)
    def shuffle_map(i: int) -> Any:
        parts = [object_store_writer() for _ in range(output_num_partitions)]
        for target, item in partitioner(input_reader(i), output_num_partitions):
            parts[target].add(item)
        if tracker is not None:
            tracker.inc.remote()
        finished = [part.finish() for part in parts]
        return finished if output_num_partitions > 1 else finished[0]

    @ray.remote
    def shuffle_reduce(j: int, *parts: list[Any]) -> Any:
        written = output_writer(j, [item for part in parts for item in part])
        if tracker is not None:
            tracker.inc2.remote()
        return written

    mapped = [shuffle_map.remote(i) for i in range(input_num_partitions)]
    by_input = [refs if output_num_partitions > 1 else [refs] for refs in mapped]
    return ray.get([shuffle_reduce.remote(j, *(refs[j] for refs in by_input)) for j in range(output_num_partitions)])
