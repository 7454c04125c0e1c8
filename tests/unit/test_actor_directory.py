"""The actor directory: each way to live and die by hand, and thousands of random lives under a seed."""

from __future__ import annotations

import random
from typing import Any

import pytest

from ray._head import actor_messages as am
from ray._head.actor_directory import DEAD_KEPT, EARLY_KEPT, LONG_DEAD, PLACEMENTS_LOST_MAX, TRANSITIONS, ActorDirectory
from ray._head.actor_record import ALIVE, DEAD, PENDING_CREATION, PENDING_PLACEMENT, RESTARTING, STATES
from ray._protocol.frames import RUNTIME_ENV_FAILED
from ray._scheduling.machine import InvalidTransition

JOB, NODE, OWNER, OTHER = b"\x01\0\0\0", b"N" * 16, b"O" * 16, b"B" * 16
A = b"A" * 16


def worker(number: int) -> bytes:
    return b"w%015d" % number


class Head:
    """A directory, what it asked for, and a clock that ticks once an event."""

    def __init__(self) -> None:
        self.directory = ActorDirectory()
        self.now = 0.0

    def __call__(self, event: am.Event) -> list[am.Action]:
        self.now += 1.0
        actions = self.directory.handle(event, self.now)
        self.directory.check()
        return [action for action in actions if not isinstance(action, am.SaveRow)]

    def create(self, actor_id: bytes = A, **spec: Any) -> list[am.Action]:
        return self(am.Created(actor_id, {"creation": b"how", "class_name": "C", **spec}, JOB, OWNER))

    def alive(self, actor_id: bytes = A, number: int = 1, **spec: Any) -> None:
        self.create(actor_id, **spec)
        self.start(actor_id, number)

    def start(self, actor_id: bytes = A, number: int = 1) -> None:
        self(am.Placed(actor_id, NODE))
        self(am.WorkerStarted(actor_id, worker(number), 100 + number, []))
        self(am.Ready(actor_id, worker(number)))

    def state(self, actor_id: bytes = A) -> str:
        actor = self.directory.get(actor_id)
        assert actor is not None
        return actor.state

    def cause(self, actor_id: bytes = A) -> str | bytes:
        actor = self.directory.get(actor_id)
        assert actor is not None
        return actor.cause


def of_kind(actions: list[am.Action], kind: type) -> list[Any]:
    return [action for action in actions if isinstance(action, kind)]


def test_an_actor_is_placed_told_what_to_become_and_announced_when_it_is_ready() -> None:
    head = Head()
    (place,) = of_kind(head.create(resources={"CPU": 1}), am.Place)
    assert place.actor_id == A and place.spec["creation"] == b"how" and place.spec["resources"] == {"CPU": 1}
    assert head(am.Placed(A, NODE)) == []
    assert head(am.WorkerStarted(A, worker(1), 101, [3])) == [am.Become(worker(1), A, b"how", 0, [3])]
    assert head(am.Ready(A, worker(1))) == [am.Publish(OWNER, A, "ALIVE", worker(1), 0, "")]
    assert head.state() == ALIVE


def test_everybody_who_subscribed_hears_now_and_at_each_change() -> None:
    head = Head()
    head.create(max_restarts=1)
    assert head(am.Subscribe(A, OTHER)) == [am.Publish(OTHER, A, "PENDING", b"", 0, "")]
    head(am.Placed(A, NODE))
    head(am.WorkerStarted(A, worker(1), 101, []))
    heard = of_kind(head(am.Ready(A, worker(1))), am.Publish)
    assert [p.core_tag for p in heard] == [OWNER, OTHER]
    heard = of_kind(head(am.WorkerDied(worker(1), "killed by SIGKILL")), am.Publish)
    assert [(p.core_tag, p.state, p.incarnation) for p in heard] == [(OWNER, "RESTARTING", 1), (OTHER, "RESTARTING", 1)]
    head(am.Unsubscribe(A, OTHER))
    head.start(A, 2)
    heard = of_kind(head(am.Kill(A, True)), am.Publish)
    assert [(p.core_tag, p.state) for p in heard] == [(OWNER, "DEAD")]


