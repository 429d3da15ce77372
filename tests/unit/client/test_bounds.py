"""How much a stream keeps, and what it does where that is not enough."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from grpc import StatusCode
from statestream import AsyncClient, Durability, ReplayBounds, RetryPolicy, errors

from tests.kit.breaks import DIES, GONE
from tests.kit.fake_sentiment import Fail, FakeSentiment

if TYPE_CHECKING:
    from tests.kit.client_time import FakeTime

WORDS = [f"w{number} " for number in range(20)]
STORE_AWAY = Fail(StatusCode.UNAVAILABLE, "STORE_UNAVAILABLE")


@pytest.fixture
def fake() -> FakeSentiment:
    """A server that commits the first and the last step only, until it is made to."""
    return FakeSentiment(commit_every=0)


@pytest.mark.parametrize("bounds", [ReplayBounds(steps_max=4), ReplayBounds(bytes_max=30)])
async def test_the_server_is_made_to_commit_before_the_bound_is_passed(
    client: AsyncClient, fake: FakeSentiment, time: FakeTime, bounds: ReplayBounds
) -> None:
    """The stream is closed in good order and resumed, and the user sees nothing of it."""
    async with client.sentiment.stream("s", replay=bounds) as stream:
        for word in WORDS:
            await stream.send(word)
            assert stream._link.buffer.uncommitted <= 4
        reconnects = stream.stats.reconnects
    assert 3 <= reconnects <= 10
    assert fake.clean_ends == reconnects + 1
    assert (stream.stats.replayed_steps, time.slept) == (0, [])
    assert fake.store["s"].text == "".join(WORDS).encode()


async def test_bounds_of_the_client_count_for_its_streams(address: str, fake: FakeSentiment) -> None:
    """Unless a stream has its own."""
    async with (
        AsyncClient(address, replay=ReplayBounds(steps_max=2)) as client,
        client.sentiment.stream("a") as narrow,
        client.sentiment.stream("b", replay=ReplayBounds()) as wide,
    ):
        for word in WORDS:
            await narrow.send(word)
            await wide.send(word)
        assert (narrow.stats.reconnects > 5, wide.stats.reconnects) == (True, 0)


async def test_a_server_that_commits_by_itself_is_never_asked(client: AsyncClient, fake: FakeSentiment) -> None:
    """As long as commits keep up, bounds much smaller than the sequence change nothing."""
    fake.commit_every = 3
    async with client.sentiment.stream("s", replay=ReplayBounds(steps_max=4, slack_steps=2)) as stream:
        for word in WORDS:
            await stream.send(word)
        assert stream.stats.reconnects == 0


@pytest.mark.parametrize("fault", [STORE_AWAY, GONE])
async def test_where_nothing_can_be_committed_the_step_is_not_sent(
    address: str, fake: FakeSentiment, time: FakeTime, fault: Fail
) -> None:
    """A typed error says so, nothing is lost, and the same step is taken as soon as the server commits again."""
    policy = RetryPolicy(attempts_max=3)
    async with (
        AsyncClient(address, timing=time.timing, retry=policy) as client,
        client.sentiment.stream("s", replay=ReplayBounds(steps_max=4)) as stream,
    ):
        for word in WORDS[:5]:
            await stream.send(word)
        for _ in range(2):
            fake.opening_faults.extend([fault] * 3)
            with pytest.raises(errors.ReplayBufferFull) as caught:
                await stream.send(WORDS[5])
            assert isinstance(caught.value.__cause__, errors.Unavailable)
            assert stream.next_step == 5
        assert fake.steps == [0, 1, 2, 3, 4]
        for word in WORDS[5:]:
            await stream.send(word)
    assert fake.store["s"].text == "".join(WORDS).encode()


async def test_a_server_that_resumes_and_commits_nothing_is_not_fed_further(
    client: AsyncClient, fake: FakeSentiment
) -> None:
    """The replica dies when it is asked: what is fed again fills the bound, so this step has to wait for the next."""
    fake.closing_faults.append(DIES)
    async with client.sentiment.stream("s", replay=ReplayBounds(steps_max=4)) as stream:
        for word in WORDS[:5]:
            await stream.send(word)
        with pytest.raises(errors.ReplayBufferFull):
            await stream.send(WORDS[5])
        assert (await stream.send(WORDS[5])).header.step == 5
    assert fake.steps == [0, 1, 2, 3, 4, 1, 2, 3, 4, 5]


async def test_one_piece_may_be_larger_than_the_bound(client: AsyncClient, fake: FakeSentiment) -> None:
    """It is taken where nothing else waits to be committed, which the stream sees to."""
    async with client.sentiment.stream("s", replay=ReplayBounds(bytes_max=50)) as stream:
        for word in ("one ", "long " * 100, "two ", "longer " * 100, "three "):
            await stream.send(word)
    assert fake.store["s"].text.split()[-1] == b"three"


async def test_what_nothing_commits_is_never_refused(client: AsyncClient, fake: FakeSentiment) -> None:
    """Durability NONE: the oldest steps go, and the sequence can be fed again while all of it is held."""
    async with client.sentiment.stream("s", durability=Durability.NONE, replay=ReplayBounds(steps_max=4)) as stream:
        for word in WORDS[:4]:
            await stream.send(word)
        del fake.store["s"]
        for word in WORDS[4:]:
            await stream.send(word)
        assert stream.stats.replayed_steps == 4
        del fake.store["s"]
        with pytest.raises(errors.SequenceLost) as caught:
            await stream.send("more ")
        assert caught.value.oldest_step == 16
