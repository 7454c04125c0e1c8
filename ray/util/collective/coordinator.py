"""Coordinator: the actor in which the members of one collective group meet.

PROCESS a worker, one per group name, made by whoever names the group first; asyncio, all state is touched by its loop
only. It is detached, for the member that made it may be the first to go, and ends itself when it has no members. It
passes on what members bring, which for large tensors are refs into the object store, and never looks inside.

A `_Members` is one lifetime of the group: it lasts until a member dies, leaves, does not come in time, or calls
something else than the others; then it is broken, all who wait in it are told why, and the next one to join begins a
new one. A member holds a call to `hold` open, so that its death makes that call's ref, which is watched here, fail at
once. When this process dies itself, every call of a member fails.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.collective.types import CollectiveError

# How long it stays when the last member has left: groups are often made anew at once.
LINGER_S = 1.0


class _Meeting:
    """One operation that some members have called."""

    def __init__(self, signature: tuple[Any, ...], first: int) -> None:
        self.signature = signature
        self.first = first  # the rank that came first
        self.brought: dict[int, Any] = {}
        self.over = asyncio.Event()  # all have come, or the group is broken


class _Box:
    """What one rank has sent to another and that one has not received."""

    def __init__(self) -> None:
        self.items: deque[Any] = deque()
        self.changed = asyncio.Event()


class _Members:
    def __init__(self, generation: int, world_size: int) -> None:
        self.generation = generation
        self.world_size = world_size
        self.tokens: dict[int, str] = {}  # rank -> what its process calls itself
        self.meetings: dict[int, _Meeting] = {}  # by their number, which each member counts for itself
        self.boxes: dict[tuple[int, int], _Box] = {}
        self.broken = ""  # why

    def break_up(self, why: str) -> None:
        self.broken = self.broken or why
        for meeting in self.meetings.values():
            meeting.over.set()
        for box in self.boxes.values():
            box.changed.set()


class Coordinator:
    """Methods are calls of members; a generation that is over answers with CollectiveError."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._generations: dict[int, _Members] = {}
        self._newest = 0
        self._released: dict[str, asyncio.Event] = {}
        self._watches: set[asyncio.Task[None]] = set()

    # --- members come and go ---------------------------------------------------------------------------------------

    async def hold(self, token: str) -> None:
        """Returns when this member leaves."""
        await self._released.setdefault(token, asyncio.Event()).wait()

    async def join(self, world_size: int, rank: int, token: str, held: list[ray.ObjectRef[Any]]) -> int:
        """held: the ref of the member's call to hold.  Returns: the generation, to be given with each call."""
        members = self._generations.get(self._newest)
        if members is None or members.broken:
            self._newest += 1
            members = self._generations[self._newest] = _Members(self._newest, world_size)
        if members.world_size != world_size:
            raise ValueError(
                f"group {self._name!r}: rank {rank} says world_size={world_size}, and others have said "
                f"{members.world_size}"
            )
        if rank in members.tokens:
            raise ValueError(f"group {self._name!r}: another process has joined as rank {rank} already")
        members.tokens[rank] = token
        watch = asyncio.ensure_future(self._watch(members, rank, held[0]))
        self._watches.add(watch)
        watch.add_done_callback(self._watches.discard)
        return members.generation

    async def leave(self, generation: int, rank: int, token: str) -> None:
        self._lost(generation, rank, "has left it (destroy_collective_group)")
        self._released.pop(token, asyncio.Event()).set()

    async def _watch(self, members: _Members, rank: int, held: ray.ObjectRef[Any]) -> None:
        try:
            await held
        except RayError:  # its owner is dead
            self._lost(members.generation, rank, "is dead: its process ended")

    def _lost(self, generation: int, rank: int, how: str) -> None:
        members = self._generations.get(generation)
        if members is None or rank not in members.tokens:
            return
        del members.tokens[rank]
        members.break_up(f"rank {rank} {how}")
        if not members.tokens:
            del self._generations[generation]
            asyncio.get_running_loop().call_later(LINGER_S, self._end_if_empty)

    def _end_if_empty(self) -> None:
        if not self._generations:
            ray.kill(ray.get_runtime_context().current_actor)

    def _current(self, generation: int) -> _Members:
        members = self._generations.get(generation)
        if members is None:
            raise CollectiveError(f"group {self._name!r}: this member has left it")
        return members

    # --- operations of all -----------------------------------------------------------------------------------------

    async def meet(
        self, generation: int, rank: int, number: int, signature: tuple[Any, ...], brought: Any, timeout_s: float | None
    ) -> dict[int, Any]:
        """Waits until all members have called this, their number-th operation.

        signature: the same for all.  Returns: what each rank brought.
        """
        members = self._current(generation)
        self._refuse_if_broken(members, signature[0])
        meeting = members.meetings.get(number)
        if meeting is None:
            meeting = members.meetings[number] = _Meeting(signature, rank)
        if meeting.signature != signature:
            members.break_up(
                f"rank {rank} called {_spoken(signature)} while rank {meeting.first} called "
                f"{_spoken(meeting.signature)}: all members must call the same operations in the same order, with "
                "tensors of the same shape and dtype"
            )
        else:
            meeting.brought[rank] = brought
            if len(meeting.brought) == members.world_size:
                del members.meetings[number]
                meeting.over.set()
        try:
            await asyncio.wait_for(meeting.over.wait(), timeout_s)
        except asyncio.TimeoutError:
            missing = sorted(set(range(members.world_size)) - set(meeting.brought))
            members.break_up(f"rank {', '.join(map(str, missing))} did not come to {signature[0]} in {timeout_s:g} s")
        if len(meeting.brought) < members.world_size:
            self._refuse_if_broken(members, signature[0])
        return meeting.brought

    # --- from one to another ---------------------------------------------------------------------------------------

    async def send(self, generation: int, source: int, target: int, sent: Any) -> None:
        members = self._current(generation)
        self._refuse_if_broken(members, "send")
        box = members.boxes.setdefault((source, target), _Box())
        box.items.append(sent)
        box.changed.set()

    async def receive(self, generation: int, source: int, target: int, timeout_s: float | None) -> Any:
        members = self._current(generation)
        box = members.boxes.setdefault((source, target), _Box())
        while not box.items:
            self._refuse_if_broken(members, "recv")
            box.changed.clear()
            try:
                await asyncio.wait_for(box.changed.wait(), timeout_s)
            except asyncio.TimeoutError:
                raise CollectiveError(
                    f"group {self._name!r}: rank {source} sent nothing to rank {target} in {timeout_s:g} s"
                ) from None
        return box.items.popleft()

    def _refuse_if_broken(self, members: _Members, operation: str) -> None:
        if members.broken:
            raise CollectiveError(
                f"{operation} in group {self._name!r} can't be completed: {members.broken}. To go on, the members that "
                "are left call destroy_collective_group, and all members join a new group"
            )


def _spoken(signature: tuple[Any, ...]) -> str:
    return f"{signature[0]}({', '.join(map(str, signature[1:]))})"