def test_a_worker_that_dies_is_replaced_as_often_as_max_restarts_says_and_then_the_cause_tells_the_story() -> None:
    head = Head()
    head.alive(max_restarts=2)
    for incarnation in (1, 2):
        actions = head(am.WorkerDied(worker(incarnation), "killed by SIGSEGV"))
        kinds = [type(action) for action in actions]
        assert kinds.index(am.Release) < kinds.index(am.Place)  # they may be the very resources that it needs
        assert head.state() == RESTARTING
        (place,) = of_kind(actions, am.Place)
        assert place.incarnation == incarnation
        head.start(A, incarnation + 1)
        assert head.state() == ALIVE
    actions = head(am.WorkerDied(worker(3), "killed by SIGSEGV"))
    assert of_kind(actions, am.Release) and not of_kind(actions, am.Place)
    assert head.state() == DEAD
    assert head.cause() == ("its worker process (pid 103) died: killed by SIGSEGV. It had been restarted 2 of 2 times")


def test_minus_one_restarts_for_ever() -> None:
    head = Head()
    head.alive(max_restarts=-1)
    for number in range(1, 30):
        head(am.WorkerDied(worker(number), "x"))
        head.start(A, number + 1)
    assert head.state() == ALIVE


@pytest.mark.parametrize("max_restarts", [0, -1])
def test_an_exception_in_init_is_final_and_reaches_subscribers_as_it_was(max_restarts: int) -> None:
    head = Head()
    head.create(max_restarts=max_restarts)
    head(am.Placed(A, NODE))
    head(am.WorkerStarted(A, worker(1), 101, []))
    actions = head(am.InitFailed(A, worker(1), b"encoded"))
    assert am.Publish(OWNER, A, "DEAD", b"", 0, b"encoded") in actions
    assert of_kind(actions, am.AskToExit) and not of_kind(actions, am.Release)
    assert head(am.WorkerDied(worker(1), "exited with code 0")) == [am.Release(A)]


def test_a_worker_that_dies_in_init_counts_as_a_restart() -> None:
    head = Head()
    head.create(max_restarts=1)
    head(am.Placed(A, NODE))
    head(am.WorkerStarted(A, worker(1), 101, []))
    head(am.WorkerDied(worker(1), "exited with code 1"))
    assert head.state() == RESTARTING
    head(am.Placed(A, NODE))
    head(am.WorkerStarted(A, worker(2), 102, []))
    head(am.WorkerDied(worker(2), "exited with code 1"))
    assert head.state() == DEAD
    assert "while its __init__ ran" in str(head.cause())


def test_an_intended_exit_is_not_restarted_and_holds_its_resources_until_the_process_is_gone() -> None:
    head = Head()
    head.alive(max_restarts=-1)
    actions = head(am.Exiting(A, worker(1), "exit_actor() was called"))
    assert am.Publish(OWNER, A, "DEAD", b"", 0, "exit_actor() was called") in actions
    assert of_kind(actions, am.ExpectExit) and not of_kind(actions, am.Release)
    assert head(am.WorkerDied(worker(1), "exited with code 0")) == [am.Release(A)]


@pytest.mark.parametrize("no_restart", [True, False])
def test_kill_ends_the_worker_and_restarts_only_if_asked(no_restart: bool) -> None:
    head = Head()
    head.alive(max_restarts=5)
    assert of_kind(head(am.Kill(A, no_restart)), am.KillWorker)
    assert head.state() == (DEAD if no_restart else ALIVE)
    actions = head(am.WorkerDied(worker(1), "killed by SIGKILL"))
    assert bool(of_kind(actions, am.Place)) is not no_restart
    assert head.cause() == "it was killed by ray.kill"


def test_a_kill_that_overtakes_the_creation_is_not_lost() -> None:
    head = Head()
    assert head(am.Kill(A, True)) == []
    actions = head.create(name="n")
    assert head.state() == DEAD and "ray.kill" in str(head.cause())
    assert not of_kind(actions, am.Place) and not of_kind(actions, am.SaveName)
    assert [a.state for a in of_kind(actions, am.Publish)] == ["DEAD"]
    assert head.directory.named("n", "") is None
    for n in range(EARLY_KEPT + 1):  # but bounded is what is kept of them
        head(am.Kill(worker(n), True))
    head.create(worker(0))
    assert head.state(worker(0)) == PENDING_PLACEMENT
    head.create(worker(1))
    assert head.state(worker(1)) == DEAD


