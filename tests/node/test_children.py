"""Which processes a process has started, as ray/_node/children.py reads it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

from ray._node.children import children_of

RESTLESS = """
import subprocess, threading
with subprocess.Popen(["sleep", "1000"]) as child:
    print(child.pid, flush=True)
    while True:
        threads = [threading.Thread(target=int) for _ in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
"""


def test_the_children_of_a_process_whose_threads_come_and_go_are_counted_once() -> None:
    with subprocess.Popen([sys.executable, "-c", RESTLESS], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            child = int(process.stdout.readline())
            found = [children_of(process.pid) for _ in range(3000)]
        finally:
            for pid in (*children_of(process.pid), process.pid):
                os.kill(pid, signal.SIGKILL)
    assert all(pids == [child] for pids in found), [pids for pids in found if pids != [child]][:5]
    assert children_of(process.pid) == []  # it has ended
