"""joblib on ray: after `register_ray()`, `joblib.parallel_config(backend="ray")` runs on ray's workers."""

from __future__ import annotations


def register_ray() -> None:
    """Makes "ray" a backend of joblib's.

    Raises: ImportError: joblib is not installed.
    """
    import joblib

    from ray.util.joblib.backend import RayBackend

    joblib.register_parallel_backend("ray", RayBackend)


__all__ = ["register_ray"]
