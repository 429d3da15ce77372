"""Sequences without a step: listed, forked, rewound, moved, ended."""

from __future__ import annotations

import pytest
from grpc import StatusCode
from statestream import AsyncClient, SequenceStatus, Timing, errors

from tests.kit.breaks import GONE
from tests.kit.fake_sentiment import Fail, FakeSentiment


@pytest.fixture
async def long(client: AsyncClient, fake: FakeSentiment) -> str:
    """A sequence with checkpoints at its steps 1 and 3 that takes step 4 next; its name."""
    async with client.sentiment.stream("long") as stream:
        for word in ("one ", "two ", "three ", "four "):
            await stream.send(word)
    fake.store["long"].checkpoints = [1, 3]
    return "long"


async def test_points_that_are_kept_are_described(client: AsyncClient, long: str) -> None:
    """`get` tells where the sequence can be gone back to, and which history it has."""
    found = await client.sequences.get("sentiment", long)
    assert (found.next_step, found.checkpoint_steps) == (4, (1, 3))
    assert len(found.history_digest) == 16


async def test_all_pages_are_listed(client: AsyncClient, fake: FakeSentiment) -> None:
    """Page after page, through one that is empty, to the last; each page may be asked for twice."""
    for name in "abcdefg":
        async with client.sentiment.stream(name) as stream:
            await stream.send("x", end=name in "cd")
    fake.faults.extend([None, GONE])
    assert [found.sequence_id async for found in client.sequences.list("sentiment")] == list("abcdefg")
    live = [found async for found in client.sequences.list("sentiment", live_only=True, page_size=3)]
    assert [found.sequence_id for found in live] == list("abefg")
    assert {found.status for found in live} == {SequenceStatus.LIVE}


async def test_nothing_is_listed_where_nothing_is(client: AsyncClient) -> None:
    """No sequence is no error."""
    assert [found async for found in client.sequences.list("sentiment")] == []


async def test_a_fork_goes_on_by_itself(client: AsyncClient, fake: FakeSentiment, long: str) -> None:
    """From where the sequence stands, or from a kept point; several at once; the first one stays as it is."""
    [fork] = await client.sequences.fork("sentiment", long, "fork")
    assert (fork.sequence_id, fork.next_step) == ("fork", 4)
    both = await client.sequences.fork("sentiment", long, "b", "a", next_step=1)
    assert [(made.sequence_id, made.next_step) for made in both] == [("b", 1), ("a", 1)]
    async with client.sentiment.stream("b", resume=True) as stream:
        assert (await stream.send("else ")).sentiment.word_count == 2
    assert fake.store[long].text == b"one two three four "


async def test_a_fork_without_a_name_gets_one(address: str, client: AsyncClient, long: str) -> None:
    """One that nobody else has, the same however often the call is repeated."""
    [fork] = await client.sequences.fork("sentiment", long)
    assert len(fork.sequence_id) == 32
    async with AsyncClient(address, timing=Timing(unique=lambda: "mine")) as other:
        [fork] = await other.sequences.fork("sentiment", long)
    assert fork.sequence_id == "mine"


async def test_a_fork_is_repeated_with_its_name(client: AsyncClient, fake: FakeSentiment, long: str) -> None:
    """A lost connection does not make two forks of one."""
    fake.faults.extend([GONE, GONE])
    [fork] = await client.sequences.fork("sentiment", long)
    assert set(fake.store) == {long, fork.sequence_id}


async def test_points_and_names_are_refused_with_their_classes(client: AsyncClient, long: str) -> None:
    """A point that is not kept, with those that are; a name that is taken."""
    for refused in (
        client.sequences.fork("sentiment", long, "x", next_step=2),
        client.sequences.rewind("sentiment", long, 2),
        client.sequences.export("sentiment", long, next_step=2),
    ):
        with pytest.raises(errors.CheckpointNotFound) as caught:
            await refused
        assert caught.value.kept == (1, 3)
    with pytest.raises(errors.SequenceExists):
        await client.sequences.fork("sentiment", long, long)
    with pytest.raises(errors.SequenceNotFound):
        await client.sequences.fork("sentiment", "nobody")


async def test_a_rewound_sequence_goes_on_from_there(client: AsyncClient, long: str) -> None:
    """What came after the checkpoint is gone, and the next stream takes other steps."""
    found = await client.sequences.rewind("sentiment", long, 1)
    assert (found.next_step, found.epoch) == (1, 2)
    async with client.sentiment.stream(long, resume=True) as stream:
        assert (await stream.send("else ")).sentiment.word_count == 2


async def test_a_sequence_is_moved(client: AsyncClient, fake: FakeSentiment, long: str) -> None:
    """A snapshot is bytes; under its own name it is refused while that is live, and then goes on."""
    snapshot = await client.sequences.export("sentiment", long, next_step=3)
    assert isinstance(snapshot, bytes)
    assert (await client.sequences.import_(snapshot, "moved")).next_step == 3
    with pytest.raises(errors.SequenceExists):
        await client.sequences.import_(snapshot)
    await client.sequences.end("sentiment", long)
    assert (await client.sequences.import_(snapshot)).sequence_id == long


async def test_a_server_without_a_key_says_so(client: AsyncClient, fake: FakeSentiment, long: str) -> None:
    """Neither way of a snapshot works there."""
    disabled = Fail(StatusCode.FAILED_PRECONDITION, "SNAPSHOTS_DISABLED")
    for call in (client.sequences.export("sentiment", long), client.sequences.import_(b"x")):
        fake.faults.append(disabled)
        with pytest.raises(errors.SnapshotsDisabled):
            await call
