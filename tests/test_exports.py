"""What `import ray` gives: every public name, and nothing heavy. Each claim is checked in a fresh interpreter."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import ray

ROOT = Path(__file__).resolve().parents[1]
# The nouns and verbs that programs written for Ray's public API use on one machine.
NAMES = """
ActorID DynamicObjectRefGenerator JobID NodeID ObjectID ObjectRef ObjectRefGenerator TaskID WorkerID
Language LoggingConfig
actor available_resources cancel cloudpickle cluster_resources dag exceptions experimental
get get_actor get_gpu_ids get_runtime_context
init is_initialized kill log method nodes put remote remote_function shutdown timeline util wait __version__
""".split()
OLDER_NAMES = "error_info LOCAL_MODE PYTHON_MODE SCRIPT_MODE SILENT_MODE WORKER_MODE".split()
# A driver that only imports must stay small and quick: none of these may come with it.
HEAVY = (
    "numpy",
    "pyarrow",
    "pandas",
    "asyncio",
    "redis",
    "cloudpickle",
    "psutil",
    "multiprocessing",
    "concurrent.futures",
)


def in_fresh_python(code: str) -> Any:
    """What the code prints, read as JSON."""
    output = subprocess.run(
        [sys.executable, "-c", f"import json, sys\nsys.path.insert(0, {str(ROOT)!r})\n{code}"],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    ).stdout
    return json.loads(output)


@pytest.mark.parametrize("name", [*NAMES, *OLDER_NAMES])
def test_ray_has_the_name(name: str) -> None:
    assert getattr(ray, name) is not None
    assert name in dir(ray)


def test_all_names_that_ray_claims_are_there() -> None:
    missing = [name for name in ray.__all__ if not hasattr(ray, name)]
    assert missing == []


def test_an_unknown_name_is_an_attribute_error_that_names_it() -> None:
    with pytest.raises(AttributeError, match="no_such_thing"):
        getattr(ray, "no_such_thing")  # noqa: B009  (mypy knows that it isn't there)


def test_importing_ray_loads_nothing_heavy() -> None:
    loaded = in_fresh_python("import ray; print(json.dumps(sorted(sys.modules)))")
    assert sorted(set(HEAVY) & set(loaded)) == []


def test_every_python_folder_is_a_package() -> None:
    """setup.py finds packages by their __init__.py: a folder without one would be missing from what is installed."""
    folders = {p.parent for kind in ("py", "pyx") for p in (ROOT / "ray").rglob(f"*.{kind}")}
    assert sorted(str(f) for f in folders if not (f / "__init__.py").exists()) == []


def test_type_checkers_are_told_that_ray_is_typed() -> None:
    spec = importlib.util.find_spec("ray")
    assert spec is not None and spec.origin is not None
    assert (Path(spec.origin).parent / "py.typed").exists()


def test_the_version_passes_for_a_recent_one() -> None:
    major, minor, *_ = (int(part) for part in ray.__version__.split("."))
    assert (major, minor) >= (2, 60)
