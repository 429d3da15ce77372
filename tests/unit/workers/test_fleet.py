"""Which workers run, decided on virtual time."""

from __future__ import annotations

import signal
from math import inf

import pytest

from services.runtime.workers.fleet import Fleet, Limits

LIMITS = Limits(workers=3, drain_s=20.0, start_s_max=60.0)


class World:
    """Processes that do as the test says, and a clock that goes to where the fleet wants to be called."""

    def __init__(self, limits: Limits = LIMITS) -> None:
        self.now = 100.0
        self.slots: dict[int, int] = {}
        self.running: list[int] = []
        self.sent: list[tuple[int, signal.Signals]] = []
        self.told: list[str] = []
        self.delays: list[float] = []
        self.announced = 0
        self.fleet = Fleet(limits, self)

    def start(self, worker: int, slot: int) -> None:
        assert worker not in self.slots, "numbers are given once"
        self.slots[worker] = slot
        self.running.append(worker)

    def send(self, worker: int, number: signal.Signals) -> None:
        assert worker in self.running, "a signal to a process that is gone"
        self.sent.append((worker, number))

    def serving(self) -> None:
        self.announced += 1

    def restarted(self, cause: str, *, slot: int, delay_s: float, status: int | None) -> None:
        self.told.append(cause)
        self.delays.append(delay_s)

    def trouble(self, what: str, *, slot: int, status: int | None = None) -> None:
        self.told.append(what)

    def serves(self, *workers: int) -> None:
        """These say that they serve."""
        for worker in workers:
            self.fleet.ready(worker, self.now)

    def ends(self, worker: int, status: int = 0) -> None:
        """This process ends."""
        self.running.remove(worker)
        self.fleet.exited(worker, status, self.now)

    def passes(self, seconds: float) -> None:
        """Time goes by, and the fleet is called when it wants to be."""
        end = self.now + seconds
        while self.fleet.next_at <= end:
            self.now = max(self.now, self.fleet.next_at)
            self.fleet.due(self.now)
        self.now = end

    def lives(self, worker: int, seconds: float, status: int = 1) -> int:
        """A worker serves, lives so long and dies; gives its successor, once it is started."""
        self.serves(worker)
        self.passes(seconds)
        self.ends(worker, status)
        self.passes(self.delays[-1])
        return self.running[-1]


def up(limits: Limits = LIMITS) -> World:
    """A world in which all workers serve."""
    world = World(limits)
    world.fleet.begin(world.now)
    world.serves(1)
    world.serves(*range(2, limits.workers + 1))
    assert world.announced == 1
    return world


def test_one_worker_comes_up_before_the_others_are_started() -> None:
    """What keeps the first from serving is said once; that all serve is announced once all do."""
    world = World()
    world.fleet.begin(world.now)
    assert world.running == [1]
    world.serves(1)
    assert world.running == [1, 2, 3]
    assert sorted(world.slots.values()) == [0, 1, 2]
    world.serves(3)
    assert not world.announced
    world.serves(2)
    assert world.announced == 1
    assert world.fleet.next_at == inf, "nothing is to be done while all is well"


@pytest.mark.parametrize(("status", "whole"), [(1, 1), (3, 3), (-9, 137), (0, 1)])
@pytest.mark.parametrize("first", [True, False])
def test_a_worker_that_never_serves_ends_the_whole_start(status: int, whole: int, *, first: bool) -> None:
    """No loop of restarts: the others are told to leave, and the exit status is that of the culprit, never 0."""
    world = World()
    world.fleet.begin(world.now)
    culprit = 1
    if not first:
        world.serves(1)
        culprit = 3
    world.ends(culprit, status)
    assert "did not come up" in world.told[0]
    assert world.sent == [(worker, signal.SIGTERM) for worker in world.running]
    for worker in list(world.running):
        assert world.fleet.finished is None
        world.ends(worker)
    assert world.fleet.finished == whole
    assert not world.announced


def test_a_worker_that_hangs_while_it_starts_is_killed() -> None:
    """After the time that it may take; and then the start has failed."""
    world = World()
    world.fleet.begin(world.now)
    world.passes(LIMITS.start_s_max - 1)
    assert not world.sent
    world.passes(1)
    assert world.sent == [(1, signal.SIGKILL)]
    world.ends(1, -9)
    assert world.fleet.finished == 137


def test_a_dead_worker_is_replaced_in_its_slot() -> None:
    """At the next moment at first; the others are left alone."""
    world = up()
    world.passes(1000)
    world.ends(2, -9)
    assert world.fleet.ready_workers == 2
    assert len(world.running) == 2
    world.passes(LIMITS.delay_s)
    assert world.running == [1, 3, 4]
    assert world.slots[4] == world.slots[2]
    world.serves(4)
    assert world.fleet.ready_workers == 3
    assert (world.told, world.sent, world.announced) == (["signal"], [], 1)


def test_the_delay_doubles_while_successors_die_young_and_starts_anew_after_a_good_while() -> None:
    """0.1 s, 0.2 s, ... 5 s, 5 s; after ten good seconds 0.1 s again. A slot does not pay for another one."""
    world = up()
    worker = 2
    for _ in range(8):
        worker = world.lives(worker, LIMITS.healthy_s - 1)
    assert world.delays == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0])
    worker = world.lives(worker, LIMITS.healthy_s)
    world.lives(worker, 0)
    world.lives(3, 0)
    assert world.delays[8:] == pytest.approx([0.1, 0.2, 0.1])
    assert world.told == ["exit"] * 11


