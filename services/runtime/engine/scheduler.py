"""Decides which waiting steps run together. Synchronous and pure: time comes in as `now`, nothing is awaited."""

from __future__ import annotations

import contextlib
from collections import deque
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from services.runtime.core.errors import CapacityExceeded

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """Bounds of the queue and of one run.

    Attributes:
        batch_size_max: sequences in one run.
        cells_max: timesteps x sequences in one run, padding included, unless one sequence alone has more: bounds how
            long a run keeps others waiting.
        queue_max: steps that may wait; one more is refused.
        delay_s_max: longest wait of a step for batch-mates; 0 lets an idle model run at once.
        padding_max: timesteps by which a row may be padded (or by its own length, if that is more), so that a short
            chunk is not held up by a long one.
        inline_s_max: runs expected to take less are run by the event loop itself; 0 hands all to a thread.
    """

    batch_size_max: int = 64
    cells_max: int = 4096
    queue_max: int = 1024
    delay_s_max: float = 0.0
    padding_max: int = 16
    inline_s_max: float = 0.0


@dataclass(slots=True, eq=False)
class Entry(Generic[T]):
    """One step that waits. `deadline` and `admitted` are monotonic times in seconds."""

    payload: T
    timesteps: int
    deadline: float | None
    admitted: float = 0.0


@dataclass(slots=True)
class Batch(Generic[T]):
    """What to do now: `entries` run together, `expired` are answered with DeadlineExpired."""

    entries: list[Entry[T]] = field(default_factory=list[Entry[T]])
    expired: list[Entry[T]] = field(default_factory=list[Entry[T]])


class Scheduler(Generic[T]):
    """A bounded queue in order of arrival; whoever is ready joins the next run."""

    def __init__(self, limits: BatchLimits) -> None:
        self._limits = limits
        self._queue: deque[Entry[T]] = deque()  # bounded by queue_max in `admit`

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
        if len(self._queue) >= self._limits.queue_max:
            raise CapacityExceeded(f"{self._limits.queue_max} steps wait already")
        entry.admitted = now
        self._queue.append(entry)

    def cancel(self, entry: Entry[T]) -> None:
        """Forgets a step whose client has gone; nothing happens if it is no longer waiting."""
        with contextlib.suppress(ValueError):
            self._queue.remove(entry)

    def due_at(self) -> float | None:
        """When the next run may start; None while nobody waits."""
        if not self._queue:
            return None
        if self.full:
            return self._queue[0].admitted
        return self._queue[0].admitted + self._limits.delay_s_max

    def next_batch(self, now: float) -> Batch[T]:
        """Takes the next run out of the queue: the oldest step, and all that fit beside it without much padding."""
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
