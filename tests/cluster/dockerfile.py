"""Reads a Dockerfile as an engine would, and carries out what a folder can show of it. LIBRARY of fake_docker.py.

Every COPY must find its sources, in the context or in a stage that was named; a FROM must name an image or a stage; the
shell of RUN is parsed, not run. Instructions and options that it doesn't know are refused.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

Parent = Callable[[str], "tuple[Path, dict[str, Any]] | None"]


class Refused(Exception):
    """What an engine would say, or what this stand-in doesn't know."""


def instructions(text: str) -> list[tuple[str, str]]:
    """(instruction, the rest), comments and continued lines taken out."""
    found = []
    joined = re.sub(r"\\\n", "", "".join(line for line in text.splitlines(True) if not line.lstrip().startswith("#")))
    for line in joined.splitlines():
        if line.strip():
            word, _, rest = line.strip().partition(" ")
            found.append((word.upper(), rest.strip()))
    return found


def build_image(
    file: Path, context: Path, home: Path, arguments: dict[str, str], parent: Parent, say: Callable[[str], None]
) -> tuple[Path, dict[str, Any]]:
    """The last stage's home folder, at `home`, and what is known of it: env, user, workdir, cmd, run.

    Raises: Refused.
    """
    if not file.exists():
        raise Refused(f"unable to prepare context: {file} does not exist")
    found = instructions(file.read_text())
    values: dict[str, str] = {}
    stages: dict[str, dict[str, Any]] = {}
    meta: dict[str, Any] | None = None

    def filled(text: str) -> str:
        return re.sub(r"\$\{?(\w+)\}?", lambda match: {**values, **(meta or {}).get("env", {})}.get(match[1], ""), text)

    for number, (word, rest) in enumerate(found, 1):
        say(f"Step {number}/{len(found)} : {word} {rest}")
        if word == "ARG":
            name, _, default = rest.partition("=")
            values[name] = arguments.get(name, default)
        elif word == "FROM":
            match = re.fullmatch(r"(\S+)(?:\s+[Aa][Ss]\s+(\S+))?", rest)
            if match is None:
                raise Refused(f"FROM {rest}: expected an image, and perhaps AS and a name")
            shutil.rmtree(home, ignore_errors=True)
            meta = {"env": {}, "user": "root", "workdir": "/", "cmd": ["bash"], "run": []}
            name = filled(match[1])
            if name in stages:
                meta = json.loads(json.dumps(stages[name]))
            elif (inherited := parent(name)) is not None:
                shutil.copytree(inherited[0], home, symlinks=True)
                meta = inherited[1]
            home.mkdir(exist_ok=True)
            if match[2]:
                stages[match[2]] = meta
        elif meta is None:
            raise Refused(f"{word} before FROM")
        elif word == "RUN":
            checked = subprocess.run(["sh", "-n", "-c", rest], capture_output=True, text=True)
            if checked.returncode != 0:
                raise Refused(f"RUN {rest}: {checked.stderr}")
            meta["run"].append(rest)
        elif word == "ENV":
            name, equals, value = rest.partition("=")
            if not equals:
                raise Refused(f"ENV {rest}: expected NAME=VALUE")
            meta["env"][name] = filled(value)
            if name == "PATH":
                del meta["env"][name]  # there `ray` and `python` are the test's
        elif word == "USER":
            meta["user"] = filled(rest)
        elif word == "WORKDIR":
            meta["workdir"] = str(PurePosixPath(meta["workdir"]) / filled(rest))
        elif word == "CMD":
            meta["cmd"] = json.loads(rest)
        elif word == "COPY":
            _copy(rest, context, home, meta, stages)
        else:
            raise Refused(f"{word}: not an instruction that this stand-in has")
    if meta is None:
        raise Refused(f"{file}: no FROM")
    return home, meta


def _copy(rest: str, context: Path, home: Path, meta: dict[str, Any], stages: dict[str, dict[str, Any]]) -> None:
    words = shlex.split(rest)
    options = [word for word in words if word.startswith("--")]
    *sources, target = [word for word in words if not word.startswith("--")]
    stage = None
    for option in options:
        name, _, value = option.partition("=")
        if name == "--from":
            stage = value
            if stage not in stages:
                raise Refused(f"COPY --from={stage}: there is no such stage")
        elif name != "--chown":
            raise Refused(f"COPY: unknown flag: {name}")
    if not sources or (len(sources) > 1 and not target.endswith("/")):
        raise Refused(f"COPY {rest}: expected sources and a target, which ends with / if they are several")
    for source in sources:
        if stage is not None:
            continue
        path = context / source
        if ".." in Path(source).parts or not path.exists():
            raise Refused(f"COPY failed: {source} is not in the build's context")
        where = PurePosixPath(meta["workdir"]) / target
        if not where.is_relative_to("/home/ray"):
            continue
        to = home / where.relative_to("/home/ray")
        if path.is_dir():
            shutil.copytree(path, to, dirs_exist_ok=True)
        else:
            to = to / path.name if target.endswith(("/", ".")) or to.is_dir() else to
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, to)
