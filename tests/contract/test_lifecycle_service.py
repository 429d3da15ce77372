"""The lifecycle service over real servers: what any gRPC client may rely on, on each store."""

from __future__ import annotations

import secrets
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import grpc
import pytest
import structlog
from statestream.common.v1 import lifecycle_pb2, lifecycle_service_pb2, lifecycle_service_pb2_grpc, sequence_pb2
from statestream.sentiment.v1 import sentiment_pb2

from services.runtime.core.clock import SystemClock
from services.runtime.state.memory import MemoryStore
from services.runtime.state.redis.store import RedisStore
from tests.kit.server import config, piece, replies, running, stub_of, told

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

    from services.runtime.app import Server
    from services.runtime.state.store import StateStore

wire = lifecycle_service_pb2

HEAD = ("The first hour ", "was dull", ", the second ")
TAILS = ("wonderful: I wept.", "worse: I slept.")
SETTINGS: dict[str, Any] = {
    "snapshot_key": "the key of all installations",
    "checkpoint_steps": 1,
    "checkpoints_kept": 8,
}


@pytest.fixture(params=["memory", "redis"])
async def store(request: pytest.FixtureRequest) -> AsyncIterator[StateStore]:
    """A store that the replicas of a test share."""
    if request.param == "memory":
        yield MemoryStore(SystemClock(), bytes_max=10**7, sequences_max=1000)
        return
    one = RedisStore.from_url(request.getfixturevalue("redis_url"))
    yield one
    await one.close()


@pytest.fixture
async def server(store: StateStore) -> AsyncIterator[Server]:
    """A replica that keeps a checkpoint at each commit, and may export."""
    async with running(store=store, **SETTINGS) as one:
        yield one


@pytest.fixture
async def calls(server: Server) -> AsyncIterator[Any]:
    """A plain stub of the lifecycle service on that server."""
    async with lifecycle_of(server) as one:
        yield one


@pytest.fixture
def name() -> str:
    """A sequence that no other test uses."""
    return secrets.token_hex(8)


@asynccontextmanager
async def lifecycle_of(server: Server) -> AsyncGenerator[Any]:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        yield lifecycle_service_pb2_grpc.LifecycleServiceStub(channel)


def asked(name: str, **fields: Any) -> Any:
    return {"model": "sentiment", "sequence_id": name, **fields}


async def feed(
    server: Server, name: str, *texts: str, start: bool = False, end: bool = False, **fields: Any
) -> list[sentiment_pb2.StreamingClassifyResponse]:
    """Replies to some pieces."""
    async with stub_of(server) as stub:
        pieces = [piece(text, end=end and number == len(texts)) for number, text in enumerate(texts, 1)]
        return await replies(stub, config(name, start=start, **fields), *pieces)


async def whole(server: Server, *texts: str) -> bytes:
    """What an undisturbed run makes of the whole text, as bytes."""
    async with stub_of(server) as stub:
        response = await stub.Classify(sentiment_pb2.ClassifyRequest(texts=["".join(texts)]))
    return response.results[0].SerializeToString()


