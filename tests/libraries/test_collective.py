"""ray.util.collective: operations against numpy's own result, what goes wrong, and who dies."""

from __future__ import annotations

import importlib.util
import os

import numpy as np
import pytest

import ray
from ray.util import collective
from ray.util.collective import CollectiveError, ReduceOp
from tests.wait import wait_until, within

WITH_TORCH = importlib.util.find_spec("torch") is not None
REDUCE = {
    ReduceOp.SUM: np.add.reduce,
    ReduceOp.PRODUCT: np.multiply.reduce,
    ReduceOp.MIN: np.minimum.reduce,
    ReduceOp.MAX: np.maximum.reduce,
}


@ray.remote
class Member:
    def join(self, *args, **kwargs):
        collective.init_collective_group(*args, **kwargs)

    def call(self, function, *args):
        """function, in this process: whatever a test wants a member to do."""
        return function(*args)

    def pid(self):
        return os.getpid()


def members(n, group="default", **options):
    made = [Member.remote() for _ in range(n)]
    ray.get([member.join.remote(n, rank, group_name=group, **options) for rank, member in enumerate(made)])
    return made


def on_all(made, function, *args):
    """What function(rank, *args) returns at each member."""
    return ray.get([member.call.remote(function, rank, *args) for rank, member in enumerate(made)])


@pytest.fixture(scope="module")
def three(engine):
    engine.share()
    return members(3)


@pytest.fixture
def group(ray_shared, three):
    return three


def data(rank, shape, dtype="float64"):
    return np.array(np.random.default_rng(rank).normal(size=shape) * 10, dtype)


SHAPES = [(), (3,), (40, 50), (400, 501)]  # the last one, 1.6 MB, is reduced in two steps


# --- results ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_allreduce_gives_the_sum_to_all(group, shape):
    def work(rank, shape):
        tensor = data(rank, shape)
        collective.allreduce(tensor)
        return tensor

    found = on_all(group, work, shape)
    assert np.allclose(found[0], sum(data(rank, shape) for rank in range(3)))
    assert all(np.array_equal(found[0], other) for other in found)  # to the last bit


@pytest.mark.parametrize("op", list(ReduceOp), ids=lambda op: op.name)
def test_all_ways_to_reduce(group, op):
    def work(rank, op):
        tensor, other = data(rank, (5,), "int64"), data(rank, (5,), "float32")
        collective.allreduce(tensor, op=op)
        collective.reduce(other, dst_rank=1, op=op)
        return tensor, other

    found = on_all(group, work, op)
    expected = REDUCE[op]([data(rank, (5,), "int64") for rank in range(3)])
    assert all(np.array_equal(tensor, expected) for tensor, _ in found)
    assert np.allclose(found[1][1], REDUCE[op]([data(rank, (5,), "float32") for rank in range(3)]))
    assert np.array_equal(found[0][1], data(0, (5,), "float32"))  # who is not the target keeps what it had


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_broadcast_and_allgather(group, shape):
    def work(rank, shape):
        tensor, gathered = data(rank, shape), [np.zeros(shape) for _ in range(3)]
        collective.allgather(gathered, tensor)
        collective.broadcast(tensor, src_rank=2)
        return tensor, gathered

    for tensor, gathered in on_all(group, work, shape):
        assert np.array_equal(tensor, data(2, shape))
        assert all(np.array_equal(gathered[rank], data(rank, shape)) for rank in range(3))


@pytest.mark.parametrize("shape", SHAPES[1:3], ids=str)
def test_reducescatter_gives_each_its_part(group, shape):
    def work(rank, shape):
        tensor = np.zeros(shape)
        collective.reducescatter(tensor, [data(10 * rank + i, shape) for i in range(3)])
        return tensor

    for i, found in enumerate(on_all(group, work, shape)):
        assert np.allclose(found, sum(data(10 * rank + i, shape) for rank in range(3)))


