"""Store to store against a plain TCP copy between two processes, in turns; and one object to many stores.

    python -m tests.perf.transfer [--gib 1] [--stores 8] [--rounds 3] [--mbit 800]

The plain copy does what a transfer does to the memory: from one shared mapping that is there, into another one whose
pages were never touched (cold) or were (warm). With --mbit the broadcast is between network
namespaces whose hosts each send at that rate (needs root), which shows the shape of the tree: on one machine without
it the processors are the bound, and eight copies are eight times the work. PROCESS: a tool; starts its own stores.
"""

from __future__ import annotations

import argparse
import mmap
import os
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial

from tests.cluster.netns import Network
from tests.plasma.transfer_node import TOKEN, TransferNode, transfer_nodes

MIB = 1 << 20
PIECE = 1 * MIB
MADV_POPULATE_WRITE = 23


def raw_copy(nbytes: int, warm: bool, network: Network | None = None) -> float:
    """Seconds for nbytes from one process's shared memory to another's over TCP: loopback, or from host 0 to host 1."""
    source = mmap.mmap(-1, nbytes)
    source.madvise(MADV_POPULATE_WRITE)
    view = memoryview(source)
    with network.entered(0) if network else nullcontext():
        server = socket.create_server((network.address(0) if network else "127.0.0.1", 0))
    with server:
        pid = os.fork()
        if pid == 0:
            target_fd = os.memfd_create("target")
            os.ftruncate(target_fd, nbytes)
            target = mmap.mmap(target_fd, nbytes)
            if warm:
                target.madvise(MADV_POPULATE_WRITE)
            with network.entered(1) if network else nullcontext():
                peer = socket.create_connection(server.getsockname())
            into, at = memoryview(target), 0
            while at < nbytes:
                if not warm and at % PIECE == 0:
                    target.madvise(MADV_POPULATE_WRITE, at, min(PIECE, nbytes - at))
                at += peer.recv_into(into[at : min(nbytes, at - at % PIECE + PIECE)])
            peer.send(b"!")
            os._exit(0)
        peer, _ = server.accept()
        with peer:
            begin = time.perf_counter()
            for at in range(0, nbytes, PIECE):
                peer.sendall(view[at : at + PIECE])
            peer.recv(1)
            took = time.perf_counter() - begin
        os.waitpid(pid, 0)
    view.release()
    source.close()
    return took


def transfers(nbytes: int, rounds: int) -> tuple[float, float]:
    """Seconds of the first transfer (cold) and of the best of those after it."""
    with transfer_nodes(2, nbytes + 64 * MIB) as (a, b):
        key = b"t" * 28
        a.client.put(key, bytes(nbytes), timeout_s=60.0)
        took = []
        for _ in range(rounds + 1):
            begin = time.perf_counter()
            outcome, text, request = b.fetch(key, [a.address], 120.0)
            took.append(time.perf_counter() - begin)
            assert outcome == "here", text
            b.line.let_go(request)
            b.stats()
            b.client.delete(key)
        return took[0], min(took[1:])


@contextmanager
def slow_nodes(count: int, memory_bytes: int, mbit: int) -> Iterator[list[TransferNode]]:
    with Network(count, mbit=mbit) as network, ExitStack() as stack:
        nodes = []
        for host in range(count):
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="ray-transfer-"))
            node = network.inside(host, partial(TransferNode, folder, memory_bytes, TOKEN))
            stack.callback(node.close)
            nodes.append(node)
        yield nodes


def broadcast(nbytes: int, stores: int, mbit: int = 0) -> tuple[float, list[int]]:
    """Seconds until all stores have it, when they ask at once; and how often each served it, the first one first."""
    memory = nbytes + 32 * MIB
    with slow_nodes(stores + 1, memory, mbit) if mbit else transfer_nodes(stores + 1, memory) as nodes:
        root, others = nodes[0], nodes[1:]
        key = b"b" * 28
        root.client.put(key, bytes(nbytes), timeout_s=60.0)
        begin = time.perf_counter()
        requests = [node.line.pull(key, [root.address]) for node in others]
        for node, request in zip(others, requests, strict=True):
            assert node.line.wait(request, 120.0)[2] == "here"
        return time.perf_counter() - begin, [node.stats()["served"] for node in nodes]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gib", type=float, default=1.0)
    parser.add_argument("--stores", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--mbit", type=int, default=0)
    options = parser.parse_args()
    nbytes = int(options.gib * (1 << 30))
    raw = {warm: min(raw_copy(nbytes, warm) for _ in range(options.rounds)) for warm in (False, True)}
    cold, warm = transfers(nbytes, options.rounds)
    for name, ours, plain in (("cold", cold, raw[False]), ("warm", warm, raw[True])):
        speeds = f"store to store {nbytes / ours / 1e9:.2f} GB/s, plain TCP {nbytes / plain / 1e9:.2f}"
        print(f"{name}: {speeds}; {plain / ours:.2f} of it")
    size = 256 * MIB
    one, _ = broadcast(size, 1, options.mbit)
    many, served = broadcast(size, options.stores, options.mbit)
    print(
        f"256 MiB to 1 store: {one:.2f} s; to {options.stores}: {many:.2f} s, {many / one:.1f} times that; "
        f"served by the first {served[0]}, by the others {served[1:]}"
    )


if __name__ == "__main__":
    main()
