"""Control frames as Python values: RPC, REPLY and EVENT. No I/O, no state.

Bytes come from a peer that has proved it knows the token, so unpickling them is allowed; that they make sense is not
assumed: whatever isn't exactly one of the three shapes raises `Malformed`, and the caller closes that one connection.
"""

from __future__ import annotations

import logging
import pickle
from typing import Any

logger = logging.getLogger(__name__)

PICKLE_PROTOCOL = 5


class Malformed(Exception):
    """A control frame that is not what its type says."""


def encode_rpc(request_id: int, method: str, args: tuple[Any, ...]) -> bytes:
    return pickle.dumps((request_id, method, args), PICKLE_PROTOCOL)


def encode_event(name: str, args: tuple[Any, ...]) -> bytes:
    return pickle.dumps((name, args), PICKLE_PROTOCOL)


def encode_reply(request_id: int, result: Any) -> bytes:
    """A result that can't be pickled becomes the error that says so: the asker must not wait for ever."""
    try:
        return pickle.dumps((request_id, True, result), PICKLE_PROTOCOL)
    except Exception as error:  # pickling runs the value's own code, which may raise anything
        return encode_failure(request_id, error)


def encode_failure(request_id: int, error: BaseException) -> bytes:
    """An exception that doesn't survive pickle and unpickle travels as a RuntimeError with its text."""
    try:
        if isinstance(error, Exception):  # the asker's code must not see somebody else's KeyboardInterrupt
            body = pickle.dumps((request_id, False, error), PICKLE_PROTOCOL)
            pickle.loads(body)  # an exception whose __init__ takes other arguments than its args fails only here
            return body
    except Exception as why:  # pickling runs the exception's own code, which may raise anything
        logger.debug("sending the text of an exception that can't be pickled: %r", why)
    text = f"{type(error).__module__}.{type(error).__qualname__}: {_text(error)}"
    return pickle.dumps((request_id, False, RuntimeError(text)), PICKLE_PROTOCOL)


def decode_rpc(payload: bytes) -> tuple[int, str, tuple[Any, ...]]:
    message = _load(payload, 3, "RPC")
    request_id, method, args = message
    if type(request_id) is not int or type(method) is not str or type(args) is not tuple:
        raise Malformed("an RPC that is not (request id, method, args)")
    return request_id, method, args


def decode_reply(payload: bytes) -> tuple[int, bool, Any]:
    message = _load(payload, 3, "REPLY")
    request_id, ok, result = message
    if type(request_id) is not int or type(ok) is not bool or not (ok or isinstance(result, Exception)):
        raise Malformed("a REPLY that is not (request id, ok, result or exception)")
    if not ok and isinstance(result, StopIteration):  # no future or coroutine can raise one
        result = RuntimeError(f"StopIteration: {_text(result)}")
    return request_id, ok, result


def decode_event(payload: bytes) -> tuple[str, tuple[Any, ...]]:
    message = _load(payload, 2, "EVENT")
    name, args = message
    if type(name) is not str or type(args) is not tuple:
        raise Malformed("an EVENT that is not (name, args)")
    return name, args


def _load(payload: bytes, fields: int, kind: str) -> tuple[Any, ...]:
    try:
        message = pickle.loads(payload)
    except Exception as error:  # garbage makes pickle raise nearly anything
        raise Malformed(f"a {kind} frame of {len(payload)} bytes that is no pickle: {error!r}") from error
    if type(message) is not tuple or len(message) != fields:
        raise Malformed(f"a {kind} frame that is not a tuple of {fields}")
    return message


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception as second:
        return f"(its text can't be had: {type(second).__name__})"
