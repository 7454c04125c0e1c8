"""The head takes over from one that was killed: reads its tables, gathers the nodes, goes on. Head's node.

Main thread, called by main while this node starts, before drivers are let in. The session's folder is the one of
before: its token, Redis' files, and the file `nodes`, which says who was in the cluster. Nodes find the port again by
themselves (uplink.py); none is answered before all have come back or `node_silence_s` is over. Who is late by then is
dead, as is everything that lived on the head's own node: that gets a new number. If this process is killed in the
middle, the next one begins at the same place.

Without other nodes there is nobody to gather: what was there is dead, and detached actors begin anew.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from ray._head import resumption
from ray._head.actor_directory import Claims
from ray._head.jobs import ENDING, RUNNING
from ray._head.membership import Admit, Gathered, Left, Returned
from ray._head.resumption import Present
from ray._launch import cluster_file

from . import head_side
from .cluster_head import keep_job
from .remote_head import RemoteCaller

if TYPE_CHECKING:
    from ray._transport import Peer

    from .shell import Node

logger = logging.getLogger("ray.node")

AWAY = "it did not come back to the cluster's head within {:g} s of that one's restart"
LOST = "its process was killed, and started again"


async def take_over(node: Node) -> None:
    """Returns when this node may have drivers. Raises: StoreUnavailable: the tables can't be read."""
    if node.gate is None:
        saved = await resumption.read(node.head)
        _keep_jobs(node, saved)
        resumption.resume(node.head, saved, [], LOST)
        head_side.announce(node)
        return
    before = cluster_file.read(node.session.folder) or {"next": 1, "nodes": []}
    earlier = {row["number"]: row["node_id"] for row in before["nodes"]}
    head_side.open_cluster(node, before["next"], earlier)
    await HeadReturn(node, earlier).run()


def _keep_jobs(node: Node, saved: resumption.Saved) -> None:
    for row in saved.jobs:
        if row.surroundings:
            keep_job(node, row.job_id, row.surroundings)


class _Back:
    """A node that has come back, and waits for the answer."""

    def __init__(self, peer: Peer, said: dict[str, Any], answer: asyncio.Future[dict[str, Any]]) -> None:
        self.peer, self.said, self.answer = peer, said, answer