def test_a_successor_that_does_not_come_up_is_replaced_too() -> None:
    """Once all have served, a failed start is one more death, and the server goes on with those it has."""
    world = up()
    world.ends(1, 1)
    world.passes(0.1)
    world.ends(4, 1)
    assert world.fleet.finished is None
    world.passes(0.2)
    world.passes(LIMITS.start_s_max)
    assert world.sent == [(5, signal.SIGKILL)]
    world.ends(5, -9)
    world.passes(0.4)
    world.serves(6)
    assert world.fleet.ready_workers == 3


def test_all_leave_at_once_and_the_status_is_0() -> None:
    """SIGTERM goes to every worker, whatever it was doing; nobody is started any more."""
    world = up()
    world.ends(1, 1)
    world.fleet.terminate(world.now)
    assert world.sent == [(2, signal.SIGTERM), (3, signal.SIGTERM)]
    world.fleet.terminate(world.now)
    world.fleet.reload(world.now)
    world.passes(1)
    assert len(world.sent) == 2
    world.ends(2)
    world.ends(3)
    assert world.fleet.finished == 0
    assert len(world.slots) == 3


def test_who_does_not_leave_in_time_is_killed() -> None:
    """After the time for the drain and a margin, and once."""
    world = up()
    world.fleet.terminate(world.now)
    world.ends(1)
    world.passes(LIMITS.drain_s + LIMITS.margin_s - 0.1)
    assert len(world.sent) == 3
    world.passes(100)
    assert world.sent[3:] == [(2, signal.SIGKILL), (3, signal.SIGKILL)]
    world.ends(2, -9)
    world.ends(3, -9)
    assert world.fleet.finished == 0


def test_terminated_while_it_starts() -> None:
    """A start that is interrupted ends with status 0, too, and starts nobody else."""
    world = World()
    world.fleet.begin(world.now)
    world.fleet.terminate(world.now)
    world.serves(1)
    assert world.running == [1]
    world.ends(1, -15)
    assert world.fleet.finished == 0


def test_a_reload_replaces_one_worker_after_the_other() -> None:
    """A successor serves before its predecessor leaves, and that one is gone before the next successor is started."""
    world = up()
    world.fleet.reload(world.now)
    for old, new in ((1, 4), (2, 5), (3, 6)):
        assert world.running[-1] == new
        assert len(world.running) == 4
        assert (old, signal.SIGTERM) not in world.sent
        world.serves(new)
        assert world.sent[-1] == (old, signal.SIGTERM)
        assert world.fleet.ready_workers == 3
        world.passes(1)
        assert world.running[-1] == new
        world.ends(old)
        assert world.slots[old] == world.slots[new]
    assert world.running == [4, 5, 6]
    assert world.told == ["reload"] * 3
    assert world.fleet.next_at == inf
    assert world.announced == 1


def test_a_reload_that_fails_leaves_what_serves() -> None:
    """The successor does not come up: nobody leaves, no other is started, and a later reload begins anew."""
    world = up()
    world.fleet.reload(world.now)
    world.ends(4, 1)
    world.passes(100)
    assert world.running == [1, 2, 3]
    assert not world.sent
    assert "given up" in world.told[0]
    world.fleet.reload(world.now)
    world.serves(5)
    assert world.sent == [(1, signal.SIGTERM)]


def test_who_dies_in_a_reload_is_not_missed() -> None:
    """Its successor takes its place; if that one fails as well, another follows. Who died before is new by then."""
    world = up()
    world.fleet.reload(world.now)
    world.ends(1, -9)
    world.ends(2, -9)
    world.passes(0.1)
    assert sorted(world.slots[worker] for worker in world.running) == [0, 1, 2]
    world.serves(4, 5)
    assert world.running == [3, 4, 5, 6], "3 is the only one left to replace"
    world.ends(3, -9)
    world.ends(6, 1)
    world.passes(5)
    assert sorted(world.slots[worker] for worker in world.running) == [0, 1, 2]
    assert world.running[-1] == 7


def test_a_second_reload_begins_with_those_that_serve_then() -> None:
    """What was asked for last is what all workers are: those made in between are replaced, too."""
    world = up()
    world.fleet.reload(world.now)
    world.serves(4)
    world.fleet.reload(world.now)
    assert world.running == [1, 2, 3, 4]
    world.ends(1)
    for old, new in ((2, 5), (3, 6), (4, 7)):
        assert world.running[-1] == new
        world.serves(new)
        world.ends(old)
    assert world.running == [5, 6, 7]


def test_terminated_in_the_middle_of_a_reload() -> None:
    """Whoever leaves already is not told again, its time is not longer than it was, and a successor goes, too."""
    world = up()
    world.fleet.reload(world.now)
    world.serves(4)
    world.passes(20)
    world.fleet.terminate(world.now)
    assert [worker for worker, _ in world.sent] == [1, 2, 3, 4]
    world.passes(LIMITS.drain_s + LIMITS.margin_s - 20)
    assert world.sent[4:] == [(1, signal.SIGKILL)]
    for worker in (1, 2, 3, 4):
        world.ends(worker)
    assert world.fleet.finished == 0


def test_a_reload_of_what_starts_is_none() -> None:
    """Before all serve for the first time there is nothing old to replace."""
    world = World()
    world.fleet.begin(world.now)
    world.fleet.reload(world.now)
    world.serves(1)
    world.fleet.reload(world.now)
    world.serves(2, 3)
    assert world.running == [1, 2, 3]
    assert world.announced == 1
