"""Builds the images with a real engine, and does with it all that docs/docker.md says. PROCESS of a person's shell.

    python -m tests.images [--folder DIR]      DIR: kept, and used again; else one in /var/tmp, which goes afterwards

It takes ten minutes and 5 GB, as root, and is no part of the suite, which has a stand-in for the engine. The three
machines of the page are engines of this run's own, in process and mount namespaces that end with it. They leave the
network as it is: all their containers use the machine's. What would come from a public registry is made here: the image
of the distribution, by debootstrap from the mirror that apt uses, and told how pip reaches its packages.
"""

from __future__ import annotations

import argparse
import configparser
import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.cluster import docker_page
from tests.cluster.places import ROOT, Places, free_port
from tests.wait import wait_until

MACHINES = ["head", "node1", "node2"]
# Program: the package of Debian that brings it.
NEEDED = {
    "dockerd": "docker.io",
    "docker": "docker.io",
    "docker-registry": "docker-registry",
    "debootstrap": "debootstrap",
    "unshare": "util-linux",
}
# The package's own client, should there be another: a newer one warns of the older builder with each build.
CLIENT = shutil.which("docker", path="/usr/bin") or shutil.which("docker") or "docker"
INSIDE = "RAY_TEST_IMAGES_INSIDE"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.images", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, help="keep what is made here, and use it again")
    options = parser.parse_args()
    os.environ["PATH"] += ":/usr/sbin:/sbin"
    missing = sorted({package for program, package in NEEDED.items() if shutil.which(program) is None})
    if missing:
        sys.exit(f"tests.images: apt-get install {' '.join(missing)}")
    if os.geteuid() != 0:
        sys.exit("tests.images: an engine needs root")
    if INSIDE not in os.environ:
        os.environ[INSIDE] = "1"
        namespaces = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
        os.execvp(namespaces[0], [*namespaces, sys.executable, "-m", "tests.images", *sys.argv[1:]])
    with contextlib.ExitStack() as stack:
        folder = options.folder
        if folder is None:
            folder = Path(tempfile.mkdtemp(prefix="ri-", dir="/var/tmp"))  # on a disk, and short: sockets lie below
            stack.callback(shutil.rmtree, folder)
        folder.mkdir(exist_ok=True)
        stack.callback(unmount, folder.resolve())
        check(folder.resolve(), stack)


def check(folder: Path, stack: contextlib.ExitStack) -> None:
    began = time.monotonic()

    def done(what: str) -> None:
        print(f"{time.monotonic() - began:6.1f} s  {what.splitlines()[0]}", flush=True)

    stack.callback(remove_groups, folder.name)
    for name in MACHINES:
        stack.enter_context(engine(folder, name))
    registry = stack.enter_context(a_registry(folder))
    done("three engines and a registry run")
    base = make_base(folder)
    done(f"{base} is there")

    wrapper = folder / "docker"
    wrapper.write_text(
        f"""#!/bin/bash
export DOCKER_HOST=unix://{folder}/$(basename "$(dirname "$HOME")").sock
if [ "$1" = build ]; then shift; set -- build --network=host "$@"; fi
exec {CLIENT} "$@"
"""
    )
    wrapper.chmod(0o755)
    places = Places(Path(tempfile.mkdtemp(prefix="ri-", dir="/tmp")) / "p", MACHINES, docker=f"exec {wrapper}")
    stack.callback(shutil.rmtree, places.root.parent)
    places.timeout_s = 1800  # it compiles
    docker_page.prepare(places)

    def change(text: str) -> str:
        # The second build would be the first once more, for as long.
        return text.replace("registry.example.com", registry).replace("--no-cache ", "")

    done(f"{docker_page.follow(places, change, done)} commands of {docker_page.PAGE.name} did what it says")
    for text in EXPECTED:
        said = places.run("head", f"docker run --rm --net=host ray-project/deploy bash -c '{text}'")
        done(f"{text}: {said.strip()}")
    for name in MACHINES:
        left = places.run(name, "docker ps --quiet").split()
        assert not left, f"{name}: containers still run: {left}"
        places.run(name, "docker rm --force $(docker ps --all --quiet) < /dev/null || true")
    print(places.run("head", "docker images"))
    places.close()


# Each ends with 0 in a container of the deploy image.
EXPECTED = [
    "[ $(id -u) -ge 1000 ] && id",
    "! command -v cc gcc g++ c++ clang && echo no compiler",
    'bash -l -c "ray --version"',
    "ray start --head && ray status && ls -A /dev/shm && ray stop",
    'pip install --quiet --no-cache-dir --no-deps tqdm && python -c "import tqdm; print(tqdm.__version__)"',
]


