"""ray/_options.py: each wrong option is an error that names it; each right one reaches the engine as it should."""

from __future__ import annotations

import decimal
import fractions
import functools
import math

import numpy as np
import pytest

from ray import _options
from ray._options import (
    ACTOR,
    METHOD,
    TASK,
    actor_resources,
    actor_template,
    check,
    is_generator,
    returns_of,
    task_resources,
    task_template,
)

BAD_QUANTITIES = [-1, -0.5, math.nan, math.inf, -math.inf, "1", b"1", "many", [1], {"CPU": 1}, True, False, 1e-9, 1j]


@pytest.mark.parametrize("option", ["num_cpus", "num_gpus", "memory"])
@pytest.mark.parametrize("value", BAD_QUANTITIES, ids=repr)
@pytest.mark.parametrize("table", [TASK, ACTOR], ids=["task", "actor"])
def test_a_bad_quantity_is_an_error_that_names_the_option(table, option, value):
    with pytest.raises((ValueError, TypeError), match=f"^{option}="):
        check(table, {option: value}, "it")


@pytest.mark.parametrize("value", BAD_QUANTITIES, ids=repr)
def test_a_bad_amount_of_a_custom_resource_is_an_error_that_names_the_resource(value):
    with pytest.raises((ValueError, TypeError), match="tape"):
        check(TASK, {"resources": {"tape": value}}, "it")


@pytest.mark.parametrize(
    "table, option, value",
    [
        (TASK, "num_gpus", 1.5),
        (TASK, "resources", [("tape", 1)]),
        (TASK, "resources", "tape"),
        (TASK, "resources", {1: 1}),
        (TASK, "resources", {"": 1}),
        (TASK, "num_returns", -1),
        (TASK, "num_returns", 1.5),
        (TASK, "num_returns", "two"),
        (TASK, "num_returns", True),
        (TASK, "max_calls", -1),
        (TASK, "max_retries", -2),
        (TASK, "max_retries", "3"),
        (TASK, "max_retries", math.nan),
        (TASK, "retry_exceptions", 1),
        (TASK, "retry_exceptions", [ValueError, "KeyError"]),
        (TASK, "retry_exceptions", [int]),
        (TASK, "name", 5),
        (TASK, "name", ""),
        (TASK, "scheduling_strategy", "RANDOM"),
        (TASK, "accelerator_type", 4),
        (ACTOR, "max_restarts", -2),
        (ACTOR, "max_task_retries", -2),
        (ACTOR, "max_task_retries", 1.0),
        (ACTOR, "max_concurrency", 0),
        (ACTOR, "max_concurrency", "8"),
        (ACTOR, "lifetime", "forever"),
        (ACTOR, "namespace", ""),
        (ACTOR, "get_if_exists", 1),
        (METHOD, "num_returns", -3),
    ],
    ids=repr,
)
def test_a_bad_value_is_an_error_that_names_the_option_and_shows_the_value(table, option, value):
    with pytest.raises((ValueError, TypeError)) as refused:
        check(table, {option: value}, "it")
    assert option in str(refused.value)


@pytest.mark.parametrize("name, instead", [("CPU", "num_cpus"), ("GPU", "num_gpus"), ("memory", "memory")])
def test_a_predefined_resource_among_custom_ones_is_an_error_that_names_the_option_to_use(name, instead):
    with pytest.raises(ValueError, match=f"use {instead}=2"):
        check(TASK, {"resources": {name: 2}}, "it")


@pytest.mark.parametrize(
    "table, option, hint",
    [
        (TASK, "num_cpu", "did you mean 'num_cpus'"),
        (TASK, "num_return", "did you mean 'num_return"),
        (TASK, "max_restarts", "only for actor classes"),
        (ACTOR, "max_retries", "only for remote functions"),
        (ACTOR, "num_returns", "only for remote functions"),
        (TASK, "zzz", "unknown option 'zzz'$"),
    ],
)
def test_an_unknown_option_is_an_error_with_a_hint(table, option, hint):
    with pytest.raises(ValueError, match=hint):
        check(table, {option: 1}, "it")


@pytest.mark.parametrize(
    "table, option, value",
    [
        (ACTOR, "object_store_memory", 10**6),
        (METHOD, "tensor_transport", "nccl"),
    ],
    ids=repr,
)
def test_an_option_of_a_later_version_says_that_it_is_not_built(table, option, value):
    with pytest.raises(NotImplementedError, match=f"^{option}="):
        check(table, {option: value}, "it")


