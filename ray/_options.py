"""Every option of a remote function, an actor class and an actor method: what it may be, and what the engine is told.

Pure: runs in the caller's thread, where `@ray.remote(...)` or `.options(...)` is evaluated, so that a wrong option is
an error there and not at some later call. One table per kind of thing (TASK, ACTOR, METHOD) maps an option's name to
the function that checks it and returns its canonical value. An option that a later version will bring is in the table
too: it accepts the value that asks for nothing, and otherwise says that it isn't built.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Callable, Generic, TypeVar

from ray import _aliases
from ray._protocol.resources import UNITS

PRIORITY_MAX = 2**30
ACTOR_CONCURRENCY_ASYNC = 1000  # calls in flight inside an asyncio actor unless max_concurrency says otherwise
_RESERVED = {"CPU": "num_cpus", "GPU": "num_gpus", "memory": "memory", "object_store_memory": "object_store_memory"}

Check = Callable[[str, Any], Any]


def wrong(kind: type[Exception], option: str, given: Any, expected: str) -> Exception:
    """The error for a bad value: names the option, shows what was given, says what would do."""
    return kind(f"{option}={given!r}: expected {expected}")


def not_built(option: str, given: Any, what: str) -> NotImplementedError:
    return NotImplementedError(
        f"{option}={given!r}: {what} is not built yet in this version of ray; leave {option} out"
    )


# --- checks of one value -----------------------------------------------------------------------------------------


def quantity(option: str, value: Any) -> float:
    """A resource amount: a finite number >= 0, and not so small that it is less than one unit."""
    if isinstance(value, bool) or not hasattr(value, "__float__") or isinstance(value, (str, bytes)):
        raise wrong(TypeError, option, value, "a number >= 0, such as 1 or 0.5")
    number = float(value)
    if math.isnan(number) or math.isinf(number) or number < 0:
        raise wrong(ValueError, option, value, "a finite number >= 0, such as 1 or 0.5")
    if 0 < number * UNITS < 0.5:
        raise wrong(ValueError, option, value, f"0 or at least {1 / UNITS}, the smallest amount counted")
    return number


def gpus(option: str, value: Any) -> float:
    number = quantity(option, value)
    if number > 1 and number != int(number):
        raise wrong(ValueError, option, value, "a whole number above 1: only one GPU can be shared by fractions")
    return number


def resource_map(option: str, value: Any) -> dict[str, float]:
    """Custom resources by name. None is none."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise wrong(TypeError, option, value, "a dict of amounts by resource name, such as {'tape_drive': 1}")
    checked = {}
    for name, amount in value.items():
        if not isinstance(name, str):
            raise TypeError(f"{option}: the resource name {name!r} is not a string")
        if name in _RESERVED:
            raise ValueError(f"{option}: {name!r} is not a custom resource; use {_RESERVED[name]}={amount!r} instead")
        if not name or name != name.strip():
            raise ValueError(f"{option}: {name!r} can't be a resource name: it is empty or has spaces around it")
        checked[name] = quantity(f"{option}[{name!r}]", amount)
    return checked


def whole(minimum: int, expected: str) -> Check:
    def check(option: str, value: Any) -> int:
        if isinstance(value, bool) or not hasattr(value, "__index__"):
            raise wrong(TypeError, option, value, expected)
        number = int(value.__index__())
        if number < minimum:
            raise wrong(ValueError, option, value, expected)
        return number

    return check


def optional(check: Check) -> Check:
    return lambda option, value: None if value is None else check(option, value)


