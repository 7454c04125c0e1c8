"""The public noun ObjectRef: a counted future for one object. The class is compiled: `ray/_native/references.pyx`."""

from __future__ import annotations

from ray._native.references import ObjectRef

__all__ = ["ObjectRef"]
