"""Our client against real servers: in this process, and as processes that are killed."""

from __future__ import annotations

import asyncio
import random
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import pytest
from statestream import AsyncClient, Client, Durability, Label, ReplayBounds, SequenceStatus, errors

from tests.kit.background import background_server
from tests.kit.processes import replicas
from tests.kit.server import running

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from statestream import Sentiment

TEXT = "I walked in with low hopes… and walked out délighted; a warm, clever and beautiful film! Wonderful."


def bits(result: Sentiment) -> tuple[str, str, int]:
    """What must be equal to the last bit."""
    return result.label, result.positive_probability.hex(), result.word_count


@pytest.fixture
async def client() -> AsyncGenerator[AsyncClient]:
    """A client of a real server with its state in memory."""
    async with running() as server, AsyncClient(f"127.0.0.1:{server.port}") as made:
        yield made


async def test_a_text_in_pieces_is_the_text_as_a_whole(client: AsyncClient) -> None:
    """However the bytes are cut, inside a character too, the final result has the bits of the whole text."""
    [whole] = await client.sentiment.classify([TEXT])
    data, rng = TEXT.encode(), random.Random(7)
    for _ in range(10):
        cuts = sorted(rng.sample(range(1, len(data)), rng.randint(0, 12)))
        pieces = [data[i:j] for i, j in zip([0, *cuts], [*cuts, len(data)], strict=True)]
        updates = [update async for update in client.sentiment.classify_stream(pieces)]
        assert len(updates) == len(pieces) + 1
        assert updates[-1].final
        assert bits(updates[-1].sentiment) == bits(whole)


async def test_results_are_sensible(client: AsyncClient) -> None:
    """The labels are those a reader would give, and the model that gave them is named."""
    good, bad = await client.sentiment.classify(
        ["A wonderful, beautiful, superb film.", "An awful, boring, terrible waste of time."]
    )
    assert (good.label, bad.label) == (Label.POSITIVE, Label.NEGATIVE)
    assert good.model.name == "sentiment"
    assert len(good.model.weights_digest) == 64


async def test_the_server_is_ready(client: AsyncClient) -> None:
    """Health is asked for the whole and for one service; a name that it does not know is not ready."""
    await client.wait_ready()
    assert await client.ready("statestream.sentiment.v1.SentimentService")
    assert not await client.ready("statestream.nonsense.v1.NonsenseService")


async def test_a_sequence_is_seen_through_its_life(client: AsyncClient) -> None:
    """Named, resumed on another client, ended, and told as ended."""
    async with client.sentiment.stream("life") as stream:
        await stream.send("A wonderful ")
    found = await client.sequences.get("sentiment", "life")
    assert (found.status, found.next_step, found.durability) == (SequenceStatus.LIVE, 1, Durability.CHECKPOINT)
    assert found.expires_at is not None
    async with client.sentiment.stream("life", resume=True) as stream:
        last = await stream.send("film.", end=True)
    assert (last.final, last.header.step, last.header.committed_step) == (True, 1, 1)
    assert (await client.sequences.get("sentiment", "life")).status is SequenceStatus.ENDED
    with pytest.raises(errors.SequenceEnded):
        await client.sentiment.stream("life", resume=True).__aenter__()


async def test_an_unnamed_sequence_does_not_linger(client: AsyncClient) -> None:
    """Leaving the stream has ended it on the server; leaving by an exception has not."""
    async with client.sentiment.stream() as stream:
        await stream.send("fine")
    assert (await client.sequences.get("sentiment", stream.sequence_id)).status is SequenceStatus.ENDED
    broken = client.sentiment.stream()

    async def fail() -> None:
        async with broken:
            await broken.send("fine")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    assert (await client.sequences.get("sentiment", broken.sequence_id)).status is SequenceStatus.LIVE
    assert (await client.sequences.end("sentiment", broken.sequence_id)).status is SequenceStatus.ENDED


