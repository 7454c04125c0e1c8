"""The objects that may be given as scheduling_strategy= of a task or actor. See docs/api/placement_groups.md."""

from __future__ import annotations

from typing import Union

from ray._placement import DoesNotExist as DoesNotExist
from ray._placement import Exists as Exists
from ray._placement import In as In
from ray._placement import NodeAffinitySchedulingStrategy as NodeAffinitySchedulingStrategy
from ray._placement import NodeLabelSchedulingStrategy as NodeLabelSchedulingStrategy
from ray._placement import NotIn as NotIn
from ray._placement import PlacementGroupSchedulingStrategy as PlacementGroupSchedulingStrategy

SchedulingStrategyT = Union[
    None,
    str,  # "DEFAULT" or "SPREAD"
    PlacementGroupSchedulingStrategy,
    NodeAffinitySchedulingStrategy,
    NodeLabelSchedulingStrategy,
]
