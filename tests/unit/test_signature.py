"""ray/_signature.py: a call is refused exactly when Python would refuse it, with Python's words."""

from __future__ import annotations

import pickle

import pytest

from ray._signature import ANY_NUMBER, Signature


def no_parameters(): ...
def one(a): ...
def two_one_default(a, b=1): ...
def positional_only(a, b, /, c): ...
def positional_only_default(a, b=2, /): ...
def keyword_only(a, *, key, other=3): ...
def only_keywords(*, x, y, z): ...
def varargs(a, *rest, key=1): ...
def varkw(a, **more): ...
def everything(a, b=2, /, c=3, *rest, d, e=5, **more): ...


FUNCTIONS = [
    no_parameters,
    one,
    two_one_default,
    positional_only,
    positional_only_default,
    keyword_only,
    only_keywords,
    varargs,
    varkw,
    everything,
]
CALLS = [
    ((), {}),
    ((1,), {}),
    ((1, 2), {}),
    ((1, 2, 3), {}),
    ((1, 2, 3, 4), {}),
    ((), {"a": 1}),
    ((1,), {"a": 1}),
    ((1,), {"b": 1}),
    ((1,), {"key": 1}),
    ((1,), {"key": 1, "other": 2}),
    ((), {"x": 1, "y": 2, "z": 3}),
    ((), {"x": 1}),
    ((1, 2), {"c": 1}),
    ((1, 2), {"c": 1, "d": 4}),
    ((1, 2, 3), {"d": 4}),
    ((1,), {"unknown": 1}),
    ((1,), {"d": 1, "unknown": 2}),
]


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("args, kwargs", CALLS)
def test_check_refuses_exactly_what_python_refuses(function, args, kwargs):
    signature = Signature.of(function, function.__name__)
    try:
        function(*args, **kwargs)
    except TypeError as error:
        with pytest.raises(TypeError) as refused:
            signature.check(args, kwargs)
        assert str(refused.value).split("()")[0] == str(error).split("()")[0] == function.__name__
    else:
        signature.check(args, kwargs)


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("n", range(6))
def test_a_positional_call_within_the_bounds_needs_no_check(function, n):
    fewest, most = Signature.of(function, "f").bounds
    if fewest <= n <= most:
        function(*range(n))  # would raise


@pytest.mark.parametrize(
    "args, kwargs, message",
    [
        ((), {}, "missing 2 required positional arguments: 'a' and 'b'"),
        ((1, 2, 3), {}, "takes 2 positional arguments but 3 were given"),
        ((1,), {"a": 2}, "multiple values for argument 'a'"),
        ((1, 2), {"c": 3}, "unexpected keyword argument 'c'"),
    ],
)
def test_the_message_is_python_s(args, kwargs, message):
    def f(a, b): ...

    with pytest.raises(TypeError, match=message):
        Signature.of(f, "f").check(args, kwargs)


def test_the_bound_parameter_of_a_method_does_not_count():
    class Plain:
        def method(self, x): ...
        def star(*args): ...

    assert Signature.of(Plain.method, "method", skip_first=True).bounds == (1, 1)
    assert Signature.of(Plain.star, "star", skip_first=True).bounds == (0, ANY_NUMBER)


def test_a_function_that_is_not_written_in_python_accepts_every_call():
    Signature.of(len, "len").check((1, 2, 3), {"x": 1})


def test_a_signature_survives_pickling():
    signature = Signature.of(everything, "everything")
    assert pickle.loads(pickle.dumps(signature)) == signature
