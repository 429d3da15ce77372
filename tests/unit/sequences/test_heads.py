"""Durability CHECKPOINT: replies leave at once, commits follow, and nobody commits over another."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from services.runtime.core.errors import (
    CapacityExceeded,
    SequenceEnded,
    SequenceExpired,
    StepConflict,
    StepContentMismatch,
    StepOutOfOrder,
    StoreUnavailable,
)
from services.runtime.core.ids import SequenceName
from services.runtime.state.types import Durability
from tests.kit.ahead import NAME, Ahead, HandStore, play, sums

if TYPE_CHECKING:
    from tests.kit.virtual_time import VirtualTimeLoop


def test_replies_leave_before_the_commit() -> None:
    """The start is in the store when it is answered, further steps within the interval, and in one commit."""

    async def scenario(loop: VirtualTimeLoop, store: HandStore) -> None:
        stream = Ahead(loop, store).stream()
        assert await stream.start() == b"0:1"
        assert await store.step() == 1
        assert await stream.steps(1, 5) == sums(1, 5)
        assert await store.step() == 1
        await asyncio.sleep(0.11)
        assert await store.step() == 6
        assert len(store.commit_times) == 2

    play(scenario)


def test_many_steps_do_not_wait_for_the_interval() -> None:
    """After `commit_steps` the commit leaves at once."""

    async def scenario(loop: VirtualTimeLoop, store: HandStore) -> None:
        stream = Ahead(loop, store, commit_interval_ms=10_000.0).stream()
        await stream.start()
        await stream.steps(1, 8)
        await asyncio.sleep(0.01)
        assert await store.step() == 9

    play(scenario)


def test_commits_of_many_sequences_travel_together() -> None:
    """All that is due is sent in one turn, so a store can put it into one write."""

    async def scenario(loop: VirtualTimeLoop, store: HandStore) -> None:
        replica = Ahead(loop, store)
        for number in range(10):
            stream = replica.stream(NAME._replace(sequence_id=str(number)))
            await stream.start()
            await stream.take(1)
        del store.commit_times[:]
        await asyncio.sleep(0.2)
        assert len(store.commit_times) == 10
        assert len(set(store.commit_times)) == 1

    play(scenario)


def test_the_last_step_is_committed_before_its_reply() -> None:
    """What ends is in the store when the client knows it, with all before it."""

    async def scenario(loop: VirtualTimeLoop, store: HandStore) -> None:
        stream = Ahead(loop, store).stream()
        await stream.start()
        await stream.steps(1, 3)
        assert await stream.take(4, end=True) == b"4:5"
        record = await store.record()
        assert (record.position.step, record.ended) == (5, True)
        with pytest.raises(SequenceEnded):
            await stream.take(5)
        assert await stream.take(4, end=True) == b"4:5"

    play(scenario)


def test_a_step_taken_before_is_answered_again() -> None:
    """Also while it is not committed; with other content it is refused."""

    async def scenario(loop: VirtualTimeLoop, store: HandStore) -> None:
        stream = Ahead(loop, store).stream()
        await stream.start()
        await stream.steps(1, 3)
        assert await stream.take(3) == b"3:4"
        with pytest.raises(StepContentMismatch):
            await stream.take(3, content="other")
        with pytest.raises(StepOutOfOrder):
            await stream.take(9)
        assert await stream.take(4) == b"4:5"

    play(scenario)


def test_who_resumes_elsewhere_fences_the_replica_before() -> None:
    """What the first replica had not committed is never committed, and its stream is told so."""

    async def scenario(loop: VirtualTimeLoop, store: HandStore) -> None:
        a, b = Ahead(loop, store), Ahead(loop, store)
        first, second = a.stream(), b.stream()
        await first.start()
        await first.steps(1, 4)
        assert await second.resume() == 1
        assert await second.take(1, content="other") == b"1:2"
        await asyncio.sleep(1)
        with pytest.raises(StepConflict):
            await first.take(5)
        assert await store.step() == 2
        with pytest.raises(StepContentMismatch):
            await first.take(1)

    play(scenario)


def test_who_resumes_at_the_same_replica_finds_every_step() -> None:
    """What was not committed is committed then; the stream before it can take no further step."""

    async def scenario(loop: VirtualTimeLoop, store: HandStore) -> None:
        replica = Ahead(loop, store)
        first, second = replica.stream(), replica.stream()
        await first.start()
        await first.steps(1, 4)
        assert await second.resume() == 5
        assert await store.step() == 5
        with pytest.raises(StepConflict):
            await first.take(5)
        assert await second.steps(5, 2) == sums(5, 2)

    play(scenario)


def test_a_head_that_was_left_behind_keeps_nobody_from_the_last_reply() -> None:
    """The sequence went on elsewhere and ended there: back here, its end is found in the store."""

    async def scenario(loop: VirtualTimeLoop, store: HandStore) -> None:
        a, b = Ahead(loop, store), Ahead(loop, store)
        first, second, third = a.stream(), b.stream(), a.stream()
        await first.start()
        await second.resume()
        assert await second.take(1, end=True) == b"1:2"
        assert await third.resume() == 2
        assert await third.take(1, end=True) == b"1:2"

    play(scenario)


def test_a_stream_that_does_not_ask_resumes_all_the_same() -> None:
    """Continuing such a sequence without `resume` fences as well: it is the only way to run ahead safely."""

    async def scenario(loop: VirtualTimeLoop, store: HandStore) -> None:
        a, b = Ahead(loop, store), Ahead(loop, store)
        first, second = a.stream(), b.stream()
        await first.start()
        await first.steps(1, 2)
        await asyncio.sleep(0.2)
        assert await second.take(3) == b"3:4"
        await first.take(3, content="other")
        await asyncio.sleep(0.2)
        with pytest.raises(StepConflict):
            await first.take(4)

    play(scenario)


def test_a_repeated_start_does_not_own_the_sequence() -> None:
    """Answered from what is kept at another replica, the stream there takes the sequence up before it goes on."""

    async def scenario(loop: VirtualTimeLoop, store: HandStore) -> None:
        a, b = Ahead(loop, store), Ahead(loop, store)
        first, second = a.stream(), b.stream()
        await first.start()
        assert await second.start() == b"0:1"
        assert await second.steps(1, 3) == sums(1, 3)
        await first.take(1, content="other")
        await asyncio.sleep(1)
        with pytest.raises(StepContentMismatch):
            await first.take(2, content="other")
        assert await store.step() == 4

    play(scenario)


def test_a_store_that_is_gone_is_waited_for_within_the_bound() -> None:
    """Steps go on up to the bound, then they are refused; when the store is back nothing is missing."""

    async def scenario(loop: VirtualTimeLoop, store: HandStore) -> None:
        stream = Ahead(loop, store).stream()
        await stream.start()
        store.down = True
        assert await stream.steps(1, 12) == sums(1, 12)
        with pytest.raises(StoreUnavailable):
            await stream.take(13)
        store.down = False
        assert await stream.take(13) == b"13:14"
        await asyncio.sleep(0.2)
        assert await store.step() == 14

    play(scenario)


@pytest.mark.parametrize("how", ["ended", "started", "expired"])
def test_what_happened_elsewhere_is_told(how: str) -> None:
    """Ended, started anew or expired in the store: the stream here is told which, at the latest one step on."""

    async def scenario(loop: VirtualTimeLoop, store: HandStore) -> None:
        a, b = Ahead(loop, store), Ahead(loop, store)
        stream = a.stream()
        await stream.start()
        expected: Any = StepConflict
        if how == "ended":
            await b.sequences.end(NAME)
            expected = SequenceEnded
        elif how == "started":
            await b.stream().take(0, start=True, content="other")
        else:
            await asyncio.sleep(3700)
            expected = SequenceExpired
        if how != "expired":
            await stream.take(1)
            await asyncio.sleep(0.2)
        with pytest.raises(expected):
            await stream.take(2)

    play(scenario)


@pytest.mark.parametrize("durability", [Durability.STEP, Durability.CHECKPOINT])
def test_a_reply_too_large_to_keep_is_computed_again(durability: Durability) -> None:
    """From the carry before it, at any replica, and only for the same content."""

    async def scenario(loop: VirtualTimeLoop, store: HandStore) -> None:
        replica = Ahead(loop, store, reply_bytes_max=2)
        stream = replica.stream(durability=durability)
        await stream.start()
        assert await stream.steps(1, 3) == sums(1, 3)
        await replica.sequences.settle(NAME)
        assert all(not reply.reply for reply in (await store.record()).replies)
        other = Ahead(loop, store, reply_bytes_max=2).stream(durability=durability)
        assert await other.resume() == 4
        assert await other.take(3) == b"3:4"
        with pytest.raises(StepContentMismatch):
            await other.take(3, content="other")
        with pytest.raises(StepOutOfOrder):
            await other.take(2)
        assert await other.take(4) == b"4:5"
        assert await other.take(5, end=True) == b"5:6"
        assert await other.take(5, end=True) == b"5:6"

    play(scenario)


def test_heads_are_bounded() -> None:
    """One that is committed gives way and its sequence goes on; where all run ahead a further one is refused."""

    async def scenario(loop: VirtualTimeLoop, store: HandStore) -> None:
        replica = Ahead(loop, store, heads_max=2)
        streams = [replica.stream(SequenceName("t", "toy", str(number))) for number in range(3)]
        for stream in streams:
            await stream.start()
        assert [await stream.take(1) for stream in streams[:2]] == [b"1:2", b"1:2"]
        with pytest.raises(CapacityExceeded):
            await streams[2].take(1)
        await asyncio.sleep(0.2)
        assert await streams[2].take(1) == b"1:2"

    play(scenario)


def test_an_expired_sequence_can_be_started_again_alike() -> None:
    """The same first step without a key is a retry while the sequence lives, and a new start afterwards."""

    async def scenario(loop: VirtualTimeLoop, store: HandStore) -> None:
        stream = Ahead(loop, store).stream()
        await stream.take(0, start=True)
        before = await store.record()
        await asyncio.sleep(3700)
        assert await Ahead(loop, store).stream().take(0, start=True) == b"0:1"
        assert (await store.record()).position.epoch > before.position.epoch

    play(scenario)


def test_commits_of_very_many_sequences_take_turns() -> None:
    """No turn of the loop begins more than some hundreds; all are committed all the same."""

    async def scenario(loop: VirtualTimeLoop, store: HandStore) -> None:
        replica = Ahead(loop, store, commit_interval_ms=60_000.0)
        names = [NAME._replace(sequence_id=str(number)) for number in range(300)]
        for name in names:
            stream = replica.stream(name)
            await stream.start()
            await stream.take(1)
        replica.sequences._heads._on_tick()
        assert sum(head.flight is not None for head in replica.sequences._heads._heads.values()) == 256
        await asyncio.sleep(0.1)
        assert {await store.step(name) for name in names} == {2}

    play(scenario)


def test_closing_commits_everything() -> None:
    """A replica that stops in good order leaves nothing behind."""

    async def scenario(loop: VirtualTimeLoop, store: HandStore) -> None:
        replica = Ahead(loop, store)
        stream = replica.stream()
        await stream.start()
        await stream.steps(1, 3)
        assert replica.sequences.uncommitted == 3
        await replica.sequences.close()
        assert (await store.step(), replica.sequences.uncommitted) == (4, 0)

    play(scenario)


def test_checkpoints_are_kept_at_even_distances() -> None:
    """The two youngest, so many steps apart as configured, whatever the commits carried."""

    async def scenario(loop: VirtualTimeLoop, store: HandStore) -> None:
        stream = Ahead(loop, store, checkpoint_steps=10).stream(durability=Durability.STEP)
        await stream.start()
        await stream.steps(1, 34)
        found = await store.load(NAME)
        assert found.checkpoints == (20, 30)
        assert found.record.position.step == 35

    play(scenario)
