"""Sequences kept in this process: the embedded default, and home of those that want no durability."""

from __future__ import annotations

import heapq
import math
import types
from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, NamedTuple, cast
from urllib.parse import quote, unquote

from services.runtime.core.errors import CapacityExceeded, InvalidInput
from services.runtime.core.ids import SequenceName
from services.runtime.state.store import Conflict, Page
from services.runtime.state.types import Absence, Carry, Stored

if TYPE_CHECKING:
    from collections.abc import Generator

    import numpy as np
    import numpy.typing as npt

    from services.runtime.core.clock import Clock
    from services.runtime.core.ids import ModelId
    from services.runtime.state.types import Position, Record, Terms

EVICTED_KEPT_MAX = 10_000
"""Names of evicted sequences that are remembered, so that their clients can be told."""

# Python objects around the content, measured with tracemalloc over 10,000 sequences and rounded up.
_RECORD_BYTES = 900
_TENSOR_BYTES = 130
_REPLY_BYTES = 170

_ALARMS_PER_CALL_MAX = 256
"""So that thousands that expire together do not hold up one step."""

_NAMES_PER_TURN_MAX = 1000
"""So that a list of names does not hold up steps: looking at as many takes less than a millisecond."""

_CURSOR: Final = "m-"
"""Begins every cursor of this store's; the last name of the page follows."""


def record_bytes(record: Record) -> int:
    """About what `record` takes in this process's memory; cheap enough for every commit."""
    size = _RECORD_BYTES
    for carry in (record.carry, record.previous):
        if carry is not None:
            for tensor in carry.tensors:
                size += tensor.nbytes + _TENSOR_BYTES
            size += len(carry.task)
    for reply in record.replies:
        size += len(reply.reply) + len(reply.digest) + _REPLY_BYTES
    return size


class _Kept(NamedTuple):
    """A record and about what it takes."""

    record: Record
    size_bytes: int


class Usage(NamedTuple):
    """Live sequences, and about the memory that they take."""

    sequences: int
    size_bytes: int


@dataclass(slots=True)
class _Entry:
    newest: _Kept
    checkpoints: tuple[_Kept, ...]
    """Earlier records, ascending by step; all before the newest."""
    size_bytes: int
    """Of all of them."""
    began_at: float
    expires_at: float
    forget_at: float
    alarm_at: float = math.inf
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
        self._usage: dict[ModelId, Usage] = {}  # of live ones

    def usage(self, model: str) -> Usage:
        """Of a model, all versions together."""
        self._heed_alarms(self._clock.wall())
        used = [usage for model_id, usage in self._usage.items() if model_id.name == model]
        return Usage(sum(usage.sequences for usage in used), sum(usage.size_bytes for usage in used))

    def live(self, model_id: ModelId) -> int:
        """Sequences that are live on one version of a model."""
        self._heed_alarms(self._clock.wall())
        usage = self._usage.get(model_id)
        return usage.sequences if usage else 0

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
        now = self._clock.wall()
        entry = self._entry(name, now)
        return self._absence(name) if entry is None else _stored(entry, entry.newest, now)

    async def commit(
        self,
        name: SequenceName,
        expected: Position | None,
        record: Record,
        terms: Terms,
        *,
        continues: bool = False,
        keep: int = 0,
    ) -> Conflict | None:
        """See `StateStore`."""
        now = self._clock.wall()
        before = self._entry(name, now)
        if before is None:
            if expected is not None:
                return Conflict(self._absence(name))
        elif expected is None or before.newest.record.position != expected:
            return Conflict(_stored(before, before.newest, now))
        elif continues or expected.epoch == record.position.epoch:
            if now >= before.expires_at:
                return Conflict(_stored(before, before.newest, now))
        else:
            before = None
        newest = _Kept(_owned(record), record_bytes(record))
        checkpoints = _checkpoints(before, record, keep) if before is not None else ()
        size_bytes = newest.size_bytes + sum([kept.size_bytes for kept in checkpoints])
        if size_bytes > self._bytes_max:
            raise CapacityExceeded(
                f"a sequence of {size_bytes} bytes does not fit into the store's {self._bytes_max}", retry_delay_s=60.0
            )
        began_at = now if before is None else before.began_at
        retention_s = terms.retention_ms / 1000
        if record.ended:
            expires_at = forget_at = now + retention_s
        else:
            expires_at = min(now + terms.idle_ms / 1000, began_at + terms.lifetime_ms / 1000)
            forget_at = expires_at + retention_s
        self._put(name, _Entry(newest, checkpoints, size_bytes, began_at, expires_at, forget_at))
        self._evict_down_to_bounds(name)
        return None

    async def load_checkpoint(self, name: SequenceName, step: int) -> Stored | Absence:
        """See `StateStore`."""
        now = self._clock.wall()
        entry = self._entry(name, now)
        if entry is None:
            return self._absence(name)
        for kept in entry.checkpoints:
            if kept.record.position.step == step:
                return _stored(entry, kept, now)
        return Absence.UNKNOWN

    async def names(self, tenant: str, model: str, *, cursor: str | None = None, count: int = 100) -> Page:
        """See `StateStore`. They come in order, so no change between two pages moves a name from one to the other."""
        after = None if cursor is None else _after(cursor)
        now = self._clock.wall()
        entries = [*self._live.items(), *self._left.items()]
        smallest: list[str] = []
        for begin in range(0, len(entries), _NAMES_PER_TURN_MAX):
            if begin:
                await _let_others_go_on()
            ids = [
                name.sequence_id
                for name, entry in entries[begin : begin + _NAMES_PER_TURN_MAX]
                if name.tenant == tenant
                and name.model == model
                and (after is None or name.sequence_id > after)
                and now < entry.forget_at
            ]
            smallest = heapq.nsmallest(count + 1, [*smallest, *ids])
        follows = _CURSOR + quote(smallest[count - 1], safe="") if len(smallest) > count else None
        return Page(tuple([SequenceName(tenant, model, each) for each in smallest[:count]]), follows)

    async def ping(self) -> None:
        """Always answers."""

    async def close(self) -> None:
        """Forgets everything."""
        self._live.clear()
        self._left.clear()
        self._evicted.clear()
        self._alarms.clear()
        self._usage.clear()
        self._size_bytes = 0

    def _entry(self, name: SequenceName, now: float) -> _Entry | None:
        """What is kept of `name`; it counts as used."""
        self._heed_alarms(now)
        for entries in (self._live, self._left):
            entry = entries.get(name)
            if entry is not None and now >= entry.forget_at:
                self._drop(name)
            elif entry is not None:
                entries.move_to_end(name)
                return entry
        return None

    def _absence(self, name: SequenceName) -> Absence:
        return Absence.EVICTED if name in self._evicted else Absence.UNKNOWN

    def _put(self, name: SequenceName, entry: _Entry) -> None:
        live = self._live.pop(name, None)
        before = live or self._left.pop(name, None)
        if before is None:
            self._evicted.pop(name, None)
        else:
            self._size_bytes -= before.size_bytes
            entry.alarm_at = before.alarm_at
        ended = entry.newest.record.ended
        (self._left if ended else self._live)[name] = entry
        # Most commits change nothing of it.
        if live is None or ended or live.size_bytes != entry.size_bytes or _model(live) != _model(entry):
            if live is not None:
                self._count(live, -1)
            if not ended:
                self._count(entry, 1)
        self._size_bytes += entry.size_bytes
        # A step only ever moves its expiry further away, so most commits leave the queue of alarms alone.
        if entry.expires_at < entry.alarm_at:
            self._set_alarm(name, entry, entry.expires_at)

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
                    self._count(entry, -1)
                    self._left[name] = entry
                self._set_alarm(name, entry, entry.forget_at)
            else:
                self._set_alarm(name, entry, entry.expires_at)

    def _drop(self, name: SequenceName) -> None:
        entry = self._left.pop(name, None)
        if entry is None:
            entry = self._live.pop(name)
            self._count(entry, -1)
        self._size_bytes -= entry.size_bytes

    def _count(self, entry: _Entry, sign: int) -> None:
        """Adds a live entry to what its model uses, or takes it away; `sign` is 1 or -1."""
        model = _model(entry)
        sequences, size_bytes = self._usage.get(model, (0, 0))
        after = Usage(sequences + sign, size_bytes + sign * entry.size_bytes)
        if after.sequences:
            self._usage[model] = after
        else:
            self._usage.pop(model, None)

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


