"""container, image_uri, nsight, mpi: workers started inside another program. In the builder process.

Each makes of the command that starts Python a longer one. Whether the program is there and takes its options is tried
now, so that a mistake is the environment's failure, with the program's own words, and not that of a worker that never
comes.
"""

from __future__ import annotations

import os
import shlex
import sys

from ._tools import Site, need


def container(site: Site) -> None:
    given = site.env.get("container") or {"image": site.env["image_uri"]}
    program = need("podman", "container" if "container" in site.env else "image_uri", "docker")
    image = given["image"]
    site.run([program, "pull", image])
    session = site.session_dir
    command = [program, "run", "--rm", "-v", f"{session}:{session}", "--network=host", "--pid=host", "--ipc=host"]
    if os.path.basename(program) == "podman":
        command += ["--userns=keep-id", "--cgroups=no-conmon"]
    else:
        command += ["--user", f"{os.getuid()}:{os.getgid()}"]
    for option in given.get("run_options") or ():
        command += shlex.split(option)
    for name in sorted({*(site.env.get("env_vars") or {}), *_inherited()}):
        command += ["--env", name]  # the value is taken from the environment that the worker is started with
    site.context.update(python=[*command, "--entrypoint", given.get("worker_path") or "python", image])
    site.context.update(exec=True, image=True)


def _inherited() -> list[str]:
    return [name for name in os.environ if name.startswith("RAY_")]


def nsight(site: Site) -> None:
    given = site.env["nsight"]
    program = need("nsys", "nsight")
    logs = f"{site.session_dir}/logs/nsight"
    os.makedirs(logs, exist_ok=True)
    options = {"t": "cuda,cudnn,cublas,nvtx", "o": "worker_process_%p", "stop-on-exit": "true"}
    if given != "default":
        options = {"o": "worker_process_%p", **given}
    options["o"] = os.path.join(logs, options["o"])
    flags: list[str] = []
    for name, value in options.items():
        flags += [f"-{name}", value] if len(name) == 1 else [f"--{name}={value}"]
    trial = [flag if flag != options["o"] else f"{logs}/trial" for flag in flags]
    site.run([program, "profile", *trial, sys.executable, "-c", ""])
    for name in os.listdir(logs):
        if name.startswith("trial"):
            os.unlink(f"{logs}/{name}")
    site.context.update(python=[program, "profile", *flags, *site.context["python"]], exec=True)


def mpi(site: Site) -> None:
    given = site.env["mpi"]
    program = need("mpirun", "mpi", "mpiexec")
    site.run([program, "--version"])
    # Every rank runs the same command; ray/_node/exec_worker.py makes rank 0 the worker, and the others run the entry.
    site.context["env_vars"]["RAY_MPI_WORKER_ENTRY"] = given["worker_entry"]
    site.context.update(python=[program, *given["args"], *site.context["python"]], exec=True)
