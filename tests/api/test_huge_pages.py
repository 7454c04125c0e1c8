"""The store in huge pages: the commands of docs/memory.md, and what the kernel says about the memory of an object.

As root only: pages are set aside, and given back, for the whole machine. The mount is seen by the test's shell alone.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import console, run_markdown

ROOT = Path(__file__).resolve().parents[2]
PAGES = Path("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages")
COUNT = 100  # 200 MiB, where the page says 20000

# It runs in a process of its own: a mount namespace can't be left again.
OBJECT = """
import os, re, sys
import numpy as np
import ray
folder, how = sys.argv[1:]
if how == "init":
    ray.init(num_cpus=1, huge_pages=True, plasma_directory=folder, logging_level="error")
else:
    ray.init(address="auto", logging_level="error")
array = ray.get(ray.put(np.ones(5_000_000)))
address = array.__array_interface__["data"][0]
assert array.sum() == 5_000_000
for text in re.split(r"\\n(?=[0-9a-f]+-[0-9a-f]+ )", open("/proc/self/smaps").read()):
    begin, end = (int(part, 16) for part in re.match(r"([0-9a-f]+)-([0-9a-f]+)", text).groups())
    if begin <= address < end:
        sizes = dict(re.findall(r"^(\\w+): +(\\d+) kB", text, re.M))
        huge = int(sizes["Shared_Hugetlb"]) + int(sizes["Private_Hugetlb"])
        print(folder in text, sizes["KernelPageSize"], huge >= 40_000)
print(ray.cluster_resources()["object_store_memory"] / 2**20, os.listdir(folder))
"""


@pytest.fixture
def pages() -> Iterator[None]:
    """This machine may have COUNT more huge pages; as many as before afterwards."""
    if os.geteuid() != 0:
        pytest.skip("setting huge pages aside and mounting a hugetlbfs needs root")
    if not PAGES.exists() or not os.access("/proc/sys/vm/nr_hugepages", os.W_OK):
        pytest.skip("this kernel has no huge pages of 2 MiB, or does not let this container have any")
    before = PAGES.read_text()
    try:
        if int(before) != 0:
            pytest.skip("somebody uses huge pages on this machine")
        yield
    finally:
        PAGES.write_text(before)
    assert PAGES.read_text() == before


@pytest.fixture
def place() -> Iterator[Path]:
    """An empty folder of a short name: the paths of sockets have 107 bytes at most."""
    place = Path(os.path.realpath("/tmp")) / f"ray-huge-{os.getpid()}"
    place.mkdir()
    yield place
    shutil.rmtree(place, ignore_errors=True)  # where a test has failed before it could


@pytest.fixture
def shell(pages: None, engine: object, place: Path) -> Iterator[subprocess.Popen[str]]:
    """A shell, as on the page, in a mount namespace of its own."""
    engine.watch()  # type: ignore[attr-defined]
    commands = place / "bin"
    commands.mkdir()
    programs = {"ray": f"exec {sys.executable} -m ray.cli", "python": f"exec {sys.executable}", "sudo": "exec"}
    for name, program in programs.items():
        (commands / name).write_text(f'#!/bin/sh\n{program} "$@"\n')
        (commands / name).chmod(0o755)
    (place / "t").mkdir()
    (place / "home").mkdir()
    process = subprocess.Popen(
        ["unshare", "--mount", "bash"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=place / "home",
        env={
            "HOME": str(place / "home"),
            "PATH": f"{commands}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "PYTHONPATH": str(ROOT),
            "RAY_TMPDIR": str(place / "t"),
            "LANG": "C",
        },
    )
    yield process
    said, _ = process.communicate("ray stop\n", timeout=30)
    assert process.returncode in (0, 1), said
    assert not os.listdir(place / "t")
    shutil.rmtree(place)
    engine.stop()  # type: ignore[attr-defined]


def say(shell: subprocess.Popen[str], command: str) -> str:
    """What the command prints, both streams. Raises: AssertionError: its status is not 0."""
    assert shell.stdin is not None and shell.stdout is not None
    shell.stdin.write(f'{command}\necho "that\'s all: $?"\n')
    shell.stdin.flush()
    said = ""
    for line in shell.stdout:
        if line.startswith("that's all: "):
            assert line == "that's all: 0\n", f"{command}: {said}"
            return said
        said += line
    raise AssertionError(f"the shell has ended: {said}")


def test_objects_lie_in_huge_pages_and_nothing_stays_on_the_mount(shell: subprocess.Popen[str], place: Path) -> None:
    folder = str(place / "hugepages")
    count = 0
    for given in console.commands(ROOT / "docs" / "memory.md"):
        command, says = (
            text.replace("/mnt/hugepages", folder)
            .replace("20000", str(COUNT))
            .replace("40000.0 MiB", f"{2.0 * COUNT} MiB")
            .replace("39.06 GiB", f"{2 * COUNT} MiB")
            for text in (given.text, given.says)
        )
        printed = say(shell, command)
        assert run_markdown.matches(says, printed), f"{command}\nprinted\n{printed}\nand the page says\n{says}"
        if "ray start" in command:
            assert say(shell, f"python program_of_this_test.py {folder} join") == f"True 2048 True\n{2.0 * COUNT} []\n"
        elif "sysctl" in command:
            (place / "home" / "program_of_this_test.py").write_text(OBJECT)
            assert say(shell, f"python program_of_this_test.py {folder} init") == f"True 2048 True\n{2.0 * COUNT} []\n"
        count += 1
    assert count >= 7
    assert say(shell, f"ls -A {folder}; grep HugePages_Free /proc/meminfo; umount {folder}").split() == [
        "HugePages_Free:",
        str(COUNT),
    ]


def test_pages_that_are_missing_are_counted_and_nothing_is_left(shell: subprocess.Popen[str], place: Path) -> None:
    folder = place / "hugepages"
    folder.mkdir()
    say(shell, f"mount -t hugetlbfs none {folder}; sysctl vm.nr_hugepages=2")
    said = say(shell, f"ray start --head --huge-pages --plasma-directory={folder} || [ $? = 1 ]")
    assert re.search(r"huge_pages: 32 pages of 2048 kB.* 2 of 2 are free", said), said
    assert say(shell, f"ls -A {folder}; umount {folder}") == ""