def test_kill_before_it_has_a_place_cancels_it() -> None:
    head = Head()
    head.create(max_restarts=5)
    assert head(am.Kill(A, False)) == []  # nothing runs: there is nothing to restart
    assert of_kind(head(am.Kill(A, True)), am.CancelPlacement)
    assert head.state() == DEAD
    assert of_kind(head(am.Placed(A, NODE)), am.CancelPlacement)  # it crossed our cancellation
    assert of_kind(head(am.WorkerStarted(A, worker(1), 101, [])), am.KillWorker)
    assert head(am.WorkerDied(worker(1), "x")) == [am.Release(A)]


def test_out_of_scope_asks_the_worker_to_exit_and_the_place_to_be_given_back() -> None:
    head = Head()
    head.alive()
    assert of_kind(head(am.OutOfScope(A)), am.AskToExit)
    head.create(b"2" * 16)
    assert of_kind(head(am.OutOfScope(b"2" * 16)), am.CancelPlacement)


def test_an_owner_takes_its_actors_with_it_but_for_detached_ones() -> None:
    head = Head()
    head.alive(A, 1)
    head.alive(b"D" * 16, 2, detached=True, name="d")
    head.create(b"P" * 16)
    actions = head(am.CoreGone(OWNER, "killed by SIGKILL"))
    assert of_kind(actions, am.KillWorker)[0].worker_tag == worker(1)
    assert of_kind(actions, am.CancelPlacement)[0].actor_id == b"P" * 16
    assert head.state() == head.state(b"P" * 16) == DEAD
    assert head.state(b"D" * 16) == ALIVE
    assert not of_kind(actions, am.Publish)  # the only one who listened is gone
    assert head.cause() == "the process that created it is gone: killed by SIGKILL"


def test_the_end_of_a_job_takes_what_its_other_processes_own_too() -> None:
    head = Head()
    head(am.Created(A, {"creation": b""}, JOB, OTHER))
    head.alive(b"D" * 16, 2, detached=True)
    head(am.JobEnded(JOB, "the driver left"))
    assert head.state() == DEAD and head.state(b"D" * 16) == ALIVE
    assert head.directory.living_of_job(JOB) == 1


def test_a_name_is_taken_until_its_actor_is_dead_and_only_in_its_namespace() -> None:
    head = Head()
    head.alive(A, 1, name="n", namespace="x")
    actions = head.create(b"2" * 16, name="n", namespace="x")
    (told,) = of_kind(actions, am.Publish)
    assert told.state == "DEAD" and "the name 'n' is taken in namespace 'x'" in told.cause and A.hex() in told.cause
    assert not of_kind(actions, am.Place)
    head.create(b"3" * 16, name="n", namespace="y")
    assert head.state(b"3" * 16) == PENDING_PLACEMENT
    assert am.DropName("x", "n") in head(am.Kill(A, True))
    head.create(b"4" * 16, name="n", namespace="x")
    found = head.directory.named("n", "x")
    assert found is not None and found.actor_id == b"4" * 16


def test_a_name_is_kept_through_restarts() -> None:
    head = Head()
    head.alive(name="n", max_restarts=1)
    assert not of_kind(head(am.WorkerDied(worker(1), "x")), am.DropName)
    assert head.directory.named("n", "") is head.directory.get(A)


def test_words_of_an_earlier_worker_are_late_and_change_nothing() -> None:
    head = Head()
    head.alive(max_restarts=1)
    head(am.WorkerDied(worker(1), "x"))
    head.start(A, 2)
    for event in (
        am.Ready(A, worker(1)),
        am.InitFailed(A, worker(1), b"e"),
        am.Exiting(A, worker(1), "bye"),
        am.WorkerDied(worker(1), "x"),
    ):
        assert head(event) == []
    assert head.state() == ALIVE
    assert head.directory.late == 3


