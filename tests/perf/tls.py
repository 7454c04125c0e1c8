"""What TLS between nodes costs: transfers and calls with and without it, in turns, and what bare OpenSSL reaches.

    python -m tests.perf.tls [--gib 1] [--rounds 3] [--calls 3000]

The bare copy is Python's `ssl` between two processes over loopback, with the cipher that nodes use, a MiB at a time
into one buffer: no transfer over one stream is faster than that, whatever the machine's links. PROCESS: a tool.
"""

from __future__ import annotations

import argparse
import os
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack

import ray
from ray.cluster_utils import Cluster
from tests.perf.compare import machine
from tests.perf.transfer import MIB, PIECE
from tests.plasma.transfer_node import TransferNode

CIPHER = "ECDHE-ECDSA-AES128-GCM-SHA256"  # the records of TLS 1.3's AES-128-GCM; Python cannot choose that suite alone


def _contexts(folder: str) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """(server's, client's). The certificate is of this run; nobody looks at it."""
    key, cert = f"{folder}/key", f"{folder}/cert"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    subprocess.run([*command, "-keyout", key, "-out", cert, "-subj", "/CN=bare"], check=True, capture_output=True)
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
    server.load_cert_chain(cert, key)
    for context in (server, client):
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        context.set_ciphers(CIPHER)
    return server, client


def bare_copy(nbytes: int) -> float:
    """Seconds for nbytes over TLS from one process to another."""
    with tempfile.TemporaryDirectory() as folder, socket.create_server(("127.0.0.1", 0)) as listener:
        server, client = _contexts(folder)
        pid = os.fork()
        if pid == 0:
            with client.wrap_socket(socket.create_connection(listener.getsockname())) as peer:
                into, left = memoryview(bytearray(PIECE)), nbytes
                while left > 0:
                    left -= peer.recv_into(into, PIECE)
                peer.send(b"!")
            os._exit(0)
        with server.wrap_socket(listener.accept()[0], server_side=True) as peer:
            piece = bytes(PIECE)
            begin = time.perf_counter()
            for _ in range(nbytes // PIECE):
                peer.sendall(piece)
            peer.recv(1)
            took = time.perf_counter() - begin
        os.waitpid(pid, 0)
    return took


def transfer(nbytes: int, tls: bool) -> float:
    """Seconds for nbytes from one store to another whose pages are there."""
    with ExitStack() as stack:
        nodes = []
        for _ in range(2):
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="ray-tls-"))
            nodes.append(TransferNode(folder, nbytes + 64 * MIB, tls=tls))
            stack.callback(nodes[-1].close)
        a, b = nodes
        key = b"t" * 28
        a.client.put(key, bytes(nbytes), timeout_s=60.0)
        for _ in range(2):
            begin = time.perf_counter()
            outcome, text, request = b.fetch(key, [a.address], 120.0)
            took = time.perf_counter() - begin
            assert outcome == "here", text
            b.line.let_go(request)
            b.stats()
            b.client.delete(key)
    return took


class Echo:
    def call(self, value: int) -> int:
        return value


def calls(count: int, tls: bool) -> float:
    """Calls a second to an actor on another node, one after the other."""
    options = {"num_cpus": 1, "_system_config": {"tls": tls}}
    cluster = Cluster(initialize_head=True, head_node_args=options)
    try:
        cluster.add_node(num_cpus=1, resources={"other": 1})
        cluster.connect()
        actor = ray.remote(resources={"other": 0.1}, num_cpus=0)(Echo).remote()
        for i in range(count // 10 + 1):
            ray.get(actor.call.remote(i), timeout=60)
        begin = time.perf_counter()
        for i in range(count):
            ray.get(actor.call.remote(i))
        return count / (time.perf_counter() - begin)
    finally:
        ray.shutdown()
        cluster.shutdown()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--gib", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--calls", type=int, default=3000)
    options = parser.parse_args()
    nbytes = int(options.gib * (1 << 30)) // PIECE * PIECE
    rounds = []
    for _ in range(options.rounds):
        one = {
            "store to store, plain": nbytes / transfer(nbytes, False) / 1e9,
            "store to store, TLS": nbytes / transfer(nbytes, True) / 1e9,
            "bare OpenSSL": nbytes / bare_copy(nbytes) / 1e9,
            "calls, plain": calls(options.calls, False),
            "calls, TLS": calls(options.calls, True),
        }
        print("  ".join(f"{name} {value:,.2f}" for name, value in one.items()), flush=True)
        rounds.append(one)
    print("\n| | TLS | compared with | ratio |\n|---|---:|---|---:|")
    for name, other, label in (
        ("store to store, TLS", "bare OpenSSL", "one stream of bare OpenSSL"),
        ("store to store, TLS", "store to store, plain", "without TLS"),
        ("calls, TLS", "calls, plain", "without TLS"),
    ):
        value, theirs = (statistics.median(one[key] for one in rounds) for key in (name, other))
        unit = "calls a second, one after the other" if name.startswith("calls") else "GB/s store to store"
        ratio = statistics.median(one[name] / one[other] for one in rounds)
        print(f"| {unit} | {value:,.2f} | {label}: {theirs:,.2f} | {ratio:.2f} |")
    print(f"\nMeasured on {machine()}; load average {os.getloadavg()[0]:.1f}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
