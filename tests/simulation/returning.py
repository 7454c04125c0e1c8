"""A simulated head takes over from one that was killed: in place of the shell `ray/_node/head_return.py`.

It reads what is on the disk, waits for the nodes of the file `nodes`, and goes on with the real `resumption` and
`Membership`. Its own node joins last, with a number that nobody has had.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from ray._head import resumption
from ray._head.membership import Admit, Gathered, Left, Returned
from ray._head.resumption import Present

from .disk import run
from .network import Line
from .uplinks import SILENCE_S

if TYPE_CHECKING:
    from .heads import Head
    from .nodes import Node

READS_S = 0.02  # mean time until it has read its tables


class _Back(NamedTuple):
    node: Node
    line: Line
    said: Mapping[str, Any]


class Returning:
    def __init__(self, head: Head) -> None:
        self._head = head
        self._back: dict[int, _Back] = {}
        self._expected: set[int] | None = None  # None: not read yet
        self._over = False
        self.newcomers: list[Node] = []  # those who want to join meanwhile
        head.net.later(head.net.random.expovariate(1 / READS_S), head.in_turn, self._read)

    def _read(self) -> None:
        head = self._head
        tables = head.service.tables
        assert tables is not None
        self._saved: resumption.Saved = run(resumption.read(head.service))
        self._heard: dict[int, int] = run(tables.uplinks.all())
        dead = self._saved.dead()
        for number in head.members.given_up(dead):
            back = self._back.pop(number)
            refusal = head.members.refusal_to_return(number, back.node.node_id)
            back.line.say(1, "refused", back.node.uplink.refused, back.line, refusal)
        self._expected = {number for number, node_id in head.disk.nodes if node_id not in dead}
        head.net.later(SILENCE_S, head.in_turn, self._go_on)
        self._look_if_all()

    def _look_if_all(self) -> None:
        if self._expected is not None and self._expected <= self._back.keys():
            self._go_on()

    def on_return(self, node: Node, line: Line, said: Mapping[str, Any]) -> None:
        head = self._head
        about = {"host": "h", "port": 1, "total": node.total, "labels": node.scheduler.labels}
        head.members.handle(Returned(node.number, node.node_id, about), head.net.now)
        before = self._back.pop(node.number, None)
        if before is not None:
            before.line.end(1, "the node began a new connection")
        self._back[node.number] = _Back(node, line, said)
        line.on_end[1] = lambda why: self._gone_again(node.number, line, why)
        head.net.later(0.0, head.in_turn, self._look_if_all)

    def _gone_again(self, number: int, line: Line, why: str) -> None:
        if self._head.alive and number in self._back and self._back[number].line is line:
            del self._back[number]
            self._head.members.handle(Left(number, why), self._head.net.now)

    def _go_on(self) -> None:
        if self._over:
            return
        self._over = True
        head, net = self._head, self._head.net
        head.returning = None
        admits = head.members.handle(Gathered(), net.now)
        for number, back in self._back.items():
            head.listen_to(number, back.node, back.line, self._heard.get(number, 0))
        head.service.groups.groups.attempts_from = head.own << 32
        present = [_present(back) for back in self._back.values()]
        resumption.resume(head.service, self._saved, present, "it did not come back")
        self._give_up_others()
        claims = resumption.claims(present)
        for admit in admits:
            assert isinstance(admit, Admit)
            self._answer(admit, claims)
        self._say_what_is_over()
        for back in self._back.values():
            for tag, actors in back.said["followed"].items():
                for actor_id in actors:
                    head.service.event(_Follower(tag), "actor_subscribe", (actor_id,))
        head.cluster.join_own()
        for number in self._heard.keys() - self._back.keys():
            assert head.service.tables is not None
            head.service.tables.uplinks.remove(number)
        for node in self.newcomers:
            head.join(node)
        head.watch()
        head.service.groups.missed({group_id for back in self._back.values() for group_id in back.said["bundles"]})

    def _give_up_others(self) -> None:
        """Nodes of the file of which the tables know nothing: Redis had stood still since they joined, and was killed.
        Nobody but the table that the nodes are sent says that they are given up."""
        laws = self._head.cluster.laws
        for number, node_id in self._head.disk.nodes:
            if number not in self._back and node_id not in laws.dead:
                laws.declared_dead(node_id, "it did not come back, and the tables have lost it")

    def _say_what_is_over(self) -> None:
        head = self._head
        for number, back in self._back.items():
            for job_id in sorted(back.said["jobs"]):
                if not head.service.job_lives(job_id):
                    head.tell(number, "job_over", job_id)
            why, was_removed = "it was removed while the head was away", head.service.groups.groups.was_removed
            gone = [(group_id, why) for group_id in back.said["groups"] if was_removed(group_id)]
            head.service.lasting.say(lambda number=number, gone=gone: head.tell_removed(number, gone))  # type: ignore[misc]

    def _answer(self, admit: Admit, claims: Any) -> None:
        head, back = self._head, self._back[admit.number]
        mine = back.said["actors"]
        held = [i for i in mine if head.service.actors.holds(i, back.node.node_id, claims)]
        port: Any = head.service.port
        for actor_id in held:
            port.placed_at[actor_id] = admit.number
        release = sorted(set(mine) - set(held))
        answer = back.line, admit.table, release, head.heard[admit.number]
        back.line.say(1, "back", back.node.uplink.back, *answer)


class _Follower(NamedTuple):
    """A core that is told of actors."""

    tag: bytes
    pid: int = 0
    kind: str = "worker"
    job_id: bytes = b""
    namespace: str = ""


def _present(back: _Back) -> Present:
    node, said = back.node, back.said
    about = {"host": "h", "port": 1, "hostname": "h", "labels": node.scheduler.labels}
    return Present(
        node.node_id, node.number, node.total, node.scheduler.labels, about, said["workers"], said["cores"],
        said["actors"], said["bundles"], said["followed"], said["jobs"],
    )  # fmt: skip
