"""A node process, its fork server, store and Redis, with stand-in workers: what they do while all is well."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ray._launch.node_process import NodeStartError
from tests.leaks import has_ended
from tests.wait import wait_until

from .harness import CPU1, ConnectionClosed, Driver, Talk, Worker, wait_gone

Start = Callable[..., Driver]


def status(pid: int, field: str) -> str:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return line.split(":", 1)[1].strip()
    raise KeyError(field)


def test_a_lease_brings_a_forked_worker_in_the_drivers_surroundings(start: Start, folder: str) -> None:
    driver = start()
    _, worker, gpu_ids = driver.lease()
    assert gpu_ids == []
    assert int(status(worker.pid, "PPid")) == driver.ready["pid"]
    assert Path(f"/proc/{worker.pid}/cmdline").read_bytes().rstrip(b"\0\1") == b"ray worker"
    assert os.getpgid(worker.pid) == worker.pid
    assert worker.value("__import__('os').getcwd()") == os.path.realpath(folder)
    assert worker.value("__import__('os').environ['RAY_TEST']") == "yes"
    assert worker.value("__import__('sys').path[: len(startup['sys_path'])] == startup['sys_path']")
    assert worker.value("startup['job_id']") == driver.info["job_id"] == b"\1\0\0\0"
    assert Path(f"/proc/{worker.pid}/oom_score_adj").read_text() == "1000\n"
    # nothing of the fork server or the node is open in it
    links = worker.value("[__import__('os').readlink('/proc/self/fd/%s' % n) for n in range(3)]")
    assert links[0] == "/dev/null" and links[1].startswith("pipe:") and links[2].startswith("pipe:")
    assert worker.value("len(__import__('os').listdir('/proc/self/fd'))") <= 8


def test_workers_are_reused_and_resources_are_counted(start: Start) -> None:
    driver = start({"CPU": 2, "x": 1})
    first, worker, _ = driver.lease(CPU1)
    driver.lease({"CPU": 5_000, "x": 10_000})
    assert driver.rpc("available_resources")["CPU"] == 5_000
    assert driver.rpc("cluster_resources")["x"] == 10_000
    driver.tell("lease_return", first, True)
    _, again, _ = driver.lease(CPU1)
    assert again.pid == worker.pid


def test_a_request_waits_for_resources_and_the_holder_is_asked_for_them(start: Start) -> None:
    driver = start({"CPU": 1})
    lease, _, _ = driver.lease()
    other = Talk(driver.session.node_socket, driver.session.token, 0)
    assert driver.register(other)["job_id"] == b"\2\0\0\0"
    other.tell("lease_request", 1, CPU1, {"name": "g"})
    driver.event("lease_wanted")
    driver.tell("lease_return", lease, True)
    other.event("lease_grant")
    other.tell("goodbye")
    other.close()


def test_gpus_are_assigned_by_id(start: Start) -> None:
    driver = start({"CPU": 4, "GPU": 2})
    ids = [driver.lease({"GPU": units})[2] for units in (10_000, 5_000, 5_000)]
    assert ids == [[0], [1], [1]]


def test_a_request_that_can_never_run_is_answered_with_the_reason(start: Start) -> None:
    driver = start({"CPU": 2})
    req_id = driver.ask({"GPU": 10_000}, "train")
    granted, message = driver.event("lease_infeasible")
    assert granted == req_id and "train" in message and "'GPU'" in message and "CPU: 2" in message


def test_a_blocked_worker_lends_its_cpu_and_another_worker_starts(start: Start) -> None:
    driver = start({"CPU": 1})
    _, outer, _ = driver.lease()
    outer.run("tell('blocked')")
    _, inner, _ = driver.lease()
    assert inner.pid != outer.pid
    outer.run("tell('unblocked')")
    assert outer.value("1") == 1
    assert driver.rpc("available_resources")["CPU"] == 0


def test_what_workers_print_reaches_the_driver_under_its_name_and_the_files(start: Start) -> None:
    driver = start()
    _, worker, _ = driver.lease()
    worker.run(r"import sys; print('\x1fray:name:square\nhello'); print('oops', file=sys.stderr)")
    got = driver.lines(2)
    assert sorted(got) == [("", worker.pid, "stderr", "oops"), ("square", worker.pid, "stdout", "hello")]
    assert Path(driver.session.logs, f"worker-{worker.pid}.err").read_text() == "oops\n"


def test_nothing_a_worker_printed_is_lost_when_it_dies_or_the_session_ends(start: Start) -> None:
    driver = start()
    _, dying, _ = driver.lease()
    _, living, _ = driver.lease()
    dying.run("import os; os.write(1, b'x\\n' * 20000 + b'unfinished'); os._exit(3)")
    living.run("import os; os.write(1, b'y\\n' * 20000)")
    lost = driver.event("lease_lost")
    assert lost[1] == "exited with code 3"
    texts = [line[3] for line in driver.lines(20001 + 20000)]
    assert texts.count("x") == 20000 and texts.count("unfinished") == 1
    driver.rpc("shutdown")
    assert [line[3] for line in driver.lines(1)] == ["goodbye"]
    driver.close()
    assert driver.node.wait_exit(60.0) == 0
    driver.node.close()


def test_output_a_driver_does_not_take_stops_the_worker_not_the_node(start: Start) -> None:
    driver = start(settings={"log_backlog_bytes_max": 100_000})
    _, worker, _ = driver.lease()
    lines = 100_000
    worker.run(f"import os\nfor i in range({lines}): os.write(1, b'%099d\\n' % i)")
    other = Talk(driver.session.node_socket, driver.session.token, 0)
    driver.register(other, log_to_driver=False)

    def written() -> int:
        fields = Path(f"/proc/{worker.pid}/io").read_text().split()
        return int(fields[fields.index("wchar:") + 1])

    def stands_still() -> bool:  # no event tells a stranger that a process blocks in write
        before = written()
        time.sleep(0.2)
        return written() == before > 64 * 1024

    wait_until(stands_still)
    assert written() < lines * 100, "it waits for its driver"
    rss_kb = int(status(driver.ready["pid"], "VmRSS").split()[0])
    assert rss_kb < 60_000
    assert other.rpc("cluster_resources")  # it answers others meanwhile
    other.tell("goodbye")
    other.close()
    got = driver.lines(lines)
    assert [int(line[3]) for line in got] == list(range(lines))


def test_drivers_without_log_to_driver_get_no_lines(start: Start) -> None:
    driver = start()
    quiet = Talk(driver.session.node_socket, driver.session.token, 0)
    driver.register(quiet, log_to_driver=False)
    quiet.tell("lease_request", 1, CPU1, {})
    _, _, tag, pid, _ = quiet.event("lease_grant")
    Worker(driver, tag, pid).run("print('unseen')")
    path = Path(driver.session.logs, f"worker-{pid}.out")
    wait_until(lambda: path.exists() and "unseen" in path.read_text())
    assert quiet.events == []
    quiet.tell("goodbye")
    quiet.close()


def test_an_actor_is_placed_made_and_found_and_its_worker_is_its_own(start: Start) -> None:
    driver = start()
    actor_id = os.urandom(16)
    spec = {
        "class_name": "Counter", "resources": {}, "placement_resources": CPU1, "max_restarts": 1, "max_task_retries": 0,
        "max_concurrency": 1, "name": "", "namespace": "", "detached": False, "owner_tag": driver.tag,
        "creation": b"how",
    }  # fmt: skip
    driver.tell("actor_subscribe", actor_id)
    driver.tell("create_actor", actor_id, spec)
    (pid,) = wait_until(lambda: driver.stats()["pids"]["workers"])
    tags = wait_until(lambda: [bytes.fromhex(name) for name in os.listdir(driver.session.cores)])
    worker = Worker(driver, tags[0], pid)
    wait_until(lambda: [m for m in worker.value("heard") if m[0] == "become_actor"])
    assert next(m for m in worker.value("heard") if m[0] == "become_actor")[1][:2] == (actor_id, b"how")
    worker.run(f"tell('actor_ready', {actor_id!r})")
    state = driver.event("actor_state", lambda actor, state, *_: state == "ALIVE")
    assert state[2] == tags[0]
    assert driver.rpc("available_resources")["CPU"] == 20_000
    worker.run("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    driver.event("actor_state", lambda actor, state, *_: state == "RESTARTING")
    driver.tell("kill_actor", actor_id, True)
    driver.event("actor_state", lambda actor, state, *_: state == "DEAD")


def test_redis_holds_the_control_plane_and_nobody_waited_for_it(start: Start) -> None:
    driver = start()
    driver.rpc("kv_put", b"k", b"v", True, b"ns")
    assert driver.rpc("kv_get", b"k", b"ns") == b"v"
    assert len(driver.rpc("nodes")) == 1
    assert driver.rpc("jobs")


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"plasma_directory": "/nonexistent/folder"}, "/nonexistent/folder"),
        ({"settings": {"worker_main": 5}}, "worker_main must be str"),
    ],
)
def test_a_node_that_cannot_start_says_why_and_leaves_nothing(
    folder: str, config: dict[str, object], says: str
) -> None:
    with pytest.raises(NodeStartError, match=says):
        Driver(folder, **config)


def test_workers_that_cannot_start_are_reported_with_what_they_wrote(start: Start) -> None:
    driver = start(settings={"worker_main": "no_such_module_xyz", "worker_start_retries_max": 2})
    driver.ask(CPU1)
    kind, message, _ = driver.event("error")
    assert kind == "worker_start" and "No module named 'no_such_module_xyz'" in message


def test_strangers_are_dropped_and_harm_nobody(start: Start) -> None:
    import socket

    driver = start()
    for hello in (b"GET / HTTP/1.0\r\n\r\n" * 20, os.urandom(4096)):
        with socket.socket(socket.AF_UNIX) as stranger:
            stranger.connect(driver.session.node_socket)
            stranger.sendall(hello)
            stranger.settimeout(60)
            try:
                while stranger.recv(4096):
                    continue
            except ConnectionResetError:
                continue
    wrong = Talk(driver.session.node_socket, os.urandom(32), 0)
    with pytest.raises(ConnectionClosed):
        driver.register(wrong)
    unregistered = Talk(driver.session.node_socket, driver.session.token, 0)
    with pytest.raises(PermissionError, match="register"):
        unregistered.rpc("cluster_resources")
    impostor = Talk(driver.session.node_socket, driver.session.token, 1)
    with pytest.raises(PermissionError, match="no worker that this node has started"):
        impostor.rpc("register", {"kind": "worker", "tag": impostor.tag, "pid": 1})
    driver.tell("lease_request", "x", {"CPU": -1}, None)
    driver.tell("lease_request", 7, {"CPU": float("nan")}, {})
    driver.tell("nonsense")
    driver.tell("lease_return", 12345, True)
    assert driver.lease()[1].value("1 + 1") == 2
    for talk in (wrong, unregistered, impostor):
        talk.close()


def test_two_sessions_side_by_side_do_not_see_each_other(start: Start) -> None:
    first, second = start({"CPU": 1}), start({"CPU": 3})
    assert first.session.folder != second.session.folder
    one, two = first.lease()[1], second.lease()[1]
    stranger = Talk(second.session.node_socket, first.session.token, 0)
    with pytest.raises(ConnectionClosed):
        second.register(stranger)
    first.shutdown()
    assert has_ended(one.pid) and not has_ended(two.pid)
    assert second.rpc("cluster_resources")["CPU"] == 30_000


def test_shutdown_ends_everything_and_leaves_nothing(start: Start) -> None:
    driver = start()
    _, worker, _ = driver.lease()
    worker.run("import subprocess; child = subprocess.Popen(['sleep', '1000'])")
    child = worker.value("child.pid")
    pids = [*driver.pids(), child]
    driver.shutdown()
    wait_gone(pids)
    assert not os.path.exists(driver.session.folder)


def test_an_idle_worker_is_reaped_after_its_time_and_then_nothing_wakes_up(start: Start) -> None:
    driver = start(settings={"idle_worker_timeout_s": 0.2, "idle_workers_kept": 0})
    lease, worker, _ = driver.lease()
    driver.tell("lease_return", lease, True)
    wait_gone([worker.pid])
    pids = driver.stats()["pids"]
    watched = [pids["node"], pids["fork_server"]]

    def wakeups() -> int:
        return sum(int(status(pid, "voluntary_ctxt_switches")) for pid in watched)

    def rest() -> bool:
        before = wakeups()
        time.sleep(2.2)  # longer than two of anything that comes every second
        return wakeups() - before <= 1

    # Not at once: after a worker's death the store is asked for what it owned (orphans.py).
    wait_until(rest)
