"""The builder processes of a node: started, their answers read, killed. Node's main thread; decisions are elsewhere.

One process for each environment that is being built (`env_builder.py`). It holds the end of a pipe of ours
for as long as we live, and its answer comes over another; the reaper says when it has ended. What is removed to make
room is removed by such a process too: a virtual environment has thousands of files, and the loop must not wait for
them.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ray._launch.node_process import python_command
from ray.runtime_env._parts import FOLDER

from . import children
from . import env_messages as em

if TYPE_CHECKING:
    from .shell import Node

logger = logging.getLogger("ray.node")

_ANSWER_BYTES_MAX = 1 << 20
_LOG_BYTES_TOLD = 4096


class _Build:
    __slots__ = ("answer", "answers", "key", "lifeline", "log", "pid")

    def __init__(self, key: str, pid: int, lifeline: int, answers: int, log: str) -> None:
        self.key = key
        self.pid = pid
        self.lifeline = lifeline
        self.answers = answers
        self.log = log
        self.answer = bytearray()


class EnvBuilds:
    """Starts and stops builders; tells `done(event)` what came of each: em.Built or em.BuildFailed."""

    def __init__(self, node: Node, done: Callable[[Any], None]) -> None:
        self._node = node
        self._done = done
        self._builds: dict[str, _Build] = {}
        self._removals = 0

    @property
    def folder(self) -> str:
        return f"{self._node.session.folder}/{FOLDER}"

    def start(self, key: str, env: dict[str, Any]) -> None:
        request = {
            "session_dir": self._node.session.folder,
            "folder": self.folder,
            "env": env,
            "bytes_max": self._node.settings.runtime_env_package_bytes_max,
        }
        try:
            self._spawn(key, request)
        except OSError as error:  # too many processes or open files
            self._done(em.BuildFailed(key, f"no builder process could be started: {error.strerror}"))

    def remove(self, parts: tuple[str, ...]) -> None:
        """At once out of the way, then removed by a process of its own."""
        away = []
        for part in parts:
            self._removals += 1
            target = f"{self.folder}/gone-{self._removals}"
            try:
                os.rename(f"{self.folder}/{part}", target)
            except FileNotFoundError:
                continue
            away.append(target)
        if away:
            try:
                self._spawn(f"gone-{self._removals}", {"remove": away})
            except OSError as error:
                logger.warning("%s can't be removed now (%s), and goes with the session", away, error.strerror)

    def stop(self, key: str) -> None:
        build = self._builds.get(key)
        if build is not None:
            children.kill_group(build.pid)

    def close(self) -> None:
        """The session ends: whatever is being built is of no use."""
        for build in list(self._builds.values()):
            self._node.reaper.unwatch(build.pid)
            children.kill_group(build.pid)
            self._forget(build)

    def _spawn(self, key: str, request: dict[str, Any]) -> None:
        requests_read, requests_write = os.pipe()
        answers_read, answers_write = os.pipe()
        log = f"{self._node.session.logs}/runtime_env_setup-{key}.log"
        try:
            argv = python_command("ray._node.env_builder")
            pid = children.spawn(argv, {3: requests_read, 4: answers_write}, log=log)
        except OSError:
            os.close(requests_write)
            os.close(answers_read)
            raise
        finally:
            os.close(requests_read)
            os.close(answers_write)
        build = self._builds[key] = _Build(key, pid, requests_write, answers_read, log)
        os.set_blocking(answers_read, False)
        self._node.loop.add_reader(answers_read, self._read, build)
        self._node.reaper.watch(pid, lambda result: self._ended(build, result), group=True)
        try:
            # A pipe holds 64 KiB, and the builder reads at once: this does not block for longer than it takes to start.
            os.write(requests_write, json.dumps(request).encode() + b"\n")
        except BrokenPipeError:
            return  # it has ended already: the reaper says so

    def _read(self, build: _Build) -> None:
        while True:
            try:
                more = os.read(build.answers, 65536)
            except BlockingIOError:
                return
            if not more or len(build.answer) > _ANSWER_BYTES_MAX:
                self._node.loop.remove_reader(build.answers)
                return
            build.answer += more

    def _ended(self, build: _Build, result: os.waitid_result) -> None:
        self._read(build)
        self._forget(build)
        if build.key.startswith("gone-"):
            return
        try:
            answer = json.loads(build.answer)
        except ValueError:
            answer = {"error": f"the builder process {children.describe_exit(result)}; it wrote:\n{_tail(build.log)}"}
        if "error" in answer:
            self._done(em.BuildFailed(build.key, answer["error"]))
        else:
            self._done(em.Built(build.key, answer["context"], answer["sizes"]))

    def _forget(self, build: _Build) -> None:
        self._builds.pop(build.key, None)
        self._node.loop.remove_reader(build.answers)
        os.close(build.answers)
        os.close(build.lifeline)


def _tail(path: str) -> str:
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.stat(path).st_size - _LOG_BYTES_TOLD))
            return file.read().decode(errors="replace").strip() or "nothing"
    except FileNotFoundError:
        return "nothing"
