"""Bounds of the memory store. What it shares with other stores is in `tests/contract/store_kit.py`."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import numpy as np
import pytest

from services.runtime.core.errors import CapacityExceeded
from services.runtime.state import memory
from services.runtime.state.memory import MemoryStore, record_bytes
from services.runtime.state.store import Conflict
from services.runtime.state.types import Absence, Carry, Durability, Position, Record, Stored, Terms
from tests.contract.store_fixtures import a_turn
from tests.kit.clock import ManualClock
from tests.kit.records import MODEL, TERMS, a_name, a_record

SIZE = record_bytes(a_record())
WIDE = record_bytes(a_record(2, width=100))
NAMES = [a_name(str(number)) for number in range(10)]


def _wide(step: int = 2, *, ended: bool = False) -> Record:
    """A record of `WIDE` bytes, unless it has ended; all have as many replies."""
    return replace(a_record(step, width=100, ended=ended), replies=a_record(2).replies)


async def _present(store: MemoryStore) -> list[int]:
    """Which of NAMES are there; looks from the last to the first, so that the first becomes the one used last."""
    return [int(name.sequence_id) for name in NAMES[::-1] if isinstance(await store.load(name), Stored)][::-1]


async def _full(clock: ManualClock | None = None, *, sequences: int = 3) -> MemoryStore:
    """A store that holds as many as it may."""
    store = MemoryStore(clock or ManualClock(), bytes_max=10**6, sequences_max=sequences)
    for name in NAMES[:sequences]:
        await store.commit(name, None, a_record(), TERMS)
    return store


async def test_the_longest_unused_is_evicted() -> None:
    """A new sequence in a full store pushes out the one that was neither loaded nor committed for longest."""
    store = await _full()
    await store.load(NAMES[0])
    await store.commit(NAMES[3], None, a_record(), TERMS)
    assert await _present(store) == [0, 2, 3]


async def test_an_evicted_sequence_is_told_as_such() -> None:
    """Load and commit say evicted, not unknown; after a new start nothing reminds of it."""
    store = await _full()
    await store.commit(NAMES[3], None, a_record(), TERMS)
    assert await store.load(NAMES[0]) is Absence.EVICTED
    assert await store.commit(NAMES[0], Position(1, 1), a_record(2), TERMS) == Conflict(Absence.EVICTED)
    assert await store.commit(NAMES[0], None, a_record(), TERMS) is None
    assert isinstance(await store.load(NAMES[0]), Stored)


async def test_ended_and_expired_ones_go_first() -> None:
    """What cannot go on gives way before what can, even if it was used last."""
    clock = ManualClock()
    store = await _full(clock, sequences=4)
    await store.commit(NAMES[1], Position(1, 1), a_record(2, ended=True), TERMS)
    await store.commit(NAMES[3], Position(1, 1), a_record(2), Terms(1000, 1000, 10**6))
    clock.advance(2)
    for number in (4, 5):
        await store.commit(NAMES[number], None, a_record(), TERMS)
    assert await _present(store) == [0, 2, 4, 5]


async def test_bytes_are_bounded() -> None:
    """The bound on bytes evicts, too; what the store says of its size is the sum of its records."""
    store = MemoryStore(ManualClock(), bytes_max=3 * SIZE, sequences_max=100)
    for name in NAMES:
        await store.commit(name, None, a_record(), TERMS)
        assert store.size_bytes <= 3 * SIZE
    assert (store.sequences, store.size_bytes) == (3, 3 * SIZE)
    await store.commit(NAMES[9], Position(1, 1), a_record(width=64), TERMS)
    assert store.size_bytes == record_bytes(a_record(width=64)) + SIZE * (store.sequences - 1) <= 3 * SIZE


async def test_a_record_over_the_bound_is_refused() -> None:
    """A record larger than the whole store is refused with a delay, and what was there stays."""
    store = MemoryStore(ManualClock(), bytes_max=3 * SIZE, sequences_max=100)
    await store.commit(NAMES[0], None, a_record(), TERMS)
    for name, before in ((NAMES[0], Position(1, 1)), (NAMES[1], None)):
        with pytest.raises(CapacityExceeded) as refused:
            await store.commit(name, before, a_record(2, width=10_000), TERMS)
        assert refused.value.retry_delay_s
    assert await _present(store) == [0]


async def test_checkpoints_count_towards_the_bound() -> None:
    """Each takes as much as its record did; they push out others, and go with their sequence."""
    store = MemoryStore(ManualClock(), bytes_max=5 * WIDE, sequences_max=100)
    for name in NAMES[:3]:
        await store.commit(name, None, _wide(1), TERMS)
    for step in range(1, 3):
        assert store.size_bytes == (step + 2) * WIDE
        await store.commit(NAMES[2], Position(1, step), _wide(step + 1), TERMS, keep=3)
    assert await _present(store) == [0, 1, 2]
    await store.commit(NAMES[2], Position(1, 3), _wide(4), TERMS, keep=3)
    assert await _present(store) == [0, 2]
    assert store.size_bytes == 5 * WIDE
    await store.commit(NAMES[2], Position(1, 4), _wide(5, ended=True), TERMS)
    assert store.size_bytes == WIDE + record_bytes(_wide(5, ended=True))
    for name in NAMES[3:9]:
        await store.commit(name, None, _wide(), TERMS)
    assert (store.sequences, store.size_bytes) == (5, 5 * WIDE)


async def test_a_sequence_that_outgrows_the_store_with_its_checkpoints_is_refused() -> None:
    """What does not fit even if all others go is refused, and nothing of it or of the others is lost."""
    store = MemoryStore(ManualClock(), bytes_max=3 * WIDE, sequences_max=100)
    for step in range(1, 4):
        before = Position(1, step - 1) if step > 1 else None
        assert await store.commit(NAMES[0], before, _wide(step), TERMS, keep=9) is None
    with pytest.raises(CapacityExceeded):
        await store.commit(NAMES[0], Position(1, 3), _wide(4), TERMS, keep=9)
    stored = await store.load(NAMES[0])
    assert isinstance(stored, Stored)
    assert (stored.record.position.step, stored.checkpoints) == (3, (1, 2))
    assert await store.commit(NAMES[0], Position(1, 3), _wide(4), TERMS, keep=2) is None


async def test_evicted_checkpoints_are_told_as_such() -> None:
    """A checkpoint of an evicted sequence has gone with it."""
    store = await _full()
    await store.commit(NAMES[0], Position(1, 1), a_record(2), TERMS, keep=1)
    for name in NAMES[3:6]:
        await store.commit(name, None, a_record(), TERMS)
    assert await store.load_checkpoint(NAMES[0], 1) is Absence.EVICTED


async def test_a_checkpoint_asked_for_is_a_use() -> None:
    """Who reads the checkpoints of a sequence keeps it from being evicted."""
    store = await _full()
    await store.load_checkpoint(NAMES[0], 1)
    await store.commit(NAMES[3], None, a_record(), TERMS)
    assert await _present(store) == [0, 2, 3]


async def test_a_list_lets_others_go_on() -> None:
    """Over many sequences a list takes several turns of the loop, and is of the moment when it was asked for."""
    store = MemoryStore(ManualClock(), bytes_max=10**8, sequences_max=10_000)
    names = [a_name(f"{number:04}") for number in range(2500)]
    for name in names:
        await store.commit(name, None, a_record(), TERMS)
    listing = asyncio.ensure_future(store.names("tests", "sentiment", count=9999))
    turns = 0
    while not listing.done():
        await a_turn()
        turns += 1
        await store.commit(a_name(f"late {turns}"), None, a_record(), TERMS)
    assert turns > 1
    assert list((await listing).names) == names


async def test_what_was_just_committed_is_never_evicted_by_itself() -> None:
    """An ended record that no longer fits beside the others pushes out others, though ended ones go first."""
    wide = a_record(width=200)
    store = MemoryStore(ManualClock(), bytes_max=SIZE + record_bytes(wide), sequences_max=100)
    await store.commit(NAMES[0], None, wide, TERMS)
    await store.commit(NAMES[1], None, a_record(width=1), TERMS)
    grown = Record(Position(1, 2), MODEL, Durability.STEP, None, a_record(2).replies * 6)
    assert await store.commit(NAMES[1], Position(1, 1), grown, TERMS) is None
    assert await _present(store) == [1]


async def test_names_of_evicted_ones_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the last evicted names are remembered; older ones are unknown."""
    monkeypatch.setattr(memory, "EVICTED_KEPT_MAX", 2)
    store = await _full(sequences=1)
    for name in NAMES[1:5]:
        await store.commit(name, None, a_record(), TERMS)
    told = [await store.load(name) for name in NAMES[:4]]
    assert told == [Absence.UNKNOWN, Absence.UNKNOWN, Absence.EVICTED, Absence.EVICTED]


