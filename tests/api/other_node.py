"""A driver on a node of its own, of a session that has no other: PROCESS of test_remote_objects.py.

    python -m tests.api.other_node SESSION_FOLDER PORT       where the session's store is reached

It has what a node has for its objects: a number (7), a folder, a store with an object manager, a gate. Its sockets for
calls are the session's. Says its folder and the port of its gate; then each line of standard input is Python to be
run, answered by a line: the repr of `out`, or the error.
"""

from __future__ import annotations

import os
import sys
import tempfile
import traceback

import ray
from ray._core import driver, engine
from ray._launch import session as sessions
from ray._native.plasma import PlasmaClient
from ray._protocol.ids import new_tag
from tests.plasma.transfer_node import TransferNode

NUMBER = 7


def main() -> None:
    session = sessions.open_existing(sys.argv[1])
    with tempfile.TemporaryDirectory(prefix="ray-node7-") as folder:
        os.symlink(session.cores, folder + "/c")
        node = TransferNode(folder, 256 << 20, session.token)
        here = driver.start(
            folder,
            session.node_socket,
            session.token,
            {
                "tag": new_tag(NUMBER),
                "entrypoint": "node 7",
                "sys_path": list(sys.path),
                "cwd": os.getcwd(),
                "namespace": "node7",
                "log_to_driver": False,
                "runtime_env": "",
                "metadata": {},
            },
            open_store=lambda _socket: PlasmaClient(folder + "/plasma.sock"),
        )
        here.on_node_up(0, bytes(16), "unix:" + session.folder, int(sys.argv[2]))
        print(folder, node.address[1], flush=True)
        scope = {"ray": ray, "engine": engine, "node": node, "here": here}
        for line in sys.stdin:
            scope["out"] = None
            try:
                exec(line.encode().decode("unicode_escape"), scope)
                print(repr(scope["out"]), flush=True)
            except BaseException as error:
                traceback.print_exc()
                print(f"{type(error).__name__}: {error}".replace("\n", " "), flush=True)
        here.close()
        node.close()


if __name__ == "__main__":
    main()
