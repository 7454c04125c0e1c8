"""`inspect_serializability`: which part of an object keeps it from being sent. The search is in `ray._serialization.explain`."""

from ray._serialization.explain import FailureTuple, inspect_serializability

__all__ = ["FailureTuple", "inspect_serializability"]
