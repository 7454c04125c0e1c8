"""Questions about the whole cluster that every node answers for itself. Node's main thread.

The head's node asks all others at once and adds up what they and it say; any other node passes the question on to the
head. On one machine the answer is its own. A node that dies meanwhile, or doesn't answer in time, is left out of it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .shell import Node

TIMEOUT_S = 10.0


def _sum(answers: list[dict[str, int]]) -> dict[str, int]:
    total: dict[str, int] = {}
    for answer in answers:
        for name, units in answer.items():
            total[name] = total.get(name, 0) + units
    return total


def _joined(answers: list[list[Any]]) -> list[Any]:
    return [row for answer in answers for row in answer]


def _inspected(answers: list[dict[str, Any]]) -> dict[str, Any]:
    return {part: [row for answer in answers for row in answer[part]] for part in ("reports", "silent")}


def _of_pools(answers: list[dict[str, Any]]) -> dict[str, Any]:
    """`pool`, `demands` of `ray status`."""
    demands: dict[Any, dict[str, Any]] = {}
    for demand in (row for answer in answers for row in answer["demands"]):
        key = (tuple(sorted(demand["resources"].items())), demand["feasible"])
        kept = demands.setdefault(key, {**demand, "count": 0})
        kept["count"] += demand["count"]
    workers = _sum([answer["pool"]["workers"] for answer in answers])
    return {"pool": {"workers": workers}, "demands": list(demands.values())}


# Question -> how the nodes' answers become one.
GATHERED: dict[str, Callable[[list[Any]], Any]] = {
    "cluster_resources": _sum,
    "available_resources": _sum,
    "why_pending": _joined,
    "workers": _joined,
    "stores": _joined,
    "node_addresses": _joined,
    "runtime_envs": _joined,
    "inspect": _inspected,
    "status_here": _of_pools,
    "end_job_here": lambda _: None,
}
OF_NODES = frozenset({"end_job_here"})  # asked by nodes for themselves, by no core and no tool


class Gathering:
    def __init__(self, node: Node) -> None:
        self._node = node

    async def ask(self, method: str, args: tuple[Any, ...] = ()) -> Any:
        """The answer for the whole cluster. Raises: what the question's own method raises."""
        node = self._node
        if node.uplink is not None:
            return await node.head.rpc(None, method, args)
        answers = [await self.local(method, args)]
        if node.cluster is not None and node.cluster.uplinks:
            timeout_s = TIMEOUT_S + (float(args[2]) if method == "inspect" else 0.0)
            others = await node.cluster.ask_all("local", method, args, timeout_s=timeout_s)
            answers += [others[number] for number in sorted(others)]
        return GATHERED[method](answers) if len(answers) > 1 else answers[0]

    async def local(self, method: str, args: tuple[Any, ...]) -> Any:
        """This node's part."""
        if method not in GATHERED:
            raise LookupError(f"{method!r} is no question about the whole cluster")
        answer = getattr(self._node.requests, "rpc_" + method)(None, *args)
        return await answer if inspect.isawaitable(answer) else answer
