"""See `ray._private`: who needs this name."""

from ray.object_ref import ObjectRef
from ray.types import Language

__all__ = ["Language", "ObjectRef"]
