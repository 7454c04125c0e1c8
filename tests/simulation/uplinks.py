"""A simulated node's way to the head: in place of the shells `ray/_node/uplink.py` and `heartbeat.py`.

The real outbox keeps what a head that comes back must hear; what goes out of date (`FLEETING`) is said anew instead. A
node whose head is away looks for it and says `rejoin`. It may do so twice: when an attempt takes too long, or its
connection breaks, it begins another, and the head may see the end of the first after the beginning of the second. On
one connection nothing is reordered or repeated: it is a stream. An old connection's last messages after a new one's
first can't be heard: the head closes the old one when it hears `rejoin` on the new one, and what a head that has died
has not heard is said again by number.
"""

from __future__ import annotations

import collections
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ray._node.outbox import Asked, Outbox, Told
from ray._node.presence import obsolete
from ray._node.uplink import DIAL_FIRST_S, DIAL_LAST_S, FLEETING

from .network import Line

if TYPE_CHECKING:
    from .heads import Head
    from .nodes import Node

HEARTBEAT_S = 1.0
SILENCE_S = 10.0
REDIAL_S = 2.5  # without an answer to a heartbeat
HEAD_WAIT_S = 60.0
ATTEMPT_S = 40.0  # then an attempt to come back is given up for another
BROKEN, BREAKS_S = (
    0.2,
    2.0,
)  # of them: those whose connection breaks before, unheard of by the head; mean time until then


