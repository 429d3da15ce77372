"""The sentiment service over a real server: what any gRPC client may rely on."""

from __future__ import annotations

import asyncio
import itertools
import random
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from statestream.common.v1 import lifecycle_pb2, lifecycle_service_pb2, lifecycle_service_pb2_grpc, sequence_pb2
from statestream.sentiment.v1 import sentiment_pb2

from services.runtime.core.clock import SystemClock
from services.runtime.state.memory import MemoryStore
from tests.kit.server import Request, config, piece, refused, replies, running, stub_of, told

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from services.runtime.app import Server

TEXT = "Déjà vu: the plot doesn't hold 🎬, yet the acting is superb! I couldn't look away… a quiet masterpiece."


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    """One server for one test."""
    async with running() as one:
        yield one


@pytest.fixture
async def stub(server: Server) -> AsyncIterator[Any]:
    """A stub on that server."""
    async with stub_of(server) as one:
        yield one


async def test_classify_answers_each_text_in_order(stub: Any) -> None:
    """Whole texts, judged on their own, with the model that did it."""
    texts = ["A wonderful, moving film. I loved every minute of it.", "Dull, badly acted and far too long. Awful."]
    response = await stub.Classify(sentiment_pb2.ClassifyRequest(texts=texts))
    assert [r.label for r in response.results] == [sentiment_pb2.LABEL_POSITIVE, sentiment_pb2.LABEL_NEGATIVE]
    assert response.model.name == "sentiment"
    assert len(response.model.weights_digest) == 64
    alone = await stub.Classify(sentiment_pb2.ClassifyRequest(texts=texts[1:]))
    assert alone.results[0] == response.results[1]


@pytest.mark.parametrize("seed", range(6))
async def test_cut_anywhere_the_bits_are_those_of_the_whole(stub: Any, seed: int) -> None:
    """Pieces of random size, cut inside characters too, in one stream or several: one final result."""
    whole = (await stub.Classify(sentiment_pb2.ClassifyRequest(texts=[TEXT]))).results[0]
    rng, data = random.Random(seed), TEXT.encode()
    cuts = sorted(rng.sample(range(1, len(data)), rng.randint(1, 40)))
    parts = [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]
    messages = [piece(part, end=i == len(parts) - 1) for i, part in enumerate(parts)]
    middle = rng.randint(1, len(messages) - 1)
    name = f"cut-{seed}"
    first = await replies(stub, config(name, start=True), *messages[:middle])
    rest = await replies(stub, config(name), *messages[middle:])
    assert rest[-1].final
    assert rest[-1].sentiment.SerializeToString() == whole.SerializeToString()
    assert [reply.header.step for reply in first + rest] == list(range(len(parts)))


async def test_an_unnamed_stream_ends_when_it_is_half_closed(stub: Any) -> None:
    """The server makes a name, answers every piece, and sends the final result at the end."""
    first, second, final = await replies(stub, config(), piece("Truly "), piece("great"))
    assert [first.final, second.final, final.final] == [False, False, True]
    assert [first.sentiment.word_count, second.sentiment.word_count, final.sentiment.word_count] == [1, 1, 2]
    assert final.header.ended
    assert final.header.sequence_id == first.header.sequence_id
    assert len(first.header.sequence_id) == 32


async def test_a_named_sequence_stays_when_its_stream_ends(stub: Any, server: Server) -> None:
    """It goes on in the next stream; the lifecycle service tells where it stands, and ends it."""
    (reply,) = await replies(stub, config("kept", start=True), piece("Not "))
    assert reply.header.committed_step == 0
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        lifecycle = lifecycle_service_pb2_grpc.LifecycleServiceStub(channel)
        get = lifecycle_service_pb2.GetSequenceRequest(model="sentiment", sequence_id="kept")
        there = (await lifecycle.GetSequence(get)).sequence
        assert (there.status, there.next_step) == (lifecycle_pb2.SEQUENCE_STATUS_LIVE, 1)
        assert there.state_bytes > 3 * 256 * 4
        end = lifecycle_service_pb2.EndSequenceRequest(model="sentiment", sequence_id="kept")
        for _ in range(2):
            ended = (await lifecycle.EndSequence(end)).sequence
            assert ended.status == lifecycle_pb2.SEQUENCE_STATUS_ENDED
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            get.sequence_id = "nobody"
            await lifecycle.GetSequence(get)
        assert told(caught.value)[1] == "SEQUENCE_NOT_FOUND"
    assert (await refused(server, config("kept"), piece("good")))[1] == "SEQUENCE_ENDED"


