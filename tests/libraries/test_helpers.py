"""ray.util.as_completed and map_unordered, and the small public names of ray.util."""

from __future__ import annotations

import itertools
import socket
import threading
import warnings

import pytest

import ray
import ray.util
from ray.util.annotations import Deprecated, DeveloperAPI, PublicAPI, RayDeprecationWarning


@ray.remote
def double(x):
    return 2 * x


@ray.remote
def fail():
    raise KeyError("k")


@ray.remote(max_concurrency=2)
class Gate:
    def __init__(self):
        self.opened = threading.Event()

    def wait(self):
        self.opened.wait()

    def open(self):
        self.opened.set()


@pytest.mark.parametrize("chunk_size", [1, 3, 100])
def test_as_completed_gives_everything_once(ray_shared, chunk_size):
    refs = [double.remote(i) for i in range(30)]
    assert sorted(ray.util.as_completed(refs, chunk_size=chunk_size)) == [2 * i for i in range(30)]
    assert set(ray.util.as_completed(refs, chunk_size=chunk_size, yield_obj_refs=True)) == set(refs)
    assert list(ray.util.as_completed([])) == []


def test_as_completed_gives_what_is_ready_first_first(ray_shared):
    gate = Gate.remote()
    results = ray.util.as_completed([gate.wait.remote(), double.remote(1)])
    assert next(results) == 2
    gate.open.remote()
    assert next(results) is None
    with pytest.raises(StopIteration):
        next(results)


def test_an_error_is_raised_in_its_turn_or_left_in_the_ref(ray_shared):
    with pytest.raises(KeyError):
        list(ray.util.as_completed([fail.remote()]))
    (ref,) = ray.util.as_completed([fail.remote()], yield_obj_refs=True)
    with pytest.raises(KeyError):
        ray.get(ref)


def test_map_unordered_gives_all_results(ray_shared):
    assert sorted(ray.util.map_unordered(double, range(50), backpressure_size=7)) == [2 * i for i in range(50)]
    assert sorted(ray.util.map_unordered(double, range(5), backpressure_size=None)) == [0, 2, 4, 6, 8]
    assert list(ray.util.map_unordered(double, [])) == []
    refs = list(ray.util.map_unordered(double, [1, 2], yield_obj_refs=True))
    assert sorted(ray.get(refs)) == [2, 4]


def test_map_unordered_reads_no_further_ahead_than_it_is_allowed(ray_shared):
    read = []

    def items():
        for i in itertools.count():
            read.append(i)
            yield i

    results = ray.util.map_unordered(double, items(), backpressure_size=4, chunk_size=1)
    assert read == []
    first = [next(results) for _ in range(10)]
    assert len(set(first)) == 10
    assert len(read) <= 14


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda: ray.util.as_completed([], chunk_size=0), ValueError, "chunk_size=0"),
        (lambda: ray.util.as_completed([], chunk_size="1"), TypeError, "chunk_size='1'"),
        (lambda: ray.util.map_unordered(len, []), TypeError, "fn="),
        (lambda: ray.util.map_unordered(double, [], backpressure_size=0), ValueError, "backpressure_size=0"),
        (lambda: ray.util.map_unordered(double, [], backpressure_size=1.5), TypeError, r"backpressure_size=1\.5"),
    ],
)
def test_wrong_arguments_are_named_at_once(call, error, says):
    with pytest.raises(error, match=says):
        call()


def test_the_address_of_the_node(ray_shared, engine):
    address = ray.util.get_node_ip_address()
    assert address == ray.nodes()[0]["NodeManagerAddress"]
    engine.stop()
    socket.inet_aton(ray.util.get_node_ip_address())
    assert ray.util.get_node_ip_address("127.0.0.1:53") == "127.0.0.1"
    with pytest.raises(ValueError, match="host:port"):
        ray.util.get_node_ip_address("nonsense")


def test_disconnect_ends_the_session_and_does_nothing_without_one(engine):
    engine.start(num_cpus=1)
    ray.util.disconnect()
    assert not ray.is_initialized()
    ray.util.disconnect()
    engine.stop()


# --- annotations -----------------------------------------------------------------------------------------------------


def test_annotations_leave_what_they_annotate_as_it_is():
    @PublicAPI
    def f(x):
        "Adds one."
        return x + 1

    @PublicAPI(stability="alpha", api_group="Group")
    class C:
        """A class.

        With text.
        """

    @DeveloperAPI
    def g():
        return 2

    assert (f(1), g(), C().__class__) == (2, 2, C)
    assert f.__doc__ == "Adds one."
    assert C.__doc__.startswith("A class.\n\nWith text.\n\n")
    assert "alpha" in C.__doc__
    assert "developers" in g.__doc__
    with pytest.raises(ValueError, match="stability='gamma'"):
        PublicAPI(stability="gamma")
    with pytest.raises(TypeError, match="PublicAPI is used as"):
        PublicAPI("alpha")


def test_deprecated_warns_if_asked():
    @Deprecated(message="Use g.", warning=True)
    def f(x):
        return x

    @Deprecated(warning=True)
    class C:
        def __init__(self, x):
            self.x = x

    @Deprecated
    def quiet():
        return 3

    with pytest.warns(RayDeprecationWarning, match="f: .*Use g"):
        assert f(1) == 1
    with pytest.warns(RayDeprecationWarning, match="C: "):
        assert C(2).x == 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert quiet() == 3
    assert "Deprecated" in quiet.__doc__


# --- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ray.util.__all__)
def test_ray_util_has_the_name(name):
    assert getattr(ray.util, name) is not None
    assert name in dir(ray.util)


def test_log_once_is_true_once(monkeypatch):
    from ray.util import debug

    monkeypatch.setattr(debug, "_said", {})
    assert [ray.util.log_once("a"), ray.util.log_once("a"), ray.util.log_once("b")] == [True, False, True]
    monkeypatch.setattr(debug, "_periodic", False)
    ray.util.enable_periodic_logging()
    assert not ray.util.log_once("a")
    debug._said["a"] -= 61
    assert ray.util.log_once("a")
    monkeypatch.setattr(debug, "_disabled", False)
    ray.util.disable_log_once_globally()
    assert not ray.util.log_once("c")
