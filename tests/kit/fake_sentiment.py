"""A sentiment service without a model: keeps the rules of sequences, counts words, and fails as it is told to."""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status
from grpc import aio
from grpc_health.v1 import health_pb2
from statestream.common.v1 import lifecycle_pb2, lifecycle_service_pb2, lifecycle_service_pb2_grpc, model_pb2
from statestream.common.v1.sequence_pb2 import ReplyHeader, SequenceConfig
from statestream.sentiment.v1 import sentiment_pb2, sentiment_service_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

MODEL = model_pb2.ModelVersion(name="sentiment", version="1", weights_digest="0" * 64)


@dataclass(frozen=True)
class Fail:
    """Ends the call with a status; `applied`: after the step was taken, so that only its reply is lost."""

    code: grpc.StatusCode
    reason: str = ""
    bad_field: str = ""
    retry_delay_s: float | None = None
    metadata: dict[str, str] = field(default_factory=dict[str, str])
    applied: bool = False


@dataclass(frozen=True)
class Close:
    """Ends the call as if all were well, without the reply."""


@dataclass(frozen=True)
class Silence:
    """Takes the step and never replies."""


@dataclass
class StoredSequence:
    """What a store would hold."""

    epoch: int
    start_key: str
    text: bytes = b""
    ended: bool = False
    replies: list[tuple[bytes, bool, sentiment_pb2.StreamingClassifyResponse]] = field(
        default_factory=list[tuple[bytes, bool, sentiment_pb2.StreamingClassifyResponse]]
    )


Fault = Fail | Close | Silence


class FakeSentiment(
    sentiment_service_pb2_grpc.SentimentServiceServicer, lifecycle_service_pb2_grpc.LifecycleServiceServicer
):
    """Two of these with the same `store` are two replicas.

    Attributes:
        faults: used up one by one, by each unary call and each step that arrives; None stands for none.
        configs, pieces: every message as it arrived.
        texts: of every `Classify`.
        seconds_left: to every `Classify` when it arrived.
        clean_ends: streams that were closed, not cancelled, by the client.
        serving: what health says.
        silent: set when a call has come upon `Silence`.
    """

    def __init__(self, store: dict[str, StoredSequence] | None = None) -> None:
        self.store = {} if store is None else store
        self.faults: deque[Fault | None] = deque()
        self.configs: list[SequenceConfig] = []
        self.pieces: list[sentiment_pb2.TextPiece] = []
        self.texts: list[list[str]] = []
        self.seconds_left: list[float] = []
        self.clean_ends = 0
        self.serving = True
        self.silent = asyncio.Event()

    async def Classify(  # noqa: N802 - named by the contract
        self, request: sentiment_pb2.ClassifyRequest, context: aio.ServicerContext[Any, Any]
    ) -> sentiment_pb2.ClassifyResponse:
        """Counts words; positive if there are more than two."""
        self.texts.append(list(request.texts))
        self.seconds_left.append(context.time_remaining())
        await self._fault(context)
        return sentiment_pb2.ClassifyResponse(results=[_judge(text.encode()) for text in request.texts], model=MODEL)

    async def StreamingClassify(  # noqa: N802 - named by the contract
        self,
        request_iterator: AsyncIterator[sentiment_pb2.StreamingClassifyRequest],
        context: aio.ServicerContext[Any, Any],
    ) -> AsyncIterator[sentiment_pb2.StreamingClassifyResponse]:
        """Applies each step once."""
        config = (await anext(request_iterator)).config
        self.configs.append(config)
        start = config.start
        async for message in request_iterator:
            self.pieces.append(message.piece)
            fault = self.faults.popleft() if self.faults else None
            if isinstance(fault, Fail) and not fault.applied:
                await abort(context, fault)
            reply = await self._step(config, message.piece, context, start=start)
            start = False
            if isinstance(fault, Fail):
                await abort(context, fault)
            if isinstance(fault, Close):
                return
            if isinstance(fault, Silence):
                await self._never()
            yield reply
        self.clean_ends += 1

    async def _step(
        self,
        config: SequenceConfig,
        piece: sentiment_pb2.TextPiece,
        context: aio.ServicerContext[Any, Any],
        *,
        start: bool,
    ) -> sentiment_pb2.StreamingClassifyResponse:
        found = self.store.get(config.sequence_id)
        if start and (found is None or found.start_key != config.start_key):
            found = StoredSequence(1 if found is None else found.epoch + 1, config.start_key)
            self.store[config.sequence_id] = found
        if found is None:
            await abort(context, Fail(grpc.StatusCode.NOT_FOUND, "SEQUENCE_NOT_FOUND"))
        content = piece.utf8 or piece.text.encode()
        step, end = piece.control.step, piece.control.end
        if step < len(found.replies):
            if found.replies[step][:2] != (content, end):
                await abort(context, Fail(grpc.StatusCode.FAILED_PRECONDITION, "STEP_CONTENT_MISMATCH"))
            return found.replies[step][2]
        if step > len(found.replies):
            expected = {"expected_step": str(len(found.replies))}
            await abort(context, Fail(grpc.StatusCode.FAILED_PRECONDITION, "STEP_OUT_OF_ORDER", metadata=expected))
        found.text += content
        found.ended = end
        header = ReplyHeader(
            sequence_id=config.sequence_id, step=step, committed_step=step, epoch=found.epoch, model=MODEL, ended=end
        )
        reply = sentiment_pb2.StreamingClassifyResponse(header=header, sentiment=_judge(found.text), final=end)
        found.replies.append((content, end, reply))
        return reply

    async def GetSequence(  # noqa: N802 - named by the contract
        self, request: lifecycle_service_pb2.GetSequenceRequest, context: aio.ServicerContext[Any, Any]
    ) -> lifecycle_service_pb2.GetSequenceResponse:
        """Looks into the store."""
        await self._fault(context)
        found = await self._described(request.sequence_id, context)
        return lifecycle_service_pb2.GetSequenceResponse(sequence=found)

    async def EndSequence(  # noqa: N802 - named by the contract
        self, request: lifecycle_service_pb2.EndSequenceRequest, context: aio.ServicerContext[Any, Any]
    ) -> lifecycle_service_pb2.EndSequenceResponse:
        """Ends without a step."""
        await self._fault(context)
        if request.sequence_id in self.store:
            self.store[request.sequence_id].ended = True
        found = await self._described(request.sequence_id, context)
        return lifecycle_service_pb2.EndSequenceResponse(sequence=found)

    async def check_health(
        self, request: health_pb2.HealthCheckRequest, context: aio.ServicerContext[Any, Any]
    ) -> health_pb2.HealthCheckResponse:
        """Health: SERVING, unless `serving` is unset; each fault stands for one check that says it is not."""
        fault = self.faults.popleft() if self.faults else None
        if isinstance(fault, Fail):
            await abort(context, fault)
        status = health_pb2.HealthCheckResponse
        return status(status=status.SERVING if self.serving and not fault else status.NOT_SERVING)

    async def _described(self, sequence_id: str, context: aio.ServicerContext[Any, Any]) -> lifecycle_pb2.Sequence:
        found = self.store.get(sequence_id)
        if found is None:
            await abort(context, Fail(grpc.StatusCode.NOT_FOUND, "SEQUENCE_NOT_FOUND"))
        ended = found.ended
        described = lifecycle_pb2.Sequence(
            sequence_id=sequence_id,
            status=lifecycle_pb2.SEQUENCE_STATUS_ENDED if ended else lifecycle_pb2.SEQUENCE_STATUS_LIVE,
            epoch=found.epoch,
            next_step=len(found.replies),
            durability=1,  # pyright: ignore[reportArgumentType] - DURABILITY_STEP
            model=MODEL,
            state_bytes=1024,
        )
        described.expire_time.FromSeconds(1_700_000_000)
        return described

    async def _fault(self, context: aio.ServicerContext[Any, Any]) -> None:
        fault = self.faults.popleft() if self.faults else None
        if isinstance(fault, Fail):
            await abort(context, fault)
        if isinstance(fault, Silence):
            await self._never()

    async def _never(self) -> NoReturn:
        self.silent.set()
        await asyncio.Event().wait()
        raise AssertionError


