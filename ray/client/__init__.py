"""`ray://`: a driver on another machine than the session's, through one TCP port. Layer [5].

    the program          ray client            TCP            ray client server        the session
    engine, store.py -- local_end.py, door.py ------------- server.py, desk.py -- node, workers, plasma_store
                        both ends are a tunnel.py over a wire.py; proof.py and token.py are who may

The program's engine is the same one that a driver beside the session has: it submits, owns, borrows and recovers as
there. Only two things differ: its connections are Unix sockets that `ray client` forwards, and its store is its own,
with copies to and from the cluster's (objects.py). Start reading at connect.py.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray.client_builder import ClientBuilder


class _Package(ModuleType):
    """The package, which can also be called: `ray.client("host:port")` is what programs of an earlier time say."""

    def __call__(self, address: str | None = None) -> ClientBuilder:
        from ray.client_builder import ClientBuilder

        return ClientBuilder(address)

    def __reduce__(self) -> tuple[Any, ...]:
        # Pickled by name, as modules are: cloudpickle does that of itself for those of the plain type only.
        import importlib

        return importlib.import_module, (self.__name__,)


sys.modules[__name__].__class__ = _Package
