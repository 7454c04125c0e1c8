"""An error about a value that can't be pickled names the attribute at fault; and types can be registered."""

from __future__ import annotations

import functools
import io
import socket
import threading
from typing import Any

import pytest

from ray._native import serialization
from ray.util import deregister_serializer, inspect_serializability, register_serializer

LOCK = threading.Lock()


class Box:
    def __init__(self, **members: Any) -> None:
        self.__dict__.update(members)

    def method(self) -> None:
        """Bound to a Box."""


class Slotted:
    __slots__ = ("inner",)


class Stateful:
    def __getstate__(self) -> Any:
        return ["fine", LOCK]


def captured(lock: Any) -> Any:
    return lambda: lock


def by_value(source: str, **names: Any) -> Any:
    """What `source` defines as `it`, in a module that can't be imported (as __main__ can't)."""
    space = {"__name__": "__main__", **names}
    exec(source, space)
    return space["it"]


def slotted() -> Slotted:
    value = Slotted()
    value.inner = LOCK
    return value


VALUES = [
    (lambda: LOCK, "value is a _thread.lock"),
    (lambda: [1, LOCK], "value[1] is a _thread.lock"),
    (lambda: Box(a=Box(b=[1, 2, 3, LOCK])), "value.a.b[3] is a _thread.lock"),
    (lambda: {"x": {2: (LOCK,)}}, "value['x'][2][0] is a _thread.lock"),
    (lambda: [*range(10_000), Box(it=LOCK)], "value[10000].it is a _thread.lock"),
    (slotted, "value.inner is a _thread.lock"),
    (lambda: captured(LOCK), "value -> captured variable 'lock' is a _thread.lock"),
    (lambda: by_value("def it(): return lock", lock=LOCK), "value -> global variable 'lock' is a _thread.lock"),
    (
        lambda: by_value("def it():\n def inner(): return lock\n return inner", lock=LOCK),
        "value -> global variable 'lock' is a _thread.lock",
    ),
    (lambda: by_value("def it(x=lock): pass", lock=LOCK), "value.__defaults__[0] is a _thread.lock"),
    (lambda: by_value("class it: lock = lock", lock=LOCK), "value.lock is a _thread.lock"),
    (lambda: by_value("class A: lock = lock\nit = A()", lock=LOCK), "value.__class__.lock is a _thread.lock"),
    (
        lambda: by_value("class it:\n def run(self): return lock", lock=LOCK),
        "value.run -> global variable 'lock' is a _thread.lock",
    ),
    (lambda: Box(lock=LOCK).method, "value.__self__.lock is a _thread.lock"),
    (lambda: functools.partial(print, LOCK), "value.args[0] is a _thread.lock"),
    (lambda: Stateful(), "value.__getstate__()[1] is a _thread.lock"),
    (lambda: (n for n in ()), "value is a generator"),
    (lambda: Box(view=memoryview(b"x").cast("B")[::1], s=LOCK), "value.s is a _thread.lock"),
]


@pytest.mark.parametrize(("make", "expected"), VALUES, ids=[expected for _, expected in VALUES])
def test_the_path_to_the_culprit_is_named(make: Any, expected: str) -> None:
    with pytest.raises(TypeError) as caught:
        serialization.encode(make(), "argument 'x' of f()")
    message = str(caught.value)
    assert expected in message
    assert message.startswith("can't pickle argument 'x' of f(): value")
    assert "What to try:" in message
    assert caught.value.__cause__ is not None


def test_a_function_that_cannot_be_exported_says_which_variable() -> None:
    with pytest.raises(TypeError, match="can't pickle remote function f: value -> captured variable 'lock'"):
        serialization.encode_function(captured(LOCK), "remote function f")


def test_a_socket_gets_the_hint_to_open_it_there() -> None:
    with socket.socket() as sock, pytest.raises(TypeError, match=r"value\.s is a socket\.socket .*where it is used"):
        serialization.encode(Box(s=sock))


def test_a_cycle_around_the_culprit_ends() -> None:
    box = Box(lock=LOCK)
    box.me = box
    box.list = [box, box]
    with pytest.raises(TypeError, match=r"value\.lock is a _thread\.lock"):
        serialization.encode(box)


def test_inspect_prints_a_tree_and_returns_the_failures() -> None:
    out = io.StringIO()
    ok, failures = inspect_serializability(Box(a=Box(l=LOCK), b=[LOCK], fine=1), "config", print_file=out)
    assert not ok
    assert all(failure.obj is LOCK for failure in failures)
    assert sorted(failure.name for failure in failures) == ["[0]", "l"]
    text = out.getvalue()
    assert text.startswith("config can't be pickled")
    for part in (".a", ".l", ".b", "[0]", "cannot pickle '_thread.lock' object"):
        assert part in text
    assert "fine" not in text.replace("config", "")


def test_inspect_stops_at_its_depth() -> None:
    _, failures = inspect_serializability(Box(a=Box(b=Box(c=LOCK))), depth=1, print_file=io.StringIO())
    assert [failure.name for failure in failures] == ["a"]
    with pytest.raises(ValueError, match="depth"):
        inspect_serializability(1, depth=0)


def test_inspect_says_yes(capsys: pytest.CaptureFixture[str]) -> None:
    assert inspect_serializability({"a": 1}, name="numbers") == (True, set())
    assert capsys.readouterr().out == "numbers can be pickled.\n"


# ---- registered types ------------------------------------------------------------------------------------------------


class Connection:
    def __init__(self, address: str) -> None:
        self.address = address
        self.lock = threading.Lock()


def test_a_registered_type_can_be_sent_until_it_is_deregistered() -> None:
    register_serializer(Connection, serializer=lambda c: c.address, deserializer=lambda address: Connection(address))
    try:
        shared = Connection("tcp://x")
        result = serialization.decode(serialization.encode([shared, {"a": shared}]).to_bytes())
        assert result[0].address == "tcp://x"
        assert result[1]["a"] is result[0]
    finally:
        deregister_serializer(Connection)
    with pytest.raises(TypeError, match=r"value\.lock is a _thread\.lock"):
        serialization.encode(Connection("x"))
    deregister_serializer(Connection)


def test_numpy_arrays_can_be_registered_too() -> None:
    import numpy as np

    register_serializer(np.ndarray, serializer=lambda a: a.tolist(), deserializer=lambda items: ("mine", items))
    try:
        assert serialization.decode(serialization.encode(np.arange(2)).to_bytes()) == ("mine", [0, 1])
    finally:
        deregister_serializer(np.ndarray)
    assert serialization.decode(serialization.encode(np.arange(2)).to_bytes()).tolist() == [0, 1]


@pytest.mark.parametrize(
    ("cls", "serializer", "expected"),
    [(dict, repr, "never be called"), ("dict", repr, "takes a class"), (Connection, 5, "serializer must be callable")],
)
def test_wrong_registrations_are_refused(cls: Any, serializer: Any, expected: str) -> None:
    with pytest.raises(TypeError, match=expected):
        register_serializer(cls, serializer=serializer, deserializer=repr)


def test_ray_cloudpickle_is_cloudpickle() -> None:
    import ray.cloudpickle as pickle

    assert pickle.loads(pickle.dumps(captured(3)))() == 3
