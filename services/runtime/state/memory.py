"""Sequences kept in this process: the embedded default, and home of those that want no durability."""

from __future__ import annotations

import heapq
from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from services.runtime.core.errors import CapacityExceeded
from services.runtime.state.store import Conflict
from services.runtime.state.types import Absence, Carry, Stored

if TYPE_CHECKING:
    from services.runtime.core.clock import Clock
    from services.runtime.core.ids import SequenceName
    from services.runtime.state.types import Position, Record, Terms

EVICTED_KEPT_MAX = 10_000
"""Names of evicted sequences that are remembered, so that their clients can be told."""

# Python objects around the content, measured with tracemalloc over 10,000 sequences and rounded up.
_RECORD_BYTES = 900
_TENSOR_BYTES = 130
_REPLY_BYTES = 170

_ALARMS_PER_CALL_MAX = 256
"""So that thousands that expire together do not hold up one step."""


def record_bytes(record: Record) -> int:
    """About what `record` takes in this process's memory; cheap enough for every commit."""
    size = _RECORD_BYTES
    if record.carry is not None:
        for tensor in record.carry.tensors:
            size += tensor.nbytes + _TENSOR_BYTES
        size += len(record.carry.task)
    for reply in record.replies:
        size += len(reply.reply) + len(reply.digest) + _REPLY_BYTES
    return size


@dataclass(slots=True)
class _Entry:
    record: Record
    size_bytes: int
    began_at: float
    expires_at: float
    forget_at: float
    alarm_at: float
    """When the queue of alarms looks at this entry: never later than it must."""