def boolean(option: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise wrong(TypeError, option, value, "True or False")
    return value


def text(option: str, value: Any) -> str:
    if not isinstance(value, str):
        raise wrong(TypeError, option, value, "a string")
    if not value:
        raise wrong(ValueError, option, value, "a string that is not empty")
    return value


def mapping(option: str, value: Any) -> dict[Any, Any]:
    if not isinstance(value, Mapping):
        raise wrong(TypeError, option, value, "a dict")
    return dict(value)


def later(what: str, *harmless: Any) -> Check:
    """An option of a version to come: only None, an empty dict or list, or a value in `harmless` asks for nothing."""

    def check(option: str, value: Any) -> Any:
        if value is None or (isinstance(value, (dict, list, tuple)) and not value) or value in harmless:
            return None
        raise not_built(option, value, what)

    return check


def memory(option: str, value: Any) -> int:
    return int(quantity(option, value))  # bytes, rounded down


def num_returns(option: str, value: Any) -> int | str:
    expected = "a whole number >= 0, 'streaming' or 'dynamic'"
    if isinstance(value, str):
        if value not in ("dynamic", "streaming"):
            raise wrong(ValueError, option, value, expected)
        return value
    return whole(0, expected)(option, value)  # type: ignore[no-any-return]


def window(option: str, value: Any) -> int:
    """How many items of a generator may wait for their consumer; None and -1: no limit, which is 0 from here on."""
    if value is None or (value == -1 and not isinstance(value, bool)):
        return 0
    number: int = whole(1, "a whole number >= 1, or -1 for no limit")(option, value)
    if number >= 2**32:
        raise wrong(ValueError, option, value, "a whole number below 2**32, or -1 for no limit")
    return number


def retry_exceptions(option: str, value: Any) -> bool | tuple[type[BaseException], ...]:
    expected = "True, False or a list of exception classes"
    if isinstance(value, bool):
        return value
    if not isinstance(value, (list, tuple)):
        raise wrong(TypeError, option, value, expected)
    for one in value:
        if not (isinstance(one, type) and issubclass(one, BaseException)):
            raise wrong(TypeError, option, value, f"{expected}, and {one!r} is not one")
    return tuple(value)


def seconds(option: str, value: Any) -> float:
    """A time limit: more than nothing, less than for ever."""
    if isinstance(value, bool) or not hasattr(value, "__float__") or isinstance(value, (str, bytes)):
        raise wrong(TypeError, option, value, "a number of seconds > 0, or None for no limit")
    number = float(value)
    if not 0 < number < math.inf:
        raise wrong(ValueError, option, value, "a number of seconds > 0, or None for no limit")
    return min(number, 1e9)


def priority(option: str, value: Any) -> int:
    expected = f"a whole number from {-PRIORITY_MAX} to {PRIORITY_MAX}; 0 is usual, higher comes first"
    number = whole(-PRIORITY_MAX, expected)(option, value)
    if number > PRIORITY_MAX:
        raise wrong(ValueError, option, value, expected)
    return int(number)


def concurrency_groups(option: str, value: Any) -> dict[str, int] | None:
    """The calls of each group that run at a time. Ray also knows a list of {"name": ..., "max_concurrency": ...}."""
    expected = "a dict of limits by name, such as {'io': 2, 'compute': 4}"
    if value is None:
        return None
    if isinstance(value, (list, tuple)):
        if not all(isinstance(one, Mapping) and set(one) == {"name", "max_concurrency"} for one in value):
            raise wrong(TypeError, option, value, f"{expected}, or a list of {{'name': 'io', 'max_concurrency': 2}}")
        pairs = [(one["name"], one["max_concurrency"]) for one in value]
    elif isinstance(value, Mapping):
        pairs = list(value.items())
    else:
        raise wrong(TypeError, option, value, expected)
    checked: dict[str, int] = {}
    for name, limit in pairs:
        text(f"{option}: the name of a group", name)
        if name in checked:
            raise ValueError(f"{option}: {name!r} is there twice")
        checked[name] = whole(1, "a whole number >= 1")(f"{option}[{name!r}]", limit)
    return checked


def check_groups(groups: Mapping[str, int] | None, asked: Mapping[str, str | None], of: str) -> None:
    """Refuses methods that ask for a group which the actor will not have. asked: group by method."""
    for method, group in asked.items():
        if group is not None and group not in (groups or {}):
            known = f"has {', '.join(map(repr, groups))}" if groups else "was given none"
            raise ValueError(
                f"{of}: method {method} asks for concurrency_group={group!r}, and the class {known}: name it in "
                f"concurrency_groups={{{group!r}: <calls at a time>}}"
            )


def max_pending_calls(option: str, value: Any) -> int:
    number = whole(-1, "a whole number >= 1, or -1 for no limit")(option, value)
    if number == 0:
        raise wrong(ValueError, option, value, "a whole number >= 1, or -1 for no limit")
    return int(number)


def strategy(option: str, value: Any) -> Any:
    if value is None or value == "DEFAULT":
        return None
    if value == "SPREAD":
        return "SPREAD"
    if isinstance(value, str):
        raise wrong(ValueError, option, value, "'DEFAULT' or 'SPREAD'")
    from ray._placement import SchedulingStrategy

    if not isinstance(value, SchedulingStrategy):
        raise wrong(TypeError, option, value, "'DEFAULT', 'SPREAD' or one of ray.util.scheduling_strategies")
    return value


def label_selector(option: str, value: Any) -> Any:
    """Canonical: ray/_scheduling/labels.py; None where nothing is selected."""
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise wrong(TypeError, option, value, "a dict such as {'ray.io/accelerator-type': 'in(A100, H100)'}")
    from ray._scheduling import labels

    try:
        return labels.parse_selector(value) or None
    except (TypeError, ValueError) as error:
        raise type(error)(f"{option}: {error}") from None


def fallback_strategy(option: str, value: Any) -> Any:
    expected = "a list of dicts, each with a 'label_selector'"
    if value is None:
        return ()
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Sequence):
        raise wrong(TypeError, option, value, expected)
    for one in value:
        if not isinstance(one, Mapping) or set(one) != {"label_selector"}:
            raise wrong(ValueError, option, value, expected)
    selectors = (label_selector(f"{option}[{i}]", one["label_selector"]) for i, one in enumerate(value))
    return tuple(selector or () for selector in selectors)


