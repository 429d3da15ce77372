"""Breaks of a stream whose replies run ahead of the store: what the client sends again."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import pytest
from grpc import StatusCode
from hypothesis import given, settings
from hypothesis import strategies as st
from statestream import AsyncClient, AsyncSentimentStream, Durability, ReplayBounds, RetryPolicy, StreamStats, errors

from tests.kit.breaks import CONFLICT, DIES, DIES_AFTER, FULL, GO_AWAY, GONE, REPLY_LOST, RESET
from tests.kit.client_time import FakeTime
from tests.kit.fake_sentiment import Close, Fail, FakeSentiment, Fault, Silence, StoredSequence, serving

if TYPE_CHECKING:
    from grpc import aio

WORDS = [f"w{number} " for number in range(12)]


@pytest.fixture
def fake() -> FakeSentiment:
    """A server that commits the first and the last step only, until it is made to."""
    return FakeSentiment(commit_every=0)


async def over(stream: AsyncSentimentStream) -> None:
    """Returns when the client knows that the call under the stream has ended."""
    call = cast("aio.Call", stream._link._call)
    await call.code()


def text(count: int) -> bytes:
    """The first so many words."""
    return "".join(WORDS[:count]).encode()


@pytest.mark.parametrize("fault", [DIES, DIES_AFTER])
async def test_what_was_not_committed_is_sent_again(
    stream: AsyncSentimentStream, fake: FakeSentiment, fault: Fault
) -> None:
    """A replica dies with three answered steps: they are sent again, in order, and nobody but the stats tells."""
    fake.faults.append(fault)
    update = await stream.send(WORDS[4])
    assert (update.header.step, update.sentiment.word_count) == (4, 5)
    assert fake.store["s"].text == text(5)
    assert fake.steps == [0, 1, 2, 3, 4, 1, 2, 3, 4]
    assert [(config.start, config.resume) for config in fake.configs] == [(True, False), (False, True)]
    assert stream.stats == StreamStats(reconnects=1, replayed_steps=3)


@pytest.mark.parametrize("fault", [GONE, REPLY_LOST, Close(), RESET, CONFLICT])
async def test_what_the_server_still_has_is_not_sent_again(
    stream: AsyncSentimentStream, fake: FakeSentiment, fault: Fault
) -> None:
    """Where the connection alone broke only the step without a reply is repeated, and it is applied once."""
    fake.faults.append(fault)
    assert (await stream.send(WORDS[4])).sentiment.word_count == 5
    assert fake.store["s"].text == text(5)
    assert fake.steps == [0, 1, 2, 3, 4, 4]
    assert stream.stats == StreamStats(reconnects=1)


async def test_the_server_is_told_what_the_client_was_told(stream: AsyncSentimentStream, fake: FakeSentiment) -> None:
    """Epoch and committed step of one reply, so that the server can see whether its store is older."""
    fake.faults.extend([DIES, DIES])
    await stream.send(WORDS[4])
    first, second = fake.configs[1:]
    assert (first.epoch, first.committed_step, first.start_key) == (1, 0, "")
    assert (second.epoch, second.committed_step) == (2, 0)


async def test_the_server_is_told_which_history_is_held(stream: AsyncSentimentStream, fake: FakeSentiment) -> None:
    """So that it can refuse the stream instead of taking the sequence from whoever is on it now."""
    fake.faults.append(GONE)
    await stream.send(WORDS[4])
    assert fake.configs[1].next_step == 4
    assert fake.configs[1].history_digest == fake.store["s"].digest(4)


async def test_commits_are_learnt_from_replies(client: AsyncClient, fake: FakeSentiment) -> None:
    """What a reply says is committed is told on the next break, and is not sent again."""
    fake.commit_every = 3
    async with client.sentiment.stream("s") as stream:
        for word in WORDS[:8]:
            await stream.send(word)
        fake.faults.append(DIES)
        await stream.send(WORDS[8])
    assert fake.configs[1].committed_step == 5
    assert fake.steps[9:] == [6, 7, 8]
    assert fake.store["s"].text == text(9)


@pytest.mark.parametrize("fault", [GONE, REPLY_LOST, DIES_AFTER, Close()])
async def test_a_break_while_it_resumes_is_a_break(
    stream: AsyncSentimentStream, fake: FakeSentiment, fault: Fault
) -> None:
    """The first response of the new call may be lost, too."""
    fake.faults.append(DIES)
    fake.opening_faults.extend([fault, fault])
    await stream.send(WORDS[4])
    assert fake.store["s"].text == text(5)
    assert stream.stats.reconnects == 1


@pytest.mark.parametrize("fault", [GONE, REPLY_LOST, DIES, DIES_AFTER])
async def test_a_break_while_it_replays_is_a_break(
    stream: AsyncSentimentStream, fake: FakeSentiment, fault: Fault
) -> None:
    """Steps that are sent again may be lost again: nothing is applied twice, and nothing is missing."""
    fake.faults.extend([DIES, None, fault])
    assert (await stream.send(WORDS[4])).sentiment.word_count == 5
    assert fake.store["s"].text == text(5)
    assert stream.stats.reconnects == 2


@pytest.mark.parametrize("fault", [GONE, REPLY_LOST, DIES, DIES_AFTER, Close()])
async def test_a_break_at_the_end_is_a_break(stream: AsyncSentimentStream, fake: FakeSentiment, fault: Fault) -> None:
    """The reply to the last step is had, also where the sequence has ended meanwhile."""
    fake.faults.append(fault)
    update = await stream.send(WORDS[4], end=True)
    assert (update.final, update.sentiment.word_count) == (True, 5)
    assert stream.ended
    assert fake.store["s"].text == text(5)


async def test_a_go_away_while_nothing_is_under_way_costs_nothing(
    stream: AsyncSentimentStream, fake: FakeSentiment, time: FakeTime
) -> None:
    """The next step finds the call over, and resumes without a wait."""
    fake.faults.append(GO_AWAY)
    await stream.send(WORDS[4])
    await over(stream)
    await stream.send(WORDS[5])
    assert time.slept == []
    assert fake.steps == [0, 1, 2, 3, 4, 5]
    assert stream.stats == StreamStats(reconnects=1, go_aways=1)


async def test_a_go_away_under_a_step_is_mended(stream: AsyncSentimentStream, fake: FakeSentiment) -> None:
    """The step that the draining server did not take is taken elsewhere."""
    fake.faults.append(Fail(StatusCode.UNAVAILABLE, "DRAINING"))
    await stream.send(WORDS[4])
    assert fake.store["s"].text == text(5)
    assert stream.stats == StreamStats(reconnects=1, go_aways=1)


async def test_one_time_out_covers_all_of_it(stream: AsyncSentimentStream, fake: FakeSentiment) -> None:
    """A replay that hangs ends at the deadline of the step; the next try goes on from where the server stands."""
    fake.faults.extend([DIES, None, Silence()])
    with pytest.raises(errors.DeadlineExceeded):
        await stream.send(WORDS[4], timeout_s=0.2)
    assert (await stream.send(WORDS[4])).sentiment.word_count == 5
    assert fake.store["s"].text == text(5)


async def test_sequences_that_nothing_commits_go_on_at_their_replica(client: AsyncClient, fake: FakeSentiment) -> None:
    """Durability NONE: there is no committed step to tell of, and the replica still has the sequence."""
    async with client.sentiment.stream("s", durability=Durability.NONE) as stream:
        await stream.send(WORDS[0])
        fake.faults.append(GONE)
        assert (await stream.send(WORDS[1])).header.committed_step is None
    assert not fake.configs[1].HasField("committed_step")
    assert fake.steps == [0, 1, 1]


async def test_taking_up_commits_and_takes_over(client: AsyncClient, fake: FakeSentiment) -> None:
    """`resume=True` tells the next step on entering, and asks nothing else."""
    async with client.sentiment.stream("s") as stream:
        for word in WORDS[:3]:
            await stream.send(word)
    fake.opening_faults.append(GONE)
    async with client.sentiment.stream("s", resume=True) as again:
        assert again.next_step == 3
        assert not fake.configs[-1].HasField("committed_step")
        fake.faults.append(DIES)
        assert (await again.send(WORDS[3])).sentiment.word_count == 4
    assert again.stats.replayed_steps == 0
    assert fake.store["s"].text == text(4)


async def test_another_replica_goes_on_with_nothing_lost() -> None:
    """The replica with the uncommitted steps is gone for good: the other one is fed them."""
    store: dict[str, StoredSequence] = {}
    fakes = [FakeSentiment(store, commit_every=0) for _ in range(2)]
    servers = [serving(fake) for fake in fakes]
    addresses = [await server.__aenter__() for server in servers]
    client = AsyncClient("ipv4:" + ",".join(addresses), timing=FakeTime().timing)
    async with client, client.sentiment.stream("s") as stream:
        for word in WORDS[:4]:
            await stream.send(word)
        dying = 0 if fakes[0].pieces else 1
        await servers[dying].__aexit__(None, None, None)
        store["s"].roll_back(1)
        assert (await stream.send(WORDS[4])).sentiment.word_count == 5
        await stream.end()
    await servers[1 - dying].__aexit__(None, None, None)
    assert store["s"].text == text(5)
    assert fakes[1 - dying].steps == [1, 2, 3, 4, 5]


BREAKS = st.sampled_from([None, GONE, REPLY_LOST, DIES, DIES_AFTER, GO_AWAY, RESET, CONFLICT, FULL, Close()])


@given(
    faults=st.lists(BREAKS, max_size=14),
    opening_faults=st.lists(BREAKS.filter(lambda fault: fault is not CONFLICT), max_size=4),
    closing_faults=st.lists(BREAKS, max_size=2),
    words=st.integers(1, 12),
    commit_every=st.integers(0, 4),
    slack=st.integers(0, 4),
    end=st.booleans(),
)
@settings(max_examples=80, deadline=None)
async def test_whatever_breaks_the_text_arrives_once(
    *,
    faults: list[Fault | None],
    opening_faults: list[Fault | None],
    closing_faults: list[Fault | None],
    words: int,
    commit_every: int,
    slack: int,
    end: bool,
) -> None:
    """Under any mix of breaks each step is applied once, in order, and all are in the store when the stream is left."""
    fake, time = FakeSentiment(commit_every=commit_every), FakeTime()
    fake.faults.extend(faults)
    fake.opening_faults.extend(opening_faults)
    fake.closing_faults.extend(closing_faults)
    policy = RetryPolicy(attempts_max=len(faults) + len(opening_faults) + len(closing_faults) + 1)
    async with serving(fake) as address:
        client = AsyncClient(
            address, timing=time.timing, retry=policy, replay=ReplayBounds(slack_steps=slack), timeout_s=60.0
        )
        async with client, client.sentiment.stream("s") as stream:
            updates = [await stream.send(word) for word in WORDS[:words]]
            if end:
                updates.append(await stream.end())
    found = fake.store["s"]
    found.roll_back(found.committed)
    assert found.text == text(words)
    assert found.ended == end
    assert [update.sentiment.word_count for update in updates[:words]] == list(range(1, words + 1))
    assert stream.stats.losses == 0