class MemoryStore:
    """A `StateStore` within bounds. What is over them pushes out what was used longest ago.

    What has ended or expired goes first. Nothing survives the process. All of `commit` happens in one turn of the event
    loop, which makes it atomic.
    """

    def __init__(self, clock: Clock, *, bytes_max: int, sequences_max: int) -> None:
        self._clock = clock
        self._bytes_max = bytes_max
        self._sequences_max = sequences_max
        # Both in order of use, the longest unused first. `_left` is what remains of ended and expired ones.
        self._live: OrderedDict[SequenceName, _Entry] = OrderedDict()
        self._left: OrderedDict[SequenceName, _Entry] = OrderedDict()
        self._evicted: OrderedDict[SequenceName, None] = OrderedDict()
        self._alarms: list[tuple[float, SequenceName]] = []
        self._size_bytes = 0

    @property
    def sequences(self) -> int:
        """How many are kept, ended and expired ones included."""
        return len(self._live) + len(self._left)

    @property
    def size_bytes(self) -> int:
        """About how much memory they take."""
        return self._size_bytes

    async def load(self, name: SequenceName) -> Stored | Absence:
        """See `StateStore`."""
        return self._found(name, self._clock.wall())

    async def commit(
        self, name: SequenceName, expected: Position | None, record: Record, terms: Terms
    ) -> Conflict | None:
        """See `StateStore`."""
        now = self._clock.wall()
        found = self._found(name, now)
        if isinstance(found, Absence):
            if expected is not None:
                return Conflict(found)
        elif found.record.position != expected or (
            found.expired and found.record.position.epoch == record.position.epoch
        ):
            return Conflict(found)
        size_bytes = record_bytes(record)
        if size_bytes > self._bytes_max:
            raise CapacityExceeded(
                f"one record of {size_bytes} bytes does not fit into the store's {self._bytes_max}", retry_delay_s=60.0
            )
        self._put(name, _owned(record), size_bytes, terms, now)
        self._evict_down_to_bounds(name)
        return None

    async def ping(self) -> None:
        """Always answers."""

    async def close(self) -> None:
        """Forgets everything."""
        self._live.clear()
        self._left.clear()
        self._evicted.clear()
        self._alarms.clear()
        self._size_bytes = 0

    def _found(self, name: SequenceName, now: float) -> Stored | Absence:
        self._heed_alarms(now)
        for entries in (self._live, self._left):
            entry = entries.get(name)
            if entry is not None and now >= entry.forget_at:
                self._drop(name)
            elif entry is not None:
                entries.move_to_end(name)
                return Stored(entry.record, entry.expires_at, entry.size_bytes, now >= entry.expires_at)
        return Absence.EVICTED if name in self._evicted else Absence.UNKNOWN

    def _put(self, name: SequenceName, record: Record, size_bytes: int, terms: Terms, now: float) -> None:
        before = self._live.pop(name, None) or self._left.pop(name, None)
        began_at, alarm_at = now, float("inf")
        if before is None:
            self._evicted.pop(name, None)
        else:
            self._size_bytes -= before.size_bytes
            alarm_at = before.alarm_at
            if before.record.position.epoch == record.position.epoch:
                began_at = before.began_at
        retention_s = terms.retention_ms / 1000
        if record.ended:
            expires_at = forget_at = now + retention_s
        else:
            expires_at = min(now + terms.idle_ms / 1000, began_at + terms.lifetime_ms / 1000)
            forget_at = expires_at + retention_s
        entry = _Entry(record, size_bytes, began_at, expires_at, forget_at, alarm_at)
        (self._left if record.ended else self._live)[name] = entry
        self._size_bytes += size_bytes
        # A step only ever moves its expiry further away, so most commits leave the queue of alarms alone.
        if expires_at < alarm_at:
            self._set_alarm(name, entry, expires_at)

    def _set_alarm(self, name: SequenceName, entry: _Entry, at: float) -> None:
        entry.alarm_at = at
        heapq.heappush(self._alarms, (at, name))
        if len(self._alarms) > 2 * self.sequences + 64:
            # Alarms of replaced and evicted entries are never looked for; once they are the most, they go together.
            both = (self._live, self._left)
            self._alarms = [(kept.alarm_at, key) for entries in both for key, kept in entries.items()]
            heapq.heapify(self._alarms)

    def _heed_alarms(self, now: float) -> None:
        """Moves what has expired aside and forgets what was kept long enough."""
        for _ in range(_ALARMS_PER_CALL_MAX):
            if not self._alarms or self._alarms[0][0] > now:
                return
            at, name = heapq.heappop(self._alarms)
            entry = self._live.get(name) or self._left.get(name)
            if entry is None or entry.alarm_at != at:
                continue
            if now >= entry.forget_at:
                self._drop(name)
            elif now >= entry.expires_at:
                if self._live.pop(name, None) is not None:
                    self._left[name] = entry
                self._set_alarm(name, entry, entry.forget_at)
            else:
                self._set_alarm(name, entry, entry.expires_at)

    def _drop(self, name: SequenceName) -> None:
        entry = self._left.pop(name, None) or self._live.pop(name)
        self._size_bytes -= entry.size_bytes

    def _evict_down_to_bounds(self, newest: SequenceName) -> None:
        """All but `newest` may have to go; it fits by itself and is the last in order of use."""
        while self.sequences > self._sequences_max or self._size_bytes > self._bytes_max:
            name = next(iter(self._left or self._live))
            if name == newest:
                name = next(iter(self._live))
            self._drop(name)
            self._evicted[name] = None
            if len(self._evicted) > EVICTED_KEPT_MAX:
                self._evicted.popitem(last=False)


def _owned(record: Record) -> Record:
    """`record` with tensors that nobody changes and that keep nothing else alive.

    A view into the output of a run would keep the states of the whole batch in memory.
    """
    if record.carry is None:
        return record
    tensors = record.carry.tensors
    if any(tensor.base is not None for tensor in tensors):
        tensors = tuple([tensor if tensor.base is None else tensor.copy() for tensor in tensors])
        record = replace(record, carry=Carry(tensors, record.carry.task))
    for tensor in tensors:
        tensor.flags.writeable = False
    return record
