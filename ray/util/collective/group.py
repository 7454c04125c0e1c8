"""Group: one member's side of a collective group, and how tensors become messages and back.

In the member's process, in the thread that calls; one thread at a time may use a group. Tensors are numpy arrays or
torch tensors. Small ones travel inside the messages to and from the coordinator; large ones are put into the object
store, and what travels is the ref: members on one machine read each other's shared memory. All members reduce in the
order of the ranks, so all get the same bits. Results are written into the tensors that were given.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import numpy as np

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util._original_error import original_error
from ray.util.collective.types import CollectiveError, CoordinatorDied, ReduceOp

# Tensors up to this travel in messages: world_size of them are in each answer.
INLINE_MAX_BYTES = 16 << 10
# From here on an allreduce among three or more is done in two steps, so that each member reads everything twice and not
# world_size times.
SPLIT_MIN_BYTES = 1 << 20

_UFUNC = {
    ReduceOp.SUM: np.add,
    ReduceOp.PRODUCT: np.multiply,
    ReduceOp.MIN: np.minimum,
    ReduceOp.MAX: np.maximum,
}


class Group:
    """What `get_group_handle` returns."""

    def __init__(self, name: str, world_size: int, rank: int, timeout_s: float | None, coordinator: Any) -> None:
        self.name = name
        self.world_size = world_size
        self.rank = rank
        self.worker_id: str = ray.get_runtime_context().get_worker_id()
        self._timeout_s = timeout_s
        self._coordinator = coordinator
        self._operations = 0
        self._token = os.urandom(8).hex()
        self._held = coordinator.hold.remote(self._token)  # ours as long as this process lives
        self._generation = self._ask(coordinator.join, world_size, rank, self._token, [self._held])

    def leave(self) -> None:
        self._coordinator.leave.remote(self._generation, self.rank, self._token)

    # --- operations ------------------------------------------------------------------------------------------------

    def barrier(self) -> None:
        self._meet(("barrier",), None)

    def allreduce(self, tensor: Any, op: ReduceOp) -> None:
        mine = _read(tensor)
        signature = ("allreduce", op.name, *_like(mine))
        if mine.nbytes < SPLIT_MIN_BYTES or self.world_size <= 2:
            _write(tensor, _reduce(op, [_unpack(packed) for packed in self._meet(signature, _pack(mine))]))
            return
        # First each member reduces one part of all tensors, then all members collect the parts.
        low, high = (mine.size * (self.rank + i) // self.world_size for i in (0, 1))
        whole = [_unpack(packed).reshape(-1)[low:high] for packed in self._meet(signature, _pack(mine))]
        parts = self._meet(("allreduce, parts",), _pack(_reduce(op, whole)))
        _write(tensor, np.concatenate([_unpack(packed) for packed in parts]).reshape(mine.shape))

    def reduce(self, tensor: Any, root: int, op: ReduceOp) -> None:
        mine = _read(tensor)
        found = self._meet(("reduce", op.name, f"to {root}", *_like(mine)), _pack(mine))
        if self.rank == root:
            _write(tensor, _reduce(op, [_unpack(packed) for packed in found]))

    def broadcast(self, tensor: Any, root: int) -> None:
        mine = _read(tensor)
        brought = _pack(mine) if self.rank == root else None
        found = self._meet(("broadcast", f"from {root}", *_like(mine)), brought)
        if self.rank != root:
            _write(tensor, _unpack(found[root]))

    def allgather(self, tensors: list[Any], tensor: Any) -> None:
        mine = _read(tensor)
        found = self._meet(("allgather", *_like(mine)), _pack(mine))
        for target, packed in zip(tensors, found):
            _write(target, _unpack(packed))

    def reducescatter(self, tensor: Any, tensors: list[Any], op: ReduceOp) -> None:
        mine = [_read(each) for each in tensors]
        found = self._meet(("reducescatter", op.name, *_like(mine[0])), [_pack(each) for each in mine])
        _write(tensor, _reduce(op, [_unpack(packed[self.rank]) for packed in found]))

    def send(self, tensor: Any, target: int) -> None:
        self._ask(self._coordinator.send, self._generation, self.rank, target, _pack(_read(tensor)))

    def recv(self, tensor: Any, source: int) -> None:
        packed = self._ask(self._coordinator.receive, self._generation, source, self.rank, self._timeout_s)
        found, mine = _unpack(packed), _read(tensor)
        if _like(found) != _like(mine):
            raise CollectiveError(
                f"group {self.name!r}: rank {source} sent {' '.join(_like(found))}, and rank {self.rank} expected "
                f"{' '.join(_like(mine))}"
            )
        _write(tensor, found)

    # --- inside ----------------------------------------------------------------------------------------------------

    def _meet(self, signature: tuple[Any, ...], brought: Any) -> list[Any]:
        """What each rank brought, once all are there."""
        number, self._operations = self._operations, self._operations + 1
        coordinator = self._coordinator
        found = self._ask(coordinator.meet, self._generation, self.rank, number, signature, brought, self._timeout_s)
        return [found[rank] for rank in range(self.world_size)]

    def _ask(self, method: Any, *args: Any) -> Any:
        try:
            return ray.get(method.remote(*args))
        except RayTaskError as error:
            raise original_error(error) from None
        except RayError as error:
            raise CoordinatorDied(f"group {self.name!r}: the process in which its members met is dead") from error

    def __repr__(self) -> str:
        return f"<collective group {self.name!r}: rank {self.rank} of {self.world_size}>"


# --- tensors ---------------------------------------------------------------------------------------------------------


def check_tensor(argument: str, tensor: Any, written: bool = True) -> None:
    """Raises: TypeError, ValueError: it is not an array or tensor, or is to be written and can't be."""
    if isinstance(tensor, np.ndarray):
        if written and not tensor.flags.writeable:
            raise ValueError(f"{argument}: the array is read-only, as those from ray.get are: give a copy of it")
        if tensor.dtype.hasobject:
            raise TypeError(f"{argument}: expected an array of numbers, got one of dtype {tensor.dtype}")
    elif not _is_torch(tensor):
        raise TypeError(f"{argument}: expected a numpy array or a torch tensor, got {type(tensor).__name__}")


