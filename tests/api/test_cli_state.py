"""ray list, get, summary, memory, timeline and metrics: in a process outside the session."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

import ray
from ray import cli
from ray.cli.state import parse_filter, table


@pytest.fixture
def command(ray_shared, capsys):
    """Runs a command, in this process but over a connection of its own; returns (status, what it printed)."""
    folder = ray.get_runtime_context().gcs_address

    def run(*arguments):
        status = cli.main([*arguments, "--address", folder])
        printed = capsys.readouterr()
        return status, printed.out if status == 0 else printed.err

    return run


@ray.remote
def listed():
    return None


def test_list_and_get_show_tasks(command):
    ref = listed.remote()
    ray.get(ref)
    status, out = command("list", "tasks", "--filter", "name=listed", "--filter", "state!=RUNNING")
    assert status == 0 and "TASK_ID" in out and ref.task_id().hex() in out and "FINISHED" in out
    status, out = command("list", "tasks", "-f", "name=nobody")
    assert status == 0 and out.startswith("0 tasks, 0 of them shown")
    status, out = command("list", "tasks", "--format", "json", "--detail")
    assert ref.task_id().hex() in [row["task_id"] for row in json.loads(out)]
    status, out = command("get", "tasks", ref.task_id().hex())
    assert status == 0 and "func_or_class_name" in out and "listed" in out
    status, out = command("get", "task", ref.task_id().hex(), "--format", "json")
    assert json.loads(out)[0]["state"] == "FINISHED"


@pytest.mark.parametrize("resource", ["actors", "objects", "nodes", "workers", "jobs"])
def test_each_kind_of_thing_can_be_listed(command, resource):
    status, out = command("list", resource, "--detail")
    assert status == 0 and resource in out.splitlines()[0]


def test_summary_counts(command):
    ray.get([listed.remote() for _ in range(5)])
    status, out = command("summary", "tasks")
    assert status == 0 and "listed" in out and "FINISHED: " in out
    assert command("summary", "actors")[0] == 0 and command("summary", "objects", "--format", "json")[0] == 0


def test_memory_accounts_for_what_is_in_the_store(command):
    big = ray.put(np.zeros(3 * 2**20, np.uint8))
    status, out = command("memory")
    assert status == 0 and "In the object store: 3 MiB in 1 objects" in out
    (line,) = [line for line in out.splitlines() if big.hex() in line]
    assert "LOCAL_REFERENCE" in line and "driver" in line and "owner" in line
    status, out = command("memory", "--group-by", "PID", "--stats-only")
    assert "3 MiB" in out and big.hex() not in out
    status, out = command("memory", "--group-by", "REFERENCE_TYPE")
    assert "LOCAL_REFERENCE" in out


def test_memory_names_the_line_that_made_each_object(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        "import ray, subprocess, sys\n"
        "import numpy as np\n"
        "ray.init(num_cpus=1)\n"
        "@ray.remote\n"
        "def make():\n"
        "    return np.zeros(2**20, np.uint8)\n"
        "here = ray.put(np.zeros(2**20, np.uint8))\n"
        "there = make.remote()\n"
        "ray.wait([there])\n"
        "folder = ray.get_runtime_context().gcs_address\n"
        "subprocess.run([sys.executable, '-m', 'ray.cli', 'memory', '--address', folder], check=True)\n"
    )
    done = subprocess.run(
        [sys.executable, str(program)],
        capture_output=True,
        text=True,
        timeout=60,
        env={**__import__("os").environ, "RAY_record_ref_creation_sites": "1"},
    )
    assert done.returncode == 0, done.stderr
    made = [line for line in done.stdout.splitlines() if "program.py" in line]
    assert any("program.py:7 in <module>" in line for line in made), done.stdout
    assert any("program.py:8 in <module>" in line for line in made), done.stdout


def test_timeline_writes_a_file(command, tmp_path):
    ray.get(listed.remote())
    path = tmp_path / "trace.json"
    status, out = command("timeline", "-o", str(path))
    assert status == 0 and str(path) in out
    assert "listed" in [event["name"] for event in json.loads(path.read_text())]


def test_metrics_prints_those_of_the_system(command):
    ray.get(listed.remote())
    status, out = command("metrics")
    assert status == 0 and 'ray_tasks{Name="listed",State="FINISHED"}' in out
    assert 'ray_resources{Name="CPU",State="AVAILABLE"}' in out and "ray_object_store_used_memory" in out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("list", "tasks", "-f", "state"), "COLUMN=VALUE"),
        (("list", "tasks", "-f", "color=red"), "color"),
        (("list", "tasks", "--limit", "0"), "limit"),
        (("get", "tasks", "00"), "no task with id '00'"),
        (("timeline", "-o", "/nowhere/trace.json"), "/nowhere/trace.json"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(command, arguments, says):
    status, err = command(*arguments)
    assert status == 1 and says in err and err.count("\n") == 1


def test_without_a_session_that_is_said(capsys):
    assert cli.main(["list", "tasks", "--address", "/nowhere"]) == 1
    assert "/nowhere" in capsys.readouterr().err


def test_filters_are_read():
    assert parse_filter("state=RUNNING") == ("state", "=", "RUNNING")
    assert parse_filter("state != RUNNING") == ("state", "!=", "RUNNING")
    assert parse_filter("name=a=b") == ("name", "=", "a=b")


def test_a_table_leaves_out_what_is_empty():
    assert list(table([{"a": 1, "b": None}, {"a": 22, "b": ""}])) == ["A", "1", "22"]
    assert list(table([])) == []
