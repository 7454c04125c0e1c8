"""`ray start`: makes a session that belongs to no driver, alone or as a node of a cluster. PROCESS of a person's shell.

The options are the arguments of `ray.init` that say what a session is made of, checked by the same table. The node
process itself becomes the current cluster (ray/_launch/current.py), so that of two started at once one wins and the
other takes itself back. With --block, and as a container's first process, this one stays and ends the session when it
is told to end.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from typing import TYPE_CHECKING, Any

from ray.cli import stop

if TYPE_CHECKING:
    from ray._launch.session import Session

# Option -> (argument of ray.init, how its text is read, what it is).
_OPTIONS: dict[str, tuple[str, Any, str]] = {
    "--num-cpus": ("num_cpus", int, "CPUs for tasks; by default those that this process may use"),
    "--num-gpus": ("num_gpus", int, "GPUs for tasks; by default those found"),
    "--resources": ("resources", json.loads, "further resources, as JSON: '{\"tape_drive\": 1}'"),
    "--labels": ("labels", json.loads, 'labels of this node, as JSON: \'{"zone": "a"}\', or as zone=a,rack=3'),
    "--object-store-memory": ("object_store_memory", int, "bytes for shared objects"),
    "--memory": ("_memory", int, "bytes that tasks may reserve with memory="),
    "--num-workers": ("num_workers", int, "workers started in advance for each program"),
    "--plasma-directory": ("plasma_directory", str, "where the memory for shared objects is mapped from"),
    "--object-spilling-directory": (
        "object_spilling_directory",
        str,
        "where objects go that the store has no room for",
    ),
    "--num-redis-shards": ("num_redis_shards", int, "Redis servers beside the first one"),
    "--redis-max-memory": ("_redis_max_memory", int, "bytes that Redis may use for its bounded tables"),
    "--redis-password": ("_redis_password", str, "of Redis; by default a random one"),
    "--system-config": ("_system_config", json.loads, "settings by name, as JSON; see docs/config.md"),
    "--node-name": ("_node_name", str, "what this node is called"),
    "--node-ip-address": ("_node_ip_address", str, "the address of this machine, as shown"),
    "--storage": ("storage", str, "a folder for what must last"),
    "--temp-dir": ("_temp_dir", str, "an absolute path: the session's folder is made below it"),
}
# Of Ray, where a node listens on many ports. Here it has one.
_WITHOUT_EFFECT = ("--min-worker-port", "--max-worker-port", "--worker-port-list", "--gcs-server-port")
_OF_THE_HEAD = ("--port", "--num-redis-shards", "--redis-max-memory", "--redis-password", "--ray-client-server-port")
_OF_THE_DASHBOARD = ("--dashboard-host", "--dashboard-port")


def add(commands: Any) -> None:
    """Adds the command to argparse's `commands`."""
    command = commands.add_parser(
        "start",
        help="start a cluster on this machine, for programs to join",
        description="Starts a cluster that belongs to no program: programs join it with ray.init() and leave it, and "
        "it stays until `ray stop`.",
    )
    command.add_argument("--head", action="store_true", help="this machine is the cluster's first")
    command.add_argument(
        "--fresh", action="store_true", help="with --head: begin anew, though one on this port can be resumed"
    )
    command.add_argument(
        "--block",
        action="store_true",
        help="stay, and end the cluster on Ctrl-C or SIGTERM; a container's first process does so in any case",
    )
    command.add_argument(
        "--tls",
        action="store_true",
        help="encrypt what the cluster's nodes and ray:// clients say; who joins takes it over from the head",
    )
    command.add_argument("--huge-pages", action="store_true", help="shared memory from the hugetlbfs of that folder")
    command.add_argument(
        "--ray-client-server-port",
        metavar="N",
        type=int,
        help="let ray:// clients in through this TCP port; 0: any free one",
    )
    command.add_argument(
        "--ray-client-server-host",
        metavar="ADDRESS",
        default="127.0.0.1",
        help="where that port listens; default: on this machine only",
    )
    command.add_argument(
        "--address", "--redis-address", metavar="HOST:PORT", help="join the cluster whose head listens there"
    )
    command.add_argument(
        "--port",
        "--redis-port",
        metavar="N",
        type=int,
        help="with --head: let other nodes join through this TCP port (of --node-ip-address; by default of this "
        "machine only); 0: any free one",
    )
    command.add_argument(
        "--node-manager-port",
        "--object-manager-port",
        metavar="N",
        type=int,
        help="with --address: the one TCP port on which other nodes reach this one; by default any free one",
    )
    command.add_argument("--include-dashboard", metavar="BOOL", help="false: there is none yet")
    for option, (_argument, kind, text) in _OPTIONS.items():
        metavar = {int: "N", str: "TEXT"}.get(kind, "JSON")
        command.add_argument(option, metavar=metavar, help=text.replace("%", "%%"))
    for option in (*_WITHOUT_EFFECT, *_OF_THE_DASHBOARD):
        command.add_argument(option, help=argparse.SUPPRESS)
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    from ray._launch import current
    from ray._launch.node_process import NodeStartError

    try:
        _refuse_what_makes_no_sense(options)
        config, temp_dir = _config(options)
        if options.tls:
            config["settings"]["tls"] = True
        token: bytes | None
        if options.address is not None:
            token = _join(options, config)
        else:
            running = current.read()
            if running is not None:
                raise RuntimeError(current.runs_already(running))
            token = _lead(options, config)
        return _start(config, _session(config, temp_dir, token, options), options)
    except (ValueError, TypeError, NotImplementedError, NodeStartError, RuntimeError, OSError) as error:
        print(f"ray start: {str(error).removeprefix('ray start: ')}", file=sys.stderr)
        return 2 if isinstance(error, (ValueError, TypeError, NotImplementedError)) else 1


