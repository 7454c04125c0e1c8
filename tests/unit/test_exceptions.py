"""Errors as values: what a remote exception is, says, and survives."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
import threading
from typing import Any

import cloudpickle
import pytest

from ray import exceptions
from ray._native import serialization
from ray._serialization import tracebacks

ALL = sorted(
    {c for c in vars(exceptions).values() if isinstance(c, type) and issubclass(c, exceptions.RayError)},
    key=lambda c: c.__name__,
)
SYSTEM = [c for c in ALL if c is not exceptions.RayTaskError]


def raised(error: BaseException) -> BaseException:
    """error, as if a user's function had raised it."""

    def users_function() -> None:
        raise error

    try:
        users_function()
    except BaseException as caught:
        return caught
    raise AssertionError


def send(error: BaseException, function_name: str | None = "f", **kwargs: Any) -> Any:
    """What ray.get would raise for error."""
    encoded = serialization.encode_error(raised(error), function_name, **kwargs)
    assert encoded.kind >= 64
    return serialization.decode(encoded.to_bytes(), encoded.refs)


class TwoArguments(ValueError):
    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{code}: {text}")
        self.code = code


class OwnSlots(Exception):
    __slots__ = ("level",)


class OwnNew(Exception):
    def __new__(cls, one: int, two: int) -> OwnNew:
        return super().__new__(cls, one, two)

    def __init__(self, one: int, two: int) -> None:
        super().__init__(one)
        self.two = two

    def sum(self) -> int:
        return self.args[0] + self.two


class NoSubclasses(Exception):
    def __init_subclass__(cls) -> None:
        raise RuntimeError("final")


# ---- errors of the system --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", SYSTEM, ids=lambda c: c.__name__)
def test_every_error_can_be_made_told_copied_and_pickled(cls: type[exceptions.RayError]) -> None:
    facts = {name: f"<{name}>" for name in cls.FACTS}
    error = cls("the very thing that happened", cause=ValueError("deeper"), **facts)
    copies = [
        error,
        pickle.loads(pickle.dumps(error)),
        cloudpickle.loads(cloudpickle.dumps(error)),
        copy.deepcopy(error),
        serialization.decode(serialization.encode([error]).to_bytes())[0],
        send(error, None),
    ]
    for each in copies:
        assert type(each) is cls
        assert each.args == ("the very thing that happened",)
        text = str(each)
        for part in ("the very thing that happened", "ValueError: deeper", *facts.values()):
            assert part in text
        for name, fact in facts.items():
            assert getattr(each, name) == fact
        assert isinstance(each.__cause__, ValueError)
    assert cls().args == (cls.HAPPENED,)
    assert "An error occurred in ray" not in str(cls()) or cls is exceptions.RayError


def test_ids_read_as_hex_and_unknown_facts_are_refused() -> None:
    error = exceptions.ActorDiedError("gone", actor_id=b"\x01\xff", pid=7)
    assert (error.actor_id, error.pid, error.name) == ("01ff", 7, None)
    with pytest.raises(TypeError, match="no fact 'colour'"):
        exceptions.ActorDiedError("gone", colour="red")
    with pytest.raises(AttributeError):
        _ = error.colour


def test_the_tree_is_the_one_that_programs_catch() -> None:
    from ray.exceptions import (
        ActorDiedError,
        ActorUnavailableError,
        GetTimeoutError,
        ObjectFreedError,
        ObjectLostError,
        ObjectReconstructionFailedError,
        ObjectReconstructionFailedLineageEvictedError,
        ObjectReconstructionFailedMaxAttemptsExceededError,
        OwnerDiedError,
        RayActorError,
        RayTimeoutError,
    )

    assert RayTimeoutError is GetTimeoutError
    assert issubclass(GetTimeoutError, TimeoutError)
    assert issubclass(ActorDiedError, RayActorError) and issubclass(ActorUnavailableError, RayActorError)
    for cls in (ObjectFreedError, OwnerDiedError, ObjectReconstructionFailedError):
        assert issubclass(cls, ObjectLostError)
    for cls in (
        ObjectReconstructionFailedMaxAttemptsExceededError,
        ObjectReconstructionFailedLineageEvictedError,
    ):
        assert issubclass(cls, ObjectReconstructionFailedError)
    assert all(issubclass(cls, Exception) for cls in ALL)


def test_a_system_error_that_cannot_be_pickled_keeps_its_text() -> None:
    error = send(exceptions.WorkerCrashedError("pid 5 died", cause=ValueError(threading.Lock())), None)
    assert isinstance(error, exceptions.RaySystemError)
    assert "pid 5 died" in str(error)
    error = send(ValueError("not even one of ours"), None)
    assert isinstance(error, exceptions.RaySystemError)
    assert "ValueError: not even one of ours" in str(error)


