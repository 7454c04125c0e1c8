"""ray.job_config.JobConfig."""

from __future__ import annotations

import pytest

import ray
from ray.job_config import JobConfig


def test_it_carries_a_namespace_and_metadata():
    config = JobConfig(ray_namespace="team", metadata={"owner": "me"})
    config.set_metadata("purpose", "tests")
    assert (config.ray_namespace, config.metadata) == ("team", {"owner": "me", "purpose": "tests"})


@pytest.mark.parametrize(
    "arguments, named",
    [
        ({"metadata": {"a": 1}}, "metadata"),
        ({"ray_namespace": ""}, "ray_namespace"),
        ({"ray_namespace": 5}, "ray_namespace"),
    ],
    ids=repr,
)
def test_a_bad_argument_is_an_error_that_names_it(arguments, named):
    with pytest.raises((TypeError, ValueError), match=named):
        JobConfig(**arguments)


@pytest.mark.parametrize(
    "arguments",
    [{"default_actor_lifetime": "detached"}, {"code_search_path": ["/x"]}],
    ids=repr,
)
def test_what_is_not_built_says_so(arguments):
    with pytest.raises(NotImplementedError, match=next(iter(arguments))):
        JobConfig(**arguments)


@pytest.mark.parametrize("ray_start", [{"job_config": JobConfig(ray_namespace="team")}], indirect=True)
def test_init_takes_the_namespace_from_it(ray_start):
    assert ray.get_runtime_context().namespace == "team"
