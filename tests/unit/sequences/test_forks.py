"""Forks: all or none, repeatable, and never over what somebody still uses."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from services.runtime.core.errors import (
    CheckpointNotFound,
    InvalidInput,
    SequenceEnded,
    SequenceExists,
    SequenceExpired,
    SequenceNotFound,
    StatestreamError,
    StoreUnavailable,
)
from services.runtime.state.types import Absence, Durability, Position
from tests.kit.lifecycle import TERMS, Bench, name, record, same_state

if TYPE_CHECKING:
    from services.runtime.core.ids import SequenceName
    from services.runtime.state.types import Record


@pytest.fixture
def bench() -> Bench:
    """A replica with an empty store."""
    return Bench()


def ended(step: int) -> Record:
    """A sequence after its last step."""
    return record(step, carry=None)


async def test_a_fork_goes_on_from_where_the_sequence_stands(bench: Bench) -> None:
    """New sequences have state, step, model, durability and history of the old one, and no reply; it stays as it is."""
    await bench.put("source", record(5, durability=Durability.CHECKPOINT))
    before = await bench.stored("source")
    made = await bench.lifecycle.fork(name("source"), None, ["a", "b"])
    assert await bench.stored("source") == before
    for new_id, told in zip(("a", "b"), made, strict=True):
        fork = await bench.stored(new_id)
        assert told == fork
        assert same_state(fork.record, before.record)
        assert fork.record.replies == ()
        assert fork.record.position.epoch == int(bench.clock.wall() * 1e6)
    assert bench.counted("sequence_forked") == 2


async def test_a_fork_from_a_checkpoint_leaves_out_what_came_after(bench: Bench) -> None:
    """The new sequence stands where the old one stood; a point that is not kept is refused with those that are."""
    await bench.put("source", record(2), record(5), record(7))
    [told] = await bench.lifecycle.fork(name("source"), 5, ["a"])
    assert same_state(told.record, record(5))
    with pytest.raises(CheckpointNotFound) as caught:
        await bench.lifecycle.fork(name("source"), 6, ["b"])
    assert caught.value.metadata == {"checkpoint_steps": "2,5"}
    assert await bench.store.load(name("b")) is Absence.UNKNOWN


async def test_many_forks_are_made_at_once(bench: Bench) -> None:
    """As many as a call may ask for, answered in the order of their names."""
    await bench.put("source", record(3))
    new_ids = [f"fork-{number}" for number in range(64)]
    assert len(await bench.lifecycle.fork(name("source"), None, new_ids)) == 64
    for new_id in new_ids:
        assert same_state((await bench.stored(new_id)).record, record(3))


@pytest.mark.parametrize(
    ("new_ids", "field"),
    [
        ([], "new_sequence_ids"),
        ([f"fork-{number}" for number in range(65)], "new_sequence_ids"),
        (["a", ""], "new_sequence_ids[1]"),
        (["a\n"], "new_sequence_ids[0]"),
        (["a", "b", "a"], "new_sequence_ids[2]"),
        (["a", "source"], "new_sequence_ids[1]"),
    ],
)
async def test_names_that_cannot_be_forked_to_are_named(bench: Bench, new_ids: list[str], field: str) -> None:
    """None, too many, no name, twice the same, the source itself: bad input, and nothing is made."""
    await bench.put("source", record(1))
    with pytest.raises(InvalidInput) as caught:
        await bench.lifecycle.fork(name("source"), None, new_ids)
    assert caught.value.field == field
    assert bench.store.sequences == 1


async def test_a_live_name_is_not_forked_over(bench: Bench) -> None:
    """The field of the name that is taken is told, the sequence there is untouched, and no other fork is made."""
    await bench.put("source", record(3))
    await bench.put("taken", record(3))
    with pytest.raises(SequenceExists) as caught:
        await bench.lifecycle.fork(name("source"), None, ["a", "taken"])
    assert caught.value.field == "new_sequence_ids[1]"
    assert (await bench.stored("taken")).record.replies
    assert await bench.store.load(name("a")) is Absence.UNKNOWN


async def test_a_name_that_was_left_is_forked_over(bench: Bench) -> None:
    """What has ended or expired gives way, in a higher epoch."""
    await bench.put("gone", record(9, epoch=7))
    bench.clock.advance(61)
    await bench.put("source", record(3))
    future = int(bench.clock.wall() * 1e6) + 10**9
    await bench.put("over", replace(ended(2), position=Position(future, 2)))
    told = await bench.lifecycle.fork(name("source"), None, ["gone", "over"])
    assert all(same_state(found.record, record(3)) for found in told)
    assert told[1].record.position.epoch == future + 1


async def test_a_repeated_fork_finds_its_work_done(bench: Bench) -> None:
    """The same answer, nothing committed or counted anew, and forks that were missing are made."""
    await bench.put("source", record(3))
    once = await bench.lifecycle.fork(name("source"), 3, ["a"])
    again = await bench.lifecycle.fork(name("source"), 3, ["a", "b"])
    assert again[0] == once[0]
    assert bench.counted("sequence_forked") == 2


async def test_a_fork_that_was_used_is_not_taken_for_a_fresh_one(bench: Bench) -> None:
    """Once a step was taken on it, or where only its state differs, the name is taken."""
    await bench.put("source", record(3))
    await bench.put("moved", record(4))
    await bench.put("other", record(3, replies=(), carry=record(9).carry))
    for taken in ("moved", "other"):
        with pytest.raises(SequenceExists):
            await bench.lifecycle.fork(name("source"), None, [taken])


async def test_forks_made_before_a_race_was_lost_are_taken_back(bench: Bench) -> None:
    """Somebody starts a sequence under the last name meanwhile: that one stays, none of the forks does.

    Nor can one be revived by who has read it.
    """
    await bench.put("source", record(3))

    async def start_first(committed: SequenceName) -> None:
        if committed == name("c"):
            bench.store.before_commit = None
            await bench.put("c", record(1, epoch=10**18))

    bench.store.before_commit = start_first
    with pytest.raises(SequenceExists) as caught:
        await bench.lifecycle.fork(name("source"), None, ["a", "b", "c"])
    assert caught.value.field == "new_sequence_ids[2]"
    assert (await bench.stored("c")).record.position == (10**18, 1)
    for new_id in ("a", "b"):
        with pytest.raises(SequenceEnded):
            await bench.lifecycle.fork(name(new_id), None, ["d"])
        epoch = int(bench.clock.wall() * 1e6)
        assert await bench.store.commit(name(new_id), Position(epoch, 3), record(4, epoch=epoch), TERMS) is not None
    assert bench.counted("sequence_forked") == 0
    assert len(await bench.lifecycle.fork(name("source"), None, ["a", "b"])) == 2


async def test_the_same_fork_asked_for_twice_at_once_is_made_once(bench: Bench) -> None:
    """A client that repeats before the first answer has come gets the same sequences from both."""
    await bench.put("source", record(3))
    calls = [bench.lifecycle.fork(name("source"), None, ["a", "b"]) for _ in range(3)]
    first, *others = await asyncio.gather(*calls)
    assert others == [first, first]
    assert bench.counted("sequence_forked") == 2


async def test_a_fork_that_the_store_failed_is_completed_by_its_repeat(bench: Bench) -> None:
    """What was made before the store failed stays, for the repeat takes it as it is."""
    await bench.put("source", record(3))

    async def fail_last(committed: SequenceName) -> None:
        if committed == name("b"):
            raise StoreUnavailable("no answer")

    bench.store.before_commit = fail_last
    with pytest.raises(StoreUnavailable):
        await bench.lifecycle.fork(name("source"), None, ["a", "b"])
    first = await bench.stored("a")
    bench.store.before_commit = None
    told = await bench.lifecycle.fork(name("source"), None, ["a", "b"])
    assert told[0] == first
    assert not first.record.ended


async def test_a_volatile_sequence_has_volatile_forks(bench: Bench) -> None:
    """They stay in this replica's memory, also under a name that ended in the store."""
    await bench.put("over", ended(2))
    volatile = record(3, durability=Durability.NONE)
    assert await bench.sequences.replace(name("source"), None, volatile, continues=False) is None
    told = await bench.lifecycle.fork(name("source"), None, ["over", "new"])
    assert [found.record.durability for found in told] == [Durability.NONE] * 2
    assert (await bench.stored("over")).record.ended
    assert await bench.lifecycle.get(name("over")) == told[0]


@pytest.mark.parametrize(
    ("kind", "next_step", "error"),
    [
        ("none", None, SequenceNotFound),
        ("none", 3, SequenceNotFound),
        ("ended", None, SequenceEnded),
        ("ended", 4, SequenceEnded),
        ("ended", 3, CheckpointNotFound),
        ("expired", None, SequenceExpired),
        ("expired", 3, SequenceExpired),
    ],
)
async def test_what_is_over_is_not_forked(
    bench: Bench, kind: str, next_step: int | None, error: type[StatestreamError]
) -> None:
    """Unknown, ended and expired sequences each have their error; the checkpoints of an ended one are gone."""
    if kind != "none":
        await bench.put("source", record(3), ended(4) if kind == "ended" else record(4))
    if kind == "expired":
        bench.clock.advance(61)
    with pytest.raises(error):
        await bench.lifecycle.fork(name("source"), next_step, ["a"])
    with pytest.raises(error):
        await bench.lifecycle.export(name("source"), next_step)
