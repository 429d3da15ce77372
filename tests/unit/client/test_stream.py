from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, cast

import pytest
from grpc import StatusCode
from hypothesis import given, settings
from hypothesis import strategies as st
from statestream import AsyncClient, AsyncSentimentStream, Durability, Label, RetryPolicy, errors

from tests.kit.client_time import FakeTime
from tests.kit.fake_sentiment import Close, Fail, FakeSentiment, Fault, Silence, StoredSequence, serving

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from grpc import aio


async def broken_by_us(stream: AsyncSentimentStream) -> None:
    """Cancels the call under a stream, and waits until that is known."""
    call = cast("aio.Call", stream._link._call)
    call.cancel()
    await call.code()


GONE = Fail(StatusCode.UNAVAILABLE)
REPLY_LOST = Fail(StatusCode.UNAVAILABLE, applied=True)


async def test_each_piece_gets_its_reply(client: AsyncClient, fake: FakeSentiment) -> None:
    """One stream, one configuration, steps numbered from 0, a reply to each."""
    async with client.sentiment.stream("s") as stream:
        first = await stream.send("one ")
        second = await stream.send(b"two three")
        last = await stream.send(" four", end=True)
    assert [update.header.step for update in (first, second, last)] == [0, 1, 2]
    assert [update.sentiment.word_count for update in (first, second, last)] == [1, 3, 4]
    assert (first.final, last.final, last.header.ended) == (False, True, True)
    assert (first.header.sequence_id, first.header.committed_step) == ("s", 0)
    assert last.sentiment.label is Label.POSITIVE
    assert last.sentiment.model == last.header.model
    assert len(fake.configs) == 1
    assert fake.configs[0].start
    assert fake.configs[0].start_key
    assert [piece.WhichOneof("content") for piece in fake.pieces] == ["text", "utf8", "text"]


async def test_options_of_a_start_arrive(client: AsyncClient, fake: FakeSentiment) -> None:
    """Durability and model version go with the start."""
    async with client.sentiment.stream("s", durability=Durability.NONE, model_version="7") as stream:
        await stream.send("x")
    assert (fake.configs[0].durability, fake.configs[0].model_version) == (2, "7")


async def test_a_lost_start_is_repeated_with_its_key(client: AsyncClient, fake: FakeSentiment, time: FakeTime) -> None:
    """Until the first reply is there the start is sent again, with the same key: it begins one sequence only."""
    fake.faults.extend([GONE, REPLY_LOST])
    async with client.sentiment.stream("s") as stream:
        await stream.send("one ")
    assert [config.start for config in fake.configs] == [True, True, True]
    assert len({config.start_key for config in fake.configs}) == 1
    assert fake.store["s"].epoch == 1
    assert len(fake.store["s"].replies) == 1
    assert time.slept == pytest.approx([0.025, 0.05])


@pytest.mark.parametrize("fault", [GONE, REPLY_LOST, Close(), Fail(StatusCode.UNAVAILABLE, "DRAINING", applied=True)])
async def test_a_lost_step_is_repeated_on_a_new_stream(client: AsyncClient, fake: FakeSentiment, fault: Fault) -> None:
    """After the first reply a break means: reconnect, do not start, send the step with no reply again."""
    fake.faults.extend([None, None, fault])
    async with client.sentiment.stream("s") as stream:
        for word in ("one ", "two ", "three ", "four "):
            update = await stream.send(word)
    assert fake.store["s"].text == b"one two three four "
    assert update.sentiment.word_count == 4
    assert [config.start for config in fake.configs] == [True, False]
    assert fake.configs[1].sequence_id == "s"
    assert fake.steps == [0, 1, 2, 2, 3]


FAULTS = st.one_of(
    st.none(),
    st.just(GONE),
    st.just(REPLY_LOST),
    st.just(Close()),
    st.just(Fail(StatusCode.RESOURCE_EXHAUSTED, "CAPACITY", retry_delay_s=0.1)),
    st.just(Fail(StatusCode.ABORTED, "STEP_CONFLICT")),
)


