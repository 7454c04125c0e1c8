"""Does what docs/docker.md says, command by command. LIBRARY of test_docker.py and of tests/images."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

from tests import console, run_markdown

from .places import ROOT, Places, free_port

PAGE = ROOT / "docs" / "docker.md"


def prepare(places: Places) -> None:
    """A clone, as the page wants it; of what is here, committed or not, since that is what a test is about."""
    clone = places.home("head") / "ray"
    subprocess.run(["git", "clone", "--quiet", "--shared", str(ROOT), str(clone)], check=True)
    changed = subprocess.run(["git", "-C", str(ROOT), "diff", "--binary", "HEAD"], stdout=subprocess.PIPE, check=True)
    if changed.stdout:
        git = ["git", "-C", str(clone), "-c", "user.name=test", "-c", "user.email=test@localhost"]
        subprocess.run([*git, "apply", "--index"], input=changed.stdout, check=True)
        subprocess.run([*git, "commit", "--quiet", "-m", "what is changed here"], check=True)


def follow(places: Places, change: Callable[[str], str], done: Callable[[str], None] = lambda command: None) -> int:
    """Returns: how many commands there were. Args: change: what a text of the page is in this test.
    Raises: AssertionError: one of them says something else than the page."""
    port = str(free_port())
    count = 0
    for given in console.commands(PAGE):

        def here(text: str) -> str:
            return change(text.replace("10.0.0.1", "127.0.0.1").replace("6379", port))

        command = here(given.text)
        if given.typed:
            answers = places.converse(given.machine, command, [here(inside.text) for inside in given.typed])
            pairs = [(inside.text, inside.says, answer) for inside, answer in zip(given.typed, answers)]
        else:
            pairs = [(command, given.says, places.run(given.machine, command))]
        for text, says, printed in pairs:
            assert run_markdown.matches(here(says), printed), f"{text}\nprinted\n{printed}\nand the page says\n{says}"
            done(text)
            count += 1
    return count
