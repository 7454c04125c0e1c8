"""Imports follow the layers of docs (STYLE's tree): a module imports only from layers below its own.

A part is what stands directly under ray/: a module, or a folder with all it holds. Inside a part everything may import
everything; between two parts of one layer nothing may, but in [4], whose public nouns are one vocabulary. Imports for
type checkers alone (`if TYPE_CHECKING:`) don't count: they don't run.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

RAY = Path(__file__).resolve().parents[1] / "ray"
LAYERS: tuple[tuple[str, ...], ...] = (
    ("_config", "_logging_config", "_protocol", "_version", "exceptions"),
    ("_native",),
    ("_serialization", "_scheduling", "_control", "_transport", "_launch", "_driver_output", "runtime_env"),
    ("_core", "_node", "_head"),
    (
        *(
            "",
            "api",
            "remote_function",
            "actor",
            "object_ref",
            "object_ref_generator",
            "runtime_context",
            "plasma",
            "_aliases",
        ),
        *("context", "job_config", "log", "types", "cloudpickle"),
        *("_driver", "_init_options", "_local_mode", "_options", "_placement", "_signature"),  # what api.py is made of
        *("_inspect", "_metrics", "_simulation", "_timeline", "_typing", "mypy_plugin"),
    ),
    ("cli", "dashboard", "client", "client_builder", "cluster_utils"),
    ("util", "dag", "rllib", "experimental", "data"),
    ("_private", "_raylet"),  # other names, for programs written for Ray
)
PUBLIC_NOUNS, LIBRARIES = 4, 6
LAYER_OF = {part: layer for layer, parts in enumerate(LAYERS) for part in parts}
# Edges that break the rule and are right to: (importing part, imported part) -> why.
EXCEPTIONS: dict[tuple[str, str], str] = {
    (
        "_native",
        "_core",
    ): "an ObjectRef's await, future() and the like ask the engine of this process, off the hot path",
    ("_native", "_serialization"): "the encoder's way out for what is not a plain value: reducers, naming the culprit",
    (
        "_node",
        "_head",
    ): "on one node both schedulers share a process: the node's shell carries out the head's actions too",
    ("_driver", "client"): "ray.init of a ray:// address, the one place where a public noun reaches for a surface",
    ("remote_function", "dag"): "bind() makes a node of the library of graphs, and nothing else here knows of that",
    ("actor", "dag"): "the same",
    ("client", "client_builder"): "the package can be called, as the function of that name once was",
    ("cli", "util"): "the commands print what ray.util.state tells; `ray microbenchmark` is a program like a user's",
    ("util", "_serialization"): "ray.util is where Ray's public API has these two nouns; they are no library",
}


def sources() -> list[Path]:
    return sorted(p for kind in ("py", "pyx", "pxd", "pxi") for p in RAY.rglob(f"*.{kind}"))


def module_name(path: Path) -> str:
    """ray/_core/get.py -> ray._core.get; a package is named after its folder."""
    parts = path.relative_to(RAY.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def part_of(module: str) -> str:
    """ray._core.get -> _core; ray itself -> the empty name."""
    return [*module.split("."), ""][1]


def is_module(dotted: str) -> bool:
    path = RAY.parent / Path(*dotted.split("."))
    return path.is_dir() or any(path.with_suffix(f".{kind}").exists() for kind in ("py", "pyx", "pxd"))


def imports_of_python(text: str, path: Path) -> Iterator[tuple[int, str]]:
    """(line, module) of each import that runs; `from ray import api` is an import of ray.api."""
    package = module_name(path).split(".")
    if path.name != "__init__.py":
        package = package[:-1]

    def visit(node: ast.AST) -> Iterator[tuple[int, str]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                yield from (found for other in child.orelse for found in visit(other))
            elif isinstance(child, ast.Import):
                yield from ((child.lineno, name.name) for name in child.names)
            elif isinstance(child, ast.ImportFrom):
                base = child.module or ""
                if child.level:
                    base = ".".join([*package[: len(package) - child.level + 1], *([base] if base else [])])
                for name in child.names:
                    inner = f"{base}.{name.name}"
                    yield child.lineno, inner if base.startswith("ray") and is_module(inner) else base
            else:
                yield from visit(child)

    yield from visit(ast.parse(text, str(path)))


def imports_of_cython(text: str) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(text.splitlines(), 1):
        if found := re.match(r"\s*from\s+([\w.]+)\s+c?import\s+(.*)", line):
            base, names = found[1], re.findall(r"\w+", found[2].split("#")[0])
            if base == "ray":
                yield from ((number, f"ray.{name}" if is_module(f"ray.{name}") else "ray") for name in names)
            else:
                yield number, base
        elif found := re.match(r"\s*c?import\s+([\w.]+)", line):
            yield number, found[1]


def edges() -> Iterator[tuple[str, str, str]]:
    """(where, importing part, imported part) for each import of one part by another."""
    for path in sources():
        text, source = path.read_text(), part_of(module_name(path))
        found = imports_of_python(text, path) if path.suffix == ".py" else imports_of_cython(text)
        for line, module in found:
            if module == "ray" or module.startswith("ray."):
                target = part_of(module)
                if target != source:
                    yield f"{path.relative_to(RAY.parent)}:{line}", source, target


def forbidden(source: str, target: str) -> str:
    """Why one part may not import the other; empty if it may."""
    if (source, target) in EXCEPTIONS:
        return ""
    above, below = LAYER_OF[source], LAYER_OF[target]
    if above == LIBRARIES and below < PUBLIC_NOUNS and target != "exceptions":
        return f"a library says `import ray` and nothing deeper, so not {target}"
    if below > above:
        return f"[{above}] {source or 'ray'} lies below [{below}] {target}"
    if below == above != PUBLIC_NOUNS:
        return f"{source} and {target} are both of [{above}]: such parts meet in messages"
    return ""


def test_each_part_has_a_layer() -> None:
    parts = {part_of(module_name(path)) for path in sources()}
    assert parts <= LAYER_OF.keys(), f"give these a layer in LAYERS: {sorted(parts - LAYER_OF.keys())}"


def test_imports_go_down_the_layers() -> None:
    known = [edge for edge in edges() if edge[1] in LAYER_OF and edge[2] in LAYER_OF]
    broken = [f"{where}: {why}" for where, source, target in known if (why := forbidden(source, target))]
    assert not broken, "\n" + "\n".join(broken)


def test_each_exception_is_still_needed() -> None:
    used = {(source, target) for _where, source, target in edges()}
    assert EXCEPTIONS.keys() <= used, f"nobody imports these any more: {sorted(EXCEPTIONS.keys() - used)}"


@pytest.mark.parametrize(
    ("source", "target", "allowed"),
    [
        ("_core", "_native", True),
        ("_core", "_node", False),
        ("_native", "_node", False),
        ("api", "_core", True),
        ("api", "actor", True),
        ("_node", "", False),
        ("util", "", True),
        ("util", "_core", False),
    ],
)
def test_the_rule_itself(source: str, target: str, allowed: bool) -> None:
    assert (forbidden(source, target) == "") is allowed
