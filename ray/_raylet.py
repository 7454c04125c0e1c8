"""See `ray._private`: who needs this name."""

from ray.object_ref import ObjectRef

__all__ = ["ObjectRef"]
