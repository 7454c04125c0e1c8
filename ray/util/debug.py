"""`log_once`: whether something is said for the first time. One table per process, under one lock; any thread."""

from __future__ import annotations

import threading
import time

_PERIOD_S = 60.0

_lock = threading.Lock()
_said: dict[str, float] = {}
_disabled = False
_periodic = False


def log_once(key: str) -> bool:
    """True when it is first called with this key: `if log_once("slow-disk"): logger.warning(...)`."""
    now = time.monotonic()
    with _lock:
        if _disabled:
            return False
        last = _said.get(key)
        if last is not None and not (_periodic and now - last > _PERIOD_S):
            return False
        _said[key] = now
        return True


def disable_log_once_globally() -> None:
    """log_once is False from now on."""
    global _disabled
    with _lock:
        _disabled = True


def enable_periodic_logging() -> None:
    """log_once is true for a key again when a minute has passed."""
    global _disabled, _periodic
    with _lock:
        _disabled, _periodic = False, True
