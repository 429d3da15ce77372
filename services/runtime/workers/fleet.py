"""Which workers run, and when: decided without processes, clocks or signals, so that tests own all three.

First one worker is started alone: what keeps it from serving would keep all of them, and is said once. Then the others.
A worker that dies is replaced, after a delay that doubles while its successors die young. To restart all of them (a
new model, a new version of the program) each is given a successor, and leaves only when that one serves; a successor
that does not come up ends the restart, and whoever served goes on.
"""

from __future__ import annotations

import signal
from dataclasses import dataclass, field
from enum import Enum, auto
from math import inf
from typing import NamedTuple, Protocol


class Limits(NamedTuple):
    """Times in seconds.

    Attributes:
        drain_s: how long a worker may take to leave, besides `margin_s`; then it is killed.
        start_s_max: how long it may take to serve; then it is killed.
        healthy_s: one that served so long before it died is replaced after the shortest delay.
    """

    workers: int
    drain_s: float
    start_s_max: float
    margin_s: float = 5.0
    delay_s: float = 0.1
    delay_s_max: float = 5.0
    healthy_s: float = 10.0


class Hands(Protocol):
    """What does as the fleet decides."""

    def start(self, worker: int, slot: int) -> None:
        """Starts a process. One that cannot be started is told of by `Fleet.exited`, later."""
        ...

    def send(self, worker: int, number: signal.Signals) -> None:
        """Sends a signal to a worker that was started and has not been told of as gone."""
        ...

    def serving(self) -> None:
        """All workers serve for the first time."""
        ...

    def restarted(self, cause: str, *, slot: int, delay_s: float, status: int | None) -> None:
        """A worker gets a successor: after an "exit" or a "signal" with that status, or because of a "reload"."""
        ...

    def trouble(self, what: str, *, slot: int, status: int | None = None) -> None:
        """Something that an operator wants to read."""
        ...


class State(Enum):
    """How far a worker is."""

    STARTING = auto()
    READY = auto()
    LEAVING = auto()


@dataclass
class _Worker:
    slot: int
    state: State
    since: float
    kill_at: float
    predecessor: int | None = None
    """Whom it is to take the place of, while that one still serves."""


@dataclass
class _Slot:
    failures: int = 0
    start_at: float = inf


