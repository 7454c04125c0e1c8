"""Placement groups: resources reserved together, as bundles, before anything runs in them. Any process of a session.

`placement_group` returns at once; the group is made by the head, which tells its nodes to hold the bundles. All of them
are held, or none. If the process that made a group dies, nothing changes; if its job ends, the group goes, unless it is
detached.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from ray._placement import PlacementGroup as PlacementGroup
from ray._placement import PlacementGroupID as PlacementGroupID
from ray._placement import of_units, to_units

VALID_PLACEMENT_GROUP_STRATEGIES = {"PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"}


def placement_group(
    bundles: Sequence[Mapping[str, float]],
    strategy: str = "PACK",
    name: str = "",
    lifetime: str | None = None,
    _soft_target_node_id: str | None = None,
    bundle_label_selector: Sequence[Mapping[str, str]] | None = None,
    _max_cpu_fraction_per_node: float | None = None,
) -> PlacementGroup:
    """Asks for a placement group, and returns it at once: `ready()` and `wait()` tell when it has its place.

    Args:
        bundles: what each bundle reserves, such as [{"CPU": 1}, {"CPU": 2, "GPU": 1}]; memory in bytes.
        strategy: "PACK" on as few nodes as will do; "SPREAD" on as many as there are; "STRICT_PACK" all on one;
            "STRICT_SPREAD" each on another.
        name: by which get_placement_group finds it in this namespace.
        lifetime: "detached": it outlives its job, until it is removed. None: it ends with it.
        bundle_label_selector: of each bundle, the labels that its node must have, such as [{"zone": "a"}, {}].
        _soft_target_node_id: the node, in hexadecimal, that a STRICT_PACK group is put on if it has room.
        _max_cpu_fraction_per_node: 0 to 1: the group leaves the rest of each node's CPUs to others.
    Raises: ValueError, TypeError: naming the argument; the name is taken.
    Blocks: only with a name, for the head's answer.
    """
    from ray import api

    checked = _checked_bundles(bundles)
    if strategy not in VALID_PLACEMENT_GROUP_STRATEGIES:
        raise ValueError(f"strategy={strategy!r}: expected one of {sorted(VALID_PLACEMENT_GROUP_STRATEGIES)}")
    if not isinstance(name, str):
        raise TypeError(f"name={name!r}: expected a string")
    if lifetime not in (None, "detached"):
        raise ValueError(f"lifetime={lifetime!r}: expected 'detached' or None")
    group_id = os.urandom(16)
    spec: dict[str, Any] = {
        "bundles": to_units(checked),
        "strategy": strategy,
        "detached": lifetime == "detached",
        **_limits(len(checked), strategy, bundle_label_selector, _soft_target_node_id, _max_cpu_fraction_per_node),
    }
    engine = api.engine()
    if name:
        engine.rpc("create_group", group_id, {**spec, "name": name})
    else:
        engine.event_soon("create_group", group_id, spec)
    return PlacementGroup(PlacementGroupID(group_id), checked)


def remove_placement_group(placement_group: PlacementGroup) -> None:
    """Gives its resources back. What runs in it is killed, what waits for it fails. Again: nothing happens.

    Workers that run nothing in it at that moment live on, with what they own.
    """
    from ray import api

    if not isinstance(placement_group, PlacementGroup):
        raise TypeError(f"remove_placement_group: expected a PlacementGroup, got {placement_group!r}")
    if not placement_group.is_empty:
        engine, group_id = api.engine(), placement_group.id.binary()
        engine.groups_created.discard(group_id)
        engine.event_soon("remove_group", group_id)


def get_placement_group(placement_group_name: str) -> PlacementGroup:
    """The group that was made with this name in this namespace.

    Raises: ValueError: there is none.
    """
    from ray import api

    if not isinstance(placement_group_name, str) or not placement_group_name:
        raise ValueError(f"get_placement_group: {placement_group_name!r}: expected a name, not an empty one")
    found = api.engine().rpc("group_named", placement_group_name)
    if found is None:
        raise ValueError(
            f"no placement group is named {placement_group_name!r} in this namespace: it was not created with "
            f"name={placement_group_name!r} here, or it was removed"
        )
    group_id, bundles = found
    return PlacementGroup(PlacementGroupID(group_id), of_units(bundles))


def placement_group_table(placement_group: PlacementGroup | None = None) -> dict[str, Any]:
    """What the head knows of a group; of all, by their ids in hexadecimal, if none is given.

    Returns: of each group: placement_group_id, name, namespace, strategy, state (PENDING, CREATED, RESCHEDULING or
        REMOVED), bundles and bundles_to_node_id by bundle index, is_detached, stats, and `why`: what a group that
        isn't CREATED waits for, in words.
    """
    from ray import api

    if placement_group is not None and not isinstance(placement_group, PlacementGroup):
        raise TypeError(f"placement_group_table: expected a PlacementGroup or None, got {placement_group!r}")
    group_id = None if placement_group is None else placement_group.id.binary()
    rows = {row["group_id"].hex(): _readable(row) for row in api.engine().rpc("groups", group_id)}
    if placement_group is None:
        return rows
    return rows.get(placement_group.id.hex(), {})


def get_current_placement_group() -> PlacementGroup | None:
    """The group in which the task or actor that asks runs; None in a driver, and outside groups."""
    from ray import api

    engine = api.engine()
    place = engine.context()["place"]
    if place is None:
        return None
    row = next(iter(engine.rpc("groups", place[1])), None)
    bundles = [] if row is None else row["bundles"]
    return PlacementGroup(PlacementGroupID(place[1]), of_units(bundles))


def check_placement_group_index(placement_group: PlacementGroup, bundle_index: int) -> None:
    """Raises: ValueError: the group has no bundle of that index."""
    from ray import _placement

    _placement.group_strategy(placement_group, bundle_index, None)


def _checked_bundles(bundles: Any) -> list[dict[str, float]]:
    from ray import _options

    if isinstance(bundles, (str, bytes, Mapping)) or not isinstance(bundles, Sequence):
        raise ValueError(f"bundles={bundles!r}: expected a list of dicts, such as [{{'CPU': 1}}]")
    if not bundles:
        raise ValueError("bundles=[]: expected one bundle at least, such as [{'CPU': 1}]")
    checked = []
    for i, bundle in enumerate(bundles):
        if not isinstance(bundle, Mapping):
            raise ValueError(f"bundles[{i}]={bundle!r}: expected a dict of amounts by resource, such as {{'CPU': 1}}")
        amounts = {}
        for kind, amount in bundle.items():
            if not isinstance(kind, str) or not kind:
                raise ValueError(f"bundles[{i}]: the resource name {kind!r} is not a string, or is empty")
            check = _options.gpus if kind == "GPU" else _options.quantity
            amounts[kind] = check(f"bundles[{i}][{kind!r}]", amount)
        amounts = {kind: amount for kind, amount in amounts.items() if amount}
        if not amounts:
            raise ValueError(f"bundles[{i}]={dict(bundle)!r}: expected an amount above 0 of one resource at least")
        checked.append(amounts)
    return checked


def _limits(n_bundles: int, strategy: str, selectors: Any, first: Any, fraction: Any) -> dict[str, Any]:
    """What the head is told of where the group may lie; nothing where nothing was said."""
    from ray import _options

    said: dict[str, Any] = {}
    if selectors:
        if isinstance(selectors, (str, bytes, Mapping)) or not isinstance(selectors, Sequence):
            raise TypeError(f"bundle_label_selector={selectors!r}: expected a list of dicts, one for each bundle")
        if len(selectors) != n_bundles:
            raise ValueError(
                f"bundle_label_selector={selectors!r}: expected one dict for each of the {n_bundles} bundles; {{}} "
                "where any node will do"
            )
        checked = [_options.label_selector(f"bundle_label_selector[{i}]", s) for i, s in enumerate(selectors)]
        said["selectors"] = [selector or () for selector in checked]
    if first is not None:
        if strategy != "STRICT_PACK":
            raise ValueError(f"_soft_target_node_id is only for strategy='STRICT_PACK', and this is {strategy!r}")
        try:
            said["first"] = bytes.fromhex(first)
        except (TypeError, ValueError):
            raise ValueError(f"_soft_target_node_id={first!r}: expected a node's id in hexadecimal") from None
    if fraction is not None:
        if isinstance(fraction, bool) or not isinstance(fraction, (int, float)) or not 0 < fraction <= 1:
            raise ValueError(f"_max_cpu_fraction_per_node={fraction!r}: expected a number above 0, at most 1")
        said["cpu_fraction"] = float(fraction)
    return said


def _readable(row: Mapping[str, Any]) -> dict[str, Any]:
    took_ms = (row["placed_s"] - row["created_s"]) * 1000 if row["placed_s"] else 0.0
    return {
        "placement_group_id": row["group_id"].hex(),
        "name": row["name"],
        "namespace": row["namespace"],
        "bundles": dict(enumerate(of_units(row["bundles"]))),
        "bundles_to_node_id": dict(enumerate(row["nodes"])),
        "strategy": row["strategy"],
        "state": "PENDING" if row["state"] == "RESERVING" else row["state"],
        "is_detached": row["detached"],
        "creator_job_id": row["job_id"].hex(),
        "why": row["why"],
        "stats": {
            "end_to_end_creation_latency_ms": took_ms,
            "scheduling_latency_ms": took_ms,
            "scheduling_attempt": row["attempts"],
            "scheduling_state": "FINISHED" if row["state"] == "CREATED" else row["state"],
        },
    }
