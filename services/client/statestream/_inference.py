"""The inference task, any model as raw tensors: its values, its messages, and its two calls."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from statestream._blocking_stream import StepStream
from statestream._stream import AsyncStepStream
from statestream._tensors import from_messages, to_messages
from statestream._types import Durability, ModelVersion, ReplyHeader, reply_header
from statestream._types import model_version as _model_version
from statestream._wire import StreamOptions
from statestream.inference.v1 import inference_pb2 as wire
from statestream.inference.v1.inference_service_pb2_grpc import InferenceServiceStub

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt

    from statestream._channel import Connection
    from statestream._portal import Portal
    from statestream._replay import ReplayBounds
    from statestream._tensors import Tensor
    from statestream._wire import Call
    from statestream.common.v1 import sequence_pb2
    from statestream.common.v1.sequence_pb2 import SequenceConfig, StepControl
    from statestream.inference.v1.inference_service_pb2_grpc import InferenceServiceAsyncStub


@dataclass(frozen=True, slots=True, eq=False)
class Inference:
    """What a model made of whole inputs.

    Attributes:
        outputs: arrays by their names: (N, T, ...), or (N, ...) where there is one for a row, and without N where the
            inputs had none.
        model: what computed them.
    """

    outputs: Mapping[str, npt.NDArray[Any]]
    model: ModelVersion


@dataclass(frozen=True, slots=True, eq=False)
class InferenceUpdate:
    """The reply to one chunk of a sequence.

    Attributes:
        outputs: arrays by their names: (T, ...), or (...) where there is one for a chunk; none where it had no inputs.
        header: where the sequence stands.
    """

    outputs: Mapping[str, npt.NDArray[Any]]
    header: ReplyHeader


class AsyncInferenceStream(AsyncStepStream["Mapping[str, Tensor]", InferenceUpdate]):
    """A sequence that arrives in chunks, each a mapping of names to arrays, from `AsyncClient.inference.stream`."""


class InferenceStream(StepStream["Mapping[str, Tensor]", InferenceUpdate]):
    """A sequence that arrives in chunks, each a mapping of names to arrays, from `Client.inference.stream`."""


class _Wire:
    """The messages of `StreamingInfer`."""

    def __init__(self, stub: InferenceServiceAsyncStub, model_name: str, outputs: Sequence[str]) -> None:
        self._stub = stub
        self._model_name = model_name
        self._outputs = tuple(outputs)

    def open(self) -> Call:
        return self._stub.StreamingInfer()

    def config(self, config: SequenceConfig) -> wire.StreamingInferRequest:
        return wire.StreamingInferRequest(config=wire.StreamConfig(model_name=self._model_name, sequence=config))

    def piece(self, piece: Mapping[str, Tensor] | None, control: StepControl) -> wire.StreamingInferRequest:
        if piece is None:
            return wire.StreamingInferRequest(chunk=wire.Chunk(control=control))
        chunk = wire.Chunk(control=control, inputs=to_messages(piece), outputs=self._outputs)
        return wire.StreamingInferRequest(chunk=chunk)

    def header(self, response: wire.StreamingInferResponse) -> sequence_pb2.ReplyHeader:
        return response.header

    def update(self, response: wire.StreamingInferResponse) -> InferenceUpdate:
        return InferenceUpdate(from_messages(response.outputs), reply_header(response.header))


class AsyncInferencePart:
    """Computes what any model of the server says, of whole inputs or of a sequence that arrives in chunks."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    @cached_property
    def _stub(self) -> InferenceServiceAsyncStub:
        return InferenceServiceStub(self._connection.channel)

    async def infer(
        self,
        model_name: str,
        inputs: Mapping[str, Tensor],
        *,
        outputs: Sequence[str] = (),
        model_version: str = "",
        timeout_s: float | None = None,
    ) -> Inference:
        """The outputs for whole inputs, each row from the initial state on.

        Args:
            model_name: of the model.
            inputs: arrays by the names of the model's inputs, of its types: (T, ...) for one row, (N, T, ...) for
                several, at most 64.
            outputs: those that are wanted; empty: all.
            model_version: of the model; empty: the newest.
            timeout_s: seconds for all attempts together; None: the client's.

        Raises:
            InvalidInput: the model takes other tensors.
            StatestreamError: see `statestream.errors`.
        """
        request = wire.InferRequest(
            model_name=model_name, model_version=model_version, inputs=to_messages(inputs), outputs=outputs
        )
        response = await self._connection.unary(self._stub.Infer, request, timeout_s=timeout_s)
        return Inference(from_messages(response.outputs), _model_version(response.model))

    def stream(
        self,
        model_name: str,
        sequence_id: str | None = None,
        *,
        outputs: Sequence[str] = (),
        resume: bool = False,
        durability: Durability = Durability.DEFAULT,
        model_version: str = "",
        replay: ReplayBounds | None = None,
        timeout_s: float | None = None,
    ) -> AsyncInferenceStream:
        """A sequence that arrives in chunks, as an async context manager; see `AsyncStepStream`.

        Args:
            model_name: of the model.
            sequence_id: name of the sequence, 1 to 128 characters; None makes one, and leaving the context ends it.
            outputs: those that are wanted; empty: all.
            resume: goes on with the sequence of that name from wherever it stands, and any other stream on it does not;
                False starts it anew, in place of a live one of the same name.
            durability: of the sequence; counts only where it starts.
            model_version: of the model; empty: the newest. Counts only where the sequence starts.
            replay: how much is kept in order to send it again; None: the client's.
            timeout_s: seconds for each step, repeats and waits included; None: the client's.
        """
        options = StreamOptions(
            sequence_id=sequence_id,
            resume=resume,
            durability=durability,
            model_version=model_version,
            replay=replay,
            timeout_s=timeout_s,
        )
        return AsyncInferenceStream(self._connection, _Wire(self._stub, model_name, outputs), options)


class InferencePart:
    """Computes what any model of the server says; each call blocks until it is answered."""

    def __init__(self, portal: Portal, inner: AsyncInferencePart) -> None:
        self._portal = portal
        self._inner = inner

    def infer(
        self,
        model_name: str,
        inputs: Mapping[str, Tensor],
        *,
        outputs: Sequence[str] = (),
        model_version: str = "",
        timeout_s: float | None = None,
    ) -> Inference:
        """As `AsyncInferencePart.infer`."""
        call = self._inner.infer(model_name, inputs, outputs=outputs, model_version=model_version, timeout_s=timeout_s)
        return self._portal.run(call)

    def stream(
        self,
        model_name: str,
        sequence_id: str | None = None,
        *,
        outputs: Sequence[str] = (),
        resume: bool = False,
        durability: Durability = Durability.DEFAULT,
        model_version: str = "",
        replay: ReplayBounds | None = None,
        timeout_s: float | None = None,
    ) -> InferenceStream:
        """As `AsyncInferencePart.stream`, as a plain context manager."""

        async def make() -> AsyncInferenceStream:
            # On the loop, because gRPC binds a channel to the one that runs.
            return self._inner.stream(
                model_name,
                sequence_id,
                outputs=outputs,
                resume=resume,
                durability=durability,
                model_version=model_version,
                replay=replay,
                timeout_s=timeout_s,
            )

        return InferenceStream(self._portal, self._portal.run(make()))
