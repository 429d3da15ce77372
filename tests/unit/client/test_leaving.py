"""Leaving a stream: what was answered is committed, or the caller is told."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from grpc import StatusCode
from statestream import AsyncClient, RetryPolicy, StreamStats, errors

from tests.kit.breaks import DIES, DIES_AFTER, GONE, REPLY_LOST
from tests.kit.fake_sentiment import Fail, FakeSentiment, Fault

if TYPE_CHECKING:
    from tests.kit.client_time import FakeTime

WORDS = [f"w{number} " for number in range(12)]


@pytest.fixture
def fake() -> FakeSentiment:
    """A server that commits the first and the last step only, until it is made to."""
    return FakeSentiment(commit_every=0)


def text(count: int) -> bytes:
    """The first so many words."""
    return "".join(WORDS[:count]).encode()


async def test_leaving_commits_what_was_answered(client: AsyncClient, fake: FakeSentiment) -> None:
    """Closing the stream is enough, where nothing breaks."""
    async with client.sentiment.stream("s") as stream:
        for word in WORDS[:4]:
            await stream.send(word)
    assert fake.store["s"].committed == 4
    assert stream.stats == StreamStats()


@pytest.mark.parametrize("fault", [GONE, DIES, DIES_AFTER, REPLY_LOST])
async def test_leaving_does_not_lose_what_was_answered(client: AsyncClient, fake: FakeSentiment, fault: Fault) -> None:
    """The replica dies while the stream is closed: the sequence is taken up elsewhere, and then closed."""
    fake.closing_faults.append(fault)
    async with client.sentiment.stream("s") as stream:
        for word in WORDS[:4]:
            await stream.send(word)
    fake.store["s"].roll_back(fake.store["s"].committed)
    assert fake.store["s"].text == text(4)
    assert stream.stats.reconnects == 1


async def test_leaving_after_a_break_commits_too(client: AsyncClient, fake: FakeSentiment) -> None:
    """A step was given up, and nothing is sent any more: what was answered before it is not lost."""
    fake.faults.extend([*[None] * 4, Fail(StatusCode.INVALID_ARGUMENT, "INVALID_INPUT", dies=True)])
    async with client.sentiment.stream("s") as stream:
        for word in WORDS[:4]:
            await stream.send(word)
        with pytest.raises(errors.InvalidInput):
            await stream.send("bad")
    assert fake.store["s"].text == text(4)
    assert fake.store["s"].committed == 4


async def test_leaving_tells_what_could_not_be_committed(address: str, fake: FakeSentiment, time: FakeTime) -> None:
    """Steps that were answered are not given up silently."""
    fake.closing_faults.append(GONE)
    fake.opening_faults.extend([GONE, GONE])
    policy = RetryPolicy(attempts_max=2)
    async with AsyncClient(address, timing=time.timing, retry=policy) as client:
        stream = await client.sentiment.stream("s").__aenter__()
        await stream.send(WORDS[0])
        await stream.send(WORDS[1])
        with pytest.raises(errors.Unavailable):
            await stream.__aexit__(None, None, None)
        with pytest.raises(RuntimeError, match="with"):
            await stream.send(WORDS[2])


async def test_leaving_a_sequence_that_somebody_ended_is_no_error(client: AsyncClient, fake: FakeSentiment) -> None:
    """Nothing is left that could be committed."""
    async with client.sentiment.stream("s") as stream:
        await stream.send(WORDS[0])
        await stream.send(WORDS[1])
        fake.closing_faults.append(GONE)
        await client.sequences.end("sentiment", "s")
