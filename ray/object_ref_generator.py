"""The public nouns ObjectRefGenerator and DynamicObjectRefGenerator: the refs of what a remote generator yields.

Both are compiled with the engine: `ray/_core/streams.pxi`. They run in the process that made the call; what becomes of
them when the task's worker dies is said there.
"""

from __future__ import annotations

from ray._core.engine import DynamicObjectRefGenerator, ObjectRefGenerator

__all__ = ["DynamicObjectRefGenerator", "ObjectRefGenerator"]
