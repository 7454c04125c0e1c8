"""Does something bad to a cluster every moment, in an order that follows from the seed. LIBRARY of the chaos tests; a
thread of the driver, and one for each attack that lasts.

Every attack is undone, and a node that was lost is followed by a fresh one on its host, at the latest by `end`; the
head's by its supervisor. The driver's own node is never lost. What is done is written down in `Faults` before it is
done.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import IO

from tests.chaos import faults as f
from tests.chaos.field import Field
from tests.chaos.session import KILLS, gone

# A node gives up on a store or a Redis that dies again and again without ever having lived for some seconds: that is
# policy, not chaos. No two kills of one of them are nearer than this.
STEADY_S = 5.5
# A worker that is asked to exit and doesn't answer within worker_exit_grace_s, 5 s, is killed: policy, too.
WORKER_PAUSE_S = 3.5
# In a round. A supervisor gives up a head that has died 5 times within a minute: that is policy, too.
HEAD_DEATHS_MAX = 1
PROGRAM_SHARE = 0.4  # of the joined hosts have a driver of their own


class Attacker(threading.Thread):
    def __init__(self, field: Field, faults: f.Faults, seed: int, silence_s: float, ledger: str, links: bool) -> None:
        super().__init__(name="attacker", daemon=True)
        self.errors: list[str] = []
        self.lost: list[str] = []  # why the head gave nodes up
        self.programs: dict[int, tuple[subprocess.Popen[str], IO[str]]] = {}
        self._field, self._faults, self._silence_s, self._ledger = field, faults, silence_s, ledger
        self._links = links and field.network is not None
        self._random = random.Random(seed)
        self._seed = seed
        self._ending = threading.Event()
        self._lasting: list[threading.Thread] = []
        self._lock = threading.Lock()
        self._busy: set[int] = set()  # hosts whose node or link is under attack
        self._rested_at: dict[int, float] = {}
        self._spared_until: dict[tuple[str, int], float] = {}
        self._head_deaths = 0

    # -- the thread

    def run(self) -> None:
        attacks = [attack for attack, weight in ATTACKS.items() for _ in range(weight)]
        if not self._links:
            attacks = [attack for attack in attacks if attack not in NEED_LINKS]
        if not self._field.head_may_die:
            attacks.remove(Attacker.kill_head)
        try:
            for host in range(1, self._field.hosts):
                self._maybe_program(host)
            while not self._ending.wait(self._random.uniform(0.05, 0.7)):
                self._random.choice(attacks)(self)
        except BaseException:
            self.errors.append(traceback.format_exc())

    def end(self, timeout_s: float = 60.0) -> None:
        """Stops, undoes everything, and lets programs finish. Raises: AssertionError: something went wrong."""
        self._ending.set()
        deadline = time.monotonic() + timeout_s
        for thread in [self, *self._lasting]:
            thread.join(max(0.0, deadline - time.monotonic()))
        stuck = [thread.name for thread in [self, *self._lasting] if thread.is_alive()]
        for host in list(self.programs):
            self._end_program(host)
        assert not self.errors, "\n\n".join(self.errors)
        assert not stuck, f"attacks that were not over after {timeout_s} s: {stuck}"

    def _lasting_attack(self, name: str, host: int, attack: Callable[[], None]) -> None:
        """In a thread of its own; the host is nobody else's meanwhile. host must have been taken."""

        def run() -> None:
            try:
                attack()
            except BaseException:
                self.errors.append(f"{name} on host {host}\n{traceback.format_exc()}")
            finally:
                with self._lock:
                    self._busy.discard(host)
                    self._rested_at[host] = time.monotonic() + self._silence_s / 2

        thread = threading.Thread(target=run, name=f"{name} on host {host}", daemon=True)
        self._lasting = [other for other in self._lasting if other.is_alive()] + [thread]
        thread.start()

    def _take(self, *, joined: bool = True) -> int | None:
        """A host for an attack on its node or its link; joined: one that may be lost. None: all is busy."""
        with self._lock:
            host = self._random.choice(self._field.losable if joined else range(self._field.hosts))
            if host in self._busy or len(self._busy - {0}) >= max(1, self._field.hosts - 2):
                return None
            # Two short silences of one link, its own and the head's, would add up to a long one; and after each the
            # next heartbeat has to come through.
            if 0 in self._busy or (host == 0 and self._busy):
                return None
            concerned = range(self._field.hosts) if host == 0 else (host, 0)
            if any(time.monotonic() < self._rested_at.get(other, 0.0) for other in concerned):
                return None
            self._busy.add(host)
            return host

    def _pause(self, seconds: float) -> None:
        time.sleep(seconds)  # the fault lasts that long, whatever else happens

    # -- processes

    def kill_process(self) -> None:
        host = self._random.randrange(self._field.hosts)
        role = self._random.choice(
            ["worker"] * 5 + ["workers", "fork_server", "plasma_store"] + ["redis"] * (host == 0)
        )
        kinds = {"fork_server": f.FORK_SERVER, "plasma_store": f.STORE}
        if time.monotonic() < self._spared_until.get((role, host), 0.0):
            return
        victims = self._field.pids(host, "worker" if role == "workers" else role)
        if not victims:
            return
        if role == "worker":
            victims = [self._random.choice(victims)]
        how = self._random.choice(KILLS) if role == "worker" else signal.SIGKILL
        with self._faults.during(kinds.get(role, role), host, f"killed {role}"):
            for pid in victims:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, how)
                    os.kill(pid, signal.SIGCONT)  # another signal than SIGKILL waits until a paused process goes on
            for pid in victims:
                gone(pid)
        if role in ("plasma_store", "redis"):
            self._spared_until[role, host] = time.monotonic() + STEADY_S

    def pause_process(self) -> None:
        host = self._random.randrange(self._field.hosts)
        role = self._random.choice(["worker", "worker", "plasma_store", "fork_server"] + ["redis"] * (host == 0))
        victims = self._field.pids(host, role)
        if not victims:
            return
        pid = self._random.choice(victims)
        most_s = WORKER_PAUSE_S if role == "worker" else 2 * self._silence_s
        seconds = self._random.uniform(0.05, most_s)

        def attack() -> None:
            with self._faults.during(f.PAUSED, host, f"paused {role}"), self._standing_still([pid]):
                self._pause(seconds)

        thread = threading.Thread(target=attack, name=f"paused {role} on host {host}", daemon=True)
        self._lasting = [other for other in self._lasting if other.is_alive()] + [thread]
        thread.start()

    @contextlib.contextmanager
    def _standing_still(self, pids: list[int]) -> Iterator[None]:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

    # -- nodes

    def kill_node(self) -> None:
        """Its node process, or all at once, as by the loss of the machine."""
        host = self._take()
        if host is None:
            return
        kind = self._random.choice([f.NODE, f.HOST])

        def attack() -> None:
            victims = self._field.pids(host)
            with self._faults.during(kind, host, f"killed {kind}"):
                for pid in victims if kind == f.HOST else victims[:1]:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                for pid in victims:  # a store that stands still can't see that its node has gone
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGCONT)
                for pid in victims:
                    gone(pid)
                self._replace(host, 5.0)

        self._lasting_attack(f"killing a {kind}", host, attack)

    def kill_head(self) -> None:
        """The head's node process, and with it all that lives on its node."""
        with self._lock:
            if 0 in self._busy or self._head_deaths == HEAD_DEATHS_MAX:
                return
            self._head_deaths += 1
            self._busy.add(0)  # nothing else begins that it could meet: a node that is silent as well would be lost

        def alone() -> bool:
            with self._lock:
                return self._busy == {0} and all(at < time.monotonic() for at in self._rested_at.values())

        def attack() -> None:
            while not alone():
                if self._ending.wait(0.05):
                    return
            with self._faults.during(f.HEAD, 0, "killed head"):
                victims = self._field.pids(0)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(victims[0], signal.SIGKILL)
                for pid in victims:  # a store that stands still can't see that its node has gone
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGCONT)
                for pid in victims:
                    gone(pid)
                self._field.wait_head_back()
            for role in ("plasma_store", "redis"):
                self._spared_until[role, 0] = time.monotonic() + STEADY_S

        self._lasting_attack("killing the head", 0, attack)

    def pause_node(self) -> None:
        long = self._random.random() < 0.4
        host = self._take(joined=long)
        if host is None:
            return
        whole = self._random.random() < 0.4
        seconds = self._silence_s * (self._random.uniform(1.5, 2.0) if long else self._random.uniform(0.02, 0.6))

        def attack() -> None:
            pids = self._field.pids(host) if whole and host else [self._field.node_pids[host]]
            kind = f.LONG_PAUSED if long else f.PAUSED
            with self._faults.during(kind, host, "paused host" if whole and host else "paused node"):
                with self._standing_still(pids):
                    self._pause(seconds)
                if long:
                    self._replace(host, 5.0)

        self._lasting_attack("pausing a node", host, attack)

    def _replace(self, host: int, timeout_s: float) -> None:
        """A fresh node after one that was lost."""
        self.lost.append(f"host {host}: {self._field.wait_lost(host, timeout_s)}")
        self._end_program(host)
        self._field.join(host)
        self._maybe_program(host)

    def _was_lost(self, host: int) -> bool:
        """Waits until it would have come to light that a silence was too long."""
        deadline = time.monotonic() + self._silence_s + 1.0
        while time.monotonic() < deadline:
            if not self._field.row(host)["Alive"]:
                return True
            time.sleep(0.1)
        return False

    # -- links

    def cut_link(self) -> None:
        """Unplugged, or dead in one direction only."""
        network = self._field.network
        assert network is not None
        long = self._random.random() < 0.35
        host = self._take(joined=long)
        if host is None:
            return
        others = [other for other in range(self._field.hosts) if other != host]
        how = self._random.choice(["unplugged", "mute", "deaf"])
        seconds = self._silence_s * (self._random.uniform(1.5, 2.0) if long else self._random.uniform(0.02, 0.5))

        def cut() -> None:
            if how == "unplugged":
                network.unplug(host)
            elif how == "mute":
                network.mute(host, others)
            else:
                for other in others:
                    network.mute(other, [host])

        def mend() -> None:
            if how == "unplugged":
                network.plug(host)
            elif how == "mute":
                network.unmute(host, others)
            else:
                for other in others:
                    network.unmute(other, [host])

        def attack() -> None:
            with self._faults.during(f.LONG_CUT if long else f.CUT, host, how):
                cut()
                try:
                    self._pause(seconds)
                finally:
                    mend()
                if long:
                    self._replace(host, self._silence_s + 5.0)

        self._lasting_attack("cutting a link", host, attack)

    def separate(self) -> None:
        """Two joined hosts don't reach one another; both reach the head."""
        network = self._field.network
        assert network is not None
        host = self._take()
        if host is None:
            return
        one_way = self._random.random() < 0.5
        others = [other for other in range(1, self._field.hosts) if other != host]
        seconds = self._random.uniform(0.1, 1.5 * self._silence_s)

        def attack() -> None:
            if not others:
                return
            pairs = [(host, others)] if one_way else [(host, others), *((other, [host]) for other in others)]
            with self._faults.during(f.CUT, host, "separated from other joined hosts"):
                for sender, to in pairs:
                    network.mute(sender, to)
                try:
                    self._pause(seconds)
                finally:
                    for sender, to in pairs:
                        network.unmute(sender, to)

        self._lasting_attack("separating hosts", host, attack)

    def slow_link(self) -> None:
        network = self._field.network
        assert network is not None
        mbit = self._random.choice([2, 20, 100])
        # What a queue of this kind drops may be one heartbeat after another: on a very slow link a node may be lost.
        costly = mbit < 10
        host = self._take(joined=costly)
        if host is None:
            return
        seconds = self._random.uniform(0.2, 1.5 * self._silence_s)

        def attack() -> None:
            with self._faults.during(f.LONG_CUT if costly else f.CUT, host, f"slow {mbit} Mbit/s"):
                network.slow(host, mbit)
                try:
                    self._pause(seconds)
                finally:
                    network.slow(host, 0)
                if costly and self._was_lost(host):
                    self._replace(host, 5.0)

        self._lasting_attack("slowing a link", host, attack)

    # -- drivers on other nodes

    def kill_program(self) -> None:
        with self._lock:
            hosts = [host for host in self.programs if host not in self._busy]
            if not hosts:
                return
            host = self._random.choice(hosts)
            self._busy.add(host)

        def attack() -> None:
            program, output = self.programs.pop(host)
            with self._faults.during(f.DRIVER, host, "killed program"):
                program.kill()
                program.communicate()
            output.seek(0)
            said = output.read()
            output.close()
            if "FAILED" in said:
                self.errors.append(f"a program on host {host}:\n{excerpt(said)}")
            self._maybe_program(host)

        self._lasting_attack("killing a program", host, attack)

    def _maybe_program(self, host: int) -> None:
        if self._ending.is_set() or self._random.random() > PROGRAM_SHARE:
            return
        output = tempfile.TemporaryFile("w+")
        seed = str(self._seed + host)
        try:
            program = self._field.program(host, output, str(host), seed, self._faults.path, self._ledger)
        except BaseException:
            output.close()
            raise
        self.programs[host] = program, output

    def _end_program(self, host: int) -> None:
        """Lets it finish, and looks at how it went."""
        found = self.programs.pop(host, None)
        if found is None:
            return
        program, output = found
        with output:
            try:
                program.communicate("", timeout=90)
            except subprocess.TimeoutExpired:
                program.kill()
                program.communicate()
            output.seek(0)
            said = output.read()
        if program.returncode != 0:
            self.errors.append(f"a program on host {host} ended with {program.returncode}:\n{excerpt(said)}")


def excerpt(said: str) -> str:
    """The error is at the beginning; after it comes what there is to say about a session that hangs."""
    return said if len(said) < 12_000 else said[:9000] + "\n...\n" + said[-3000:]


ATTACKS: dict[Callable[[Attacker], None], int] = {
    Attacker.kill_process: 8,
    Attacker.pause_process: 3,
    Attacker.kill_node: 2,
    Attacker.kill_head: 1,
    Attacker.pause_node: 3,
    Attacker.cut_link: 3,
    Attacker.separate: 2,
    Attacker.slow_link: 2,
    Attacker.kill_program: 1,
}
NEED_LINKS = {Attacker.cut_link, Attacker.separate, Attacker.slow_link}
