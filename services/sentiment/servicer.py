"""The sentiment service: converts, lets the model step, converts back."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, cast

from statestream.sentiment.v1 import sentiment_pb2, sentiment_service_pb2, sentiment_service_pb2_grpc

from models.sentiment.features import TextEncodingError, Vocabulary, advance
from services.runtime.core.errors import InvalidInput
from services.runtime.core.offload import sized
from services.runtime.state.types import Carry
from services.runtime.transport.deadline import deadline_of
from services.runtime.transport.header import model_version, reply_header
from services.runtime.transport.stream import SequenceTask, serve_stream
from services.runtime.transport.task import Runtime, Task
from services.sentiment import codec
from services.sentiment.limits import TEXTS_AT_ONCE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    import grpc
    import numpy as np
    import numpy.typing as npt

    from services.runtime.engine.collate import Array
    from services.runtime.engine.served import ServedModel
    from services.runtime.sequences.contract import Fold, StepContext

NAME = "sentiment"

Request = sentiment_pb2.StreamingClassifyRequest
Response = sentiment_pb2.StreamingClassifyResponse


async def read_words(
    model: ServedModel,
    indices: npt.NDArray[np.int64],
    state: tuple[Array, ...],
    logits: tuple[float, float],
    deadline: float | None,
) -> tuple[tuple[float, float], tuple[Array, ...]]:
    """Feeds word indices (T,) to the network; logits and state as they are after the last word."""
    for chunk in codec.chunks(indices, model.manifest.chunk_timesteps_max):
        (scores,), state = await model.batcher.step((chunk,), state, deadline=deadline)
        logits = (float(scores[0]), float(scores[1]))
    return logits, state


def fold_piece(piece: codec.Piece, deadline: float | None) -> Fold:
    """The step of a sequence that reads one piece of text."""

    async def fold(context: StepContext, carry: Carry) -> tuple[bytes, Carry]:
        text = codec.unpack_carry(carry.task)
        vocabulary = cast("Vocabulary", context.model.features)
        try:
            indices, open_text = await sized(
                len(piece.data), advance, vocabulary, text.open_text, piece.data, final=piece.end
            )
        except TextEncodingError as error:
            raise InvalidInput(piece.field, str(error)) from error
        logits, state = await read_words(context.model, indices, carry.tensors, text.logits, deadline)
        after = codec.TextCarry(text.word_count + len(indices), logits, open_text)
        response = Response(
            header=reply_header(context), sentiment=codec.sentiment(logits, after.word_count), final=piece.end
        )
        return response.SerializeToString(), Carry(state, codec.pack_carry(after))

    return fold


STREAM: SequenceTask[Request, codec.Piece] = SequenceTask(
    model=NAME,
    config_of=lambda request: request.config if request.HasField("config") else None,
    control_of=lambda request: request.piece.control if request.HasField("piece") else None,
    parse=codec.parse_piece,
    closing=(codec.Piece(b"", end=True, field="piece"), b""),
    opening=lambda header: Response(header=header).SerializeToString(),
    fold=fold_piece,
    owns=codec.owns,
)


class SentimentServicer(sentiment_service_pb2_grpc.SentimentServiceServicer):
    """See `sentiment_service.proto`."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    async def Classify(  # noqa: N802 - named by the contract
        self,
        request: sentiment_pb2.ClassifyRequest,
        context: grpc.aio.ServicerContext[sentiment_pb2.ClassifyRequest, sentiment_pb2.ClassifyResponse],
    ) -> sentiment_pb2.ClassifyResponse:
        """Judges whole texts; they share runs of the model with each other and with all streams."""
        model = self._runtime.catalogue.find(NAME, request.model_version)
        texts = await sized(request.ByteSize(), codec.parse_texts, request, cast("Vocabulary", model.features))
        deadline = deadline_of(context, self._runtime.clock)
        turns = asyncio.Semaphore(TEXTS_AT_ONCE)

        async def judge(indices: npt.NDArray[np.int64]) -> sentiment_pb2.Sentiment:
            async with turns:
                logits, _ = await read_words(model, indices, model.initial_state, (0.0, 0.0), deadline)
            return codec.sentiment(logits, len(indices))

        try:
            async with asyncio.TaskGroup() as group:
                judged = [group.create_task(judge(indices)) for indices in texts]
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from failures
        return sentiment_pb2.ClassifyResponse(
            results=[task.result() for task in judged], model=model_version(model.model_id)
        )

    def StreamingClassify(  # noqa: N802 - named by the contract
        self, request_iterator: AsyncIterator[Request], context: grpc.aio.ServicerContext[Request, Response]
    ) -> AsyncIterator[Response]:
        """Judges a text that arrives in pieces."""
        # Serialised responses, which the stubs' types cannot say.
        return cast("AsyncIterator[Response]", serve_stream(STREAM, self._runtime, request_iterator, context))


def load_features(folder: Path) -> Vocabulary:
    """The vocabulary that a model was trained with."""
    return Vocabulary.load(folder / "vocabulary.json")


def register(server: grpc.aio.Server, runtime: Runtime) -> None:
    """Adds the service to a server."""
    sentiment_service_pb2_grpc.add_SentimentServiceServicer_to_server(SentimentServicer(runtime), server)


TASK = Task(
    name=NAME,
    # Read, not written: reflection finds only what was imported, and the stubs do not import the service's description.
    service=sentiment_service_pb2.DESCRIPTOR.services_by_name["SentimentService"].full_name,
    register=register,
    load_features=load_features,
)
