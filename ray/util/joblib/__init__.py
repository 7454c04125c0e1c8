"""joblib on ray: after `register_ray()`, `joblib.parallel_backend("ray")` runs scikit-learn and others on its workers."""

from __future__ import annotations


def register_ray() -> None:
    """Makes "ray" a backend of joblib's.

    Raises: ImportError: joblib is not installed.
    """
    import joblib

    from ray.util.joblib.backend import RayBackend

    joblib.register_parallel_backend("ray", RayBackend)


__all__ = ["register_ray"]
