"""Asks a session what runs, waits and is held in it: the one place behind `ray.timeline`, `ray.util.state` and the CLI.

A `Source` answers requests: the engine of this process, or, in a process that is no part of the session (the command
line), a connection of the kind "tool", which may look and change nothing. What comes back is assembled here, in the
process that asks: the node only passes bytes on. If the session ends meanwhile, the request raises.

Three kinds of evidence become one table of tasks: what ended (events that the workers reported, a bounded sample, with
exact counts), what its owners still wait for, and what runs at this moment.
"""

from __future__ import annotations

import contextlib
import os
import pickle
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol

from ray._core.engine import current
from ray._protocol.ids import NODE_NUMBER_BYTES

if TYPE_CHECKING:
    from ray._launch.session import Session

ROWS_MAX = 10_000


class Places:
    """Where the processes of a cluster are, by their tags."""

    def __init__(self, session: Source, timeout_s: float | None = 30.0) -> None:
        rows = session.rpc("node_addresses", timeout=timeout_s)
        self._nodes = {row["number"]: (row["node_id"], row["ip"]) for row in rows}

    def of(self, tag: str | None) -> tuple[str | None, str | None]:
        """(node id, address) of the node of a process, by its tag in hexadecimal; None of a node that is gone."""
        number = int(tag[: 2 * NODE_NUMBER_BYTES], 16) if tag else -1
        return self._nodes.get(number, (None, None))

    def head(self) -> str | None:
        return self._nodes.get(0, (None, None))[0]


FINAL = ("FINISHED", "FAILED", "CANCELLED")


class Source(Protocol):
    """A session that answers."""

    info: dict[str, Any]  # "session_dir", "plasma_socket", "node_id" (bytes), "node_ip"

    def rpc(self, method: str, *args: Any, timeout: float | None = ...) -> Any: ...


class Tool:
    """A connection from outside the session. Of one thread; closed by `close`."""

    def __init__(self, session: Session, timeout_s: float) -> None:
        import asyncio

        from ray._protocol.frames import TAG_BYTES
        from ray._transport.server import connect_unix

        self._loop = asyncio.new_event_loop()
        try:
            self._peer = self._loop.run_until_complete(
                asyncio.wait_for(connect_unix(session.node_socket, session.token, os.urandom(TAG_BYTES)), timeout_s)
            )
            self.info: dict[str, Any] = self.rpc("session", timeout=timeout_s)
        except FileNotFoundError:
            self._loop.close()
            raise ConnectionError(f"the session in {session.folder} is just starting or ending") from None
        except BaseException:
            self._loop.close()
            raise

    def rpc(self, method: str, *args: Any, timeout: float | None = 30.0) -> Any:
        return self._loop.run_until_complete(self._peer.rpc(method, *args, timeout_s=timeout))

    def close(self) -> None:
        self._peer.close()
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()


def find_session(address: str | None) -> Session:
    """The session that an address means: a folder, or, for None and "auto", RAY_ADDRESS, the current cluster, or else
    the newest session that a program of this user has started.

    Raises: ConnectionError: there is none.  ValueError, NotImplementedError: not an address of this machine.
    """
    from ray._launch import address as addresses
    from ray._launch import session as sessions

    if address is not None:
        addresses.check("address", address)
    if address != "local":
        given = address if address not in (None, "auto") or os.environ.get(addresses.VARIABLE) else None
        found = addresses.resolve_here(given, os.environ)
        if found is not None:
            return found
    for folder in sessions.sessions():
        return sessions.open_existing(folder)
    raise ConnectionError(
        "no session of ray runs on this machine for this user; start one with ray.init() or `ray start --head`, or say "
        "which with RAY_ADDRESS or --address"
    )


@contextlib.contextmanager
def source(address: str | None = None, timeout_s: float = 30.0) -> Iterator[Source]:
    """The session of this process, or the one at address.

    Raises: ConnectionError, ValueError: about the address.
    """
    engine = current()
    if engine is not None and (address in (None, "auto") or address == engine.session_dir):
        yield engine
        return
    tool = Tool(find_session(address), timeout_s)
    try:
        yield tool
    finally:
        tool.close()


