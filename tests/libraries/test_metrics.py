"""ray.util.metrics: numbers of tasks, actors and drivers, for Prometheus."""

from __future__ import annotations

import contextlib
import pickle
import socket
import urllib.error
import urllib.request

import pytest

import ray
from ray.util.metrics import Counter, Gauge, Histogram, prometheus_text
from tests.wait import wait_until


def samples(text=None):
    """{name and tags: value}"""
    lines = (prometheus_text() if text is None else text).splitlines()
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if not line.startswith("#")}


def refusal(request):
    with pytest.raises(urllib.error.HTTPError) as raised:
        urllib.request.urlopen(request, timeout=10)
    with raised.value as answer:  # it holds the connection
        return answer.code


def test_what_tasks_and_the_driver_count_adds_up(ray_shared):
    counter = Counter("test_sum", "Adds up.", tag_keys=("who",))

    @ray.remote
    def count():
        counter.inc(2, {"who": "task"})

    counter.inc(tags={"who": "driver"})
    ray.get([count.remote() for _ in range(10)])
    found = samples()
    assert found['ray_test_sum_total{who="driver"}'] == 1
    assert found['ray_test_sum_total{who="task"}'] == 20


def test_an_actors_gauge_goes_with_it_and_its_count_stays(ray_shared):
    @ray.remote
    class Tank:
        def __init__(self):
            self.level = Gauge("test_level", tag_keys=("tank",)).set_default_tags({"tank": "a"})
            self.filled = Counter("test_filled")

        def fill(self, level):
            self.level.set(level)
            self.filled.inc()

    tank = Tank.remote()
    ray.get([tank.fill.remote(x) for x in (3, 4.5)])
    found = samples()
    assert found['ray_test_level{tank="a"}'] == 4.5 and found["ray_test_filled_total"] == 2
    ray.kill(tank)
    wait_until(lambda: 'ray_test_level{tank="a"}' not in samples())
    assert samples()["ray_test_filled_total"] == 2


def test_a_histogram_counts_in_buckets(ray_shared):
    histogram = Histogram("test_took", "Seconds.", boundaries=[0.1, 1, 10])
    for value in (0.05, 0.1, 0.5, 99):
        histogram.observe(value)
    found = samples()
    buckets = [found[f'ray_test_took_bucket{{le="{end}"}}'] for end in ("0.1", "1", "10", "+Inf")]
    assert buckets == [2, 3, 3, 4]
    assert found["ray_test_took_count"] == 4 and found["ray_test_took_sum"] == pytest.approx(99.65)


def test_what_is_measured_before_init_is_not_lost(engine):
    engine.stop()
    Counter("test_early").inc(3)
    engine.start(num_cpus=1)
    Counter("test_early").inc()
    assert samples()["ray_test_early_total"] == 4
    engine.stop()


def test_a_worker_that_ends_in_order_has_told_everything(ray_shared):
    counter = Counter("test_last_words")

    @ray.remote(max_calls=1)
    def once():
        counter.inc()

    ray.get([once.remote() for _ in range(3)])
    wait_until(lambda: samples().get("ray_test_last_words_total") == 3)


@pytest.mark.parametrize("ray_start", [{"_metrics_export_port": 0, "num_cpus": 1}], indirect=True)
def test_prometheus_reads_them_from_the_port(ray_start):
    port = ray_start["metrics_export_port"]
    Counter("test_served").inc()
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        found = samples(answer.read().decode())
    assert found["ray_test_served_total"] == 1 and found['ray_resources{Name="CPU",State="AVAILABLE"}'] == 1
    for path, host, status in (("/", None, 404), ("/metrics", "evil.example", 403)):
        request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers={"Host": host} if host else {})
        assert refusal(request) == status
    assert refusal(urllib.request.Request(f"http://127.0.0.1:{port}/metrics", data=b"x", method="POST")) == 405
    with contextlib.closing(socket.create_connection(("127.0.0.1", port))) as rude:
        rude.sendall(b"\0" * 100_000)
        rude.settimeout(60)
        with contextlib.suppress(ConnectionError):
            assert rude.recv(100) == b""
    assert samples()["ray_test_served_total"] == 1


def test_a_port_that_is_taken_is_an_error_that_says_so(engine):
    engine.stop()
    with contextlib.closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=f"_metrics_export_port={port}"):
            ray.init(num_cpus=1, _metrics_export_port=port)
    assert not ray.is_initialized()


def test_without_the_option_nothing_listens(ray_shared):
    assert ray.init(ignore_reinit_error=True)["metrics_export_port"] is None


def test_a_metric_is_described_and_can_be_pickled(ray_shared):
    histogram = Histogram("test_info", "d", boundaries=[1, 2], tag_keys=("a",))
    assert histogram.set_default_tags({"a": "x"}) is histogram
    info = {
        "name": "test_info",
        "description": "d",
        "tag_keys": ("a",),
        "default_tags": {"a": "x"},
        "boundaries": [1, 2],
    }
    assert histogram.info == pickle.loads(pickle.dumps(histogram)).info == info


def test_tags_are_checked(ray_shared):
    counter = Counter("test_tags", tag_keys=("a", "b")).set_default_tags({"a": "1"})
    with pytest.raises(ValueError, match=r"missing value for tag key\(s\): b"):
        counter.inc()
    with pytest.raises(ValueError, match="'c'"):
        counter.inc(tags={"b": "2", "c": "3"})
    with pytest.raises(TypeError, match="str"):
        counter.inc(tags={"b": 2})
    with pytest.raises(TypeError, match="dict"):
        counter.inc(tags=["b"])
    with pytest.raises(ValueError, match="'z'"):
        counter.set_default_tags({"z": "1"})
    counter.inc(tags={"b": "2"})
    assert samples()['ray_test_tags_total{a="1",b="2"}'] == 1


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda: Counter(""), ValueError, "name"),
        (lambda: Counter("1st"), ValueError, "1st"),
        (lambda: Counter("a b"), ValueError, "a b"),
        (lambda: Counter(7), TypeError, "name"),
        (lambda: Counter("c", 7), TypeError, "description"),
        (lambda: Counter("c", tag_keys="a"), TypeError, "tuple"),
        (lambda: Counter("c", tag_keys=(1,)), TypeError, "str"),
        (lambda: Counter("c", tag_keys=("a b",)), ValueError, "a b"),
        (lambda: Counter("c").inc(0), ValueError, "> 0"),
        (lambda: Counter("c").inc(-1), ValueError, "> 0"),
        (lambda: Counter("c").inc("1"), TypeError, "int or float"),
        (lambda: Counter("c").inc(True), TypeError, "int or float"),
        (lambda: Counter("c").inc(float("inf")), ValueError, "finite"),
        (lambda: Gauge("g").set("high"), TypeError, "int or float"),
        (lambda: Gauge("g").set(float("nan")), ValueError, "nan"),
        (lambda: Histogram("h"), ValueError, "boundaries"),
        (lambda: Histogram("h", boundaries=[]), ValueError, "boundaries"),
        (lambda: Histogram("h", boundaries=[0]), ValueError, "> 0"),
        (lambda: Histogram("h", boundaries=[2, 1]), ValueError, "above"),
        (lambda: Histogram("h", boundaries=["1"]), TypeError, "number"),
        (lambda: (Counter("test_twice"), Gauge("test_twice")), ValueError, "counter of this process already"),
    ],
)
def test_bad_arguments_are_named(make, error, says):
    with pytest.raises(error, match=says):
        make()
