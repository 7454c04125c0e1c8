"""PROCESS driver on a node of the cluster under attack: works (cluster_load.py) until its stdin ends. Started by
attacker.py; the arguments are the session's folder, the host, a seed, the faults' file and the ledger's folder.

Prints what went wrong after a line FAILED. That its node has died is no failure if the node was attacked: it then ends.
"""

from __future__ import annotations

import sys
import threading
import time

import ray
from tests.chaos import actor_load
from tests.chaos import cluster_load as work
from tests.chaos.faults import LOST_NODE, Faults
from tests.chaos.load import Load
from tests.chaos.session import assert_held, engine, held
from tests.chaos.world import World

KINDS = [
    work.tasks_everywhere, work.counted_tasks, work.large_objects, work.puts, work.refs_of_workers, work.refs_in_refs,
    work.streams, work.cancelled_tasks, work.awaited, work.key_values, actor_load.calls_in_order,
    actor_load.methods_and_objects, actor_load.async_calls, actor_load.handles_around,
]  # fmt: skip
OF_A_LOST_NODE = ("LocalRayletDiedError", "RaySystemError", "ConnectionClosed", "the node process", "is ending")


def main() -> int:
    folder, host, seed, faults_path, ledger = sys.argv[1:]
    faults = Faults(faults_path)
    of_a_lost_node = list(OF_A_LOST_NODE)
    began_s = time.monotonic()

    def was_lost(error: str) -> bool:
        lost = faults.since(began_s - 1.0, LOST_NODE, int(host))
        return bool(lost) and any(name in error for name in of_a_lost_node)

    try:
        ray.init(folder, logging_level="error", log_to_driver=False)
        # What others say of our own objects, if we are taken for dead, may come before our node hears of that.
        of_a_lost_node.append(f"(tag {engine().tag.hex()[8:16]}) has died")
        before = held()
        del before["stored"]  # others work on this node as well
    except Exception as error:
        if was_lost(f"{type(error).__name__}: {error}") or faults.since(began_s - 1.0, LOST_NODE, int(host)):
            print("its node was lost as it began")
            return 0
        raise
    from tests.chaos.remains import look

    load = Load(int(seed), 2, World(faults, ledger, int(host)), KINDS, look)
    stop = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), stop.set()), daemon=True).start()
    while not stop.wait(0.1) and not load.failed:
        pass
    try:
        load.stop()
        assert_held(before, 15)
        print(f"done {dict(load.done)}, {engine().stats()}")
    except Exception as error:
        said = "\n\n".join([*load.errors, f"{type(error).__name__}: {error}"])
        if was_lost(said):
            print("its node was lost")
        else:
            print(f"FAILED on host {host}, seed {seed}\n{said}")
            return 1
    finally:
        ray.shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
