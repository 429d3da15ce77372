"""Bounds on the live sequences of a model: a start over them is refused, a step never is."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from services.runtime.core.errors import CapacityExceeded
from services.runtime.core.ids import SequenceName
from services.runtime.engine.served import Catalogue, ModelLimits
from services.runtime.sequences.contract import SequencePolicy
from services.runtime.sequences.decide import StepRequest, content_digest
from services.runtime.sequences.sequences import Sequences
from services.runtime.state.cache import RecordCache
from services.runtime.state.memory import MemoryStore
from services.runtime.state.types import Carry, Durability
from tests.kit.clock import ManualClock
from tests.kit.toy import TOY_ID, NoEvents, toy_served

if TYPE_CHECKING:
    from services.runtime.sequences.contract import StepContext

CAPACITY = "sequences of the model"


class Shared:
    """A store as replicas share it: nobody here counts what is in it."""

    def __init__(self, store: MemoryStore) -> None:
        self._store = store
        self.loads = 0

    async def load(self, name: SequenceName) -> Any:
        """See `StateStore`."""
        self.loads += 1
        return await self._store.load(name)

    def __getattr__(self, name: str) -> Any:
        """Everything else that a store does."""
        return getattr(self._store, name)


class Bench:
    """A replica whose toy may have so many sequences."""

    def __init__(self, *, shared: bool = False, **limits: Any) -> None:
        self.clock = ManualClock()
        self.memory = MemoryStore(self.clock, bytes_max=10**7, sequences_max=1000)
        self.store: Any = Shared(self.memory) if shared else self.memory
        local = MemoryStore(self.clock, bytes_max=10**7, sequences_max=1000)
        catalogue = Catalogue()
        catalogue.add(replace(toy_served(self.clock), limits=ModelLimits(**limits)))
        self.hold: asyncio.Event | None = None
        self._taken = 0
        cache = RecordCache(sequences_max=10, bytes_max=10**6)
        self.sequences = Sequences(
            catalogue, self.store, local, cache, SequencePolicy(retention_ms=1000), self.clock, NoEvents()
        )

    async def take(
        self, sequence_id: str, step: int, *, end: bool = False, durability: Durability = Durability.STEP
    ) -> None:
        """One step; that of number 0 starts."""
        self._taken += 1
        key = f"key {self._taken}" if step == 0 else ""
        digest = content_digest(b"", end=end, start_key=key)
        request = StepRequest(step == 0, key, step, end, digest, durability, TOY_ID)
        await self.sequences.step(name(sequence_id), request, self._fold)

    async def _fold(self, context: StepContext, carry: Carry) -> tuple[bytes, Carry]:
        if self.hold is not None:
            await self.hold.wait()
        result = await context.model.batcher.step((np.ones(1, dtype=np.float32),), carry.tensors)
        return b"reply", Carry(result.state, b"")


def name(sequence_id: str) -> SequenceName:
    """A sequence of the toy."""
    return SequenceName("t", "toy", sequence_id)


@pytest.mark.parametrize("shared", [False, True])
async def test_a_start_over_the_bound_is_refused_with_a_delay(*, shared: bool) -> None:
    """Steps of those that are live go on, and there is room again when one has ended."""
    bench = Bench(shared=shared, sequences_max=2)
    await bench.take("a", 0)
    await bench.take("b", 0)
    with pytest.raises(CapacityExceeded, match=CAPACITY) as caught:
        await bench.take("c", 0)
    assert caught.value.retry_delay_s
    for one in ("a", "b"):
        await bench.take(one, 1)
    await bench.take("a", 0)  # begins anew in its own place
    await bench.take("a", 1, end=True)
    await bench.take("c", 0)
    await bench.sequences.end(name("b"))
    await bench.take("d", 0)
    with pytest.raises(CapacityExceeded):
        await bench.take("e", 0)
    await bench.sequences.close()


async def test_starts_that_race_do_not_pass_the_bound() -> None:
    """What is being started counts before it is in the store."""
    bench = Bench(sequences_max=2)
    bench.hold = asyncio.Event()
    starts = [asyncio.create_task(bench.take(str(number), 0)) for number in range(5)]
    for _ in range(10):
        await asyncio.sleep(0)
    bench.hold.set()
    results = await asyncio.gather(*starts, return_exceptions=True)
    assert sum(isinstance(result, CapacityExceeded) for result in results) == 3
    assert bench.memory.sequences == 2


async def test_a_start_that_fails_gives_its_place_back() -> None:
    """Nothing of it was committed."""
    bench = Bench(sequences_max=1)
    bench.hold = asyncio.Event()
    starting = asyncio.create_task(bench.take("a", 0))
    for _ in range(10):
        await asyncio.sleep(0)
    starting.cancel()
    await asyncio.gather(starting, return_exceptions=True)
    bench.hold = None
    await bench.take("b", 0)


async def test_expired_sequences_make_room() -> None:
    """In the memory store they no longer count; of a shared one the replica asks, and the next start finds room."""
    for shared in (False, True):
        bench = Bench(shared=shared, sequences_max=2)
        await bench.take("a", 0)
        await bench.take("b", 0)
        bench.clock.advance(3601)
        if shared:
            with pytest.raises(CapacityExceeded):
                await bench.take("c", 0)
            for _ in range(10):
                await asyncio.sleep(0)
        await bench.take("c", 0)
        await bench.sequences.close()


async def test_a_shared_store_is_not_asked_at_every_refusal() -> None:
    """Once a second at most: refusing is cheap."""
    bench = Bench(shared=True, sequences_max=1)
    await bench.take("a", 0)
    before = bench.store.loads
    for number in range(20):
        with pytest.raises(CapacityExceeded):
            await bench.take(f"b{number}", 0)
        await asyncio.sleep(0)
    assert bench.store.loads - before == 20 + 1  # each start looks for its own name
    await bench.sequences.close()


async def test_bytes_are_bounded_as_well() -> None:
    """About what live sequences take in memory."""
    bench = Bench(state_bytes_max=2500)
    await bench.take("a", 0)
    await bench.take("b", 0)
    used = bench.memory.usage("toy")
    assert used.sequences == 2
    assert 2000 < used.size_bytes == bench.memory.size_bytes
    with pytest.raises(CapacityExceeded, match="2500 bytes"):
        await bench.take("c", 0)
    await bench.take("a", 1)


async def test_sequences_without_durability_count() -> None:
    """They take this replica's memory, too."""
    bench = Bench(shared=True, sequences_max=2)
    await bench.take("a", 0, durability=Durability.NONE)
    await bench.take("b", 0)
    for durability in (Durability.NONE, Durability.STEP):
        with pytest.raises(CapacityExceeded):
            await bench.take("c", 0, durability=durability)
    await bench.sequences.close()


async def test_the_memory_store_counts_what_is_live() -> None:
    """By model version: what has ended, expired or been pushed out counts no longer."""
    bench = Bench()
    for number in range(4):
        await bench.take(str(number), 0)
    assert bench.memory.live(TOY_ID) == 4
    await bench.take("0", 1, end=True)
    assert bench.memory.live(TOY_ID) == 3
    await bench.take("0", 0)
    assert bench.memory.live(TOY_ID) == 4
    bench.clock.advance(3000)
    await bench.take("1", 1)
    bench.clock.advance(1000)
    assert bench.memory.live(TOY_ID) == 1
    bench.clock.advance(10_000)
    assert bench.memory.usage("toy") == (0, 0)
    assert bench.memory.live(TOY_ID) == 0