class Answers:
    """What all cores said to one question."""

    def __init__(self, given: dict[str, Any]) -> None:
        self.silent: list[dict[str, Any]] = given["silent"]
        self.dropped = 0  # cores whose rows were too many to pass on
        self.heads: list[tuple[dict[str, Any], dict[str, Any]]] = []  # (who, what it says)
        self.rows: list[dict[str, Any]] = []
        for report in given["reports"]:
            who = {key: report[key] for key in ("tag", "pid", "kind", "job_id")}
            self.heads.append((who, pickle.loads(report["head"])))
            if report["rows"] is None:
                self.dropped += 1
            else:
                self.rows += [{**row, "by": who} for row in pickle.loads(report["rows"])]

    def warnings(self) -> list[str]:
        """What keeps the answer from being whole, for a person."""
        said = []
        if self.silent:
            pids = ", ".join(str(one["pid"]) for one in self.silent[:10])
            said.append(f"{len(self.silent)} process(es) did not answer in time and are left out: pid {pids}")
        if self.dropped:
            said.append(f"rows of {self.dropped} process(es) are left out: there are too many")
        return said


def ask(session: Source, what: str, timeout_s: float, rows_max: int = ROWS_MAX) -> Answers:
    return Answers(session.rpc("inspect", what, rows_max, timeout_s, timeout=timeout_s + 10.0))


class Tasks:
    """All tasks of the living jobs: `rows`, a bounded sample, and `counts`, exact."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.counts: Counter[tuple[str, str, str]] = Counter()  # (name, kind, state)
        self.warnings: list[str] = []


def tasks(session: Source, timeout_s: float) -> Tasks:
    """Blocks until every core has answered, timeout_s at most for those that are busy."""
    answers = ask(session, "tasks", timeout_s)
    history = session.rpc("task_history", timeout=timeout_s + 10.0)
    found = Tasks()
    found.warnings = answers.warnings()
    by_id: dict[str, dict[str, Any]] = {}
    for job in history:
        for row in history_rows(job):
            by_id[row["task_id"]] = row
        for key, number in job["totals"].items():
            found.counts[key] += number
    for row in sorted(answers.rows, key=lambda row: row["state"] == "RUNNING"):  # the owner's first, then the worker's
        known = by_id.get(row["task_id"])
        if known is not None and known["state"] in FINAL and known.get("attempt", 0) >= row["attempt"]:
            continue  # it ended between one answer and the other
        job_id = row["by"]["job_id"]
        by_id[row["task_id"]] = {**(known or {}), **_without_empty(row), "state": row["state"], "job_id": job_id}
    found.rows = list(by_id.values())
    for _, head in answers.heads:
        for key, number in head["counts"].items():
            found.counts[key] += number
    for (name, kind, state), number in list(found.counts.items()):
        if state == "RUNNING":  # its owner counts it as submitted
            submitted = (name, kind, "SUBMITTED_TO_WORKER")
            found.counts[submitted] = max(0, found.counts[submitted] - number)
    found.counts = +found.counts
    return found


def history_rows(job: dict[str, Any]) -> list[dict[str, Any]]:
    """One dict a task that has ended, from the batches of one job in an answer of `task_history`."""
    import json

    from ray._head.events import merge

    events = [event for batch in job["batches"] for event in json.loads(batch)]
    return [{**row, "job_id": job["job_id"]} for row in merge(events)]


def _without_empty(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if value is not None and key != "by"}


def stored_objects(session: Source) -> dict[str, dict[str, Any]]:
    """What is in the node's object store, by id (hexadecimal): see PlasmaClient.list. Empty while it restarts."""
    from ray._native.plasma import PlasmaClient, PlasmaStoreDied

    try:
        store = PlasmaClient(str(session.info["plasma_socket"]))
        try:
            return {key.hex(): place for key, place in store.list().items()}
        finally:
            store.disconnect()
    except (OSError, PlasmaStoreDied):
        return {}
