"""The command `ray`. PROCESS of a person's shell: started and waited for by them, owns nothing.

Each subcommand is a function that takes the parsed arguments and returns the exit status; a larger one has a module of
its own, which adds it. The engine is imported by the subcommands that need it, so that `ray --version` answers at once.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from ray._version import __version__
from ray.cli import debug, memory, simulate, start, state, status, stop, timeline


def run_microbenchmark(options: argparse.Namespace) -> int:
    from ray.cli import microbenchmark as rows

    return rows.main(["--only", options.only, "--seconds", str(options.seconds)])


def parser() -> argparse.ArgumentParser:
    root = argparse.ArgumentParser(prog="ray", description="Runs Python functions and classes in parallel.")
    root.add_argument("--version", action="version", version=f"ray, version {__version__}")
    commands = root.add_subparsers(title="commands", required=True, metavar="COMMAND")

    for command in (start, stop, status, state, memory, timeline, simulate, debug):
        command.add(commands)
    bench = commands.add_parser("microbenchmark", help="rates of tasks, actor calls, put and get on this machine")
    bench.add_argument("--only", default="", metavar="TEXT", help="only rows whose name contains this")
    bench.add_argument("--seconds", type=float, default=1.0, help="length of each of the four windows of a row")
    bench.set_defaults(run=run_microbenchmark)
    return root


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of the command. Returns the exit status; argparse exits by itself with 2 on wrong usage."""
    options = parser().parse_args(arguments)
    return int(options.run(options))


if __name__ == "__main__":
    sys.exit(main())