async def test_a_sequence_is_forked_rewound_and_moved() -> None:
    """From a checkpoint each goes on by itself, and each result is that of the text it was given."""
    async with (
        running(snapshot_key="secret", checkpoint_steps=2) as server,
        AsyncClient(f"127.0.0.1:{server.port}") as client,
    ):
        sequences = client.sequences
        async with client.sentiment.stream("review", durability=Durability.STEP) as stream:
            for word in ("A ", "warm ", "and ", "clever ", "film, "):
                await stream.send(word)
        kept = (await sequences.get("sentiment", "review")).checkpoint_steps
        assert kept
        assert kept[0] < 5
        forks = await sequences.fork("sentiment", "review", "praise", "scorn")
        assert {fork.next_step for fork in forks} == {5}
        snapshot = await sequences.export("sentiment", "review", next_step=kept[0])
        assert (await sequences.import_(snapshot, "moved")).next_step == kept[0]
        assert (await sequences.rewind("sentiment", "review", kept[0])).next_step == kept[0]
        words = ("A ", "warm ", "and ", "clever ", "film, ")
        for name, start, end in (
            ("praise", 5, "superb."),
            ("scorn", 5, "but awful."),
            ("moved", kept[0], "dull."),
            ("review", kept[0], "fun."),
        ):
            [whole] = await client.sentiment.classify(["".join(words[:start]) + end])
            async with client.sentiment.stream(name, resume=True) as stream:
                assert stream.next_step == start
                assert bits((await stream.send(end, end=True)).sentiment) == bits(whole)
        found = {one.sequence_id: one.status async for one in sequences.list("sentiment", page_size=1)}
        assert found == dict.fromkeys(("praise", "scorn", "moved", "review"), SequenceStatus.ENDED)


async def test_a_stream_that_was_rewound_does_not_go_on() -> None:
    """What was taken back on purpose an open stream does not put there again."""
    async with running(checkpoint_steps=1) as server, AsyncClient(f"127.0.0.1:{server.port}") as client:
        stream = await client.sentiment.stream("s", durability=Durability.STEP).__aenter__()
        for word in ("A ", "warm ", "film "):
            await stream.send(word)
        kept = (await client.sequences.get("sentiment", "s")).checkpoint_steps
        assert (await client.sequences.rewind("sentiment", "s", kept[0])).next_step < 3
        with pytest.raises(errors.StepConflict):
            await stream.send("indeed")
        await stream.__aexit__(None, None, None)


async def test_refusals_have_their_classes(client: AsyncClient) -> None:
    """What a real server refuses arrives as the class that says why, with the field where one is wrong."""
    with pytest.raises(errors.InvalidInput) as caught:
        await client.sentiment.classify(["fine", ""])
    assert caught.value.field == "texts[1]"
    with pytest.raises(errors.UnknownModel):
        await client.sentiment.classify(["fine"], model_version="99")
    with pytest.raises(errors.SequenceNotFound):
        await client.sequences.get("sentiment", "nobody")
    with pytest.raises(errors.SequenceNotFound):
        await client.sentiment.stream("nobody", resume=True).__aenter__()


async def test_a_sequence_survives_its_refusals(client: AsyncClient) -> None:
    """Bad pieces, one after the other, leave the sequence at its last step, and it goes on."""
    async with client.sentiment.stream() as stream:
        await stream.send("A wonderful ")
        for bad, field in (("", "piece.text"), (b"\xff", "piece.utf8"), ("x" * 70_000, "piece.text")):
            with pytest.raises(errors.InvalidInput) as caught:
                await stream.send(bad)
            assert caught.value.field == field
        update = await stream.send("film.", end=True)
    [whole] = await client.sentiment.classify(["A wonderful film."])
    assert update.header.step == 1
    assert bits(update.sentiment) == bits(whole)


async def test_two_clients_on_one_sequence_do_not_mix(client: AsyncClient) -> None:
    """Of two texts for one step one is taken; the other client is told that it was not its own."""
    async with client.sentiment.stream("shared") as one, client.sentiment.stream("shared", resume=False) as two:
        await one.send("I like ")
        await two.send("I hate ")
        with pytest.raises(errors.SequenceError):
            await one.send("it ")
        assert (await two.send("it ")).header.step == 1