async def abort(context: aio.ServicerContext[Any, Any], fault: Fail) -> NoReturn:
    """Ends a call as the server does, with `google.rpc` details."""
    details: list[BadRequest | ErrorInfo | RetryInfo] = []
    if fault.reason:
        details.append(ErrorInfo(reason=fault.reason, domain="statestream", metadata=fault.metadata))
    if fault.bad_field:
        details.append(BadRequest(field_violations=[BadRequest.FieldViolation(field=fault.bad_field)]))
    if fault.retry_delay_s is not None:
        delay = Duration()
        delay.FromNanoseconds(round(fault.retry_delay_s * 1e9))
        details.append(RetryInfo(retry_delay=delay))
    status = Status(code=fault.code.value[0], message="as scripted", details=[_packed(detail) for detail in details])
    trailing = (("grpc-status-details-bin", status.SerializeToString()),)
    await context.abort(fault.code, status.message, trailing)


@asynccontextmanager
async def serving(fake: FakeSentiment, credentials: grpc.ServerCredentials | None = None) -> AsyncGenerator[str]:
    """The address of a server with this fake; the server is gone when the block is left."""
    server = aio.server()
    sentiment_service_pb2_grpc.add_SentimentServiceServicer_to_server(fake, server)
    lifecycle_service_pb2_grpc.add_LifecycleServiceServicer_to_server(fake, server)
    check = grpc.unary_unary_rpc_method_handler(
        fake.check_health,
        health_pb2.HealthCheckRequest.FromString,
        health_pb2.HealthCheckResponse.SerializeToString,
    )
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("grpc.health.v1.Health", {"Check": check}),))
    where = "127.0.0.1:0"
    port = server.add_secure_port(where, credentials) if credentials else server.add_insecure_port(where)
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(0)


def _judge(text: bytes) -> sentiment_pb2.Sentiment:
    words = len(text.split())
    label = sentiment_pb2.LABEL_POSITIVE if words > 2 else sentiment_pb2.LABEL_NEGATIVE
    return sentiment_pb2.Sentiment(
        label=label if words else sentiment_pb2.LABEL_UNSPECIFIED,
        positive_probability=words / (words + 1) if words else 0.5,
        word_count=words,
    )


def _packed(message: BadRequest | ErrorInfo | RetryInfo) -> AnyMessage:
    packed = AnyMessage()
    packed.Pack(message)
    return packed
