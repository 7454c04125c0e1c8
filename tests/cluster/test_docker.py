"""The images and docs/docker.md, with fake_docker.py for an engine. (`python -m tests.images` has a real one.)"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from . import docker_page
from .dockerfile import instructions
from .places import ROOT, Places

IMAGES = ("base-deps", "deploy", "examples")


@pytest.fixture
def places(engine: object) -> Iterator[Places]:
    if os.geteuid() != 0:
        pytest.skip("containers need namespaces, and those need root")
    places = Places(Path(os.path.realpath("/tmp")) / f"rd-{os.getpid()}", ["head", "node1", "node2"])
    yield places
    for name in places.names:
        places.run(name, "for id in $(docker ps --all --quiet); do docker rm --force $id; done")
    places.close()


def test_the_commands_of_the_page_do_what_it_says(places: Places) -> None:
    docker_page.prepare(places)
    assert docker_page.follow(places, lambda text: text) >= 35


def test_what_the_stand_in_does_not_know_is_refused(places: Places) -> None:
    for command, says in {
        "run --shm_size=1g image": "unknown flag of run: --shm_size",
        "run -x image": "unknown flag of run: -x",
        "start ray": "'start' is not a docker command",
        "run nothing": "Unable to find image 'nothing:latest'",
        "exec nobody true": "No such container: nobody",
        "push my-app": "denied",
    }.items():
        if command == "push my-app":
            places.run("head", "echo FROM debian:bookworm-slim > Dockerfile && docker build -t my-app .")
        assert says in places.run("head", f"docker {command}", 125)
    for line, says in {
        "COPY nothing /": "nothing is not in the build's context",
        "COPY --form=x a /": "unknown flag: --form",
        "COPY --from=build a /": "there is no such stage",
        "RUN if": "RUN if",
        "INSTALL ray": "INSTALL: not an instruction",
    }.items():
        places.run("head", f"printf 'FROM debian:bookworm-slim\\n{line}\\n' > Dockerfile")
        assert says in places.run("head", "docker build .", 125)


def dockerfile(image: str) -> list[tuple[str, str]]:
    return instructions((ROOT / "docker" / image / "Dockerfile").read_text())


def test_there_is_an_image_for_each_folder_and_the_script_builds_them_in_the_order_of_need() -> None:
    assert {path.name for path in (ROOT / "docker").iterdir()} == set(IMAGES)
    assert f"images=({' '.join(IMAGES)})" in (ROOT / "build-docker.sh").read_text()
    known = set()
    for image in IMAGES:
        for word, rest in dockerfile(image):
            parent = rest.split()[0]
            if word == "FROM" and parent.startswith("ray-project/"):
                assert parent in known, f"{image} is built before {parent}"
        known.add(f"ray-project/{image}")


def test_what_people_run_has_no_compiler_no_secret_and_no_privileges() -> None:
    found = dockerfile("deploy")
    last = max(index for index, (word, _) in enumerate(found) if word == "FROM")
    assert not re.search(r"g\+\+|gcc|python3-dev|build-essential", " ".join(rest for _, rest in found[last:]))
    for image in ("deploy", "examples"):
        users = [rest for word, rest in dockerfile(image) if word == "USER"]
        assert image == "examples" or users[-1:] == ["ray"]
        assert users[-1:] != ["root"]
        assert "TOKEN" not in (ROOT / "docker" / image / "Dockerfile").read_text()


def test_all_that_a_wheel_is_made_of_is_in_the_image_that_builds_it() -> None:
    """MANIFEST.in grafts what a source distribution needs; only folders that compiling reads are copied."""
    copied = {source for word, rest in dockerfile("deploy") if word == "COPY" for source in rest.split()[:-1]}
    read = (ROOT / "CMakeLists.txt").read_text() + (ROOT / "setup.py").read_text()
    for name in ("README.md", "LICENSE", "pyproject.toml", "setup.py", "CMakeLists.txt", "cpp", "ray"):
        assert name in copied
    for folder in re.findall(r"add_subdirectory\((\w+)\)", read):
        assert folder in copied or folder == "cpp_tests"


def test_a_wrong_option_of_the_script_is_named_with_those_there_are(places: Places) -> None:
    said = places.run("head", f"{ROOT}/build-docker.sh --no-chache", 2)
    assert "--no-chache: not an option" in said and "--skip-examples" in said