@given(faults=st.lists(FAULTS, max_size=12), pieces=st.lists(st.text("ab ", min_size=1), min_size=1, max_size=6))
@settings(max_examples=60, deadline=None)
async def test_every_piece_is_applied_once_whatever_breaks(faults: list[Fault | None], pieces: list[str]) -> None:
    """Under any mix of breaks that may be retried the text arrives whole, in order, each piece once."""
    fake, time = FakeSentiment(), FakeTime()
    fake.faults.extend(faults)
    policy = RetryPolicy(attempts_max=len(faults) + 1)
    async with serving(fake) as address, AsyncClient(address, timing=time.timing, retry=policy) as client:
        updates = [update async for update in client.sentiment.classify_stream(pieces, sequence_id="s")]
    assert fake.store["s"].text == "".join(pieces).encode()
    assert [update.header.step for update in updates] == list(range(len(pieces) + 1))
    assert fake.store["s"].ended


async def test_another_replica_goes_on() -> None:
    """When the replica of a stream dies the next one with the same store takes the open step."""
    store: dict[str, StoredSequence] = {}
    fakes = [FakeSentiment(store), FakeSentiment(store)]
    servers = [serving(fake) for fake in fakes]
    addresses = [await server.__aenter__() for server in servers]
    client = AsyncClient("ipv4:" + ",".join(addresses), timing=FakeTime().timing)
    async with client, client.sentiment.stream("s") as stream:
        await stream.send("one ")
        dying = 0 if fakes[0].pieces else 1
        await servers[dying].__aexit__(None, None, None)
        update = await stream.send("two")
    await servers[1 - dying].__aexit__(None, None, None)
    assert update.sentiment.word_count == 2
    assert [len(fake.configs) for fake in fakes] == [1, 1]
    assert fakes[1 - dying].configs[0].start is False


async def test_a_break_between_steps_costs_no_attempt(client: AsyncClient, fake: FakeSentiment, time: FakeTime) -> None:
    """A stream that ended while nothing was under way is opened again without a wait, whatever its status was."""
    async with client.sentiment.stream("s") as stream:
        await stream.send("one ")
        await broken_by_us(stream)
        await stream.send("two ")
    assert time.slept == []
    assert fake.store["s"].text == b"one two "


async def test_a_conflict_is_settled_by_asking_again(client: AsyncClient, fake: FakeSentiment) -> None:
    """After STEP_CONFLICT the numbered step is sent again; if it was our own that won its reply comes back."""
    fake.faults.extend([None, Fail(StatusCode.ABORTED, "STEP_CONFLICT", applied=True)])
    async with client.sentiment.stream("s") as stream:
        await stream.send("one ")
        update = await stream.send("two ")
    assert update.sentiment.word_count == 2
    assert len(fake.store["s"].replies) == 2


async def test_a_conflict_lost_to_another_client_is_told(client: AsyncClient, fake: FakeSentiment) -> None:
    """If somebody else's content won, the step is refused for good."""
    async with client.sentiment.stream("s") as stream:
        await stream.send("one ")
        async with client.sentiment.stream("s", resume=True) as other:
            await other.send("theirs ")
        with pytest.raises(errors.StepContentMismatch):
            await stream.send("ours ")
    assert fake.store["s"].text == b"one theirs "


async def test_a_sequence_started_anew_by_another_is_noticed(client: AsyncClient, fake: FakeSentiment) -> None:
    """Where the name stands for another sequence the stream does not go on, not even with the same pieces."""
    async with client.sentiment.stream("s") as stream:
        await stream.send("one ")
        async with client.sentiment.stream("s") as other:
            await other.send("one ")
        with pytest.raises(errors.StepConflict, match="another history"):
            await stream.send("two ")
    assert fake.store["s"].text == b"one "