def _model(entry: _Entry) -> ModelId:
    return entry.newest.record.model


def _stored(entry: _Entry, kept: _Kept, now: float) -> Stored:
    """`kept` of `entry` as it is told; only the newest record is told together with the checkpoints."""
    steps = ()
    if entry.checkpoints and kept is entry.newest:
        steps = tuple([each.record.position.step for each in entry.checkpoints])
    return Stored(kept.record, entry.expires_at, kept.size_bytes, now >= entry.expires_at, steps)


def _checkpoints(before: _Entry, record: Record, keep: int) -> tuple[_Kept, ...]:
    """Those that `record` leaves when it takes the place of the newest of `before`."""
    if record.ended or not (keep or before.checkpoints):
        return ()
    earlier = (*before.checkpoints, before.newest) if keep else before.checkpoints
    stay = tuple([kept for kept in earlier if kept.record.position.step < record.position.step])
    return stay[-keep:] if keep else stay


def _after(cursor: str) -> str:
    """The last sequence id of the page before.

    Raises:
        InvalidInput: `cursor` is none of this store's.
    """
    after = unquote(cursor.removeprefix(_CURSOR))
    if not cursor.isascii() or cursor != _CURSOR + quote(after, safe=""):
        raise InvalidInput("page_token", "is not one that this server gave")
    return after


@types.coroutine
def _let_others_go_on() -> Generator[None, None, None]:
    """Ends this turn of the event loop."""
    yield


def _owned(record: Record) -> Record:
    """`record` with tensors that nobody changes and that keep nothing else alive."""
    carry, previous = _owned_carry(record.carry), _owned_carry(record.previous)
    if carry is record.carry and previous is record.previous:
        return record
    return replace(record, carry=carry, previous=previous)


def _owned_carry(carry: Carry | None) -> Carry | None:
    """A view into the output of a run would keep the states of the whole batch in memory."""
    if carry is None:
        return None
    tensors = carry.tensors
    if not all(map(_owns, tensors)):
        tensors = tuple([tensor if _owns(tensor) else tensor.copy() for tensor in tensors])
        carry = Carry(tensors, carry.task)
    for tensor in tensors:
        tensor.flags.writeable = False
    return carry


def _owns(tensor: npt.NDArray[np.generic]) -> bool:
    """Whether its memory is its own, and nothing beside it."""
    base = cast("object", tensor.base)  # the stubs know of arrays only
    return base is None or (type(base) is bytes and len(base) == tensor.nbytes)
