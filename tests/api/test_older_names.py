"""The older vocabulary (ray/_aliases.py), and that the package has the names it says it has."""

from __future__ import annotations

import pytest

import ray
from ray import _aliases


@pytest.mark.parametrize("name", sorted({*ray._HOME, *_aliases.EXPORTS}))
def test_every_name_of_the_package_can_be_loaded(name):
    assert getattr(ray, name) is not None
    assert name in dir(ray)


def test_star_import_gives_the_public_names():
    names: dict[str, object] = {}
    exec("from ray import *", names)
    assert {"init", "get", "put", "wait", "remote", "ObjectRef"} <= set(names)


def test_what_type_checkers_are_told_is_what_there_is():
    import ast
    import inspect

    tree = ast.parse(inspect.getsource(ray))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    told = {alias.asname for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assigned = [node for node in block.body if isinstance(node, ast.Assign)]
    told |= {target.id for node in assigned for target in node.targets if isinstance(target, ast.Name)}
    for name in told:
        assert hasattr(ray, name), name
    missing = {*ray._HOME, *_aliases.EXPORTS} - told
    # Modules, and names of ray.exceptions that the oldest programs take from the package itself.
    assert missing <= {
        "plasma",
        "job_config",
        "runtime_context",
        "errors",
        "RayTaskError",
        "RayActorError",
        "RayTimeoutError",
    }


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = ray.nonsense


def test_object_id_is_object_ref():
    assert ray.ObjectID is ray.ObjectRef


def test_num_return_vals_and_num_custom_resource(engine):
    @ray.remote(num_return_vals=2, num_custom_resource=1)
    def f():
        return 1, 2

    engine.start(num_cpus=1, num_custom_resource=2)
    assert ray.cluster_resources()["CustomResource"] == 2
    assert ray.get(f.remote(), timeout=30) == [1, 2]


def test_error_info_lists_what_failed(ray_start):
    from tests.wait import wait_until

    @ray.remote
    def fail():
        raise Exception("This task failed!!")

    fail.remote()
    errors = wait_until(ray.error_info)
    assert any("This task failed!!" in error["message"] for error in errors)
