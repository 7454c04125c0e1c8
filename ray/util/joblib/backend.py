"""RayBackend: joblib's multiprocessing backend over a ray Pool. In the process, and thread, that calls joblib.

joblib makes one of these for each `Parallel` and asks it for a pool in `configure`. How many calls make one task is
joblib's own decision, from how long they take.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from joblib._parallel_backends import MultiprocessingBackend
from joblib.parallel import FallbackToBackend, SequentialBackend

import ray
from ray.util.multiprocessing import Pool


class RayBackend(MultiprocessingBackend):
    """What `joblib.parallel_backend("ray", ray_remote_args=...)` makes.

    Args: ray_remote_args: options of the worker actors, such as {"num_cpus": 1}.
    """

    def __init__(self, ray_remote_args: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._ray_remote_args = ray_remote_args

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """How many processes n_jobs means: -1 is one for each CPU of the cluster, -2 one less, and so on."""
        if n_jobs == 0:
            raise ValueError("n_jobs == 0 in Parallel has no meaning")
        if n_jobs is None:
            return 1
        if n_jobs > 0:
            return n_jobs
        if not ray.is_initialized():
            ray.init()
        return max(int(ray.cluster_resources().get("CPU", 1)) + 1 + n_jobs, 1)

    def configure(self, n_jobs: int = 1, parallel: Any = None, **_memmapping: Any) -> int:
        """Makes the pool. What joblib says about memory maps is not needed: arrays are shared in the object store."""
        n_jobs = self.effective_n_jobs(n_jobs)
        if n_jobs == 1:
            raise FallbackToBackend(SequentialBackend(nesting_level=self.nesting_level))
        self._pool = Pool(n_jobs, ray_remote_args=self._ray_remote_args)
        self.parallel = parallel
        return n_jobs
