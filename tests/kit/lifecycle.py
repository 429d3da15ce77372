"""A replica without steps: records are put into its stores, and the operations on whole sequences tried on them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from services.runtime.core.ids import SequenceName
from services.runtime.engine.served import Catalogue
from services.runtime.sequences.contract import SequencePolicy
from services.runtime.sequences.lifecycle import Lifecycle
from services.runtime.sequences.sequences import Sequences
from services.runtime.sequences.snapshot import SnapshotFormat
from services.runtime.state.cache import RecordCache
from services.runtime.state.memory import MemoryStore
from services.runtime.state.store import Stores
from services.runtime.state.types import Carry, Durability, Position, Record, Stored, StoredReply, Terms
from tests.kit.clock import ManualClock
from tests.kit.toy import TOY_ID, NoEvents, toy_served

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from services.runtime.state.store import Conflict

TENANT = "t"
TERMS = Terms(idle_ms=60_000, lifetime_ms=3_600_000, retention_ms=60_000)
KEY = b"the key of both installations"


def name(sequence_id: str) -> SequenceName:
    """A sequence of the toy model."""
    return SequenceName(TENANT, "toy", sequence_id)


def record(step: int, *, epoch: int = 1, durability: Durability = Durability.STEP, **fields: Any) -> Record:
    """What the toy has after `step` steps of 1, with two replies kept."""
    carry = Carry((np.array([[step, step]], np.float32),), b"task")
    replies = tuple(StoredReply(number, bytes(16), b"reply") for number in range(max(0, step - 2), step))
    made = Record(Position(epoch, step), TOY_ID, durability, carry, replies, step.to_bytes(16, "little"))
    return replace(made, **fields)


class WatchedStore(MemoryStore):
    """A store that lets a test in before each commit."""

    before_commit: Callable[[SequenceName], Awaitable[None]] | None = None

    async def commit(self, name: SequenceName, *args: Any, **kwargs: Any) -> Conflict | None:
        """See `StateStore`."""
        if self.before_commit is not None:
            await self.before_commit(name)
        return await super().commit(name, *args, **kwargs)


class Bench:
    """One replica over stores in the test's hands; `seen` are the names of its events."""

    def __init__(self, *, key: bytes | None = KEY) -> None:
        self.clock = ManualClock()
        self.store = WatchedStore(self.clock, bytes_max=10**7, sequences_max=1000)
        self.local = MemoryStore(self.clock, bytes_max=10**7, sequences_max=1000)
        self.catalogue = Catalogue()
        self.catalogue.add(toy_served(self.clock))
        self.events = NoEvents()
        cache = RecordCache(sequences_max=10, bytes_max=10**6)
        policy = SequencePolicy()
        self.sequences = Sequences(self.catalogue, self.store, self.local, cache, policy, self.clock, self.events)
        self.stores = Stores(self.store, self.local)
        form = None if key is None else SnapshotFormat(key)
        self.lifecycle = Lifecycle(self.sequences, self.stores, self.catalogue, form, self.clock, self.events)

    async def put(self, sequence_id: str, *records: Record) -> None:
        """A sequence that went through these records, all but the last of which are kept as checkpoints."""
        before: Record | None = None
        for each in records:
            found = await self.stores.of(each.durability).commit(
                name(sequence_id), before.position if before else None, each, TERMS, keep=8 if before else 0
            )
            assert found is None
            before = each

    async def stored(self, sequence_id: str) -> Stored:
        """What the shared store holds."""
        found = await self.store.load(name(sequence_id))
        assert isinstance(found, Stored)
        return found

    def counted(self, event: str) -> int:
        """How often `event` was told."""
        return self.events.seen.count(event)


def same_state(one: Record, other: Record) -> bool:
    """True if both sequences go on alike: state, step, model, durability and history, to the bit."""
    return _going_on(one) == _going_on(other)


def _going_on(it: Record) -> object:
    assert it.carry is not None
    tensors = [(tensor.dtype.str, tensor.shape, tensor.tobytes()) for tensor in it.carry.tensors]
    return it.position.step, it.model, it.durability, it.history, it.carry.task, tensors
