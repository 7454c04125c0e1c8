"""`get_node_ip_address`: under which address other machines reach this one."""

from __future__ import annotations

import socket

import ray


def get_node_ip_address(address: str = "8.8.8.8:53") -> str:
    """The address of the node that this process belongs to; without a session, that of the network interface that leads
    to `address` (a "host:port"; nothing is sent to it), or 127.0.0.1 if none does."""
    if ray.is_initialized():
        own = ray.get_runtime_context().get_node_id()
        return next(str(node["NodeManagerAddress"]) for node in ray.nodes() if node["NodeID"] == own)
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise ValueError(f"get_node_ip_address: address={address!r}: expected 'host:port'")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((host, int(port)))  # of a datagram socket: only chooses the route
        except OSError:
            return "127.0.0.1"
        return str(probe.getsockname()[0])