async def test_a_refused_piece_leaves_the_sequence_usable(client: AsyncClient, fake: FakeSentiment) -> None:
    """After bad input the same step can be taken with good input."""
    fake.faults.extend([None, Fail(StatusCode.INVALID_ARGUMENT, "INVALID_INPUT", bad_field="piece.utf8")])
    async with client.sentiment.stream("s") as stream:
        await stream.send("one ")
        with pytest.raises(errors.InvalidInput) as caught:
            await stream.send(b"\xff")
        assert caught.value.field == "piece.utf8"
        assert stream.next_step == 1
        assert (await stream.send("two ")).header.step == 1
    assert fake.store["s"].text == b"one two "


async def test_half_a_surrogate_pair_is_not_sent(client: AsyncClient, fake: FakeSentiment) -> None:
    """A piece that has no UTF-8 is refused before anything is sent."""
    async with client.sentiment.stream("s") as stream:
        with pytest.raises(errors.InvalidInput) as caught:
            await stream.send("\udc00")
        assert caught.value.field == "piece.text"
    assert fake.pieces == []


async def test_a_reply_that_does_not_come_ends_at_the_deadline(client: AsyncClient, fake: FakeSentiment) -> None:
    """A step has a deadline; after it the same piece may be sent again and is applied once."""
    fake.faults.extend([None, Silence()])
    async with client.sentiment.stream("s") as stream:
        await stream.send("one ")
        with pytest.raises(errors.DeadlineExceeded):
            await stream.send("two ", timeout_s=0.05)
        assert (await stream.send("two ")).header.step == 1
    assert fake.store["s"].text == b"one two "


async def test_a_cancelled_send_can_be_repeated(client: AsyncClient, fake: FakeSentiment) -> None:
    """Cancelling a send raises CancelledError as ever, and the late reply is not taken for another step's."""
    fake.faults.extend([None, Silence()])
    async with client.sentiment.stream("s") as stream:
        await stream.send("one ")
        task = asyncio.create_task(stream.send("two "))
        await fake.silent.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (await stream.send("two ")).header.step == 1


async def test_sends_at_the_same_time_take_turns(client: AsyncClient, fake: FakeSentiment) -> None:
    """Two tasks may send on one stream: the steps are numbered in the order of the calls."""
    async with client.sentiment.stream("s") as stream:
        updates = await asyncio.gather(*(stream.send(f"w{i} ") for i in range(5)))
    assert [update.header.step for update in updates] == [0, 1, 2, 3, 4]
    assert fake.store["s"].text == b"w0 w1 w2 w3 w4 "


async def test_an_unnamed_sequence_is_ended_on_leaving(client: AsyncClient, fake: FakeSentiment) -> None:
    """What nobody can come back to does not linger; its final reply is there."""
    async with client.sentiment.stream() as stream:
        await stream.send("one")
    assert len(stream.sequence_id) == 32
    assert stream.ended
    assert stream.last is not None
    assert stream.last.final
    assert fake.store[stream.sequence_id].ended
    assert fake.configs[0].sequence_id == stream.sequence_id


async def test_an_unnamed_sequence_without_a_step_sends_nothing(client: AsyncClient, fake: FakeSentiment) -> None:
    """Where nothing was sent there is nothing to end."""
    async with client.sentiment.stream():
        pass
    assert fake.configs == []


async def test_leaving_does_not_fail_for_the_end(client: AsyncClient, fake: FakeSentiment) -> None:
    """Work that was done is not lost because the end of the sequence could not be told."""
    fake.faults.extend([None, Fail(StatusCode.INTERNAL)])
    async with client.sentiment.stream() as stream:
        await stream.send("one")
    assert not stream.ended


async def test_a_named_sequence_goes_on(client: AsyncClient, fake: FakeSentiment) -> None:
    """Leaving keeps a named sequence, and closes its stream in good order."""
    async with client.sentiment.stream("s") as stream:
        await stream.send("one")
    assert not fake.store["s"].ended
    assert fake.clean_ends == 1


async def test_leaving_by_an_exception_ends_nothing(client: AsyncClient, fake: FakeSentiment) -> None:
    """An exception passes through, no last step is taken, and the call is given up."""
    stream = client.sentiment.stream()

    async def fail() -> None:
        async with stream:
            await stream.send("one")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    assert not fake.store[stream.sequence_id].ended
    assert len(fake.pieces) == 1


