"""PROCESS plasma_store: `python -m ray.plasma --memory 1GB --socket PATH` and the console command of that name.

Replaces itself by the executable of the package, so that the process that was started is the store.
"""

import os
import sys

from ray.plasma.server import store_binary


def main() -> None:
    """Runs the store with this process's arguments; does not return."""
    try:
        binary = store_binary()
    except FileNotFoundError as e:
        sys.exit(f"plasma_store: {e}")
    os.execv(binary, ["plasma_store", *sys.argv[1:]])


if __name__ == "__main__":
    main()