@dataclass
class Fleet:
    """The state machine. `now` is monotonic and never goes back; a status is that of `os.waitstatus_to_exitcode`.

    Attributes:
        finished: the exit status of the whole once every worker is gone; None before.
    """

    limits: Limits
    hands: Hands
    finished: int | None = None
    _workers: dict[int, _Worker] = field(default_factory=dict[int, "_Worker"])
    _slots: list[_Slot] = field(default_factory=list["_Slot"])
    _to_replace: list[int] = field(default_factory=list[int])
    _made: int = 0
    _complete: bool = False
    _status: int | None = None
    """The exit status that is to be, once it is decided that all leave."""

    def begin(self, now: float) -> None:
        """Starts the first worker."""
        self._slots = [_Slot() for _ in range(self.limits.workers)]
        self._start(0, now)

    @property
    def ready_workers(self) -> int:
        """How many serve."""
        return sum(worker.state is State.READY for worker in self._workers.values())

    @property
    def next_at(self) -> float:
        """When `due` wants to be called; inf for never."""
        return min(
            (*(worker.kill_at for worker in self._workers.values()), *(slot.start_at for slot in self._slots)),
            default=inf,
        )

    def ready(self, number: int, now: float) -> None:
        """A worker says that it serves."""
        worker = self._workers.get(number)
        if worker is None or worker.state is not State.STARTING or self._status is not None:
            return
        worker.state, worker.since, worker.kill_at = State.READY, now, inf
        if worker.predecessor is not None:
            self._relieve(worker, worker.predecessor, now)
        if not self._complete:
            if self._made == 1:
                for slot in range(1, len(self._slots)):
                    self._start(slot, now)
            if self.ready_workers == len(self._slots):
                self._complete = True
                self.hands.serving()

    def exited(self, number: int, status: int, now: float) -> None:
        """A process has ended."""
        gone = self._workers.pop(number)
        if self._status is not None:
            if not self._workers:
                self.finished = self._status
        elif gone.state is State.LEAVING:
            self._replace_next(now)
        elif gone.predecessor is not None:
            self._to_replace.clear()
            self.hands.trouble("restart given up: a new worker did not come up", slot=gone.slot, status=status)
            if gone.predecessor not in self._workers:
                self._restart(gone, status, now)
        elif gone.state is State.STARTING and not self._complete:
            self.hands.trouble("cannot serve: a worker did not come up", slot=gone.slot, status=status)
            self._leave(status if status > 0 else 128 - status if status < 0 else 1, now)
        elif any(worker.predecessor == number for worker in self._workers.values()):
            self.hands.trouble("a worker died that was to be replaced", slot=gone.slot, status=status)
        else:
            self._restart(gone, status, now)

    def due(self, now: float) -> None:
        """Does what its time has come for."""
        for slot, waiting in enumerate(self._slots):
            if waiting.start_at <= now:
                waiting.start_at = inf
                self._start(slot, now)
        for number, worker in self._workers.items():
            if worker.kill_at <= now:
                worker.kill_at = inf
                slow = "start" if worker.state is State.STARTING else "stop"
                self.hands.trouble(f"a worker is killed: it did not {slow} in time", slot=worker.slot)
                self.hands.send(number, signal.SIGKILL)

    def reload(self, now: float) -> None:
        """Gives every worker a successor, one after the other."""
        if not self._complete or self._status is not None:
            return
        self._to_replace = [number for number, worker in self._workers.items() if worker.state is State.READY]
        self._replace_next(now)

    def terminate(self, now: float) -> None:
        """Lets every worker leave at once; the exit status will be 0."""
        if self._status is None:
            self._leave(0, now)

    def _leave(self, status: int, now: float) -> None:
        self._status = status
        for slot in self._slots:
            slot.start_at = inf
        for number, worker in self._workers.items():
            self._dismiss(number, worker, now)
        if not self._workers:
            self.finished = status

    def _dismiss(self, number: int, worker: _Worker, now: float) -> None:
        if worker.state is not State.LEAVING:
            worker.state, worker.kill_at = State.LEAVING, now + self.limits.drain_s + self.limits.margin_s
            self.hands.send(number, signal.SIGTERM)

    def _start(self, slot: int, now: float, predecessor: int | None = None) -> None:
        self._made += 1
        self._workers[self._made] = _Worker(slot, State.STARTING, now, now + self.limits.start_s_max, predecessor)
        self.hands.start(self._made, slot)

    def _restart(self, gone: _Worker, status: int, now: float) -> None:
        slot = self._slots[gone.slot]
        if gone.state is State.READY and now - gone.since >= self.limits.healthy_s:
            slot.failures = 0
        # The exponent is bounded, or a power grows that nobody needs.
        delay_s = min(self.limits.delay_s * 2 ** min(slot.failures, 30), self.limits.delay_s_max)
        slot.failures += 1
        slot.start_at = now + delay_s
        self.hands.restarted("signal" if status < 0 else "exit", slot=gone.slot, delay_s=delay_s, status=status)

    def _relieve(self, worker: _Worker, predecessor: int, now: float) -> None:
        """A successor serves: who was there before may go."""
        worker.predecessor = None
        self.hands.restarted("reload", slot=worker.slot, delay_s=0.0, status=None)
        old = self._workers.get(predecessor)
        if old is None:
            self._replace_next(now)
        else:
            self._dismiss(predecessor, old, now)

    def _replace_next(self, now: float) -> None:
        """One at a time: a successor that starts, or a worker that leaves, is waited for first."""
        if any(worker.predecessor is not None or worker.state is State.LEAVING for worker in self._workers.values()):
            return
        while self._to_replace:
            number = self._to_replace.pop(0)
            worker = self._workers.get(number)
            # Whoever died meanwhile has a new successor already.
            if worker is not None:
                self._start(worker.slot, now, predecessor=number)
                return
