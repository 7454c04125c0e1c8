"""ray.LoggingConfig, in the driver and in workers, and ray.log."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import textwrap
from typing import Any

import pytest

import ray
from ray import log


def run(program: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **environment},
    )


def records(done: subprocess.CompletedProcess[str]) -> dict[str, dict[str, Any]]:
    """By message: the records in JSON among the lines of stderr; workers have their name before them."""
    lines = [line[line.index("{") :] for line in done.stderr.splitlines() if "{" in line]
    found = [json.loads(line) for line in lines]
    return {record["message"]: record for record in found}


PROGRAM = """
import logging, sys, ray
ray.init(num_cpus=1, {config})
logger = logging.getLogger("mine")

@ray.remote
def work():
    logger.debug("too fine")
    logger.info("in a task", extra={{"rows": 3}})

@ray.remote
class Worker:
    def work(self):
        try:
            1 / 0
        except ZeroDivisionError:
            logger.exception("in an actor")

logger.info("in the driver")
ray.get(work.remote())
worker = Worker.options(name="w").remote()
ray.get(worker.work.remote())
print(ray.get_runtime_context().get_job_id())
"""


def test_records_of_driver_tasks_and_actors_are_json_that_says_where_they_were_made():
    done = run(PROGRAM.format(config="logging_config=ray.LoggingConfig(encoding='JSON')"))
    found = records(done)
    driver, task, actor = found["in the driver"], found["in a task"], found["in an actor"]
    assert {r["job_id"] for r in (driver, task, actor)} == {done.stdout.split()[0]}
    assert len({r["worker_id"] for r in (driver, task, actor)}) == 3
    assert (
        task["task_name"] == "work" and len(task["task_id"]) > 8 and task["rows"] == 3 and task["levelname"] == "INFO"
    )
    assert actor["actor_name"] == "w" and actor["task_name"] and "ZeroDivisionError" in actor["exc_text"]
    assert "task_id" not in driver and "actor_id" not in task and driver["timestamp_ns"] <= task["timestamp_ns"]
    assert "too fine" not in found
    assert any(message.startswith("Started ray") for message in found)


def test_text_ends_with_where_it_was_made_and_what_was_asked_for():
    config = "logging_config=ray.LoggingConfig(log_level='DEBUG', additional_log_standard_attrs=['name'])"
    done = run(PROGRAM.format(config=config))
    line = next(line for line in done.stderr.splitlines() if "in a task" in line)
    assert " INFO " in line and " -- in a task job_id=" in line and " name=mine rows=3 timestamp_ns=" in line
    assert "too fine" in done.stderr
    assert "ZeroDivisionError: division by zero" in done.stderr


def test_without_a_config_workers_log_as_python_does_and_the_environment_may_choose():
    assert "in a task" not in run(PROGRAM.format(config="logging_level='error'")).stderr
    assert "in a task" in records(run(PROGRAM.format(config=""), RAY_LOGGING_CONFIG_ENCODING="JSON"))


def test_shutdown_takes_the_handler_back_and_leaves_others():
    done = run(
        """
        import logging, os, ray
        logging.basicConfig()
        before = [*logging.getLogger().handlers]
        for _ in range(2):
            ray.init(num_cpus=1, logging_config=ray.LoggingConfig())
            assert len(logging.getLogger().handlers) == 2

            @ray.remote
            def seen():
                return [name for name in os.environ if "LOGGING" in name]

            assert ray.get(seen.remote()) == []
            ray.shutdown()
        assert logging.getLogger().handlers == before
        """
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "given, kind, says",
    [
        ({"encoding": "XML"}, ValueError, "encoding='XML': expected one of TEXT, JSON"),
        ({"log_level": 10}, TypeError, "log_level=10: expected a string"),
        ({"log_level": "LOUD"}, ValueError, "log_level='LOUD': expected a level"),
        ({"additional_log_standard_attrs": "name"}, TypeError, "additional_log_standard_attrs='name': expected a list"),
        ({"additional_log_standard_attrs": ["nam"]}, ValueError, "'nam' is none of name, "),
    ],
)
def test_a_wrong_config_names_the_argument(given, kind, says):
    with pytest.raises(kind, match=says):
        ray.LoggingConfig(**given)


def test_init_refuses_what_is_no_logging_config():
    with pytest.raises(TypeError, match=r"logging_config='JSON': expected a ray\.LoggingConfig"):
        ray.init(logging_config="JSON")


def test_configs_that_say_the_same_are_equal_and_travel():
    config = ray.LoggingConfig("JSON", "30", ["process"])
    assert config == ray.LoggingConfig.loads(config.dumps()) and config.level == logging.WARNING
    assert hash(config) == hash(ray.LoggingConfig("JSON", "30", ("process",)))


def test_ray_log_sets_up_the_logger_named_ray():
    done = run(
        """
        import logging
        from ray import log
        log.generate_logging_config()
        logger = logging.getLogger("ray")
        assert logger.level == logging.INFO and len(logger.handlers) == 1 and not logger.propagate
        log.setup_logger("error", "<%(message)s>")
        assert logger.level == logging.ERROR and len(logger.handlers) == 1
        logger.error("said")
        """
    )
    assert done.stderr == "<said>\n", done.stderr
    assert log.LOGGING_FORMAT.startswith("%(asctime)s")
