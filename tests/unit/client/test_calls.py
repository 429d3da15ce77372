from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import grpc
import pytest
from grpc import StatusCode
from statestream import AsyncClient, Durability, Label, ModelVersion, Sentiment, SequenceStatus, errors

from tests.kit.fake_sentiment import Fail, FakeSentiment, Silence, StoredSequence, serving

if TYPE_CHECKING:
    from tests.kit.client_time import FakeTime

GONE = Fail(StatusCode.UNAVAILABLE)


async def test_classify_returns_plain_values(client: AsyncClient, fake: FakeSentiment) -> None:
    """Results come in the order of the texts, as values that name the model."""
    model = ModelVersion("sentiment", "1", "0" * 64)
    results = await client.sentiment.classify(["one two three", "four", ""])
    assert results == [
        Sentiment(Label.POSITIVE, 0.75, 3, model),
        Sentiment(Label.NEGATIVE, 0.5, 1, model),
        Sentiment(Label.UNDECIDED, 0.5, 0, model),
    ]
    assert fake.texts == [["one two three", "four", ""]]


async def test_classify_takes_any_iterable_but_a_text(client: AsyncClient) -> None:
    """A generator of texts will do; one text alone is refused, or each of its characters would be judged."""
    assert len(await client.sentiment.classify(text for text in ("a", "b"))) == 2
    with pytest.raises(TypeError, match="list of one"):
        await client.sentiment.classify("a text")


async def test_half_a_surrogate_pair_is_invalid_input(client: AsyncClient, fake: FakeSentiment) -> None:
    """A text that has no UTF-8 is refused as the server refuses bad input, and not sent."""
    with pytest.raises(errors.InvalidInput) as caught:
        await client.sentiment.classify(["a\ud800"])
    assert caught.value.field == "texts"
    assert fake.texts == []


async def test_a_lost_server_is_asked_again(client: AsyncClient, fake: FakeSentiment, time: FakeTime) -> None:
    """UNAVAILABLE is retried after growing waits; the caller sees the answer only."""
    fake.faults.extend([GONE, GONE])
    assert len(await client.sentiment.classify(["x"])) == 1
    assert len(fake.texts) == 3
    assert time.slept == pytest.approx([0.025, 0.05])


async def test_a_full_server_is_asked_again_when_it_says(
    client: AsyncClient, fake: FakeSentiment, time: FakeTime
) -> None:
    """RESOURCE_EXHAUSTED with a delay is retried after that delay."""
    fake.faults.append(Fail(StatusCode.RESOURCE_EXHAUSTED, "CAPACITY", retry_delay_s=1.5))
    await client.sentiment.classify(["x"])
    assert time.slept == pytest.approx([1.525])


async def test_bad_input_is_told_with_its_field(client: AsyncClient, fake: FakeSentiment) -> None:
    """A refusal is not repeated, and names the field."""
    fake.faults.append(Fail(StatusCode.INVALID_ARGUMENT, "INVALID_INPUT", bad_field="texts[0]"))
    with pytest.raises(errors.InvalidInput) as caught:
        await client.sentiment.classify([""])
    assert caught.value.field == "texts[0]"
    assert len(fake.texts) == 1


async def test_every_call_has_a_deadline(client: AsyncClient, fake: FakeSentiment) -> None:
    """The server is told how long the caller waits: the client's time, or that of the call."""
    await client.sentiment.classify(["x"])
    await client.sentiment.classify(["x"], timeout_s=3)
    assert 5 < fake.seconds_left[0] <= 10.1
    assert 0 < fake.seconds_left[1] <= 3.1


async def test_a_silent_server_costs_the_deadline_only(client: AsyncClient, fake: FakeSentiment) -> None:
    """A call that is not answered ends with DeadlineExceeded, and is not repeated."""
    fake.faults.append(Silence())
    with pytest.raises(errors.DeadlineExceeded):
        await client.sentiment.classify(["x"], timeout_s=0.05)
    assert len(fake.texts) == 1


async def test_nobody_there_is_unavailable(time: FakeTime) -> None:
    """Where no server listens the bounded attempts end in Unavailable, never in an error of gRPC."""
    async with AsyncClient("127.0.0.1:1", timing=time.timing) as client:
        with pytest.raises(errors.Unavailable):
            await client.sentiment.classify(["x"])
    assert len(time.slept) == 7


async def test_credentials_are_used(fake: FakeSentiment) -> None:
    """With credentials the connection is made with them."""
    async with (
        serving(fake, grpc.local_server_credentials()) as address,
        AsyncClient(address, credentials=grpc.local_channel_credentials()) as client,
    ):
        assert len(await client.sentiment.classify(["x"])) == 1


async def test_a_closed_client_says_so(client: AsyncClient) -> None:
    """A call after `close` is a mistake of the program, and named as that."""
    await client.sentiment.classify(["x"])
    await client.close()
    with pytest.raises(RuntimeError, match="the client is closed"):
        await client.sentiment.classify(["x"])
    with pytest.raises(RuntimeError, match="the client is closed"):
        await client.sequences.get("sentiment", "x")


async def test_a_client_without_time_is_refused() -> None:
    """A time-out of nothing cannot have been meant."""
    with pytest.raises(ValueError, match="timeout_s"):
        AsyncClient("127.0.0.1:1", timeout_s=0)


async def test_sequences_are_described(client: AsyncClient, fake: FakeSentiment) -> None:
    """`get` tells where a sequence stands, `end` ends it."""
    fake.store["s"] = StoredSequence(epoch=4, start_key="k")
    found = await client.sequences.get("sentiment", "s")
    assert (found.status, found.epoch, found.next_step) == (SequenceStatus.LIVE, 4, 0)
    assert found.durability is Durability.STEP
    assert found.expires_at == datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)
    assert (await client.sequences.end("sentiment", "s")).status is SequenceStatus.ENDED


async def test_an_unknown_sequence_is_not_found(client: AsyncClient) -> None:
    """A name that the server does not know raises its own class."""
    with pytest.raises(errors.SequenceNotFound):
        await client.sequences.get("sentiment", "nobody")


async def test_ready_is_what_health_says(client: AsyncClient, fake: FakeSentiment) -> None:
    """`ready` asks once: true, false, or false because nobody answers."""
    assert await client.ready()
    fake.serving = False
    assert not await client.ready()
    async with AsyncClient("127.0.0.1:1") as nobody:
        assert not await nobody.ready()


async def test_ready_tells_a_gateway_which_service_is_meant(client: AsyncClient, fake: FakeSentiment) -> None:
    """The path of health is the same for all services, so metadata has the name too; the whole server has none."""
    await client.ready("statestream.sentiment.v1.SentimentService")
    await client.ready()
    assert fake.asked_of == ["statestream.sentiment.v1.SentimentService", ""]


async def test_wait_ready_returns_when_health_says_so(client: AsyncClient, fake: FakeSentiment, time: FakeTime) -> None:
    """It asks until the server serves, or until the time has passed."""
    fake.faults.extend([GONE, GONE])
    await client.wait_ready()
    assert len(time.slept) == 2
    fake.serving = False
    with pytest.raises(errors.DeadlineExceeded):
        await client.wait_ready(timeout_s=1)
    assert time.now <= 102.0