def _stays(options: argparse.Namespace) -> bool:
    """A container's first process stays, too: its end would be that of the node, which it has just made."""
    return bool(options.block) or os.getpid() == 1


def _value(options: argparse.Namespace, option: str) -> Any:
    return getattr(options, option[2:].replace("-", "_"))


def _refuse_what_makes_no_sense(options: argparse.Namespace) -> None:
    for option in _WITHOUT_EFFECT:
        if _value(options, option) is not None:
            print(f"ray start: {option} has no effect: a node listens on one port, or none", file=sys.stderr)
    for option in _OF_THE_DASHBOARD:
        if _value(options, option) is not None:
            raise NotImplementedError(f"{option}: the dashboard is not built yet in this version of ray; leave it out")
    if options.head == (options.address is not None):
        raise ValueError(
            "give either --head, to start a cluster on this machine, or --address=HOST:PORT, to join the one whose "
            "head listens there"
        )
    if options.head and options.node_manager_port is not None:
        print(
            "ray start: --node-manager-port has no effect on the head, which listens on --port alone", file=sys.stderr
        )
    for option in ("--port", "--node-manager-port"):
        port = _value(options, option)
        if port is not None and not 0 <= port < 65536:
            raise ValueError(f"{option} {port}: expected a port number, at most 65535")
    if options.fresh and not options.head:
        raise ValueError("--fresh belongs to --head")
    if not options.head:
        given = [option for option in _OF_THE_HEAD if _value(options, option) is not None]
        if given:
            raise ValueError(f"{given[0]} belongs to the cluster's head: leave it out to join one")


def _config(options: argparse.Namespace) -> tuple[dict[str, Any], str | None]:
    """(what the node process is given, where the session's folder is to be). Raises: ValueError, TypeError."""
    from ray import _init_options

    given: dict[str, Any] = {"address": "local", "huge_pages": options.huge_pages}
    spelled = {"huge_pages": "--huge-pages"}
    for option, (argument, kind, _text) in _OPTIONS.items():
        spelled[argument] = option
        text = _value(options, option)
        if text is None:
            continue
        try:
            given[argument] = _labels(text) if option == "--labels" else kind(text)
        except ValueError:
            wanted = {int: "a whole number", json.loads: "JSON"}.get(kind, "text")
            raise ValueError(f"{option} {text!r}: expected {wanted}") from None
    if options.include_dashboard is not None:
        if options.include_dashboard.lower() not in ("true", "false"):
            raise ValueError(f"--include-dashboard {options.include_dashboard!r}: expected true or false")
        given["include_dashboard"] = options.include_dashboard.lower() == "true"
    checked = _init_options.parse(given, lambda argument: spelled.get(argument, "--" + argument.replace("_", "-")))
    for warning in checked.warnings():
        print(f"ray start: {warning}", file=sys.stderr)
    config = checked.node_config()
    del config["job"]  # there is none yet
    return {**config, "watch_driver": False, "standing": True}, checked._temp_dir


def _lead(options: argparse.Namespace, config: dict[str, Any]) -> bytes | None:
    """Completes the config of a head. Returns: the cluster's token; None: the session's own, nobody else joins."""
    if options.port is None:
        config["lasts"] = not _stays(options)  # then nobody starts it again
        return None
    from ray._launch import address as addresses
    from ray._launch import token

    if config["settings"].get("tls"):
        from ray._native.channel import check_tls

        check_tls()
    host = addresses.numeric("--node-ip-address", config.get("node_ip") or "127.0.0.1")
    config["cluster_port"] = (host, options.port)
    config["lasts"] = True
    return token.find_or_make()