async def test_resuming_goes_on_where_it_stands(client: AsyncClient, fake: FakeSentiment) -> None:
    """Another stream takes the next number without starting anew."""
    async with client.sentiment.stream("s") as stream:
        await stream.send("one ")
    async with client.sentiment.stream("s", resume=True) as again:
        assert again.next_step == 1
        update = await again.send("two ")
    assert (update.header.step, update.sentiment.word_count) == (1, 2)
    assert [config.start for config in fake.configs] == [True, False]


async def test_what_cannot_be_resumed_is_told_on_entering(client: AsyncClient, fake: FakeSentiment) -> None:
    """An unknown or an ended sequence, and one without a name, are refused before a piece is read."""
    with pytest.raises(errors.SequenceNotFound):
        await client.sentiment.stream("s", resume=True).__aenter__()
    async with client.sentiment.stream("s") as stream:
        await stream.send("one", end=True)
    with pytest.raises(errors.SequenceEnded):
        await client.sentiment.stream("s", resume=True).__aenter__()
    with pytest.raises(ValueError, match="sequence_id"):
        client.sentiment.stream(resume=True)


async def test_an_ended_sequence_takes_nothing_more(client: AsyncClient, fake: FakeSentiment) -> None:
    """After the last step a piece is refused without asking the server."""
    async with client.sentiment.stream("s") as stream:
        await stream.send("one", end=True)
        with pytest.raises(errors.SequenceEnded):
            await stream.send("two")
    assert len(fake.pieces) == 1


async def test_a_stream_sends_only_inside_its_block(client: AsyncClient) -> None:
    """Outside of the context there is nothing that would close the call."""
    stream = client.sentiment.stream("s")
    with pytest.raises(RuntimeError, match="with"):
        await stream.send("one")


async def test_a_client_closed_meanwhile_is_an_error_of_ours(client: AsyncClient, fake: FakeSentiment) -> None:
    """Closing the client under a waiting send does not look like a cancelled task."""
    fake.faults.append(Silence())
    async with client.sentiment.stream("s") as stream:
        task = asyncio.create_task(stream.send("one "))
        await fake.silent.wait()
        await client.close()
        with pytest.raises(errors.CallCancelled):
            await task


async def test_a_stream_may_outlast_its_client(client: AsyncClient, fake: FakeSentiment) -> None:
    """After the client is closed a piece is a mistake of the program; leaving the stream is not."""
    async with client.sentiment.stream() as stream:
        await stream.send("one ")
        await client.close()
        with pytest.raises(RuntimeError, match="the client is closed"):
            await stream.send("two ")
    assert len(fake.pieces) == 1


async def test_pieces_come_from_an_async_source(client: AsyncClient, fake: FakeSentiment) -> None:
    """`classify_stream` replies to each piece before it asks for the next, then gives the final result."""
    seen: list[int] = []

    async def source() -> AsyncIterator[str]:
        for word in ("one ", "two ", "three"):
            seen.append(len(fake.pieces))
            yield word

    updates = [update async for update in client.sentiment.classify_stream(source())]
    assert seen == [0, 1, 2]
    assert [update.final for update in updates] == [False, False, False, True]
    assert updates[-1].sentiment.word_count == 3


async def test_classify_stream_may_leave_the_sequence_open(client: AsyncClient, fake: FakeSentiment) -> None:
    """With `end` false a named sequence can be gone on with."""
    first = [u async for u in client.sentiment.classify_stream(["one "], sequence_id="s", end=False)]
    second = [u async for u in client.sentiment.classify_stream(["two"], sequence_id="s", resume=True)]
    assert [update.header.step for update in (*first, *second)] == [0, 1, 2]
    assert fake.store["s"].ended


async def test_one_text_is_not_taken_for_its_pieces(client: AsyncClient) -> None:
    """A text is an iterable of characters; taking each as a step was not meant."""
    with pytest.raises(TypeError, match="list of one"):
        await anext(client.sentiment.classify_stream("a text"))
