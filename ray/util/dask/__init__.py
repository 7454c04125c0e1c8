"""Dask on ray: `ray_dask_get` is a dask scheduler whose tasks are ray's.

dask.config.set(scheduler=ray_dask_get)      for all that follows, as `enable_dask_on_ray()` does
collection.compute(scheduler=ray_dask_get)   for one computation
"""

from ray.util.dask.callbacks import RayDaskCallback as RayDaskCallback
from ray.util.dask.scheduler import disable_dask_on_ray as disable_dask_on_ray
from ray.util.dask.scheduler import enable_dask_on_ray as enable_dask_on_ray
from ray.util.dask.scheduler import ray_dask_get as ray_dask_get
from ray.util.dask.scheduler import ray_dask_get_sync as ray_dask_get_sync

__all__ = ["RayDaskCallback", "disable_dask_on_ray", "enable_dask_on_ray", "ray_dask_get", "ray_dask_get_sync"]
