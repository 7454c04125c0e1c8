"""LoggingConfig: how what programs log with Python's `logging` looks, in the driver and in its job's workers alike.

Runs in the driver (`ray.init(logging_config=)`) and in each worker before its first task, on the main thread. It
travels as an environment variable of the job's workers, who take it out again: what they start must not see it.
`apply` gives the root logger one handler, and replaces the one that an earlier call gave. Nobody else's is touched.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

ENCODINGS = ("TEXT", "JSON")
VARIABLE = "_RAY_WORKER_LOGGING"
# What a record always shows, and what may be asked for: the names that the logging module gives every record.
_ALWAYS = ("asctime", "levelname", "message", "filename", "lineno")
STANDARD = (
    "name", "levelno", "pathname", "module", "funcName", "created", "msecs", "relativeCreated", "thread", "threadName",
    "process", "processName",
)  # fmt: skip
_PLAIN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}

Context = Callable[[], Mapping[str, Any]]


class LoggingConfig:
    """How records of Python's logging are written, by the driver and by its workers: `ray.init(logging_config=...)`.

    Each record carries where it was made: job_id, worker_id, node_id, and in tasks and actors also task_id, task_name,
    task_func_name, actor_id, actor_name.

    Args:
        encoding: "TEXT": a line for people, which ends with these as name=value. "JSON": an object per line.
        log_level: records below it are dropped: "DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL" or a number as text.
        additional_log_standard_attrs: further attributes that the logging module gives every record, such as
            ["name", "process"].
    Raises: TypeError, ValueError: naming the argument.
    """

    def __init__(
        self,
        encoding: str = "TEXT",
        log_level: str = "INFO",
        additional_log_standard_attrs: Sequence[str] = (),
    ) -> None:
        if encoding not in ENCODINGS:
            raise ValueError(f"LoggingConfig: encoding={encoding!r}: expected one of {', '.join(ENCODINGS)}")
        if not isinstance(log_level, str):
            raise TypeError(f"LoggingConfig: log_level={log_level!r}: expected a string, such as 'INFO'")
        if not log_level.isdigit() and not isinstance(logging.getLevelName(log_level.upper()), int):
            raise ValueError(f"LoggingConfig: log_level={log_level!r}: expected a level of logging, such as 'INFO'")
        attributes = additional_log_standard_attrs
        if isinstance(attributes, str) or not isinstance(attributes, Sequence):
            raise TypeError(
                f"LoggingConfig: additional_log_standard_attrs={attributes!r}: expected a list, such as ['name']"
            )
        for attribute in attributes:
            if attribute not in STANDARD:
                raise ValueError(
                    f"LoggingConfig: additional_log_standard_attrs: {attribute!r} is none of {', '.join(STANDARD)}"
                )
        self.encoding = encoding
        self.log_level = log_level
        self.additional_log_standard_attrs: list[str] = list(attributes)

    @property
    def level(self) -> int:
        """The number that the logging module has for log_level."""
        return int(self.log_level) if self.log_level.isdigit() else int(logging.getLevelName(self.log_level.upper()))

    def dumps(self) -> str:
        """What `loads` reads in a worker."""
        return json.dumps([self.encoding, self.log_level, self.additional_log_standard_attrs])

    @staticmethod
    def loads(text: str) -> LoggingConfig:
        """What `dumps` wrote."""
        return LoggingConfig(*json.loads(text))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LoggingConfig) and self.dumps() == other.dumps()

    def __hash__(self) -> int:
        return hash(self.dumps())

    def __repr__(self) -> str:
        attributes = self.additional_log_standard_attrs
        return f"LoggingConfig({self.encoding!r}, {self.log_level!r}, additional_log_standard_attrs={attributes!r})"


class _Formatter(logging.Formatter):
    """Adds where the record was made, what it was given as extra=, and what was asked for."""

    def __init__(self, config: LoggingConfig, context: Context) -> None:
        super().__init__("%(asctime)s %(levelname)s %(filename)s:%(lineno)s -- %(message)s")
        self._attributes = config.additional_log_standard_attrs
        self._context = context

    def more(self, record: logging.LogRecord) -> dict[str, Any]:
        extra = {name: value for name, value in vars(record).items() if name not in _PLAIN}
        asked = {name: getattr(record, name) for name in self._attributes}
        return {**self._context(), **asked, **extra, "timestamp_ns": time.time_ns()}


class _Text(_Formatter):
    def formatMessage(self, record: logging.LogRecord) -> str:
        # Here and not in `format`, which adds a traceback on lines of its own.
        more = " ".join(f"{name}={value}" for name, value in self.more(record).items())
        return f"{super().formatMessage(record)} {more}"


class _Json(_Formatter):
    def format(self, record: logging.LogRecord) -> str:
        record.message = record.getMessage()
        record.asctime = self.formatTime(record, self.datefmt)
        shown = {name: getattr(record, name) for name in _ALWAYS}
        if record.exc_info:
            shown["exc_text"] = self.formatException(record.exc_info)
        return json.dumps({**shown, **self.more(record)}, default=str)


class _Handler(logging.StreamHandler):  # type: ignore[type-arg]
    """Ours, told from others by its class. The level is its own: it holds for loggers that have one of theirs, too."""


def apply(config: LoggingConfig, context: Context) -> None:
    """Gives the root logger one handler that writes as config says, to stderr.

    Args: context: asked at each record for what it shall carry.
    """
    root, ray_logger = logging.getLogger(), logging.getLogger("ray")
    handler = _Handler()
    handler.setFormatter((_Json if config.encoding == "JSON" else _Text)(config, context))
    for old in [*root.handlers]:
        if isinstance(old, _Handler):
            root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(config.level)
    ray_logger.setLevel(config.level)
    ray_logger.handlers.clear()
    ray_logger.propagate = True


def context_of(engine: Any) -> Context:
    """What `apply` takes, of a process with this engine."""

    def context() -> dict[str, Any]:
        now = engine.context()
        shown = {"job_id": now["job_id"], "worker_id": now["worker_tag"], "node_id": now["node_id"]}
        if now["task_id"]:
            shown.update(task_id=now["task_id"], task_name=now["task_name"], task_func_name=now["task_name"])
        if now["actor_id"]:
            own = engine.own_actor()
            shown.update(actor_id=now["actor_id"], actor_name=own[2] if own is not None else "")
        return {name: value.hex() if isinstance(value, bytes) else value for name, value in shown.items()}

    return context


def withdraw() -> None:
    """Takes back the handler that `apply` gave."""
    root = logging.getLogger()
    for old in [*root.handlers]:
        if isinstance(old, _Handler):
            root.removeHandler(old)
