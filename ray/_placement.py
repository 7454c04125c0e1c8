"""Where a task or actor may run: what a user gives as scheduling_strategy=, and what the engine is told of it.

Runs in the caller's thread, no I/O but where a group is asked about. `canonical` turns whatever the options say into
the one form that travels (ray/_scheduling/strategy.py draws it); `check_fits` refuses, at the call, what no bundle of
the named group could ever hold. Users find these classes in ray.util.placement_group and scheduling_strategies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Union

from ray._protocol.ids import BaseID
from ray._protocol.resources import UNITS, describe
from ray._scheduling import labels

if TYPE_CHECKING:
    from ray.object_ref import ObjectRef

FOREVER_S = 2.0**31  # a timeout beyond this is none


class PlacementGroupID(BaseID):
    SIZE: ClassVar[int] = 16
    __slots__ = ()


class PlacementGroup:
    """Resources reserved together, as bundles. Made by ray.util.placement_group; may be passed to tasks and actors."""

    __slots__ = ("_bundles", "id")

    def __init__(self, id: PlacementGroupID, bundle_cache: Sequence[Mapping[str, float]] = ()) -> None:
        self.id: PlacementGroupID = id
        self._bundles = tuple(dict(bundle) for bundle in bundle_cache)

    @staticmethod
    def empty() -> PlacementGroup:
        """What stands for "in no group"."""
        return PlacementGroup(PlacementGroupID.nil())

    @property
    def is_empty(self) -> bool:
        return self.id.is_nil()

    @property
    def bundle_specs(self) -> list[dict[str, float]]:
        """What each bundle reserves, by resource."""
        return [dict(bundle) for bundle in self._bundles]

    @property
    def bundle_count(self) -> int:
        return len(self._bundles)

    def ready(self) -> ObjectRef[PlacementGroup]:
        """A ref whose value, this group, is there once every bundle has its place.

        `ray.get` of it raises TaskPlacementGroupRemoved if the group is removed first.
        """
        from ray import api

        return api.engine().promise(self, "group_ready", self.id.binary())

    def wait(self, timeout_seconds: float | None = 30) -> bool:
        """Waits until every bundle has its place. False: it had not within that time, or the group was removed.

        Args: timeout_seconds: None waits for ever, 0 asks.
        Blocks: yes.
        """
        from ray import api

        timeout = _seconds("PlacementGroup.wait: timeout_seconds", timeout_seconds)
        engine, group_id = api.engine(), self.id.binary()
        if group_id in engine.groups_created:  # made here: we were told
            return True
        created: bool = engine.rpc("group_wait", group_id, timeout, timeout=None)
        return created

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PlacementGroup) and self.id == other.id

    def __hash__(self) -> int:
        return hash(self.id)

    def __reduce__(self) -> tuple[Any, ...]:
        return PlacementGroup, (self.id, self._bundles)

    def __repr__(self) -> str:
        return f"PlacementGroup({self.id.hex()}, bundles={list(self._bundles)})"


def to_units(bundles: Sequence[Mapping[str, float]]) -> list[dict[str, int]]:
    return [{name: round(amount * UNITS) for name, amount in bundle.items()} for bundle in bundles]


def of_units(bundles: Sequence[Mapping[str, int]]) -> list[dict[str, float]]:
    return [{name: units / UNITS for name, units in bundle.items()} for bundle in bundles]


# --- strategies --------------------------------------------------------------------------------------------------


class SchedulingStrategy:
    """What these have in common. Two that say the same are equal, so that `.options(...)` in a loop costs nothing."""

    def canonical(self) -> Any:
        raise NotImplementedError

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SchedulingStrategy) and self.canonical() == other.canonical()

    def __hash__(self) -> int:
        return hash(self.canonical())

    def __repr__(self) -> str:
        given = ", ".join(f"{name}={value!r}" for name, value in vars(self).items())
        return f"{type(self).__name__}({given})"


class PlacementGroupSchedulingStrategy(SchedulingStrategy):
    """In a bundle of a placement group.

    Args:
        placement_group: None: in no group, even if the caller runs in one that captures its children.
        placement_group_bundle_index: of the bundle; -1: any.
        placement_group_capture_child_tasks: what the task submits goes into the group, too, unless it says otherwise.
    """

    def __init__(
        self,
        placement_group: PlacementGroup | None,
        placement_group_bundle_index: int = -1,
        placement_group_capture_child_tasks: bool | None = None,
    ) -> None:
        if placement_group is not None and not isinstance(placement_group, PlacementGroup):
            raise TypeError(f"placement_group={placement_group!r}: expected what ray.util.placement_group() returned")
        self.placement_group = placement_group
        self.placement_group_bundle_index = placement_group_bundle_index
        self.placement_group_capture_child_tasks = placement_group_capture_child_tasks
        self.canonical()

    def canonical(self) -> Any:
        return group_strategy(
            self.placement_group, self.placement_group_bundle_index, self.placement_group_capture_child_tasks
        )


class NodeAffinitySchedulingStrategy(SchedulingStrategy):
    """On one node.

    Args:
        node_id: in hexadecimal, as ray.nodes() and the runtime context give it.
        soft: elsewhere if that node is not there, or can't ever hold it. False: then it fails.
    """

    def __init__(self, node_id: str, soft: bool) -> None:
        self.node_id: str = node_id.hex() if isinstance(node_id, BaseID) else node_id
        self.soft = soft
        self.canonical()

    def canonical(self) -> tuple[str, bytes, bool]:
        if not isinstance(self.soft, bool):
            raise TypeError(f"NodeAffinitySchedulingStrategy: soft={self.soft!r}: expected True or False")
        if not isinstance(self.node_id, str):
            raise TypeError(f"NodeAffinitySchedulingStrategy: node_id={self.node_id!r}: expected a string")
        try:
            return "node", bytes.fromhex(self.node_id), self.soft
        except ValueError:
            raise ValueError(
                f"NodeAffinitySchedulingStrategy: node_id={self.node_id!r}: expected an id in hexadecimal, such as "
                "ray.get_runtime_context().get_node_id()"
            ) from None


class _Values:
    _OPERATOR = ""

    def __init__(self, *values: str) -> None:
        if not values:
            raise ValueError(f"{type(self).__name__}(): expected one value at least")
        self.values: list[str] = [labels.check_value(type(self).__name__, value) for value in values]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(map(repr, self.values))})"


class In(_Values):
    """The label's value is one of these."""

    _OPERATOR = labels.IN


