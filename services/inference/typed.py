"""`statestream.inference.v1.InferenceService`: any model as raw tensors, on streams that resume as those of a task."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, cast

from statestream.inference.v1 import (
    inference_pb2,
    inference_service_pb2,
    inference_service_pb2_grpc,
)

from services.inference.codec import CARRY_TAG, owns
from services.inference.steps import run_whole, step_inputs, unmoved
from services.inference.tensors import RANK_MAX, Head, head_of
from services.runtime.core.errors import InvalidInput
from services.runtime.state.types import Carry
from services.runtime.transport.deadline import deadline_of
from services.runtime.transport.header import model_version, reply_header
from services.runtime.transport.stream import SequenceTask, serve_stream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Sequence

    import grpc

    from services.inference.tensors import Plan, TensorHead
    from services.runtime.sequences.contract import Fold, StepContext
    from services.runtime.transport.task import Runtime

# Read, not written: reflection finds only what was imported, and the stubs of a service do not import its description.
SERVICE = inference_service_pb2.DESCRIPTOR.services_by_name["InferenceService"].full_name

Request = inference_pb2.StreamingInferRequest
Response = inference_pb2.StreamingInferResponse

_FIELD = "inputs[{}].data"
_PREFIX = "DATA_TYPE_"
_UNKNOWN = "an unknown type"


class Piece(NamedTuple):
    """A chunk as it was sent: what it says of its tensors, and their elements."""

    head: Head
    blobs: Sequence[bytes]


def _read(inputs: Iterable[inference_pb2.Tensor], outputs: Iterable[str]) -> Piece:
    heads: list[TensorHead] = []
    blobs: list[bytes] = []
    for i, tensor in enumerate(inputs):
        if len(tensor.shape) > RANK_MAX:
            raise InvalidInput(f"inputs[{i}].shape", f"has more than {RANK_MAX} dimensions")
        heads.append((tensor.name, _type_name(tensor.data_type), tuple(tensor.shape)))
        blobs.append(tensor.data)
    return Piece(head_of(tuple(heads), tuple(outputs)), blobs)


def _type_name(number: int) -> str:
    known = inference_pb2.DataType.DESCRIPTOR.values_by_number.get(number)
    return known.name.removeprefix(_PREFIX) if known is not None and number else _UNKNOWN


def _tensors(plan: Plan, contents: Iterable[bytes]) -> list[inference_pb2.Tensor]:
    return [
        inference_pb2.Tensor(
            name=name, data_type=inference_pb2.DataType.Value(_PREFIX + datatype), shape=shape, data=content
        )
        for (name, datatype, shape), content in zip(plan.tensors, contents, strict=True)
    ]


def parse_chunk(request: Request) -> tuple[Piece, bytes]:
    """The chunk of a request, and the bytes that two requests for the same chunk share.

    Raises:
        InvalidInput: a tensor has too many dimensions.
    """
    piece = _read(request.chunk.inputs, request.chunk.outputs)
    return piece, b"".join((piece.head.digest, *piece.blobs))


def fold_chunk(piece: Piece, deadline: float | None) -> Fold:
    """The step of a sequence that reads one chunk."""

    async def fold(context: StepContext, carry: Carry) -> tuple[bytes, Carry]:
        plan = piece.head.plan(context.model)
        if plan.rows:
            inputs = step_inputs(context.model, plan, piece.blobs, _FIELD)
            try:
                outputs, state = await context.model.batcher.step(inputs, carry.tensors, deadline=deadline)
            except InvalidInput as error:
                raise plan.named(error, piece.head, _FIELD) from None
            contents, after = plan.contents(outputs), Carry(state, CARRY_TAG)
        else:
            contents, after = [], unmoved(context, carry)
        response = Response(header=reply_header(context), outputs=_tensors(plan, contents))
        return response.SerializeToString(), after

    return fold


STREAM: SequenceTask[Request, Piece] = SequenceTask(
    model=lambda request: request.config.model_name,
    config_of=lambda request: request.config.sequence if request.HasField("config") else None,
    control_of=lambda request: request.chunk.control if request.HasField("chunk") else None,
    parse=parse_chunk,
    closing=(Piece(head_of((), ()), ()), head_of((), ()).digest),
    opening=lambda header: Response(header=header).SerializeToString(),
    fold=fold_chunk,
    owns=owns,
)


class TypedServicer(inference_service_pb2_grpc.InferenceServiceServicer):
    """See `inference_service.proto`."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    async def Infer(  # noqa: N802 - named by the contract
        self,
        request: inference_pb2.InferRequest,
        context: grpc.aio.ServicerContext[inference_pb2.InferRequest, inference_pb2.InferResponse],
    ) -> inference_pb2.InferResponse:
        """Computes whole inputs; rows share runs of the model with each other and with all streams."""
        model = self._runtime.catalogue.find(request.model_name, request.model_version)
        piece = _read(request.inputs, request.outputs)
        deadline = deadline_of(context, self._runtime.clock)
        plan, contents = await run_whole(model, piece.head, piece.blobs, _FIELD, deadline)
        return inference_pb2.InferResponse(outputs=_tensors(plan, contents), model=model_version(model.model_id))

    def StreamingInfer(  # noqa: N802 - named by the contract
        self, request_iterator: AsyncIterator[Request], context: grpc.aio.ServicerContext[Request, Response]
    ) -> AsyncIterator[Response]:
        """Computes a sequence that arrives in chunks."""
        # Serialised responses, which the stubs' types cannot say.
        return cast("AsyncIterator[Response]", serve_stream(STREAM, self._runtime, request_iterator, context))
