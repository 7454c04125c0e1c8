"""Work whose every result is known, for a session in which processes die. LIBRARY of the chaos tests; threads of the
driver.

Each kind of work is a function of (random, losses) that makes calls, checks the results and raises AssertionError for a
wrong one. Work that has retries left must succeed whatever dies. Only what can't be repaired by its nature may fail,
with the right error and for a reason: what was put into a store that has died since, what a killed worker owned.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np

import ray
from ray._core.engine import current
from ray.exceptions import ObjectLostError, OwnerDiedError

Kind = TypeVar("Kind")
BIG = 40_000  # float64: 320 KB
CALL_S = 60.0  # no call may take longer, whatever has died


class Losses:
    """What the killer has done so far; the only excuse that work has for failing."""

    def __init__(self) -> None:
        self.of: Counter[str] = Counter()
        self._begun: Counter[str] = Counter()
        self._ended: Counter[str] = Counter()
        self._lock = threading.Lock()

    def __str__(self) -> str:
        return f"kills: {dict(self.of)}"

    @contextlib.contextmanager
    def of_a(self, role: str) -> Iterator[None]:
        """Around each kill, from before the signal is sent until the process is gone."""
        with self._lock:
            self._begun[role] += 1
        try:
            yield
        finally:
            with self._lock:
                self._ended[role] += 1
                self.of[role] += 1

    @contextlib.contextmanager
    def may_lose(self, error: type[Exception], role: str) -> Iterator[None]:
        """Swallows error, if a kill of a process of this role was under way at some time while the block ran: also one
        that had begun before it, and whose killer hasn't noticed yet that the process is gone."""
        ended_before = self._ended[role]
        try:
            yield
        except error as lost:
            with self._lock:
                met = self._begun[role] > ended_before
            if not met:
                raise AssertionError(f"lost without a kill: {cause_of(lost)}") from lost


def cause_of(error: Exception) -> str:
    """What the node says became of the owner of the object that the error names."""
    found = re.search(r"object ([0-9a-f]{56})", str(error))
    running = current()
    if found is None or running is None:
        return "unknown"
    return str(running.rpc("worker_exit_cause", bytes.fromhex(found[1])[:16]))


# -- remote functions: pure, so that running one twice does no harm ---------------------------------------------------


@ray.remote(max_retries=-1)
def double(x):
    return x * 2


@ray.remote(max_retries=-1)
def slow_double(x, seconds):
    time.sleep(seconds)
    return x * 2


@ray.remote(max_retries=-1)
def make(number):
    return np.full(BIG, float(number))


@ray.remote(max_retries=-1)
def plus(a, b):
    return a + b


@ray.remote(max_retries=-1)
def tree(depth, x):
    if depth == 0:
        return x
    return sum(ray.get([tree.remote(depth - 1, x), tree.remote(depth - 1, x)]))


@ray.remote(max_retries=-1)
def first_of(box):
    return float(ray.get(box[0])[0])


@ray.remote(max_retries=-1)
def refs_of_mine(number):
    return [make.remote(number), double.remote(number)]


@ray.remote(max_retries=-1)
def count_from(first, n):
    for i in range(first, first + n):
        yield np.full(BIG, float(i)) if i % 3 == 0 else i


@ray.remote(max_restarts=-1, max_task_retries=-1)
class Doubler:
    def count_from(self, first, n):
        yield from range(first, first + n)

    def double(self, x):
        return x * 2

    def make(self, number):
        return np.full(BIG, float(number))

    def call(self, x):
        return ray.get(double.remote(x))

    def pid(self):
        return os.getpid()


def get(refs):
    return ray.get(refs, timeout=CALL_S)


# -- kinds of work ----------------------------------------------------------------------------------------------------


def small_tasks(r: random.Random, losses: Losses) -> None:
    numbers = [r.randrange(1000) for _ in range(r.randint(1, 200))]
    assert get([double.remote(n) for n in numbers]) == [2 * n for n in numbers]


def slow_tasks(r: random.Random, losses: Losses) -> None:
    numbers = [r.randrange(1000) for _ in range(r.randint(1, 8))]
    refs = [slow_double.remote(n, r.uniform(0, 0.1)) for n in numbers]
    rest = refs
    while rest:
        ready, rest = ray.wait(rest, num_returns=r.randint(1, len(rest)), timeout=CALL_S)
        assert ready, "ray.wait gave nothing within its timeout"
    assert get(refs) == [2 * n for n in numbers]


def nested_tasks(r: random.Random, losses: Losses) -> None:
    depth, x = r.randint(1, 4), r.randrange(100)
    assert get(tree.remote(depth, x)) == x * 2**depth


def big_chain(r: random.Random, losses: Losses) -> None:
    """Lineage: each link can be made again from the first."""
    numbers = [r.randrange(1000) for _ in range(r.randint(2, 6))]
    ref = make.remote(numbers[0])
    for n in numbers[1:]:
        ref = plus.remote(ref, make.remote(n))
        if r.random() < 0.3:
            ray.wait([ref], timeout=CALL_S)
    value = get(ref)
    assert value.shape == (BIG,) and (value == sum(numbers)).all()
    assert get(first_of.remote([ref])) == sum(numbers)