async def test_a_repeated_step_is_answered_with_the_same_bytes(stub: Any) -> None:
    """Also the first one, also the last one, on other streams."""
    messages = [piece("A ", step=0), piece("fine ", step=1), piece("film", step=2, end=True)]
    opening = config("again", start=True, start_key="k")
    once = await replies(stub, opening, *messages)
    first = await replies(stub, opening, messages[0])
    last = await replies(stub, config("again"), messages[2])
    assert [r.SerializeToString() for r in first + last] == [r.SerializeToString() for r in (once[0], once[2])]


async def test_a_start_begins_anew(stub: Any) -> None:
    """A live sequence of the name is replaced, in a higher epoch."""
    (before,) = await replies(stub, config("new", start=True), piece("Bad "))
    (after,) = await replies(stub, config("new", start=True), piece("Good "))
    assert after.header.epoch > before.header.epoch
    assert after.header.step == 0
    assert after.sentiment.word_count == 1
    assert [warning.code for warning in before.header.warnings] == []
    assert [warning.code for warning in after.header.warnings] == ["SEQUENCE_REPLACED"]


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([], ("INVALID_ARGUMENT", "INVALID_INPUT", "config")),
        ([piece("first")], ("INVALID_ARGUMENT", "INVALID_INPUT", "config")),
        ([Request()], ("INVALID_ARGUMENT", "INVALID_INPUT", "config")),
        ([config("a"), config("a")], ("INVALID_ARGUMENT", "INVALID_INPUT", "message")),
        ([config("a" * 129)], ("INVALID_ARGUMENT", "INVALID_INPUT", "config.sequence_id")),
        ([config("a\n")], ("INVALID_ARGUMENT", "INVALID_INPUT", "config.sequence_id")),
        ([config("a", start_key="k" * 129)], ("INVALID_ARGUMENT", "INVALID_INPUT", "config.start_key")),
        ([config("a", start=True, model_version="99")], ("NOT_FOUND", "MODEL_NOT_FOUND", "")),
        ([config("a", durability=99)], ("INVALID_ARGUMENT", "INVALID_INPUT", "config.durability")),
        ([config("unknown"), piece("x")], ("NOT_FOUND", "SEQUENCE_NOT_FOUND", "")),
        ([config("a", start=True), piece("x", step=3)], ("INVALID_ARGUMENT", "INVALID_INPUT", "control.step")),
        ([config("a", start=True), piece("")], ("INVALID_ARGUMENT", "INVALID_INPUT", "piece.text")),
        ([config("a", start=True), piece(b"\xff")], ("INVALID_ARGUMENT", "INVALID_INPUT", "piece.utf8")),
        ([config("a", start=True), piece(b"\xc3", end=True)], ("INVALID_ARGUMENT", "INVALID_INPUT", "piece.utf8")),
        ([config("a", start=True), piece("x" * 65_537)], ("INVALID_ARGUMENT", "INVALID_INPUT", "piece.text")),
        ([config("a", start=True), piece("x"), piece("y", step=5)], ("FAILED_PRECONDITION", "STEP_OUT_OF_ORDER", "")),
        (
            [config("a", start=True), piece("x", step=0), piece("y", step=0)],
            ("FAILED_PRECONDITION", "STEP_CONTENT_MISMATCH", ""),
        ),
    ],
)
async def test_bad_input_has_its_own_status(
    server: Server, messages: list[Request], expected: tuple[str, str, str]
) -> None:
    """Code, reason and field, for everything that can be wrong with a stream."""
    assert await refused(server, *messages) == expected


