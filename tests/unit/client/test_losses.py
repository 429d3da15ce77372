"""A store that has less than it had, and clients that share a sequence: what is sent again, and what is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from grpc import StatusCode
from statestream import AsyncClient, AsyncSentimentStream, Durability, ReplayBounds, StreamStats, errors

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


@pytest.mark.parametrize("kept", [1, 2])
async def test_a_store_that_came_back_older_is_fed_again(client: AsyncClient, fake: FakeSentiment, kept: int) -> None:
    """The server says that it lost what it had committed; the slack of the client has it."""
    fake.commit_every = 1
    async with client.sentiment.stream("s") as stream:
        for word in WORDS[:6]:
            await stream.send(word)
        fake.store["s"].roll_back(kept)
        fake.faults.append(GONE)
        assert (await stream.send(WORDS[6])).sentiment.word_count == 7
    assert fake.store["s"].text == text(7)
    assert fake.steps[7:] == list(range(kept, 7))
    assert stream.stats == StreamStats(reconnects=1, replayed_steps=6 - kept, losses=1)


async def test_a_loss_that_was_told_of_in_vain_is_seen_all_the_same(client: AsyncClient, fake: FakeSentiment) -> None:
    """The response that said "lost" is lost itself; the next one does not say so any more."""
    fake.commit_every = 1
    async with client.sentiment.stream("s") as stream:
        for word in WORDS[:6]:
            await stream.send(word)
        fake.store["s"].roll_back(2)
        fake.faults.append(GONE)
        fake.opening_faults.append(REPLY_LOST)
        await stream.send(WORDS[6])
    assert fake.store["s"].text == text(7)
    assert stream.stats.losses == 1


async def test_a_step_that_skips_ahead_shows_a_loss(client: AsyncClient, fake: FakeSentiment) -> None:
    """A store that lost writes under an open stream refuses the next step as out of order: the rest is sent again."""
    fake.commit_every = 1
    async with client.sentiment.stream("s") as stream:
        for word in WORDS[:4]:
            await stream.send(word)
        fake.store["s"].roll_back(1)
        await stream.send(WORDS[4])
    assert fake.store["s"].text == text(5)
    assert stream.stats.losses == 1


async def test_a_loss_beyond_what_is_held_is_told(client: AsyncClient, fake: FakeSentiment, time: FakeTime) -> None:
    """Which step the server needs and which the client has: nothing is sent, and asking again changes nothing."""
    fake.commit_every = 1
    async with client.sentiment.stream("s", replay=ReplayBounds(slack_steps=3)) as stream:
        for word in WORDS[:8]:
            await stream.send(word)
        fake.store["s"].roll_back(4)
        fake.faults.append(GONE)
        for _ in range(2):
            with pytest.raises(errors.SequenceLost) as caught:
                await stream.send(WORDS[8])
            assert (caught.value.next_step, caught.value.oldest_step) == (4, 5)
    assert fake.store["s"].text == text(4)
    assert fake.steps[9:] == []
    assert len(time.slept) == 1


async def test_a_sequence_that_is_gone_is_fed_anew(stream: AsyncSentimentStream, fake: FakeSentiment) -> None:
    """While all of it is held it begins anew, under another key, and goes on as if nothing had been."""
    key = fake.configs[0].start_key
    del fake.store["s"]
    fake.faults.append(GONE)
    assert (await stream.send(WORDS[4])).sentiment.word_count == 5
    assert fake.store["s"].text == text(5)
    assert fake.store["s"].start_key != key
    assert stream.stats == StreamStats(reconnects=1, replayed_steps=4, losses=1)
    fake.faults.append(DIES)
    assert (await stream.send(WORDS[5])).sentiment.word_count == 6


@pytest.mark.parametrize("fault", [GONE, REPLY_LOST, DIES_AFTER])
@pytest.mark.parametrize("at", [0, 2])
async def test_a_break_while_it_is_fed_anew_is_a_break(
    stream: AsyncSentimentStream, fake: FakeSentiment, fault: Fault, at: int
) -> None:
    """The new start is repeated with its key until it is answered; then it is resumed."""
    del fake.store["s"]
    fake.faults.extend([GONE, *[None] * at, fault])
    assert (await stream.send(WORDS[4])).sentiment.word_count == 5
    assert fake.store["s"].text == text(5)
    assert len({config.start_key for config in fake.configs if config.start}) == 2


async def test_a_sequence_that_is_fed_anew_keeps_its_model(client: AsyncClient, fake: FakeSentiment) -> None:
    """The version that its replies came from, whichever is the newest now."""
    async with client.sentiment.stream("s", durability=Durability.CHECKPOINT) as stream:
        await stream.send(WORDS[0])
        del fake.store["s"]
        await stream.send(WORDS[1])
    assert (fake.configs[0].model_version, fake.configs[0].durability) == ("", Durability.CHECKPOINT)
    assert (fake.configs[2].start, fake.configs[2].model_version) == (True, "1")
    assert fake.configs[2].durability == Durability.CHECKPOINT


async def test_a_sequence_that_is_gone_and_not_held_is_lost(client: AsyncClient, fake: FakeSentiment) -> None:
    """Steps that the client let go when they were committed cannot be sent again."""
    fake.commit_every = 1
    async with client.sentiment.stream("s", replay=ReplayBounds(slack_steps=2)) as stream:
        for word in WORDS[:4]:
            await stream.send(word)
        del fake.store["s"]
        with pytest.raises(errors.SequenceLost) as caught:
            await stream.send(WORDS[4])
    assert isinstance(caught.value.__cause__, errors.SequenceNotFound)
    assert (caught.value.next_step, caught.value.oldest_step) == (0, 2)
    assert fake.store == {}


async def test_an_expired_sequence_is_not_fed_anew(stream: AsyncSentimentStream, fake: FakeSentiment) -> None:
    """What the server dropped on purpose it is not made to take again."""
    fake.faults.append(Fail(StatusCode.NOT_FOUND, "SEQUENCE_EXPIRED"))
    with pytest.raises(errors.SequenceExpired):
        await stream.send(WORDS[4])
    assert len(fake.configs) == 1


async def test_another_client_that_went_further_is_noticed(client: AsyncClient, fake: FakeSentiment) -> None:
    """Somebody resumed the sequence and took more than one step: this stream does not go on."""
    async with client.sentiment.stream("s") as stream:
        await stream.send(WORDS[0])
        async with client.sentiment.stream("s", resume=True) as other:
            await other.send("theirs ")
            await other.send("too ")
        with pytest.raises(errors.StepConflict, match="another client"):
            await stream.send(WORDS[1])
    assert fake.store["s"].text == b"w0 theirs too "


async def test_another_history_is_noticed(stream: AsyncSentimentStream, fake: FakeSentiment) -> None:
    """As many steps as this stream took, but others: not even the step to come is sent."""
    found = fake.store["s"]
    found.replies[2] = found.replies[2]._replace(content=b"other ")
    fake.faults.append(GONE)
    with pytest.raises(errors.StepConflict, match="another history"):
        await stream.send(WORDS[4])
    assert fake.steps == [0, 1, 2, 3, 4]


async def test_a_rival_with_the_same_next_step_is_noticed(stream: AsyncSentimentStream, fake: FakeSentiment) -> None:
    """Another client took the step to come with the same content, but after others: the server knows which."""
    fake.knows_histories = True
    found = fake.store["s"]
    found.replies[2] = found.replies[2]._replace(content=b"other ")
    for step in (3, 4):
        del found.replies[step:]
        fake._applied("s", found, WORDS[step].encode(), end=False)
    fake.faults.append(GONE)
    with pytest.raises(errors.StepConflict):
        await stream.send(WORDS[4])
    assert fake.store["s"].text == b"w0 w1 other w3 w4 "


async def test_a_server_that_knows_of_a_rival_is_asked_once(
    client: AsyncClient, fake: FakeSentiment, time: FakeTime
) -> None:
    """It refuses to resume: the rival stays on the sequence, and asking again would change nothing."""
    fake.knows_histories = True
    async with client.sentiment.stream("s") as stream, client.sentiment.stream("s") as rival:
        await stream.send(WORDS[0])
        await rival.send(WORDS[0])
        with pytest.raises(errors.StepConflict):
            await stream.send(WORDS[1])
        assert len(time.slept) == 1
        await rival.send(WORDS[1])
        assert rival.stats.reconnects == 0


async def test_another_history_is_noticed_while_it_replays(stream: AsyncSentimentStream, fake: FakeSentiment) -> None:
    """A server that answers a repeated step with another history does not have this sequence."""
    fake.faults.append(DIES)
    fake.opening_faults.append(None)
    stream._link.buffer.since(2)[0].digest = b"of somebody else"
    with pytest.raises(errors.StepConflict, match="before step 3"):
        await stream.send(WORDS[4])


async def test_a_rewound_sequence_is_not_fed_again(client: AsyncClient, fake: FakeSentiment) -> None:
    """What somebody took back on purpose an open stream does not put there again."""
    fake.commit_every = 1
    async with client.sentiment.stream("s") as stream:
        for word in WORDS[:4]:
            await stream.send(word)
        fake.store["s"].checkpoints = [2]
        await client.sequences.rewind("sentiment", "s", 2)
        with pytest.raises(errors.StepConflict, match="another history"):
            await stream.send(WORDS[4])
    assert fake.store["s"].text == text(2)


async def test_a_sequence_ended_by_another_is_told(stream: AsyncSentimentStream, client: AsyncClient) -> None:
    """It takes no further step, not even a last one."""
    await client.sequences.end("sentiment", "s")
    for end in (False, True):
        with pytest.raises(errors.SequenceEnded):
            await stream.send(WORDS[4], end=end)


async def test_what_was_not_fed_here_cannot_be_fed_again(client: AsyncClient, fake: FakeSentiment) -> None:
    """A stream that took a sequence up holds none of the steps before."""
    async with client.sentiment.stream("s") as stream:
        for word in WORDS[:3]:
            await stream.send(word)
    async with client.sentiment.stream("s", resume=True) as again:
        fake.store["s"].roll_back(1)
        with pytest.raises(errors.SequenceLost) as caught:
            await again.send(WORDS[3])
    assert (caught.value.next_step, caught.value.oldest_step) == (1, 3)


async def test_a_zombie_can_do_no_harm(client: AsyncClient, fake: FakeSentiment) -> None:
    """Of two streams that hold the same history the second to go on finds out, and no step is applied twice."""
    async with client.sentiment.stream("s") as stream:
        await stream.send(WORDS[0])
        async with client.sentiment.stream("s", resume=True) as other:
            assert (await stream.send(WORDS[1])).header.step == 1
            with pytest.raises(errors.StepContentMismatch):
                await other.send("theirs ")
    assert fake.store["s"].text == text(2)
