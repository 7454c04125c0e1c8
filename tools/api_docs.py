"""Writes docs/api/reference/: a page for each public noun, made from its signature and its docstring.

    python tools/api_docs.py            writes the pages, and removes those of nouns that are no more
    python tools/api_docs.py --check    writes nothing; status 1 and a list if a page isn't what it would write

A noun is a function or class that a module in MODULES exports; one that several export has its page under the first.
tests/unit/test_reference_pages.py checks that pages are up to date and docstrings are there.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "docs" / "api" / "reference"
MODULES = (
    "ray",
    "ray.actor",
    "ray.runtime_env",
    "ray.runtime_context",
    "ray.job_config",
    "ray.types",
    "ray.exceptions",
    "ray.util",
    "ray.dag",
    "ray.util.collective",
    "ray.util.iter",
    "ray.util.metrics",
    "ray.util.multiprocessing",
    "ray.util.queue",
    "ray.util.scheduling_strategies",
    "ray.util.state",
    "ray.util.placement_group",
    "ray.util.dask",
    "ray.util.joblib",
    "ray.experimental",
    "ray.cluster_utils",
    "ray.plasma",
)
SECTION = re.compile(r"(Args|Returns|Yields|Raises|Blocks|Keys|Source|Note|Example|Examples): ?(.*)")
ITEM = re.compile(r"([*`\w][\w, .*`()]*): (.*)")


def nouns() -> Iterator[tuple[str, str, Any]]:
    """(module, name, the function or class), each once, in the order of MODULES and of their __all__."""
    seen: set[int] = set()
    for module_name in MODULES:
        module = importlib.import_module(module_name)
        for name in exported(module):
            noun = getattr(module, name)
            is_noun = inspect.isclass(noun) or inspect.isroutine(noun)
            if is_noun and id(noun) not in seen and not name.startswith("_"):
                seen.add(id(noun))
                yield module_name, name, noun


def exported(module: Any) -> list[str]:
    """Its __all__; without one, what it defines itself."""
    own = [n for n, v in vars(module).items() if getattr(v, "__module__", "") == module.__name__]
    return list(getattr(module, "__all__", own))


def signature(name: str, noun: Any) -> str:
    """One line if it fits, else one parameter a line."""
    try:
        found = inspect.signature(noun)
    except (ValueError, TypeError):  # compiled: Cython has put it before the docstring
        return name + compiled_signature(noun)
    parameters = [p for p in found.parameters.values() if p.name not in ("self", "cls")]
    returns = found.return_annotation
    arrow = "" if returns is found.empty else f" -> {plain(inspect.formatannotation(returns))}"
    texts = []
    for p in parameters:
        if p.kind is p.KEYWORD_ONLY and not any(t.startswith("*") for t in texts):
            texts.append("*")
        texts.append(plain(str(p)))
    line = f"{name}({', '.join(texts)}){arrow}"
    body = ",\n    ".join(texts)
    return line if len(line) <= 110 else f"{name}(\n    {body},\n){arrow}"


def plain(text: str) -> str:
    """Of one parameter or result: without the quotes around an annotation, and without an address in memory."""
    text = re.sub(r"^((?:[*\w]+: )?)'([^']*)'(?=$| = )", r"\1\2", text)
    return re.sub(r"<object object at 0x[0-9a-f]+>", "...", text)


COMPILED = re.compile(r"[\w.]+(\(.*\)(?: -> .*)?)\n*")


def compiled_signature(noun: Any) -> str:
    found = COMPILED.match((inspect.getdoc(noun) or "").split("\n")[0])
    return re.sub(r"\((self|cls)(, )?", "(", found[1]) if found else ""


def doc_of(noun: Any) -> str:
    """Its docstring, without the signature that Cython puts before it."""
    doc = inspect.getdoc(noun) or ""
    first, _, rest = doc.partition("\n")
    return rest.strip() if COMPILED.fullmatch(first) else doc


def paragraphs(doc: str) -> str:
    """A docstring as Markdown: its sections become a bold word and a list."""
    out: list[str] = []
    lines = doc.splitlines()
    at = 0
    while at < len(lines):
        head = SECTION.fullmatch(lines[at])
        if head is None:
            out.append(lines[at])
            at += 1
            continue
        at += 1
        body = []
        while at < len(lines) and (not lines[at].strip() or lines[at].startswith(" ")):
            body.append(lines[at])
            at += 1
        if out and out[-1].strip():
            out.append("")
        inline = [part.strip() for part in re.split(r"(?<=[.:])  +", head[2]) if part.strip()]
        if len(inline) == 1:
            out += [f"**{head[1]}** {inline[0]}", *items(body), ""]
        else:
            listed = [f"* {part}" for part in inline]
            out += [f"**{head[1]}**", *([""] if listed else []), *listed, *items(body, bool(listed)), ""]
    return "\n".join(out).strip() + "\n"


def items(body: list[str], goes_on: bool = False) -> list[str]:
    """The indented lines of a section: `name: text` becomes an entry, what is indented further goes on with it."""
    out: list[str] = []
    for line in textwrap.dedent("\n".join(body)).strip("\n").splitlines():
        found = ITEM.fullmatch(line)
        if found and not line.startswith(" "):
            out.append(f"* `{found[1].strip('`')}`: {found[2]}")
        else:
            out.append(f"  {line.strip()}" if line.strip() else "")
    return ["", *out] if out and out[0].startswith("* ") and not goes_on else out


def source(noun: Any) -> str:
    """A link to the file that defines it, or nothing for what is compiled without a record of it."""
    try:
        path = inspect.getsourcefile(noun)
    except TypeError:
        path = None
    module = sys.modules.get(getattr(noun, "__module__", "") or "")
    if path is None and module is not None:
        path = getattr(module, "__file__", None)
    if path is None or not Path(path).resolve().is_relative_to(ROOT) or Path(path).suffix != ".py":
        return ""
    relative = Path(path).resolve().relative_to(ROOT)
    return f"Defined in [{relative}](../../../{relative}).\n"


def members(noun: type) -> Iterator[tuple[str, Any]]:
    """Public methods and properties with a docstring, of the class and of bases that are ours, by name."""
    found: dict[str, Any] = {}
    for base in reversed(noun.__mro__):
        if (base.__module__ or "").split(".")[0] == "ray":
            found.update({n: v for n, v in vars(base).items() if not n.startswith("_") and documented(v)})
    yield from sorted(found.items())


def documented(member: Any) -> bool:
    inner = getattr(member, "__func__", member)
    kinds = isinstance(member, property) or inspect.isroutine(inner) or inspect.isgetsetdescriptor(member)
    return bool(kinds and doc_of(inner))


def page(module: str, name: str, noun: Any) -> str:
    full = f"{module}.{name}"
    parts = [f"# {full}\n", source(noun), f"```text\n{signature(full, noun)}\n```\n", paragraphs(doc_of(noun))]
    if inspect.isclass(noun):
        for member_name, member in members(noun):
            inner = getattr(member, "__func__", member)
            title = member_name if isinstance(member, property) else signature(member_name, inner)
            parts.append(f"## {member_name}\n")
            parts.append(f"```text\n{title}\n```\n" if title != member_name else "")
            parts.append(paragraphs(doc_of(inner)))
    return "\n".join(part for part in parts if part)


def summary(noun: Any) -> str:
    first = doc_of(noun).split("\n\n")[0].replace("\n", " ").replace("|", "\\|")
    return first if len(first) <= 160 else first[:157].rsplit(" ", 1)[0] + " ..."


def pages() -> dict[str, str]:
    """File name: text, of all pages and their index."""
    made: dict[str, str] = {}
    index = ["# Reference\n", "A page for each public noun, made from the code by `python tools/api_docs.py`.\n"]
    last = ""
    for module, name, noun in nouns():
        if module != last:
            index.append(f"\n## {module}\n\n| noun | |\n|---|---|")
            last = module
        file = f"{module}.{name}.md"
        made[file] = page(module, name, noun)
        index.append(f"| [{name}]({file}) | {summary(noun)} |")
    made["README.md"] = "\n".join(index) + "\n"
    return made


def differences() -> list[str]:
    """Names of pages that are missing, out of date, or of a noun that is no more."""
    wanted = pages()
    there = {path.name: path.read_text() for path in FOLDER.glob("*.md")}
    return sorted(name for name in {*wanted, *there} if wanted.get(name) != there.get(name))


def main() -> int:
    parser = argparse.ArgumentParser(description="Writes docs/api/reference/ from the code.")
    parser.add_argument("--check", action="store_true", help="write nothing; status 1 if a page is out of date")
    if parser.parse_args().check:
        wrong = differences()
        print("\n".join(wrong))
        return 1 if wrong else 0
    wanted = pages()
    FOLDER.mkdir(parents=True, exist_ok=True)
    for path in FOLDER.glob("*.md"):
        if path.name not in wanted:
            path.unlink()
    for name, text in wanted.items():
        (FOLDER / name).write_text(text)
    print(f"{len(wanted)} pages in {FOLDER}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
