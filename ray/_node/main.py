"""PROCESS node, title `ray node`: one a machine. `main` is the whole life of it.

Who starts it, with ray/_launch/node_process.py: the driver that calls ray.init, and then it ends with that driver; or
`ray start`, and then it stands until `ray stop`, and drivers come and go. Who talks to it: every driver and
worker of the session, over node.sock. What it owns: the machine's resources, the workers, the fork server,
plasma_store and Redis (its children), the session folder (by the lock on it) and, on one machine, what ray/_head
decides. When it dies, by whatever cause, the kernel kills all of those, and the driver that started it, whose
connection ends, removes the folder; one that `ray start` made is swept by the next session of this user.

The order of the start is what makes `ray.init` fast. Everything that takes time in another process is set going
first (fork server, store, first worker), our own imports come while those work, and Redis comes last of all: nobody
waits for it. Until then there is one thread and no event loop here: the fork server is forked out of that.
"""

from __future__ import annotations

import gc
import os
import pickle
import signal
import socket
import sys
import time
import traceback
from typing import Any, NoReturn

from ray._config import Settings
from ray._launch import current
from ray._launch import session as sessions
from ray._launch.node_process import CONTROL_FD, LOCK_FD, receive, send
from ray._launch.title import adopt_orphans, set_title

_CONFIG_TIMEOUT_S = 10.0


def main() -> NoReturn:
    """Called by the bootstrap of node_process.py; descriptors 0 to 4 are set, everything else is to be closed."""
    control = socket.socket(fileno=CONTROL_FD)
    control.set_inheritable(False)
    os.set_inheritable(LOCK_FD, False)
    os.closerange(LOCK_FD + 1, os.sysconf("SC_OPEN_MAX"))
    code = 1
    try:
        set_title("ray node")
        config = pickle.loads(receive(control, _CONFIG_TIMEOUT_S))
        code = _run(control, config)
    except EOFError:
        # The driver ended before it had said what it wants; the folder that it had made is ours to remove.
        code = 0
        session = sessions.open_existing(os.environ[sessions.ENVIRONMENT_MARK])
        if not os.path.exists(f"{session.folder}/{sessions.RESUMABLE}"):
            session.remove()
    except BaseException as error:
        traceback.print_exc()
        _say(control, ("refused" if isinstance(error, ValueError) else "failed", _plain_text(error)))
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _run(control: socket.socket, config: dict[str, Any]) -> int:
    milestones = {"config": time.monotonic()}
    session = sessions.open_existing(config["session_dir"])
    settings = Settings(config.get("settings"))
    adopt_orphans()  # before the first fork, so that no worker ever has another parent
    gc.disable()  # until all is imported: it would find nothing

    from . import fork_server

    me = os.getpid()
    fork_pid, fork_control = fork_server.fork(me, settings.worker_main, close=(CONTROL_FD, LOCK_FD))
    milestones["forked"] = time.monotonic()

    from ray._native.channel import Listener
    from ray._protocol.frames import ROLE_NODE
    from ray._scheduling.node_resources import NodeResources

    from . import detect, spill_options
    from .store_process import StoreProcess

    node_id = os.urandom(16)
    listener = Listener(session.node_socket, session.token, node_id, ROLE_NODE)
    given = dict(config.get("resources") or {})
    total, gpu_ids = detect.node_resources(
        given, config.get("object_store_memory"), settings, config.get("plasma_directory")
    )
    store = StoreProcess(
        session.plasma_socket,
        session.logs + "/plasma_store.log",
        total["object_store_memory"] // 10_000,
        config.get("plasma_directory"),
        bool(config.get("huge_pages")),
        (session.objects_socket, session.token_file) if config.get("cluster_port") or settings.object_manager else None,
        spill_options.arguments(settings, session.folder),
        bool(settings.tls),
    )
    store.spawn()
    pool, logs, job, expected = _first_workers(session, settings, config, total, fork_control)
    milestones["spawned"] = time.monotonic()

    # asyncio imports ssl if it can (7 ms, 3 MB); nothing in this process speaks TLS.
    hidden = sys.modules.setdefault("ssl", None)  # type: ignore[arg-type]
    import asyncio

    if hidden is None:
        del sys.modules["ssl"]
    milestones["asyncio"] = time.monotonic()

    parts = (session, config, settings, NodeResources(total, gpu_ids), pool, logs, store, node_id)
    runner = asyncio.new_event_loop()
    over = not config.get("lasts")
    try:
        serving = _serve(control, parts, listener, (fork_pid, fork_control), job, expected, milestones)
        over = runner.run_until_complete(serving) or over
    finally:
        _end_everything(session, over)
        if over and config.get("standing"):
            current.release(session.folder)
    return 0 if over else 1