def _join(options: argparse.Namespace, config: dict[str, Any]) -> bytes:
    """Completes the config of a node that joins. Returns: the cluster's token.

    Raises: ConnectionError, ValueError, PermissionError: it can't, and why.
    """
    from ray._launch import address as addresses
    from ray._launch import token
    from ray._node import admission

    host, port = addresses.host_and_port("--address", options.address)
    found = token.find()
    info = admission.ask_head(host, port, found)
    own = config.get("node_ip")
    own = admission.own_address(host, port) if own is None else addresses.numeric("--node-ip-address", own)
    config["settings"] = admission.settings_of(host, port, info, config["settings"])
    config["join"] = (host, port)
    config["cluster_port"] = (own, options.node_manager_port or 0)
    return found


def _labels(text: str) -> dict[str, str]:
    if text.lstrip().startswith("{"):
        labels: dict[str, str] = json.loads(text)
        return labels
    pairs = [pair.partition("=") for pair in text.split(",") if pair]
    if not all(equals and key for key, equals, _ in pairs):
        raise ValueError(text)
    return {key.strip(): value.strip() for key, _, value in pairs}


def _session(config: dict[str, Any], temp_dir: str | None, token: bytes | None, options: argparse.Namespace) -> Session:
    """The one that was killed on this port, to be resumed, or a new one."""
    from ray._launch import session as sessions

    if config.get("lasts") and config.get("cluster_port"):
        address = config["cluster_port"]
        before = [folder for folder, host, port in sessions.resumable(temp_dir) if (host, port) == address]
        for folder in before[0 if options.fresh else 1 :]:
            stop.remove_dead(folder)
        if options.fresh and before:
            print(f"What was left of ray in {before[0]} was removed; this is a new cluster.")
        elif before:
            config["resume"] = True
            print(f"ray in {before[0]} was killed: it is resumed, and waits for its nodes. (--fresh begins anew.)")
            return sessions.take_over(before[0])
    session = sessions.create(temp_dir, token)
    with open(f"{session.folder}/{sessions.STANDING}", "x"):
        pass
    return session


def _start(config: dict[str, Any], session: Session, options: argparse.Namespace) -> int:
    from ray._config import Settings
    from ray._launch import client_server, node_process, supervisor

    settings = Settings(config["settings"])
    config["start_timeout_s"] = settings.node_start_timeout_s
    if config.get("lasts"):  # one that takes over waits so long for its nodes
        config["start_timeout_s"] += settings.node_silence_s
    stays = _stays(options)
    launch = supervisor.start if config.get("lasts") and not stays else node_process.start_node
    node = launch(session, config)
    try:
        ready = node.wait_ready(config["start_timeout_s"])
        port = None
        if options.ray_client_server_port is not None:
            port = client_server.start(session, options.ray_client_server_host, options.ray_client_server_port)
    except BaseException:  # Ctrl-C too: half a session must not stay
        if node.ended_fd >= 0:
            node.kill()
        raise
    from ray._protocol.resources import describe

    print(f"ray runs in {session.folder}, with {describe(ready['resources'])}.")
    if options.head and ready["cluster_port"] is not None:
        host = config["cluster_port"][0]
        print(f"Other nodes join it with `ray start --address={_pair(host, ready['cluster_port'])}`.")
    elif not options.head:
        print(f"It is node {ready['number']} of the cluster at {_pair(*config['join'])}.")
    print("Programs of this user join it with ray.init(); `ray status` looks at it, `ray stop` ends it.", flush=True)
    if port is not None:
        print(f"Programs elsewhere join it with ray.init('ray://{options.ray_client_server_host}:{port}').", flush=True)
    if not stays:
        node.close()
        return 0
    for signum in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, _interrupt)
    try:
        code = node.wait_exit(None)
    except KeyboardInterrupt:
        stop.stop(session, force=False)
        code = node.wait_exit(None)
    if code == 0 or not config.get("lasts"):
        node.discard()
        if code != 0:
            print(f"ray start: the node process has died ({code}); its log went with its folder", file=sys.stderr)
    else:
        node.close()
        print(
            f"ray start: the head's node process has died ({code}); its log is in {session.logs}. The same command "
            f"with --port={ready['cluster_port']} resumes it, `ray stop` removes what is left of it",
            file=sys.stderr,
        )
    return 0 if code == 0 else 1


def _pair(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _interrupt(signum: int, frame: object) -> None:
    raise KeyboardInterrupt