def test_a_place_lost_before_the_worker_was_there_is_asked_for_again_but_not_for_ever() -> None:
    head = Head()
    head.create()
    for _ in range(PLACEMENTS_LOST_MAX):
        head(am.Placed(A, NODE))
        assert of_kind(head(am.PlacementLost(A, "its worker died at birth")), am.Place)
    head(am.PlacementLost(A, "its worker died at birth"))
    assert head.state() == DEAD and "its worker died at birth" in str(head.cause())


@pytest.mark.parametrize("state", [PENDING_PLACEMENT, PENDING_CREATION, RESTARTING])
def test_an_actor_whose_environment_cant_be_set_up_is_dead_and_says_why(state: str) -> None:
    head = Head()
    if state == RESTARTING:
        head.alive(max_restarts=5)
        head(am.WorkerDied(worker(1), "x"))
    else:
        head.create(max_restarts=5)
    if state == PENDING_CREATION:
        head(am.Placed(A, NODE))
    assert head.state() == state
    assert am.CancelPlacement(A) in head(am.EnvFailed(A, "pip says no"))
    assert head.state() == DEAD and head.cause() == RUNTIME_ENV_FAILED + "pip says no"
    assert head(am.EnvFailed(A, "again")) == []


def test_late_news_of_an_environment_does_not_end_an_actor_that_has_its_worker() -> None:
    head = Head()
    head.create()
    head(am.Placed(A, NODE))
    head(am.WorkerStarted(A, worker(1), 101, []))
    assert head(am.EnvFailed(A, "late")) == [] and head.state() == PENDING_CREATION
    head(am.Ready(A, worker(1)))
    assert head(am.EnvFailed(A, "late")) == [] and head.state() == ALIVE


def test_a_node_that_dies_restarts_what_ran_there_elsewhere() -> None:
    head = Head()
    head.alive(A, 1, max_restarts=1)
    head.alive(b"2" * 16, 2)
    head.create(b"3" * 16)
    head(am.Placed(b"3" * 16, NODE))
    actions = head(am.NodeDied(NODE, "its node died: silence"))
    assert {p.actor_id for p in of_kind(actions, am.Place)} == {A, b"3" * 16}
    assert head.state() == RESTARTING and head.state(b"2" * 16) == DEAD


def test_a_question_about_an_unknown_actor_is_answered_dead() -> None:
    head = Head()
    assert head(am.Subscribe(A, OTHER)) == [am.Publish(OTHER, A, "DEAD", b"", 0, LONG_DEAD)]
    assert of_kind(head(am.WorkerStarted(A, worker(1), 1, [])), am.KillWorker)
    assert head(am.Kill(A, True)) == []


def test_a_late_subscriber_learns_why_it_died() -> None:
    head = Head()
    head.alive()
    head(am.WorkerDied(worker(1), "killed by SIGKILL"))
    (told,) = of_kind(head(am.Subscribe(A, OTHER)), am.Publish)
    assert told.state == "DEAD" and "killed by SIGKILL" in told.cause


def test_the_dead_are_forgotten_oldest_first() -> None:
    head = Head()
    for i in range(DEAD_KEPT + 5):
        actor_id = b"%016d" % i
        head.directory.handle(am.Created(actor_id, {"creation": b""}, JOB, OWNER), 0.0)
        dropped = of_kind(head.directory.handle(am.OutOfScope(actor_id), 0.0), am.DropRow)
        assert len(dropped) == (1 if i >= DEAD_KEPT else 0)
    head.directory.check()
    assert len(head.directory.all()) == DEAD_KEPT
    head.directory.forget_job(JOB)
    assert head.directory.all() == []


def test_a_missing_row_raises_with_the_story_of_the_actor() -> None:
    head = Head()
    head.create(max_restarts=1)
    with pytest.raises(InvalidTransition, match=r"no row for WorkerStarted.*--Created--> PENDING_PLACEMENT"):
        head(am.WorkerStarted(A, worker(1), 101, []))


def test_every_state_answers_every_event_that_a_peer_may_send() -> None:
    from_peers = (am.Kill, am.OutOfScope, am.Subscribe, am.Unsubscribe, am.OwnerDied)
    for state in STATES:
        for event in from_peers:
            assert (state, event) in TRANSITIONS
    for state in (PENDING_CREATION, ALIVE, DEAD):  # those in which a worker has a voice
        for event in (am.Ready, am.InitFailed, am.Exiting, am.WorkerDied):
            assert (state, event) in TRANSITIONS


