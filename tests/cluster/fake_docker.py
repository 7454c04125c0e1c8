#!/usr/bin/env python3
"""Stands for `docker` on a machine of tests/cluster/places.py. PROCESS of a shell there, and of each container.

What it knows it does as an engine would, seen from outside: images by name; containers with a process namespace of
their own, whose end is the end of all in it; a home folder that a container writes to and `commit` keeps; a registry
that the machines share. What it doesn't know, options above all, it refuses, so that a page's typing errors are found.
Not done: RUN (its shell is parsed), other folders than the image's home, users, limits of memory. Files of the machine
itself are seen, and `python` and `ray` are those of the test.

    $PLACES/MACHINE/d/   images/ID/{meta.json,home/}  names.json  c/ID/{meta.json,pids,status,home/,t/,log}
    $PLACES/registry/    images by name
"""

from __future__ import annotations

import json
import os
import re
import secrets
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NoReturn

from dockerfile import Refused, build_image  # beside this file

HOME = Path(os.environ["HOME"])
PLACES = Path(os.environ["PLACES"])
HERE = HOME.parent / "d"  # short: sockets lie below
NAMESPACES = ["--pid", "--fork", "--kill-child", "--mount", "--mount-proc"]

# Of each command: options that stand alone, options with a value. The long name comes first.
OPTIONS: dict[str, tuple[list[str], list[str]]] = {
    "build": (["no-cache", "quiet q", "pull"], ["tag t", "file f", "network", "build-arg"]),
    "commit": ([], []),
    "exec": (["interactive i", "tty t"], ["env e"]),
    "images": ([], []),
    "kill": ([], []),
    "load": ([], []),
    "logs": ([], []),
    "ps": (["all a", "quiet q"], []),
    "pull": (["quiet q"], []),
    "push": (["quiet q"], []),
    "rm": (["force f"], []),
    "run": (
        ["detach d", "interactive i", "tty t", "rm", "init"],
        ["name", "network", "net", "env e", "volume v", "shm-size", "memory m", "cpuset-cpus", "ulimit", "user u"],
    ),
    "save": ([], []),
    "stop": ([], []),
    "tag": ([], []),
}
BEFORE_A_COMMAND = ("run", "exec")  # options end where the image or the container is named


def main(arguments: list[str]) -> int:
    if arguments[:1] == ["_watch"]:
        return watch(Path(arguments[1]))
    if arguments[:1] == ["_first"]:
        first(Path(arguments[1]))
    (HERE / "images").mkdir(parents=True, exist_ok=True)
    (HERE / "c").mkdir(exist_ok=True)
    try:
        if not arguments or arguments[0] not in OPTIONS:
            raise Refused(f"'{' '.join(arguments[:1])}' is not a docker command that this stand-in has")
        options, rest = parsed(arguments[0], arguments[1:])
        return int(globals()["do_" + arguments[0]](options, rest) or 0)
    except Refused as refused:
        print(f"docker: {refused}", file=sys.stderr)
        return 125


def parsed(command: str, arguments: list[str]) -> tuple[dict[str, list[str]], list[str]]:
    """({long name: its values}, the rest), as docker reads its command line."""
    names: dict[str, tuple[str, bool]] = {}
    for kind, valued in zip(OPTIONS[command], (False, True)):
        for entry in kind:
            long, _, short = entry.partition(" ")
            names["--" + long] = (long, valued)
            if short:
                names["-" + short] = (long, valued)
    options: dict[str, list[str]] = {}
    rest: list[str] = []
    left = list(arguments)
    while left:
        word = left.pop(0)
        if not word.startswith("-") or word == "-":
            rest.append(word)
            if command in BEFORE_A_COMMAND:
                return options, rest + left
            continue
        if not word.startswith("--") and len(word) > 2 and word[2] != "=":  # -it
            left[:0] = ["-" + letter for letter in word[1:]]
            continue
        word, equals, value = word.partition("=")
        if word not in names:
            raise Refused(f"unknown flag of {command}: {word}")
        long, valued = names[word]
        if valued and not equals:
            if not left:
                raise Refused(f"{word} needs a value")
            value = left.pop(0)
        options.setdefault(long, []).append(value)
    return options, rest


# -- images -----------------------------------------------------------------------------------------------------------


def full_name(name: str) -> str:
    if not re.fullmatch(r"[a-z0-9.-]+(:\d+)?(/[a-z0-9._-]+)*(:[\w.-]+)?", name):
        raise Refused(f"invalid reference format: {name}")
    return name if ":" in name.rsplit("/", 1)[-1] else name + ":latest"


def names() -> dict[str, str]:
    file = HERE / "names.json"
    return json.loads(file.read_text()) if file.exists() else {}


