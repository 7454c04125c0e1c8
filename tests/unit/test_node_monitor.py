"""Node health: silence, goodbyes, and a node that comes back from the dead."""

from __future__ import annotations

from ray._control.rows import NodeRow
from ray._head.monitor import (
    ALIVE,
    DEAD,
    DEAD_KEPT,
    MISSES_MAX,
    SUSPECT,
    DropNode,
    Heartbeat,
    NodeDead,
    NodeGone,
    NodeMonitor,
    NodeUp,
    TellRestart,
)

N, M = b"n" * 16, b"m" * 16
PERIOD = 2.0


def state(monitor: NodeMonitor, node_id: bytes = N) -> str:
    row = monitor.get(node_id)
    assert row is not None
    return row.state


def test_a_silent_node_is_suspected_then_declared_dead_and_told_to_restart_if_it_comes_back() -> None:
    monitor = NodeMonitor(PERIOD)
    monitor.handle(NodeUp(NodeRow(N), watched=False), 0.0)
    assert monitor.deadline() == PERIOD
    assert monitor.tick(PERIOD - 0.1) == [] and state(monitor) == ALIVE
    monitor.tick(PERIOD)
    assert state(monitor) == SUSPECT and not monitor.schedulable(N)
    monitor.handle(Heartbeat(N), 3.0)
    assert state(monitor) == ALIVE and monitor.schedulable(N)
    now = 3.0
    dead: list[object] = []
    while not dead:
        deadline = monitor.deadline()
        assert deadline is not None and deadline > now
        now = deadline
        dead = [action for action in monitor.tick(now) if isinstance(action, NodeDead)]
    assert now == 3.0 + PERIOD * MISSES_MAX
    assert monitor.deadline() is None
    assert monitor.handle(Heartbeat(N), now + 1) == [TellRestart(N)]
    assert monitor.handle(NodeGone(N, "late"), now + 2) == []
    monitor.check()


def test_a_head_that_stood_still_itself_takes_nobody_for_dead_because_of_that() -> None:
    monitor = NodeMonitor(PERIOD)
    for node_id, heard_s in ((N, 0.0), (M, 1.0)):
        monitor.handle(NodeUp(NodeRow(node_id), watched=False), heard_s)
    monitor.tick(PERIOD)
    assert (state(monitor, N), state(monitor, M)) == (SUSPECT, ALIVE)
    woke = 100 * PERIOD
    assert monitor.tick(woke) == [] and (state(monitor, N), state(monitor, M)) == (SUSPECT, ALIVE)
    monitor.handle(Heartbeat(N), woke + 0.1)
    assert state(monitor, N) == ALIVE
    now = woke
    dead: list[NodeDead] = []
    while not dead:  # and who stays silent is dead soon after
        deadline = monitor.deadline()
        assert deadline is not None
        now = deadline
        dead = [a for a in monitor.tick(now) if isinstance(a, NodeDead)]
    assert dead[0].node_id == M and woke < now <= woke + PERIOD * MISSES_MAX
    monitor.check()


def test_a_watched_node_is_never_suspected_and_its_end_is_an_event() -> None:
    monitor = NodeMonitor(PERIOD)
    monitor.handle(NodeUp(NodeRow(N), watched=True), 0.0)
    assert monitor.deadline() is None and monitor.tick(1e9) == []
    assert NodeDead(N, "killed") in monitor.handle(NodeGone(N, "killed"), 5.0)
    row = monitor.get(N)
    assert row is not None and (row.state, row.died_s, row.cause) == (DEAD, 5.0, "killed")


def test_strangers_are_told_to_register() -> None:
    monitor = NodeMonitor(PERIOD)
    assert monitor.handle(Heartbeat(M), 0.0) == [TellRestart(M)]
    assert monitor.handle(NodeGone(M, "x"), 0.0) == []


def test_dead_nodes_are_forgotten_oldest_first() -> None:
    monitor = NodeMonitor(PERIOD)
    for i in range(DEAD_KEPT + 2):
        node_id = b"%016d" % i
        monitor.handle(NodeUp(NodeRow(node_id), watched=True), 0.0)
        dropped = [a for a in monitor.handle(NodeGone(node_id, "x"), 1.0) if isinstance(a, DropNode)]
        assert len(dropped) == (1 if i >= DEAD_KEPT else 0)
        monitor.check()


def test_restored_nodes_get_a_full_period() -> None:
    monitor = NodeMonitor(PERIOD)
    monitor.handle(NodeUp(NodeRow(N), watched=False), 0.0)
    monitor.handle(NodeUp(NodeRow(M), watched=True), 0.0)
    monitor.handle(NodeGone(M, "x"), 0.0)
    after = NodeMonitor(PERIOD)
    after.restore(monitor.all(), {}, 100.0)
    after.check()
    assert after.deadline() == 100.0 + PERIOD and state(after, M) == DEAD
