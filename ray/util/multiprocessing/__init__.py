"""A Pool with the interface of `multiprocessing.Pool`, whose processes are actors, on one machine or a cluster."""

from multiprocessing import TimeoutError as TimeoutError

from ray.util.multiprocessing.pool import Pool as Pool
from ray.util.multiprocessing.results import AsyncResult as AsyncResult
from ray.util.multiprocessing.results import IMapIterator as IMapIterator

__all__ = ["AsyncResult", "IMapIterator", "Pool", "TimeoutError"]
