"""The scripts of examples/cluster: parallel ssh, Slurm, Kubernetes, each on machines that are folders of this one."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.wait import wait_until

from .places import ROOT, Places, free_port

SCRIPTS = ROOT / "examples" / "cluster"
RESOURCES = 'python -c \'import ray; ray.init(logging_level="error"); print(ray.cluster_resources()["CPU"])\''


@pytest.fixture
def places(engine: object) -> Iterator[Places]:
    folder = Path(os.path.realpath("/tmp")) / f"ray-places-{os.getpid()}"
    places = Places(folder, ["a", "b", "c"])
    yield places
    places.close()


def test_a_cluster_is_started_and_stopped_from_a_hosts_file(places: Places) -> None:
    (places.home("a") / "hosts.txt").write_text("# two machines\nb\n\nsomebody@c  # by another name\n")
    said = places.run("a", f"{SCRIPTS}/start_cluster hosts.txt 127.0.0.1 {free_port()}")
    assert "b: It is node" in said and "somebody@c: It is node" in said, said
    for name in "bc":
        token = places.home(name) / ".ray" / "auth_token"
        assert token.read_text() == (places.home("a") / ".ray" / "auth_token").read_text()
        assert token.stat().st_mode & 0o777 == 0o600
    assert places.run("a", "ray status").count(" alive ") == 3
    assert float(places.run("a", RESOURCES)) == 3 * float(len(os.sched_getaffinity(0)))
    (places.home("a") / "only_c.txt").write_text("c\n")
    places.run("a", f"{SCRIPTS}/on_all only_c.txt ray stop")
    wait_until(lambda: places.run("a", "ray status").count(" alive ") == 2)
    said = places.run("a", f"{SCRIPTS}/stop_cluster hosts.txt")
    assert said.count("Stopped ray in") == 2 and "somebody@c: No cluster of this user runs" in said, said


def test_on_all_runs_scripts_everywhere_and_names_where_they_failed(places: Places) -> None:
    (places.home("a") / "hosts.txt").write_text("b\nc\nnowhere\n")
    (places.home("a") / "script").write_text('echo "it\'s $(basename $(dirname ~))"\n[ -e ~/here ] && exit 3 || true\n')
    (places.home("c") / "here").touch()
    said = places.run("a", f"{SCRIPTS}/on_all hosts.txt < script", status=1)
    assert "b: it's b\n" in said and "c: it's c\n" in said and "nowhere: nowhere: no such machine" in said
    assert re.search(r"failed on (c \(3\) nowhere \(255\)|nowhere \(255\) c \(3\))", said), said
    (places.home("a") / "none.txt").write_text("# nobody\n")
    assert "names no machine" in places.run("a", f"{SCRIPTS}/on_all none.txt true", status=2)


def test_a_folder_is_copied_to_all(places: Places) -> None:
    (places.home("a") / "hosts.txt").write_text("b\nc\n")
    (places.home("a") / "project").mkdir()
    (places.home("a") / "project" / "data").write_bytes(bytes(range(256)) * 100)
    places.run("a", f"{SCRIPTS}/copy_to_all hosts.txt project")
    for name in "bc":
        assert (places.home(name) / "project" / "data").read_bytes() == bytes(range(256)) * 100
    assert "expected a folder below" in places.run("a", f"{SCRIPTS}/copy_to_all hosts.txt /etc", status=2)


@pytest.mark.parametrize("status", [0, 7])
def test_a_job_of_slurm_is_a_cluster_that_ends_with_its_program(places: Places, status: int) -> None:
    program = places.home("a") / "program.py"
    program.write_text(
        "import ray, sys\nray.init(logging_level='error')\n"
        "@ray.remote\ndef f(): return 1\n"
        "print('sum', sum(ray.get([f.remote() for _ in range(10)])), ray.cluster_resources()['CPU'])\n"
        f"sys.exit({status})\n"
    )
    job = {
        "SLURM_JOB_NODELIST": "a,b,c",
        "SLURM_JOB_ID": "17",
        "SLURM_CPUS_PER_TASK": "2",
        "RAY_PORT": str(free_port()),
    }
    said = places.run("a", f"{SCRIPTS}/slurm.sh python program.py", status, **job)
    assert "sum 10 6.0" in said, said
    for name in "abc":
        assert not os.listdir(places.root / name / "t"), name


def test_a_job_of_slurm_ends_at_once_if_a_machine_can_not_join(places: Places) -> None:
    job = {"SLURM_JOB_NODELIST": "a,nowhere", "SLURM_JOB_ID": "17", "RAY_PORT": str(free_port())}
    said = places.run("a", f"{SCRIPTS}/slurm.sh true", 1, **job)
    assert "no such machine" in said and "has ended too early" in said, said


def manifests() -> dict[str, Any]:
    yaml = pytest.importorskip("yaml")
    documents = yaml.safe_load_all((SCRIPTS / "kubernetes.yaml").read_text())
    return {document["metadata"]["name"] + "/" + document["kind"]: document for document in documents}


def test_the_manifests_fit_together() -> None:
    found = manifests()
    service, head, node = (found[name] for name in ("ray-head/Service", "ray-head/Deployment", "ray-node/Deployment"))
    assert len(found) == 3
    assert service["spec"]["selector"].items() <= head["spec"]["template"]["metadata"]["labels"].items()
    for deployment in (head, node):
        labels = deployment["spec"]["template"]["metadata"]["labels"]
        assert deployment["spec"]["selector"]["matchLabels"] == labels
        (container,) = deployment["spec"]["template"]["spec"]["containers"]
        settings = {"RAY_HEAD_RESTART_WAIT_S"} if deployment is head else set()
        assert {variable["name"] for variable in container["env"]} == {"POD_IP", "RAY_AUTH_TOKEN", *settings}
        assert {"startupProbe", "livenessProbe"} <= set(container)
        assert container["resources"]["requests"]["memory"] == container["resources"]["limits"]["memory"]
    port = service["spec"]["ports"][0]["port"]
    (container,) = head["spec"]["template"]["spec"]["containers"]
    assert f"--port={port}" in container["command"]
    (container,) = node["spec"]["template"]["spec"]["containers"]
    assert f"--address={service['metadata']['name']}:{port}" in container["command"]


def test_the_containers_of_the_manifests_make_a_cluster_and_their_probes_tell_when_it_has_gone(places: Places) -> None:
    found = manifests()
    port = free_port()
    environment = {"RAY_AUTH_TOKEN": "a token for tests, long enough"}

    def container(name: str) -> dict[str, Any]:
        (found_one,) = found[name]["spec"]["template"]["spec"]["containers"]
        return dict(found_one)

    def shell(command: list[str]) -> str:
        text = " ".join(command).replace("$(POD_IP)", "127.0.0.1")
        return text.replace("ray-head:6379", f"127.0.0.1:{port}").replace("6379", str(port))

    pods = {"a": container("ray-head/Deployment"), "b": container("ray-node/Deployment")}
    node = shell(pods["b"]["command"])
    assert "can't be joined" in places.run("b", node, 1, **environment), "it ends, to be started again"
    running: dict[str, subprocess.Popen[str]] = {}
    try:
        (wait,) = (one["value"] for one in pods["a"]["env"] if one["name"] == "RAY_HEAD_RESTART_WAIT_S")
        environment["RAY_HEAD_RESTART_WAIT_S"] = wait
        for name, pod in pods.items():
            for probe in ("startupProbe", "livenessProbe"):
                places.run(name, shell(pod[probe]["exec"]["command"]), 1)
            running[name] = subprocess.Popen(
                ["bash", "-l", "-c", "exec " + shell(pod["command"])],
                stdout=subprocess.PIPE,
                text=True,
                env={"HOME": str(places.home(name)), "RAY_TMPDIR": str(places.root / name / "t"), **environment},
            )
            stdout = running[name].stdout
            assert stdout is not None
            for line in stdout:
                if line.startswith("Programs of this user"):
                    break
            for probe in ("startupProbe", "livenessProbe"):
                places.run(name, shell(pod[probe]["exec"]["command"]))
        assert float(places.run("a", RESOURCES)) == 4
        running["a"].terminate()  # what Kubernetes sends
        assert running["a"].wait(60) == 0
        running["b"].wait(60)  # a node without a head ends, to be started again: Kubernetes does so whatever its status
    finally:
        for process in running.values():
            if process.poll() is None:
                process.terminate()
            process.communicate(timeout=60)