# -- random lives -----------------------------------------------------------------------------------------------------


class World:
    """A shell, workers and cores that behave as badly as they may: late, repeated and dead at any moment."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.head = Head()
        self.waiting: dict[bytes, str] = {}  # placements asked for: "asked" or "placed"
        self.workers: dict[bytes, bytes] = {}  # alive -> actor
        self.old_workers: list[bytes] = []
        self.held: dict[bytes, int] = {}  # resources taken for an actor: 0 or 1
        self.cores = [b"c%015d" % i for i in range(4)]
        self.specs: dict[bytes, dict[str, Any]] = {}
        self.heard: dict[tuple[bytes, bytes], am.Publish] = {}
        self.count = 0

    def tell(self, event: am.Event) -> None:
        for action in self.head(event):
            self.carry_out(action)

    def carry_out(self, action: am.Action) -> None:
        if isinstance(action, am.Place):
            assert not self.held.get(action.actor_id), "placed twice"
            self.waiting[action.actor_id] = "asked"
        elif isinstance(action, am.CancelPlacement):
            if self.waiting.pop(action.actor_id, None):
                self.held[action.actor_id] = 0
        elif isinstance(action, am.Release):
            assert self.held[action.actor_id] == 1, "released what was not held"
            self.held[action.actor_id] = 0
        elif isinstance(action, am.Become):
            assert self.workers[action.worker_tag] == action.actor_id
        elif isinstance(action, am.Publish):
            before = self.heard.get((action.core_tag, action.actor_id))
            if before is not None:
                assert before.state != "DEAD" or action.state == "DEAD", "came back from the dead"
                assert action.incarnation >= before.incarnation
            self.heard[action.core_tag, action.actor_id] = action

    def step(self) -> None:
        rng, actors = self.rng, list(self.specs)
        choice = rng.random()
        if choice < 0.12 or not actors:
            self.create()
        elif choice < 0.30 and self.waiting:
            self.advance(rng.choice(sorted(self.waiting)))
        elif choice < 0.60 and self.workers:
            self.worker_speaks(rng.choice(sorted(self.workers)))
        elif choice < 0.66:
            self.tell(am.Kill(rng.choice(actors), rng.random() < 0.5))
        elif choice < 0.70:
            self.tell(am.OutOfScope(rng.choice(actors[-12:])))  # most of the older are dead
        elif choice < 0.80:
            self.tell(am.Subscribe(rng.choice(actors), rng.choice(self.cores)))
        elif choice < 0.84:
            self.tell(am.Unsubscribe(rng.choice(actors), rng.choice(self.cores)))
        elif choice < 0.87:
            gone = rng.choice(self.cores)
            self.cores.remove(gone)
            self.cores.append(b"c%015d" % rng.randrange(10**9))
            self.tell(am.CoreGone(gone, "killed"))
            self.heard = {key: told for key, told in self.heard.items() if key[0] != gone}
        elif choice < 0.92 and self.old_workers:
            old = rng.choice(self.old_workers)
            actor_id = rng.choice(actors)
            self.tell(
                rng.choice([am.Ready(actor_id, old), am.InitFailed(actor_id, old, b"e"), am.WorkerDied(old, "x")])
            )
        elif choice < 0.93:
            self.node_dies()
        elif choice < 0.95:
            self.tell(am.Unplaceable(rng.choice(actors), b"e"))

    def create(self) -> None:
        self.count += 1
        actor_id = b"a%015d" % self.count
        spec = {
            "creation": b"c",
            "max_restarts": self.rng.choice((0, 0, 1, 3, -1)),
            "name": self.rng.choice(("", "", "x", "y")),
            "detached": self.rng.random() < 0.2,
            "strategy": self.rng.choice((None, "SPREAD", ("node", b"n" * 16, True), ("group", b"g" * 16, 1, False))),
        }
        self.specs[actor_id] = spec
        self.held[actor_id] = 0
        self.tell(am.Created(actor_id, spec, JOB, self.rng.choice(self.cores)))

    def advance(self, actor_id: bytes) -> None:
        if self.waiting[actor_id] == "asked":
            self.waiting[actor_id] = "placed"
            self.held[actor_id] = 1
            self.tell(am.Placed(actor_id, NODE))
        elif self.rng.random() < 0.2:
            del self.waiting[actor_id]
            self.held[actor_id] = 0
            self.tell(am.PlacementLost(actor_id, "its worker died at birth"))
        else:
            self.count += 1
            tag = worker(self.count)
            del self.waiting[actor_id]
            self.workers[tag] = actor_id
            self.tell(am.WorkerStarted(actor_id, tag, self.count, []))

    def worker_speaks(self, tag: bytes) -> None:
        actor_id = self.workers[tag]
        word = self.rng.random()
        if word < 0.55:
            self.tell(am.Ready(actor_id, tag))
        elif word < 0.60:
            self.tell(am.InitFailed(actor_id, tag, b"error"))
        elif word < 0.68:
            self.tell(am.Exiting(actor_id, tag, "it left"))
        else:
            self.dies(tag, "killed by SIGKILL")

    def dies(self, tag: bytes, cause: str) -> None:
        del self.workers[tag]
        self.old_workers = [*self.old_workers[-20:], tag]
        self.tell(am.WorkerDied(tag, cause))

    def node_dies(self) -> None:
        """Takes the shell's own ledger with it; the shell of a node says no more about it."""
        for actor_id in [a for a, state in self.waiting.items() if state == "placed"]:
            del self.waiting[actor_id]
            self.held[actor_id] = 0
        dead = list(self.workers)
        self.workers.clear()
        self.old_workers = [*self.old_workers[-20:], *dead]
        self.tell(am.NodeDied(NODE, "its node died"))

    def settle(self) -> None:
        """Lets everything that is on its way arrive."""
        while self.waiting or self.workers:
            while self.waiting:
                self.advance(sorted(self.waiting)[0])
            for tag in sorted(self.workers):
                actor = self.head.directory.get(self.workers[tag])
                if actor is None or actor.state == DEAD:
                    self.dies(tag, "asked to exit")
                else:
                    self.tell(am.Ready(self.workers[tag], tag))
            if all(
                a.state in (ALIVE, DEAD) and not (a.state == DEAD and a.worker_tag) for a in self.head.directory.all()
            ):
                break


