"""Starts or joins a session, and ends or leaves it: `ray.init`, `ray.shutdown`. Main thread or not; one at a time, by
`_lock`.

`init` makes a session (its folder, its node process) or finds one that `ray start` made, and connects the engine.
`shutdown`, also at exit and on SIGTERM, ends a session that this process made, and of one that it joined ends its own
job: the node process sees to both. If the driver is killed instead, the node process notices and does the same by
itself; if the node process dies, everything pending fails and `shutdown` then only cleans up.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

from ray._core.engine import current
from ray._protocol.ids import NODE_NUMBER_BYTES

if TYPE_CHECKING:
    from ray._core.engine import Engine
    from ray._init_options import InitOptions
    from ray._launch.node_process import NodeProcess
    from ray._launch.session import Session
    from ray._local_mode import LocalMode
    from ray._logging_config import LoggingConfig
    from ray.client.connect import Connection
    from ray.context import ClientContext, RayContext
    from ray.job_config import JobConfig

_lock = threading.RLock()  # init and shutdown exclude each other; re-entrant, for a SIGTERM that arrives inside one
_started: Started | None = None
COMES_BACK_S = 30.0  # the longest that a program which joins waits for a node process that is being started again


class Started:
    """The session that this process is a driver of."""

    def __init__(
        self,
        folder: str,
        node: NodeProcess | None,
        connection: Connection | None,
        options: InitOptions,
        namespace: str,
        context: RayContext | ClientContext,
    ) -> None:
        self.pid = os.getpid()
        self.folder = folder
        self.node = node  # None: the session isn't ours, we have only joined it
        self.connection = connection  # to a session on another machine
        self.options = options
        self.namespace = namespace
        self.context = context
        self.local_mode: LocalMode | None = None


def init(
    address: str | None = None,
    *,
    num_cpus: int | None = None,
    num_gpus: int | None = None,
    resources: dict[str, float] | None = None,
    labels: dict[str, str] | None = None,
    object_store_memory: int | None = None,
    local_mode: bool = False,
    ignore_reinit_error: bool = False,
    include_dashboard: bool | None = None,
    dashboard_host: str = "127.0.0.1",
    dashboard_port: int | None = None,
    job_config: JobConfig | dict[str, Any] | None = None,
    configure_logging: bool = True,
    logging_level: int | str = "info",
    logging_format: str | None = None,
    logging_config: LoggingConfig | None = None,
    log_to_driver: bool = True,
    namespace: str | None = None,
    runtime_env: dict[str, Any] | None = None,
    storage: str | None = None,
    **more: Any,
) -> RayContext | ClientContext:
    """Starts ray in this process, or joins a session that runs: what follows runs there until `ray.shutdown()` or exit.

    Args:
        address: None: join the session that the environment variable RAY_ADDRESS names, else the one that
            `ray start --head` made, else start one.  "auto": the same, but never start one.  "local": start one.  The
            folder of a session: join that.  "ray://host:port": join a session on another machine (docs/api/client.md).
        num_cpus, num_gpus: what tasks may use; by default all CPUs that this process may run on, and the GPUs found.
        resources: further resources by name, such as {"tape_drive": 1}.
        labels: strings by string, of this machine.
        object_store_memory: bytes for shared objects.
        local_mode: run everything in this process, one after the other, for debugging.
        ignore_reinit_error: a second init returns the session that runs instead of raising.
        log_to_driver: print what workers print.
        namespace: where named actors live.
        logging_level, logging_format, configure_logging: of the logger "ray".
        logging_config: how all that is logged looks, here and in workers; the three above then say nothing.
        more: plasma_directory and huge_pages: where shared memory comes from.  _temp_dir: an absolute path below which
            the session's folder is made.  _system_config: settings by name, see docs/config.md.  _metrics_export_port:
            where Prometheus may read metrics, on 127.0.0.1; 0 takes a free port.  Those that the first versions of Ray
            had, too.
        runtime_env: of the job's tasks and actors: a dict or a ray.runtime_env.RuntimeEnv.
        storage: a folder that outlives the session, for libraries to keep things in; the result's "storage".
        include_dashboard=True: not built yet.
    Returns: a RayContext, or for ray:// a ClientContext, which shuts ray down when used as `with ray.init():`.
    Raises:
        TypeError, ValueError, NotImplementedError: about one argument, which the message names.
        ConnectionError: the session to join is not there.
        RuntimeError: ray runs already.
    """
    arguments = locals()  # first of all: exactly the parameters
    arguments.update(arguments.pop("more"))
    from ray import _init_options

    options = _init_options.parse(arguments)
    with _lock:
        if current() is not None:
            return _already(options)
        return _start(options)


def ensure_started() -> None:
    """Starts ray as `ray.init()` would, unless it runs. Any thread; two at once start one session."""
    if current() is None:
        with _lock:
            if current() is None:
                init()


def _already(options: InitOptions) -> RayContext | ClientContext:
    if _started is None or _started.pid != os.getpid():
        running = current()
        if options.ignore_reinit_error and running is not None:
            from ray.context import RayContext

            return RayContext(_address_info(running.session_dir, running.info))
        raise RuntimeError(
            "ray.init() was called inside a task or actor, which belongs to a session already; leave the call out"
        )
    if options.ignore_reinit_error:
        return _started.context
    raise RuntimeError(
        f"ray.init() was called twice: a session runs already, in {_started.folder}. Call ray.shutdown() "
        "first to start another, or pass ignore_reinit_error=True to go on with the one that runs"
    )


def _start(options: InitOptions) -> RayContext | ClientContext:
    global _started
    _forget()  # what is left of a session that ended without us: its node died, or we are a forked child
    from ray._launch import address

    joined = None if options.runs_inline else address.resolve(options.address, os.environ)
    if joined is not None:
        options.refuse_for_joining(str(joined) if isinstance(joined, address.Door) else joined.folder)
    if options.configure_logging and options.logging_config is None:
        from ray import log

        log.setup_logger(options.logging_level, options.logging_format)
    info = options.driver_info()
    if options._tracing_startup_hook is not None:
        from ray._core import tracing

        tracing.load(options._tracing_startup_hook)  # what is wrong with it is known before anything starts
    node = connection = None
    if isinstance(joined, address.Door):
        from ray.client import connect

        connection, engine = connect.connect(joined, info, options._temp_dir)
        folder = connection.folder.folder
        try:
            _send_job_env(engine, options.prepare(folder))
        except BaseException:
            engine.close()
            connection.close()
            raise
    elif joined is not None:
        info["runtime_env"] = options.prepare(joined.folder)
        folder, engine = joined.folder, _join(joined, info)
    else:
        node, engine = _start_session(options, info)
        folder = node.session.folder
    from ray.context import ClientContext, RayContext

    context: RayContext | ClientContext
    if connection is not None:
        context = ClientContext(str(joined), connection.info)
    else:
        context = RayContext(_address_info(folder, engine.info))
    _started = Started(folder, node, connection, options, info["namespace"], context)
    if options.runs_inline:
        from ray._local_mode import LocalMode

        _started.local_mode = LocalMode(engine, info["namespace"])
    _at_exit()
    if options.logging_config is not None:
        from ray import _logging_config

        _logging_config.apply(options.logging_config, _logging_config.context_of(engine))
    _trace(engine)
    if options.configure_logging:
        import logging

        did = "Started" if node is not None else "Joined"
        where = folder if connection is None else str(joined)
        for warning in options.warnings():
            logging.getLogger("ray").warning("ray.init: %s", warning)
        logging.getLogger("ray").info("%s ray %s in %s", did, context.ray_version, where)
    return context


def _trace(engine: Engine) -> None:
    """Turns tracing on, if the session was started so."""
    hook = engine.info.get("settings", {}).get("tracing_startup_hook")
    if not hook:
        return
    from ray._core import tracing

    try:
        tracing.start(hook)
    except BaseException:
        shutdown()  # half a session must not stay
        raise


def _start_session(options: InitOptions, info: dict[str, Any]) -> tuple[NodeProcess, Engine]:
    from ray._launch import node_process, session

    made = session.create(options._temp_dir)
    try:
        info["runtime_env"] = options.prepare(made.folder)
    except BaseException:
        made.release_lock()
        made.remove()
        raise
    node = node_process.start_node(made, options.node_config())
    try:
        from ray._core import driver  # imports while the node process starts

        node.wait_ready(_setting(options, "node_start_timeout_s"))
        return node, driver.start(node.session.folder, node.session.node_socket, node.session.token, info)
    except BaseException:  # Ctrl-C too: half a session must not stay
        node.kill()
        raise


def _join(session: Session, info: dict[str, Any]) -> Engine:
    engine = _reach(session, info)
    theirs, ours = tuple(engine.info["python_version"]), sys.version_info[:2]
    if theirs[:2] != ours:  # what either pickles the other could not read
        engine.close()
        raise RuntimeError(
            f"the session in {session.folder} runs Python {theirs[0]}.{theirs[1]}, and this is Python "
            f"{ours[0]}.{ours[1]}: run this program with the same, or start ray with this one"
        )
    return engine


def _reach(session: Session, info: dict[str, Any]) -> Engine:
    """Registers with the node process, or with the next one, if it has died and its supervisor starts it again."""
    from ray._core import driver
    from ray._launch import cluster_file
    from ray._launch import session as sessions
    from ray.exceptions import LocalRayletDiedError

    until_s, pause_s = time.monotonic() + COMES_BACK_S, 0.05
    while True:
        cluster = cluster_file.read(session.folder)
        if cluster is not None:  # what we make is known to be of this node by its id
            info["tag"] = cluster["number"].to_bytes(NODE_NUMBER_BYTES, "big") + info["tag"][NODE_NUMBER_BYTES:]
        if os.path.exists(session.core_socket(info["tag"])):  # a random tag never is
            raise ValueError(
                f"ray.init: object_id_seed: a program with the same one is in the session already ({session.folder}), "
                "and ids would be given out twice: choose another, or none"
            )
        try:
            return driver.start(session.folder, session.node_socket, session.token, info)
        except (ConnectionError, LocalRayletDiedError):
            if time.monotonic() >= until_s or not sessions.is_held(session):
                raise
        time.sleep(pause_s)  # nobody could tell us: the one who will answer is not there yet
        pause_s = min(2 * pause_s, 1.0)


def _setting(options: InitOptions, name: str) -> Any:
    from ray._config import Settings

    return getattr(Settings(options.settings()), name)


def _address_info(session_dir: str, info: dict[str, Any]) -> dict[str, Any]:
    """The keys that programs read from what init returned."""
    return {
        "address": session_dir,
        "node_ip_address": info.get("node_ip", "127.0.0.1"),
        "raylet_ip_address": info.get("node_ip", "127.0.0.1"),
        "redis_address": None,  # on a Unix socket only
        "gcs_address": session_dir,
        "object_store_address": info["plasma_socket"],
        "raylet_socket_name": session_dir + "/node.sock",
        "webui_url": None,
        "session_dir": session_dir,
        "metrics_export_port": info.get("metrics_export_port"),
        "dashboard_agent_listening_port": None,
        "storage": info.get("storage"),
        "node_id": info["node_id"].hex(),
    }


def shutdown(_exiting_interpreter: bool = False) -> None:
    """Ends the session that this process started, or leaves the one that it joined. Idempotent.

    Tasks that still run are stopped. Of a session that was started here nothing is left; in one that was joined, what
    this program made is gone, but for detached actors.

    Blocks: until the processes that worked for this program have ended and the last lines of their output are printed.
    Raises: RuntimeError: called inside a task or actor.
    """
    global _started
    with _lock:
        running = current()
        if _started is None:
            if running is not None:
                raise RuntimeError(
                    "ray.shutdown() was called inside a task or actor; only the driver can end the session"
                )
            return
        if _started.pid != os.getpid():
            _started = None  # a forked child: the session is its parent's
            return
        started, _started = _started, None
        _unbind()
        if started.options.logging_config is not None:
            from ray import _logging_config

            _logging_config.withdraw()  # there is no job any more whose name a record could carry
        try:
            if running is not None:
                running.shutdown()
        finally:
            _end_node(started)


def _end_node(started: Started) -> None:
    if started.connection is not None:
        started.connection.close()
    if started.node is None:
        return
    # The node ends by itself once it has answered our shutdown, or has seen our connection close.
    if started.node.wait_exit(_setting(started.options, "shutdown_grace_s") + 5.0) is None:
        started.node.kill()
    else:
        started.node.discard()


def _forget() -> None:
    """Ends what _started still says, if the engine has gone without shutdown."""
    global _started
    if _started is not None:
        started, _started = _started, None
        _unbind()
        if started.pid == os.getpid():
            _end_node(started)


def _unbind() -> None:
    """The engine's templates are of one session: the next call of each remote function makes a new one."""
    for name in ("ray.remote_function", "ray.actor"):
        module = sys.modules.get(name)
        if module is not None:
            module.unbind()
    tracing = sys.modules.get("ray._core.tracing")
    if tracing is not None:
        tracing.stop()


