"""Collective operations among actors and tasks: allreduce, broadcast, allgather and the like, over the object store.

Each member, in its own process, joins a group by name and then calls the same operations in the same order; each blocks
until all have come. The groups of this process are in one table, under one lock. A library on the public API: members
meet in an actor (`coordinator.py`), each through a Group (`group.py`). A member's death is an error at the others, at
once; a member that does not come is one after `gloo_timeout` milliseconds.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import ray
from ray.util.collective.coordinator import Coordinator
from ray.util.collective.group import Group, check_tensor
from ray.util.collective.types import Backend, CollectiveError, CoordinatorDied, ReduceOp

__all__ = [
    "Backend",
    "CollectiveError",
    "ReduceOp",
    "allgather",
    "allreduce",
    "barrier",
    "broadcast",
    "create_collective_group",
    "destroy_collective_group",
    "get_collective_group_size",
    "get_group_handle",
    "get_rank",
    "gloo_available",
    "init_collective_group",
    "is_backend_available",
    "is_group_initialized",
    "nccl_available",
    "recv",
    "reduce",
    "reducescatter",
    "send",
]

_groups: dict[str, Group] = {}
_lock = threading.Lock()

# Waiting calls occupy a place each in the coordinator, and each member may hold several.
_CONCURRENT_CALLS_MAX = 1_000_000
_JOIN_ATTEMPTS = 5
_NAME_PREFIX = "ray.util.collective:"


# --- groups ----------------------------------------------------------------------------------------------------------


def init_collective_group(
    world_size: int,
    rank: int,
    backend: str = Backend.OBJECT_STORE,
    group_name: str = "default",
    gloo_timeout: float | None = 30000,
) -> None:
    """Makes this process a member of a group. Returns at once: the first operation waits for the other members.

    Args:
        world_size: how many members the group will have.  rank: which of them this is, from 0.
        backend: see Backend.
        gloo_timeout: how long an operation waits for the other members, in milliseconds; None waits for ever.
    Raises: RuntimeError: this process is a member already.  ValueError: another process has this rank.
    """
    _check_group(world_size, group_name, gloo_timeout, "init_collective_group")
    Backend(backend)
    _check_rank("init_collective_group: rank", rank, world_size)
    with _lock:
        known = _groups.get(group_name)
        if known is not None and known.worker_id == ray.get_runtime_context().get_worker_id():
            raise RuntimeError(
                f"init_collective_group: this process is rank {known.rank} of group {group_name!r} already"
            )
        timeout_s = None if gloo_timeout is None else gloo_timeout / 1000
        _groups[group_name] = _join(group_name, world_size, rank, timeout_s)


def create_collective_group(
    actors: Sequence[Any],
    world_size: int,
    ranks: Sequence[int],
    backend: str = Backend.OBJECT_STORE,
    group_name: str = "default",
    gloo_timeout: float | None = 30000,
) -> None:
    """Makes actors members of a group, from outside: as if each called init_collective_group with its rank.

    Blocks: until all have joined.
    """
    _check_group(world_size, group_name, gloo_timeout, "create_collective_group")
    Backend(backend)
    if len(actors) != world_size or sorted(ranks) != list(range(world_size)):
        raise ValueError(
            f"create_collective_group: world_size={world_size} takes as many actors and the ranks 0 to "
            f"{world_size - 1}; got {len(actors)} actors and the ranks {list(ranks)}"
        )
    ray.get(
        [
            actor.__ray_call__.remote(_join_from_outside, world_size, rank, backend, group_name, gloo_timeout)
            for actor, rank in zip(actors, ranks)
        ]
    )


def _join_from_outside(_actor: Any, *args: Any) -> None:
    init_collective_group(*args)


def destroy_collective_group(group_name: str = "default") -> None:
    """This process leaves the group; operations that others have begun without it fail. Nothing happens if it is not
    a member."""
    with _lock:
        group = _groups.pop(group_name, None)
    if group is not None and group.worker_id == ray.get_runtime_context().get_worker_id():
        group.leave()


def is_group_initialized(group_name: str = "default") -> bool:
    """Whether this process is a member."""
    return group_name in _groups


def get_rank(group_name: str = "default") -> int:
    """The rank of this process, or -1 if it is no member."""
    group = _groups.get(group_name)
    return -1 if group is None else group.rank


def get_collective_group_size(group_name: str = "default") -> int:
    """How many members the group has, or -1 if this process is none."""
    group = _groups.get(group_name)
    return -1 if group is None else group.world_size


def get_group_handle(group_name: str = "default") -> Group:
    """This process's membership. Raises: RuntimeError: there is none."""
    group = _groups.get(group_name)
    if group is None:
        raise RuntimeError(
            f"this process is no member of a collective group {group_name!r}: call init_collective_group in it, or "
            "create_collective_group for the actor"
        )
    return group


def is_backend_available(backend: str) -> bool:
    """Whether tensors can be carried under this name."""
    try:
        Backend(backend)
    except ValueError:
        return False
    return True


def nccl_available() -> bool:
    """False: NCCL itself is not used; `backend="nccl"` means the object store."""
    return False


def gloo_available() -> bool:
    """False: Gloo itself is not used; `backend="gloo"` means the object store."""
    return False


# --- operations ------------------------------------------------------------------------------------------------------


def allreduce(tensor: Any, group_name: str = "default", op: ReduceOp = ReduceOp.SUM) -> None:
    """tensor becomes, at every member, the sum (or what op says) of all members' tensors."""
    check_tensor("allreduce: tensor", tensor)
    get_group_handle(group_name).allreduce(tensor, _op("allreduce", op))