def test_send_and_recv_keep_the_order(group):
    def work(rank):
        if rank == 0:
            for value in (1.0, 2.0):
                collective.send(np.full(3, value), 1)
            collective.send(np.full((200, 200), 3.0), 2)
            return None
        received = np.zeros(3) if rank == 1 else np.zeros((200, 200))
        collective.recv(received, 0)
        first = float(received.ravel()[0])
        if rank == 1:
            collective.recv(received, 0)
        return first, float(received.ravel()[-1])

    assert on_all(group, work) == [None, (1.0, 2.0), (3.0, 3.0)]


def test_a_barrier_holds_until_all_are_there(group, tmp_path):
    def work(rank, folder):
        (folder / str(rank)).touch()
        collective.barrier()
        return len(list(folder.iterdir()))

    first = [group[rank].call.remote(work, rank, tmp_path) for rank in (0, 1)]
    wait_until(lambda: len(list(tmp_path.iterdir())) == 2)
    assert ray.wait(first, timeout=0.2)[0] == []
    assert ray.get([group[2].call.remote(work, 2, tmp_path), *first]) == [3, 3, 3]


def test_a_member_knows_its_group(group):
    def work(rank):
        handle = collective.get_group_handle()
        return collective.get_rank(), collective.get_collective_group_size(), handle.rank, handle.world_size

    assert on_all(group, work) == [(rank, 3, rank, 3) for rank in range(3)]
    assert (collective.get_rank(), collective.get_collective_group_size()) == (-1, -1)
    assert not collective.is_group_initialized("default")


@pytest.mark.skipif(not WITH_TORCH, reason="torch is not installed")
@pytest.mark.parametrize("dtype", ["float32", "float64", "int64", "bfloat16"])
def test_torch_tensors(group, dtype):
    def work(rank, dtype):
        import torch

        tensor = torch.full((4,), rank + 1.0).to(getattr(torch, dtype))
        gathered = [torch.zeros_like(tensor) for _ in range(3)]
        collective.allgather(gathered, tensor)
        collective.allreduce(tensor)
        return tensor.tolist(), [each.tolist() for each in gathered]

    for summed, gathered in on_all(group, work, dtype):
        assert summed == [6] * 4
        assert gathered == [[1] * 4, [2] * 4, [3] * 4]


@pytest.mark.skipif(not WITH_TORCH, reason="torch is not installed")
@pytest.mark.parametrize("n", [4, 500_000], ids=["small", "through the store"])
def test_every_operation_on_torch_tensors(group, n):
    def work(rank, n):
        import torch

        def mine():
            return torch.arange(n, dtype=torch.float32) + rank

        base = torch.arange(n, dtype=torch.float32)
        found = {}
        tensor = mine()
        collective.broadcast(tensor, src_rank=1)
        found["broadcast"] = torch.equal(tensor, base + 1)
        tensor = mine()
        collective.reduce(tensor, dst_rank=2, op=ReduceOp.MAX)
        found["reduce"] = torch.equal(tensor, base + 2 if rank == 2 else base + rank)
        tensor = mine()
        collective.reducescatter(tensor, [base * k + rank for k in range(3)])
        found["reducescatter"] = torch.equal(tensor, base * rank * 3 + 3)
        tensor = mine()
        if rank == 0:
            collective.send(tensor, 1)
        elif rank == 1:
            collective.recv(tensor, 0)
        found["send and recv"] = torch.equal(tensor, base + (0 if rank < 2 else 2))
        matrix = torch.zeros(2, n)
        collective.allreduce(matrix.t(), op=ReduceOp.SUM)  # a view whose rows are not side by side
        matrix[1] = mine()
        collective.allreduce(matrix[1])
        found["views"] = torch.equal(matrix[1], base * 3 + 3) and not matrix[0].any()
        parameter = torch.nn.Parameter(mine())
        collective.allreduce(parameter, op=ReduceOp.MIN)
        found["parameters"] = torch.equal(parameter.data, base) and parameter.requires_grad
        return found

    for found in on_all(group, work, n):
        assert all(found.values()), found


