"""Prints docs/internals/states.md from the transition tables, so that the page cannot differ from the code.

    python tools/states.py            writes the page
    python tools/states.py --check    exit status 1 if it is not what it would write (tests/unit/test_states_page.py)

Reads the source of each machine, imports nothing: what a module's opening paragraph says of the states, each row of its
TRANSITIONS with the comment beside it, and the states to which the row's step can lead, found in its return statements.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "internals" / "states.md"

# Title, file, and the file that defines the states, if it is another. In the order in which a cluster comes to life.
MACHINES = (
    ("Node", "ray/_head/monitor.py", None),
    ("Member", "ray/_head/membership.py", None),
    ("Job", "ray/_head/jobs.py", None),
    ("Worker", "ray/_node/worker_pool.py", None),
    ("Runtime environment", "ray/_node/runtime_envs.py", None),
    ("Lease", "ray/_node/local_scheduler.py", "ray/_node/leases.py"),
    ("Memory watch", "ray/_node/memory_watch.py", None),
    ("Bundle", "ray/_node/bundles.py", None),
    ("Actor", "ray/_head/actor_directory.py", "ray/_head/actor_record.py"),
    ("Placement group", "ray/_head/placement_groups.py", "ray/_head/group_record.py"),
)
HEADER = """# States

Printed by `python tools/states.py` from the transition tables; do not edit. Each machine is a class without I/O that
turns events into actions (`handle(event, now)`); its opening paragraph and its table are below, in that order. An event
that meets a state for which there is no row is a bug and raises `InvalidTransition` with the last transitions of the
entity. `=` means that the state stays.
"""


class Row(NamedTuple):
    state: str
    event: str
    step: str
    after: list[str]
    why: str


def state_names(tree: ast.Module) -> list[str]:
    """Constants whose value is their own name, in the order they are defined."""
    found: list[str] = []
    for node in tree.body:
        if isinstance(node, ast.Assign):
            for target in node.targets:
                names = target.elts if isinstance(target, ast.Tuple) else [target]
                values = node.value.elts if isinstance(node.value, ast.Tuple) else [node.value]
                for name, value in zip(names, values):
                    if isinstance(name, ast.Name) and isinstance(value, ast.Constant) and value.value == name.id:
                        found.append(name.id)
    return found


def outcomes(name: str, steps: dict[str, ast.FunctionDef], states: list[str], seen: frozenset[str]) -> set[str]:
    """The states that a step can return; "=" for the one it met."""
    if name in seen or name not in steps:
        return set()

    def of(value: ast.expr | None) -> set[str]:
        if isinstance(value, ast.IfExp):
            return of(value.body) | of(value.orelse)
        if isinstance(value, ast.Tuple):
            return of(value.elts[0])
        if isinstance(value, ast.Name) and value.id in states:
            return {value.id}
        if isinstance(value, ast.Call) and isinstance(value.func, ast.Attribute):
            return outcomes(value.func.attr, steps, states, seen | {name})
        return {"="}  # None, or the entity's own state

    return set().union(*(of(node.value) for node in ast.walk(steps[name]) if isinstance(node, ast.Return)))


def rows_of(source: str, tree: ast.Module, states: list[str], folder: Path) -> list[Row]:
    """folder: where modules lie whose functions are steps, too."""
    lines = source.splitlines()
    steps = {node.name: node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    tables = [
        node.value
        for node in tree.body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id == "TRANSITIONS"
    ]
    assert len(tables) == 1 and isinstance(tables[0], ast.Dict), "one TRANSITIONS = {...} a machine"
    rows = []
    for key, value in zip(tables[0].keys, tables[0].values):
        assert isinstance(key, ast.Tuple) and isinstance(value, ast.Attribute)
        beside = folder / f"{value.value.id}.py" if isinstance(value.value, ast.Name) else folder
        if beside.is_file():
            found = ast.walk(ast.parse(beside.read_text()))
            steps = {**{node.name: node for node in found if isinstance(node, ast.FunctionDef)}, **steps}
        state, event = key.elts
        assert isinstance(state, ast.Name)
        text = event.id if isinstance(event, ast.Name) else str(ast.literal_eval(event))
        _, _, why = lines[value.lineno - 1].partition("  # ")
        after = outcomes(value.attr, steps, states, frozenset())
        rows.append(Row(state.id, text, value.attr.lstrip("_"), [s for s in [*states, "="] if s in after], why))
    return rows


def render_machine(title: str, path: str, states_path: str | None) -> str:
    source = (ROOT / path).read_text()
    tree = ast.parse(source)
    states = state_names(ast.parse((ROOT / states_path).read_text()) if states_path else tree)
    doc = ast.get_docstring(tree) or ""
    lines = [f"## {title}", "", f"`{path}`", ""]
    for paragraph in doc.split("\n\n"):
        # An indented paragraph is the list of states: kept as it is drawn.
        lines += ["```text", paragraph, "```", ""] if paragraph.startswith("    ") else [paragraph, ""]
    lines += ["| state | event | step | leads to | |", "|---|---|---|---|---|"]
    last = ""
    for row in sorted(rows_of(source, tree, states, (ROOT / path).parent), key=lambda row: states.index(row.state)):
        shown = f"**{row.state}**" if row.state != last else ""
        last = row.state
        lines.append(f"| {shown} | {row.event} | {row.step} | {', '.join(row.after)} | {row.why} |")
    return "\n".join(lines)


def render() -> str:
    return HEADER + "\n" + "\n\n".join(render_machine(*machine) for machine in MACHINES) + "\n"


def main() -> int:
    page = render()
    if "--check" in sys.argv[1:]:
        return 0 if PAGE.exists() and PAGE.read_text() == page else 1
    PAGE.write_text(page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