@pytest.mark.parametrize("seed", range(60))
def test_random_lives_keep_every_invariant_and_leak_no_resources(seed: int) -> None:
    world = World(seed)
    for _ in range(400):
        world.step()
    world.settle()
    for actor in world.head.directory.all():
        assert actor.state in (ALIVE, DEAD), actor
        assert world.held[actor.actor_id] == (1 if actor.state == ALIVE else 0), actor
        for core in actor.subscribers:
            told = world.heard.get((core, actor.actor_id))
            assert told is None or (told.state == "ALIVE" and told.incarnation == actor.incarnation)
    for (core, actor_id), told in world.heard.items():
        actor = world.head.directory.get(actor_id)
        if actor is not None and told.state != "DEAD" and core in actor.subscribers:
            assert actor.state == ALIVE


def successor(head: Head) -> ActorDirectory:
    """That of a head which takes over, with the rows of this one."""
    after = ActorDirectory()
    after.restore((actor.row(), actor.creation) for actor in head.directory.all())
    return after


def test_a_head_that_takes_over_places_anew_only_what_no_node_looks_after() -> None:
    head = Head()
    for actor_id in (A, b"B" * 16, b"C" * 16):
        head.create(actor_id)
    after = successor(head)
    claims = {A: {NODE: 0}, b"C" * 16: {NODE: 1}}  # of C an incarnation that this head has never heard of
    actions = after.reconcile([], [OWNER], 1.0, claims)
    assert [action.actor_id for action in of_kind(actions, am.Place)] == [b"B" * 16, b"C" * 16]
    assert after.holds(A, NODE, claims) and not after.holds(b"C" * 16, NODE, claims)
    assert not after.holds(b"D" * 16, NODE, {b"D" * 16: {NODE: 0}}), "its creation was not written down"
    after.handle(am.Placed(A, NODE), 2.0)
    after.handle(am.WorkerStarted(A, worker(1), 101, []), 2.0)
    after.check()


