"""The console blocks of a page: what a person types, on which machine, and what it says. LIBRARY.

head$ COMMAND        typed on the machine of that name; `$ COMMAND` on any
> MORE               continues it
inside$ COMMAND      typed into the program that the command before has opened, such as the shell of a container
ANYTHING ELSE        what the one before says; `...` stands for anything
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests import run_markdown

PROMPT = re.compile(r"^(\w*)\$ (.*)$")


@dataclass
class Command:
    machine: str  # "" where the page names none
    text: str
    says: str = ""
    typed: list[Command] = field(default_factory=list)  # into what this one opens


def commands(page: Path) -> Iterator[Command]:
    """Every command of the page, in order. Raises: ValueError: a block begins with something else."""
    for block in run_markdown.blocks(page):
        if block.language == "console":
            yield from in_text(block.text, f"{page}:{block.line}")


def in_text(text: str, where: str) -> list[Command]:
    found: list[Command] = []
    last: Command | None = None
    for line in text.splitlines():
        prompt = PROMPT.match(line)
        if prompt is not None:
            last = Command(prompt[1], prompt[2])
            if last.machine == "inside" and found:
                found[-1].typed.append(last)
            else:
                found.append(last)
        elif last is None or found[0].machine == "inside":
            raise ValueError(f"{where}: expected a prompt such as `head$ `: {line}")
        elif line.startswith(">") and not last.says:
            last.text += "\n" + line[2:]
        else:
            last.says += line + "\n"
    return found