def placement_group(option: str, value: Any) -> Any:
    """ "default": the caller's, if that captures its children; None: in none."""
    if value is None or value == "default":
        return value
    from ray._placement import PlacementGroup

    if not isinstance(value, PlacementGroup):
        raise wrong(TypeError, option, value, "a PlacementGroup, 'default' or None")
    return value


def runtime_env(option: str, value: Any) -> Any:
    """A ray.runtime_env.RuntimeEnv, or None if nothing is asked for."""
    if value is None or (isinstance(value, dict) and not value):
        return None
    from ray.runtime_env import _prepare  # only programs that use one pay for it

    return _prepare.check(option, value)


def lifetime(option: str, value: Any) -> str | None:
    if value in (None, "non_detached"):
        return None
    if value == "detached":
        return "detached"
    raise wrong(ValueError, option, value, "'detached' or None")


def labels_of_work(option: str, value: Any) -> dict[str, str]:
    if not isinstance(value, Mapping) or not all(isinstance(s, str) for pair in value.items() for s in pair):
        raise wrong(TypeError, option, value, "a dict of strings by string, such as {'team': 'a'}")
    return dict(value)


# --- the tables --------------------------------------------------------------------------------------------------

_COMMON: dict[str, Check] = {
    "num_cpus": optional(quantity),
    "num_gpus": optional(gpus),
    "resources": resource_map,
    "memory": optional(memory),
    "object_store_memory": later("a share of the object store"),
    "accelerator_type": optional(text),
    "name": optional(text),
    "scheduling_strategy": strategy,
    "runtime_env": runtime_env,
    "label_selector": label_selector,
    "fallback_strategy": fallback_strategy,
    "placement_group": placement_group,
    "placement_group_bundle_index": whole(-1, "the index of a bundle, or -1 for any"),
    "placement_group_capture_child_tasks": optional(boolean),
    "enable_task_events": boolean,
    "_metadata": optional(mapping),
    "_labels": optional(labels_of_work),
}

TASK: dict[str, Check] = {
    **_COMMON,
    "num_returns": num_returns,
    "max_calls": whole(0, "a whole number >= 0, where 0 means no limit"),
    "max_retries": whole(-1, "a whole number >= 0, or -1 for no limit"),
    "retry_exceptions": retry_exceptions,
    "priority": priority,
    "timeout_s": optional(seconds),
    "_generator_backpressure_num_objects": window,
}

ACTOR: dict[str, Check] = {
    **_COMMON,
    "max_restarts": whole(-1, "a whole number >= 0, or -1 for no limit"),
    "max_task_retries": whole(-1, "a whole number >= 0, or -1 for no limit"),
    "max_concurrency": optional(whole(1, "a whole number >= 1")),
    "max_pending_calls": max_pending_calls,
    "concurrency_groups": concurrency_groups,
    "allow_out_of_order_execution": optional(boolean),
    "namespace": optional(text),
    "lifetime": lifetime,
    "get_if_exists": boolean,
    "checkpoint_interval": whole(-1, "a whole number of calls >= 1, or -1 for no checkpoints"),
}

METHOD: dict[str, Check] = {
    "num_returns": num_returns,
    "max_task_retries": whole(-1, "a whole number >= 0, or -1 for no limit"),
    "retry_exceptions": retry_exceptions,
    "name": optional(text),
    "concurrency_group": optional(text),
    "timeout_s": optional(seconds),
    "enable_task_events": boolean,
    "tensor_transport": later("transport of tensors outside the object store"),
    "_generator_backpressure_num_objects": window,
}


