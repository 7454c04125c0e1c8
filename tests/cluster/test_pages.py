"""The commands of docs/clusters.md and docs/large-clusters.md do what the pages say they do.

A line `head$ COMMAND` of a console block is typed on the machine of that name, `> ` continues it, and what follows is
what it says (`...` stands for anything). 10.0.0.1 stands for this machine and 6379 for a free port.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import run_markdown

from .places import ROOT, Places, free_port

PROMPT = re.compile(r"^(head|node1)\$ (.*)$")


@pytest.fixture
def places(engine: object) -> Iterator[Places]:
    folder = Path(os.path.realpath("/tmp")) / f"ray-pages-{os.getpid()}"
    places = Places(folder, ["head", "node1", "node2"])
    shutil.copytree(ROOT / "examples" / "cluster", places.home("head") / "examples" / "cluster")
    yield places
    places.close()


def commands(page: Path) -> Iterator[tuple[str, str, str]]:
    """(machine, command, what it says) in order."""
    for block in run_markdown.blocks(page):
        if block.language != "console":
            continue
        found: list[tuple[str, str, str]] = []
        for line in block.text.splitlines():
            prompt = PROMPT.match(line)
            if prompt is not None:
                found.append((prompt[1], prompt[2], ""))
                continue
            machine, command, says = found.pop()
            if line.startswith(">") and not says:
                command += "\n" + line[2:]
            else:
                says += line + "\n"
            found.append((machine, command, says))
        yield from found


@pytest.mark.parametrize("name", ["clusters.md", "large-clusters.md"])
def test_the_commands_of_the_page_do_what_it_says(name: str, places: Places) -> None:
    port = str(free_port())
    count = 0
    for machine, command, says in commands(ROOT / "docs" / name):
        # Where the page leaves the port to the script's default, a free one is put in.
        command = re.sub(r"(start_cluster .* 10\.0\.0\.1)$", r"\1 6379", command)
        command, says = (text.replace("10.0.0.1", "127.0.0.1").replace("6379", port) for text in (command, says))
        printed = places.run(machine, command)
        assert run_markdown.matches(says, printed), f"{name}: {command}\nprinted\n{printed}\nand the page says\n{says}"
        count += 1
    assert count >= 7