def name_it(name: str, image: str) -> None:
    (HERE / "names.json").write_text(json.dumps({**names(), full_name(name): image}))


def find_image(name: str) -> Path:
    image = names().get(full_name(name))
    if image is None:
        raise Refused(f"Unable to find image '{full_name(name)}' locally")
    return HERE / "images" / image


def new_image(home: Path | None, meta: dict[str, Any]) -> str:
    image = secrets.token_hex(32)
    folder = HERE / "images" / image
    folder.mkdir()
    if home is not None:
        shutil.copytree(home, folder / "home", symlinks=True)
    else:
        (folder / "home").mkdir()
    (folder / "meta.json").write_text(json.dumps(meta))
    return image


def do_build(options: dict[str, list[str]], rest: list[str]) -> None:
    (where,) = exactly(rest, 1, "build", "PATH or -")
    with tempfile.TemporaryDirectory() as folder:
        context = Path(folder)
        if where == "-":
            subprocess.run(["tar", "-x", "-C", folder], check=True)
            file = context / options.get("file", ["Dockerfile"])[-1]
        else:
            context = Path(where)
            file = Path(options["file"][-1]) if "file" in options else context / "Dockerfile"
        arguments = dict(pair.split("=", 1) for pair in options.get("build-arg", []))
        say = (lambda line: None) if "quiet" in options else print
        home, meta = build_image(file, context, Path(folder) / "home of the image", arguments, find_parent, say)
        image = new_image(home, meta)
    for name in options.get("tag", []):
        name_it(name, image)
    print(f"sha256:{image}" if "quiet" in options else f"Successfully built {image[:12]}")


def find_parent(name: str) -> tuple[Path, dict[str, Any]] | None:
    """Home and meta of an image that another begins from; None: a distribution, which any engine pulls."""
    if re.fullmatch(r"(debian|ubuntu):[\w.-]+", name):
        return None
    folder = find_image(name)
    return folder / "home", json.loads((folder / "meta.json").read_text())


def do_images(options: dict[str, list[str]], rest: list[str]) -> None:
    print("REPOSITORY                       TAG       IMAGE ID       CREATED         SIZE")
    for name, image in reversed(names().items()):
        repository, _, tag = name.rpartition(":")
        print(f"{repository:32} {tag:9} {image[:12]}   Just now        500MB")


def do_tag(options: dict[str, list[str]], rest: list[str]) -> None:
    source, target = exactly(rest, 2, "tag", "SOURCE TARGET")
    name_it(target, find_image(source).name)


def do_push(options: dict[str, list[str]], rest: list[str]) -> None:
    (name,) = exactly(rest, 1, "push", "NAME")
    source, target = find_image(name), in_registry(name)
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)
    print(f"The push refers to repository [{full_name(name).rpartition(':')[0]}]")


def do_pull(options: dict[str, list[str]], rest: list[str]) -> None:
    (name,) = exactly(rest, 1, "pull", "NAME")
    source = in_registry(name)
    if not source.exists():
        raise Refused(f"manifest for {full_name(name)} not found: manifest unknown")
    name_it(name, new_image(source / "home", json.loads((source / "meta.json").read_text())))
    print(full_name(name))


def in_registry(name: str) -> Path:
    host = name.split("/")[0]
    if "/" not in name or not ("." in host or ":" in host):
        raise Refused(f"{name}: denied: requested access to the resource is denied")  # that would be the public one
    return PLACES / "registry" / full_name(name).replace("/", "_")


def do_save(options: dict[str, list[str]], rest: list[str]) -> None:
    (name,) = exactly(rest, 1, "save", "NAME")
    if sys.stdout.isatty():
        raise Refused("cowardly refusing to save to a terminal. Use the -o flag or redirect")
    if ":" not in name.rsplit("/", 1)[-1]:
        raise Refused(f"save {name}: that is all images of this name; name a tag")
    image = find_image(name)
    called = full_name(name).replace("/", "%")
    subprocess.run(["tar", "-c", "-C", image.parent, f"--transform=s,^{image.name},{called},", image.name], check=True)


def do_load(options: dict[str, list[str]], rest: list[str]) -> None:
    exactly(rest, 0, "load", "")
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["tar", "-x", "-C", folder], check=True)
        (inside,) = Path(folder).iterdir()
        name = inside.name.replace("%", "/")
        name_it(name, new_image(inside / "home", json.loads((inside / "meta.json").read_text())))
    print(f"Loaded image: {name}")


# -- containers -------------------------------------------------------------------------------------------------------


