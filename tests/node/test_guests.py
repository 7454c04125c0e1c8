"""Processes of other nodes that lease workers here: what they may do, and what is left when they go."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from ray._native.channel import ConnectionClosed
from ray._node import lease_messages as lm
from ray._node.cluster_view import ClusterView
from ray._node.guests import Guests
from ray._node.local_scheduler import LocalScheduler
from ray._scheduling.node_resources import NodeResources

from .harness import CPU1, Driver, Talk

Start = Callable[..., Driver]


def guest_of(driver: Driver) -> Talk:
    """A driver of another node, as if it had come through the gate."""
    return Talk(driver.session.node_socket, driver.session.token, 0)


def about(talk: Talk, job_id: bytes) -> dict[str, Any]:
    return {"kind": "driver", "tag": talk.tag, "job_id": job_id, "namespace": "", "pid": os.getpid()}


def test_a_guest_leases_a_worker_of_its_job_without_waiting_for_its_registration(start: Start) -> None:
    driver = start()
    guest = guest_of(driver)
    info = about(guest, driver.info["job_id"])
    guest.connection.send(1, __import__("pickle").dumps((77, "register_guest", (info,))))
    guest.tell("lease_request", 5, CPU1, {"name": "f", "hops": 1})
    req_id, lease_id, *_ = guest.event("lease_grant")
    assert req_id == 5
    assert driver.rpc("available_resources")["CPU"] == 10_000
    guest.tell("lease_return", lease_id, True)
    guest.rpc("worker_exit_cause", b"x" * 16)  # behind the return, on the same connection
    assert driver.rpc("available_resources")["CPU"] == 20_000
    guest.close()


def test_a_guests_leases_end_when_it_goes(start: Start) -> None:
    driver = start({"CPU": 1}, settings={"worker_exit_grace_s": 0.2})  # the stand-in worker doesn't know `reclaim`
    guest = guest_of(driver)
    guest.rpc("register_guest", about(guest, driver.info["job_id"]))
    guest.tell("lease_request", 1, CPU1, {"name": "f"})
    guest.event("lease_grant")
    waiting = driver.ask(CPU1)
    guest.close()
    driver.event("lease_grant", lambda req_id, *_: req_id == waiting)


def test_what_the_guests_of_a_job_had_asked_for_ends_with_the_job_even_if_their_end_is_not_heard(start: Start) -> None:
    driver = start({"CPU": 1})
    other = Talk(driver.session.node_socket, driver.session.token, 0)
    job_id = driver.register(other)["job_id"]
    guest = guest_of(driver)
    guest.rpc("register_guest", about(guest, job_id))
    _, _lease, _ = driver.lease()
    guest.tell("lease_request", 1, CPU1, {"name": "f"})
    guest.rpc("worker_exit_cause", b"x" * 16)  # behind the request
    assert driver.stats()["scheduler"]["leases"]["QUEUED"] == 1
    other.close()
    with pytest.raises(ConnectionClosed):
        guest.event("lease_grant")
    assert driver.stats()["scheduler"]["leases"]["QUEUED"] == 0


def test_a_guest_may_do_nothing_but_lease(start: Start) -> None:
    driver = start()
    guest = guest_of(driver)
    guest.rpc("register_guest", about(guest, driver.info["job_id"]))
    for method in ("shutdown", "stats", "cluster_resources"):
        with pytest.raises(PermissionError, match="ask your own node"):
            guest.rpc(method)
    with pytest.raises(PermissionError):
        guest.rpc("register_guest", about(guest, driver.info["job_id"]))
    guest.close()


@pytest.mark.parametrize(
    "wrong", [{"kind": "worker"}, {"kind": "node"}, {"tag": b"x" * 16}, {"tag": "x"}, {"job_id": 1}, {"job_id": b"123"}]
)
def test_a_registration_that_makes_no_sense_names_what_is_wrong(start: Start, wrong: dict[str, Any]) -> None:
    driver = start()
    guest = guest_of(driver)
    with pytest.raises(ValueError, match=next(iter(wrong))):
        guest.rpc("register_guest", {**about(guest, driver.info["job_id"]), **wrong})
    guest.close()


class Bench:
    """A node of which only what guests need is there; its head answers when `answer` is set."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.ending = None
        self.cores = SimpleNamespace(jobs={}, guests={}, by_tag={})
        self.scheduler = LocalScheduler(NodeResources({"CPU": 20_000}), node_id=b"m" * 16)
        self.pool = SimpleNamespace(handle=lambda event, now: [])
        self.envs = SimpleNamespace(core_left=lambda tag: None)
        self.freed: list[bytes] = []  # owners, by tag or number, whose results need not be held any more
        self.orphans = SimpleNamespace(owner_died=self.freed.append)
        self.answer: asyncio.Future[Any] = self.loop.create_future()
        self.asked: list[bytes] = []
        self.head = SimpleNamespace(job_info=self.job_info)
        self.guests = Guests(self)  # type: ignore[arg-type]

    async def job_info(self, job_id: bytes) -> Any:
        self.asked.append(job_id)
        return await self.answer

    def feed(self, machine: Any, event: Any) -> None:
        machine.handle(event, 0.0)

    def peer(self, number: int) -> Any:
        tag = number.to_bytes(4, "big") + os.urandom(12)
        peer = SimpleNamespace(tag=tag, role=0, pid=0, closed=False)
        peer.close = lambda why: setattr(peer, "closed", True)
        return peer


