"""What every state store must do. A class of tests inherits it and gives the fixtures."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import numpy as np
import pytest

from services.runtime.core.ids import SequenceName, new_sequence_id
from services.runtime.state.store import Conflict
from services.runtime.state.types import Absence, Carry, Durability, Position, Record, StoredReply, Terms
from tests.contract.checkpoint_kit import CheckpointKit
from tests.contract.names_kit import NamesKit
from tests.contract.store_fixtures import MINUTE, SECOND, a_turn, found, told
from tests.kit.records import MODEL, POSITION_MAX, TERMS, a_name, a_record, is_same

if TYPE_CHECKING:
    from services.runtime.state.store import StateStore
    from tests.contract.store_fixtures import Lapse


class StoreKit(CheckpointKit, NamesKit):
    """Fixtures to give: those of `StoreFixtures`."""

    async def test_an_unknown_sequence_is_absent(self, store: StateStore) -> None:
        """A name that was never committed has no record."""
        assert await store.load(a_name()) is Absence.UNKNOWN

    async def test_it_answers(self, store: StateStore) -> None:
        """`ping` returns while the store works."""
        await store.ping()

    async def test_what_is_committed_is_loaded(self, store: StateStore, other: StateStore) -> None:
        """A committed record comes back the same to the bit, on every replica."""
        name, record = a_name(), a_record(step=3)
        assert await store.commit(name, None, record, TERMS) is None
        for replica in (store, other):
            stored = await found(replica, name)
            assert is_same(stored.record, record)
            assert not stored.expired
            assert stored.size_bytes > 0

    async def test_every_kind_of_content_survives(self, store: StateStore) -> None:
        """All dtypes, empty tensors, scalars, NaNs, an empty task, replies of any bytes, both durabilities."""
        tensors = [np.zeros((0, 3), np.float32), np.array(np.nan, np.float64), np.array([[True, False]])]
        tensors += [np.arange(3).astype(kind) for kind in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u8")]
        replies = (StoredReply(0, b"", b""), StoredReply(1, bytes(range(256)), b"\r\n$1\r\n" * 1000))
        for durability in Durability:
            record = Record(Position(0, 2), MODEL, durability, Carry(tuple(tensors), b""), replies)
            name = a_name()
            assert await store.commit(name, None, record, TERMS) is None
            assert is_same((await found(store, name)).record, record)

    async def test_a_loaded_state_cannot_be_changed(self, store: StateStore) -> None:
        """Writing into a loaded tensor fails instead of changing what another request gets."""
        name = a_name()
        await store.commit(name, None, a_record(), TERMS)
        carry = (await found(store, name)).record.carry
        assert carry is not None
        with pytest.raises(ValueError, match="read-only"):
            carry.tensors[0].fill(1)

    async def test_a_sequence_advances_step_by_step(self, store: StateStore, other: StateStore) -> None:
        """Replicas that take turns see each other's commits."""
        name, before = a_name(), None
        for step in range(1, 21):
            record = a_record(step, fill=step)
            replica = (store, other)[step % 2]
            if before is not None:
                assert is_same((await found(replica, name)).record, before)
            assert await replica.commit(name, before and before.position, record, TERMS) is None
            before = record

    @pytest.mark.parametrize("expected", [None, Position(1, 4), Position(1, 6), Position(0, 5), Position(2, 5)])
    async def test_a_commit_against_another_position_conflicts(
        self, store: StateStore, expected: Position | None
    ) -> None:
        """Nothing is put unless the position is as expected; the conflict tells what stands there."""
        name, current = a_name(), a_record(5, fill=1)
        await store.commit(name, None, current, TERMS)
        assert is_same(told(await store.commit(name, expected, a_record(6, fill=2), TERMS)).record, current)
        assert is_same((await found(store, name)).record, current)

    async def test_a_commit_against_nothing_conflicts(self, store: StateStore) -> None:
        """Going on with a sequence that is not there is a conflict with its absence, and puts nothing."""
        name = a_name()
        assert await store.commit(name, Position(1, 1), a_record(2), TERMS) == Conflict(Absence.UNKNOWN)
        assert await store.load(name) is Absence.UNKNOWN

    async def test_a_start_over_a_live_sequence_begins_a_new_epoch(self, store: StateStore) -> None:
        """A record of a new epoch takes the place of a live one, and commits of the old epoch conflict."""
        name, old, new = a_name(), a_record(5, epoch=1), a_record(0, epoch=2)
        await store.commit(name, None, old, TERMS)
        assert await store.commit(name, old.position, new, TERMS) is None
        assert is_same(told(await store.commit(name, old.position, a_record(6, epoch=1), TERMS)).record, new)

    async def test_positions_are_exact(self, store: StateStore) -> None:
        """Epochs and steps that only differ beyond 53 bits are told apart, up to the largest number."""
        for big in (2**53, 2**63, POSITION_MAX):
            name = a_name()
            await store.commit(name, None, a_record(big - 1, big), TERMS)
            for wrong in (Position(big, big), Position(big - 1, big - 1), Position(big, big - 2)):
                told(await store.commit(name, wrong, a_record(big, big), TERMS))
            assert await store.commit(name, Position(big, big - 1), a_record(big, big), TERMS) is None
            assert (await found(store, name)).record.position == Position(big, big)

    async def test_an_ended_sequence_is_kept_for_retention(self, store: StateStore, lapse: Lapse) -> None:
        """What is left of an ended one is there for the retention time, then forgotten; idle time has no say."""
        name, terms = a_name(), Terms(idle_ms=MINUTE, lifetime_ms=2 * MINUTE, retention_ms=5 * MINUTE)
        ended = a_record(2, ended=True)
        await store.commit(name, None, a_record(1), terms)
        assert await store.commit(name, Position(1, 1), ended, terms) is None
        await lapse(5 * MINUTE - 10 * SECOND, name)
        stored = await found(store, name)
        assert is_same(stored.record, ended)
        assert stored.record.ended
        assert not stored.expired
        await lapse(20 * SECOND, name)
        assert await store.load(name) is Absence.UNKNOWN

    async def test_an_ended_sequence_can_be_started_again(self, store: StateStore, lapse: Lapse) -> None:
        """A new epoch over an ended one lives by its own times."""
        name, ended, again = a_name(), a_record(1, ended=True), a_record(0, epoch=2)
        terms = Terms(idle_ms=10 * MINUTE, lifetime_ms=20 * MINUTE, retention_ms=MINUTE)
        await store.commit(name, None, ended, terms)
        assert await store.commit(name, ended.position, again, terms) is None
        await lapse(9 * MINUTE, name)
        assert not (await found(store, name)).expired

    async def test_an_idle_sequence_expires(self, store: StateStore, lapse: Lapse) -> None:
        """After the idle time it is told as expired, after the retention time as unknown."""
        name, terms = a_name(), Terms(idle_ms=MINUTE, lifetime_ms=60 * MINUTE, retention_ms=5 * MINUTE)
        await store.commit(name, None, a_record(), terms)
        await lapse(50 * SECOND, name)
        assert not (await found(store, name)).expired
        await lapse(20 * SECOND, name)
        stored = await found(store, name)
        assert stored.expired
        assert is_same(stored.record, a_record())
        await lapse(4 * MINUTE, name)
        assert (await found(store, name)).expired
        await lapse(MINUTE, name)
        assert await store.load(name) is Absence.UNKNOWN

    async def test_each_step_puts_off_the_expiry(self, store: StateStore, lapse: Lapse) -> None:
        """The idle time counts from the last commit; a load does not put it off."""
        name, terms = a_name(), Terms(idle_ms=MINUTE, lifetime_ms=60 * MINUTE, retention_ms=MINUTE)
        await store.commit(name, None, a_record(1), terms)
        for step in range(1, 4):
            await lapse(50 * SECOND, name)
            assert await store.commit(name, Position(1, step), a_record(step + 1), terms) is None
        await lapse(50 * SECOND, name)
        expires_at = (await found(store, name)).expires_at
        await lapse(20 * SECOND, name)
        stored = await found(store, name)
        assert stored.expired
        assert stored.expires_at <= expires_at

    async def test_no_epoch_outlives_its_lifetime(self, store: StateStore, lapse: Lapse) -> None:
        """The lifetime counts from the start, however busy the sequence is; a new epoch has its own."""
        name, terms = a_name(), Terms(idle_ms=MINUTE, lifetime_ms=2 * MINUTE, retention_ms=MINUTE)
        await store.commit(name, None, a_record(1), terms)
        for step in range(1, 3):
            await lapse(50 * SECOND, name)
            assert await store.commit(name, Position(1, step), a_record(step + 1), terms) is None
        await lapse(30 * SECOND, name)
        assert (await found(store, name)).expired
        assert await store.commit(name, Position(1, 3), a_record(0, epoch=2), terms) is None
        await lapse(50 * SECOND, name)
        assert not (await found(store, name)).expired

    async def test_an_expired_sequence_cannot_go_on(self, store: StateStore, lapse: Lapse) -> None:
        """A commit of the same epoch conflicts with the expired record; one of a new epoch takes its place."""
        name, terms = a_name(), Terms(idle_ms=MINUTE, lifetime_ms=60 * MINUTE, retention_ms=5 * MINUTE)
        await store.commit(name, None, a_record(1), terms)
        await lapse(2 * MINUTE, name)
        assert told(await store.commit(name, Position(1, 1), a_record(2), terms)).expired
        assert told(await store.commit(name, None, a_record(0, epoch=2), terms)).expired
        assert await store.commit(name, Position(1, 1), a_record(0, epoch=2), terms) is None
        assert not (await found(store, name)).expired

    async def test_one_of_two_racing_commits_wins(self, store: StateStore, other: StateStore) -> None:
        """Two replicas commit the same step at the same time: one is put, the other is told of it."""
        for round_ in range(20):
            name = a_name()
            await store.commit(name, None, a_record(1), TERMS)
            rivals = [a_record(2, fill=2 * round_), a_record(2, fill=2 * round_ + 1)]
            outcomes = await asyncio.gather(
                store.commit(name, Position(1, 1), rivals[0], TERMS),
                other.commit(name, Position(1, 1), rivals[1], TERMS),
            )
            winners = [rival for rival, conflict in zip(rivals, outcomes, strict=True) if conflict is None]
            assert len(winners) == 1
            loser = next(conflict for conflict in outcomes if conflict is not None)
            assert is_same(told(loser).record, winners[0])
            assert is_same((await found(store, name)).record, winners[0])

    async def test_many_starts_of_one_sequence_have_one_winner(self, store: StateStore, other: StateStore) -> None:
        """Of many that start a name at once exactly one does."""
        name = a_name()
        starts = [
            replica.commit(name, None, a_record(0, epoch), TERMS) for epoch in range(8) for replica in (store, other)
        ]
        outcomes = await asyncio.gather(*starts)
        assert outcomes.count(None) == 1

    async def test_each_of_many_at_once_gets_its_own_answer(self, store: StateStore) -> None:
        """Loads and commits that travel together do not mix; one that conflicts fails alone."""
        names = [a_name() for _ in range(100)]
        commits = [store.commit(name, None, a_record(index), TERMS) for index, name in enumerate(names)]
        assert set(await asyncio.gather(*commits)) == {None}
        expected = [Position(1, index if index % 3 else 10_000) for index in range(100)]
        outcomes = await asyncio.gather(
            *[
                store.commit(name, before, a_record(index + 1), TERMS)
                for index, (name, before) in enumerate(zip(names, expected, strict=True))
            ]
        )
        assert [index for index, outcome in enumerate(outcomes) if outcome is not None] == list(range(0, 100, 3))
        stored = await asyncio.gather(*[found(store, name) for name in names])
        assert [each.record.position.step for each in stored] == [index + bool(index % 3) for index in range(100)]

    async def test_a_cancelled_caller_harms_nobody(self, store: StateStore) -> None:
        """A caller that leaves, before or after its call was sent, takes nothing from those who stay."""
        for turns in range(4):
            names = [a_name() for _ in range(9)]
            tasks = [asyncio.ensure_future(store.commit(name, None, a_record(), TERMS)) for name in names]
            tasks += [asyncio.ensure_future(store.commit(name, Position(9, 9), a_record(), TERMS)) for name in names]
            for _ in range(turns):
                await a_turn()
            for task in tasks[::3]:
                task.cancel()
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
            for index, outcome in enumerate(outcomes):
                if isinstance(outcome, asyncio.CancelledError):
                    assert index % 3 == 0
                elif index < len(names):
                    assert outcome is None
                    assert is_same((await found(store, names[index])).record, a_record())
                else:
                    assert isinstance(outcome, Conflict)

    async def test_names_that_look_alike_are_different(self, store: StateStore) -> None:
        """No character of a name makes it equal to another: tenants and models are kept apart."""
        parts = ["a", "a:b", "b", ":", "a%3Ab", "{a}", "}{", "a b", "ü", "u\u0308", "A", "0", "00", "%", "ss"]
        run = new_sequence_id()
        names = [SequenceName(one, two + run, three) for one in parts for two in ("m", "a:b") for three in parts]
        outcomes = await asyncio.gather(
            *[store.commit(name, None, a_record(index), TERMS) for index, name in enumerate(names)]
        )
        assert set(outcomes) <= {None}
        stored = await asyncio.gather(*[found(store, name) for name in names])
        assert [each.record.position.step for each in stored] == list(range(len(names)))
