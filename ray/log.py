"""The logger named "ray", which says what ray does: `ray.init` sets it up; libraries that log to it may, too.

In any process, any thread. What programs log themselves is shaped by `ray.LoggingConfig`.
"""

from __future__ import annotations

import logging

LOGGING_FORMAT = "%(asctime)s %(levelname)s %(filename)s:%(lineno)s -- %(message)s"

__all__ = ["LOGGING_FORMAT", "generate_logging_config", "setup_logger"]


def setup_logger(logging_level: int | str = logging.INFO, logging_format: str | None = None) -> None:
    """Gives the logger "ray" this level and format, and a handler that writes to stderr unless it has one.

    Raises: ValueError, TypeError: as logging.Logger.setLevel.
    """
    logger = logging.getLogger("ray")
    logger.setLevel(logging_level.upper() if isinstance(logging_level, str) else logging_level)
    if not logger.handlers:
        logger.addHandler(logging.StreamHandler())
        logger.propagate = False  # the root logger's handlers would print everything a second time
    for handler in logger.handlers:
        handler.setFormatter(logging.Formatter(logging_format or LOGGING_FORMAT))


def generate_logging_config() -> None:
    """The logger "ray" as `ray.init()` sets it up; one that has handlers already stays as it is."""
    if not logging.getLogger("ray").handlers:
        setup_logger()
