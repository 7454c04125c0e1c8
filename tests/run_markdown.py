"""Runs the Python blocks of a Markdown page, in order, in one namespace. PROCESS: `python tests/run_markdown.py PAGE`.

A block marked `text` right behind one marked `python` is what that one prints; `...` in it stands for anything. The
first block that raises or prints something else ends the run, with a traceback that has the page's own line numbers.
"""

from __future__ import annotations

import contextlib
import io
import linecache
import re
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass
class Block:
    language: str
    line: int  # of its first line of text, from 1
    text: str


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page. Raises: ValueError: one is not closed."""
    found: list[Block] = []
    fence = re.compile(r"^(\s*)```(\w*)\s*$")
    inside: Block | None = None
    for number, line in enumerate(page.read_text().splitlines(), 1):
        match = fence.match(line)
        if inside is None and match:
            inside = Block(match.group(2), number + 1, "")
        elif inside is not None and match and not match.group(2):
            found.append(inside)
            inside = None
        elif inside is not None:
            inside.text += line + "\n"
    if inside is not None:
        raise ValueError(f"{page}:{inside.line}: this block is not closed")
    return found


def matches(expected: str, printed: str) -> bool:
    # What workers print arrives when it arrives, perhaps during another block.
    printed = re.sub(r"^\(.* pid=\d+\) .*\n", "", printed, flags=re.M)
    pattern = ".*?".join(re.escape(part) for part in expected.strip().split("..."))
    return re.fullmatch(pattern, printed.strip(), re.S) is not None


def run(page: Path) -> None:
    # Tracebacks, and pickled functions, find the source of a block by the page's name: lines before it are left empty.
    linecache.cache[str(page)] = (0, None, page.read_text().splitlines(keepends=True), str(page))
    namespace = sys.modules["__main__"].__dict__
    found = blocks(page)
    for block, following in zip(found, [*found[1:], None]):
        if block.language != "python":
            continue
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile("\n" * (block.line - 1) + block.text, str(page), "exec"), namespace)
        if following is not None and following.language == "text" and not matches(following.text, printed.getvalue()):
            sys.exit(
                f"{page}:{block.line}: this block printed\n{printed.getvalue()}\nand the page says\n{following.text}"
            )


if __name__ == "__main__":
    run(Path(sys.argv[1]))