async def test_nothing_is_committed_where_nothing_is_to_be_kept(client: AsyncClient) -> None:
    """Durability NONE says so in every reply."""
    async with client.sentiment.stream(durability=Durability.NONE) as stream:
        assert (await stream.send("fine ")).header.committed_step is None


@pytest.mark.parametrize("how", ["kill", "terminate"])
async def test_streams_outlive_their_replica(redis_url: str, how: str) -> None:
    """One of two replicas is killed, or drained, in mid-stream: its streams go on at the other, with the same bits."""
    words = [f"{word} " for word in TEXT.split()]
    # It commits late: what a killed replica had answered since the first step is nowhere but with the client.
    settings = {"store": "redis", "redis_url": redis_url, "commit_interval_ms": "60000"}
    async with replicas(2, **settings) as group, AsyncExitStack() as stack:
        addresses = "ipv4:" + ",".join(replica.address for replica in group)
        client = await stack.enter_async_context(AsyncClient(addresses, timeout_s=20.0))
        # Some calls, until both addresses are connected: then they take turns, and each replica has some streams.
        [*_, [whole]] = [await client.sentiment.classify([TEXT]) for _ in range(20)]
        streams = [await stack.enter_async_context(client.sentiment.stream()) for _ in range(4)]
        for word in words[:4]:
            await asyncio.gather(*(stream.send(word) for stream in streams))
        lose = group[0].kill if how == "kill" else group[0].terminate
        losing = asyncio.create_task(lose())
        for word in words[4:]:
            await asyncio.gather(*(stream.send(word) for stream in streams))
        await losing
        finals = [await stream.end() for stream in streams]
    assert any(stream.stats.reconnects for stream in streams)
    assert any(stream.stats.replayed_steps for stream in streams) == (how == "kill")
    if how == "kill":  # whoever was just sending when its replica left may have heard only that the connection broke
        assert not any(stream.stats.go_aways for stream in streams)
    assert not any(stream.stats.losses for stream in streams)
    assert {bits(final.sentiment) for final in finals} == {bits(whole)}
    assert {final.header.step for final in finals} == {len(words)}


@pytest.mark.parametrize("slack", [64, 0])
async def test_state_that_is_lost_is_fed_again_or_told(slack: int) -> None:
    """A restarted server without a store has lost all: what the client still holds is sent again, else it says so."""
    async with running() as first:
        port = first.port
        client = AsyncClient(f"127.0.0.1:{port}", replay=ReplayBounds(slack_steps=slack))
        stream = client.sentiment.stream("lost", durability=Durability.STEP)
        await stream.__aenter__()
        await stream.send("A wonderful ")
        await stream.send("and warm ")
    async with running(listen=f"127.0.0.1:{port}"), client:
        if slack:
            [whole] = await client.sentiment.classify(["A wonderful and warm film."])
            assert bits((await stream.send("film.", end=True)).sentiment) == bits(whole)
            assert (stream.stats.losses, stream.stats.replayed_steps) == (1, 2)
        else:
            with pytest.raises(errors.SequenceLost) as caught:
                await stream.send("film.")
            assert (caught.value.next_step, caught.value.oldest_step) == (0, 1)


def test_the_blocking_client_does_the_same() -> None:
    """Calls, streams and lifecycle of the blocking client against a real server."""
    with background_server() as address, Client(address) as client:
        client.wait_ready()
        [whole] = client.sentiment.classify([TEXT])
        updates = list(client.sentiment.classify_stream(f"{word} " for word in TEXT.split()))
        assert bits(updates[-1].sentiment) == bits(whole)
        with client.sentiment.stream("named") as stream:
            stream.send("A wonderful ")
        assert client.sequences.get("sentiment", "named").next_step == 1
        with pytest.raises(errors.InvalidInput):
            client.sentiment.classify([""])
