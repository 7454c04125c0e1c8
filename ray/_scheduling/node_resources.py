"""What one node has, what is free of it, and which GPUs. No I/O, no clock. Owned by one scheduler, one thread.

Invariant: for every resource, total = available + what the living allocations hold, where an allocation whose CPUs
are lent out (its task is blocked in ray.get) holds none. Taking lent CPUs back happens at once, so available CPUs
may be below zero for a while; nothing else ever is. GPUs are counted twice over: as an amount like everything else,
and as slots, one a GPU, since half of one GPU and half of another are no whole GPU.

A bundle of a placement group is an allocation that is a ledger of its own (`ledger_of`): what runs in the bundle draws
from that, and the node's ledger does not change.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from ray._protocol.resources import CPU, GPU, UNITS, Resources, Shape


class Allocation:
    """What one lease holds of a node. Made and changed by NodeResources only."""

    __slots__ = ("cpu_lent", "gpu_slots", "units")

    def __init__(self, units: Resources, gpu_slots: tuple[tuple[int, int], ...]) -> None:
        self.units = units
        self.gpu_slots = gpu_slots  # (slot, units of it)
        self.cpu_lent = False

    def __repr__(self) -> str:
        return f"Allocation({self.units}, gpu_slots={self.gpu_slots}{', cpu lent' if self.cpu_lent else ''})"


class NodeResources:
    """The ledger of one node."""

    __slots__ = ("available", "gpu_free", "gpu_ids", "gpu_total", "total")

    def __init__(self, total: Mapping[str, int], gpu_ids: Sequence[int | str] = ()) -> None:
        """Args: gpu_ids: what a user sees for slot 0, 1, ...; as many as total has whole GPUs, or empty: 0, 1, ..."""
        gpus = total.get(GPU, 0)
        if gpus % UNITS:
            raise ValueError(f"num_gpus of a node must be a whole number, not {gpus / UNITS}")
        self.total: Resources = dict(total)
        self.available: Resources = dict(total)
        self.gpu_ids: list[int | str] = list(gpu_ids) if gpu_ids else list(range(gpus // UNITS))
        if len(self.gpu_ids) != gpus // UNITS:
            raise ValueError(f"{len(self.gpu_ids)} GPU ids given for {gpus // UNITS} GPUs")
        self.gpu_total: list[int] = [UNITS] * len(self.gpu_ids)
        self.gpu_free: list[int] = list(self.gpu_total)

    def ledger_of(self, allocation: Allocation) -> NodeResources:
        """What an allocation of this node holds, as a ledger from which others may take."""
        ledger = NodeResources.__new__(NodeResources)
        ledger.total = dict(allocation.units)
        ledger.available = dict(allocation.units)
        ledger.gpu_ids = self.gpu_ids_of(allocation)
        ledger.gpu_total = [units for _, units in allocation.gpu_slots]
        ledger.gpu_free = list(ledger.gpu_total)
        return ledger

    def missing(self, ask: Shape) -> list[str]:
        """Resources of which the node can never have as much as asked, even when empty."""
        return [name for name, units in ask if units > self.total.get(name, 0)]

    def lacking(self, ask: Shape) -> list[str]:
        """Resources of which less than asked is free now."""
        lacking = [name for name, units in ask if units > self.available.get(name, 0)]
        for name, units in ask:
            if name == GPU and GPU not in lacking and self._choose_gpus(units) is None:
                lacking.append(GPU)  # enough in sum, but in pieces
        return lacking

    def take(self, ask: Shape) -> Allocation | None:
        """An allocation of ask, or None if it doesn't fit now."""
        available = self.available
        for name, units in ask:
            if units > available.get(name, 0):
                return None
        slots: tuple[tuple[int, int], ...] = ()
        for name, units in ask:
            if name == GPU:
                chosen = self._choose_gpus(units)
                if chosen is None:
                    return None
                slots = chosen
        for name, units in ask:
            available[name] -= units
        for slot, units in slots:
            self.gpu_free[slot] -= units
        return Allocation(dict(ask), slots)

    def take_all(self, asks: Iterable[Shape]) -> list[Allocation] | None:
        """An allocation of each, or None, and nothing taken, if they don't all fit now."""
        taken: list[Allocation] = []
        for ask in asks:
            allocation = self.take(ask)
            if allocation is None:
                for earlier in taken:
                    self.give_back(earlier)
                return None
            taken.append(allocation)
        return taken

    def give_back(self, allocation: Allocation) -> None:
        """Ends an allocation; it is empty afterwards, so giving back twice is harmless."""
        for name, units in allocation.units.items():
            if not (name == CPU and allocation.cpu_lent):
                self.available[name] += units
        for slot, units in allocation.gpu_slots:
            self.gpu_free[slot] += units
        allocation.units = {}
        allocation.gpu_slots = ()
        allocation.cpu_lent = False

    def lend_cpu(self, allocation: Allocation) -> bool:
        """Frees its CPUs while its task is blocked. False: nothing to lend, or lent already."""
        if allocation.cpu_lent or CPU not in allocation.units:
            return False
        allocation.cpu_lent = True
        self.available[CPU] += allocation.units[CPU]
        return True

    def reclaim_cpu(self, allocation: Allocation) -> None:
        """Takes lent CPUs back at once, even if somebody uses them: running two is better than stopping either."""
        if allocation.cpu_lent:
            allocation.cpu_lent = False
            self.available[CPU] -= allocation.units[CPU]

    def gpu_ids_of(self, allocation: Allocation) -> list[int | str]:
        return [self.gpu_ids[slot] for slot, _ in allocation.gpu_slots]

    def check(self, allocations: Iterable[Allocation]) -> None:
        """Re-derives what is free from the living allocations. Raises: AssertionError."""
        free, gpu_free = dict(self.total), list(self.gpu_total)
        for allocation in allocations:
            for name, units in allocation.units.items():
                if not (name == CPU and allocation.cpu_lent):
                    free[name] -= units
            for slot, units in allocation.gpu_slots:
                gpu_free[slot] -= units
            assert sum(units for _, units in allocation.gpu_slots) == allocation.units.get(GPU, 0), allocation
        assert free == self.available, f"available {self.available}, but the allocations leave {free}"
        assert gpu_free == self.gpu_free, f"GPUs free {self.gpu_free}, but the allocations leave {gpu_free}"
        assert all(0 <= free <= total for free, total in zip(self.gpu_free, self.gpu_total)), self.gpu_free
        assert all(units >= 0 for name, units in free.items() if name != CPU), free

    def _choose_gpus(self, units: int) -> tuple[tuple[int, int], ...] | None:
        if units < UNITS:
            # best fit: the fullest GPU that still has room, so that whole ones stay whole
            best = None
            for slot, free in enumerate(self.gpu_free):
                if free >= units and (best is None or free < self.gpu_free[best]):
                    best = slot
            return None if best is None else ((best, units),)
        whole = [slot for slot, free in enumerate(self.gpu_free) if free == UNITS][: units // UNITS]
        if len(whole) * UNITS < units:
            return None
        return tuple((slot, UNITS) for slot in whole)

    def __repr__(self) -> str:
        return f"NodeResources(available={self.available}, total={self.total})"