@contextlib.contextmanager
def engine(folder: Path, name: str) -> Iterator[None]:
    """An engine that listens at folder/NAME.sock, and neither asks nor changes how the machine's network is set up."""
    own = folder / name
    own.mkdir(exist_ok=True)
    (own / "pid").unlink(missing_ok=True)
    without = ["--iptables=false", "--ip6tables=false", "--ip-masq=false", "--bridge=none", "--userland-proxy=false"]
    command = ["dockerd", f"--host=unix://{folder}/{name}.sock", f"--data-root={own}/root", f"--exec-root={own}/exec"]
    command += [f"--cgroup-parent=/{folder.name}"]
    with open(own / "log", "wb") as log:
        process = subprocess.Popen([*command, f"--pidfile={own}/pid", *without], stdout=log, stderr=log)
    try:

        def ready() -> bool:
            assert process.poll() is None, (own / "log").read_text()[-3000:]
            return docker(folder, name, "version", check=False).returncode == 0

        wait_until(ready, 60)
        yield
    finally:
        process.terminate()
        process.wait(60)


def unmount(folder: Path) -> None:
    """What engines leave mounted, such as the network namespace of containers that use the machine's."""
    points = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
    for point in reversed(points):
        if point.startswith(f"{folder}/"):
            subprocess.run(["umount", point], check=True)


def remove_groups(name: str) -> None:
    """The control groups of all that has run: engines leave the folder that theirs lay in."""
    for top in (*Path("/sys/fs/cgroup").glob(name), *Path("/sys/fs/cgroup").glob(f"*/{name}")):
        for folder, _, _ in os.walk(top, topdown=False):
            os.rmdir(folder)


def docker(folder: Path, name: str, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "DOCKER_HOST": f"unix://{folder}/{name}.sock"}
    return subprocess.run([CLIENT, *words], env=environment, capture_output=True, text=True, check=check)


@contextlib.contextmanager
def a_registry(folder: Path) -> Iterator[str]:
    """HOST:PORT of a registry, which engines trust since it is on the loopback."""
    address = f"127.0.0.1:{free_port()}"
    (folder / "registry.yml").write_text(
        f"version: 0.1\nstorage: {{filesystem: {{rootdirectory: {folder}/registry}}}}\nhttp: {{addr: '{address}'}}\n"
    )
    with open(folder / "registry.log", "wb") as log:
        process = subprocess.Popen(["docker-registry", "serve", folder / "registry.yml"], stdout=log, stderr=log)
    try:
        yield address
    finally:
        process.terminate()
        process.wait(60)


def make_base(folder: Path) -> str:
    """The image that docker/base-deps begins from, on the engine `head`. Returns: its name."""
    found = re.search(r"^ARG BASE=(debian:(\w+)-slim)$", (ROOT / "docker/base-deps/Dockerfile").read_text(), re.M)
    assert found, "docker/base-deps/Dockerfile begins from something that debootstrap can't make"
    image, suite = found.groups()
    if docker(folder, "head", "image", "inspect", image, check=False).returncode == 0:
        return image
    base = folder / "base"
    shutil.rmtree(base, ignore_errors=True)
    subprocess.run(["debootstrap", "--variant=minbase", suite, str(base), mirror(suite)], check=True, stdout=sys.stderr)
    for cache in ("var/cache/apt/archives", "var/lib/apt/lists"):  # a published image has none
        shutil.rmtree(base / cache)
        (base / cache / "partial").mkdir(parents=True)
    tell_pip(base)
    with subprocess.Popen(["tar", "-C", str(base), "-c", "."], stdout=subprocess.PIPE) as tar:
        environment = {**os.environ, "DOCKER_HOST": f"unix://{folder}/head.sock"}
        subprocess.run([CLIENT, "import", "-", image], stdin=tar.stdout, env=environment, check=True)
    shutil.rmtree(base)
    return image


def mirror(suite: str) -> str:
    """Where apt gets that suite from here."""
    command = ["apt-get", "indextargets", "--format", "$(SITE)", "Created-By: Packages", f"Codename: {suite}"]
    sites = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.split()
    if not sites:
        sys.exit(
            f"tests.images: apt knows no packages of {suite} here (apt-get update?), so none of its own can be made"
        )
    return sites[0]


def tell_pip(base: Path) -> None:
    """What pip must know here to reach its packages: whom to trust, and perhaps where they are."""
    config = configparser.ConfigParser()
    config["global"] = {}
    certificates = os.environ.get("PIP_CERT") or "/etc/ssl/certs/ca-certificates.crt"
    if os.path.exists(certificates):
        # Not at the well-known place, which the package ca-certificates writes over.
        (base / "etc/ssl").mkdir(exist_ok=True)
        shutil.copy(certificates, base / "etc/ssl/of-the-builder.pem")
        config["global"]["cert"] = "/etc/ssl/of-the-builder.pem"
    if "PIP_INDEX_URL" in os.environ:
        config["global"]["index-url"] = os.environ["PIP_INDEX_URL"]
    with open(base / "etc/pip.conf", "w") as file:
        config.write(file)


if __name__ == "__main__":
    main()
