"""`ray memory`: who holds which bytes, and by which line of the program. PROCESS of a shell: it owns nothing."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import Any

from ray.cli.state import add_session_arguments, complain, expected, table

_SORT = {"OBJECT_SIZE": "object_size", "PID": "pid", "REFERENCE_TYPE": "reference_type"}
_GROUP = {"STACK_TRACE": "call_site", "PID": "pid", "REFERENCE_TYPE": "reference_type"}
_CELL_CHARS_MAX = 200  # a path must stay whole
_HINT = "the lines that made them are recorded with RAY_record_ref_creation_sites=1 in the environment of ray.init()"


def add(commands: Any) -> None:
    """Adds the command to argparse's `commands`."""
    command = commands.add_parser("memory", help="which objects are held, by whom, and why")
    command.add_argument("--sort-by", choices=list(_SORT), default="OBJECT_SIZE")
    command.add_argument("--group-by", choices=list(_GROUP), default=None, help="one line a group, with its bytes")
    command.add_argument("-n", "--num-entries", type=int, default=100, help="lines at most (100)")
    command.add_argument("--stats-only", action="store_true", help="only the totals")
    add_session_arguments(command)
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    from ray.util import state

    try:
        rows = state.list_objects(
            options.address, limit=10_000, timeout=options.timeout, detail=True, raise_on_missing_output=False
        )
    except expected() as error:
        return complain("memory", error)
    print("\n".join(page([row.asdict() for row in rows], rows.total, options)))
    return 0


def page(rows: list[dict[str, Any]], total: int, options: argparse.Namespace) -> Iterable[str]:
    """What a person sees."""
    stored = {row["object_id"]: row["object_size"] for row in rows if row["in_object_store"] and not row["spilled"]}
    on_disk = {row["object_id"]: row["object_size"] for row in rows if row["spilled"]}
    small = [row for row in rows if not row["in_object_store"] and row["is_owner"]]
    yield f"In the object store: {size(sum(stored.values()))} in {len(stored)} objects"
    if on_disk:
        yield f"On disk, since the object store was full: {size(sum(on_disk.values()))} in {len(on_disk)} objects"
    yield f"In the memory of their owners: {size(sum(row['object_size'] for row in small))} in {len(small)} objects"
    yield f"References: {total}" + (f", of which the largest {len(rows)} are looked at" if total > len(rows) else "")
    if rows and all(row["call_site"] == "disabled" for row in rows):
        yield f"({_HINT})"
    if options.stats_only or not rows:
        return
    yield ""
    column = _GROUP.get(options.group_by)
    if column is not None:
        yield from table(list(_groups(rows, column))[: options.num_entries], _CELL_CHARS_MAX)
        return
    key = _SORT[options.sort_by]
    rows = sorted(rows, key=lambda row: row[key], reverse=key == "object_size")
    yield from table([_line(row) for row in rows[: options.num_entries]], _CELL_CHARS_MAX)
    if len(rows) > options.num_entries:
        yield f"... and {len(rows) - options.num_entries} more"


def _where(row: dict[str, Any]) -> str:
    if row["spilled"]:
        return "disk"
    return "store" if row["in_object_store"] else "owner" if row["is_owner"] else ""


def _line(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "size": size(row["object_size"]),
        "where": _where(row),
        "held by": f"{row['type'].lower()} {row['pid']}",
        "as": "owner" if row["is_owner"] else "borrower" if row["is_owner"] is not None else "",
        "why": row["reference_type"],
        "references": row["local_references"],
        "borrowers": row["borrowers"] or "",
        "pinned by": ", ".join(map(str, row["pinned_by_pids"] or ())),
        "made at": "" if row["call_site"] == "disabled" else row["call_site"],
        "object id": row["object_id"],
    }


def _groups(rows: list[dict[str, Any]], column: str) -> Iterable[dict[str, Any]]:
    groups: dict[Any, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row[column], []).append(row)
    for name, members in sorted(groups.items(), key=lambda item: -sum(row["object_size"] for row in item[1])):
        yield {
            column.replace("_", " "): name,
            "size": size(sum(row["object_size"] for row in members)),
            "references": len(members),
            "objects": len({row["object_id"] for row in members}),
        }


def size(nbytes: float) -> str:
    """As a person reads it: 512 B, 1.5 MiB."""
    for unit in ("B", "KiB", "MiB"):
        if nbytes < 1024:
            return f"{nbytes:.4g} {unit}"
        nbytes /= 1024
    return f"{nbytes:.4g} GiB"