def containers() -> list[Path]:
    """The newest first."""
    found = [path for path in (HERE / "c").iterdir() if (path / "meta.json").exists()]
    return sorted(found, key=lambda path: -meta_of(path)["created"])


def meta_of(container: Path) -> dict[str, Any]:
    meta: dict[str, Any] = json.loads((container / "meta.json").read_text())
    return meta


def find_container(name: str) -> Path:
    for path in containers():
        if meta_of(path)["name"] == name or path.name.startswith(name):
            return path
    raise Refused(f"Error: No such container: {name}")


def do_run(options: dict[str, list[str]], rest: list[str]) -> int:
    if not rest:
        raise Refused("run needs an image")
    detached, terminal = "detach" in options, "tty" in options
    if terminal and "interactive" in options and not sys.stdin.isatty():
        raise Refused("the input device is not a TTY")
    image = find_image(rest[0])
    meta = json.loads((image / "meta.json").read_text())
    name = options.get("name", ["busy_" + secrets.token_hex(4)])[-1]
    if any(meta_of(path)["name"] == name for path in containers()):
        raise Refused(f'Conflict. The container name "/{name}" is already in use')
    for network in (*options.get("net", []), *options.get("network", [])):
        if network not in ("host", "none", "bridge"):
            raise Refused(f"network {network} not found")
    for size in (*options.get("memory", []), *options.get("shm-size", [])):
        if not re.fullmatch(r"\d+[bkmg]?", size):
            raise Refused(f"invalid size: '{size}'")
    environment = dict(meta["env"])
    for pair in options.get("env", []):
        key, equals, value = pair.partition("=")
        if equals or key in os.environ:
            environment[key] = value if equals else os.environ[key]
    container = HERE / "c" / secrets.token_hex(4)  # sockets lie below it: a short name
    shutil.copytree(image / "home", container / "home", symlinks=True)
    (container / "t").mkdir()
    state = {
        "name": name,
        "image": rest[0],
        "command": rest[1:] or meta["cmd"],
        "environment": environment,
        "volumes": [volume.split(":") for volume in options.get("volume", [])],
        "cpus": options.get("cpuset-cpus", [None])[-1],
        "init": "init" in options,
        "remove": "rm" in options,
        "created": time.time(),
    }
    (container / "meta.json").write_text(json.dumps(state))
    if not detached:
        return watch(container, attached=True, interactive="interactive" in options)
    # What the shell waits for must not be held open by a container that stays.
    watcher = [sys.executable, __file__, "_watch", str(container)]
    read, write = os.pipe()
    with open(container / "log", "wb") as log:
        subprocess.Popen(
            watcher,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            pass_fds=[write],
            env={**os.environ, "READY_FD": str(write)},
        )
    os.close(write)
    os.read(read, 1)
    print(container.name + secrets.token_hex(28))
    return 0


def watch(container: Path, attached: bool = False, interactive: bool = False) -> int:
    """Runs the container's first process, and keeps its status; its end is the end of all there."""
    meta = meta_of(container)
    ready = int(os.environ.pop("READY_FD", "-1"))
    command = ["unshare", *NAMESPACES, sys.executable, __file__, "_first", str(container)]
    if meta["cpus"] is not None:
        command = ["taskset", "-c", meta["cpus"], *command]
    process = subprocess.Popen(
        command,
        stdin=None if interactive else subprocess.DEVNULL,
        pass_fds=[ready] if ready >= 0 else [],
        env={**os.environ, "READY_FD": str(ready)},
    )
    if ready >= 0:
        os.close(ready)
    (container / "pids").write_text(f"{os.getpid()} {process.pid}")
    status = process.wait()
    status = 128 - status if status < 0 else status
    (container / "status").write_text(str(status))
    if meta["remove"]:
        shutil.rmtree(container)
    return status


def surroundings(container: Path, meta: dict[str, Any]) -> dict[str, str]:
    return {
        "PATH": f"{PLACES}/bin:/usr/bin:/bin",
        "HOME": str(container / "home"),
        "RAY_TMPDIR": str(container / "t"),
        "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
        "LANG": "C",
        **meta["environment"],
    }


