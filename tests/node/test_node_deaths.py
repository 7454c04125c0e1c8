"""Each process of a node killed with -9, and what must follow. Real processes, stand-in workers."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from ray._launch import session as sessions
from ray._node.children import children_of
from ray._node.cores import STILL_RUNS
from tests.leaks import has_ended
from tests.wait import wait_until

from .harness import CPU1, ROOT, Driver, wait_gone

Start = Callable[..., Driver]
SPIN = "__import__('ctypes').CDLL(None).pause()"  # inside C, deaf to everything Python could notice


def test_the_holder_of_a_lease_is_told_when_its_worker_is_killed_and_by_what(start: Start) -> None:
    driver = start()
    lease, worker, _ = driver.lease()
    os.kill(worker.pid, signal.SIGKILL)
    assert driver.event("lease_lost") == (lease, "killed by SIGKILL")
    assert driver.rpc("worker_exit_cause", worker.worker_tag) == "killed by SIGKILL"
    assert driver.rpc("available_resources")["CPU"] == 20_000
    assert os.listdir(driver.session.cores) == []
    assert driver.lease()[1].value("2") == 2


def test_a_lease_is_over_if_its_holder_lost_its_connection_to_a_worker_that_lives(start: Start) -> None:
    driver = start()
    lease, worker, _ = driver.lease()
    assert driver.rpc("worker_exit_cause", worker.worker_tag) == STILL_RUNS
    assert driver.event("lease_lost")[0] == lease
    wait_until(lambda: driver.rpc("available_resources")["CPU"] == 20_000)
    driver.tell("lease_return", lease, True)  # late
    assert driver.lease()[1].value("2") == 2


@pytest.mark.parametrize(
    ("how", "cause"),
    [
        ("import os; os._exit(3)", "exited with code 3"),
        ("import ctypes; ctypes.string_at(0)", "killed by SIGSEGV"),
        ("import os; os.abort()", "killed by SIGABRT"),
    ],
)
def test_the_cause_of_a_workers_end_is_known(start: Start, how: str, cause: str) -> None:
    driver = start()
    _, worker, _ = driver.lease()
    worker.run(how)
    assert driver.event("lease_lost")[1].startswith(cause)


def test_what_a_worker_started_ends_with_it(start: Start) -> None:
    driver = start()
    _, worker, _ = driver.lease()
    worker.run("import subprocess; child = subprocess.Popen(['sleep', '1000'])")
    child = worker.value("child.pid")
    os.kill(worker.pid, signal.SIGKILL)
    wait_gone([child])


def test_kill_worker_says_who_asked(start: Start) -> None:
    driver = start()
    _, worker, _ = driver.lease()
    worker.run(SPIN)
    driver.tell("kill_worker", worker.worker_tag)
    assert driver.event("lease_lost")[1] == "killed by ray.cancel(force=True)"


def test_workers_outlive_the_fork_server_and_new_ones_come_from_the_next(start: Start) -> None:
    driver = start({"CPU": 3})
    _, old, _ = driver.lease()
    server = driver.stats()["pids"]["fork_server"]
    os.kill(server, signal.SIGKILL)
    _, new, _ = driver.lease()
    _, newer, _ = driver.lease()
    assert (old.value("1"), new.value("2"), newer.value("3")) == (1, 2, 3)
    assert driver.stats()["fork_server_restarts"] == 1
    assert new.value("__import__('os').getppid()") == driver.ready["pid"]
    with open(f"/proc/{driver.stats()['pids']['fork_server']}/cmdline", "rb") as file:
        assert file.read().startswith(b"ray fork server")


def test_a_request_on_its_way_when_the_fork_server_dies_is_asked_again(start: Start) -> None:
    driver = start()
    server = driver.stats()["pids"]["fork_server"]
    os.kill(server, signal.SIGSTOP)
    driver.ask(CPU1)
    driver.stats()  # the request has reached the fork server's socket
    os.kill(server, signal.SIGKILL)
    driver.event("lease_grant")


def test_workers_killed_before_they_have_registered_are_replaced_by_the_same_fork_server(start: Start) -> None:
    driver = start()
    server = driver.stats()["pids"]["fork_server"]
    old = set(children_of(driver.ready["pid"]))
    os.kill(server, signal.SIGSTOP)
    for _ in range(4):
        driver.ask({"CPU": 0})
    driver.stats()  # the fork server has been asked
    os.kill(driver.ready["pid"], signal.SIGSTOP)  # so that none of them registers
    os.kill(server, signal.SIGCONT)
    killed: set[int] = set()
    deadline = time.monotonic() + 60
    while len(killed) < 4:  # each as soon as it can be seen: at its gate, if we are quick
        assert time.monotonic() < deadline
        for pid in set(children_of(driver.ready["pid"])) - old - killed:
            os.kill(pid, signal.SIGKILL)
            killed.add(pid)
    os.kill(driver.ready["pid"], signal.SIGCONT)
    for _ in range(4):
        driver.event("lease_grant")
    assert driver.stats()["pids"]["fork_server"] == server


def test_the_store_is_started_again_and_everybody_hears_of_both(start: Start) -> None:
    driver = start()
    _, worker, _ = driver.lease()
    os.kill(driver.stats()["pids"]["plasma_store"], signal.SIGKILL)
    driver.event("store_died")
    driver.event("store_back")
    assert not has_ended(driver.stats()["pids"]["plasma_store"])
    assert [m[0] for m in worker.value("heard") if m[0] in ("store_died", "store_back")] == ["store_died", "store_back"]


def test_redis_is_started_again_and_has_forgotten_nothing(start: Start) -> None:
    driver = start()
    driver.rpc("kv_put", b"k", b"v", True, b"")
    for pid in driver.stats()["pids"]["redis"]:
        os.kill(pid, signal.SIGKILL)
        wait_gone([pid])
    assert driver.rpc("kv_get", b"k", b"") == b"v"


@pytest.mark.parametrize("where", ["in a C loop", "idle", "stopped"])
def test_when_the_node_is_killed_nothing_of_it_survives_and_the_driver_knows(start: Start, where: str) -> None:
    driver = start()
    _, worker, _ = driver.lease()
    worker.run("import subprocess; child = subprocess.Popen(['setsid', 'sleep', '1000'])")
    child = worker.value("child.pid")
    pids = driver.pids()
    if where == "in a C loop":
        worker.run(SPIN)
    if where == "stopped":
        os.kill(worker.pid, signal.SIGSTOP)
    os.kill(driver.ready["pid"], signal.SIGKILL)
    wait_gone(pids)
    assert select.select([driver.node.ended_fd], [], [], 60.0)[0]
    assert driver.node.wait_exit(60.0) == -signal.SIGKILL
    assert not has_ended(child)  # nobody was left to end it: what the driver does next
    driver.node.discard()
    wait_gone([child])


def test_a_session_whose_node_and_driver_were_killed_is_swept_by_the_next(folder: str, start: Start) -> None:
    script = _driver_script(folder, "os.kill(driver.ready['pid'], 19); os.kill(os.getpid(), 9)")
    pids, session_folder = _run_to_its_death(script)
    assert os.path.exists(session_folder + "/token")
    os.kill(pids[0], signal.SIGKILL)  # the node was stopped, so it could not clean up after its driver
    wait_gone(pids)
    start()
    assert not os.path.exists(session_folder)


def test_when_the_driver_is_killed_everything_ends_also_daemons_that_tasks_had_started(folder: str) -> None:
    worker_does = (
        "import subprocess\n"
        "subprocess.Popen(['sh', '-c', 'setsid sleep 1000 & setsid sh -c \"sleep 1000 & sleep 1000\" &'])"
    )
    script = _driver_script(folder, f"worker.run({worker_does!r}); worker.value('1'); time.sleep(0.3); leave()")
    pids, session_folder = _run_to_its_death(script)
    wait_gone(pids)
    assert not os.path.exists(session_folder)

    def marked() -> list[str]:
        sleepers = subprocess.run(["pgrep", "-x", "sleep"], capture_output=True, text=True).stdout.split()
        return [pid for pid in sleepers if not has_ended(int(pid)) and session_folder in _environment(int(pid))]

    wait_until(lambda: not marked())  # the kernel takes a moment to end what was killed


def test_a_forked_child_that_keeps_the_drivers_sockets_does_not_keep_the_session(folder: str) -> None:
    after = "pid = os.fork()\nif pid == 0:\n    os.setsid(); time.sleep(1000)\nprint('child', pid, flush=True)\nleave()"
    script = _driver_script(folder, after)
    pids, session_folder = _run_to_its_death(script)
    child = pids.pop()
    wait_gone(pids)
    assert not os.path.exists(session_folder) and not has_ended(child)
    os.kill(child, signal.SIGKILL)


def test_a_driver_killed_while_the_node_starts_leaves_nothing(folder: str) -> None:
    source = (
        f"import os, sys; sys.path.insert(0, {ROOT!r})\n"
        "from ray._launch import node_process, session\n"
        f"s = session.create({folder!r}); n = node_process.start_node(s, {{}})\n"
        "print(n.pid, s.folder, flush=True); os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True)
    pid, session_folder = done.stdout.split()
    wait_gone([int(pid)])
    assert not os.path.exists(session_folder), done.stderr


def test_a_worker_deaf_to_exit_is_killed_at_shutdown(start: Start) -> None:
    driver = start(settings={"shutdown_grace_s": 0.3})
    _, worker, _ = driver.lease()
    worker.run(SPIN)
    pids = driver.pids()
    driver.shutdown()
    wait_gone(pids)


def test_a_driver_killed_in_the_middle_of_its_shutdown_leaves_nothing(folder: str) -> None:
    then = f"worker.run({SPIN!r}); driver.connection.send(1, __import__('pickle').dumps((99, 'shutdown', ()))); leave()"
    pids, session_folder = _run_to_its_death(_driver_script(folder, then.replace("; ", "\n")))
    wait_gone(pids)
    assert not os.path.exists(session_folder)


def test_the_death_of_a_nested_owner_ends_what_worked_for_it_if_it_does_not_stop(start: Start) -> None:
    driver = start(settings={"worker_exit_grace_s": 0.3})  # the stand-in worker doesn't know `reclaim`
    _, owner, _ = driver.lease()
    owner.run("tell('lease_request', 1, {'CPU': 10000}, {'name': 'inner'})")
    grants = wait_until(lambda: [m for m in owner.value("heard") if m[0] == "lease_grant"])
    inner_pid = grants[0][1][3]
    os.kill(owner.pid, signal.SIGKILL)
    wait_gone([inner_pid])
    assert driver.event("lease_lost")
    wait_until(lambda: driver.rpc("available_resources")["CPU"] == 20_000)


def test_sweeping_spares_living_sessions(start: Start, folder: str) -> None:
    driver = start()
    sessions.create(folder).release_lock()
    other = sessions.create(folder)
    assert driver.lease()[1].value("1") == 1
    other.release_lock()
    other.remove()


# -- drivers that die -------------------------------------------------------------------------------------------


def _driver_script(folder: str, then: str) -> str:
    """A driver that holds a lease, says what there is (pids, session folder), and does `then`."""
    indented = then if "\n" in then else then.replace("; ", "\n")
    return f"""
import os, sys, time
sys.path.insert(0, {ROOT!r})
from tests.node.harness import Driver
def leave():
    os.kill(os.getpid(), 9)
driver = Driver({folder!r})
_, worker, _ = driver.lease()
print(driver.session.folder, *driver.pids(), flush=True)
{indented}
"""


def _run_to_its_death(script: str) -> tuple[list[int], str]:
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.wait(30) == -signal.SIGKILL
    # What it said is in the pipe. Not to its end: a child of it may hold that open.
    said = os.read(process.stdout.fileno(), 65536).decode().splitlines()
    process.stdout.close()
    folder, *pids = said[0].split()
    found = [int(pid) for pid in pids]
    return [*found, int(said[1].split()[1])] if len(said) > 1 else found, folder


def _environment(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/environ") as file:
            return file.read()
    except (FileNotFoundError, ProcessLookupError):
        return ""
