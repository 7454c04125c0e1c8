"""`ray list`, `ray get`, `ray summary`: the state API in a shell. PROCESS of that shell: it looks, and owns nothing."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any

RESOURCES = ("tasks", "actors", "objects", "nodes", "workers", "jobs", "placement-groups", "runtime-envs")
SUMMARIES = ("tasks", "actors", "objects")
_GET = {"objects": "get_objects"}  # the rest: the singular
_COLUMN_CHARS_MAX = 60


def add(commands: Any) -> None:
    """Adds the commands to argparse's `commands`."""
    listing = commands.add_parser("list", help="tasks, actors, objects, nodes, workers or jobs, one a line")
    listing.add_argument("resource", choices=RESOURCES)
    listing.add_argument(
        *("-f", "--filter"),
        action="append",
        default=[],
        metavar="COLUMN=VALUE",
        help="only rows of which this holds, or COLUMN!=VALUE; may be given several times",
    )
    listing.add_argument("--limit", type=int, default=100, help="rows at most (100)")
    listing.add_argument("--detail", action="store_true", help="all columns")
    listing.set_defaults(run=run_list)
    getting = commands.add_parser("get", help="all about one of them, by its id")
    getting.add_argument("resource", choices=[*RESOURCES[:-1], *(name[:-1] for name in RESOURCES[:-1])])
    getting.add_argument("id")
    getting.set_defaults(run=run_get)
    summing = commands.add_parser("summary", help="how many tasks, actors or objects there are of which kind")
    summing.add_argument("resource", choices=SUMMARIES)
    summing.set_defaults(run=run_summary)
    for command in (listing, getting, summing):
        command.add_argument("--format", choices=("default", "json"), default="default")
        add_session_arguments(command)


def add_session_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("--address", default=None, help="the folder of a session; by default the current one")
    command.add_argument(
        "--timeout", type=float, default=30.0, help="seconds that processes have for their answer (30)"
    )


def expected() -> tuple[type[Exception], ...]:
    """What a person is told in one line."""
    from ray.util.state.exception import RayStateApiException

    return (RayStateApiException, ConnectionError, TimeoutError, ValueError, TypeError, NotImplementedError, OSError)


def complain(command: str, error: Exception) -> int:
    print(f"ray {command}: {error}", file=sys.stderr)
    return 1


def run_list(options: argparse.Namespace) -> int:
    from ray.util import state

    function = getattr(state, "list_" + options.resource.replace("-", "_"))
    try:
        rows = function(
            options.address,
            filters=[parse_filter(given) for given in options.filter],
            limit=options.limit,
            timeout=options.timeout,
            detail=options.detail,
            raise_on_missing_output=False,
        )
    except expected() as error:
        return complain("list", error)
    dicts = [row.asdict() for row in rows]
    if options.format == "json":
        print(json.dumps(dicts, indent=2))
        return 0
    if not options.detail:
        dicts = [{key: value for key, value in row.items() if key in rows[0].base_columns()} for row in dicts]
    print(f"{rows.matching} {options.resource}, {len(rows)} of them shown, of {rows.total} in all")
    print("\n".join(table(dicts)))
    return 0


def run_get(options: argparse.Namespace) -> int:
    from ray.util import state

    plural = options.resource if options.resource.endswith("s") else options.resource + "s"
    name = _GET.get(plural, "get_" + plural[:-1].replace("-", "_"))
    try:
        found = getattr(state, name)(options.id, options.address, options.timeout)
    except expected() as error:
        return complain("get", error)
    rows = found if isinstance(found, list) else [found] if found is not None else []
    if not rows:
        print(f"ray get: no {plural[:-1]} with id {options.id!r} is known", file=sys.stderr)
        return 1
    dicts = [row.asdict() for row in rows]
    if options.format == "json":
        print(json.dumps(dicts, indent=2))
        return 0
    for row in dicts:
        width = max(map(len, row))
        print("\n".join(f"{key:{width}}  {_text(value)}" for key, value in row.items()) + "\n")
    return 0


def run_summary(options: argparse.Namespace) -> int:
    from ray.util import state

    function = getattr(state, "summarize_" + options.resource)
    try:
        summary = function(options.address, timeout=options.timeout, raise_on_missing_output=False)["cluster"]
    except expected() as error:
        return complain("summary", error)
    if options.format == "json":
        print(json.dumps(summary, indent=2))
        return 0
    groups = summary.pop("summary")
    print(", ".join(f"{key.replace('_', ' ')}: {_text(value)}" for key, value in summary.items()))
    rows = []
    for name, entry in groups.items():
        counts = entry.get("state_counts") or entry.get("ref_type_counts")
        row = {"name": name, **{k: v for k, v in entry.items() if not k.endswith("_counts") and v != name}}
        rows.append({**row, "counts": ", ".join(f"{key}: {number}" for key, number in sorted(counts.items()))})
    print("\n".join(table(rows)))
    return 0


def parse_filter(given: str) -> tuple[str, str, str]:
    """Raises: ValueError: it is no filter."""
    column, sign, value = given.partition("=")
    if not sign or not column.strip("! "):
        raise ValueError(f"--filter {given!r}: expected COLUMN=VALUE or COLUMN!=VALUE")
    return column.rstrip("! "), "!=" if column.rstrip().endswith("!") else "=", value.strip()


def table(rows: Sequence[dict[str, Any]], cell_chars_max: int = _COLUMN_CHARS_MAX) -> Iterable[str]:
    """Lines of a table with a heading; columns that are empty everywhere are left out."""
    columns = [key for key in (rows[0] if rows else ()) if any(row[key] not in (None, "", {}, []) for row in rows)]
    cells = [[_short(_text(row[key]), cell_chars_max) for key in columns] for row in rows]
    widths = [max([len(key), *(len(line[i]) for line in cells)]) for i, key in enumerate(columns)]
    for line in ([key.upper() for key in columns], *cells) if rows else ():
        yield "  ".join(f"{cell:{width}}" for cell, width in zip(line, widths)).rstrip()


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:g}"
    return json.dumps(value) if isinstance(value, (dict, list, bool)) else str(value)


def _short(text: str, chars_max: int) -> str:
    text = text.replace("\n", " ")
    return text if len(text) <= chars_max else text[: chars_max - 3] + "..."
