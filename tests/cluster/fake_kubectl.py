#!/usr/bin/env python3
"""Stands for `kubectl` on a machine of tests/cluster/places.py. PROCESS of a shell there, and of each pod.

Secrets, services and deployments, as examples/cluster/kubernetes.yaml has them. A pod is its container's command, in a
home folder of its own, run again whenever it ends until the deployment is deleted. Names of services are found, at
127.0.0.1. Probes are not run (test_deployment.py does). What it doesn't know it refuses.

    $PLACES/MACHINE/k/   secrets.json   DEPLOYMENT-N/{pid,pod.json,home/,t/,log}    (sockets lie below: short names)
"""

from __future__ import annotations

import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml

PLACES = Path(os.environ["PLACES"])
HERE = Path(os.environ["HOME"]).parent / "k"
AGAIN_AFTER_S = 0.2


def main(words: list[str]) -> int:
    HERE.mkdir(exist_ok=True)
    if words[:1] == ["_pod"]:
        return keep(HERE / words[1])
    if words[:3] == ["create", "secret", "generic"] and len(words) >= 5:
        return create_secret(words[3], words[4:])
    if len(words) == 3 and words[:2] in (["apply", "-f"], ["delete", "-f"]):
        documents = list(yaml.safe_load_all(Path(words[2]).read_text()))
        return (apply if words[0] == "apply" else delete)(documents)
    if words[:1] == ["exec"] and words[2:3] == ["--"] and words[1].startswith("deploy/"):
        return execute(words[1].removeprefix("deploy/"), words[3:])
    if words[:2] == ["delete", "secret"] and len(words) == 3:
        secrets = known()
        del secrets[words[2]]
        (HERE / "secrets.json").write_text(json.dumps(secrets))
        print(f'secret "{words[2]}" deleted')
        return 0
    print(f"kubectl: {' '.join(words)}: not a command that this stand-in has", file=sys.stderr)
    return 1


def known() -> dict[str, dict[str, str]]:
    file = HERE / "secrets.json"
    return json.loads(file.read_text()) if file.exists() else {}


def create_secret(name: str, literals: list[str]) -> int:
    values = {}
    for literal in literals:
        match = re.fullmatch(r"--from-literal=([\w-]+)=(.+)", literal, re.S)
        if match is None:
            print(f"error: {literal}: expected --from-literal=KEY=VALUE", file=sys.stderr)
            return 1
        values[match[1]] = match[2]
    (HERE / "secrets.json").write_text(json.dumps({**known(), name: values}))
    print(f"secret/{name} created")
    return 0


def apply(documents: list[dict[str, Any]]) -> int:
    services = [document["metadata"]["name"] for document in documents if document["kind"] == "Service"]
    for document in documents:
        kind, name = document["kind"].lower(), document["metadata"]["name"]
        if kind == "deployment":
            (container,) = document["spec"]["template"]["spec"]["containers"]
            for number in range(document["spec"]["replicas"]):
                start(f"{name}-{number}", container, services)
        elif kind != "service":
            print(f"error: no matches for kind {document['kind']}", file=sys.stderr)
            return 1
        print(f"{'deployment.apps' if kind == 'deployment' else kind}/{name} created")
    return 0


def start(pod: str, container: dict[str, Any], services: list[str]) -> None:
    folder = HERE / pod
    (folder / "home").mkdir(parents=True)
    (folder / "t").mkdir()
    environment = {"POD_IP": "127.0.0.1"}
    for variable in container["env"]:
        if "value" in variable:
            environment[variable["name"]] = variable["value"]
        elif "secretKeyRef" in variable["valueFrom"]:
            secret = variable["valueFrom"]["secretKeyRef"]
            environment[variable["name"]] = known()[secret["name"]][secret["key"]]
    command = [re.sub(r"\$\((\w+)\)", lambda match: environment[match[1]], word) for word in container["command"]]
    for service in services:
        command = [re.sub(rf"=({service}):", "=127.0.0.1:", word) for word in command]
    (folder / "pod.json").write_text(json.dumps({"command": command, "environment": environment}))
    with open(folder / "log", "wb") as log:
        pod_keeper = [sys.executable, __file__, "_pod", pod]
        process = subprocess.Popen(pod_keeper, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
    (folder / "pid").write_text(str(process.pid))


def surroundings(folder: Path) -> dict[str, str]:
    return {
        "PATH": f"{PLACES}/bin:/usr/bin:/bin",
        "HOME": str(folder / "home"),
        "RAY_TMPDIR": str(folder / "t"),
        "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
        "LANG": "C",
        **json.loads((folder / "pod.json").read_text())["environment"],
    }


def keep(folder: Path) -> int:
    """What a kubelet does: the command again, as often as it ends, until this process is told to end."""
    ends, told = os.pipe()
    signal.signal(signal.SIGTERM, lambda signum, frame: os.write(told, b"1"))
    command = json.loads((folder / "pod.json").read_text())["command"]
    while True:
        process = subprocess.Popen(command, cwd=folder / "home", env=surroundings(folder))
        running = os.pidfd_open(process.pid)
        if ends in select.select([ends, running], [], [])[0]:
            process.terminate()
            process.wait(30)
            return 0
        process.wait()
        os.close(running)
        if select.select([ends], [], [], AGAIN_AFTER_S)[0]:
            return 0


def execute(deployment: str, command: list[str]) -> int:
    folder = HERE / f"{deployment}-0"
    if not folder.exists():
        print(f'Error from server (NotFound): deployments.apps "{deployment}" not found', file=sys.stderr)
        return 1
    return subprocess.run(command, cwd=folder / "home", env=surroundings(folder)).returncode


def delete(documents: list[dict[str, Any]]) -> int:
    for document in reversed(documents):
        kind, name = document["kind"].lower(), document["metadata"]["name"]
        pods = [path for path in HERE.iterdir() if path.name.rpartition("-")[0] == name]
        for folder in pods if kind == "deployment" else []:
            keeper = os.pidfd_open(int((folder / "pid").read_text()))
            signal.pidfd_send_signal(keeper, signal.SIGTERM)
            select.select([keeper], [], [], 40)
            os.close(keeper)
            deadline = time.monotonic() + 10
            while os.listdir(folder / "t") and time.monotonic() < deadline:
                time.sleep(0.02)  # the node's last files go after `ray start --block`
            shutil.rmtree(folder)
        print(f'{kind} "{name}" deleted')
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
