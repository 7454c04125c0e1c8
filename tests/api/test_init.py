"""ray.init, ray.shutdown, ray.is_initialized and what init returns."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap

import pytest

import ray
from ray.context import RayContext
from tests.leaks import descriptors
from tests.wait import wait_until


def run_program(program: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **environment},
    )


def test_ray_is_initialized_between_init_and_shutdown(engine):
    engine.stop()
    assert not ray.is_initialized()
    engine.start(num_cpus=1)
    assert ray.is_initialized()
    engine.stop()
    assert not ray.is_initialized()


def test_shutdown_without_a_session_does_nothing(engine):
    engine.stop()
    ray.shutdown()
    ray.shutdown()


def test_a_second_init_says_what_to_do(ray_shared):
    with pytest.raises(RuntimeError, match=r"ray\.shutdown\(\).*ignore_reinit_error=True"):
        ray.init()


def test_a_second_init_with_ignore_reinit_error_returns_the_running_session(ray_start):
    assert ray.init(ignore_reinit_error=True) is ray_start
    assert ray.init(num_cpus=7, ignore_reinit_error=True)["session_dir"] == ray_start["session_dir"]
    assert ray.cluster_resources()["CPU"] == 2


@pytest.mark.parametrize("arguments", [{"num_cpus": -1}, {"no_such": 1}, {"huge_pages": True}], ids=repr)
def test_a_wrong_argument_starts_nothing(engine, arguments):
    engine.stop()
    with pytest.raises((TypeError, ValueError)):
        ray.init(**arguments)
    assert not ray.is_initialized()


def test_only_the_address_is_positional(engine):
    engine.stop()
    with pytest.raises(TypeError):
        ray.init("local", 2)  # type: ignore[misc]
    with engine.start(address="local", num_cpus=1):
        assert ray.is_initialized()


def test_init_returns_a_mapping_that_names_the_session(ray_start):
    assert isinstance(ray_start, RayContext)
    assert os.path.isdir(ray_start["session_dir"])
    assert ray_start["node_id"] == ray.get_runtime_context().get_node_id()
    assert set(ray_start) == set(ray_start.address_info)
    assert ray_start.ray_version == ray.__version__
    assert ray_start.python_version.startswith(f"{sys.version_info[0]}.{sys.version_info[1]}.")
    assert ray_start.dashboard_url is None


def test_what_init_returns_shuts_ray_down_at_the_end_of_a_with_block(engine):
    with engine.start(num_cpus=1) as context:
        folder = context["session_dir"]
        assert ray.get(ray.put(1)) == 1
    assert not ray.is_initialized()
    assert not os.path.exists(folder)


def test_a_function_and_a_class_outlive_the_session_they_were_first_used_in(engine):
    @ray.remote
    def double(x):
        return 2 * x

    @ray.remote
    class Box:
        def value(self):
            return "kept"

    for _ in range(2):
        engine.start(num_cpus=1)
        assert ray.get(double.remote(4)) == 8
        assert ray.get(Box.remote().value.remote()) == "kept"
        engine.stop()


def test_a_ref_of_a_session_that_has_ended_is_an_error(engine):
    engine.start(num_cpus=1)
    ref = ray.put([1, 2])
    engine.stop()
    with pytest.raises(ray.exceptions.RaySystemError, match="session that has ended"):
        ray.get(ref)
    with pytest.raises(ray.exceptions.RaySystemError, match="session that has ended"):
        ray.wait([ref])


def test_ray_starts_by_itself_when_it_is_first_used():
    done = run_program(
        """
        import ray

        @ray.remote
        def f(x):
            return x + 1

        assert not ray.is_initialized()
        print(ray.get(f.remote(1)), ray.is_initialized())
        """
    )
    assert done.stdout == "2 True\n", done.stderr


def test_threads_that_use_ray_first_at_the_same_time_start_one_session():
    done = run_program(
        """
        import threading, ray
        ready = threading.Barrier(4)

        def use():
            ready.wait()
            ray.get(ray.put(1))

        threads = [threading.Thread(target=use) for _ in range(4)]
        [t.start() for t in threads]
        [t.join() for t in threads]
        """
    )
    assert done.stderr.count("Started ray") == 1 and "Traceback" not in done.stderr


def test_a_program_that_never_shuts_down_leaves_nothing_behind():
    done = run_program(
        """
        import ray
        print(ray.init(num_cpus=1, logging_level="error")["session_dir"])

        @ray.remote
        def f():
            return 1

        ray.get(f.remote())
        """
    )
    assert done.returncode == 0, done.stderr
    assert not os.path.exists(done.stdout.strip())


def test_sigterm_ends_a_driver_in_order():
    done = run_program(
        """
        import os, signal, ray
        print(ray.init(num_cpus=1)["session_dir"], flush=True)
        os.kill(os.getpid(), signal.SIGTERM)
        """
    )
    assert done.returncode == 128 + 15, done.stderr
    assert not os.path.exists(done.stdout.strip())


def test_a_sigterm_handler_of_the_program_stays():
    done = run_program(
        """
        import os, signal, ray
        signal.signal(signal.SIGTERM, lambda *_: print("mine"))
        ray.init(num_cpus=1)
        os.kill(os.getpid(), signal.SIGTERM)
        """
    )
    assert done.stdout == "mine\n", done.stderr


@pytest.mark.parametrize("level, says", [("info", True), ("error", False)])
def test_logging_level_decides_what_init_says(level, says):
    done = run_program(f"import ray; ray.init(num_cpus=1, logging_level={level!r})")
    assert ("Started ray" in done.stderr) is says


def test_logging_is_left_alone_if_asked():
    done = run_program(
        """
        import logging, ray
        ray.init(num_cpus=1, configure_logging=False)
        assert not logging.getLogger("ray").handlers
        """
    )
    assert done.returncode == 0, done.stderr


def test_init_and_shutdown_in_a_task_are_errors(ray_shared):
    @ray.remote
    def inside(function):
        getattr(ray, function)()

    with pytest.raises(RuntimeError, match="inside a task"):
        ray.get(inside.remote("init"))
    with pytest.raises(RuntimeError, match="inside a task"):
        ray.get(inside.remote("shutdown"))


def test_init_in_a_task_with_ignore_reinit_error_names_the_session_it_belongs_to(ray_start):
    @ray.remote
    def inside():
        return dict(ray.init(ignore_reinit_error=True))

    assert ray.get(inside.remote()) == dict(ray_start)


def test_after_the_node_process_has_died_shutdown_and_init_start_anew(engine):
    for _ in range(2):
        with engine.start(num_cpus=1) as context:
            folder = context["session_dir"]
            os.kill(ray._driver._started.node.pid, signal.SIGKILL)
            with pytest.raises(ray.exceptions.LocalRayletDiedError):
                ray.get(add_one.remote(1), timeout=30)
        assert not os.path.exists(folder)
    engine.start(num_cpus=1)
    assert ray.get(add_one.remote(1)) == 2
    engine.stop()


@ray.remote
def add_one(x):
    return x + 1


def test_importing_ray_imports_nothing_heavy():
    done = run_program(
        """
        import sys, ray
        heavy = {"numpy", "asyncio", "redis", "pyarrow", "cloudpickle", "logging", "typing", "inspect", "threading"}
        print(sorted(heavy & set(sys.modules)), "ray._core.engine" in sys.modules)
        """
    )
    assert done.stdout == "[] False\n", done.stderr


def test_the_session_folder_is_made_where_temp_dir_says(engine, tmp_path_factory):
    folder = tmp_path_factory.mktemp("t", numbered=True)
    with engine.start(num_cpus=1, _temp_dir=str(folder)) as context:
        assert context["session_dir"].startswith(str(folder))
    assert list(folder.iterdir()) == []


def test_a_temp_dir_too_long_for_a_socket_is_an_error(engine, tmp_path):
    engine.stop()
    with pytest.raises(ValueError, match="_temp_dir"):
        ray.init(_temp_dir=str(tmp_path / ("x" * 90)))
    assert not ray.is_initialized()


# --- what each argument does -----------------------------------------------------------------------------------------


def test_what_init_is_given_is_what_the_node_has(engine, tmp_path):
    options = {
        "num_cpus": 3, "num_gpus": 2, "resources": {"tape": 0.5}, "labels": {"zone": "a"}, "_node_name": "here",
        "_memory": 10**6, "object_store_memory": 10**8, "_node_ip_address": "127.0.0.2", "storage": tmp_path,
        "_enable_object_reconstruction": True, "include_dashboard": False, "dashboard_host": "", "dashboard_port": 8265,
    }  # fmt: skip
    with engine.start(**options) as context:
        (node,) = ray.nodes()
        assert (node["NodeName"], node["NodeManagerAddress"]) == ("here", "127.0.0.2")
        assert node["Labels"] == {"zone": "a", "ray.io/node-id": node["NodeID"]}
        assert node["Resources"] == ray.cluster_resources()
        wanted = {"CPU": 3, "GPU": 2, "tape": 0.5, "memory": 10**6, "object_store_memory": 10**8}
        assert {name: node["Resources"][name] for name in wanted} == wanted
        assert context["node_ip_address"] == "127.0.0.2"
        assert context["storage"] == str(tmp_path) and context.dashboard_url is None

        @ray.remote
        def storage():
            return ray.init(ignore_reinit_error=True)["storage"]

        assert ray.get(storage.remote()) == str(tmp_path)


def test_num_custom_resource_is_an_amount_of_a_resource_of_that_name(engine):
    with engine.start(num_cpus=1, num_custom_resource=4):
        assert ray.cluster_resources()["CustomResource"] == 4


def test_storage_comes_from_the_environment_too(tmp_path):
    done = run_program("import ray; print(ray.init(num_cpus=1)['storage'])", RAY_STORAGE=f"file://{tmp_path}")
    assert done.stdout == f"{tmp_path}\n", done.stderr


def test_num_workers_are_there_before_anybody_asks(engine):
    with engine.start(num_cpus=4, num_workers=3):
        wait_until(lambda: ray.api.engine().rpc("stats")["pool"]["workers"]["IDLE"] == 3)


def test_redis_has_the_shards_and_the_password_that_it_was_given(engine):
    with engine.start(
        num_cpus=1, num_redis_shards=2, _redis_password="open-sesame", _redis_max_memory=10**8
    ) as context:
        wait_until(lambda: len(ray.api.engine().rpc("stats")["pids"]["redis"]) == 3)
        folder = context["session_dir"]
        wait_until(lambda: os.path.exists(folder + "/redis-2.sock"))
        with socket.socket(socket.AF_UNIX) as talk:
            talk.connect(folder + "/redis.sock")
            talk.sendall(b"*2\r\n$4\r\nAUTH\r\n$5\r\nwrong\r\n")
            assert talk.recv(100).startswith(b"-WRONGPASS")
            talk.sendall(b"*2\r\n$4\r\nAUTH\r\n$11\r\nopen-sesame\r\n")
            assert talk.recv(100) == b"+OK\r\n"


def test_plasma_directory_is_where_shared_memory_comes_from(engine, tmp_path):
    with engine.start(num_cpus=1, plasma_directory=str(tmp_path), object_store_memory=10**8):
        ray.put(bytes(10**6))
        store = ray.api.engine().rpc("stats")["pids"]["plasma_store"]
        assert any(to.startswith(f"{tmp_path}/") for to in descriptors(store).values())


def test_huge_pages_reach_the_store_which_says_if_there_are_none(engine, tmp_path):
    engine.stop()
    with pytest.raises(RuntimeError, match="huge"):
        ray.init(huge_pages=True, plasma_directory=str(tmp_path), num_cpus=1)
    assert not ray.is_initialized()


def test_a_setting_reaches_the_node_and_what_is_none_is_warned_of():
    done = run_program(
        """
        import ray
        ray.init(
            num_cpus=1,
            _system_config={"idle_workers_kept": 7, "max_direct_call_object_size": 1, "idle_worker_kept": 2},
            _driver_object_store_memory=10**8,
        )
        print(ray.api.engine().info["settings"])
        """
    )
    assert done.stdout == "{'idle_workers_kept': 7}\n"
    assert "'max_direct_call_object_size' is no setting here, and has no effect" in done.stderr
    assert "'idle_worker_kept' is no setting here, and has no effect; did you mean 'idle_workers_kept'?" in done.stderr
    assert "_driver_object_store_memory has no effect" in done.stderr


def test_logging_format_is_that_of_what_ray_says():
    done = run_program("import ray; ray.init(num_cpus=1, logging_format='<%(levelname)s> %(message)s')")
    assert "<INFO> Started ray" in done.stderr


def test_object_id_seed_makes_the_same_ids_in_each_run():
    program = """
        import ray, sys
        ray.init(num_cpus=1, object_id_seed=int(sys.argv[1]) if sys.argv[1:] else None, logging_level="error")
        f = ray.remote(lambda: 1)
        print(f.remote().hex(), ray.put(2).hex(), f.options(num_returns=2).remote()[1].hex())
    """
    runs = [
        run_program(program.replace("sys.argv", repr(argv))).stdout for argv in (["", "5"], ["", "5"], ["", "6"], [""])
    ]
    assert runs[0] == runs[1] and len(set(runs)) == 3 and all(len(run.split()) == 3 for run in runs)


def test_a_namespace_that_is_not_given_is_nobody_elses(engine):
    spaces = set()
    for _ in range(2):
        with engine.start(num_cpus=1):
            spaces.add(ray.get_runtime_context().namespace)
    with engine.start(num_cpus=1, namespace="mine"):
        spaces.add(ray.get_runtime_context().namespace)
    assert len(spaces) == 3 and "mine" in spaces
