"""The pages about memory, clusters, containers, deaths and troubles hold no command that no test runs.

A block is run if it is Python (tests/test_docs.py) or a console (the test named here). `text` is what a block before it
prints, or a drawing. Anything else that looks like something to type would be a promise that nobody keeps.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests import console, run_markdown

ROOT = Path(__file__).resolve().parents[2]
# Page: the test that types its console blocks; None: it has none.
PAGES = {
    "docs/what-dies.md": None,
    "docs/internals/fault-tolerance.md": None,
    "docs/memory.md": "tests/api/test_huge_pages.py",
    "docs/clusters.md": "tests/cluster/test_pages.py",
    "docs/large-clusters.md": "tests/cluster/test_pages.py",
    "docs/docker.md": "tests/cluster/docker_page.py",
    "docs/troubleshooting.md": "tests/cluster/test_pages.py",
}


def not_run(text: str, page: Path) -> list[str]:
    """The blocks of a page that no test runs, each by its line."""
    found = []
    blocks = run_markdown.blocks(page)
    inside = set()
    for block in blocks:
        inside.update(range(block.line - 1, block.line + len(block.text.splitlines()) + 1))
        if block.language == "text":
            if re.search(r"^\s*(\w*\$|>|ray|python|docker|sudo|pip) ", block.text, re.M):
                found.append(f"{block.line}: a text block with a command: mark it `console`, with prompts")
        elif block.language not in ("python", "console"):
            found.append(f"{block.line}: a block marked `{block.language}`: nothing runs it")
    before = ""
    for number, line in enumerate(text.splitlines(), 1):
        # Behind a blank line four spaces make code, unless they go on with an item of a list.
        if number not in inside and re.match(r" {4}\S|\t\S", line) and not before.strip():
            found.append(f"{number}: an indented block: mark it `console`, with prompts")
        before = line
    return found


@pytest.mark.parametrize("name", PAGES)
def test_every_block_of_the_page_is_run_by_a_test(name: str) -> None:
    page = ROOT / name
    assert not_run(page.read_text(), page) == []
    test = PAGES[name]
    typed = list(console.commands(page))
    assert bool(typed) == (test is not None), f"{name}: is its test named here?"
    if test is not None:
        assert page.name in (ROOT / test).read_text(), f"{test} doesn't read {page.name}"


def test_what_is_not_run_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    for text in (
        "Words:\n\n    ray start\n",
        "```bash\nray start\n```\n",
        "```\nray start\n```\n",
        "```sh\nray start\n```\n",
        "```text\n$ ray start\n```\n",
        "```text\nray start --head\n```\n",
    ):
        page.write_text(text)
        assert len(not_run(text, page)) == 1, text
    text = "Words\n    that go on.\n\n```python\nif 1:\n\n    pass\n```\n\n```text\n3 machines\n```\n"
    page.write_text(text)
    assert not_run(text, page) == []


def test_a_console_that_begins_without_a_prompt_is_refused() -> None:
    with pytest.raises(ValueError, match="a prompt"):
        console.in_text("ray start\n", "page:1")
    (given,) = console.in_text("head$ docker run -t -i x\ninside$ a\nb\n> c\ninside$ exit\n", "page:1")
    assert [(inside.text, inside.says) for inside in given.typed] == [("a", "b\n> c\n"), ("exit", "")]
