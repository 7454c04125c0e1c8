"""Not built here: Ray's library of datasets. What other libraries import of it is here, and says so when it is called.

modin imports `from_pandas_refs` for its `to_ray()`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

__all__ = ["from_pandas_refs"]


def from_pandas_refs(dfs: Any | Sequence[Any]) -> NoReturn:
    """A dataset of data frames that are in the object store already.

    Raises: NotImplementedError: always; ray.data is no part of this engine.
    """
    raise NotImplementedError(
        "ray.data.from_pandas_refs(): this ray has no datasets (ray.data). The frames themselves: ray.get(dfs)"
    )