def is_initialized() -> bool:
    """Whether ray runs in this process: after `ray.init()` in a driver, always in a task or actor."""
    return current() is not None


def is_client() -> bool:
    """Whether the session is on another machine, behind `ray://`, and this process its driver."""
    running = current() is not None and _started is not None and _started.pid == os.getpid()
    return running and _started is not None and _started.connection is not None


def local_mode() -> LocalMode | None:
    """What runs calls inline, after `ray.init(local_mode=True)`."""
    return _started.local_mode if _started is not None and _started.pid == os.getpid() else None


def namespace() -> str:
    """Where this process looks for named actors."""
    if _started is not None and _started.pid == os.getpid():
        return _started.namespace
    running = current()
    return str(running.context()["namespace"]) if running is not None else ""


def effective_env(env: Any) -> str:
    """The text of a task's or actor's runtime environment, laid over the one that this process lives in.

    Raises: ValueError: something that it names is not there, or too large.
    """
    running = current()
    assert running is not None
    parent: str = running.info.get("runtime_env", "")
    if not env:
        return parent
    from ray._config import Settings
    from ray.runtime_env import _prepare

    bytes_max = Settings(running.info.get("settings")).runtime_env_package_bytes_max
    text = _prepare.effective(env, parent, running.session_dir, bytes_max)
    if _started is not None and _started.connection is not None:
        _send_packages(running, text)
    return text