async def refusal(call: Any) -> tuple[str, str, str]:
    """How a call is refused: code, reason and field."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return told(caught.value)


DURABILITIES = [sequence_pb2.DURABILITY_STEP, sequence_pb2.DURABILITY_CHECKPOINT]


@pytest.mark.parametrize("durability", DURABILITIES)
async def test_a_look_tells_what_the_replies_told(server: Server, calls: Any, name: str, durability: int) -> None:
    """Step, epoch, history, durability and model are those of the latest reply, though it was not committed before."""
    last = (await feed(server, name, *HEAD, start=True, durability=durability))[-1].header
    found = (await calls.GetSequence(wire.GetSequenceRequest(**asked(name)))).sequence
    assert (found.sequence_id, found.status) == (name, lifecycle_pb2.SEQUENCE_STATUS_LIVE)
    assert (found.next_step, found.epoch, found.durability) == (last.step + 1, last.epoch, durability)
    assert (found.model, found.history_digest) == (last.model, last.history_digest)
    assert found.state_bytes > 3 * 256 * 4
    assert found.expire_time.seconds > SystemClock().wall()


@pytest.mark.parametrize("durability", DURABILITIES)
async def test_forks_go_on_apart_with_the_bits_of_undisturbed_runs(
    store: StateStore, server: Server, calls: Any, name: str, durability: int
) -> None:
    """Two endings of one text, each on its own fork, at another replica too; the text itself is not disturbed."""
    await feed(server, name, *HEAD, start=True, durability=durability)
    forks = [f"{name}-0", f"{name}-1"]
    response = await calls.ForkSequence(wire.ForkSequenceRequest(**asked(name), new_sequence_ids=forks))
    assert [(fork.sequence_id, fork.next_step) for fork in response.sequences] == [(fork, 3) for fork in forks]
    async with running(store=store, **SETTINGS) as other:
        for fork, tail, replica in zip(forks, TAILS, (server, other), strict=True):
            (last,) = await feed(replica, fork, tail, end=True)
            assert last.sentiment.SerializeToString() == await whole(server, *HEAD, tail)
    (last,) = await feed(server, name, TAILS[0], end=True)
    assert last.header.step == 3
    assert last.sentiment.SerializeToString() == await whole(server, *HEAD, TAILS[0])


async def test_a_fork_from_a_checkpoint_leaves_out_what_followed(server: Server, calls: Any, name: str) -> None:
    """It goes on from there with the bits of a run that never had the rest."""
    await feed(server, name, *HEAD, start=True, durability=sequence_pb2.DURABILITY_STEP)
    found = (await calls.GetSequence(wire.GetSequenceRequest(**asked(name)))).sequence
    assert list(found.checkpoint_steps) == [1, 2]
    fork = f"{name}-early"
    request = wire.ForkSequenceRequest(**asked(name, next_step=1), new_sequence_ids=[fork])
    assert (await calls.ForkSequence(request)).sequences[0].next_step == 1
    assert (await calls.ForkSequence(request)).sequences[0].sequence_id == fork
    (last,) = await feed(server, fork, TAILS[0], end=True)
    assert last.sentiment.SerializeToString() == await whole(server, HEAD[0], TAILS[0])


@pytest.mark.parametrize("durability", DURABILITIES)
async def test_a_rewound_sequence_goes_on_from_there(
    store: StateStore, server: Server, calls: Any, name: str, durability: int
) -> None:
    """With the bits of a run that never had the rest, on any replica; an open stream is told, and commits no more."""
    async with stub_of(server) as stub, running(store=store, **SETTINGS) as other, lifecycle_of(other) as elsewhere:
        open_stream = stub.StreamingClassify()
        await open_stream.write(config(name, start=True, durability=durability))
        for text in HEAD:
            await open_stream.write(piece(text))
            await open_stream.read()
        before = (await calls.GetSequence(wire.GetSequenceRequest(**asked(name)))).sequence
        assert 1 in before.checkpoint_steps
        rewound = (await elsewhere.RewindSequence(wire.RewindSequenceRequest(**asked(name), next_step=1))).sequence
        assert rewound.next_step == 1
        assert rewound.epoch > before.epoch
        assert list(rewound.checkpoint_steps) == []
        await open_stream.write(piece("never committed"))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            while True:
                assert await open_stream.read() is not grpc.aio.EOF
                await open_stream.write(piece("never committed"))
        assert told(caught.value)[:2] == ("ABORTED", "STEP_CONFLICT")
        (last,) = await feed(other, name, TAILS[1], end=True)
        assert last.header.step == 1
        assert last.sentiment.SerializeToString() == await whole(server, HEAD[0], TAILS[1])


async def test_a_sequence_moves_to_another_installation(server: Server, calls: Any, name: str) -> None:
    """With another store and the same key and model it goes on with the same bits; the old one stays."""
    await feed(server, name, *HEAD, start=True)
    exported = await calls.ExportSequence(wire.ExportSequenceRequest(**asked(name)))
    assert exported.sequence.next_step == 3
    request = wire.ImportSequenceRequest(snapshot=exported.snapshot)
    async with running(**SETTINGS) as abroad, lifecycle_of(abroad) as there:
        imported = (await there.ImportSequence(request)).sequence
        assert (imported.sequence_id, imported.next_step) == (name, 3)
        assert imported.history_digest == exported.sequence.history_digest
        assert (await there.ImportSequence(request)).sequence == imported
        (last,) = await feed(abroad, name, TAILS[0], end=True)
        assert last.sentiment.SerializeToString() == await whole(server, *HEAD, TAILS[0])
    (last,) = await feed(server, name, TAILS[0], end=True)
    assert last.sentiment.SerializeToString() == await whole(server, *HEAD, TAILS[0])


async def test_sequences_are_listed_page_by_page(server: Server, calls: Any, name: str) -> None:
    """Each of them once, live ones alone on demand, also those that another page size would have cut off."""
    names = {f"{name}-{number}" for number in range(7)}
    for each in names:
        await feed(server, each, "fine", start=True)
    await calls.EndSequence(wire.EndSequenceRequest(**asked(f"{name}-3")))

    async def ours(**fields: Any) -> list[str]:
        found: list[str] = []
        request = wire.ListSequencesRequest(model="sentiment", **fields)
        while True:
            page = await calls.ListSequences(request)
            found += [each.sequence_id for each in page.sequences if each.sequence_id.startswith(name)]
            if not page.next_page_token:
                return found
            request.page_token = page.next_page_token

    assert sorted(await ours()) == sorted(names)
    assert sorted(await ours(page_size=2)) == sorted(names)
    assert sorted(await ours(live_only=True)) == sorted(names - {f"{name}-3"})


async def test_each_refusal_has_its_status(server: Server, calls: Any, name: str) -> None:
    """Code, reason and field, of everything that can be asked in vain."""
    await feed(server, name, *HEAD, start=True)
    await feed(server, f"{name}-live", "fine", start=True)
    await feed(server, f"{name}-over", "fine", start=True, end=True)
    fork: dict[str, Any] = asked(name, new_sequence_ids=[f"{name}-new"])
    taken = wire.ForkSequenceRequest(**asked(name), new_sequence_ids=[f"{name}-new", f"{name}-live"])
    table = [
        (calls.GetSequence(wire.GetSequenceRequest(model="sentiment")), "INVALID_INPUT", "sequence_id"),
        (calls.GetSequence(wire.GetSequenceRequest(**asked(f"{name}-no"))), "SEQUENCE_NOT_FOUND", ""),
        (calls.ListSequences(wire.ListSequencesRequest()), "INVALID_INPUT", "model"),
        (calls.ListSequences(wire.ListSequencesRequest(model="m", page_size=1001)), "INVALID_INPUT", "page_size"),
        (calls.ListSequences(wire.ListSequencesRequest(model="m", page_token="?")), "INVALID_INPUT", "page_token"),  # noqa: S106
        (calls.ForkSequence(wire.ForkSequenceRequest(**asked(name))), "INVALID_INPUT", "new_sequence_ids"),
        (calls.ForkSequence(wire.ForkSequenceRequest(**fork, next_step=9)), "CHECKPOINT_NOT_FOUND", ""),
        (calls.ForkSequence(wire.ForkSequenceRequest(**fork, next_step=0)), "CHECKPOINT_NOT_FOUND", ""),
        (calls.ForkSequence(taken), "SEQUENCE_EXISTS", "new_sequence_ids[1]"),
        (calls.RewindSequence(wire.RewindSequenceRequest(**asked(name))), "CHECKPOINT_NOT_FOUND", ""),
        (calls.RewindSequence(wire.RewindSequenceRequest(**asked(f"{name}-over"))), "SEQUENCE_ENDED", ""),
        (calls.ExportSequence(wire.ExportSequenceRequest(**asked(f"{name}-over"))), "SEQUENCE_ENDED", ""),
        (calls.ImportSequence(wire.ImportSequenceRequest(snapshot=b"?")), "INVALID_INPUT", "snapshot"),
    ]
    for call, reason, field in table:
        assert (await refusal(call))[1:] == (reason, field)
    assert (await refusal(calls.ForkSequence(taken)))[0] == "ALREADY_EXISTS"
    never_kept = wire.RewindSequenceRequest(**asked(name))
    assert (await refusal(calls.RewindSequence(never_kept)))[0] == "FAILED_PRECONDITION"


async def test_without_a_key_nothing_is_moved(name: str) -> None:
    """The error says that no key is configured; all else works."""
    async with running() as server, lifecycle_of(server) as calls:
        await feed(server, name, "fine", start=True)
        export = calls.ExportSequence(wire.ExportSequenceRequest(**asked(name)))
        assert await refusal(export) == ("FAILED_PRECONDITION", "SNAPSHOTS_DISABLED", "")
        import_ = calls.ImportSequence(wire.ImportSequenceRequest(snapshot=b"?"))
        assert await refusal(import_) == ("FAILED_PRECONDITION", "SNAPSHOTS_DISABLED", "")


async def test_a_volatile_sequence_is_forked_and_moved_but_not_listed(server: Server, calls: Any, name: str) -> None:
    """One replica alone knows it, so no list has it; that replica can do all else with it."""
    await feed(server, name, *HEAD, start=True, durability=sequence_pb2.DURABILITY_NONE)
    await calls.ForkSequence(wire.ForkSequenceRequest(**asked(name), new_sequence_ids=[f"{name}-fork"]))
    (last,) = await feed(server, f"{name}-fork", TAILS[0], end=True)
    assert last.sentiment.SerializeToString() == await whole(server, *HEAD, TAILS[0])
    assert not last.header.HasField("committed_step")
    assert (await calls.ExportSequence(wire.ExportSequenceRequest(**asked(name)))).snapshot
    page = await calls.ListSequences(wire.ListSequencesRequest(model="sentiment", page_size=1000))
    assert name not in {each.sequence_id for each in page.sequences}


async def test_nothing_that_a_client_sent_is_logged(server: Server, calls: Any, name: str) -> None:
    """Neither names nor snapshots, in good calls and in refused ones; metrics count without naming."""
    with structlog.testing.capture_logs() as logs:
        await feed(server, name, "fine", start=True)
        await calls.ForkSequence(wire.ForkSequenceRequest(**asked(name), new_sequence_ids=[f"{name}-fork"]))
        await refusal(calls.RewindSequence(wire.RewindSequenceRequest(**asked(name), next_step=9)))
        for snapshot in (name.encode(), b"STSN\x01\x00\x00\x00" + name.encode() * 20):
            await refusal(calls.ImportSequence(wire.ImportSequenceRequest(snapshot=snapshot)))
    assert name not in str(logs)
    sample = server.metrics.registry.get_sample_value
    assert sample("statestream_sequences_forked_total", {"model": "sentiment"}) == 1
