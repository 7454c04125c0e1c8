"""Sessions that outlive a driver: `ray start`, `ray status`, `ray stop`, and ray.init(address=) that joins one.

Each cluster here has a RAY_TMPDIR of its own, so that neither the person running the tests nor another test sees it.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

import ray
from ray._init_options import parse
from ray._launch import current
from ray._launch import session as sessions
from ray._native.plasma import PlasmaClient
from ray.cli import node_link
from tests.wait import wait_until


class Cluster:
    """A place for one, and the programs that know of no other."""

    def __init__(self, place: str) -> None:
        self.place = Path(place)
        kept = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        self.environment = {**kept, "RAY_TMPDIR": place, "PYTHONPATH": os.getcwd()}
        self.environment["RAY_AUTH_TOKEN_PATH"] = place + "/auth_token"

    def command(self, *arguments: str, status: int = 0, **environment: str) -> str:
        """`ray <arguments>`: what it printed, both streams."""
        done = subprocess.run(
            [sys.executable, "-m", "ray.cli", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
            env={**self.environment, **environment},
        )
        assert done.returncode == status, done.stdout
        return done.stdout

    def start(self, *options: str) -> str:
        """Returns: the session's folder."""
        self.command("start", "--head", "--num-cpus=2", *options)
        return self.folder()

    def folder(self) -> str:
        (named,) = self.place.glob("ray-*/current")
        return named.read_text().strip()

    def program(self, text: str, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        """A driver that runs beside us; it may tell us lines and read ours."""
        return subprocess.Popen(
            [sys.executable, "-c", "import ray\n" + textwrap.dedent(text), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**self.environment, **environment},
        )

    def run(self, text: str, *arguments: str, status: int = 0, **environment: str) -> str:
        """A driver from its start to its end: what it printed."""
        with self.program(text, *arguments, **environment) as program:
            said, _ = program.communicate(timeout=60)
            assert program.returncode == status, said
        return said

    def stop(self) -> None:
        self.command("stop")

    def is_empty(self) -> bool:
        return not list(self.place.glob("ray-*"))


@pytest.fixture
def place() -> Iterator[Cluster]:
    folder = tempfile.mkdtemp(prefix="rs-", dir="/tmp")  # a short path: sockets must fit below it
    cluster = Cluster(folder)
    yield cluster
    if not cluster.is_empty():
        cluster.stop()
    assert cluster.is_empty(), "left behind by ray stop"
    os.rmdir(folder)


@pytest.fixture(scope="module")
def standing() -> Iterator[Cluster]:
    """One cluster for the tests that leave it usable."""
    folder = tempfile.mkdtemp(prefix="rs-", dir="/tmp")
    cluster = Cluster(folder)
    try:
        cluster.start('--resources={"tape": 1}')
        yield cluster
        cluster.stop()
        assert cluster.is_empty()
    finally:
        shutil.rmtree(folder)


def node_of(folder: str) -> int:
    status, pidfd = node_link.ask(sessions.open_existing(folder), "status", timeout_s=60.0)
    os.close(pidfd)
    return int(status["pid"])


@contextlib.contextmanager
def joined(cluster: Cluster, monkeypatch: pytest.MonkeyPatch, **options: object) -> Iterator[ray.context.RayContext]:
    """This process as a driver of the cluster."""
    ray.shutdown()
    monkeypatch.delenv("RAY_ADDRESS")
    monkeypatch.setenv("RAY_TMPDIR", str(cluster.place))
    try:
        yield ray.init(**options)
    finally:
        ray.shutdown()


@ray.remote
def double(x):
    return 2 * x


# --- joining -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", [None, "auto", "folder"])
def test_a_driver_joins_the_cluster_that_runs(standing, monkeypatch, address):
    folder = standing.folder()
    with joined(standing, monkeypatch, address=folder if address == "folder" else address) as context:
        assert context["session_dir"] == folder
        assert ray.get([double.remote(i) for i in range(5)]) == [0, 2, 4, 6, 8]
        assert ray.cluster_resources()["tape"] == 1
    assert sessions.alive(folder), "the session ended with the driver"


def test_ray_address_speaks_where_the_argument_does_not(standing):
    program = "print(ray.init(*ARGUMENTS)['session_dir'])"
    folder = standing.folder()
    for arguments in ("[]", "['auto']"):
        text = program.replace("*ARGUMENTS", f"*{arguments}")
        assert standing.run(text, RAY_ADDRESS=folder, RAY_TMPDIR="/tmp") == folder + "\n"


def test_address_local_starts_a_session_beside_the_one_that_runs(standing):
    text = "c = ray.init({}num_cpus=1); print(c['session_dir'], ray.cluster_resources()['CPU'])"
    for said in (
        standing.run(text.format("address='local', ")),
        standing.run(text.format(""), RAY_ADDRESS="local"),
    ):
        folder, cpus = said.split()
        assert folder != standing.folder() and cpus == "1.0" and not os.path.exists(folder)


def test_a_program_that_never_says_init_joins_too(standing):
    text = """
        ref = ray.put(1)
        print(ray.get_runtime_context().gcs_address)
    """
    assert standing.run(text) == standing.folder() + "\n"


@pytest.mark.parametrize(
    "options",
    [{"num_cpus": 1}, {"num_gpus": 0}, {"resources": {"x": 1}}, {"object_store_memory": 10**8}, {"num_workers": 3}],
    ids=repr,
)
def test_what_a_session_is_made_of_is_refused_when_joining(standing, monkeypatch, options):
    name = next(iter(options))
    for address in (None, "auto"):
        with pytest.raises(ValueError, match=rf"{name}= can only be given when a session starts.*address='local'"):
            with joined(standing, monkeypatch, address=address, **options):
                pass
        monkeypatch.undo()
    assert not ray.is_initialized()


def test_older_names_of_it_are_refused_by_the_name_that_was_given(standing, monkeypatch):
    with pytest.raises(ValueError, match="num_custom_resource="):
        with joined(standing, monkeypatch, num_custom_resource=1):
            pass


def test_nothing_to_join_is_a_connection_error(place, monkeypatch, tmp_path):
    ray.shutdown()
    monkeypatch.setenv("RAY_TMPDIR", str(place.place))
    for address, says in (
        ("auto", "RAY_ADDRESS='local'"),
        (str(place.place / "gone"), "no such folder"),
        (str(tmp_path), "no session runs in it"),
    ):
        with pytest.raises(ConnectionError, match=says):
            ray.init(address)
    monkeypatch.delenv("RAY_ADDRESS")
    with pytest.raises(ConnectionError, match="`ray start --head`"):
        ray.init("auto")
    monkeypatch.setenv("RAY_ADDRESS", str(place.place / "gone"))
    with pytest.raises(ConnectionError, match=r"RAY_ADDRESS=.*no such folder"):
        ray.init()
    assert not ray.is_initialized()


@pytest.mark.skipif(os.getuid() != 0, reason="needs root to make a folder of somebody else")
def test_a_session_of_another_user_is_not_joined(place, tmp_path):
    theirs = tmp_path / "s-aaaaaaaa"
    theirs.mkdir()
    os.chown(theirs, 12345, 12345)
    with pytest.raises(ConnectionError, match="belongs to another user"):
        ray.init(str(theirs))


# --- several drivers, and their ends --------------------------------------------------------------------------------

DRIVER = """
    import os, sys, time
    ray.init()

    @ray.remote
    class Counter:
        def add(self):
            self.n = getattr(self, "n", 0) + 1
            return self.n, os.getpid()

    @ray.remote
    def long():
        time.sleep(600)

    counter = Counter.options(num_cpus=0).remote()
    big = ray.put(bytes(20_000_000))
    running = long.options(num_cpus=0.1).remote()
    print(ray.get(counter.add.remote()), flush=True)
    for line in sys.stdin:
        print(ray.get(counter.add.remote()), flush=True)
"""


@pytest.mark.parametrize("end", ["clean", "kill"])
def test_the_end_of_one_driver_ends_its_job_and_nobody_elses(standing, end):
    with standing.program(DRIVER) as leaving, standing.program(DRIVER) as staying:
        actors = [int(p.stdout.readline().split(", ")[1].strip(")\n")) for p in (leaving, staying)]
        if end == "kill":
            leaving.kill()
        leaving.stdin.close()
        leaving.wait(30)
        wait_until(lambda: not os.path.exists(f"/proc/{actors[0]}"))
        staying.stdin.write("\n")
        staying.stdin.flush()
        assert staying.stdout.readline() == f"(2, {actors[1]})\n", "the other's actor, with its state"
        shown = standing.command("status")
        assert f"pid {staying.pid} " in shown and f"pid {leaving.pid} " not in shown
        staying.stdin.close()
    wait_until(lambda: "Programs: none" in standing.command("status"))


def test_a_worker_that_waits_for_a_task_of_its_own_does_not_outlive_its_job(standing):
    text = """
        import os, sys
        from ray.util.state import list_workers
        from tests.wait import wait_until
        ray.init()
        @ray.remote(resources={"nowhere": 1})
        def never():
            pass
        @ray.remote
        def asks():
            return os.getpid(), [never.remote()]
        pid, kept = ray.get(asks.remote())
        wait_until(lambda: any(w.pid == pid and w.status == "IDLE" for w in list_workers(detail=True)))
        print(pid, flush=True)
        sys.stdin.readline()
    """
    with standing.program(text) as driver:
        worker = int(driver.stdout.readline())
        driver.kill()
    wait_until(lambda: not os.path.exists(f"/proc/{worker}"), what="the end of the worker that owns the task")


def test_a_job_with_a_long_queue_does_not_shut_out_another(standing):
    busy = """
        import time
        ray.init()
        @ray.remote
        def nap():
            time.sleep(0.002)
        refs = [nap.remote() for _ in range(100_000)]
        ray.get(refs[10])
        print("busy", flush=True)
        ray.get(refs)
    """
    few = """
        from tests.wait import Stopwatch
        ray.init()
        @ray.remote
        def one():
            return 1
        watch = Stopwatch()
        assert sum(ray.get([one.remote() for _ in range(10)])) == 10
        print(watch.read())
    """
    with standing.program(busy) as long:
        assert long.stdout.readline() == "busy\n"
        took_s = float(standing.run(few))
        assert long.poll() is None
        long.kill()
    assert took_s < 2.0, "a worker of its own takes a few milliseconds, and what runs ends every 2"


def test_what_drivers_and_their_workers_put_into_the_store_goes_with_them(standing):
    text = """
        import numpy as np

        @ray.remote
        class Keeper:
            def make(self):
                self.refs = [ray.put(np.ones(2_000_000)) for _ in range(3)]
                return np.zeros(1_000_000)

        keeper = Keeper.remote()
        mine, made = ray.put(np.ones(1_000_000)), keeper.make.remote()
        ray.wait([made])
        {}
    """
    store = PlasmaClient(standing.folder() + "/plasma.sock")
    standing.run(text.format(""))
    wait_until(lambda: not store.list())
    standing.run(text.format("import os; os.kill(os.getpid(), 9)"), status=-9)
    wait_until(lambda: not store.list())
    store.disconnect()


def test_the_last_output_of_a_drivers_workers_reaches_it(standing):
    text = """
        @ray.remote
        class Speaker:
            def __init__(self):
                import atexit
                atexit.register(print, "last words")
            def speak(self):
                print("first words")

        s = Speaker.remote()
        ray.get(s.speak.remote())
    """
    said = standing.run(text)
    assert "first words" in said and "last words" in said


def test_two_programs_with_one_object_id_seed_do_not_mix(standing):
    text = "ray.init(object_id_seed=1); print(ray.get(ray.put(5)), flush=True); input()"
    with standing.program(text) as first:
        assert first.stdout.readline() == "5\n"
        refused = """
            try:
                ray.init(object_id_seed=1)
            except (OSError, ValueError) as error:
                print(error)
        """
        assert "object_id_seed" in standing.run(refused)
        assert first.poll() is None
        first.kill()
    again = "ray.init(object_id_seed=1); print(ray.get(ray.put(6)))"
    socket = sessions.open_existing(standing.folder()).core_socket(parse({"object_id_seed": 1}).driver_tag())
    wait_until(lambda: not os.path.exists(socket))
    assert standing.run(again) == "6\n", "a program that was killed doesn't keep its seed"


def test_jobs_do_not_share_functions_or_names(standing):
    text = """
        import sys

        @ray.remote
        def which():
            return sys.argv, NUMBER

        print(ray.get(which.remote())[1], ray.get_runtime_context().get_job_id())
    """
    first, second = (standing.run(text.replace("NUMBER", str(n))).split() for n in (1, 2))
    assert (first[0], second[0]) == ("1", "2") and first[1] != second[1]


# --- the commands ---------------------------------------------------------------------------------------------------


def test_a_second_cluster_is_refused(standing):
    said = standing.command("start", "--head", status=1)
    assert standing.folder() in said and "`ray stop`" in said


def test_of_two_started_at_once_one_wins_and_the_other_leaves_nothing(place):
    command = [sys.executable, "-m", "ray.cli", "start", "--head", "--num-cpus=1"]
    starts = [
        subprocess.Popen(command, env=place.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for _ in range(2)
    ]
    said = [start.communicate(timeout=60)[0] for start in starts]
    assert sorted(start.returncode for start in starts) == [0, 1], said
    base = next(place.place.glob("ray-*"))
    wait_until(lambda: sorted(os.listdir(base)) == ["current", os.path.basename(place.folder())])


def test_stop_leaves_a_programs_own_session_alone(standing, place):
    text = "import sys; ray.init(address='local', num_cpus=1); print(flush=True); sys.stdin.read()"
    with place.program(text) as program:
        program.stdout.readline()
        assert "No cluster" in place.command("stop")
        assert program.poll() is None and ray._launch.session.sessions(str(place.place))
        program.stdin.close()
    assert program.returncode == 0


def test_a_cluster_of_one_machine_whose_node_process_was_killed_is_there_again(place):
    folder = place.start()
    keep = """
        ray.init(namespace="n", logging_level="error")
        @ray.remote(max_restarts=1)
        class Keeper:
            def __init__(self, what):
                self.what = what
            def what_else(self):
                return self.what, ray.get_runtime_context().was_current_actor_reconstructed
        keeper = Keeper.options(name="keeper", lifetime="detached").remote("a thing")
        print(*ray.get(keeper.what_else.remote()))
    """
    assert place.run(keep) == "a thing False\n"
    waits = """
        ray.init(logging_level="error")
        print("waits", flush=True)
        try:
            ray.get(ray.remote(input).remote())
        except ray.exceptions.RayError as error:
            print(type(error).__name__)
    """
    with place.program(waits.replace("input", "lambda: __import__('time').sleep(600)")) as program:
        assert program.stdout.readline() == "waits\n"
        before = node_of(folder)
        supervisor = min(sessions.marked(folder))
        os.kill(before, signal.SIGKILL)
        assert program.communicate(timeout=60)[0] == "LocalRayletDiedError\n"

    def back() -> bool:
        try:
            return node_of(folder) != before
        except OSError:
            return False

    wait_until(back)
    use = """
        ray.init(namespace="n", logging_level="error")
        print(*ray.get(ray.get_actor("keeper").what_else.remote(), timeout=30), len(ray.nodes()))
    """
    assert place.run(use) == "a thing True 2\n"
    assert place.folder() == folder and min(sessions.marked(folder)) == supervisor
    assert "it was started again" in Path(folder, "logs", "supervisor.err").read_text()


def test_a_cluster_whose_processes_were_all_killed_is_none(place):
    folder = place.start()
    os.kill(node_of(folder), signal.SIGSTOP)  # so that it does not start its supervisor again
    for pid in sessions.marked(folder):
        with contextlib.suppress(ProcessLookupError):  # the node process' end was its own
            os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not sessions.alive(folder))
    assert "no running cluster" in place.command("status", status=1)
    again = place.start()
    assert again != folder and not os.path.exists(folder)


def test_stop_kills_a_cluster_that_does_not_answer(place):
    folder = place.start()
    os.kill(node_of(folder), signal.SIGSTOP)
    assert "Killed" in place.command("stop", "--grace-period=0.1")
    assert place.is_empty() and not sessions.marked(folder)


def test_blocking_start_ends_the_cluster_when_it_is_told_to_end(place):
    command = [sys.executable, "-m", "ray.cli", "start", "--head", "--block", "--num-cpus=1"]
    with subprocess.Popen(command, env=place.environment, stdout=subprocess.PIPE, text=True) as start:
        assert "ray runs in" in start.stdout.readline()
        assert re.search(r"up 0:0\d:", place.command("status"))
        start.send_signal(signal.SIGTERM)
        assert start.wait(30) == 0
    wait_until(place.is_empty)


@pytest.mark.skipif(os.geteuid() != 0, reason="a process namespace of its own needs root")
def test_as_the_first_process_of_a_container_start_stays_and_says_which_option_has_no_effect(place):
    command = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", sys.executable, "-m", "ray.cli", "start"]
    command += ["--head", "--redis-port=0", "--object-manager-port=8076", "--num-workers=1", "--num-cpus=1"]
    environment = {**place.environment, "RAY_AUTH_TOKEN": "a token for tests, long enough"}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as container:
        for line in container.stdout:
            if line.startswith("Programs of this user"):
                break
        assert re.search(r"up 0:0\d:", place.command("status"))
        (first,) = Path(f"/proc/{container.pid}/task/{container.pid}/children").read_text().split()
        os.kill(int(first), signal.SIGTERM)
        assert container.wait(30) == 0
        assert "--node-manager-port has no effect on the head" in container.stderr.read()
    wait_until(place.is_empty)


def test_what_ray_start_is_given_is_what_the_session_has(place, tmp_path):
    folder = place.start(
        "--num-gpus=3", "--memory=1000000", "--object-store-memory=100000000", f"--plasma-directory={tmp_path}",
        '--system-config={"idle_workers_kept": 1}', "--node-name=here",
    )  # fmt: skip
    text = """
        r = ray.cluster_resources()
        print(r["GPU"], r["memory"], r["object_store_memory"], ray.nodes()[0]["NodeName"])
    """
    assert place.run(text) == "3.0 1000000.0 100000000.0 here\n"
    assert os.path.dirname(os.path.dirname(folder)) == str(place.place)


def test_temp_dir_holds_the_session_and_the_cluster_is_found_all_the_same(place):
    with tempfile.TemporaryDirectory(prefix="rt-", dir="/tmp") as elsewhere:
        folder = place.start(f"--temp-dir={elsewhere}")
        assert folder.startswith(elsewhere)
        assert place.run("print(ray.init()['session_dir'])") == folder + "\n"
        place.stop()
        assert not os.listdir(elsewhere)


@pytest.mark.parametrize(
    "options, says",
    [
        (["--num-cpus=-1"], "--num-cpus=-1: expected a whole number >= 0"),
        (["--num-cpus=many"], "--num-cpus 'many': expected a whole number"),
        (["--resources=tape"], "--resources 'tape': expected JSON"),
        (['--resources={"CPU": 1}'], "--resources: 'CPU' is not a custom resource"),
        (["--temp-dir=relative"], "--temp-dir='relative': expected an absolute path"),
        (["--huge-pages"], "--huge-pages: it needs plasma_directory"),
        (["--address=1.2.3.4:6379"], "give either --head, to start a cluster on this machine, or --address"),
        (["--port=70000"], "--port 70000: expected a port number"),
        (["--port=0", "--node-ip-address=no.such.host.invalid"], "no such host"),
        (["--dashboard-port=8265"], "the dashboard is not built yet"),
        (['--system-config={"idle_workers_kept": "x"}'], "idle_workers_kept must be int"),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else "",
)
def test_a_wrong_option_of_ray_start_is_named_and_starts_nothing(place, options, says):
    assert says in place.command("start", "--head", *options, status=2)
    assert place.is_empty()


def test_start_without_head_says_what_is_missing(place):
    assert "--head" in place.command("start", status=2)


def test_the_folder_of_a_standing_session_is_its_users_alone(standing):
    folder = Path(standing.folder())
    assert (folder.stat().st_mode & 0o777, folder.parent.stat().st_mode & 0o777) == (0o700, 0o700)
    assert (folder / "token").stat().st_mode & 0o777 == 0o600
    assert current.read() != str(folder), "this process has another RAY_TMPDIR"