def test_importing_the_errors_imports_nothing_else_of_ray() -> None:
    program = """
import sys
import ray.exceptions
ours = {m for m in sys.modules if m == 'ray' or m.startswith('ray.')}
assert ours == {'ray', 'ray.exceptions'}, ours
assert not {"numpy", "cloudpickle", "asyncio", "traceback", "typing"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", program], check=True)


# ---- errors of user code ---------------------------------------------------------------------------------------------

CAUSES = [
    ValueError("bad"),
    KeyError("k"),
    TwoArguments(5, "five"),
    OwnNew(1, 2),
    FileNotFoundError(2, "No such file", "/x"),
    UnicodeDecodeError("utf-8", b"\xff", 0, 1, "no"),
    StopIteration(3),
    ImportError("no m", name="m"),
    ZeroDivisionError(),
    AssertionError(),
    exceptions.GetTimeoutError("late"),
    exceptions.ActorDiedError("gone", actor_id="ab"),
]


@pytest.mark.parametrize("cause", CAUSES, ids=lambda c: type(c).__name__)
def test_a_task_error_is_an_instance_of_what_was_raised(cause: Exception) -> None:
    error = send(cause)
    for each in (error, serialization.decode(serialization.encode({"e": error}).to_bytes())["e"]):
        assert isinstance(each, exceptions.RayTaskError)
        assert isinstance(each, type(cause))
        assert type(each).__name__ == f"RayTaskError({type(cause).__name__})"
        assert each.args == cause.args
        assert type(each.cause) is type(cause)
        assert each.__cause__ is each.cause
        assert each.cause.args == cause.args
        assert "ray::f()" in str(each)
        assert f"pid={os.getpid()}" in str(each)
        with pytest.raises(type(cause)):
            raise each


def test_attributes_and_methods_of_the_cause_are_the_errors_own() -> None:
    assert send(TwoArguments(5, "five")).code == 5
    assert send(OwnNew(1, 2)).sum() == 3
    error = send(FileNotFoundError(2, "No such file", "/x"))
    assert (error.errno, error.filename) == (2, "/x")
    assert send(UnicodeDecodeError("utf-8", b"\xff", 0, 1, "no")).object == b"\xff"
    slotted = OwnSlots()
    slotted.level = 3
    assert send(slotted).level == 3
    with pytest.raises(AttributeError):
        _ = send(ValueError()).nothing


@pytest.mark.parametrize("cause", [SystemExit(3), KeyboardInterrupt(), NoSubclasses("final")], ids=repr)
def test_what_must_not_be_inherited_from_is_the_cause_only(cause: BaseException) -> None:
    error = send(cause)
    assert type(error) is exceptions.RayTaskError
    assert type(error.cause) is type(cause)
    assert type(cause).__name__ in str(error)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="exception groups came with Python 3.11")
def test_an_exception_group_can_be_caught_in_parts() -> None:
    error = send(ExceptionGroup("several", [ValueError(1), KeyError(2)]))  # noqa: F821
    assert [type(part) for part in error.exceptions] == [ValueError, KeyError]
    assert "several" in str(error)


def test_what_cannot_be_pickled_of_a_cause_is_left_out_and_named() -> None:
    cause = TwoArguments(5, "five")
    cause.lock = threading.Lock()  # type: ignore[attr-defined]
    error = send(cause)
    assert isinstance(error, TwoArguments)
    assert error.code == 5
    assert ".lock left out" in str(error)
    error = send(ValueError("text", threading.Lock()))
    assert isinstance(error, ValueError)
    assert error.args[0] == "text"
    assert "args[1] left out" in str(error)


def test_a_cause_whose_class_cannot_be_pickled_leaves_its_text() -> None:
    class Bound(Exception):
        lock = threading.Lock()

    error = send(Bound("oh"))
    assert type(error) is exceptions.RayTaskError
    assert error.cause is None
    assert "oh" in str(error)
    assert "could not be pickled" in str(error)


def test_a_cause_that_cannot_be_unpickled_leaves_its_text() -> None:
    error = send(Undone("oh"))
    assert type(error) is exceptions.RayTaskError
    assert "Undone: oh" in str(error)
    assert "could not be unpickled here: RuntimeError: no way back" in str(error)


class Undone(Exception):
    def __reduce__(self) -> Any:
        return undo, ()


def undo() -> None:
    raise RuntimeError("no way back")


class Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


def test_an_exception_that_cannot_be_printed_still_arrives() -> None:
    error = send(Mute())
    assert isinstance(error, Mute)
    assert "Mute" in str(error)


def test_a_task_error_survives_plain_pickle() -> None:
    error = send(ValueError("bad"))
    again = pickle.loads(pickle.dumps(error))
    assert isinstance(again, ValueError)
    assert str(again) == str(error)
    # Plain pickle would call TwoArguments("5: five"): the text has to do.
    again = pickle.loads(pickle.dumps(send(TwoArguments(5, "five"))))
    assert type(again) is exceptions.RayTaskError
    assert "5: five" in str(again)


def test_each_hop_of_a_nested_failure_is_told_once() -> None:
    inner = send(TwoArguments(5, "five"), "inner")
    middle = send(inner, "middle")
    outer = send(middle, "Actor.method", actor="Actor(ab12)", ip="10.0.0.1")
    text = str(outer)
    hops = ("ray::Actor.method() (pid=", "ray::middle()", "ray::inner()")
    assert [text.count(hop) for hop in hops] == [1, 1, 1]
    assert sorted(hops, key=text.index) == list(hops)
    assert "actor=Actor(ab12)" in text and "ip=10.0.0.1" in text
    assert text.rstrip().endswith("5: five")
    assert "direct cause" not in text
    assert isinstance(outer, TwoArguments)
    assert type(outer.cause) is TwoArguments
    assert type(outer).__name__ == "RayTaskError(TwoArguments)"


def test_an_error_caught_and_chained_by_the_user_is_told() -> None:
    inner = send(ValueError("first"), "inner")

    def chain() -> None:
        try:
            raise inner
        except ValueError as error:
            raise KeyError("second") from error

    try:
        chain()
    except KeyError as caught:
        encoded = serialization.encode_error(caught, "outer")
    text = str(serialization.decode(encoded.to_bytes()))
    assert "ray::inner()" in text and "ValueError: first" in text
    assert "direct cause of the following exception" in text
    assert text.index("first") < text.index("second")


def test_refs_inside_an_exception_are_collected() -> None:
    class Ref:
        pass

    serialization.set_ref_type(Ref)
    ref = Ref()
    encoded = serialization.encode_error(raised(ValueError("bad", ref)), "f")
    assert encoded.refs == [ref]
    assert serialization.decode(encoded.to_bytes(), [7]).args == ("bad", 7)


# ---- the text --------------------------------------------------------------------------------------------------------


def _report(monkeypatch: pytest.MonkeyPatch, wanted: bool | None) -> str:
    # Frames of this file count as ours, but for the lambda made elsewhere.
    monkeypatch.setattr(tracebacks, "is_internal", lambda name: name == __file__)
    users: dict[str, Any] = {}
    exec(compile("def mine(then):\n    return then()\n", "/home/user/program.py", "exec"), users)
    try:
        users["mine"](lambda: 1 / 0)
    except ZeroDivisionError as error:
        return tracebacks.format_remote(error, wanted)
    raise AssertionError


def test_internal_frames_are_shown_only_if_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    text = _report(monkeypatch, False)
    assert text.startswith('  File "/home/user/program.py", line 2, in mine')
    assert __file__ not in text
    assert text.endswith("ZeroDivisionError: division by zero\n")
    assert __file__ in _report(monkeypatch, True)
    monkeypatch.setenv("RAY_BACKEND_TRACEBACK", "1")
    assert __file__ in _report(monkeypatch, None)


def test_an_error_without_frames_of_the_users_keeps_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracebacks, "is_internal", lambda name: True)
    assert __file__ in tracebacks.format_remote(raised(ValueError("x")), False)


def test_which_files_are_ours() -> None:
    package = os.path.dirname(exceptions.__file__)
    assert tracebacks.is_internal(os.path.join(package, "api.py"))
    assert tracebacks.is_internal(os.path.join("ray", "_core", "engine.pyx"))
    assert not tracebacks.is_internal(os.path.join(package, "rllib", "ppo.py"))
    assert not tracebacks.is_internal("/home/user/ray/_core.py")
    assert not tracebacks.is_internal("/home/user/ray_program.py")


def test_causes_do_not_pile_up_in_memory() -> None:
    import gc
    import weakref

    def made() -> weakref.ref[type]:
        cls = type("Passing", (Exception,), {})
        error = exceptions.RayTaskError("f", "text", cls("x")).as_instanceof_cause()
        assert isinstance(error, cls)
        return weakref.ref(type(error))

    gone = made()
    gc.collect()
    assert gone() is None
