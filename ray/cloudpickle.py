"""The pickler that ray stands on, under the name that programs import it by: `import ray.cloudpickle as pickle`.

It is the `cloudpickle` package itself, so what is registered there (`register_pickle_by_value`) holds for ray, and the
other way round.
"""

from cloudpickle import (
    DEFAULT_PROTOCOL,
    CloudPickler,
    Pickler,
    dump,
    dumps,
    load,
    loads,
    register_pickle_by_value,
    unregister_pickle_by_value,
)

__all__ = [
    "DEFAULT_PROTOCOL",
    "CloudPickler",
    "Pickler",
    "dump",
    "dumps",
    "load",
    "loads",
    "register_pickle_by_value",
    "unregister_pickle_by_value",
]
