"""`inspect_serializability`: which part of an object keeps it from being sent; the search is in `_serialization`."""

from ray._serialization.explain import FailureTuple, inspect_serializability

__all__ = ["FailureTuple", "inspect_serializability"]
