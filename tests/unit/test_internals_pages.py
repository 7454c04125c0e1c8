"""docs/internals speaks of files, functions, constants and frames that exist, with the numbers that they have."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
INTERNALS = ROOT / "docs" / "internals"
PAGES = sorted(INTERNALS.glob("*.md"))
# Where a page may leave the beginning of a path out.
FOLDERS = ("", "ray/", "ray/_native/", "cpp/", "cpp/channel/", "cpp/plasma/", "tests/", "docs/internals/")
ENGINE = "\n".join(
    path.read_text() for folder in ("_core", "_native") for path in sorted((ROOT / "ray" / folder).glob("*.p[xy]*"))
)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_a_page_names_exist(page: Path) -> None:
    named = re.findall(r"`([\w./]+\.(?:py|pyx|pxd|pxi|pyi|cc|h|md))(?:::\w+)?`", page.read_text())
    # Of Python itself; and of the plan, which the tour compares with what was built.
    elsewhere = {"Python.h", "_core/submit.py", "get.py"}
    missing = {
        name
        for name in named
        if name not in elsewhere
        and not any((ROOT / folder / name).exists() for folder in FOLDERS)
        and not list(ROOT.glob(f"ray/*/{name}"))
    }
    assert not missing


@pytest.mark.parametrize("page", ["README.md", "life_of_a_call.md", "references.md"])
def test_names_of_the_engine_that_a_page_uses_are_in_the_engine(page: str) -> None:
    text = (INTERNALS / page).read_text()
    constants = set(re.findall(r"`([A-Z]+_[A-Z_]+)`", text)) - {"PR_SET_PDEATHSIG", "SO_PEERCRED", "SOCK_SEQPACKET"}
    methods = set(
        re.findall(r"`(?:Callee|Task|LeasePool|ActorLine|ActorRef|ActorMethod|Executor|Engine|Link)\.(\w+)`", text)
    )
    assert constants and methods
    assert not {name for name in constants | methods if not re.search(rf"\b{name}\b", ENGINE)}


def test_the_frame_table_is_that_of_the_engine() -> None:
    declared = {name: int(number) for name, number in re.findall(r"^    F_([A-Z]+) = (\d+)", ENGINE, re.M)}
    table = re.findall(r"^\| (\d+) \| `?([A-Z]+)`? \|", (INTERNALS / "wire_format.md").read_text(), re.M)
    assert {name: int(number) for number, name in table} == declared


def test_the_numbers_of_the_pages_are_those_of_the_engine() -> None:
    def number(name: str) -> str:
        match = re.search(rf"cdef \w+ {name} = ([^#\n]+)", ENGINE)
        assert match is not None, name
        return match.group(1).strip()

    pages = (INTERNALS / "life_of_a_call.md").read_text() + (INTERNALS / "references.md").read_text()
    for name, value, words in (
        ("INLINE_BYTES_MAX", "100 * 1024", "100 KiB"),
        ("IDLE_LEASE_NS", "10_000_000", "10 ms after its last task"),
        ("FLUSH_NS", "500_000", "0.5 ms (`FLUSH_NS`)"),
        ("STUCK_NS", "5_000_000", "every 5 ms (`STUCK_NS`"),
        ("FLUSH_BYTES", "16 * 1024", "16 KiB have gathered (`FLUSH_BYTES`)"),
        ("BACKLOG_BYTES_MAX", "8 << 20", "8 MiB (`BACKLOG_BYTES_MAX`)"),
        ("DEPTH_US", "2000.0", "2 ms of work"),
        ("DEPTH_MAX", "512", "at most 512"),
        ("REQUESTS_MAX", "8", "at most 8 of a class"),
        ("LINEAGE_DEPTH_MAX", "64", "64 deep (`LINEAGE_DEPTH_MAX`)"),
    ):
        assert number(name) == value and words in pages, f"{name} is {number(name)}; the pages say: {words}"


def anchors(page: Path) -> set[str]:
    """What GitHub makes of the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))], ids=lambda page: str(page.relative_to(ROOT))
)
def test_links_into_the_middle_of_a_page_meet_a_heading(page: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#:]*)#([^)]+)\)", page.read_text()):
        assert anchor in anchors(page.parent / target if target else page), f"{target}#{anchor}"
