"""Real processes and a real Redis: sequences outlive the replicas that serve them."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from statestream.common.v1 import sequence_pb2
from statestream.sentiment.v1 import sentiment_pb2, sentiment_service_pb2_grpc

from tests.kit.processes import Replica, replicas, start_replica
from tests.kit.server import Response, config, piece, replies, told

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

TEXT = "At first it seemed another tired sequel , but slowly , scene by scene , it wins you over : a small triumph !"
WORDS = [f"{word} " for word in TEXT.split(" ")]


@asynccontextmanager
async def stub_at(replica: Replica) -> AsyncGenerator[Any]:
    """A plain stub on one replica."""
    async with grpc.aio.insecure_channel(replica.address) as channel:
        yield sentiment_service_pb2_grpc.SentimentServiceStub(channel)


async def step(replica: Replica, name: str, number: int, **fields: Any) -> Response:
    """One step of the sequence on a new stream to this replica."""
    opening = config(name, start=number == 0, start_key="key" if number == 0 else "", **fields)
    async with stub_at(replica) as stub:
        message = piece(WORDS[number], step=number, end=number == len(WORDS) - 1)
        return (await replies(stub, opening, message))[0]


def bits(response: Response) -> bytes:
    return response.sentiment.SerializeToString()


async def test_a_sequence_outlives_every_replica(redis_url: str) -> None:
    """Each replica is killed -9 in mid-stream and replaced: every reply has the bits of an undisturbed run."""
    async with replicas(2, store="redis", redis_url=redis_url) as group:
        undisturbed = [await step(group[0], "undisturbed", number) for number in range(len(WORDS))]
        disturbed: list[Response] = []
        for number in range(len(WORDS)):
            if number in {6, 14}:
                victim = group.pop(0)
                async with stub_at(victim) as stub:
                    call = stub.StreamingClassify()
                    await call.write(config("disturbed"))
                    await call.write(piece(WORDS[number], step=number))
                    await victim.kill()
                    with pytest.raises(grpc.aio.AioRpcError) as caught:
                        while await call.read() is not grpc.aio.EOF:
                            continue
                    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
                group.append(await start_replica(store="redis", redis_url=redis_url))
            disturbed.append(await step(group[number % 2], "disturbed", number))
        assert [bits(reply) for reply in disturbed] == [bits(reply) for reply in undisturbed]
        assert disturbed[-1].final
        async with stub_at(group[0]) as stub:
            whole = (await stub.Classify(sentiment_pb2.ClassifyRequest(texts=[TEXT]))).results[0]
        assert disturbed[-1].sentiment == whole


async def test_the_same_step_at_two_replicas_at_once_is_answered_once(redis_url: str) -> None:
    """All answer, with the same bytes, and the sequence has moved by one step; with STEP nobody is fenced off."""
    durable = {"durability": sequence_pb2.DURABILITY_STEP}
    async with replicas(2, store="redis", redis_url=redis_url) as (one, two):
        for number in range(len(WORDS)):
            both = await asyncio.gather(*(step(replica, "twice", number, **durable) for replica in (one, two, one)))
            assert len({reply.SerializeToString() for reply in both}) == 1
            assert both[0].header.step == number
        assert both[0].sentiment.word_count == len(WORDS)


async def test_a_terminated_replica_ends_well_and_loses_nothing(redis_url: str) -> None:
    """SIGTERM: live streams are told DRAINING, the exit status is 0, and the sequence goes on elsewhere."""
    async with replicas(2, store="redis", redis_url=redis_url) as (one, two):
        async with stub_at(one) as stub:
            call = stub.StreamingClassify()
            await call.write(config("drained", start=True))
            await call.write(piece(WORDS[0], step=0))
            await call.read()
            ending = asyncio.create_task(one.terminate())
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call.read()
            assert told(caught.value)[1] == "DRAINING"
            assert await ending == 0
        assert (await step(two, "drained", 1)).sentiment.word_count == 2
