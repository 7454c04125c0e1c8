"""PROCESS worker for tests of the node alone: speaks the node's protocol, and runs what a test sends it.

It listens on its own socket; each EVENT ("run", source) there is executed with `node` (its connection to the node),
`say(text)` and `startup` in scope; ("call", source) answers with the value of an expression.
"""

from __future__ import annotations

import os
import pickle
import select
from typing import Any

EVENT, RPC, REPLY = 3, 1, 2


def main(startup: dict[str, Any]) -> int:
    from ray._native.channel import Connection, ConnectionClosed, Listener

    tag = os.urandom(16)
    listener = Listener(f"{startup['session_dir']}/c/{tag.hex()}", startup["token"], tag, 1)
    node = Connection.dial(startup["node_socket"], startup["token"], tag, 1)
    node.send(RPC, pickle.dumps((1, "register", ({"kind": "worker", "tag": tag, "pid": os.getpid()},))))
    scope: dict[str, Any] = {
        "node": node,
        "startup": startup,
        "tag": tag,
        "heard": [],
        "tell": lambda name, *args: node.send(EVENT, pickle.dumps((name, args))),
    }
    callers: dict[int, Any] = {}
    poll = select.poll()
    poll.register(node.fileno(), select.POLLIN)
    poll.register(listener.fileno(), select.POLLIN)
    while True:
        for fd, _ in poll.poll():
            if fd == listener.fileno():
                caller = listener.accept()
                if caller is not None:
                    callers[caller.fileno()] = caller
                    poll.register(caller.fileno(), select.POLLIN)
                continue
            connection = callers.get(fd, node)
            try:
                messages = connection.receive()
            except ConnectionClosed:
                if connection is node:
                    return 9
                poll.unregister(fd)
                callers.pop(fd).close()
                continue
            for kind, body in messages:
                message = pickle.loads(body)
                if connection is node:
                    scope["heard"].append(message)
                    if kind == EVENT and message[0] == "exit":
                        print("goodbye", flush=True)
                        listener.close()
                        return 0
                elif kind == EVENT:
                    exec(message[1][0], scope)
                else:
                    request_id, _, (source,) = message
                    connection.send(REPLY, pickle.dumps((request_id, True, eval(source, scope))))
