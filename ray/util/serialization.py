"""`register_serializer` and `deregister_serializer`: how objects of a type of yours are pickled."""

from ray._serialization.registry import deregister_serializer, register_serializer

__all__ = ["deregister_serializer", "register_serializer"]