class HeadReturn:
    def __init__(self, node: Node, earlier: Mapping[int, bytes]) -> None:
        """With its cluster, which nobody has joined yet. earlier: the nodes of the file `nodes`, number -> id."""
        assert node.cluster is not None
        self._node = node
        self._cluster = node.cluster
        self._earlier = earlier
        self._back: dict[int, _Back] = {}
        self._expected: set[int] | None = None  # None: not read yet
        self._all_back = node.loop.create_future()
        self._cluster.on_return = self._on_return

    async def run(self) -> None:
        """Returns when this node may have drivers. Raises: StoreUnavailable: the tables can't be read.

        Blocks: until the nodes are back, node_silence_s at most, and until each knows this one's new number."""
        node, cluster = self._node, self._cluster
        saved = await resumption.read(node.head)
        heard = await node.head.tables.uplinks.all()
        dead = saved.dead()
        for number in cluster.members.given_up(dead):
            back = self._back.pop(number)
            back.answer.set_exception(ValueError(cluster.members.refusal_to_return(number, back.peer.tag)))
        self._expected = expected = {number for number, node_id in self._earlier.items() if node_id not in dead}
        await self._gather(node.settings.node_silence_s)
        cluster.on_return = None
        admits = cluster.members.handle(Gathered(), time.monotonic())
        for number, back in self._back.items():
            cluster.listen_to(number, back.peer.tag, back.peer, back.said["jobs"], heard.get(number, 0))
        self._keep_jobs(saved)
        node.head.groups.groups.attempts_from = cluster.own << 32
        present = [_present(back) for back in self._back.values()]
        resumption.resume(node.head, saved, present, AWAY.format(node.settings.node_silence_s))
        claims = resumption.claims(present)
        for admit in admits:
            assert isinstance(admit, Admit)
            self._answer(admit, claims)
        self._say_what_is_over()
        self._follow()
        cluster.join_own()
        for number in heard.keys() - self._back.keys():
            node.head.tables.uplinks.remove(number)
        await cluster.opened
        head_side.announce(node)
        cluster.watch()
        node.head.groups.missed({group_id for back in self._back.values() for group_id in back.said["bundles"]})
        logger.warning(
            "the head goes on as node %d: %d node(s) came back, %d did not",
            cluster.own, len(self._back), len(expected - self._back.keys()),
        )  # fmt: skip

    async def _gather(self, wait_s: float) -> None:
        self._look_if_all()
        await asyncio.wait([self._all_back], timeout=wait_s)

    def _look_if_all(self) -> None:
        if self._expected is not None and self._expected <= self._back.keys() and not self._all_back.done():
            self._all_back.set_result(None)

    def _on_return(self, peer: Peer, said: dict[str, Any]) -> asyncio.Future[dict[str, Any]]:
        """`rejoin`, of a node that may."""
        number, now = said["number"], time.monotonic()
        about = {name: value for name, value in said.items() if name not in _OF_NOBODY_ELSE}
        self._cluster.members.handle(Returned(number, peer.tag, about), now)
        before = self._back.pop(number, None)
        if before is not None:  # it has lost that connection, and its end has not come here yet
            before.peer.close("the node began a new connection")
        answer: asyncio.Future[dict[str, Any]] = self._node.loop.create_future()
        self._back[number] = _Back(peer, said, answer)
        peer.on_close = partial(self._gone_again, number, peer)
        self._node.loop.call_soon(self._look_if_all)
        return answer

    def _gone_again(self, number: int, peer: Peer, why: str) -> None:
        back = self._back.get(number)
        if back is None or back.peer is not peer:
            return  # it has come back over another connection
        del self._back[number]
        self._cluster.members.handle(Left(number, why), time.monotonic())

    def _keep_jobs(self, saved: resumption.Saved) -> None:
        """What a job's workers need, for those that are started from now on; nodes know it best."""
        living = {row.job_id for row in saved.jobs if row.state in (RUNNING, ENDING)}
        for back in self._back.values():
            for job_id, info in back.said["jobs"].items():
                if job_id in living:
                    keep_job(self._node, job_id, info)
        _keep_jobs(self._node, saved)

    def _answer(self, admit: Admit, claims: Claims) -> None:
        node, back = self._node, self._back[admit.number]
        held = [i for i in back.said["actors"] if node.head.actors.holds(i, back.peer.tag, claims)]
        for actor_id in held:
            node.head.port.actor_is_at(actor_id, admit.number)
        if not back.answer.done():
            back.answer.set_result(
                {
                    **self._cluster.answer(admit),
                    "release": sorted(set(back.said["actors"]) - set(held)),
                    "kept": self._cluster.heard(admit.number),
                }
            )

    def _say_what_is_over(self) -> None:
        """The earlier head may have died before it had told every node."""
        head, tell = self._node.head, self._cluster.tell
        for number, back in self._back.items():
            for job_id in back.said["jobs"]:
                if not head.job_lives(job_id):
                    tell(number, "job_over", job_id)
            why = "it was removed while the head was away"
            removed = [(i, why) for i in back.said["groups"] if head.groups.groups.was_removed(i)]
            head.lasting.say(partial(self._cluster.tell_removed, number, removed))

    def _follow(self) -> None:
        """Whoever was told of actors is told of them again."""
        for back in self._back.values():
            for tag, actors in back.said["followed"].items():
                caller = RemoteCaller(tag, 0, "worker", b"", "")
                for actor_id in actors:
                    self._node.head.event(caller, "actor_subscribe", (actor_id,))


_OF_NOBODY_ELSE = frozenset(
    ("node_id", "number", "cluster_id", "workers", "cores", "actors", "bundles", "groups", "jobs", "followed")
)


def _present(back: _Back) -> Present:
    said = back.said
    return Present(
        back.peer.tag, said["number"], said["total"], said["labels"], said, said["workers"], said["cores"],
        said["actors"], said["bundles"], said["followed"], said["jobs"],
    )  # fmt: skip
