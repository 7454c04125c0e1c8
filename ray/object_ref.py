"""The public noun ObjectRef: a future for one object, counted. The class itself is compiled, in `ray/_native/references.pyx`."""

from __future__ import annotations

from ray._core.engine import ObjectRef

__all__ = ["ObjectRef"]