def first(container: Path) -> NoReturn:
    """Process 1 of a container: becomes its command, or with --init the one that reaps and hands signals on."""
    meta = meta_of(container)
    for source, target, *how in meta["volumes"]:
        if not os.path.exists(source) or not target.startswith("/run/") or how not in ([], ["ro"]):
            sys.exit(f"docker: {source}:{target}: this stand-in binds what exists, below /run, as it is or `ro`")
    if meta["volumes"]:
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", "/run"], check=True)
    for source, target, *_how in meta["volumes"]:
        Path(target).touch()
        subprocess.run(["mount", "--bind", source, target], check=True)
    os.chdir(container / "home")
    ready = int(os.environ["READY_FD"])
    if ready >= 0:
        os.write(ready, b"1")  # its end would not do: `unshare` holds the pipe, too
        os.close(ready)
    environment = surroundings(container, meta)
    if not meta["init"]:
        os.execvpe(meta["command"][0], meta["command"], environment)
    child = os.posix_spawnp(meta["command"][0], meta["command"], environment)
    signal.signal(signal.SIGTERM, lambda signum, frame: os.kill(child, signum))
    while True:
        pid, status = os.wait()
        if pid == child:
            os._exit(os.waitstatus_to_exitcode(status) & 255)


def inner_pid(container: Path) -> int | None:
    """The container's first process, as this machine numbers it; None: it has ended."""
    if (container / "status").exists() or not (container / "pids").exists():
        return None
    outer = (container / "pids").read_text().split()[1]
    try:
        children = Path(f"/proc/{outer}/task/{outer}/children").read_text().split()
    except FileNotFoundError:
        return None
    return int(children[0]) if children else None


def do_exec(options: dict[str, list[str]], rest: list[str]) -> int:
    if len(rest) < 2:
        raise Refused("exec needs a container and a command")
    if "tty" in options and "interactive" in options and not sys.stdin.isatty():
        raise Refused("the input device is not a TTY")
    container = find_container(rest[0])
    pid = inner_pid(container)
    if pid is None:
        raise Refused(f"Error response from daemon: Container {rest[0]} is not running")
    meta = meta_of(container)
    environment = {**surroundings(container, meta), **dict(pair.split("=", 1) for pair in options.get("env", []))}
    command = ["nsenter", f"--target={pid}", "--pid", "--mount", "env", f"--chdir={container / 'home'}", *rest[1:]]
    stdin = None if "interactive" in options else subprocess.DEVNULL
    return subprocess.run(command, env=environment, stdin=stdin).returncode


def do_ps(options: dict[str, list[str]], rest: list[str]) -> None:
    shown = [path for path in containers() if "all" in options or inner_pid(path) is not None]
    if "quiet" in options:
        print("".join(path.name + "\n" for path in shown), end="")
        return
    print("CONTAINER ID   IMAGE                COMMAND              CREATED          STATUS         PORTS     NAMES")
    for path in shown:
        meta = meta_of(path)
        words = '"' + " ".join(meta["command"])[:17] + '"'
        status = "Up 1 second" if inner_pid(path) is not None else f"Exited ({(path / 'status').read_text()})"
        print(f"{path.name:14} {meta['image']:20} {words:20} 1 second ago     {status:14}           {meta['name']}")


def do_logs(options: dict[str, list[str]], rest: list[str]) -> None:
    (name,) = exactly(rest, 1, "logs", "CONTAINER")
    print((find_container(name) / "log").read_text(), end="")


def do_commit(options: dict[str, list[str]], rest: list[str]) -> None:
    name, image = exactly(rest, 2, "commit", "CONTAINER NAME")
    container = find_container(name)
    meta = json.loads((find_image(meta_of(container)["image"]) / "meta.json").read_text())
    made = new_image(container / "home", meta)
    name_it(image, made)
    print(f"sha256:{made}")


def end(name: str, signals: tuple[int, ...]) -> None:
    container = find_container(name)
    watcher = os.pidfd_open(int((container / "pids").read_text().split()[0]))
    for number in signals:
        pid = inner_pid(container)
        if pid is not None:
            os.kill(pid, number)
        if select.select([watcher], [], [], 60)[0]:
            break
    os.close(watcher)


def do_stop(options: dict[str, list[str]], rest: list[str]) -> None:
    for name in rest:
        if inner_pid(find_container(name)) is not None:
            end(name, (signal.SIGTERM, signal.SIGKILL))
        print(name)


def do_kill(options: dict[str, list[str]], rest: list[str]) -> None:
    for name in rest:
        if inner_pid(find_container(name)) is None:
            raise Refused(f"Cannot kill container: {name}: it is not running")
        end(name, (signal.SIGKILL,))
        print(name)


def do_rm(options: dict[str, list[str]], rest: list[str]) -> None:
    for name in rest:
        container = find_container(name)
        if inner_pid(container) is not None:
            if "force" not in options:
                raise Refused(f"You cannot remove a running container {name}. Stop it first, or force removal")
            end(name, (signal.SIGKILL,))
        shutil.rmtree(container)
        print(name)


def exactly(rest: list[str], count: int, command: str, what: str) -> list[str]:
    if len(rest) != count:
        raise Refused(f'"docker {command}" wants {what or "no arguments"}, and was given {rest}')
    return rest


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
