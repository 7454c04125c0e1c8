"""What `ray.get` raises, and how it reads."""

from __future__ import annotations

import pickle

import pytest

import ray
from ray.exceptions import RayError, RayTaskError


class Custom(Exception):
    def __init__(self, code, *, hint):
        super().__init__(code)
        self.code = code
        self.hint = hint


class Unpicklable(Exception):
    def __init__(self):
        import threading

        super().__init__("can't travel")
        self.lock = threading.Lock()


@ray.remote
def fail(kind):
    if kind == "custom":
        raise Custom(5, hint="h")
    if kind == "unpicklable":
        raise Unpicklable
    if kind == "exit":
        raise SystemExit(4)
    if kind == "chain":
        try:
            {}["inner"]
        except KeyError as error:
            raise ValueError("outer") from error
    raise kind("text")


@pytest.mark.parametrize("kind", [ValueError, KeyError, ZeroDivisionError, OSError, StopIteration, AssertionError])
def test_the_error_is_a_ray_task_error_and_of_the_cause_s_class(ray_shared, kind):
    with pytest.raises(kind) as caught:
        ray.get(fail.remote(kind))
    assert isinstance(caught.value, RayTaskError)
    assert isinstance(caught.value, RayError)
    assert isinstance(caught.value.cause, kind)


def test_attributes_of_the_cause_can_be_read(ray_shared):
    with pytest.raises(Custom) as caught:
        ray.get(fail.remote("custom"))
    assert caught.value.cause.code == 5
    assert caught.value.cause.hint == "h"


def test_an_error_that_cannot_be_pickled_still_arrives_as_text(ray_shared):
    with pytest.raises(RayTaskError, match="can't travel"):
        ray.get(fail.remote("unpicklable"))


def test_the_text_shows_the_user_s_frames_the_chain_and_no_internal_frame(ray_shared):
    with pytest.raises(ValueError, match="outer") as caught:
        ray.get(fail.remote("chain"))
    text = str(caught.value)
    assert "in fail" in text and '{}["inner"]' in text
    assert "KeyError: 'inner'" in text and "direct cause" in text
    assert "/ray/_core/" not in text and "execute.pxi" not in text


def test_the_driver_s_traceback_has_no_frames_of_the_engine(ray_shared, monkeypatch):
    import traceback

    with pytest.raises(ValueError) as caught:
        ray.get(fail.remote(ValueError))
    text = "".join(traceback.format_exception(caught.value))
    assert "_core" not in text and "ray.get(fail.remote(ValueError))" in text

    monkeypatch.setenv("RAY_INTERNAL_FRAMES", "1")
    with pytest.raises(ValueError) as caught:
        ray.get(fail.remote(ValueError))
    assert any("_core" in frame.filename for frame in traceback.extract_tb(caught.value.__traceback__))


def test_the_text_names_the_function_and_the_process(ray_shared):
    with pytest.raises(ValueError, match=r"fail.*pid=\d+"):
        ray.get(fail.remote(ValueError))


def test_an_error_passed_through_tasks_stays_the_first_one(ray_shared):
    @ray.remote
    def outer():
        return ray.get(fail.remote(KeyError))

    with pytest.raises(KeyError) as caught:
        ray.get(outer.remote())
    assert isinstance(caught.value, RayTaskError)


def test_an_error_may_be_a_value(ray_shared):
    error = ray.get(ray.put(ValueError("just a value")))
    assert type(error) is ValueError


def test_an_error_can_be_pickled_and_raised_again(ray_shared):
    with pytest.raises(ValueError) as caught:
        ray.get(fail.remote(ValueError))
    again = pickle.loads(pickle.dumps(caught.value))
    assert isinstance(again, ValueError) and isinstance(again, RayTaskError)


def test_the_same_failed_ref_raises_each_time(ray_shared):
    ref = fail.remote(ValueError)
    for _ in range(3):
        with pytest.raises(ValueError, match="text"):
            ray.get(ref)


@pytest.mark.parametrize(
    "older, newer",
    [
        ("RayTimeoutError", "GetTimeoutError"),
        ("RayActorError", "RayActorError"),
        ("RayTaskError", "RayTaskError"),
    ],
)
def test_older_names(older, newer):
    assert getattr(ray.exceptions, older) is getattr(ray.exceptions, newer)
