"""PROCESS fork server, one a node: a warm interpreter with a single thread; a new worker is one fork away.

Forked by the node process before that has any thread or event loop (or, after a death, exec'ed by it: `main`). The
node alone talks to it, over one SOCK_SEQPACKET pair: a request carries the write ends of the worker's two pipes, the
answer its pid. It owns nothing. If the node dies the kernel kills it; if it dies the node starts another, and the
workers it made live on, for they are not its children:

    fork server --fork--> short-lived child --fork--> worker        the child ends at once, and the kernel makes
                                                                     the nearest subreaper, the node, the parent

So the node reaps every worker itself, and the worker can bind its life to the node by PR_SET_PDEATHSIG, which works
inside a C loop, survives nothing but the worker itself, and costs the node no descriptor. The worker waits at a gate
until its new parent is in place; were the fork server killed in between, it sees that its parent is not the node,
and ends.
"""

from __future__ import annotations

import gc
import importlib
import os
import pickle
import socket
import sys
from typing import Any, NoReturn

from ray._launch.title import die_with_parent, flush_c_streams, line_buffer_c_stdout, set_title

REQUEST_BYTES_MAX = 1 << 20
# Everything a worker needs before its first task. Imported once here, shared by all workers until they write to it.
_STANDARD_MODULES = ("pickle", "traceback", "threading", "socket", "inspect", "weakref", "functools", "ctypes")


def serve(control: socket.socket, node_pid: int, worker_main: str) -> NoReturn:
    """The life of the fork server: warm up, answer requests one by one, end with the node."""
    if not die_with_parent(node_pid):
        os._exit(0)
    set_title("ray fork server")
    main = _warm_up(worker_main)
    while True:
        try:
            data, descriptors, _, _ = socket.recv_fds(control, REQUEST_BYTES_MAX, 2)
        except InterruptedError:
            continue
        if not data:
            os._exit(0)  # the node has closed its end: it wants another fork server, or nothing more
        request = pickle.loads(data)
        try:
            answer = _fork_worker(control, node_pid, main, request, descriptors)
        except OSError as error:  # no memory or too many processes: the node tries again later
            answer = {"worker_id": request["worker_id"], "error": f"fork: {error.strerror}"}
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        gate = answer.pop("gate", None)
        control.send(pickle.dumps(answer))
        if gate is not None:  # only now may the worker go on: the node hears of its pid before it hears from it
            try:
                os.write(gate, b"1")
            except BrokenPipeError:
                pass  # it was killed at the gate: the node, its parent, sees that
            os.close(gate)


def _warm_up(worker_main: str) -> Any:
    """Imports what workers need. Returns: the module to run, or its name if it could not be imported now."""
    gc.disable()
    main: Any
    try:
        for name in _STANDARD_MODULES:
            importlib.import_module(name)
        try:
            main = importlib.import_module(worker_main)
        except Exception:  # each worker tries again, and reports into its own stderr, where a person looks
            main = worker_main
        if hasattr(main, "warm_up"):
            main.warm_up()
    finally:
        # What exists now is never garbage: collections in workers need not touch, and so copy, its pages.
        gc.collect()
        gc.freeze()
        gc.enable()
    return main


def _fork_worker(
    control: socket.socket, node_pid: int, main: Any, request: dict[str, Any], descriptors: list[int]
) -> dict[str, Any]:
    """Forks twice. Returns the answer for the node; "gate" in it: the worker waits until that is closed."""
    gate_read, gate_write = os.pipe()
    pid_read, pid_write = os.pipe()
    try:
        child = os.fork()
        if child == 0:
            try:
                worker = os.fork()
                if worker == 0:
                    os.close(gate_write)
                    os.close(pid_read)
                    os.close(pid_write)
                    control.close()
                    _become_worker(gate_read, node_pid, main, request, descriptors)
                os.write(pid_write, worker.to_bytes(4, "little"))
            except OSError as error:
                os.write(pid_write, b"\0\0\0\0" + os.strerror(error.errno or 0).encode())
            finally:
                os._exit(0)
        os.close(pid_write)
        pid_write = -1
        os.waitpid(child, 0)  # returns once the kernel has given the worker its new parent
        told = os.read(pid_read, 512)
        pid = int.from_bytes(told[:4], "little")
        if pid == 0:
            raise OSError(0, told[4:].decode() or "the short-lived child was killed")
    except BaseException:
        os.close(gate_write)
        raise
    finally:
        os.close(gate_read)
        os.close(pid_read)
        if pid_write >= 0:
            os.close(pid_write)
    return {"worker_id": request["worker_id"], "pid": pid, "gate": gate_write}


