"""ray.timeline: what ran when, in the Chrome trace format."""

from __future__ import annotations

import json
import os
import time

import pytest

import ray
from ray._timeline import trace_of


def calls(trace, name=None):
    return [event for event in trace if event["ph"] == "X" and (name is None or event["name"] == name)]


def test_each_task_and_actor_call_is_an_event_with_its_worker_and_its_times(ray_shared):
    @ray.remote
    def nap(s):
        time.sleep(s)
        return os.getpid()

    @ray.remote
    class Napper:
        def doze(self):
            time.sleep(0.02)
            return os.getpid()

    before = time.time()
    pid = ray.get(nap.remote(0.05))
    napper = Napper.remote()
    actor_pid = ray.get(napper.doze.remote())
    after = time.time()

    trace = ray.timeline()
    (task,) = [e for e in calls(trace, "nap") if e["ts"] >= before * 1e6]
    assert task["tid"] == pid and task["cat"] == "task" and task["args"]["state"] == "FINISHED"
    assert before * 1e6 <= task["ts"] and task["ts"] + task["dur"] <= after * 1e6
    assert 0.05e6 <= task["dur"] < (after - before) * 1e6
    (call,) = [e for e in calls(trace, "Napper.doze") if e["ts"] >= before * 1e6]
    assert call["tid"] == actor_pid and call["cat"] == "actor_task"
    assert call["args"]["actor_id"] == napper._actor_id.hex() and call["dur"] >= 0.02e6
    named = {e["tid"] for e in trace if e["ph"] == "M" and e["name"] == "thread_name"}
    assert {pid, actor_pid} <= named


def test_a_failed_task_says_why(ray_shared):
    @ray.remote
    def fail():
        raise KeyError("lost")

    with pytest.raises(KeyError):
        ray.get(fail.remote())
    event = calls(ray.timeline(), "fail")[-1]
    assert event["args"]["state"] == "FAILED" and "KeyError: 'lost'" in event["args"]["error"]


def test_a_file_holds_the_same_trace(ray_shared, tmp_path):
    @ray.remote
    def marked():
        return None

    ray.get(marked.remote())
    path = tmp_path / "trace.json"
    assert ray.timeline(path) is None
    assert calls(json.loads(path.read_text()), "marked")
    assert json.loads(path.read_text())[0]["ph"] == "M"


@pytest.mark.parametrize("filename", [17, b"trace.json", True])
def test_a_filename_is_a_path(ray_shared, filename):
    with pytest.raises(TypeError, match="filename"):
        ray.timeline(filename)


def test_without_a_session_there_is_no_timeline(engine):
    engine.stop()
    with pytest.raises(ray.exceptions.RaySystemError, match=r"ray\.init"):
        ray.timeline()


def test_what_never_ran_is_not_drawn():
    ran = {"task_id": "a", "name": "f", "state": "FINISHED", "pid": 7, "times": {"RUNNING": 1.0, "FINISHED": 1.5}}
    cancelled = {"task_id": "b", "name": "f", "state": "CANCELLED", "times": {"CANCELLED": 2.0}}
    far = {**ran, "task_id": "c", "worker": "00000001", "times": {"RUNNING": 1.1, "FINISHED": 1.5}}

    class Places:
        def of(self, tag):
            return ("cd" * 16, "1.2.3.5") if tag else ("ab" * 16, "1.2.3.4")

    trace = trace_of([cancelled, ran, far], Places())
    event, other = calls(trace)
    assert event["tid"] == other["tid"] and event["pid"] != other["pid"], "the same pid on two nodes"
    named = {row["pid"]: row["args"]["name"] for row in trace if row["name"] == "process_name"}
    assert named == {event["pid"]: "node 1.2.3.4 abababab", other["pid"]: "node 1.2.3.5 cdcdcdcd"}
    assert (event["id"], event["ts"], event["dur"]) == ("a", 1e6, 0.5e6)
