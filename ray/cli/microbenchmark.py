"""How many calls a second this machine makes through `ray`. PROCESS a driver: one session per row, so rows don't mix.

The rows, their names and the way of measuring are those that Ray's own microbenchmark made the field's yardstick, so
that numbers can be laid beside each other. Only the public API is used and nothing of this package is imported: the
same file measures a peer when that peer's interpreter runs it (tests/perf/microbench.py does).

A row's rate is the median of three timed windows, after one call and one window that warm it up. A row that raises is
reported as failed, with the reason, and the others go on.
"""

# mypy applies no class decorators, and so does not see that an actor class has .remote:
# mypy: disable-error-code="attr-defined"
from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import secrets
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any, Callable, NamedTuple

import ray

# What a row sets up: a function that does one round, and how many units of the row's rate one round is worth.
Round = tuple[Callable[[], Any], float]
BATCH = 1000
CLIENTS = 4
CLUSTER_START_S = 60.0
LARGE_WORDS = 100 * 2**20  # 800 MB of int64
MEDIUM_WORDS = 10 * 2**20


@contextlib.contextmanager
def session_of_its_own() -> Iterator[None]:
    ray.init(
        num_cpus=max(2, os.cpu_count() or 1),
        resources={"custom": 100},
        include_dashboard=False,
        logging_level="error",
    )
    try:
        yield
    finally:
        ray.shutdown()