def puts(r: random.Random, losses: Losses) -> None:
    with losses.may_lose(ObjectLostError, "plasma_store"):
        number = r.randrange(1000)
        ref = ray.put(np.full(BIG, float(number)))
        assert (get(ref) == number).all()
        assert get(first_of.remote([ref])) == number
        assert (get(plus.remote(ref, ref)) == 2 * number).all()
        assert (get(double.remote(np.full(BIG, float(number)))) == 2 * number).all()


def small_puts(r: random.Random, losses: Losses) -> None:
    numbers = [r.randrange(1000) for _ in range(50)]
    assert get([plus.remote(ray.put(n), n) for n in numbers]) == [2 * n for n in numbers]


def refs_of_workers(r: random.Random, losses: Losses) -> None:
    """Results that a worker owns: they may die with it."""
    with losses.may_lose(OwnerDiedError, "worker"):
        number = r.randrange(1000)
        a, b = get(refs_of_mine.remote(number))
        assert (get(a) == number).all() and get(b) == 2 * number


def calls_of_an_actor(r: random.Random, losses: Losses) -> None:
    actor = Doubler.remote()
    for _ in range(r.randint(1, 4)):
        numbers = [r.randrange(1000) for _ in range(r.randint(1, 100))]
        assert get([actor.double.remote(n) for n in numbers]) == [2 * n for n in numbers]
        assert get(actor.call.remote(numbers[0])) == 2 * numbers[0]
        with losses.may_lose(ObjectLostError, "plasma_store"):
            assert (get(actor.make.remote(numbers[0])) == numbers[0]).all()


def generators(r: random.Random, losses: Losses) -> None:
    """Each item once, in order, whoever dies; some are dropped half taken."""
    first, n = r.randrange(1000), r.randint(1, 40)
    source = count_from if r.random() < 0.7 else Doubler.remote().count_from
    generator = source.options(_generator_backpressure_num_objects=r.choice([-1, 1, 5])).remote(first, n)
    refs = []
    wanted = n if r.random() < 0.7 else r.randint(0, n)
    for _ in range(wanted):
        try:
            refs.append(generator._next_sync(CALL_S))
        except StopIteration:  # too early: the last item is an error, which get raises
            break
        assert not refs[-1].is_nil(), f"no item {len(refs) - 1} within {CALL_S} s"
    if len(refs) == n:
        assert list(generator) == []
    del generator
    assert [int(np.max(value)) for value in get(refs)] == list(range(first, first + wanted))


KINDS: list[Callable[[random.Random, Losses], None]] = [
    small_tasks, slow_tasks, nested_tasks, big_chain, puts, small_puts, refs_of_workers, calls_of_an_actor, generators,
]  # fmt: skip


def some_of(seed: int, kinds: Sequence[Kind]) -> Sequence[Kind]:
    """The kinds of work of the round with this seed: all in half of the rounds, else one to three. Work of one kind
    meets states that a mixture of all hides (swarm testing: Groce et al., ISSTA 2012)."""
    r = random.Random(f"kinds of work, seed {seed}")
    return kinds if r.random() < 0.5 else r.sample(kinds, min(len(kinds), r.randint(1, 3)))


class Load:
    """Threads of the driver, each doing one piece of work after another until `stop`."""

    def __init__(
        self,
        seed: int,
        threads: int,
        losses: Any,
        kinds: Sequence[Callable[[random.Random, Any], None]] = (),
        look: Callable[[], str] = str,
    ) -> None:
        """losses: given to each piece of work; its str says what has happened so far. kinds: KINDS, if none.
        look: what there is to say about the session when a piece has taken too long, told with the first failure."""
        self.done: Counter[str] = Counter()
        self.errors: list[str] = []
        self.now: dict[int, str] = {}
        self._lock, self._told = threading.Lock(), False
        self._stop = threading.Event()
        self._losses, self._kinds, self._look = losses, kinds or KINDS, look
        self._threads = [
            threading.Thread(target=self._run, args=(i, random.Random(seed * 1000 + i)), name=f"load-{i}", daemon=True)
            for i in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def _run(self, number: int, r: random.Random) -> None:
        while not self._stop.is_set():
            kind = r.choice(self._kinds)
            self.now[number] = kind.__name__
            try:
                kind(r, self._losses)
            except BaseException:
                self._stop.set()
                with self._lock:
                    first, self._told = not self._told, True
                error = f"{kind.__name__}, after {self._losses}\n{traceback.format_exc()}"
                self.errors.append(error + (self._look() if first and "imeout" in error else ""))
                return
            self.done[kind.__name__] += 1

    @property
    def failed(self) -> bool:
        return bool(self.errors)

    def stop(self, timeout_s: float = CALL_S + 5) -> None:
        """Lets each thread finish its piece.
        Raises: AssertionError: one never did, or a result was wrong."""
        self._stop.set()
        deadline = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        stuck = {i: self.now[i] for i, thread in enumerate(self._threads) if thread.is_alive()}
        assert not self.errors, "\n\n".join(self.errors)
        assert not stuck, f"work that never ended: {stuck}{self._look()}"