async def test_text_that_is_not_utf8_is_refused_by_name(server: Server) -> None:
    """A client in another language may put any bytes into a string field; it gets INVALID_ARGUMENT, not INTERNAL."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        call = channel.unary_unary("/statestream.sentiment.v1.SentimentService/Classify")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(b"\x0a\x02\xff\xfe")
        assert told(caught.value) == ("INVALID_ARGUMENT", "INVALID_INPUT", "request")
        stream = channel.stream_stream("/statestream.sentiment.v1.SentimentService/StreamingClassify")(
            iter([b"\xff\xff"])
        )
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stream.read()
        assert told(caught.value) == ("INVALID_ARGUMENT", "INVALID_INPUT", "request")


async def test_bad_input_leaves_the_sequence_usable(stub: Any, server: Server) -> None:
    """After every refusal the sequence stands at its last step, and goes on as if nothing had been."""
    await replies(stub, config("usable", start=True), piece("It is ", step=0))
    for bad in (piece(b"\xff", step=1), piece("", step=1), piece("x", step=7), piece("other", step=0)):
        await refused(server, config("usable"), bad)
    (final,) = await replies(stub, config("usable"), piece("superb!", step=1, end=True))
    whole = (await stub.Classify(sentiment_pb2.ClassifyRequest(texts=["It is superb!"]))).results[0]
    assert final.sentiment == whole


async def test_two_replicas_share_a_sequence() -> None:
    """Steps alternate between two servers on one store; the bits are those of one server, repeats are answered once."""
    store = MemoryStore(SystemClock(), bytes_max=10**7, sequences_max=100)
    words = [f"{word} " for word in TEXT.split(" ")]
    async with running(store=store) as one, running(store=store) as two, stub_of(one) as a, stub_of(two) as b:
        whole = (await a.Classify(sentiment_pb2.ClassifyRequest(texts=[TEXT]))).results[0]
        await replies(a, config("shared", start=True), piece(words[0], step=0))
        for step, word in enumerate(words[1:], start=1):
            here, there = (a, b) if step % 2 else (b, a)
            message = piece(word, step=step, end=step == len(words) - 1)
            (reply,) = await replies(here, config("shared"), message)
            (repeated,) = await replies(there, config("shared"), message)
            assert reply.SerializeToString() == repeated.SerializeToString()
        assert reply.sentiment == whole


async def test_a_sequence_without_durability_stays_in_its_replica() -> None:
    """It goes on there, and nobody else knows it."""
    store = MemoryStore(SystemClock(), bytes_max=10**7, sequences_max=100)
    async with running(store=store) as one, running(store=store) as two, stub_of(one) as a:
        opening = config("volatile", start=True, durability=sequence_pb2.DURABILITY_NONE)
        (first,) = await replies(a, opening, piece("Very "))
        (second,) = await replies(a, config("volatile"), piece("good "))
        assert not first.header.HasField("committed_step")
        assert second.sentiment.word_count == 2
        assert (await refused(two, config("volatile"), piece("good ")))[1] == "SEQUENCE_NOT_FOUND"


async def test_sixty_four_sequences_at_once_have_the_bits_of_one_alone(stub: Any, server: Server) -> None:
    """Different texts, cut differently, sharing runs of every size: each ends as it does alone."""
    rng = random.Random(64)
    words = TEXT.split(" ")
    texts = [" ".join(rng.choice(words) for _ in range(rng.randint(1, 30))) for _ in range(64)]
    alone = [(await stub.Classify(sentiment_pb2.ClassifyRequest(texts=[text]))).results[0] for text in texts]

    async def stream(text: str) -> bytes:
        data = text.encode()
        cuts = sorted({rng.randint(1, len(data)) for _ in range(rng.randint(1, 12))} | {0, len(data)})
        parts = [data[a:b] for a, b in itertools.pairwise(cuts)]
        return (await replies(stub, config(), *map(piece, parts)))[-1].sentiment.SerializeToString()

    together = await asyncio.gather(*map(stream, texts))
    assert together == [result.SerializeToString() for result in alone]
    sizes = server.metrics.registry.get_sample_value("statestream_batch_size_sum", {"model": "sentiment"})
    runs = server.metrics.registry.get_sample_value("statestream_batch_size_count", {"model": "sentiment"})
    assert sizes is not None
    assert runs is not None
    assert sizes > runs, "no two sequences ever shared a run"
