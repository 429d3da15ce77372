"""Decides which waiting steps run together. Synchronous and pure: time comes in as `now`, nothing is awaited."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Final, Generic, TypeVar

from services.runtime.core.errors import CapacityExceeded

T = TypeVar("T")

PATIENCE_S: Final = 1.0
"""A step without a deadline is due so long after it came: one that is in a hurry passes it, but not for ever."""

RETRY_DELAY_S: Final = (0.05, 5.0)
"""Least and longest time that a client is asked to wait before it tries a full queue again."""

_by_due = attrgetter("due")


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """Bounds of the queue and of one run.

    Attributes:
        batch_size_max: sequences in one run.
        cells_max: timesteps x sequences in one run, padding included, unless one sequence alone has more: bounds how
            long a run keeps others waiting.
        queue_max: steps that may wait; one more is refused.
        delay_s_max: longest wait of a step for batch-mates; 0 lets an idle model run at once.
        gather_s_max: longest wait for those who took part in the small runs just before and have not come again yet,
            but not longer than half a run; a model that is alone with one sequence, or was idle, adds none.
        padding_max: timesteps by which a row may be padded (or by its own length, if that is more), so that a short
            chunk is not held up by a long one.
        inline_s_max: runs expected to take less are run by the event loop itself; 0 hands all to a thread.
        lone_cells_max: a run of up to so many timesteps x sequences has the model to itself, and all cores; larger ones
            overlap, each on a thread of its own.
    """

    batch_size_max: int = 64
    cells_max: int = 4096
    queue_max: int = 1024
    delay_s_max: float = 0.0
    gather_s_max: float = 0.0
    padding_max: int = 16
    inline_s_max: float = 0.0
    lone_cells_max: int = 64


@dataclass(slots=True, eq=False)
class Entry(Generic[T]):
    """One step that waits. `deadline`, `admitted` and `due`, which orders the queue, are monotonic times in seconds."""

    payload: T
    timesteps: int
    deadline: float | None
    admitted: float = 0.0
    due: float = 0.0


@dataclass(slots=True)
class Batch(Generic[T]):
    """What to do now: `entries` run together, `expired` are answered with DeadlineExpired."""

    entries: list[Entry[T]] = field(default_factory=list[Entry[T]])
    expired: list[Entry[T]] = field(default_factory=list[Entry[T]])


class Scheduler(Generic[T]):
    """A bounded queue, the most urgent first; whoever is ready joins the next run.

    Urgent is whose deadline is near. Steps without one keep their order of arrival, and none is passed by steps that
    come PATIENCE_S after it.

    Attributes:
        run_s: about how long a run takes, which its owner learns; tells how long a full queue takes to empty.
    """

    def __init__(self, limits: BatchLimits) -> None:
        self._limits = limits
        self._queue: deque[Entry[T]] = deque()  # bounded by queue_max in `admit`
        self._in_order = True
        self.run_s = 0.0

    def __len__(self) -> int:
        """Steps that wait."""
        return len(self._queue)

    @property
    def full(self) -> bool:
        """True if waiting longer cannot make the next run larger."""
        return len(self._queue) >= self._limits.batch_size_max

    def admit(self, entry: Entry[T], now: float) -> None:
        """Lets a step wait.

        Raises:
            CapacityExceeded: the queue is full.
        """
        queue = self._queue
        if len(queue) >= self._limits.queue_max:
            raise CapacityExceeded(f"{len(queue)} steps wait already", retry_delay_s=self._retry_delay_s())
        entry.admitted = now
        entry.due = now + PATIENCE_S
        if entry.deadline is not None and entry.deadline < entry.due:
            entry.due = entry.deadline
            self._in_order = self._in_order and not (queue and queue[-1].due > entry.due)
        queue.append(entry)

    def cancel(self, entry: Entry[T]) -> bool:
        """Forgets a step that nobody waits for any more; False if it was not waiting."""
        try:
            self._queue.remove(entry)
        except ValueError:
            return False
        return True

    def due_at(self) -> float | None:
        """When the next run may start; None while nobody waits."""
        if not self._queue:
            return None
        delay_s = self._limits.delay_s_max
        if not delay_s or self.full:
            return self._queue[0].admitted
        return min(entry.admitted for entry in self._queue) + delay_s

    def next_batch(self, now: float) -> Batch[T]:
        """Takes the next run out of the queue: the most urgent step and all that fit beside it without much padding."""
        if not self._in_order:
            self._queue = deque(sorted(self._queue, key=_by_due))  # stable: equals stay in order of arrival
            self._in_order = True
        batch: Batch[T] = Batch()
        left: deque[Entry[T]] = deque()
        shortest = longest = 0
        while self._queue and len(batch.entries) < self._limits.batch_size_max:
            entry = self._queue.popleft()
            if entry.deadline is not None and entry.deadline <= now:
                batch.expired.append(entry)
                continue
            low = min(shortest or entry.timesteps, entry.timesteps)
            high = max(longest, entry.timesteps)
            if batch.entries and not self._fits(low, high, len(batch.entries) + 1):
                left.append(entry)
                continue
            shortest, longest = low, high
            batch.entries.append(entry)
        left.extend(self._queue)
        self._queue = left
        return batch

    def _fits(self, shortest: int, longest: int, count: int) -> bool:
        limits = self._limits
        return longest - shortest <= max(limits.padding_max, shortest) and longest * count <= limits.cells_max

    def _retry_delay_s(self) -> float:
        """About how long the queue as it stands takes to empty."""
        least, longest = RETRY_DELAY_S
        return min(max(self.run_s * len(self._queue) / self._limits.batch_size_max, least), longest)