def test_what_made_a_dead_actor_is_not_read_back() -> None:
    """A head died between the row and the end of these bytes. Found by the simulation, seed 6000492."""
    head = Head()
    head.create()
    head(am.Kill(A, True))
    actor = head.directory.get(A)
    assert actor is not None
    after = ActorDirectory()
    after.restore([(actor.row(), b"how")])
    after.check()


def test_what_is_told_again_of_an_earlier_incarnation_is_nothing_to_this_one() -> None:
    """The row had the restart, the node's events of the first incarnation were told again: its worker was made that of
    the second, died a second time, and used up another restart."""
    head = Head()
    head.alive(max_restarts=-1)
    head(am.WorkerDied(worker(1), "killed"))
    assert head(am.Placed(A, NODE, 0)) == [] and head.state() == RESTARTING
    assert of_kind(head(am.WorkerStarted(A, worker(1), 101, [], 0)), am.KillWorker)
    assert head(am.WorkerDied(worker(1), "killed")) == [] and head.state() == RESTARTING
    head(am.Placed(A, NODE, 1))
    (become,) = head(am.WorkerStarted(A, worker(2), 102, [], 1))
    assert isinstance(become, am.Become) and become.incarnation == 1


def test_what_is_told_again_of_a_place_that_the_row_has_already_changes_nothing() -> None:
    """The head had written the row, and died before it had noted that it had heard the node: "no row for Placed in
    PENDING_CREATION". Found by the simulation, seed 72, and on real nodes when Redis had stood still for 6 s."""
    head = Head()
    head.create()
    head(am.Placed(A, NODE))
    assert head(am.Placed(A, NODE)) == [] and head.state() == PENDING_CREATION
    head(am.WorkerStarted(A, worker(1), 101, []))
    head(am.Ready(A, worker(1)))
    assert head(am.Placed(A, NODE)) == [] and head.state() == ALIVE
    assert head.directory.late == 2


def test_a_restart_that_a_node_was_asked_for_but_that_was_not_written_down_is_that_nodes() -> None:
    head = Head()
    head.alive(max_restarts=1)
    after = successor(head)
    claims = {A: {b"M" * 16: 1}}
    actions = after.reconcile([], [OWNER], 1.0, claims)
    assert not of_kind(actions, am.Place) and of_kind(actions, am.Release)
    assert after.holds(A, b"M" * 16, claims)


def test_a_worker_that_may_not_have_been_told_what_to_become_is_told_again_and_a_dead_actors_is_killed_again() -> None:
    head = Head()
    head.create()
    head(am.Placed(A, NODE))
    head(am.WorkerStarted(A, worker(1), 101, []))
    head.alive(b"B" * 16, 2)
    head(am.Kill(b"B" * 16, True, "enough"))
    after = successor(head)
    claims = {A: {NODE: 0}, b"B" * 16: {NODE: 0}}
    actions = after.reconcile([worker(1), worker(2)], [OWNER], 1.0, claims)
    assert of_kind(actions, am.Become) == [am.Become(worker(1), A, b"how", 0, [])]
    assert [kill.worker_tag for kill in of_kind(actions, am.KillWorker)] == [worker(2)]
    assert after.holds(b"B" * 16, NODE, claims), "until its worker is dead"


def test_a_place_that_was_found_is_kept_if_the_node_still_has_it_and_else_looked_for_again() -> None:
    for claims, placed in (({A: {NODE: 0}}, 0), ({}, 1)):
        head = Head()
        head.create()
        head(am.Placed(A, NODE))
        after = successor(head)
        assert len(of_kind(after.reconcile([], [OWNER], 1.0, claims), am.Place)) == placed
        after.check()


