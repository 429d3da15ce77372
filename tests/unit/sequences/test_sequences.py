"""What `Sequences` does around the pure decision: durabilities, damaged records, bounds, versions."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest

from services.runtime.core.errors import (
    CapacityExceeded,
    ModelVersionGone,
    SequenceEnded,
    SequenceNotFound,
    StateCorrupt,
)
from services.runtime.core.ids import ModelId, SequenceName
from services.runtime.engine.served import Catalogue
from services.runtime.sequences.contract import SequencePolicy, StepContext
from services.runtime.sequences.decide import StepRequest, content_digest
from services.runtime.sequences.sequences import Sequences
from services.runtime.state.cache import RecordCache
from services.runtime.state.memory import MemoryStore
from services.runtime.state.types import Absence, Carry, Durability, Stored
from tests.kit.clock import ManualClock
from tests.kit.toy import TOY_ID, NoEvents, toy_served

NAME = SequenceName("t", "toy", "one")


class DamagingStore(MemoryStore):
    """A store whose record cannot be read, once told so."""

    damage: StateCorrupt | None = None

    async def load(self, name: SequenceName) -> Stored | Absence:
        if self.damage is not None:
            raise self.damage
        return await super().load(name)


class Bench:
    """One replica over a store in the test's hands."""

    def __init__(self, *, waiters_max: int = 8) -> None:
        self.clock = ManualClock()
        self.store = DamagingStore(self.clock, bytes_max=10**6, sequences_max=100)
        self.local = MemoryStore(self.clock, bytes_max=10**6, sequences_max=100)
        self.catalogue = Catalogue()
        self.catalogue.add(toy_served(self.clock))
        self.policy = SequencePolicy(replies_kept=2, waiters_max=waiters_max, retention_ms=1000, checkpoints_kept=0)
        self.cache = RecordCache(sequences_max=10, bytes_max=10**6)
        self.sequences = self.replica()

    def replica(self) -> Sequences:
        return Sequences(self.catalogue, self.store, self.local, self.cache, self.policy, self.clock, NoEvents())

    async def take(self, step: int | None, *, start: bool = False, **fields: Any) -> bytes:
        """Adds 1 to the sum; the reply is the sum."""
        digest = content_digest(str(step).encode(), end=False)
        request = StepRequest(start, "", step, end=False, digest=digest, durability=Durability.STEP, model=TOY_ID)
        taken = await self.sequences.step(NAME, request._replace(**fields), add_one)
        return taken.reply


async def add_one(context: StepContext, carry: Carry) -> tuple[bytes, Carry]:
    result = await context.model.batcher.step((np.ones(1, dtype=np.float32),), carry.tensors)
    return b"%d" % int(result.outputs[1][0]), Carry(result.state, b"")


async def test_a_start_replaces_a_damaged_record() -> None:
    """DATA_LOSS for whoever would continue it; a start goes over it, in a higher epoch."""
    bench = Bench()
    await bench.take(0, start=True)
    before = await bench.store.load(NAME)
    assert isinstance(before, Stored)
    epoch, step = before.record.position
    bench.cache.clear()
    bench.store.damage = StateCorrupt("damaged", metadata={"epoch": str(epoch), "step": str(step)})
    with pytest.raises(StateCorrupt):
        await bench.take(1)
    assert await bench.take(0, start=True) == b"1"
    bench.store.damage = None
    after = await bench.store.load(NAME)
    assert isinstance(after, Stored)
    assert after.record.position.epoch > epoch


async def test_a_start_over_what_cannot_be_placed_is_refused() -> None:
    """Without its position a commit could not compare, so the damage is told."""
    bench = Bench()
    bench.store.damage = StateCorrupt("damaged")
    with pytest.raises(StateCorrupt):
        await bench.take(0, start=True)


async def test_the_later_start_counts_where_a_name_stands_in_both_stores() -> None:
    """A durable start after a volatile one is continued from the store, and the other way round."""
    bench = Bench()
    for durability in (Durability.NONE, Durability.STEP, Durability.NONE):
        bench.clock.advance(1)
        assert await bench.take(0, start=True, durability=durability) == b"1"
        bench.cache.clear()
        assert await bench.take(1) == b"2"
        found = await bench.sequences.describe(NAME)
        assert isinstance(found, Stored)
        assert found.record.durability is durability


async def test_a_volatile_sequence_never_touches_the_store() -> None:
    """It is kept in this process alone."""
    bench = Bench()
    await bench.take(0, start=True, durability=Durability.NONE)
    assert await bench.store.load(NAME) is Absence.UNKNOWN
    bench.local = MemoryStore(bench.clock, bytes_max=10**6, sequences_max=100)
    bench.cache = RecordCache(sequences_max=10, bytes_max=10**6)
    bench.sequences = bench.replica()
    with pytest.raises(SequenceNotFound):
        await bench.take(1)


async def test_a_sequence_stays_on_its_version() -> None:
    """A version that is served no more is an error of its own; the sequence can still be ended."""
    bench = Bench()
    await bench.take(0, start=True)
    bench.catalogue = Catalogue()
    gone = toy_served(bench.clock)
    bench.catalogue.add(
        gone.__class__(ModelId("toy", "2", "1" * 64), gone.manifest, gone.batcher, gone.initial_state, None)
    )
    bench.cache = RecordCache(sequences_max=0, bytes_max=0)
    bench.sequences = bench.replica()
    with pytest.raises(ModelVersionGone):
        await bench.take(1)
    ended = await bench.sequences.end(NAME)
    assert isinstance(ended, Stored)
    assert ended.record.ended


async def test_an_ended_sequence_cannot_be_revived_from_memory() -> None:
    """A replica that still has the live record at hand is told that the sequence has ended; retries are answered."""
    bench = Bench()
    await bench.take(0, start=True)
    assert await bench.take(1) == b"2"
    other = Sequences(
        bench.catalogue, bench.store, bench.local, RecordCache(0, 0), bench.policy, bench.clock, NoEvents()
    )
    await other.end(NAME)
    assert bench.cache.get(NAME) is not None
    with pytest.raises(SequenceEnded):
        await bench.take(2)
    assert await bench.take(1) == b"2"


async def test_requests_for_one_sequence_wait_within_a_bound() -> None:
    """They take their turns; one too many is refused, and nobody's turn is lost."""
    bench = Bench(waiters_max=3)
    await bench.take(0, start=True)
    results = await asyncio.gather(*(bench.take(None) for _ in range(6)), return_exceptions=True)
    assert [result for result in results if isinstance(result, bytes)] == [b"2", b"3", b"4", b"5"]
    assert sum(isinstance(result, CapacityExceeded) for result in results) == 2
    assert not bench.sequences._lanes


async def test_a_cancelled_request_gives_its_turn_to_the_next() -> None:
    """Whoever waits behind it goes on, and its own step was not taken."""
    bench = Bench()
    await bench.take(0, start=True)
    first = asyncio.create_task(bench.take(None))
    second = asyncio.create_task(bench.take(None))
    await asyncio.sleep(0)
    first.cancel()
    assert await second == b"2"
    with pytest.raises(asyncio.CancelledError):
        await first
