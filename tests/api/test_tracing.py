"""_tracing_startup_hook: spans of OpenTelemetry whose context follows calls."""

from __future__ import annotations

import json
import sys

import pytest

import ray
from ray._core import tracing

HOOK = """
import json, os, pathlib
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter

class ToFile(SpanExporter):
    def export(self, spans):
        with open(pathlib.Path(__file__).parent / f"{os.getpid()}.spans", "a") as file:
            for span in spans:
                file.write(span.to_json(indent=None) + "\\n")

def setup():
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(ToFile()))
    trace._TRACER_PROVIDER_SET_ONCE._done = False  # a process of tests has several sessions
    trace.set_tracer_provider(provider)

def broken():
    raise RuntimeError("the hook is broken")
"""


@pytest.fixture
def hook(tmp_path, monkeypatch):
    pytest.importorskip("opentelemetry.sdk.trace")
    (tmp_path / "spans_of_a_test.py").write_text(HOOK)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    sys.modules.pop("spans_of_a_test", None)


def spans(folder):
    """{name: span}"""
    lines = [line for file in folder.glob("*.spans") for line in file.read_text().splitlines()]
    good = [span for span in map(json.loads, lines) if span["status"]["status_code"] != "ERROR"]
    return {span["name"]: span for span in good}


def test_a_calls_spans_are_parent_and_child_through_tasks_and_actors(engine, hook):
    engine.start(num_cpus=2, _tracing_startup_hook="spans_of_a_test:setup")

    @ray.remote
    def inner(x, *, y=1):
        return x + y

    @ray.remote
    def outer(x):
        return ray.get(inner.remote(x, y=2))

    @ray.remote
    class Actor:
        def plain(self, x):
            return x

        async def later(self):
            return "later"

    @ray.remote
    def yields(n):
        yield from range(n)

    actor = Actor.remote()
    assert ray.get(outer.remote(1)) == 3
    assert ray.get([actor.plain.remote(5), actor.later.remote()]) == [5, "later"]
    assert [ray.get(ref) for ref in yields.remote(3)] == [0, 1, 2]
    with pytest.raises(TypeError, match="inner"):
        inner.remote(1, z=2)
    engine.stop()

    found = spans(hook)
    for name in ("outer", "inner", "Actor.plain", "Actor.later", "yields"):
        sent, ran = found[f"{name} ray.remote"], found[f"{name} ray.remote_worker"]
        assert ran["parent_id"] == sent["context"]["span_id"]
        assert ran["context"]["trace_id"] == sent["context"]["trace_id"]
        assert (sent["kind"], ran["kind"]) == ("SpanKind.PRODUCER", "SpanKind.CONSUMER")
    assert found["inner ray.remote"]["parent_id"] == found["outer ray.remote_worker"]["context"]["span_id"]
    assert found["outer ray.remote_worker"]["attributes"]["ray.task_id"]
    assert not tracing.on


@pytest.mark.parametrize(
    ("name", "error", "says"),
    [
        ("no_such_module:setup", ImportError, "no_such_module"),
        ("spans_of_a_test:nothing", ValueError, "nothing"),
        ("spans_of_a_test:broken", RuntimeError, "the hook is broken"),
    ],
)
def test_a_hook_that_does_not_work_starts_nothing(engine, hook, name, error, says):
    engine.stop()
    with pytest.raises(error, match=says):
        engine.start(num_cpus=1, _tracing_startup_hook=name)
    assert not ray.is_initialized() and not tracing.on


def test_without_opentelemetry_that_is_said(engine, monkeypatch):
    engine.stop()
    monkeypatch.setitem(sys.modules, "opentelemetry.trace", None)
    with pytest.raises(ImportError, match="opentelemetry-sdk"):
        ray.init(num_cpus=1, _tracing_startup_hook="os:getcwd")
    assert not ray.is_initialized()