@pytest.mark.parametrize(
    "table, option, value",
    [
        (TASK, "runtime_env", None),
        (TASK, "runtime_env", {}),
        (TASK, "scheduling_strategy", "DEFAULT"),
        (TASK, "scheduling_strategy", "SPREAD"),
        (TASK, "scheduling_strategy", None),
        (TASK, "resources", None),
        (TASK, "num_cpus", None),
        (TASK, "num_cpus", np.float32(0.5)),
        (TASK, "num_cpus", np.int64(2)),
        (TASK, "num_cpus", fractions.Fraction(1, 3)),
        (TASK, "num_cpus", decimal.Decimal("0.5")),
        (TASK, "_metadata", {"workflows.io/options": {}}),
        (TASK, "enable_task_events", False),
        (ACTOR, "_labels", {"zone": "a"}),
        (ACTOR, "max_pending_calls", -1),
        (ACTOR, "max_pending_calls", 10),
        (ACTOR, "concurrency_groups", None),
        (ACTOR, "checkpoint_interval", 5),
        (ACTOR, "checkpoint_interval", -1),
        (ACTOR, "lifetime", None),
    ],
    ids=repr,
)
def test_a_value_that_asks_for_nothing_or_is_right_is_accepted(table, option, value):
    check(table, {option: value}, "it")


def test_older_names_mean_the_newer_ones():
    assert check(TASK, {"num_return_vals": 3}, "it") == {"num_returns": 3}
    assert check(TASK, {"num_custom_resource": 2}, "it") == {"resources": {"CustomResource": 2.0}}
    assert check(ACTOR, {"max_reconstructions": 2}, "it") == {"max_restarts": 2}


def test_an_older_name_beside_its_newer_one_is_refused():
    with pytest.raises(TypeError, match="num_return_vals"):
        check(TASK, {"num_return_vals": 3, "num_returns": 3}, "it")


def test_a_task_takes_one_cpu_unless_told_otherwise():
    assert task_resources({}) == {"CPU": 10_000}
    assert task_resources({"num_cpus": 0}) == {}
    assert task_resources({"num_cpus": 0.5, "resources": {"tape": 2}}) == {"CPU": 5_000, "tape": 20_000}
    assert task_resources({"num_gpus": 1}) == {"CPU": 10_000, "GPU": 10_000}
    assert task_resources({"memory": 100}) == {"CPU": 10_000, "memory": 1_000_000}


@pytest.mark.parametrize(
    "options, held, placement",
    [
        ({}, {}, {"CPU": 10_000}),
        ({"num_cpus": 0}, {}, {}),
        ({"num_cpus": 2}, {"CPU": 20_000}, {"CPU": 20_000}),
        ({"num_gpus": 1}, {"CPU": 10_000, "GPU": 10_000}, {"CPU": 10_000, "GPU": 10_000}),
        ({"num_cpus": 0, "num_gpus": 1}, {"GPU": 10_000}, {"GPU": 10_000}),
        ({"resources": {"tape": 1}}, {"CPU": 10_000, "tape": 10_000}, {"CPU": 10_000, "tape": 10_000}),
        ({"memory": 10}, {"memory": 100_000}, {"memory": 100_000, "CPU": 10_000}),
    ],
)
def test_an_actor_holds_what_it_asked_for_and_nothing_if_it_asked_for_nothing(options, held, placement):
    assert actor_resources(options) == (held, placement)


@pytest.mark.parametrize(
    "generator, options, expected",
    [
        (True, {}, ("streaming", 0)),
        (False, {}, (1, 0)),
        (None, {}, (1, 0)),
        (None, {"num_returns": "dynamic"}, ("dynamic", 0)),
        (True, {"num_returns": 3}, (3, 0)),
        (True, {"_generator_backpressure_num_objects": 4}, ("streaming", 4)),
    ],
    ids=repr,
)
def test_a_generator_streams_unless_told_otherwise(generator, options, expected):
    assert returns_of(generator, options, "f") == expected


def test_what_a_function_wraps_does_not_make_it_a_generator():
    def items():
        yield 1

    @functools.wraps(items)
    def gather():
        return list(items())

    assert is_generator(items) and is_generator(gather) is None and is_generator(len) is None
    assert is_generator(lambda: 1) is False


def test_gpu_tasks_end_their_worker_and_others_do_not():
    assert task_template({"num_gpus": 0.5})["max_calls"] == 1
    assert task_template({"num_gpus": 1, "max_calls": 0})["max_calls"] == 0
    assert task_template({})["max_calls"] == 0


def test_an_async_actor_runs_many_calls_at_once_and_another_one():
    assert actor_template({}, is_async=True)["max_concurrency"] == _options.ACTOR_CONCURRENCY_ASYNC
    assert actor_template({}, is_async=False)["max_concurrency"] == 1
    assert actor_template({"max_concurrency": 7}, is_async=True)["max_concurrency"] == 7


def test_options_in_a_loop_make_one_variant_and_few_are_kept():
    variants: _options.Variants[object] = _options.Variants()
    made = [variants.get({"num_cpus": 1, "resources": {"tape": 1}}, lambda _: object()) for _ in range(3)]
    assert len(set(map(id, made))) == 1
    assert variants.get({"num_cpus": 1.0}, lambda _: 1) == 1
    assert variants.get({"num_cpus": True}, lambda _: 2) == 2  # equal to 1, and not valid
    for i in range(1000):
        variants.get({"name": str(i), "runtime_env": [{}, set()]}, lambda _: 3)
    assert len(variants._made) <= variants.KEPT_MAX