def check(table: dict[str, Check], given: Mapping[str, Any], of: str) -> dict[str, Any]:
    """The canonical form of the options given, older names resolved.

    of: what they were given to, for the message, such as "remote function f".

    Raises: ValueError, TypeError, NotImplementedError: naming the option.
    """
    given = _aliases.resolve(_aliases.OPTIONS, given, of)
    checked = {}
    for option, value in given.items():
        checker = table.get(option)
        if checker is None:
            raise ValueError(f"{of}: unknown option {option!r}{_hint(table, option)}")
        checked[option] = checker(option, value)
    return checked


def _hint(table: Mapping[str, Any], option: str) -> str:
    other = {id(TASK): "actor classes", id(ACTOR): "remote functions"}.get(id(table))
    elsewhere = ACTOR if table is TASK else TASK if table is ACTOR else {}
    if other and option in elsewhere:
        return f": it is only for {other}"
    return nearest(option, list(table) + list(_aliases.OPTIONS))


def nearest(name: str, known: list[str]) -> str:
    """'; did you mean X?' for the known name most like this one, or '' if none is."""
    import difflib  # an error is about to be raised: only then is it worth importing

    found = difflib.get_close_matches(name, known, 1, 0.6)
    return f"; did you mean {found[0]!r}?" if found else ""


# --- generators --------------------------------------------------------------------------------------------------

GENERATOR, ASYNC_GENERATOR = 0x20, 0x200  # CO_... flags of a code object


def is_generator(function: Any) -> bool | None:
    """Whether calling function makes a generator. None: nobody can tell, for it is compiled, or hands on what another
    returns (functools.wraps)."""
    code = getattr(function, "__code__", None)
    if code is None:
        return None
    if code.co_flags & (GENERATOR | ASYNC_GENERATOR):
        return True
    return None if hasattr(function, "__wrapped__") else False


def returns_of(generator: bool | None, options: Mapping[str, Any], of: str) -> tuple[int | str, int]:
    """(num_returns, window) of a call: a generator streams unless told otherwise.

    Args: generator: as is_generator says of what is called.
    Raises: ValueError: the options are for generators and this is none, or the window is for a stream and this is none.
    """
    returns = options.get("num_returns", "streaming" if generator else 1)
    if isinstance(returns, str) and generator is False:
        raise ValueError(
            f"{of}: num_returns={returns!r} is only for generator functions, which use `yield`, and this is none"
        )
    items: int = options.get("_generator_backpressure_num_objects", 0)
    if items and returns != "streaming":
        raise ValueError(
            f"{of}: _generator_backpressure_num_objects={items} is only for num_returns='streaming', and this has "
            f"num_returns={returns!r}"
        )
    return returns, items


# --- .options() in a loop ------------------------------------------------------------------------------------------

T = TypeVar("T")


class Variants(Generic[T]):
    """What `.options(...)` of one function or class returned for the latest few sets of options.

    Programs write `f.options(num_cpus=2).remote(x)` in loops: thanks to this the engine gets one template for all of
    those calls, and pickles the function once. Any thread.
    """

    KEPT_MAX = 64

    __slots__ = ("_made",)

    def __init__(self) -> None:
        self._made: dict[Any, T] = {}

    def get(self, options: dict[str, Any], make: Callable[[dict[str, Any]], T]) -> T:
        key = _frozen(options)
        made = self._made.get(key)
        if made is None:
            made = make(options)
            while len(self._made) >= self.KEPT_MAX:
                self._made.pop(next(iter(self._made)), None)  # another thread may have been faster
            self._made[key] = made
        return made


def _frozen(value: Any) -> Any:
    """A hashable stand-in for options; 1, 1.0 and True stay different, for they aren't all valid."""
    if isinstance(value, dict):
        return tuple((k, _frozen(v)) for k, v in value.items())
    if isinstance(value, (list, tuple)):
        return (type(value), *map(_frozen, value))
    try:
        hash(value)
    except TypeError:
        return object()  # equal to nothing else
    return type(value), value


# --- what the engine is told -------------------------------------------------------------------------------------


def units(amount: float) -> int:
    return round(amount * UNITS)