def _become_worker(gate: int, node_pid: int, main: Any, request: dict[str, Any], descriptors: list[int]) -> NoReturn:
    """In the new worker: make this process an ordinary one, then run the engine's main. Never returns."""
    code = 1
    try:
        go = os.read(gate, 1)  # end of file instead: the fork server died, and the node may not know of us
        os.close(gate)
        if not go or not die_with_parent(node_pid):
            os._exit(1)
        os.setsid()  # a process group of its own: what user code starts ends with it
        os.dup2(descriptors[0], 1)
        os.dup2(descriptors[1], 2)
        for descriptor in descriptors:
            os.close(descriptor)
        _volunteer_for_the_oom_killer()
        startup = request["startup"]
        if (startup.get("env_context") or {}).get("exec"):
            from ray._node import exec_worker

            exec_worker.become(startup)  # never returns: its environment has a program of its own to start workers
        set_title("ray worker")
        prepare_interpreter(startup)
        if isinstance(main, str):
            main = importlib.import_module(main)
        # What main returns or raises as SystemExit is the exit code, as for a script.
        code = main.main(startup) or 0
    except SystemExit as ending:
        code = ending.code if isinstance(ending.code, int) else (0 if ending.code is None else 1)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        leave(code)


def _volunteer_for_the_oom_killer() -> None:
    """If memory runs out the kernel takes a worker, the largest: its tasks are retried. A node or driver is not."""
    try:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")
    except OSError:
        return  # a container that forbids it: the kernel chooses by size alone


def prepare_interpreter(startup: dict[str, Any]) -> None:
    """Streams, environment, path and folder as the driver's, so that its modules are found by the same names."""
    # Line by line: what a task has printed is in the pipe when the task is done.
    sys.stdout = open(1, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)
    sys.stderr = open(2, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)
    sys.__stdout__, sys.__stderr__ = sys.stdout, sys.stderr  # type: ignore[misc]
    line_buffer_c_stdout()
    os.environ.update(startup.get("env") or {})
    if startup.get("sys_path"):
        ours = [entry for entry in sys.path if entry not in startup["sys_path"]]
        sys.path[:] = [*startup["sys_path"], *ours]
        importlib.invalidate_caches()
    sys.argv = [""]
    if startup.get("cwd"):
        try:
            os.chdir(startup["cwd"])
        except OSError as error:
            print(f"ray: worker can't enter the driver's folder {startup['cwd']!r}: {error.strerror}", file=sys.stderr)
    if startup.get("runtime_env"):
        from ray.runtime_env import _enter

        if not startup["env_context"].get("exec"):
            _enter.set_variables(startup["runtime_env"], startup["env_context"])
        _enter.set_paths(startup["env_context"])


def leave(code: int) -> NoReturn:
    """Ends the worker as the interpreter would: threads, atexit, streams; but not the frames of the fork server."""
    import atexit
    import threading

    try:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        flush_c_streams()
    except BaseException:
        import traceback

        traceback.print_exc()
        code = code or 1
    finally:
        os._exit(code & 0xFF)


def fork(node_pid: int, worker_main: str, close: tuple[int, ...] = ()) -> tuple[int, socket.socket]:
    """Called by the node process while it has one thread and no event loop. Returns: pid, the node's end of the pair.

    Args: close: the node's descriptors that must not live on in workers: locks, lifelines.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid == 0:
        try:
            ours.close()
            for descriptor in close:
                os.close(descriptor)
            serve(theirs, node_pid, worker_main)
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(1)
    theirs.close()
    return pid, ours


def main() -> None:
    """A fork server that is exec'ed: argv is the descriptor of its pair, the node's pid, the module of the workers."""
    control = socket.socket(fileno=int(sys.argv[1]))
    control.set_inheritable(False)
    serve(control, int(sys.argv[2]), sys.argv[3])