def reduce(tensor: Any, dst_rank: int = 0, group_name: str = "default", op: ReduceOp = ReduceOp.SUM) -> None:
    """As allreduce, but only at dst_rank; the others' tensors stay as they are."""
    check_tensor("reduce: tensor", tensor)
    group = get_group_handle(group_name)
    group.reduce(tensor, _check_rank("reduce: dst_rank", dst_rank, group.world_size), _op("reduce", op))


def broadcast(tensor: Any, src_rank: int = 0, group_name: str = "default") -> None:
    """tensor becomes, at every member, what it is at src_rank."""
    check_tensor("broadcast: tensor", tensor)
    group = get_group_handle(group_name)
    group.broadcast(tensor, _check_rank("broadcast: src_rank", src_rank, group.world_size))


def allgather(tensor_list: list[Any], tensor: Any, group_name: str = "default") -> None:
    """tensor_list[i] becomes, at every member, the tensor of rank i."""
    group = get_group_handle(group_name)
    check_tensor("allgather: tensor", tensor, written=False)
    _check_list("allgather", tensor_list, tensor, group, written=True)
    group.allgather(tensor_list, tensor)


def reducescatter(
    tensor: Any, tensor_list: list[Any], group_name: str = "default", op: ReduceOp = ReduceOp.SUM
) -> None:
    """tensor becomes, at rank i, the sum (or what op says) of all members' tensor_list[i]."""
    group = get_group_handle(group_name)
    check_tensor("reducescatter: tensor", tensor)
    _check_list("reducescatter", tensor_list, tensor, group, written=False)
    group.reducescatter(tensor, tensor_list, _op("reducescatter", op))


def barrier(group_name: str = "default") -> None:
    """Returns when all members have called it."""
    get_group_handle(group_name).barrier()


def send(tensor: Any, dst_rank: int, group_name: str = "default") -> None:
    """Sends tensor to one member, which receives it with recv. Does not wait for that."""
    check_tensor("send: tensor", tensor, written=False)
    group = get_group_handle(group_name)
    group.send(tensor, _check_other("send: dst_rank", dst_rank, group))


def recv(tensor: Any, src_rank: int, group_name: str = "default") -> None:
    """tensor becomes what src_rank sent here first and was not received yet."""
    check_tensor("recv: tensor", tensor)
    group = get_group_handle(group_name)
    group.recv(tensor, _check_other("recv: src_rank", src_rank, group))


# --- inside ----------------------------------------------------------------------------------------------------------


def _join(group_name: str, world_size: int, rank: int, timeout_s: float | None) -> Group:
    for _ in range(_JOIN_ATTEMPTS - 1):
        try:
            return Group(group_name, world_size, rank, timeout_s, _coordinator(group_name))
        except CoordinatorDied:  # it was found by its name just as it ended, for the last member had left
            continue
    return Group(group_name, world_size, rank, timeout_s, _coordinator(group_name))


def _coordinator(group_name: str) -> Any:
    """The actor of that name, made if need be."""
    named = {"name": _NAME_PREFIX + group_name, "get_if_exists": True, "lifetime": "detached"}
    return ray.remote(Coordinator).options(**named, max_concurrency=_CONCURRENT_CALLS_MAX).remote(group_name)


def _check_group(world_size: Any, group_name: Any, gloo_timeout: Any, function: str) -> None:
    if isinstance(world_size, bool) or not isinstance(world_size, int):
        raise TypeError(f"{function}: world_size={world_size!r}: expected a whole number")
    if world_size < 1:
        raise ValueError(f"{function}: world_size={world_size}: expected at least 1")
    if not isinstance(group_name, str) or not group_name:
        raise TypeError(f"{function}: group_name={group_name!r}: expected a name")
    if gloo_timeout is not None:
        if isinstance(gloo_timeout, bool) or not isinstance(gloo_timeout, (int, float)):
            raise TypeError(f"{function}: gloo_timeout={gloo_timeout!r}: expected milliseconds, or None")
        if not gloo_timeout > 0:
            raise ValueError(f"{function}: gloo_timeout={gloo_timeout}: expected more than 0 ms, or None")


def _check_rank(argument: str, rank: Any, world_size: int) -> int:
    if isinstance(rank, bool) or not isinstance(rank, int):
        raise TypeError(f"{argument}={rank!r}: expected a whole number")
    if not 0 <= rank < world_size:
        raise ValueError(f"{argument}={rank}: expected 0 to {world_size - 1}, for the group has {world_size} members")
    return rank


def _check_other(argument: str, rank: Any, group: Group) -> int:
    if _check_rank(argument, rank, group.world_size) == group.rank:
        raise ValueError(f"{argument}={rank} is this process itself")
    return int(rank)


def _check_list(function: str, tensors: Any, tensor: Any, group: Group, written: bool) -> None:
    if not isinstance(tensors, list) or len(tensors) != group.world_size:
        given = f"{len(tensors)} of them" if isinstance(tensors, list) else type(tensors).__name__
        raise ValueError(f"{function}: tensor_list: expected a list of {group.world_size} tensors, got {given}")
    for i, each in enumerate(tensors):
        check_tensor(f"{function}: tensor_list[{i}]", each, written)
        if tuple(each.shape) != tuple(tensor.shape) or each.dtype != tensor.dtype:
            raise ValueError(
                f"{function}: tensor_list[{i}] is {each.dtype} {tuple(each.shape)}, and tensor "
                f"{tensor.dtype} {tuple(tensor.shape)}: expected all alike"
            )


def _op(function: str, op: Any) -> ReduceOp:
    if not isinstance(op, ReduceOp):
        raise TypeError(f"{function}: op={op!r}: expected one of {', '.join(map(str, ReduceOp))}")
    return op