def _first_workers(
    session: sessions.Session, settings: Settings, config: dict[str, Any], total: dict[str, int], control: socket.socket
) -> Any:
    """The pool, the logs, and the first workers of the driver's job, asked for before there is an event loop."""
    from . import worker_messages as wm
    from . import worker_pool as wp
    from .cores import FIRST_JOB, Job, startup
    from .log_tail import LogTail

    cpus = max(1, total.get("CPU", 0) // 10_000)
    pool = wp.WorkerPool(
        idle_kept=settings.idle_workers_kept if settings.idle_workers_kept >= 0 else cpus,
        idle_timeout_s=settings.idle_worker_timeout_s,
        starting_max=settings.workers_starting_max,
        start_timeout_s=settings.worker_start_timeout_s,
        env_start_timeout_s=settings.runtime_env_setup_timeout_s,
        exit_grace_s=settings.worker_exit_grace_s,
        start_retries_max=settings.worker_start_retries_max,
    )
    logs = LogTail(session.logs, settings.log_line_bytes_max, settings.log_file_bytes_max, settings.log_files_kept)
    expected: list[int] = []
    if not config.get("job"):
        return pool, logs, None, expected
    job = Job(FIRST_JOB, config["job"])
    logs.hold(FIRST_JOB)
    now = time.monotonic()
    pool.handle(wm.JobStarted(FIRST_JOB), now)
    if job.runtime_env:
        return pool, logs, job, expected  # they start in the job's environment, once that is ready
    for action in pool.handle(wm.Prestart(FIRST_JOB, settings.prestart_workers), now):
        descriptors = logs.open(action.worker_id, FIRST_JOB)
        body = pickle.dumps(
            {"worker_id": action.worker_id, "startup": startup(session, settings, job, action.worker_id)}
        )
        try:
            socket.send_fds(control, [body], list(descriptors))
        except BrokenPipeError:
            pass  # the fork server is dead already: whoever reaps it has these asked for again of the next one
        for fd in descriptors:
            os.close(fd)
        expected.append(action.worker_id)
    return pool, logs, job, expected


async def _serve(
    control: socket.socket, parts: Any, listener: Any, fork: Any, job: Any, expected: list[int], milestones: Any
) -> bool:
    """Returns: whether the session is over for good; else a head that takes over may go on with its folder."""
    import asyncio
    import logging

    from ray._transport.server import Server

    from . import children, head_side
    from .shell import Node

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    loop = asyncio.get_running_loop()
    node = Node(*parts)
    if job is not None:
        node.cores.jobs[job.job_id] = job
    link = children.ForkServerLink(
        loop,
        node.reaper.watch,
        fork[0],
        fork[1],
        node.settings.worker_main,
        node.session.logs + "/fork_server.err",
        node.worker_forked,
        node.worker_not_forked,
        lambda cause: logging.getLogger("ray.node").error("%s; another was started", cause),
    )
    for worker_id in expected:
        link.expect(worker_id)
    node.attach_fork_server(link)
    head_side.start(node)
    store_ready: asyncio.Future[None] = loop.create_future()
    node.attach_store(store_ready)
    _watch_driver(node, control)
    loop.add_signal_handler(signal.SIGTERM, node.founder_gone, "SIGTERM")
    node.server = Server(listener, node.requests.on_peer)
    reachable = _open_gate(node, control)
    if not reachable:
        node.founder_gone("the port for other nodes can't be had")
    node.reaper.reap()  # what ended before there was a handler
    milestones["serving"] = time.monotonic()
    try:
        await store_ready
    except RuntimeError as error:
        _say(control, ("failed", str(error)))
        node.founder_gone("the store did not start")
    else:
        if reachable and await _joined(node, control) and await _exports_metrics(node, control):
            _ready(node, control, milestones)
            node.over = True  # from here on it ends because it is told to
    await node.ended
    node.over = node.over or not node.config.get("resume")
    await node.finish()
    return bool(node.over)


def _open_gate(node: Any, control: socket.socket) -> bool:
    """Listens for other nodes, if this one is part of a cluster: `config["cluster_port"]` is (numeric host, port).
    False: it could not, and the session ends."""
    address = node.config.get("cluster_port")
    if address is None:
        return True
    from .cluster_ports import open_gate

    try:
        node.gate = open_gate(node, *address)
    except (OSError, ValueError) as error:
        _say(control, ("refused", f"{address[0]}:{address[1]} can't be listened on for other nodes: {error}"))
        return False
    return True


async def _joined(node: Any, control: socket.socket) -> bool:
    """Makes this node one of its cluster, if it is to be. False: that came to nothing, and the session ends."""
    if node.uplink is None:
        return await _leads(node, control)
    host, port = node.config["join"]
    try:
        await node.uplink.join(node.settings.node_start_timeout_s)
    except (OSError, ValueError, RuntimeError) as error:
        _say(control, ("refused", f"the cluster at {host}:{port} can't be joined: {error}"))
        node.founder_gone("it can't join its cluster")
        return False
    return True


async def _leads(node: Any, control: socket.socket) -> bool:
    """With a gate others may join this node, or come back to it. False: what an earlier head wrote can't be read."""
    if not node.config.get("resume"):
        if node.gate is not None:
            from . import head_side

            head_side.open_cluster(node)
        return True
    from ray._control.store import StoreUnavailable

    from . import head_return

    node.start_redis()
    try:
        await head_return.take_over(node)
    except StoreUnavailable as error:
        _say(control, ("failed", f"the tables of {node.session.folder} can't be read: {error}"))
        node.founder_gone("it can't go on from its tables")
        return False
    assert node.resumed is not None
    node.resumed.set_result(None)
    return True


async def _exports_metrics(node: Any, control: socket.socket) -> bool:
    """Opens the port for metrics, if one is wanted. False: it could not, and the session ends."""
    port = node.config.get("metrics_export_port")
    if port is None:
        return True
    try:
        await node.metrics.listen(port)
    except OSError as error:
        reason = error.strerror or str(error)
        _say(
            control, ("refused", f"_metrics_export_port={port}: it can't be listened on: {reason}; 0 takes a free one")
        )
        node.founder_gone("the port for metrics is taken")
        return False
    return True


def _ready(node: Any, control: socket.socket, milestones: dict[str, float]) -> None:
    """The store answers, so everything does: whoever started us hears of it, and drivers may come."""
    if node.config.get("standing"):
        try:
            current.claim(node.session.folder)
        except ValueError as error:  # two were started at once, and the other was quicker
            if node.uplink is None:  # else it is a further node on a machine: its programs find the first one
                _say(control, ("failed", str(error)))
                node.founder_gone("another cluster of this user runs already")
                return
    if node.config.get("standing") and node.config.get("lasts") and node.gate is not None:
        sessions.mark_resumable(node.session.folder, node.gate.host, node.gate.port)
    milestones["ready"] = time.monotonic()
    ready = {
        "pid": os.getpid(),
        "resources": dict(node.scheduler.resources.total),
        "plasma_capacity": node.store.memory_bytes if node.store else 0,
        "node_id": node.node_id,
        "number": node.number,
        "cluster_port": node.gate.port if node.gate is not None else None,
        "milestones": milestones,
        "processor_s": time.process_time(),
    }
    _say(control, ("ready", ready))
    gc.collect()
    gc.freeze()
    gc.enable()
    if node.uplink is None and not node.config.get("resume"):
        node.start_redis()
    node.watch_memory()
    if node.config.get("supervised"):
        from .supervision import Supervision

        node.supervision = Supervision(node, (node.gate.host, node.gate.port) if node.gate is not None else None)


def _watch_driver(node: Any, control: socket.socket) -> None:
    """The driver's end is ours, unless told otherwise: by pidfd, for its forked children may hold its sockets open."""
    pid = node.config.get("driver_pid")
    if not pid or not node.config.get("watch_driver", True):
        return
    if os.getppid() != pid:
        node.founder_gone("the driver ended while the node started")
        return
    pidfd = os.pidfd_open(pid)

    def ended() -> None:
        node.loop.remove_reader(pidfd)
        os.close(pidfd)
        node.founder_gone("the driver's process has ended")

    node.loop.add_reader(pidfd, ended)


def _end_everything(session: sessions.Session, over: bool) -> None:
    """The last act: no descendant, no file, unless somebody may take over. The lock goes with this process."""
    from .children import kill_descendants

    kill_descendants()
    if over:
        session.remove()


def _say(control: socket.socket, message: object) -> None:
    try:
        send(control, message)
    except OSError:
        return  # nobody is left to hear it


def _plain_text(error: BaseException) -> str:
    if isinstance(error, (ValueError, FileNotFoundError, PermissionError)):
        return str(error)
    return "".join(traceback.format_exception(type(error), error, error.__traceback__)).strip()