def test_an_unknown_job_is_asked_for_once_however_many_of_its_guests_come() -> None:
    async def play() -> None:
        node = Bench()
        peers = [node.peer(3), node.peer(4)]
        infos = [{"kind": "driver", "tag": peer.tag, "job_id": b"\7\0\0\0"} for peer in peers]
        arrivals = [asyncio.ensure_future(node.guests.register(p, i)) for p, i in zip(peers, infos)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert node.asked == [b"\7\0\0\0"] and not node.cores.guests
        node.answer.set_result({"cwd": "/tmp", "namespace": "n"})
        await asyncio.gather(*arrivals)
        assert set(node.cores.guests) == {peer.tag for peer in peers}
        assert node.cores.jobs[b"\7\0\0\0"].cwd == "/tmp"
        node.guests.node_down(3, "killed")
        assert peers[0].closed and not peers[1].closed
        assert set(node.cores.guests) == {peers[1].tag}
        assert node.freed == [peers[0].tag, b"\0\0\0\3"]

    asyncio.run(play())


def test_a_guest_of_a_job_that_is_over_is_turned_away() -> None:
    async def play() -> None:
        node = Bench()
        node.answer.set_result(None)
        peer = node.peer(3)
        with pytest.raises(RuntimeError, match="job 07000000 is over"):
            await node.guests.register(peer, {"kind": "driver", "tag": peer.tag, "job_id": b"\7\0\0\0"})
        assert not node.cores.guests and not node.cores.jobs

    asyncio.run(play())


def test_reports_follow_changes_at_most_every_50_ms_and_rows_reach_the_scheduler() -> None:
    async def play() -> None:
        node = Bench()
        sent: asyncio.Queue[tuple[float, dict[str, Any]]] = asyncio.Queue()
        view = ClusterView(node, lambda report: sent.put_nowait((node.loop.time(), report)))  # type: ignore[arg-type]
        view.changed()
        first_at, first = await sent.get()
        assert first == {"available": {"CPU": 20_000}, "queued": 0, "bundles": {}}
        node.feed(node.scheduler, lm.CoreJoined(b"a" * 16, b"\1\0\0\0"))
        for req_id in (1, 2, 3):
            node.feed(node.scheduler, lm.LeaseRequested(b"a" * 16, req_id, CPU1))
            view.changed()
        at, report = await sent.get()
        assert at - first_at > 0.049
        assert report == {"available": {"CPU": 0}, "queued": 1, "bundles": {}}
        view.changed()
        await asyncio.sleep(0.06)
        assert sent.empty(), "nothing has changed"
        row = {"number": 5, "node_id": b"5" * 16, "total": {"CPU": 10_000}, "state": "ALIVE"}
        view.take([row])
        assert node.scheduler.stats()["waiting"] == [], "what waited has been sent to the node with room"
        view.take([{**row, "state": "DEAD"}])
        assert not node.scheduler.neighbours
        view.close()

    asyncio.run(play())
