"""See `ray._private`: what kind of process this is, and one switch, under the names that libraries know them by."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

from ray import _aliases, _driver, api


class _Worker:
    """Asked anew each time: holds nothing."""

    @property
    def connected(self) -> bool:
        """Whether ray runs in this process."""
        return _driver.is_initialized()

    @property
    def mode(self) -> int | None:
        """ray.SCRIPT_MODE in a driver, ray.WORKER_MODE in a task or actor, ray.LOCAL_MODE where all runs inline."""
        if not self.connected:
            return None
        if _driver.local_mode() is not None:
            return _aliases.LOCAL_MODE
        running = api.engine()
        return _aliases.SCRIPT_MODE if running.context()["is_driver"] else _aliases.WORKER_MODE


class _Module(ModuleType):
    @property
    def blocking_get_inside_async_warned(self) -> bool:
        """Whether the warning that ray.get blocks an event loop has been given; True keeps it from being given."""
        return api._warned

    @blocking_get_inside_async_warned.setter
    def blocking_get_inside_async_warned(self, value: bool) -> None:
        api._warned = value

    def __reduce__(self) -> tuple[Any, ...]:
        # Pickled by name, as modules are: cloudpickle does that of itself for those of the plain type only.
        import importlib

        return importlib.import_module, (self.__name__,)


global_worker = _Worker()
sys.modules[__name__].__class__ = _Module

__all__ = ["global_worker"]
