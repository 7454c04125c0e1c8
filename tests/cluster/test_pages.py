"""The commands of docs/clusters.md, large-clusters.md and troubleshooting.md do what the pages say they do.

tests/console.py tells how a page writes them. 10.0.0.1 stands for this machine and 6379 for a free port.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import console, run_markdown

from .places import ROOT, Places, free_port


@pytest.fixture
def places(engine: object) -> Iterator[Places]:
    folder = Path(os.path.realpath("/tmp")) / f"ray-pages-{os.getpid()}"
    places = Places(folder, ["head", "node1", "node2"])
    scripts = shutil.copytree(ROOT / "examples" / "cluster", places.home("head") / "examples" / "cluster")
    manifest = Path(scripts, "kubernetes.yaml")
    manifest.write_text(manifest.read_text().replace("6379", str(free_port())))
    yield places
    places.run("head", "[ ! -d ../k ] || kubectl delete -f examples/cluster/kubernetes.yaml")
    places.close()


@pytest.mark.parametrize("name", ["clusters.md", "large-clusters.md", "troubleshooting.md"])
def test_the_commands_of_the_page_do_what_it_says(name: str, places: Places) -> None:
    if name == "large-clusters.md":
        pytest.importorskip("yaml")  # for fake_kubectl.py
    port = str(free_port())
    count = 0
    for given in console.commands(ROOT / "docs" / name):
        # Where the page leaves the port to the script's default, a free one is put in.
        command = re.sub(r"(start_cluster .* 10\.0\.0\.1)$", r"\1 6379", given.text)
        command = command.replace("/tmp/ray-", "$RAY_TMPDIR/ray-")
        command, says = (text.replace("10.0.0.1", "127.0.0.1").replace("6379", port) for text in (command, given.says))
        printed = places.run(given.machine, command)
        assert run_markdown.matches(says, printed), f"{name}: {command}\nprinted\n{printed}\nand the page says\n{says}"
        count += 1
    assert count >= 5
