"""Sequences that run ahead of the store (durability CHECKPOINT), and the commits that follow them in groups.

A head is the newest record of a sequence. The epoch in it is this process's own: it was committed here, by a start or
when a stream took the sequence up, and nobody else ever writes that number. So a store that shows a higher epoch has
been taken over by another, for good; one that shows the same or a lower epoch at an earlier step has lost writes, and
the head is committed over it.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import TYPE_CHECKING

from services.runtime.core.errors import (
    CapacityExceeded,
    SequenceEnded,
    SequenceError,
    SequenceExpired,
    StatestreamError,
    StepConflict,
    StoreUnavailable,
)
from services.runtime.sequences.decide import absent
from services.runtime.state.memory import record_bytes
from services.runtime.state.types import Absence

if TYPE_CHECKING:
    from services.runtime.core.clock import Clock
    from services.runtime.core.ids import SequenceName
    from services.runtime.sequences.commits import Commits
    from services.runtime.sequences.contract import SequenceEvents, SequencePolicy
    from services.runtime.state.types import Position, Record, Stored

_TOGETHER_MAX = 256
"""Commits that are begun in one turn of the loop, which encodes them: more would hold up every step."""

_ROUNDS_MAX = 4
"""Commits of one flight: a store that came back older than it was costs one more."""


class Head:
    """The newest record of one sequence, and how far the store has followed.

    Attributes:
        committed: what the store was last known to hold; None: it has lost the sequence.
        confirmed_at: when that was learnt, monotonic seconds.
        failure: why the sequence cannot go on here; set once, and the head is no longer in use then.
        steps: how many are running on it; such a head is not pushed out.
    """

    __slots__ = ("committed", "confirmed_at", "failure", "flight", "name", "record", "size_bytes", "steps")

    def __init__(self, name: SequenceName, record: Record, now: float) -> None:
        self.name = name
        self.record = record
        self.committed: Position | None = record.position
        self.confirmed_at = now
        self.failure: SequenceError | None = None
        self.flight: asyncio.Task[StatestreamError | None] | None = None
        self.size_bytes = record_bytes(record)
        self.steps = 0

    @property
    def dirty(self) -> bool:
        """True while the store has something to catch up."""
        return self.record.position != self.committed

    @property
    def committed_step(self) -> int | None:
        """The last step that the store holds."""
        return self.committed.step - 1 if self.committed else None

    @property
    def uncommitted(self) -> int:
        """Steps that the store does not hold yet."""
        return self.record.position.step - (self.committed.step if self.committed else 0)


class Heads:
    """All heads of a server, within bounds; clean ones that were used longest ago give way."""

    def __init__(self, commits: Commits, policy: SequencePolicy, clock: Clock, events: SequenceEvents) -> None:
        self._commits = commits
        self._policy = policy
        self._clock = clock
        self._events = events
        self._heads: OrderedDict[SequenceName, Head] = OrderedDict()
        self._dirty: dict[SequenceName, Head] = {}
        self._size_bytes = 0
        self._tick: asyncio.TimerHandle | None = None
        self._closed = False

    def __len__(self) -> int:
        return len(self._heads)

    @property
    def uncommitted(self) -> int:
        """Steps of all sequences that the store does not hold yet."""
        return sum(head.uncommitted for head in tuple(self._dirty.values()))

    def get(self, name: SequenceName) -> Head | None:
        """The head of `name`, if this process has one that the store has not let expire."""
        head = self._heads.get(name)
        if head is None:
            return None
        if not head.dirty and self._clock.monotonic() - head.confirmed_at >= self._commits.idle_s(head.record):
            self.drop(name)
            return None
        self._heads.move_to_end(name)
        return head

    def open(self, name: SequenceName, record: Record) -> Head:
        """The head of a sequence of which `record` has just been committed here, or is known to be in the store.

        Raises:
            CapacityExceeded: all heads are in use.
        """
        head = Head(name, record, self._clock.monotonic())
        self.drop(name)
        self._make_room(head.size_bytes)
        self._heads[name] = head
        self._size_bytes += head.size_bytes
        return head

    def advance(self, head: Head, record: Record) -> None:
        """Takes `record` as the newest; its commit follows."""
        head.record = record
        self._dirty[head.name] = head
        if head.uncommitted >= self._policy.commit_steps:
            self._fly(head)
        else:
            self._arm()

    def drop(self, name: SequenceName, why: SequenceError | None = None) -> None:
        """Forgets the head of `name`, if there is one. A commit under way may still take effect, unless fenced."""
        head = self._heads.pop(name, None)
        self._dirty.pop(name, None)
        if head is not None:
            self._size_bytes -= head.size_bytes
            head.failure = why or StepConflict("the sequence went on without this step; resume it")

    async def settle(self, name: SequenceName) -> None:
        """Returns when the store holds the head of `name`, or there is none.

        Raises:
            SequenceError: the sequence cannot go on here.
            StoreUnavailable, CapacityExceeded: the store does not take it now; the head is kept.
        """
        head = self._heads.get(name)
        while head is not None and head.dirty:
            if head.failure is not None:
                raise head.failure
            position, flight = head.record.position, self._fly(head)
            await asyncio.wait({flight})
            error = None if flight.cancelled() else flight.result()
            if flight.cancelled():
                raise StoreUnavailable("this replica is stopping")
            if error is not None:
                raise error
            if head.committed is not None and head.committed >= position:
                return

    async def settle_all(self) -> None:
        """Tries to commit every head once."""
        flights = [self._fly(head) for head in tuple(self._dirty.values())]
        if flights:
            await asyncio.wait(flights)

    async def close(self) -> None:
        """Commits what can be committed at once, and stops."""
        await self.settle_all()
        self._closed = True
        if self._tick is not None:
            self._tick.cancel()

    def _make_room(self, size_bytes: int) -> None:
        policy = self._policy
        if len(self._heads) < policy.heads_max and self._size_bytes + size_bytes <= policy.head_bytes_max:
            return
        for name, head in tuple(self._heads.items()):
            if not (head.dirty or head.steps or head.flight):
                self.drop(name)
                if len(self._heads) < policy.heads_max and self._size_bytes + size_bytes <= policy.head_bytes_max:
                    return
        raise CapacityExceeded("too many sequences run ahead of the store", retry_delay_s=1.0)

    def _arm(self) -> None:
        if self._tick is None and not self._closed:
            loop = asyncio.get_running_loop()
            self._tick = loop.call_later(self._policy.commit_interval_ms / 1000, self._on_tick)

    def _on_tick(self) -> None:
        """Sends the commits of all dirty heads in one turn of the loop, so that they travel together."""
        self._tick = None
        due = [head for head in self._dirty.values() if head.flight is None]
        for head in due[:_TOGETHER_MAX]:
            self._fly(head)
        if len(due) > _TOGETHER_MAX:
            self._tick = asyncio.get_running_loop().call_later(0, self._on_tick)

    def _fly(self, head: Head) -> asyncio.Task[StatestreamError | None]:
        if head.flight is None:
            head.flight = asyncio.get_running_loop().create_task(self._commit(head))
            head.flight.add_done_callback(lambda flight: self._landed(head, flight))
        return head.flight

    def _landed(self, head: Head, flight: asyncio.Task[StatestreamError | None]) -> None:
        head.flight = None
        if self._heads.get(head.name) is not head:
            return
        if not flight.cancelled() and flight.exception() is not None:
            self.drop(head.name)  # a fault of ours, which would only repeat itself
            return
        if head.dirty:
            self._arm()
        else:
            self._dirty.pop(head.name, None)

    async def _commit(self, head: Head) -> StatestreamError | None:
        """Commits the newest record; what is wrong if it could not. The head is dropped where that is for good."""
        for _ in range(_ROUNDS_MAX):
            record = head.record
            try:
                found = await self._commits.commit(head.name, head.committed, record)
            except SequenceError as error:  # the record in the store is damaged
                return self._fail(head, error)
            except StatestreamError as error:
                return error
            if found is None:
                self._confirm(head, record.position)
            elif (failure := self._compare(head, found, record.position)) is not None:
                self._fail(head, failure)
            if head.failure is not None or found is None or not head.dirty:
                return head.failure
        return StoreUnavailable("the store moves back again and again")

    def _compare(self, head: Head, found: Stored | Absence, sent: Position) -> SequenceError | None:
        """What a commit that was not made means: None if the head may try again from `head.committed`."""
        if isinstance(found, Absence):
            return self._missing(head, found)
        at, ours = found.record.position, head.record.position
        if at.epoch > ours.epoch and found.record.ended:
            return SequenceEnded("it was ended from elsewhere")
        if at.epoch > ours.epoch or (at.epoch == ours.epoch and at.step > sent.step):
            return StepConflict("another stream has taken up the sequence since; resume it")
        if found.expired:
            return SequenceExpired("idle or alive for too long")
        # What stands there is our own: an earlier commit whose answer was lost, or less than the store once had.
        if head.committed is None or at < head.committed:
            self._events.loss_detected(head.name.model, healed=True)
            head.committed = at
        else:
            self._confirm(head, at)
        return None

    def _missing(self, head: Head, found: Absence) -> SequenceError | None:
        """As `_compare`, where nothing is there. What has not been forgotten in good order is put back."""
        # Whoever ends or replaces a sequence leaves a record for the retention time; half of it allows for clocks.
        known_s = self._clock.monotonic() - head.confirmed_at
        if found is Absence.EVICTED or head.committed is None or known_s > self._policy.retention_ms / 2000:
            return absent(found)
        head.committed = None
        self._events.loss_detected(head.name.model, healed=True)
        return None

    def _confirm(self, head: Head, position: Position) -> None:
        head.committed = position
        head.confirmed_at = self._clock.monotonic()

    def _fail(self, head: Head, error: SequenceError) -> SequenceError:
        if self._heads.get(head.name) is head:
            self.drop(head.name, error)
        return error