# --- groups ----------------------------------------------------------------------------------------------------------


def test_a_group_is_made_from_outside_and_an_actor_may_be_in_several(ray_shared):
    made = [Member.remote() for _ in range(2)]
    collective.create_collective_group(made, 2, [1, 0], group_name="outer")
    collective.create_collective_group(made, 2, [0, 1], backend="gloo", group_name="inner")

    def work(_i):
        tensor = np.array([collective.get_rank("outer"), collective.get_rank("inner")])
        collective.allreduce(tensor, "outer")
        collective.barrier("inner")
        return collective.get_rank("outer"), collective.get_rank("inner"), tensor.tolist()

    assert on_all(made, work) == [(1, 0, [1, 1]), (0, 1, [1, 1])]


def test_tasks_may_be_members(ray_shared):
    @ray.remote(num_cpus=0.5)
    def work(rank):
        collective.init_collective_group(2, rank, group_name="tasks")
        tensor = np.array([rank + 1.0])
        collective.allreduce(tensor, "tasks")
        collective.barrier("tasks")
        collective.destroy_collective_group("tasks")
        return float(tensor[0])

    assert ray.get([work.remote(0), work.remote(1)]) == [3.0, 3.0]


def test_the_same_group_again_after_it_was_destroyed(ray_shared):
    made = members(2, "again")

    def again(rank):
        collective.barrier("again")
        collective.destroy_collective_group("again")
        collective.destroy_collective_group("again")  # nothing to do any more
        assert not collective.is_group_initialized("again")
        collective.init_collective_group(2, rank, group_name="again")
        tensor = np.array([1])
        collective.allreduce(tensor, "again")
        return int(tensor[0])

    # One after the other first: the second destroys the old group when the first is in the new one already.
    assert on_all(made, again) == [2, 2]


def test_the_meeting_place_ends_with_its_members(ray_shared):
    made = members(2, "ends")
    ray.get(made[0].call.remote(collective.destroy_collective_group, "ends"))
    assert any("ends" in name for name in ray.util.list_named_actors())
    ray.kill(made[1])
    wait_until(lambda: not any("ends" in name for name in ray.util.list_named_actors()))


# --- what goes wrong -------------------------------------------------------------------------------------------------


def barrier(rank, group):
    collective.barrier(group)


@pytest.mark.parametrize("dies", [0, 1], ids=["the one that came first", "another"])
def test_a_members_death_is_an_error_at_the_others_at_once(ray_shared, dies):
    death = f"death of {dies}"
    made = members(3, death, gloo_timeout=None)
    waiting = [member.call.remote(barrier, rank, death) for rank, member in enumerate(made) if rank != dies]
    with within(5):
        ray.kill(made[dies])
        for ref in waiting:
            with pytest.raises(CollectiveError, match=f"rank {dies} is dead|in which its members met is dead"):
                ray.get(ref)

    survivors = [member for rank, member in enumerate(made) if rank != dies]
    with pytest.raises(CollectiveError):  # and it stays so
        ray.get(survivors[0].call.remote(barrier, 0, death))
    ray.get([survivor.call.remote(collective.destroy_collective_group, death) for survivor in survivors])
    ray.get([survivor.join.remote(2, rank, group_name=death) for rank, survivor in enumerate(survivors)])
    on_all(survivors, barrier, death)


def test_a_member_that_leaves_is_an_error_at_the_others(ray_shared):
    made = members(2, "leaves")
    waiting = made[0].call.remote(barrier, 0, "leaves")
    ray.get(made[1].call.remote(collective.destroy_collective_group, "leaves"))
    with pytest.raises(CollectiveError, match="rank 1 has left"):
        ray.get(waiting)


