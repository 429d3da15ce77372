"""Streams that resume and streams that are sent on, over a real server, with a plain stub as any language has it."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from statestream import AsyncClient

from services.runtime.core.clock import SystemClock
from services.runtime.core.ids import SequenceName
from services.runtime.state.memory import MemoryStore
from services.runtime.state.types import Stored
from tests.kit.server import Request, Response, config, piece, refused, replies, running, stub_of

WORDS = [f"word{number} " for number in range(12)]
LATE: dict[str, Any] = {"commit_interval_ms": 3_600_000.0, "commit_steps": 1000, "uncommitted_steps_max": 1000}
"""Settings under which nothing is committed by time or number."""


async def one_by_one(stub: Any, *messages: Request) -> tuple[Any, list[Response]]:
    """An open call and the replies to `messages`; the configuration gets one only where it resumes."""
    call = stub.StreamingClassify()
    answers: list[Response] = []
    for message in messages:
        await call.write(message)
        if message.HasField("piece") or message.config.resume:
            answers.append(await call.read())
    return call, answers


def pieces(first: int, until: int) -> list[Request]:
    """Numbered steps."""
    return [piece(WORDS[step], step=step) for step in range(first, until)]


def a_store() -> MemoryStore:
    """A store for several servers."""
    return MemoryStore(SystemClock(), bytes_max=10**7, sequences_max=100)


async def stored_step(store: MemoryStore, sequence_id: str) -> int:
    """The step that the store would go on with."""
    found = await store.load(SequenceName("default", "sentiment", sequence_id))
    assert isinstance(found, Stored)
    return found.record.position.step


async def test_the_first_response_tells_where_to_go_on() -> None:
    """A stream that resumes at another replica gets the next step, a new epoch, and the history so far."""
    store = a_store()
    async with (
        running(store=store, **LATE) as a,
        running(store=store, **LATE) as b,
        stub_of(a) as one,
        stub_of(b) as two,
    ):
        told = await replies(one, config("s", start=True), *pieces(0, 4))
        assert [reply.header.committed_step for reply in told] == [0, 0, 0, 0]
        assert len({reply.header.history_digest for reply in told}) == 4
        opening, after = await replies(two, config("s", resume=True), *pieces(4, 5))
        assert not opening.HasField("sentiment")
        header = opening.header
        assert (header.next_step, header.committed_step, header.lost, header.ended) == (4, 3, False, False)
        assert header.history_digest == told[-1].header.history_digest
        assert header.epoch > told[-1].header.epoch
        assert (after.header.step, after.header.epoch) == (4, header.epoch)


async def test_the_same_words_give_the_same_history() -> None:
    """Whatever replica and epoch: who compares digests compares what the sequence was fed."""
    store = a_store()
    async with running(store=store) as a, running(store=store) as b, stub_of(a) as one, stub_of(b) as two:
        whole = await replies(one, config("whole", start=True, start_key="k"), *pieces(0, 6))
        await replies(one, config("cut", start=True, start_key="k"), *pieces(0, 3))
        rest = await replies(two, config("cut", resume=True), *pieces(3, 6))
        assert rest[-1].header.history_digest == whole[-1].header.history_digest
        assert rest[-1].sentiment == whole[-1].sentiment
        other = await replies(two, config("other", start=True, start_key="k"), *pieces(0, 5), piece("else ", step=5))
        assert other[-1].header.history_digest != whole[-1].header.history_digest


async def test_what_was_not_committed_is_asked_for_again() -> None:
    """The replica is gone with its uncommitted steps: another one tells the step to send from, and answers alike."""
    store = a_store()
    async with running(store=store, **LATE) as lost, stub_of(lost) as stub:
        call, told = await one_by_one(stub, config("s", start=True), *pieces(0, 6))
        assert await stored_step(store, "s") == 1
        async with running(store=store) as other, stub_of(other) as second:
            again = await replies(
                second, config("s", resume=True, committed_step=0, epoch=told[0].header.epoch), *pieces(1, 8)
            )
            assert (again[0].header.next_step, again[0].header.lost) == (1, False)
            assert [reply.sentiment for reply in again[1:6]] == [reply.sentiment for reply in told[1:]]
            assert [reply.header.history_digest for reply in again[1:6]] == [r.header.history_digest for r in told[1:]]
        await call.write(piece(WORDS[6], step=6))
        await call.read()
        await call.done_writing()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            while await call.read() is not grpc.aio.EOF:
                pass
        assert caught.value.code() is grpc.StatusCode.ABORTED
        assert await stored_step(store, "s") == 8


async def test_half_closing_commits() -> None:
    """When the call has ended well, all that it was answered is in the store."""
    store = a_store()
    async with running(store=store, **LATE) as server, stub_of(server) as stub:
        await replies(stub, config("s", start=True), *pieces(0, 5))
        assert await stored_step(store, "s") == 5


async def test_half_closing_does_not_say_well_what_was_fenced_off() -> None:
    """Another stream has resumed the sequence meanwhile, without the last steps of this one: it is told so."""
    store = a_store()
    async with running(store=store, **LATE) as a, running(store=store) as b, stub_of(a) as one, stub_of(b) as two:
        call, _ = await one_by_one(one, config("s", start=True), *pieces(0, 4))
        await replies(two, config("s", resume=True))
        await a._sequences._heads.settle_all()  # as it would by and by, and finds itself fenced off
        await call.done_writing()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
        assert metadata_of(caught.value)[0] == "STEP_CONFLICT"
        assert await stored_step(store, "s") == 1


async def test_draining_commits_and_says_where_to_go_on() -> None:
    """A stream that is open when the replica stops ends with DRAINING, the next step, and all of it committed."""
    store = a_store()
    async with running(store=store, **LATE) as server, stub_of(server) as stub:
        call, _ = await one_by_one(stub, config("s", start=True), *pieces(0, 5))
        assert await stored_step(store, "s") == 1
        stopping = asyncio.create_task(server.stop())
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
        await stopping
        assert await stored_step(store, "s") == 5
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert metadata_of(caught.value) == ("DRAINING", {"next_step": "5", "committed_step": "4"})


def metadata_of(error: grpc.aio.AioRpcError) -> tuple[str, dict[str, str]]:
    """Reason and metadata of an error."""
    pairs: dict[str, Any] = dict(error.trailing_metadata() or ())
    status = status_pb2.Status.FromString(pairs["grpc-status-details-bin"])
    info = error_details_pb2.ErrorInfo()
    status.details[0].Unpack(info)
    return info.reason, dict(info.metadata)


async def test_a_client_that_leaves_loses_nothing_that_was_answered() -> None:
    """A cancelled call leaves its steps with the replica, which commits them when the time has come, or it stops."""
    store = a_store()
    async with running(store=store, **LATE) as server, stub_of(server) as stub:
        call, _ = await one_by_one(stub, config("s", start=True), *pieces(0, 5))
        call.cancel()
        await server.stop()
        assert await stored_step(store, "s") == 5


async def test_an_ended_sequence_gives_its_last_reply_to_who_resumes() -> None:
    """The reply to END was lost on the way: the stream that resumes is told that it ended, and gets it again."""
    async with running() as server, stub_of(server) as stub:
        told = await replies(stub, config("s", start=True), *pieces(0, 2), piece("end", step=2, end=True))
        opening, last = await replies(stub, config("s", resume=True), piece("end", step=2, end=True))
        assert (opening.header.ended, opening.header.next_step) == (True, 3)
        assert last == told[-1]


async def test_a_store_that_is_older_is_told_of() -> None:
    """Who was told of a later commit than the store has is told that there was a loss."""
    async with running() as server, stub_of(server) as stub:
        told = await replies(stub, config("s", start=True), *pieces(0, 3))
        [opening] = await replies(stub, config("s", resume=True, committed_step=7, epoch=told[0].header.epoch))
        assert (opening.header.lost, opening.header.next_step) == (True, 3)
        [opening] = await replies(stub, config("s", resume=True, committed_step=2, epoch=opening.header.epoch))
        assert not opening.header.lost


async def test_who_was_left_behind_is_told_and_shuts_nobody_out() -> None:
    """A client whose steps another one has replaced learns it when it resumes, and the other goes on."""
    store = a_store()
    async with running(store=store, **LATE) as server, stub_of(server) as stub:
        await replies(stub, config("s", start=True), *pieces(0, 2))
        mine = await replies(stub, config("s", resume=True), *pieces(2, 3))
        yours = (await replies(stub, config("s", start=True), piece("other ", step=0), *pieces(1, 3)))[-1].header
        been: dict[str, Any] = {"next_step": 3, "history_digest": mine[-1].header.history_digest}
        told = await refused(server, config("s", resume=True, **been))
        assert told == ("ABORTED", "STEP_CONFLICT", "")
        been["history_digest"] = yours.history_digest
        opening, *_ = await replies(stub, config("s", resume=True, **been), *pieces(3, 5))
        assert opening.header.next_step == 3
        [again] = await replies(stub, config("s", resume=True, **been))
        assert again.header.next_step == 5
        been["history_digest"] = mine[-1].header.history_digest
        assert (await refused(server, config("s", resume=True, **been)))[1] == "STEP_CONFLICT"


@pytest.mark.parametrize("steps", [2, 5])
async def test_an_earlier_sequence_of_the_name_is_no_rival(steps: int) -> None:
    """A fail-over brings back what had the name before: the client feeds its own anew instead of giving up."""
    store = a_store()
    async with running(store=store) as server, AsyncClient(f"127.0.0.1:{server.port}") as client:
        name = SequenceName("default", "sentiment", "s")
        async with client.sentiment.stream("s") as before:
            for word in WORDS[:steps]:
                await before.send(word)
        earlier = await store.load(name)
        assert isinstance(earlier, Stored)
        async with client.sentiment.stream("s") as stream:
            for word in WORDS[4:7]:
                await stream.send(word)
            await server._sequences._heads.settle_all()
            server._sequences._heads.drop(name)
            entry = store._live[name]
            entry.newest = entry.newest._replace(record=earlier.record)
            stream._link.drop()
            assert (await stream.send(WORDS[7])).sentiment.word_count == 4
            assert stream.stats.losses == 1
        assert await stored_step(store, "s") == 4


@pytest.mark.parametrize("wrong", [{"sequence_id": "s", "start": True}, {"sequence_id": ""}])
async def test_resume_needs_a_name_and_no_start(wrong: dict[str, Any]) -> None:
    """What cannot be meant is refused by the name of the field."""
    async with running() as server:
        told = await refused(server, config(resume=True, **wrong))
        assert told == ("INVALID_ARGUMENT", "INVALID_INPUT", "config.resume")


async def test_what_is_not_there_cannot_be_resumed() -> None:
    """NOT_FOUND at once, before any step."""
    async with running() as server:
        assert await refused(server, config("nobody", resume=True)) == ("NOT_FOUND", "SEQUENCE_NOT_FOUND", "")