def _is_torch(tensor: Any) -> bool:
    torch = sys.modules.get("torch")  # if nobody has imported it, nobody has a tensor of it
    return torch is not None and isinstance(tensor, torch.Tensor)


def _read(tensor: Any) -> np.ndarray[Any, Any]:
    if isinstance(tensor, np.ndarray):
        return tensor
    host = tensor.detach().cpu()
    # numpy has no bfloat16; float32 holds its values exactly.
    return np.asarray((host.float() if str(host.dtype) == "torch.bfloat16" else host).numpy())


def _write(tensor: Any, found: np.ndarray[Any, Any]) -> None:
    if isinstance(tensor, np.ndarray):
        np.copyto(tensor, found)
        return
    torch = sys.modules["torch"]
    with torch.no_grad():
        tensor.copy_(torch.from_numpy(found if found.flags.writeable else found.copy()))


def _like(array: np.ndarray[Any, Any]) -> tuple[str, str]:
    return str(array.dtype), f"shape {array.shape}"


def _pack(array: np.ndarray[Any, Any]) -> Any:
    array = np.ascontiguousarray(array) if array.ndim else array
    return array if array.nbytes <= INLINE_MAX_BYTES else [ray.put(array)]


def _unpack(packed: Any) -> np.ndarray[Any, Any]:
    found: np.ndarray[Any, Any] = ray.get(packed[0]) if isinstance(packed, list) else packed
    return found


def _reduce(op: ReduceOp, arrays: list[np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
    total = arrays[0].copy()
    for array in arrays[1:]:
        _UFUNC[op](total, array, out=total)
    return total
