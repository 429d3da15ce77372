"""A store that came back older than it was: healed from memory, or told, and never taken for the work of another."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from services.runtime.core.errors import SequenceNotFound, StepContentMismatch, StepOutOfOrder
from services.runtime.sequences.contract import Told
from services.runtime.state.types import Durability
from tests.kit.ahead import NAME, Ahead, HandStore, play, sums

if TYPE_CHECKING:
    from tests.kit.virtual_time import VirtualTimeLoop


def test_a_commit_whose_answer_is_lost_is_no_loss() -> None:
    """The head finds its own record and goes on from it."""

    async def scenario(loop: VirtualTimeLoop, store: HandStore) -> None:
        replica = Ahead(loop, store)
        stream = replica.stream()
        await stream.start()
        store.deaf = True
        await stream.steps(1, 3)
        await asyncio.sleep(0.15)
        store.deaf = False
        await stream.steps(4, 3)
        await asyncio.sleep(0.3)
        assert await store.step() == 7
        assert "loss_detected" not in replica.events.seen

    play(scenario)


def test_a_store_that_came_back_older_is_healed() -> None:
    """A fail-over loses a second of commits; the replica still has them, and commits them again."""

    async def scenario(loop: VirtualTimeLoop, store: HandStore) -> None:
        replica = Ahead(loop, store)
        stream = replica.stream()
        await stream.start()
        old = await store.record()
        await stream.steps(1, 5)
        await asyncio.sleep(0.2)
        store.roll_back(old)
        await stream.take(6)
        await asyncio.sleep(0.2)
        assert await store.step() == 7
        assert replica.events.seen.count("loss_detected") == 1
        assert await Ahead(loop, store).stream().resume() == 7

    play(scenario)


def test_a_store_that_lost_the_fence_is_healed() -> None:
    """The epoch under which a stream resumed is lost with the rest: the resumed one counts all the same."""

    async def scenario(loop: VirtualTimeLoop, store: HandStore) -> None:
        a, b = Ahead(loop, store), Ahead(loop, store)
        first, second = a.stream(), b.stream()
        await first.start()
        old = await store.record()
        assert await second.resume() == 1
        store.roll_back(old)
        assert await second.steps(1, 3) == sums(1, 3)
        await asyncio.sleep(0.2)
        assert await store.step() == 4
        await first.take(1, content="other")
        await asyncio.sleep(0.2)
        with pytest.raises(StepContentMismatch):
            await first.take(2, content="other")

    play(scenario)


def test_a_sequence_that_the_store_lost_is_put_back() -> None:
    """Unless so much time has passed that somebody may have ended it and it was forgotten since."""

    async def scenario(loop: VirtualTimeLoop, store: HandStore) -> None:
        stream = Ahead(loop, store, retention_ms=60_000).stream()
        await stream.start()
        store.lose()
        await stream.take(1)
        await asyncio.sleep(0.2)
        assert await store.step() == 2
        store.lose()
        await asyncio.sleep(31)
        await stream.take(2)
        await asyncio.sleep(0.2)
        assert await store.step() == -1
        with pytest.raises(SequenceNotFound):
            await stream.take(3)

    play(scenario)


def test_steps_of_durability_step_are_healed_from_what_is_at_hand() -> None:
    """The record that a replica remembers takes the place of the older one that it came of."""

    async def scenario(loop: VirtualTimeLoop, store: HandStore) -> None:
        replica = Ahead(loop, store)
        stream = replica.stream(durability=Durability.STEP)
        await stream.start()
        await stream.take(1)
        old = await store.record()
        await stream.steps(2, 2)
        store.roll_back(old)
        assert await stream.take(4) == b"4:5"
        assert await store.step() == 5
        assert replica.events.seen.count("loss_detected") == 1

    play(scenario)


def test_another_branch_is_not_taken_for_a_loss() -> None:
    """Where the older store has gone on with other content, what is at hand does not replace it."""

    async def scenario(loop: VirtualTimeLoop, store: HandStore) -> None:
        a, b = Ahead(loop, store), Ahead(loop, store)
        stream, other = (replica.stream(durability=Durability.STEP) for replica in (a, b))
        await stream.start()
        old = await store.record()
        await stream.steps(1, 3)
        store.roll_back(old)
        assert await other.take(1, content="other") == b"1:2"
        with pytest.raises(StepOutOfOrder):
            await stream.take(4)
        assert await store.step() == 2

    play(scenario)


def test_a_client_is_told_of_a_loss() -> None:
    """Who resumes and was told of more than the store has is told so; who was told of less is not."""

    async def scenario(loop: VirtualTimeLoop, store: HandStore) -> None:
        replica = Ahead(loop, store)
        stream = replica.stream()
        await stream.start()
        old = await store.record()
        await stream.steps(1, 4)
        epoch = stream.epoch or 0
        await replica.sequences.settle(NAME)
        store.roll_back(old)
        fresh = Ahead(loop, store)
        standing = await fresh.sequences.take_up(NAME, Told(epoch, 4))
        assert (standing.lost, standing.record.position.step) == (True, 1)
        assert fresh.events.seen.count("loss_detected") == 1
        standing = await fresh.sequences.take_up(NAME, Told(standing.record.position.epoch, 0))
        assert not standing.lost

    play(scenario)