@pytest.mark.parametrize("seed", range(20))
def test_a_head_that_restarts_in_the_middle_goes_on_from_the_rows_it_saved(seed: int) -> None:
    world = World(seed)
    saved: dict[bytes, tuple[Any, bytes]] = {}

    def note(action: am.Action) -> None:
        if isinstance(action, am.SaveRow):
            saved[action.row.actor_id] = (action.row, saved.get(action.row.actor_id, (None, b""))[1])
        elif isinstance(action, am.SaveCreation):
            saved[action.row.actor_id] = (action.row, action.creation)

    handle = world.head.directory.handle

    def noting(event: am.Event, now: float) -> list[am.Action]:
        actions = handle(event, now)
        for action in actions:
            note(action)
        return actions

    world.head.directory.handle = noting  # type: ignore[method-assign]
    for _ in range(world.rng.randrange(20, 300)):
        world.step()
    after = ActorDirectory()
    after.restore((row, b"" if row.state == DEAD else creation) for row, creation in saved.values())
    after.check()
    before = world.head.directory
    assert {a.actor_id: a.row() for a in after.all()} == {a.actor_id: a.row() for a in before.all()}
    # What was waiting in the old head's shell is gone with it, and some workers died meanwhile.
    for actor_id in world.waiting:
        world.held[actor_id] = 0
    world.waiting.clear()
    for tag in [tag for tag in sorted(world.workers) if world.rng.random() < 0.3]:
        del world.workers[tag]
    world.head.directory = after
    world.heard.clear()
    for action in after.reconcile(world.workers, world.cores, 1e6):
        world.carry_out(action)
    after.check()
    for _ in range(200):
        world.step()
    world.settle()
    for actor in after.all():
        assert world.held[actor.actor_id] == (1 if actor.state == ALIVE else 0), actor


def test_the_random_lives_reach_every_row(monkeypatch: pytest.MonkeyPatch) -> None:
    reached: set[tuple[str, type]] = set()

    def noted(key: tuple[str, type], row: Any) -> Any:
        def step(directory: ActorDirectory, actor: Any, event: Any, now: float) -> Any:
            reached.add(key)
            return row(directory, actor, event, now)

        return step

    for key, row in list(TRANSITIONS.items()):
        monkeypatch.setitem(TRANSITIONS, key, noted(key, row))
    for seed in range(100, 115):
        world = World(seed)
        for _ in range(400):
            world.step()
    # Those below need a shell that hands out two workers, or a place that crosses our cancellation: tested by hand.
    by_hand = {
        (PENDING_CREATION, am.Placed),
        (ALIVE, am.Placed),
        (ALIVE, am.WorkerStarted),
        (ALIVE, am.PlacementLost),
        (DEAD, am.Placed),
        (DEAD, am.WorkerStarted),
        (DEAD, am.PlacementLost),
        (DEAD, am.OwnerDied),
        (PENDING_PLACEMENT, am.PlacementLost),  # a place that is lost while it is still being looked for
        (RESTARTING, am.PlacementLost),
        *((state, am.EnvFailed) for state in STATES),
        *((state, am.Assigned) for state in STATES),  # the world places at once
    }
    assert set(TRANSITIONS) - reached <= by_hand


def test_an_actor_whose_node_dies_before_it_has_answered_is_placed_again() -> None:
    """Found by the simulation: it waited for ever, since only the answer said on which node it was."""
    head = Head()
    head.create()
    assert head(am.Assigned(A, NODE)) == []
    (place,) = of_kind(head(am.NodeDied(NODE, "killed")), am.Place)
    assert place.actor_id == A and head.state() == PENDING_PLACEMENT
    assert head(am.NodeDied(NODE, "killed")) == [], "said again, it has nothing to do with this node any more"
    head(am.Assigned(A, b"M" * 16))
    head(am.Placed(A, b"M" * 16))
    assert head(am.Assigned(A, NODE)) == [], "late"
    assert head(am.NodeDied(NODE, "killed")) == []
    assert head.state() == PENDING_CREATION


def test_a_second_worker_for_one_actor_is_refused() -> None:
    head = Head()
    head.create()
    head(am.Placed(A, NODE))
    head(am.WorkerStarted(A, worker(1), 101, []))
    assert head(am.WorkerStarted(A, worker(2), 102, [])) == [am.KillWorker(worker(2), "the actor already has a worker")]
    head(am.Ready(A, worker(1)))
    assert head(am.WorkerStarted(A, worker(3), 103, [])) == [am.KillWorker(worker(3), "the actor already has a worker")]
    assert head(am.PlacementLost(A, "late")) == []
    assert head.state() == ALIVE
