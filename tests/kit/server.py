"""Real servers in the test's own event loop, on free ports of the loopback address."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import grpc
from google.rpc import error_details_pb2, status_pb2
from statestream.common.v1 import sequence_pb2
from statestream.sentiment.v1 import sentiment_pb2, sentiment_service_pb2_grpc

from services.runtime.app import Server
from services.runtime.config import Settings
from services.sentiment.servicer import TASK

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Iterable

    from services.runtime.core.clock import Clock
    from services.runtime.state.store import StateStore

Request = sentiment_pb2.StreamingClassifyRequest
Response = sentiment_pb2.StreamingClassifyResponse


@asynccontextmanager
async def running(
    *, store: StateStore | None = None, clock: Clock | None = None, **settings: Any
) -> AsyncGenerator[Server]:
    """A warm server of the sentiment task; `settings` override the defaults."""
    values: Any = {"listen": "127.0.0.1:0", "metrics_listen": "", "drain_s": 1.0, **settings}
    server = Server(Settings(**values), (TASK,), store=store, clock=clock)
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


@asynccontextmanager
async def stub_of(server: Server) -> AsyncGenerator[sentiment_service_pb2_grpc.SentimentServiceAsyncStub]:
    """A plain gRPC stub, as any language would make it."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        yield sentiment_service_pb2_grpc.SentimentServiceStub(channel)


def config(sequence_id: str = "", *, start: bool = False, **fields: Any) -> Request:
    """The first message of a stream."""
    return Request(config=sequence_pb2.SequenceConfig(sequence_id=sequence_id, start=start, **fields))


def piece(content: str | bytes, *, step: int | None = None, end: bool = False) -> Request:
    """A step with a piece of text."""
    control = sequence_pb2.StepControl(step=step, end=end)
    if isinstance(content, str):
        return Request(piece=sentiment_pb2.TextPiece(control=control, text=content))
    return Request(piece=sentiment_pb2.TextPiece(control=control, utf8=content))


async def replies(stub: Any, *messages: Request) -> list[Response]:
    """All replies to one stream of messages."""

    async def requests() -> AsyncIterator[Request]:
        for message in messages:
            yield message

    return [reply async for reply in stub.StreamingClassify(requests())]


async def refused(server: Server, *messages: Request) -> tuple[str, str, str]:
    """How a stream of messages is refused, as `told`.

    With the blocking client: that of asyncio says INTERNAL where a message could not be sent any more because the
    server had refused the one before.
    """

    def call() -> tuple[str, str, str]:
        with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            stub: Any = sentiment_service_pb2_grpc.SentimentServiceStub(channel)
            try:
                answered = len(list(stub.StreamingClassify(iter(messages))))
            except grpc.RpcError as error:
                return told(error)
        raise AssertionError(f"not refused, but answered {answered} times")

    return await asyncio.to_thread(call)


def told(error: Any) -> tuple[str, str, str]:
    """What a client can read of an error: code, reason, and field ("" where none is named)."""
    status = status_pb2.Status.FromString(
        next(value for key, value in _pairs(error) if key == "grpc-status-details-bin")
    )
    info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    fields = [detail for detail in status.details if detail.Unpack(bad)]
    status.details[0].Unpack(info)
    return error.code().name, info.reason, bad.field_violations[0].field if fields else ""


def _pairs(error: Any) -> Iterable[tuple[str, Any]]:
    return ((str(key), value) for key, value in (error.trailing_metadata() or ()))
