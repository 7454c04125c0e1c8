"""ray/_init_options.py: every argument of ray.init of both documents is known, checked, and passed on or refused."""

from __future__ import annotations

import logging
import math
import sys

import pytest

from ray import _aliases
from ray._init_options import ARGUMENTS, OF_A_SESSION, parse
from ray._launch import address
from ray.job_config import JobConfig

# The signatures of seeds 000 and 004 (chapter 1.6.1), names only.
SEED_000 = """address num_cpus num_gpus resources labels object_store_memory local_mode ignore_reinit_error
    include_dashboard dashboard_host dashboard_port job_config configure_logging logging_level logging_format
    log_to_driver namespace runtime_env storage _enable_object_reconstruction _redis_max_memory _plasma_directory
    _node_ip_address _driver_object_store_memory _memory _redis_password _temp_dir _metrics_export_port _system_config
    _tracing_startup_hook _node_name""".split()
SEED_004 = """redis_address node_ip_address object_id_seed num_workers driver_mode redirect_output num_cpus num_gpus
    num_custom_resource num_redis_shards plasma_directory huge_pages""".split()


@pytest.mark.parametrize("name", SEED_000 + SEED_004)
def test_every_argument_of_the_documents_is_known(name):
    default = ARGUMENTS[_aliases.INIT.get(name, name)][0] if name != "num_custom_resource" else None
    parse({name: default})


@pytest.mark.parametrize(
    "name, value",
    [
        *[("num_cpus", bad) for bad in (-1, 1.5, math.nan, "2", True, [1])],
        *[("num_gpus", bad) for bad in (-1, "2")],
        *[("_tracing_startup_hook", bad) for bad in (7, "module", "module:", ":function", "a b:c")],
        *[("_metrics_export_port", bad) for bad in (-1, 70_000, "9090", True)],
        *[("resources", bad) for bad in ("tape", {"tape": -1}, {"tape": math.nan}, {"CPU": 2}, {2: 2})],
        *[("object_store_memory", bad) for bad in (-1, "1GB", math.nan)],
        *[("ignore_reinit_error", bad) for bad in (1, "yes", None)],
        *[("local_mode", bad) for bad in (1, "yes", None)],
        *[("logging_level", bad) for bad in ("loud", 1.5, None)],
        ("logging_format", 5),
        ("log_to_driver", "no"),
        ("namespace", ""),
        ("namespace", 5),
        ("include_dashboard", "yes"),
        ("dashboard_port", 70_000),
        ("dashboard_port", "8265"),
        ("address", 5),
        ("address", "relative/folder"),
        *[("labels", bad) for bad in ("a", {"zone": 1}, {1: "a"}, {"": "a"}, {"zone": "-a"}, {"ray.io/node-id": "x"})],
        ("job_config", "fast"),
        ("driver_mode", 17),
        ("driver_mode", True),
        ("num_redis_shards", 0),
        ("num_workers", -1),
        ("plasma_directory", "/no/such/folder"),
        ("_temp_dir", "relative/path"),
        ("_memory", -5),
        ("_system_config", "fast"),
        ("_system_config", {"idle_workers_kept": "many"}),
        *[("object_id_seed", bad) for bad in (-1, 1.5, "7", True)],
        *[("storage", bad) for bad in (5, "", "relative", "/no/such/folder", "/etc/passwd")],
        ("_driver_object_store_memory", -1),
        ("huge_pages", 1),
    ],
    ids=repr,
)
def test_a_bad_argument_is_an_error_that_names_it(name, value):
    with pytest.raises((ValueError, TypeError), match=name):
        parse({name: value})


@pytest.mark.parametrize(
    "name, value",
    [
        ("include_dashboard", True),
        ("storage", "s3://bucket/folder"),
    ],
    ids=repr,
)
def test_what_a_later_version_brings_says_that_it_is_not_built(name, value):
    with pytest.raises(NotImplementedError, match=_aliases.INIT.get(name, name)):
        parse({name: value})


@pytest.mark.parametrize("argument", [None, "auto"])
def test_an_address_in_the_environment_is_not_ignored(argument):
    for kind, value in ((ConnectionError, "12.34.56.78:6379"), (ValueError, "somewhere")):
        with pytest.raises(kind, match=f"RAY_ADDRESS='{value}'"):
            address.resolve(argument, {"RAY_ADDRESS": value})
    assert address.resolve("local", {"RAY_ADDRESS": "12.34.56.78:6379"}) is None
    assert address.resolve(None, {"RAY_ADDRESS": "local"}) is None


@pytest.mark.parametrize("given, meant", [("num_cpu", "num_cpus"), ("redis_adress", "redis_address")])
def test_an_unknown_argument_is_refused_with_the_nearest_known_one(given, meant):
    with pytest.raises(TypeError, match=f"unknown argument '{given}'; did you mean '{meant}'"):
        parse({given: 1})


def test_what_a_session_is_made_of_is_known_by_its_name():
    assert set(OF_A_SESSION) - {"num_custom_resource"} <= set(ARGUMENTS)


def test_huge_pages_need_a_folder():
    with pytest.raises(ValueError, match="plasma_directory"):
        parse({"huge_pages": True})


def test_an_older_name_beside_its_newer_one_is_refused():
    with pytest.raises(TypeError, match="redis_address"):
        parse({"redis_address": "local", "address": "local"})


def test_resources_are_in_units_and_only_those_given():
    options = parse({"num_cpus": 2, "resources": {"tape": 0.5}, "_memory": 100, "num_custom_resource": 3})
    assert options.resources() == {"CPU": 20_000, "tape": 5_000, "memory": 1_000_000, "CustomResource": 30_000}
    assert parse({}).resources() == {}
    assert parse({"num_cpus": 0}).resources() == {"CPU": 0}


@pytest.mark.parametrize("level, number", [("error", 40), ("INFO", 20), (logging.DEBUG, 10), (15, 15)])
def test_a_logging_level_is_a_name_or_a_number(level, number):
    assert parse({"logging_level": level}).logging_level == number


@pytest.mark.parametrize(
    "arguments, prints",
    [
        ({}, True),
        ({"log_to_driver": False}, False),
        ({"driver_mode": _aliases.SILENT_MODE}, False),
        ({"driver_mode": _aliases.SCRIPT_MODE}, True),
        ({"redirect_output": True}, False),
    ],
)
def test_who_prints_what_workers_print(arguments, prints):
    assert parse(arguments).driver_info()["log_to_driver"] is prints


def test_the_namespace_comes_from_the_argument_or_the_job_or_is_nobody_s():
    job = JobConfig(ray_namespace="job")
    assert parse({"namespace": "mine", "job_config": job}).driver_info()["namespace"] == "mine"
    assert parse({"job_config": job}).driver_info()["namespace"] == "job"
    assert parse({}).driver_info()["namespace"] != parse({}).driver_info()["namespace"]


def test_what_the_node_is_told(tmp_path):
    config = parse(
        {
            "object_store_memory": 1e8,
            "plasma_directory": tmp_path,
            "redis_max_memory": 10**7,
            "_redis_password": "secret",
            "num_redis_shards": 2,
            "num_workers": 3,
            "_system_config": {"idle_worker_timeout_s": 1.0},
        }
    ).node_config()
    assert config["object_store_memory"] == 100_000_000
    assert config["plasma_directory"] == str(tmp_path)
    assert config["redis_max_memory"] == 10**7
    assert config["redis_password"] == "secret"
    assert config["num_redis_shards"] == 2
    assert config["settings"] == {"idle_worker_timeout_s": 1.0, "prestart_workers": 3}
    assert config["job"]["sys_path"] == sys.path