def test_who_does_not_come_in_time_is_named(ray_shared):
    made = members(2, "late", gloo_timeout=200)
    with pytest.raises(CollectiveError, match=r"rank 1 did not come to barrier in 0\.2 s"):
        ray.get(made[0].call.remote(barrier, 0, "late"))

    def receive():
        collective.recv(np.zeros(1), 0, "late")

    with pytest.raises(CollectiveError, match="can't be completed: rank 1 did not come"):
        ray.get(made[1].call.remote(receive))


def test_members_that_call_different_things_are_told(ray_shared):
    def work(rank):
        if rank:
            collective.allreduce(np.zeros((2, 3)), "differ")
        else:
            collective.allreduce(np.zeros((3, 2)), "differ")

    made = members(2, "differ")
    for ref in [member.call.remote(work, rank) for rank, member in enumerate(made)]:
        with pytest.raises(CollectiveError, match=r"shape \(2, 3\).*shape \(3, 2\)|shape \(3, 2\).*shape \(2, 3\)"):
            ray.get(ref)


def test_a_rank_can_be_taken_once(ray_shared):
    one, other = Member.remote(), Member.remote()
    ray.get(one.join.remote(2, 0, group_name="twice"))
    with pytest.raises(ValueError, match="rank 0 already"):
        ray.get(other.join.remote(2, 0, group_name="twice"))
    with pytest.raises(ValueError, match="world_size=3"):
        ray.get(other.join.remote(3, 1, group_name="twice"))
    with pytest.raises(RuntimeError, match="already"):
        ray.get(one.join.remote(2, 0, group_name="twice"))


def test_what_is_received_must_fit(group):
    def work(rank):
        if rank == 0:
            collective.send(np.zeros(3), 1)
        elif rank == 1:
            with pytest.raises(CollectiveError, match=r"sent float64 shape \(3,\).*float32 shape \(2,\)"):
                collective.recv(np.zeros(2, "float32"), 0)

    on_all(group, work)


@pytest.mark.parametrize(
    ("use", "error", "says"),
    [
        (lambda: collective.init_collective_group(0, 0), ValueError, "world_size=0"),
        (lambda: collective.init_collective_group("2", 0), TypeError, "world_size='2'"),
        (lambda: collective.init_collective_group(2, 2), ValueError, "rank=2: expected 0 to 1"),
        (lambda: collective.init_collective_group(2, 0, "smoke"), ValueError, "backend='smoke'"),
        (lambda: collective.init_collective_group(2, 0, group_name=""), TypeError, "group_name=''"),
        (lambda: collective.init_collective_group(2, 0, gloo_timeout=0), ValueError, "gloo_timeout=0"),
        (lambda: collective.create_collective_group([], 2, [0, 1]), ValueError, "got 0 actors"),
        (lambda: collective.allreduce(np.zeros(1), "nobody's"), RuntimeError, "no member"),
        (lambda: collective.allreduce([1.0]), TypeError, "got list"),
        (lambda: collective.allreduce(np.array(["a"], object)), TypeError, "numbers"),
    ],
    ids=lambda value: "" if callable(value) else None,
)
def test_wrong_arguments_are_named(ray_shared, use, error, says):
    with pytest.raises(error, match=says):
        use()


def test_wrong_tensors_are_named_and_cost_the_group_nothing(group):
    def work(rank):
        frozen = np.zeros(2)
        frozen.flags.writeable = False
        for call, says in (
            (lambda: collective.allreduce(frozen), "read-only"),
            (lambda: collective.allreduce(np.zeros(2), op="sum"), "op='sum'"),
            (lambda: collective.broadcast(np.zeros(2), 3), "src_rank=3"),
            (lambda: collective.allgather([np.zeros(2)], np.zeros(2)), "a list of 3"),
            (lambda: collective.allgather([np.zeros(2), np.zeros(3), np.zeros(2)], np.zeros(2)), "expected all alike"),
            (lambda: collective.send(np.zeros(2), rank), "this process itself"),
        ):
            with pytest.raises((TypeError, ValueError), match=says):
                call()
        collective.barrier()

    on_all(group, work)