class Uplink:
    def __init__(self, node: Node, own: bool) -> None:
        """own: the head's own node: its messages are calls in one process, and end with it."""
        self.node = node
        self.net = node.cluster.net
        self.own = own
        self.head: Head = node.cluster.head  # that the line leads to
        self.outbox = Outbox(lambda number, name, args: b"")
        self.line: Line | None = None  # None: the head is away
        self.attempt: Line | None = None  # to come back, which it has not answered
        self._claimed: set[bytes] = set()  # actors of which it said there that they have, or seek, a place here
        self._early: list[tuple[str, tuple[Any, ...]]] = []  # what came before its answer
        self._held: list[tuple[str, tuple[Any, ...]]] = []  # what came while this node may have been given up
        self._until = self._pause_s = 0.0
        self._beats: Line | None = None
        self._beats_sent: collections.deque[float] = collections.deque()  # those not answered yet
        self._dialled_at = self._heard_at = 0.0
        self._said_at = 0.0  # when `join` or `rejoin` was said
        self.confirmed_at = 0.0  # when the last heartbeat was sent that the head has answered
        self.followed: dict[bytes, set[bytes]] = {}  # core -> actors of which it is told

    # -- joining ------------------------------------------------------------------------------------------------------

    def join(self) -> None:
        self.line = self._dial("joining")
        self._said_at = self.net.now
        if not self.own:
            self.line.say(0, "join", self.head.join, self.node)

    def admitted(self) -> None:
        self._begin()

    def _dial(self, what: str) -> Line:
        node, cluster = self.node, self.node.cluster
        self.head = cluster.head
        line = Line(self.net, f"node {node.number} - head, {what}", remote=not self.own)
        line.on_end[0] = lambda why: self._ended(line, why)
        line.stopped[0] = node.stopped
        node.at_ends = [(x, end) for x, end in node.at_ends if not x.over]
        node.at_ends.append((line, 0))
        if node.number > 0 and not self.own:
            cluster.link(line, node)
        self.head.dialled(line)
        return line

    def _begin(self) -> None:
        """The head has answered."""
        if not self.own:
            self._beats = None
            self._heard_at, self.confirmed_at = self.net.now, self._said_at
            self._beat(self.line)

    # -- a head that is away ------------------------------------------------------------------------------------------

    def _ended(self, line: Line, why: str) -> None:
        if line is self.line:
            self._away(why)
        elif line is self.attempt:
            self.attempt = None
            self._again_later()

    def _away(self, why: str) -> None:
        if self.own or not self.node.opened:
            self.node.dies(f"its head is gone: {why}", False)
            return
        self.net.note(f"node {self.node.number} has lost its head: {why}")
        line, self.line = self.line, None
        if line is not None:
            line.end(0, "looks for another")
        self._stop_beats()
        self._held.clear()
        self._until, self._pause_s = self.net.now + HEAD_WAIT_S, DIAL_FIRST_S
        self._look()

    def _look(self) -> None:
        if not self.node.cluster.head.alive:
            self._again_later()
            return
        self.attempt = line = self._dial("coming back")
        line.say(0, "hello", self.head.hello, line, self)
        random = self.net.random
        for_s = random.expovariate(1 / BREAKS_S) if random.random() < BROKEN else ATTEMPT_S
        self.net.later(for_s, self.node.in_turn, self._give_up_attempt, line)

    def greeted(self, line: Line) -> None:
        if line is self.attempt:
            self._early, self._said_at = [], self.net.now
            said = self.node.presence()
            self._claimed = set(said["actors"])
            line.say(0, "rejoin", self.head.rejoin, self.node, line, said)

    def _give_up_attempt(self, line: Line) -> None:
        if line is self.attempt:
            self.attempt = None
            self.node.cluster.laws.died.add(self.node.node_id)  # it may be declared dead
            line.end(0, "it took too long")
            self._look()

    def _again_later(self) -> None:
        if self.net.now >= self._until:
            self.node.dies("its head did not come back", False)
            return
        self.net.later(self._pause_s * self.net.random.uniform(1.0, 1.5), self.node.in_turn, self._look)
        self._pause_s = min(2 * self._pause_s, DIAL_LAST_S)

    def refused(self, line: Line, why: str) -> None:
        if line is self.attempt:
            self.node.dies(f"the head would not have it: {why}", False)

    def back(self, line: Line, table: list[dict[str, Any]], release: list[bytes], kept: int) -> None:
        """The head's answer to `rejoin`."""
        if line is not self.attempt:
            return
        self.attempt = None
        self.net.note(f"node {self.node.number} has its head back: release {release}, kept {kept}")
        node = self.node
        node.replace_table(table)
        for actor_id in release:
            node.on_release_actor(actor_id)
        held = self._claimed - set(release)
        self.outbox.drop(lambda entry: obsolete(entry, held))
        self.outbox.kept(kept)
        self.line = line
        for entry in self.outbox.again():
            if isinstance(entry, Asked):
                entry.again = True
                self._send_request(entry)
            else:
                self._send(entry)
        for row in table:
            self.tell("known", row["number"], again=True)
        node.report_anew()
        self._begin()
        early, self._early = self._early, []
        for method, args in early:
            self.hear(line, method, args)

    # -- hearing ------------------------------------------------------------------------------------------------------

    def hear(self, line: Line, method: str, args: tuple[Any, ...]) -> None:
        if line is self.attempt:
            self._early.append((method, args))
        elif line is self.line:
            if self._held or self._may_be_dead():
                self._held.append((method, args))
            else:
                getattr(self.node, method)(*args)

    def _may_be_dead(self) -> bool:
        """The head may have given this node up: nothing that it said before may be carried out any more, until it has
        answered a heartbeat that was sent since."""
        return not self.own and self.node.opened and self.net.now - self.confirmed_at >= SILENCE_S

    # -- telling ------------------------------------------------------------------------------------------------------

    def tell(self, name: str, *args: Any, again: bool = False) -> None:
        """again: it may be said twice."""
        if self.own or name in FLEETING:
            if self.line is not None:
                what = getattr(self.head, name)
                self.line.say(0, _kind(name, args), what, self.node.number, *args, again=again)
            return
        if name == "core_event" and args[1] == "create_actor":
            self.followed.setdefault(args[0].tag, set()).add(args[2][0])
        elif name in ("driver_gone", "worker_died"):
            self.followed.pop(args[0], None)
        self._send(self.outbox.tell(name, args))

    def _send(self, entry: Told) -> None:
        if self.line is not None:
            what = self.node.number, entry.number, entry.name, entry.args
            self.line.say(0, _kind(entry.name, entry.args), self.head.told, *what, again=True)

    def ask(self, method: str, args: tuple[Any, ...], then: Callable[..., None]) -> None:
        self._send_request(self.outbox.ask(method, args, then))

    def _send_request(self, entry: Asked) -> None:
        if self.line is not None:
            self.line.say(0, entry.method, self.head.asked, self.node, self.line, entry)

    def answered(self, entry: Asked, result: tuple[Any, ...]) -> None:
        if entry in self.outbox.asked():
            self.outbox.answered(entry)
            entry.answer(*result)

    def unfollow(self, tag: bytes, actor_id: bytes) -> None:
        self.followed.get(tag, set()).discard(actor_id)

    # -- heartbeats: a connection of their own ------------------------------------------------------------------------

    def _beat(self, of: Line | None) -> None:
        """of: the uplink's line for which this row of beats began."""
        now, sent = self.net.now, self._beats_sent
        if of is not self.line or of is None:
            return
        if now - self._heard_at > SILENCE_S and sent and now - sent[-1] < 1.5 * HEARTBEAT_S:
            self._away("it is silent")  # and this node has not stood still since it asked last
            return
        if self._beats is None or self._beats.ended[0] or now - max(self._heard_at, self._dialled_at) > REDIAL_S:
            self._stop_beats()
            self._dialled_at, self._beats = now, self._dial("heartbeats")
        self._beats_sent.append(now)
        self._beats.say(0, "heartbeat", self.head.heartbeat, self.node, self._beats)
        self.net.later(HEARTBEAT_S, self.node.in_turn, self._beat, of)

    def _stop_beats(self) -> None:
        beats, self._beats = self._beats, None
        self._beats_sent.clear()
        if beats is not None:
            beats.end(0, "given up")

    def beat_heard(self, line: Line) -> None:
        if line is self._beats and self.line is not None:
            self._heard_at, self.confirmed_at = self.net.now, self._beats_sent.popleft()
            if not self._may_be_dead():
                held, self._held = self._held, []
                for method, args in held:
                    self.hear(self.line, method, args)

    # -- its end ------------------------------------------------------------------------------------------------------

    def close(self, why: str, silently: bool) -> None:
        for line in (self.line, self.attempt, self._beats):
            if line is not None:
                line.lost(0) if silently else line.end(0, why)
        self.line = self.attempt = self._beats = None


def _kind(name: str, args: tuple[Any, ...]) -> str:
    kind: str = args[1] if name == "core_event" else name
    return kind
