"""A program, and one of another node, that tell and ask the node whatever comes to their mind.

What they say may be refused, logged or without effect; the node must serve on, and none of its machines may meet a bug.
Values are of the kinds that messages carry, half of them where the real ones belong. A round prints its seed.
"""

from __future__ import annotations

import os
import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ray._head.requests import EVENTS, RPCS
from ray._node.requests import Requests

from .harness import RPC, Driver, Talk
from .test_guests import about, guest_of

Start = Callable[..., Driver]
OWN_EVENTS = sorted(name[6:] for name in dir(Requests) if name.startswith("event_"))
OWN_RPCS = sorted(name[4:] for name in dir(Requests) if name.startswith("rpc_"))
# Those that end the asker or the session, wait for something by design, or ask every process.
NOT_ASKED = {"goodbye", "shutdown", "register", "wait_group", "inspect", "metrics", "stats"}
ROUNDS, SAID = 25, 60


class Mind:
    def __init__(self, seed: int, known: list[Any]) -> None:
        self.chance = random.Random(seed)
        self.known = known  # ids, tags and names that mean something here

    def plain(self, depth: int = 0) -> Any:
        chance = self.chance
        kind = chance.randrange(12 if depth < 3 else 9)
        if kind < 3:
            return chance.choice(self.known)
        if kind < 9:
            return chance.choice(
                (
                    *(None, True, 0, 1, -1, 3, 2**31, 2**70, -(2**70), 0.5, float("nan"), float("inf")),
                    *(b"", b"x", os.urandom(16), b"\xff" * 28, "", "CPU", "text", "\udcff", "{}", "[1", "0" * 300),
                )
            )
        items = [self.plain(depth + 1) for _ in range(chance.randrange(4))]
        if kind == 9:
            return items
        if kind == 10:
            return tuple(items)
        keys = ("name", "strategy", "priority", "runtime_env", "hops", "holds", "CPU", "retriable", 5, b"k")
        return {chance.choice(keys): item for item in items}

    def resources(self) -> Any:
        return self.chance.choice(({}, {"CPU": 10_000}, {"CPU": 1}, {"X": 5}, self.plain()))

    def lease_request(self) -> tuple[Any, ...]:
        keys = ("name", "strategy", "priority", "runtime_env", "hops", "holds", "retriable", "exclusive_worker")
        info = {key: self.plain() for key in keys if self.chance.random() < 0.25}
        return self.chance.choice((self.chance.randrange(9), self.plain())), self.resources(), info

    def arguments(self, name: str) -> tuple[Any, ...]:
        if name == "lease_request" and self.chance.random() < 0.8:
            return self.lease_request()
        return tuple(self.plain() for _ in range(self.chance.choice((0, 1, 1, 2, 2, 3, 4, 5))))


def node_log(driver: Driver) -> str:
    return "".join(path.read_text(errors="replace") for path in Path(driver.session.logs).glob("node*"))


def hear_out(talk: Talk) -> None:
    """Until all that was said has been looked at."""
    with pytest.raises(PermissionError if talk.is_guest else AttributeError):  # type: ignore[attr-defined]
        talk.rpc("no_such_thing", timeout_s=60)


@pytest.mark.parametrize("who", ["program", "guest"])
def test_whatever_is_said_to_it_the_node_serves_on_and_meets_no_bug(start: Start, who: str) -> None:
    driver = start({"CPU": 2})
    talk = guest_of(driver)
    talk.is_guest = who == "guest"  # type: ignore[attr-defined]
    if who == "guest":
        talk.rpc("register_guest", about(talk, driver.info["job_id"]))
    else:
        driver.register(talk)
    known = [driver.tag, talk.tag, driver.info["job_id"], driver.info["node_id"], "f", 1, 2, 10_000]
    events = sorted({*OWN_EVENTS, *EVENTS} - NOT_ASKED)
    rpcs = sorted({*OWN_RPCS, *RPCS} - NOT_ASKED)
    for seed in range(1, ROUNDS + 1):
        print(f"seed {seed}")
        mind = Mind(seed, known)
        for _ in range(SAID):
            if mind.chance.random() < 0.7:
                name = mind.chance.choice(("lease_request", "lease_return", "lease_cancel", *events))
                talk.tell(name, *mind.arguments(name))
            else:
                name = mind.chance.choice(rpcs)
                talk.connection.send(RPC, pickle.dumps((talk._next, name, mind.arguments(name))))
                talk._next += 1
        hear_out(talk)
        assert driver.stats()["bugs"] == 0, node_log(driver)
    talk.close()
    _, worker, _ = driver.lease()
    assert worker.value("1 + 1") == 2


def test_what_is_no_actor_and_no_table_of_nodes_reaches_no_machine(start: Start) -> None:
    # Cause, found by the test above: these two arguments were handed to the scheduler as they came.
    driver = start({"CPU": 2})
    driver.tell("actor_ready", {})
    driver.tell("actor_failed")
    driver.tell("lease_request", 1, {"CPU": 10_000}, {"name": "f", "holds": 5})
    driver.tell("lease_request", 2, {"CPU": 10_000}, {"name": "f", "holds": {"somewhere": b"much"}})
    assert driver.stats()["bugs"] == 0
