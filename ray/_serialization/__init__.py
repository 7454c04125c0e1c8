"""The part of serialisation that isn't on the hot path: errors, registered types, naming what can't be pickled.

Plain functions without I/O, called by `ray._native.serialization` and `ray.util` on whatever thread encodes or decodes.
The order to read in: `reducers.py` (how exceptions are pickled), `arrow.py` (slices of Arrow data), `registry.py` (the
types that users registered), `explain.py` (which attribute is at fault), `tracebacks.py` and `errors.py` (a remote
exception and its text).
"""
