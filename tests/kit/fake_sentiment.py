"""A sentiment service without a model: keeps the rules of sequences, counts words, and fails as it is told to."""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, NoReturn

import grpc
from grpc import StatusCode, aio
from grpc_health.v1 import health_pb2
from statestream.common.v1 import lifecycle_service_pb2_grpc
from statestream.common.v1.sequence_pb2 import DURABILITY_NONE, DURABILITY_STEP, ReplyHeader, SequenceConfig
from statestream.sentiment.v1 import sentiment_pb2, sentiment_service_pb2_grpc

from tests.kit.fake_lifecycle import MODEL, FakeLifecycle, not_found
from tests.kit.fake_store import Close, Fail, Fault, Silence, StoredSequence, Taken, abort

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

Response = sentiment_pb2.StreamingClassifyResponse


class FakeSentiment(sentiment_service_pb2_grpc.SentimentServiceServicer, FakeLifecycle):
    """Two of these with the same `store` are two replicas.

    Attributes:
        faults: used up one by one, by each unary call and each step that arrives; None stands for none.
        opening_faults, closing_faults: the same for each stream that resumes, and each that is half-closed.
        commit_every: so many steps go into one commit; 0: nothing but the first and the last step is committed.
        configs, pieces: every message as it arrived.
        texts: of every `Classify`.
        seconds_left: to every `Classify` when it arrived.
        clean_ends: streams that were closed, not cancelled, by the client.
        knows_histories: refuses to resume a sequence that has gone another way than its client says.
        serving: what health says.
        asked_of: the service that the metadata of each such question names.
        silent: set when a call has come upon `Silence`.
    """

    def __init__(self, store: dict[str, StoredSequence] | None = None, *, commit_every: int = 1) -> None:
        self.store = {} if store is None else store
        self.commit_every = commit_every
        self.faults: deque[Fault | None] = deque()
        self.opening_faults: deque[Fault | None] = deque()
        self.closing_faults: deque[Fault | None] = deque()
        self.configs: list[SequenceConfig] = []
        self.pieces: list[sentiment_pb2.TextPiece] = []
        self.texts: list[list[str]] = []
        self.seconds_left: list[float] = []
        self.clean_ends = 0
        self.knows_histories = False
        self.serving = True
        self.asked_of: list[str] = []
        self.silent = asyncio.Event()

    @property
    def steps(self) -> list[int]:
        """Number of every step as it arrived."""
        return [piece.control.step for piece in self.pieces]

    async def Classify(  # noqa: N802 - named by the contract
        self, request: sentiment_pb2.ClassifyRequest, context: aio.ServicerContext[Any, Any]
    ) -> sentiment_pb2.ClassifyResponse:
        """Counts words; positive if there are more than two."""
        self.texts.append(list(request.texts))
        self.seconds_left.append(context.time_remaining())
        await self.fault(context)
        return sentiment_pb2.ClassifyResponse(results=[_judge(text.encode()) for text in request.texts], model=MODEL)

    async def StreamingClassify(  # noqa: N802 - named by the contract
        self,
        request_iterator: AsyncIterator[sentiment_pb2.StreamingClassifyRequest],
        context: aio.ServicerContext[Any, Any],
    ) -> AsyncIterator[Response]:
        """Applies each step once, in the epoch that the stream began in."""
        config = (await anext(request_iterator)).config
        self.configs.append(config)
        name, start, epoch = config.sequence_id, config.start, None
        if config.resume:
            fault = self.opening_faults.popleft() if self.opening_faults else None
            await self._before(fault, name, context)
            opening = await self._resume(config, context)
            epoch = opening.header.epoch
            await self._after(fault, name, context)
            if isinstance(fault, Close):
                return
            yield opening
        async for message in request_iterator:
            self.pieces.append(message.piece)
            fault = self.faults.popleft() if self.faults else None
            await self._before(fault, name, context)
            reply = await self._step(config, message.piece, context, epoch, start=start)
            start, epoch = False, self.store[name].epoch
            await self._after(fault, name, context)
            if isinstance(fault, Close):
                return
            yield reply
            if isinstance(fault, Fail):
                await self._fail(fault, name, context)
        fault = self.closing_faults.popleft() if self.closing_faults else None
        await self._before(fault, name, context)
        if name in self.store and self.store[name].epoch == epoch:
            self.store[name].commit()
        await self._after(fault, name, context)
        self.clean_ends += 1

    async def _before(self, fault: Fault | None, name: str, context: aio.ServicerContext[Any, Any]) -> None:
        if isinstance(fault, Fail) and not (fault.applied or fault.replied):
            await self._fail(fault, name, context)

    async def _after(self, fault: Fault | None, name: str, context: aio.ServicerContext[Any, Any]) -> None:
        if isinstance(fault, Fail) and not fault.replied:
            await self._fail(fault, name, context)
        if isinstance(fault, Silence):
            await self._never()

    async def _fail(self, fault: Fail, name: str, context: aio.ServicerContext[Any, Any]) -> NoReturn:
        if fault.dies and name in self.store:
            self.store[name].roll_back(self.store[name].committed)
        await abort(context, fault)

    async def _resume(self, config: SequenceConfig, context: aio.ServicerContext[Any, Any]) -> Response:
        found = self.store.get(config.sequence_id)
        if found is None:
            await not_found(context)
        if found.head_of is not self:
            found.roll_back(found.committed)
        next_step = len(found.replies)
        known = self.knows_histories and config.history_digest and config.next_step <= next_step
        if known and found.digest(config.next_step) != config.history_digest:
            await abort(context, Fail(StatusCode.ABORTED, "STEP_CONFLICT"))
        lost = config.HasField("committed_step") and next_step - 1 < config.committed_step
        if not found.ended:
            found.epoch = max(found.epoch, config.epoch) + 1
            found.head_of = self
            found.commit()
        header = ReplyHeader(
            sequence_id=config.sequence_id,
            committed_step=None if found.durability == DURABILITY_NONE else next_step - 1,
            epoch=found.epoch,
            model=MODEL,
            ended=found.ended,
            next_step=next_step,
            lost=lost,
            history_digest=found.digest(next_step),
        )
        return Response(header=header)

    async def _step(
        self,
        config: SequenceConfig,
        piece: sentiment_pb2.TextPiece,
        context: aio.ServicerContext[Any, Any],
        epoch: int | None,
        *,
        start: bool,
    ) -> Response:
        found = self.store.get(config.sequence_id)
        if start and (found is None or found.start_key != config.start_key):
            found = StoredSequence(
                1 if found is None else found.epoch + 1,
                config.start_key,
                durability=config.durability or DURABILITY_STEP,
                head_of=self,
            )
            self.store[config.sequence_id] = found
        if found is None:
            await not_found(context)
        if epoch not in (None, found.epoch):
            await abort(context, Fail(StatusCode.ABORTED, "STEP_CONFLICT"))
        content = piece.utf8 or piece.text.encode()
        step, end = piece.control.step, piece.control.end
        if step < len(found.replies):
            # The first step is the same only with the key of its start.
            if found.replies[step][:2] != (content, end) or (step == 0 and not start):
                await abort(context, Fail(StatusCode.FAILED_PRECONDITION, "STEP_CONTENT_MISMATCH"))
            return found.replies[step].reply
        if found.ended:
            await abort(context, Fail(StatusCode.FAILED_PRECONDITION, "SEQUENCE_ENDED"))
        if step > len(found.replies):
            expected = {"expected_step": str(len(found.replies))}
            await abort(context, Fail(StatusCode.FAILED_PRECONDITION, "STEP_OUT_OF_ORDER", metadata=expected))
        return self._applied(config.sequence_id, found, content, end=end)

    def _applied(self, name: str, found: StoredSequence, content: bytes, *, end: bool) -> Response:
        step, reply = len(found.replies), Response()
        found.replies.append(Taken(content, end, reply))
        found.ended = end
        if step == 0 or end or (self.commit_every and (step + 1) % self.commit_every == 0):
            found.commit()
        header = ReplyHeader(
            sequence_id=name,
            step=step,
            committed_step=None if found.durability == DURABILITY_NONE else found.committed - 1,
            epoch=found.epoch,
            model=MODEL,
            ended=end,
            history_digest=found.digest(step + 1),
        )
        reply.MergeFrom(Response(header=header, sentiment=_judge(found.text), final=end))
        return reply

    async def check_health(
        self, request: health_pb2.HealthCheckRequest, context: aio.ServicerContext[Any, Any]
    ) -> health_pb2.HealthCheckResponse:
        """Health: SERVING, unless `serving` is unset; each fault stands for one check that says it is not."""
        named = {key: str(value) for key, value in context.invocation_metadata() or ()}
        self.asked_of.append(named.get("statestream-service", ""))
        fault = self.faults.popleft() if self.faults else None
        if isinstance(fault, Fail):
            await abort(context, fault)
        status = health_pb2.HealthCheckResponse
        return status(status=status.SERVING if self.serving and not fault else status.NOT_SERVING)

    async def fault(self, context: aio.ServicerContext[Any, Any]) -> None:
        """The next fault of a unary call; `applied` is for steps only."""
        fault = self.faults.popleft() if self.faults else None
        if isinstance(fault, Fail):
            await abort(context, fault)
        if isinstance(fault, Silence):
            await self._never()

    async def _never(self) -> NoReturn:
        self.silent.set()
        await asyncio.Event().wait()
        raise AssertionError


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