class NotIn(_Values):
    """It is none of these; the node may not have the label at all."""

    _OPERATOR = labels.NOT_IN


class Exists:
    """The node has the label, whatever its value."""

    _OPERATOR = labels.EXISTS
    values: Sequence[str] = ()


class DoesNotExist:
    """It has not."""

    _OPERATOR = labels.MISSING
    values: Sequence[str] = ()


LabelCondition = Union[In, NotIn, Exists, DoesNotExist]


class NodeLabelSchedulingStrategy(SchedulingStrategy):
    """On a node by its labels.

    Args:
        hard: conditions that must hold, by label.
        soft: conditions that should: among the nodes that hard admits, one is preferred of which these hold too.
    """

    def __init__(
        self, hard: Mapping[str, LabelCondition] | None, *, soft: Mapping[str, LabelCondition] | None = None
    ) -> None:
        self.hard: dict[str, LabelCondition] = dict(_conditions("hard", hard))
        self.soft: dict[str, LabelCondition] = dict(_conditions("soft", soft))
        if not self.hard and not self.soft:
            raise ValueError("NodeLabelSchedulingStrategy: hard and soft are both empty: expected a condition at least")

    def canonical(self) -> tuple[Any, ...]:
        return "labels", (_selector(self.hard),), _selector(self.soft)


def _conditions(argument: str, given: Any) -> Mapping[str, LabelCondition]:
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise TypeError(f"NodeLabelSchedulingStrategy: {argument}={given!r}: expected a dict of conditions by label")
    for key, condition in given.items():
        labels.check_key(key)
        if not isinstance(condition, (In, NotIn, Exists, DoesNotExist)):
            raise TypeError(
                f"NodeLabelSchedulingStrategy: {argument}[{key!r}]={condition!r}: expected In(...), NotIn(...), "
                "Exists() or DoesNotExist()"
            )
    return given