_PIECE_BYTES = 1 << 20


def _send_packages(engine: Engine, text: str) -> None:
    """Of a client: what its environments name was packed into a folder of its own, and the cluster must have it."""
    from ray.runtime_env import _packages

    for uri in _packages.named_in(text):
        path = _packages.path_of(engine.session_dir, uri)
        if not os.path.exists(path) or engine.rpc("package_has", uri):
            continue  # somebody else's, or there already
        size, offset = os.path.getsize(path), 0
        with open(path, "rb") as file:
            while offset < size:
                piece = file.read(_PIECE_BYTES)
                engine.rpc("package_put", uri, offset, piece, size)
                offset += len(piece)


def _send_job_env(engine: Engine, text: str) -> None:
    if text:
        _send_packages(engine, text)
        engine.rpc("set_job_env", text)
        engine.info["runtime_env"] = text


# --- once in a process -------------------------------------------------------------------------------------------

_registered = False


def _at_exit() -> None:
    global _registered
    if _registered:
        return
    _registered = True
    import atexit

    atexit.register(shutdown, True)
    _on_sigterm()


def _on_sigterm() -> None:
    """SIGTERM ends the program as sys.exit() would, so that shutdown runs. A handler that the user has set stays.

    A child that the program forks dies of the signal as it would have without us, and at once: a handler written in
    Python runs between two steps of the interpreter only, so a child that is told to end just before it waits for a
    lock (each worker of a multiprocessing.Pool does, while `terminate` holds the lock) would wait for ever."""
    import signal

    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        return

    masks = threading.local()  # of each thread that is forking: what it blocked before

    def exit_by_signal(signum: int, frame: Any) -> None:
        sys.exit(128 + signum)

    def hold() -> None:
        masks.before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})

    def let_go() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, masks.before)

    def give_back() -> None:
        if signal.getsignal(signal.SIGTERM) is exit_by_signal:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        let_go()

    signal.signal(signal.SIGTERM, exit_by_signal)
    os.register_at_fork(before=hold, after_in_parent=let_go, after_in_child=give_back)


__all__ = ["effective_env", "ensure_started", "init", "is_initialized", "namespace", "shutdown"]