def _resources(options: Mapping[str, Any]) -> dict[str, int]:
    """What was asked for explicitly, in units; an explicit 0 is kept."""
    wanted = {name: units(amount) for name, amount in (options.get("resources") or {}).items()}
    if options.get("num_cpus") is not None:
        wanted["CPU"] = units(options["num_cpus"])
    if options.get("num_gpus") is not None:
        wanted["GPU"] = units(options["num_gpus"])
    if options.get("memory") is not None:
        wanted["memory"] = units(options["memory"])
    if options.get("accelerator_type") is not None:
        wanted["accelerator_type:" + options["accelerator_type"]] = units(0.001)
    return wanted


def _nonzero(wanted: dict[str, int]) -> dict[str, int]:
    return {name: amount for name, amount in wanted.items() if amount}


def task_resources(options: Mapping[str, Any]) -> dict[str, int]:
    """A task takes one CPU unless told otherwise."""
    wanted = _resources(options)
    wanted.setdefault("CPU", UNITS)
    return _nonzero(wanted)


def actor_resources(options: Mapping[str, Any]) -> tuple[dict[str, int], dict[str, int]]:
    """(held for the actor's life, needed to be placed).

    An actor that asks for nothing is placed where a CPU is and then holds none, so that any number of idle actors fit
    on a node. One that asks for anything holds what it asked for, and a CPU unless num_cpus says otherwise.
    """
    wanted = _resources(options)
    if all(name == "memory" for name in wanted):
        held = _nonzero(wanted)
        return held, {**held, "CPU": UNITS}
    wanted.setdefault("CPU", UNITS)
    held = _nonzero(wanted)
    return held, held


def task_template(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of ray._core.engine.TaskTemplate, but for what returns_of says."""
    resources = task_resources(options)
    return {
        "resources": resources,
        "max_retries": options.get("max_retries", 3),
        "retry_exceptions": options.get("retry_exceptions", False),
        # A GPU library keeps the GPU's memory until its process ends, so a worker runs one GPU task and goes.
        "max_calls": options.get("max_calls", 1 if "GPU" in resources else 0),
        "name": options.get("name"),
        "strategy": placement(options),
        "timeout_s": options.get("timeout_s"),
        "priority": options.get("priority", 0),
        "unlisted": not options.get("enable_task_events", True),
    }


def actor_template(options: Mapping[str, Any], is_async: bool) -> dict[str, Any]:
    """Options of ray._core.engine.ActorTemplate."""
    held, to_be_placed = actor_resources(options)
    # Who wants the state to be kept wants the actor to come back: so it was when this was the only reason for restarts.
    restarts = -1 if options.get("checkpoint_interval", 0) > 0 else 0
    concurrency = options.get("max_concurrency") or (ACTOR_CONCURRENCY_ASYNC if is_async else 1)
    groups = options.get("concurrency_groups")
    out_of_order = options.get("allow_out_of_order_execution")
    if out_of_order is None:
        out_of_order = is_async or concurrency > 1 or bool(groups)
    return {
        "resources": held,
        "placement_resources": to_be_placed,
        "max_restarts": options.get("max_restarts", restarts),
        "max_task_retries": options.get("max_task_retries", 0),
        "max_concurrency": concurrency,
        "concurrency_groups": groups,
        "out_of_order": out_of_order,
        "name": options.get("name"),
        "max_pending_calls": options.get("max_pending_calls", -1),
        "checkpoints": max(0, options.get("checkpoint_interval", 0)),
        "namespace": options.get("namespace"),
        "detached": options.get("lifetime") == "detached",
        "is_async": is_async,
        "unlisted": not options.get("enable_task_events", True),
        "strategy": placement(options),
    }


_PLACING = (
    "scheduling_strategy", "label_selector", "fallback_strategy", "placement_group", "placement_group_bundle_index",
    "placement_group_capture_child_tasks",
)  # fmt: skip


def placement(options: Mapping[str, Any]) -> Any:
    """What the options say about where it runs, as the engine is told.

    Raises: ValueError: two of them exclude each other.
    """
    if not any(name in options for name in _PLACING):
        return None
    from ray import _placement

    return _placement.canonical(options)


def check_placement(options: Mapping[str, Any], of: str, needs: Mapping[str, int]) -> None:
    """Raises: ValueError: as `placement`, or what is asked for can never fit into the group that is named."""
    if any(name in options for name in _PLACING):
        from ray import _placement

        _placement.canonical(options)
        _placement.check_fits(of, options, needs)