def _selector(conditions: Mapping[str, LabelCondition]) -> labels.Selector:
    return tuple((key, condition._OPERATOR, tuple(condition.values)) for key, condition in conditions.items())


# --- what the engine is told -------------------------------------------------------------------------------------


def group_strategy(group: PlacementGroup | None, index: Any, capture: Any) -> tuple[str, bytes, int, bool] | str:
    """Raises: TypeError, ValueError: naming the argument."""
    if isinstance(index, bool) or not isinstance(index, int):
        raise TypeError(f"placement_group_bundle_index={index!r}: expected a whole number")
    if capture is not None and not isinstance(capture, bool):
        raise TypeError(f"placement_group_capture_child_tasks={capture!r}: expected True or False")
    if group is None or group.is_empty:
        if index != -1:
            raise ValueError(f"placement_group_bundle_index={index}: no placement_group was given")
        return "DEFAULT"
    if index < -1 or index >= group.bundle_count:
        raise ValueError(
            f"placement_group_bundle_index={index}: expected 0 to {group.bundle_count - 1}, the bundles of the "
            "placement group, or -1 for any of them"
        )
    return "group", group.id.binary(), index, bool(capture)


def group_of(options: Mapping[str, Any]) -> PlacementGroup | None:
    """The group that checked options name."""
    given = options.get("scheduling_strategy")
    if isinstance(given, PlacementGroupSchedulingStrategy):
        return given.placement_group
    group = options.get("placement_group")
    return group if isinstance(group, PlacementGroup) else None


def canonical(options: Mapping[str, Any]) -> Any:
    """What the engine is told, of options that were checked one by one.

    Raises: ValueError: two of them contradict each other.
    """
    given = options.get("scheduling_strategy")
    selector = options.get("label_selector")
    old = options.get("placement_group", "default")
    index, capture = options.get("placement_group_bundle_index", -1), options.get("placement_group_capture_child_tasks")
    if isinstance(old, PlacementGroup) or old is None:
        if given is not None:
            raise ValueError("placement_group and scheduling_strategy exclude each other: give one of them")
        strategy: Any = group_strategy(old, index, capture)
    else:
        if index != -1:
            raise ValueError(f"placement_group_bundle_index={index}: no placement_group was given")
        strategy = given.canonical() if isinstance(given, SchedulingStrategy) else given
    if selector is None:
        if options.get("fallback_strategy"):
            raise ValueError("fallback_strategy: no label_selector was given to which it could be the alternative")
        return strategy
    if strategy not in (None, "DEFAULT"):
        raise ValueError("label_selector and a scheduling_strategy or placement group exclude each other: give one")
    return "labels", (selector, *(options.get("fallback_strategy") or ())), ()


def check_fits(what: str, options: Mapping[str, Any], needs: Mapping[str, int]) -> None:
    """Raises: ValueError: no bundle of the group that the options name, or not the one they name, could hold this."""
    group = group_of(options)
    if group is None or group.is_empty:
        return
    index = canonical(options)[2]
    bundles = group.bundle_specs if index < 0 else [group.bundle_specs[index]]
    in_units = to_units(bundles)
    if any(all(bundle.get(name, 0) >= units for name, units in needs.items()) for bundle in in_units):
        return
    has = ", ".join("{" + describe(bundle) + "}" for bundle in in_units[:8])
    where = "any bundle of its placement group" if index < 0 else f"bundle {index} of its placement group"
    raise ValueError(f"{what} asks for {describe(needs)}, which can never fit into {where}: {has}")


def _seconds(argument: str, given: Any) -> float | None:
    if given is None:
        return None
    if isinstance(given, bool) or not isinstance(given, (int, float)):
        raise TypeError(f"{argument}={given!r}: expected a number of seconds, or None")
    if not given >= 0:
        raise ValueError(f"{argument}={given!r}: expected a number of seconds >= 0, or None to wait for ever")
    return float(given) if given < FOREVER_S else None
