"""PROCESS env builder: builds one environment, says what came of it, ends. One at a time for each distinct environment.

The node starts it (`env_builds.py`): descriptor 3 brings what to build and is held open for as long as the node lives;
descriptor 4 takes the answer, one JSON object; stdout and stderr are a log in the session's folder. It owns what it has
not finished. The tools it runs (pip, conda, podman) are in its process group: if the node dies, descriptor 3 ends and
the whole group is killed; if the builder is killed, the node kills the rest of its group and tells who waits for it.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import traceback
from typing import Any, BinaryIO

from ray._launch.session import remove_tree
from ray._launch.title import set_title
from ray.runtime_env import _build

REQUEST_FD, ANSWER_FD = 3, 4


def main() -> None:
    for descriptor in (REQUEST_FD, ANSWER_FD):
        os.set_inheritable(descriptor, False)
    with open(REQUEST_FD, "rb", buffering=0) as requests:
        line = b""
        while not line.endswith(b"\n"):
            more = requests.read(65536)
            if not more:
                return  # the node has ended already
            line += more
        set_title("ray env builder")
        threading.Thread(target=_end_with_the_node, args=(requests,), daemon=True).start()
        answer = _answer(json.loads(line))
        with open(ANSWER_FD, "wb") as answers:
            answers.write(json.dumps(answer).encode())
        os._exit(0)  # the thread still reads


def _end_with_the_node(requests: BinaryIO) -> None:
    while requests.read(1):
        pass
    os.killpg(0, signal.SIGKILL)


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    try:
        if "remove" in request:
            for path in request["remove"]:
                remove_tree(path)
            return {"context": {}, "sizes": {}}
        return _build.build(request["session_dir"], request["folder"], request["env"], request["bytes_max"])
    except _build.BuildError as error:
        return {"error": str(error)}
    except Exception:  # a mistake of ours, or a full disk: whoever waits shall read all of it
        return {"error": traceback.format_exc()}
