"""Fixtures that give a test an engine, and checks that nothing is left behind. PROCESS: pytest, which is the driver.

    def test_x(ray_start): ...       a session of its own; ends by asserting that nothing of it is left
    @pytest.mark.parametrize("ray_start", [{"num_cpus": 4}], indirect=True)       with these arguments of ray.init
    def test_y(ray_shared): ...      a session that such tests share (2 CPUs): quicker, for tests that leave it usable

There is one session at a time in a process, so a test with `ray_start` ends the shared one, and the next test with
`ray_shared` begins another. The whole run fails if any process, session folder, segment or socket outlives it.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from tests.leaks import Snapshot

# Ours must not join a cluster that the person running the tests happens to use, nor must programs that they start.
for name in ("RAY_NAMESPACE", "RAY_RUNTIME_ENV", "RAY_STORAGE", "RAY_TMPDIR"):
    os.environ.pop(name, None)
os.environ["RAY_ADDRESS"] = "local"

# A shell starts background jobs with SIGINT ignored, and children inherit that; tests of Ctrl-C need a person's state.
signal.signal(signal.SIGINT, signal.default_int_handler)

at_start = Snapshot.take()
# What ends by itself may be slow on a busy machine; what is left behind stays. A test of this file itself is quicker.
at_end_s = float(os.environ.get("RAY_TEST_LEFT_AFTER_S", "30"))
left_by_the_run = pytest.StashKey[list[str]]()


class Engine:
    """At most one session of `ray` in this process, and what there was before it."""

    def __init__(self) -> None:
        self._before: Snapshot | None = None

    def start(self, **options: Any) -> Any:
        """ray.init(**options), after ending what runs. Returns what init returned."""
        import ray

        self.stop()
        self._before = Snapshot.take()
        return ray.init(**options)

    def stop(self) -> None:
        """ray.shutdown(), if a session runs.
        Raises: AssertionError: something is left of it.
        """
        import ray

        ray.shutdown()
        before, self._before = self._before, None
        if before is not None:
            lines = before.wait_until_clean(60.0)
            assert not lines, "left behind after ray.shutdown():\n  " + "\n  ".join(lines)

    def watch(self) -> None:
        """Ends what runs; `stop` will then look for what a cluster of the test's own has left behind."""
        self.stop()
        self._before = Snapshot.take()

    def share(self) -> None:
        """Starts the shared session unless it runs already."""
        import ray

        if not ray.is_initialized():
            self.start(num_cpus=2)


@pytest.fixture(scope="session")
def engine() -> Iterator[Engine]:
    """For tests that start and stop sessions themselves; most want ray_start or ray_shared."""
    engine = Engine()
    yield engine
    engine.stop()


@pytest.fixture
def ray_start(request: pytest.FixtureRequest, engine: Engine) -> Iterator[Any]:
    """A session of the test's own: 2 CPUs, or the arguments of ray.init that the test is parametrized with."""
    yield engine.start(**{"num_cpus": 2, **getattr(request, "param", {})})
    engine.stop()


@pytest.fixture
def ray_shared(engine: Engine) -> None:
    """A session of 2 CPUs that such tests share; a test must leave nothing running in it."""
    engine.share()


@pytest.fixture(autouse=True, scope="module")
def level_of_the_log() -> Iterator[None]:
    """A session that was told to be quiet (`logging_level=`) leaves the logger so: not for the next file's tests."""
    logger = logging.getLogger("ray")
    level = logger.level
    yield
    logger.setLevel(level)


def pytest_collection_finish() -> None:
    """What the tests themselves are made of stays: without it a collection, of which many tests ask for one, is ten
    times as quick."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish(session: pytest.Session) -> None:
    lines = at_start.wait_until_clean(at_end_s, inside=False)
    if lines:
        session.config.stash[left_by_the_run] = lines
        session.exitstatus = session.exitstatus or pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for line in config.stash.get(left_by_the_run, []):
        terminalreporter.write_line(f"LEFT BEHIND by this run: {line}", red=True)