async def test_the_forgotten_take_no_memory() -> None:
    """Ended and expired sequences leave nothing behind once their retention is over, looked for or not."""
    clock = ManualClock()
    store = MemoryStore(clock, bytes_max=10**8, sequences_max=10_000)
    names = [a_name() for _ in range(1000)]
    for number, name in enumerate(names):
        await store.commit(name, None, a_record(ended=number % 2 == 0), Terms(1000, 5000, 2000))
    clock.advance(60)
    assert await store.load(max(names)) is Absence.UNKNOWN
    for _ in range(10):  # each call does a bounded share
        await store.load(a_name())
    assert (store.sequences, store.size_bytes) == (0, 0)


async def test_starting_and_ending_over_and_over_takes_no_memory() -> None:
    """The queue of alarms stays in proportion to the sequences, however often one of them is renewed."""
    clock = ManualClock()
    store = MemoryStore(clock, bytes_max=10**8, sequences_max=100)
    before = None
    for epoch in range(500):
        assert await store.commit(NAMES[0], before, a_record(0, epoch), Terms(10**9, 10**9, 1000)) is None
        clock.advance(2)
        ended = a_record(1, epoch, ended=True)
        assert await store.commit(NAMES[0], Position(epoch, 0), ended, Terms(1000, 1000, 1000)) is None
        before = Position(epoch, 1)
    assert len(store._alarms) < 100  # pyright: ignore[reportPrivateUsage] - nothing public grows


async def test_a_stored_state_keeps_no_batch_alive() -> None:
    """A tensor that is a view into the output of a run is copied, so that the run's memory can go."""
    batch = np.zeros((2, 64, 8), np.float32)
    store = MemoryStore(ManualClock(), bytes_max=10**6, sequences_max=10)
    carry = Carry((batch[:, 3],), b"")
    record = Record(Position(1, 1), MODEL, Durability.STEP, carry, (), previous=carry)
    await store.commit(NAMES[0], None, record, TERMS)
    batch[:] = 1
    stored = await store.load(NAMES[0])
    assert isinstance(stored, Stored)
    for kept in (stored.record.carry, stored.record.previous):
        assert kept is not None
        (tensor,) = kept.tensors
        assert tensor.base is None
        assert not tensor.any()
        assert not tensor.flags.writeable


def test_a_previous_state_counts() -> None:
    """The state before the latest step takes as much memory as the latest one."""
    record = a_record(width=1000)
    assert record_bytes(replace(record, previous=record.carry)) > record_bytes(record) + 16_000


async def test_close_forgets() -> None:
    """After `close` nothing is kept."""
    store = await _full()
    await store.close()
    assert (store.sequences, store.size_bytes) == (0, 0)
