"""The part of the kit for state stores about new epochs that continue a sequence, and about checkpoints."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from services.runtime.state.store import Conflict
from services.runtime.state.types import Absence, Position, Stored, Terms
from tests.contract.store_fixtures import MINUTE, SECOND, StoreFixtures, found, told
from tests.kit.records import POSITION_MAX, TERMS, a_name, a_record, is_same

if TYPE_CHECKING:
    from collections.abc import Iterable

    from services.runtime.core.ids import SequenceName
    from services.runtime.state.store import StateStore
    from tests.contract.store_fixtures import Lapse

BUSY = Terms(idle_ms=MINUTE, lifetime_ms=2 * MINUTE, retention_ms=5 * MINUTE)
"""Expires soon, and is told of for long after."""


async def grown(
    store: StateStore, steps: Iterable[int], *, keep: int = 0, terms: Terms = TERMS, name: SequenceName | None = None
) -> SequenceName:
    """A sequence of epoch 1 that was committed at each of `steps`; the record at a step is filled with its number."""
    name = name or a_name()
    before = None
    for step in steps:
        assert await store.commit(name, before, a_record(step, fill=step), terms, keep=keep) is None
        before = Position(1, step)
    return name


async def kept(store: StateStore, name: SequenceName) -> tuple[int, ...]:
    """The steps of the checkpoints of `name`, each of which is found to be there, and whole."""
    checkpoints = (await found(store, name)).checkpoints
    for step in checkpoints:
        checkpoint = await store.load_checkpoint(name, step)
        assert isinstance(checkpoint, Stored), (step, checkpoint)
        assert checkpoint.record.position.step == step
    return checkpoints


class CheckpointKit(StoreFixtures):
    """Fixtures to give: those of `StoreFixtures`."""

    async def test_a_new_epoch_that_continues_shuts_out_the_old_one(self, store: StateStore, other: StateStore) -> None:
        """A record of the same step under a new epoch takes the place of the old; who works on in that conflicts."""
        name = await grown(store, [1, 2])
        fence = a_record(2, epoch=7)
        assert await other.commit(name, Position(1, 2), fence, TERMS, continues=True) is None
        assert is_same(told(await store.commit(name, Position(1, 2), a_record(3), TERMS)).record, fence)
        assert await other.commit(name, Position(7, 2), a_record(3, epoch=7), TERMS) is None

    async def test_an_expired_sequence_cannot_be_continued(self, store: StateStore, lapse: Lapse) -> None:
        """A new epoch that continues is no start: an expired record conflicts with it, and stays as it is."""
        name = await grown(store, [1], terms=BUSY)
        await lapse(MINUTE + 10 * SECOND, name)
        conflict = told(await store.commit(name, Position(1, 1), a_record(1, epoch=2), BUSY, continues=True))
        assert conflict.expired
        assert is_same((await found(store, name)).record, a_record(1, fill=1))
        assert await store.commit(name, Position(1, 1), a_record(0, epoch=2), BUSY) is None

    async def test_the_lifetime_counts_from_the_start_through_all_epochs(self, store: StateStore, lapse: Lapse) -> None:
        """A new epoch that continues puts off the idle time and not the end of the lifetime; a start does both."""
        name = await grown(store, [1], terms=BUSY)
        for epoch in range(1, 3):
            await lapse(50 * SECOND, name)
            record = a_record(1, epoch=epoch + 1)
            assert await store.commit(name, Position(epoch, 1), record, BUSY, continues=True) is None
        await lapse(10 * SECOND, name)
        assert not (await found(store, name)).expired
        await lapse(20 * SECOND, name)
        assert (await found(store, name)).expired
        assert await store.commit(name, Position(3, 1), a_record(1, epoch=4), BUSY) is None
        await lapse(50 * SECOND, name)
        assert not (await found(store, name)).expired

    async def test_there_must_be_something_to_continue(self, store: StateStore) -> None:
        """Continuing what is not there conflicts with its absence; where nothing is expected there is a start."""
        name = a_name()
        conflict = await store.commit(name, Position(1, 1), a_record(1, epoch=2), TERMS, continues=True, keep=3)
        assert conflict == Conflict(Absence.UNKNOWN)
        assert await store.load(name) is Absence.UNKNOWN
        assert await store.commit(name, None, a_record(1, epoch=2), TERMS, continues=True, keep=3) is None
        assert await kept(store, name) == ()

    async def test_a_new_epoch_continues_at_the_expected_position_only(self, store: StateStore) -> None:
        """`continues` weakens nothing: against another position it conflicts."""
        name = await grown(store, [5])
        for expected in (None, Position(1, 4), Position(2, 5)):
            record = a_record(5, epoch=3)
            told(await store.commit(name, expected, record, TERMS, continues=True))
        assert (await found(store, name)).record.position == Position(1, 5)

    async def test_a_replaced_record_becomes_a_checkpoint(self, store: StateStore, other: StateStore) -> None:
        """With `keep` the record before the new one is kept, the same to the bit, and every replica finds it."""
        name = await grown(store, [1, 4], keep=5)
        for replica in (store, other):
            stored = await found(replica, name)
            assert stored.checkpoints == (1,)
            assert is_same(stored.record, a_record(4, fill=4))
            checkpoint = await replica.load_checkpoint(name, 1)
            assert isinstance(checkpoint, Stored)
            assert is_same(checkpoint.record, a_record(1, fill=1))
            assert checkpoint.checkpoints == ()

    async def test_nothing_is_kept_unless_asked_for(self, store: StateStore) -> None:
        """Without `keep` a replaced record is gone."""
        name = await grown(store, range(1, 5))
        assert await kept(store, name) == ()
        assert await store.load_checkpoint(name, 3) is Absence.UNKNOWN

    async def test_the_youngest_checkpoints_stay(self, store: StateStore) -> None:
        """Of many records that were replaced with `keep` the last so many are there, ascending; older ones are gone."""
        name = await grown(store, range(0, 100, 7), keep=3)
        assert await kept(store, name) == (77, 84, 91)
        assert await store.load_checkpoint(name, 70) is Absence.UNKNOWN

    async def test_a_commit_without_keep_leaves_checkpoints_alone(self, store: StateStore) -> None:
        """They stay as they are through any number of steps, and the next one joins them."""
        name = await grown(store, [1, 2, 3], keep=2)
        for step in range(3, 20):
            assert await store.commit(name, Position(1, step), a_record(step + 1), TERMS) is None
        assert await kept(store, name) == (1, 2)
        assert await store.commit(name, Position(1, 20), a_record(21), TERMS, keep=3) is None
        assert await kept(store, name) == (1, 2, 20)

    async def test_fewer_may_be_kept_later(self, store: StateStore) -> None:
        """A smaller `keep` drops the oldest ones down to it."""
        name = await grown(store, range(1, 9), keep=6)
        assert await store.commit(name, Position(1, 8), a_record(9), TERMS, keep=2) is None
        assert await kept(store, name) == (7, 8)
        for step in range(1, 7):
            assert await store.load_checkpoint(name, step) is Absence.UNKNOWN

    async def test_a_new_epoch_that_continues_has_the_checkpoints(self, store: StateStore) -> None:
        """They outlive a resume, whatever their epochs; the records are those that were committed then."""
        name = await grown(store, [1, 2, 3], keep=5)
        assert await store.commit(name, Position(1, 3), a_record(3, epoch=2), TERMS, continues=True) is None
        assert await kept(store, name) == (1, 2)
        assert await store.commit(name, Position(2, 3), a_record(4, epoch=2), TERMS, keep=5) is None
        assert await kept(store, name) == (1, 2, 3)
        for step, epoch in ((1, 1), (2, 1), (3, 2)):
            checkpoint = await store.load_checkpoint(name, step)
            assert isinstance(checkpoint, Stored)
            assert checkpoint.record.position == Position(epoch, step)

    async def test_a_new_start_drops_all_checkpoints(self, store: StateStore) -> None:
        """What begins anew has no past, even where the same steps come again, and even if it is asked to keep one."""
        name = await grown(store, [1, 2, 3], keep=5)
        assert await store.commit(name, Position(1, 3), a_record(9, epoch=2), TERMS, keep=5) is None
        assert await kept(store, name) == ()
        for step in (1, 2, 3):
            assert await store.load_checkpoint(name, step) is Absence.UNKNOWN
        assert await store.commit(name, Position(2, 9), a_record(10, epoch=2), TERMS, keep=5) is None
        assert await kept(store, name) == (9,)

    async def test_a_start_over_an_expired_sequence_drops_all_checkpoints(
        self, store: StateStore, lapse: Lapse
    ) -> None:
        """The past of an expired one goes with it."""
        name = await grown(store, [1, 2, 3], keep=5, terms=BUSY)
        await lapse(MINUTE + 10 * SECOND, name)
        assert await store.commit(name, Position(1, 3), a_record(5, epoch=2), BUSY) is None
        assert await kept(store, name) == ()
        assert await store.load_checkpoint(name, 2) is Absence.UNKNOWN

    @pytest.mark.parametrize("keep", [0, 5])
    async def test_an_end_drops_all_checkpoints(self, store: StateStore, keep: int) -> None:
        """What has ended can be neither rewound nor forked: nothing but its last record is kept."""
        name = await grown(store, [1, 2, 3], keep=5)
        assert await store.commit(name, Position(1, 3), a_record(4, ended=True), TERMS, keep=keep) is None
        assert await kept(store, name) == ()
        for step in (1, 2, 3):
            assert await store.load_checkpoint(name, step) is Absence.UNKNOWN

    @pytest.mark.parametrize("keep", [0, 5])
    async def test_going_back_drops_what_comes_after(self, store: StateStore, keep: int) -> None:
        """A record at an earlier step leaves the checkpoints before it and is no checkpoint of itself."""
        name = await grown(store, [2, 4, 6, 8, 10], keep=5)
        back = a_record(6, epoch=2)
        assert await store.commit(name, Position(1, 10), back, TERMS, continues=True, keep=keep) is None
        assert await kept(store, name) == (2, 4)
        for step in (6, 8, 10):
            assert await store.load_checkpoint(name, step) is Absence.UNKNOWN
        assert await store.commit(name, Position(2, 6), a_record(8, epoch=2, fill=1), TERMS, keep=5) is None
        assert await store.commit(name, Position(2, 8), a_record(9, epoch=2), TERMS, keep=5) is None
        assert await kept(store, name) == (2, 4, 6, 8)
        again = await store.load_checkpoint(name, 8)
        assert isinstance(again, Stored)
        assert is_same(again.record, a_record(8, epoch=2, fill=1))

    @pytest.mark.parametrize("keep", [0, 5])
    async def test_staying_at_a_step_makes_no_checkpoint_of_it(self, store: StateStore, keep: int) -> None:
        """Checkpoints come before the record: one at its own step would be the record twice."""
        name = await grown(store, [2, 4], keep=5)
        assert await store.commit(name, Position(1, 4), a_record(4, epoch=2), TERMS, continues=True, keep=keep) is None
        assert await kept(store, name) == (2,)

    @pytest.mark.parametrize("first", [8, 98, 2**31 - 2, 2**53 - 2, 10**19 - 2, POSITION_MAX - 4])
    async def test_steps_of_checkpoints_are_exact(self, store: StateStore, first: int) -> None:
        """They are told apart and kept in order where their digits become more, and beyond 53 bits."""
        name = await grown(store, range(first, first + 5), keep=3)
        assert await kept(store, name) == (first + 1, first + 2, first + 3)
        back = a_record(first + 2, epoch=2)
        assert await store.commit(name, Position(1, first + 4), back, TERMS, continues=True) is None
        assert await kept(store, name) == (first + 1,)

    async def test_only_checkpoints_are_loaded_as_such(self, store: StateStore) -> None:
        """There is none of the present step, of a step between two, of a step to come, or of an unknown sequence."""
        name = await grown(store, [1, 4, 7], keep=5)
        for step in (0, 2, 7, 8, POSITION_MAX):
            assert await store.load_checkpoint(name, step) is Absence.UNKNOWN
        assert await store.load_checkpoint(a_name(), 1) is Absence.UNKNOWN

    async def test_a_checkpoint_has_the_times_of_its_sequence(self, store: StateStore, lapse: Lapse) -> None:
        """It expires and is forgotten when the sequence is, however old it is itself."""
        name = await grown(store, [1], terms=BUSY)
        await lapse(50 * SECOND, name)
        await store.commit(name, Position(1, 1), a_record(2), BUSY, keep=5)
        for past, expired in ((0, False), (50, False), (20, True), (4 * 60, True)):
            await lapse(past * SECOND, name)
            stored, checkpoint = await found(store, name), await store.load_checkpoint(name, 1)
            assert isinstance(checkpoint, Stored)
            assert (stored.expired, checkpoint.expired) == (expired, expired)
            assert checkpoint.expires_at == stored.expires_at
        await lapse(2 * MINUTE, name)
        assert await store.load_checkpoint(name, 1) is Absence.UNKNOWN

    async def test_sizes_are_those_of_each_record(self, store: StateStore) -> None:
        """What is told as the size of a record has nothing of the checkpoints in it."""
        name, alone = a_name(), a_name()
        await store.commit(name, None, a_record(1, width=1000), TERMS)
        await store.commit(name, Position(1, 1), a_record(2), TERMS, keep=5)
        await store.commit(alone, None, a_record(2), TERMS)
        assert (await found(store, name)).size_bytes == (await found(store, alone)).size_bytes
        wide = await store.load_checkpoint(name, 1)
        assert isinstance(wide, Stored)
        assert wide.size_bytes > 8000

    async def test_a_conflict_tells_the_checkpoints_and_changes_none(self, store: StateStore, lapse: Lapse) -> None:
        """A commit that is not made leaves all of them, expired or not, and says which there are."""
        name = await grown(store, [1, 2, 3], keep=5, terms=BUSY)
        for record in (a_record(2), a_record(4), a_record(4, ended=True), a_record(0, epoch=2)):
            assert told(await store.commit(name, Position(1, 2), record, BUSY, keep=1)).checkpoints == (1, 2)
        await lapse(MINUTE + 10 * SECOND, name)
        assert told(await store.commit(name, Position(1, 3), a_record(4), BUSY, keep=1)).checkpoints == (1, 2)
        assert await kept(store, name) == (1, 2)

    async def test_one_of_two_racing_resumes_wins(self, store: StateStore, other: StateStore) -> None:
        """Two replicas resume at the same time: one has the sequence, the other is told of it."""
        for _ in range(10):
            name = await grown(store, [1, 2], keep=2)
            outcomes = await asyncio.gather(
                store.commit(name, Position(1, 2), a_record(2, epoch=2), TERMS, continues=True),
                other.commit(name, Position(1, 2), a_record(2, epoch=3), TERMS, continues=True),
            )
            assert outcomes.count(None) == 1
            loser = next(conflict for conflict in outcomes if conflict is not None)
            assert told(loser).record.position == Position(2 if outcomes[0] is None else 3, 2)
            assert await kept(store, name) == (1,)
