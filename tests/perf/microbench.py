"""The microbenchmark's rows (ray/cli/microbenchmark.py) on whatever `ray` the interpreter imports, ours or a peer's.

    PYTHON tests/perf/microbench.py [--only TEXT | --row NAME] [--seconds 1.0] [--json FILE] [--list]

Run as a script on purpose: then Python's path begins with this folder, not with the repository, and so `import ray` is
what the interpreter has installed. For this tree's own build: PYTHONPATH=. or an environment made by tools/setup.
"""

import runpy
from pathlib import Path

runpy.run_path(str(Path(__file__).parents[2] / "ray" / "cli" / "microbenchmark.py"), run_name="__main__")