@contextlib.contextmanager
def ray_client() -> Iterator[None]:
    """A cluster of `ray start`, and this process its ray:// client."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [os.path.join(os.path.dirname(sys.executable), "ray"), "start", "--head", "--block"]
    command += ["--num-cpus", "2", "--include-dashboard", "false", "--node-ip-address", "127.0.0.1"]
    command += ["--ray-client-server-port", str(port)]
    os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex()
    with tempfile.TemporaryDirectory(prefix="rb") as folder:  # not the cluster that its user may have running
        environ = {**os.environ, "RAY_TMPDIR": folder}
        cluster = subprocess.Popen(command, env=environ, stdout=subprocess.DEVNULL)
        try:
            _connect(f"ray://127.0.0.1:{port}", time.monotonic() + CLUSTER_START_S)
            try:
                yield
            finally:
                ray.shutdown()
        finally:
            cluster.terminate()
            cluster.wait()


def _connect(address: str, deadline: float) -> None:
    while True:
        try:
            ray.init(address, logging_level="error")
            return
        except ConnectionError:  # its port isn't open yet, and nothing says when it will be
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


class Row(NamedTuple):
    name: str
    unit: str
    prepare: Callable[[], Round]
    session: Callable[[], contextlib.AbstractContextManager[None]]


ROWS: list[Row] = []


def row(
    name: str,
    unit: str = "calls/s",
    session: Callable[[], contextlib.AbstractContextManager[None]] = session_of_its_own,
) -> Callable[[Callable[[], Round]], Callable[[], Round]]:
    def register(prepare: Callable[[], Round]) -> Callable[[], Round]:
        ROWS.append(Row(name, unit, prepare, session))
        return prepare

    return register


def servers_per_side() -> int:
    """Half the cores serve, half call."""
    return max(1, (os.cpu_count() or 1) // 2)


# -- what is called ----------------------------------------------------------------------------------------------------


@ray.remote
def answer() -> bytes:
    return b"ok"


@ray.remote
def put_small(n: int) -> None:
    for _ in range(n):
        ray.put(0)


@ray.remote
def put_medium(n: int) -> None:
    import numpy as np

    for _ in range(n):
        ray.put(np.zeros(MEDIUM_WORDS, dtype=np.int64))


@ray.remote
def refs_to_ones(n: int) -> list[Any]:
    return [ray.put(1) for _ in range(n)]


@ray.remote
def count_to(n: int) -> Iterator[int]:
    for i in range(n):  # noqa: UP028  the peer's wrapper sends into the generator, and a range has no send for `yield from`
        yield i


@ray.remote
def call_in_turn(actors: list[Any], n: int) -> None:
    ray.get([actors[i % len(actors)].answer.remote() for i in range(n)])


@ray.remote(num_cpus=0)
class Actor:
    def answer(self) -> bytes:
        return b"ok"

    def answer_to(self, _question: Any) -> bytes:
        return b"ok"


@ray.remote
class AsyncActor:
    async def answer(self) -> bytes:
        return b"ok"

    async def answer_to(self, _question: Any) -> bytes:
        return b"ok"

    async def count_to(self, n: int) -> AsyncIterator[int]:
        for i in range(n):
            yield i


@ray.remote(num_cpus=0)
class Client:
    def __init__(self, servers: list[Any]) -> None:
        self.servers = servers

    def call(self, n: int) -> None:
        ray.get([s.answer.remote() for s in self.servers for _ in range(n)])

    def call_with_ref(self, n: int) -> None:
        question = ray.put(0)
        ray.get([s.answer_to.remote(question) for s in self.servers for _ in range(n)])

    def run_tasks(self, n: int) -> None:
        ray.get([answer.remote() for _ in range(n)])


# -- objects -----------------------------------------------------------------------------------------------------------


@row("single client get calls")
def _() -> Round:
    ref = ray.put(0)
    return lambda: ray.get(ref), 1


@row("single client put calls")
def _() -> Round:
    return lambda: ray.put(0), 1


@row("multi client put calls")
def _() -> Round:
    return lambda: ray.get([put_small.remote(100) for _ in range(10)]), 1000


@row("single client put gigabytes", "GB/s")
def _() -> Round:
    import numpy as np

    array = np.zeros(LARGE_WORDS, dtype=np.int64)
    return lambda: ray.put(array), array.nbytes / 1e9


@row("multi client put gigabytes", "GB/s")
def _() -> Round:
    return lambda: ray.get([put_medium.remote(10) for _ in range(10)]), 100 * 8 * MEDIUM_WORDS / 1e9


# -- tasks -------------------------------------------------------------------------------------------------------------


@row("single client tasks and get batch", "batches of 1000/s")
def _() -> Round:
    return lambda: ray.get([answer.remote() for _ in range(BATCH)]), 1


@row("single client get object containing 10k refs")
def _() -> Round:
    ref = refs_to_ones.remote(10_000)
    ray.wait([ref])
    return lambda: ray.get(ref), 1


@row("single client wait 1k refs", "runs/s")
def _() -> Round:
    def drain() -> None:
        rest = [answer.remote() for _ in range(BATCH)]
        while rest:
            _ready, rest = ray.wait(rest)

    return drain, 1


@row("single client tasks sync")
def _() -> Round:
    return lambda: ray.get(answer.remote()), 1


@row("single client tasks async")
def _() -> Round:
    return lambda: ray.get([answer.remote() for _ in range(BATCH)]), BATCH


@row("multi client tasks async")
def _() -> Round:
    clients = [Client.remote([]) for _ in range(CLIENTS)]
    return lambda: ray.get([c.run_tasks.remote(BATCH) for c in clients]), CLIENTS * BATCH


# -- actors ------------------------------------------------------------------------------------------------------------


def one_by_one(actor: Any) -> Round:
    return lambda: ray.get(actor.answer.remote()), 1


def in_batches(actor: Any) -> Round:
    return lambda: ray.get([actor.answer.remote() for _ in range(BATCH)]), BATCH


def many_to_many(servers: list[Any]) -> Round:
    return lambda: ray.get([call_in_turn.remote(servers, BATCH) for _ in range(CLIENTS)]), CLIENTS * BATCH


@row("1:1 actor calls sync")
def _() -> Round:
    return one_by_one(Actor.remote())


@row("1:1 actor calls async")
def _() -> Round:
    return in_batches(Actor.remote())


@row("1:1 actor calls concurrent")
def _() -> Round:
    return in_batches(Actor.options(max_concurrency=16).remote())


@row("1:n actor calls async")
def _() -> Round:
    servers = [Actor.remote() for _ in range(servers_per_side())]
    client = Client.remote(servers)
    return lambda: ray.get(client.call.remote(2 * BATCH)), 2 * BATCH * len(servers)


@row("n:n actor calls async")
def _() -> Round:
    return many_to_many([Actor.remote() for _ in range(servers_per_side())])


@row("n:n actor calls with arg async")
def _() -> Round:
    clients = [Client.remote([Actor.remote()]) for _ in range(servers_per_side())]
    return lambda: ray.get([c.call_with_ref.remote(BATCH) for c in clients]), BATCH * len(clients)


@row("1:1 async-actor calls sync")
def _() -> Round:
    return one_by_one(AsyncActor.remote())


@row("1:1 async-actor calls async")
def _() -> Round:
    return in_batches(AsyncActor.remote())


@row("1:1 async-actor calls with args async")
def _() -> Round:
    actor = AsyncActor.remote()
    return lambda: ray.get([actor.answer_to.remote(i) for i in range(BATCH)]), BATCH


@row("n:n async-actor calls async")
def _() -> Round:
    return many_to_many([AsyncActor.remote() for _ in range(servers_per_side())])


@row("await from the driver")
def _() -> Round:
    actor = Actor.remote()

    async def burst() -> None:
        await asyncio.gather(*[actor.answer.remote() for _ in range(200)])

    return lambda: asyncio.run(burst()), 200


def take_items(count_to: Any) -> Round:
    return lambda: [ray.get(ref) for ref in count_to.remote(BATCH)], BATCH


@row("generator items from a task", "items/s")
def _() -> Round:
    return take_items(count_to)


@row("generator items from an async actor", "items/s")
def _() -> Round:
    return take_items(AsyncActor.remote().count_to)


@row("actor creation", "actors/s")
def _() -> Round:
    def create_and_kill() -> None:
        actors = [Actor.remote() for _ in range(10)]
        ray.get([a.answer.remote() for a in actors])
        for a in actors:
            ray.kill(a)

    return create_and_kill, 10


@row("placement group create and remove", "groups/s")
def _() -> Round:
    from ray.util import placement_group, remove_placement_group

    def create_and_remove() -> None:
        groups = [placement_group([{"custom": 0.001}]) for _ in range(50)]
        for g in groups:
            g.wait(30)
        for g in groups:
            remove_placement_group(g)

    return create_and_remove, 50


@row("client: get calls", session=ray_client)
def _() -> Round:
    ref = ray.put(0)
    return lambda: ray.get(ref), 1


@row("client: put calls", session=ray_client)
def _() -> Round:
    return lambda: ray.put(0), 1


@row("client: put gigabytes", "GB/s", session=ray_client)
def _() -> Round:
    import numpy as np

    array = np.zeros(MEDIUM_WORDS, dtype=np.int64)
    return lambda: ray.put(array), array.nbytes / 1e9


@row("client: 1:1 actor calls sync", session=ray_client)
def _() -> Round:
    return one_by_one(Actor.remote())


@row("client: 1:1 actor calls async", session=ray_client)
def _() -> Round:
    return in_batches(Actor.remote())


# -- measuring ---------------------------------------------------------------------------------------------------------


def measure(prepare: Callable[[], Round], window_s: float) -> float:
    """Units a second. The caller has a session running, which nothing else uses meanwhile."""
    do_round, units = prepare()
    do_round()
    rates = []
    for _ in range(4):
        rounds, began = 0, time.perf_counter()
        while time.perf_counter() - began < window_s:
            do_round()
            rounds += 1
        # The window ends with the round that was running when its time was up: its true length counts.
        rates.append(units * rounds / (time.perf_counter() - began))
    return statistics.median(rates[1:])


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 1 if a row failed."""
    parser = argparse.ArgumentParser(description="Calls a second, row by row.")
    parser.add_argument("--only", default="", help="rows whose name contains this")
    parser.add_argument("--row", action="append", help="exactly this row; may be repeated")
    parser.add_argument("--seconds", type=float, default=1.0, help="length of each of the four windows of a row")
    parser.add_argument("--json", help="write {row: rate} to this file; null for a row that failed")
    parser.add_argument("--list", action="store_true", help="print the names of the rows")
    options = parser.parse_args(arguments)
    if options.seconds <= 0:
        parser.error(f"--seconds must be above 0, not {options.seconds}")
    chosen = [r for r in ROWS if (r.name in options.row if options.row else options.only in r.name)]
    if not chosen:
        parser.error("no row of that name; --list prints them")
    if options.list:
        print("\n".join(r.name for r in chosen))
        return 0

    results: dict[str, float | None] = {}
    for name, unit, prepare, session in chosen:
        try:
            with session():
                results[name] = measure(prepare, options.seconds)
            print(f"{name:48s} {results[name]:14.2f} {unit}", flush=True)
        except Exception as error:  # whatever the engine under test raises is this row's result
            results[name] = None
            print(f"{name:48s} FAILED {type(error).__name__}: {str(error)[:300]}", flush=True)
    if options.json:
        with open(options.json, "w") as out:
            json.dump(results, out, indent=1)
    return 1 if None in results.values() else 0


if __name__ == "__main__":
    sys.exit(main())
