"""The inference service: every model as raw tensors, by the Open Inference Protocol as Triton speaks it."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import grpc
from statestream.inference.v1 import inference_service_pb2_grpc

from services.inference import describe, typed
from services.inference.codec import Reader, owns
from services.inference.mux import serve_infer_stream
from services.inference.steps import earlier, fold_step, run_whole, standing_reply, step_request, told_by
from services.inference.wire import infer_pb2, management_pb2, model_config_pb2
from services.inference.wire.pool import POOL
from services.runtime.core.errors import InvalidInput, StatestreamError, Unsupported
from services.runtime.core.ids import DEFAULT_TENANT, SequenceName
from services.runtime.state.types import Durability
from services.runtime.transport.deadline import deadline_of
from services.runtime.transport.task import Runtime, Task

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from google.protobuf.message import Message

    from services.inference.codec import Ask

    Context = grpc.aio.ServicerContext[Any, Any]

NAME = "inference"
SERVICE = "inference.GRPCInferenceService"

NOT_SERVED = (
    "SystemSharedMemoryStatus",
    "SystemSharedMemoryRegister",
    "SystemSharedMemoryUnregister",
    "CudaSharedMemoryStatus",
    "CudaSharedMemoryRegister",
    "CudaSharedMemoryUnregister",
    "TraceSetting",
    "LogSettings",
)
"""Methods of Triton that answer UNIMPLEMENTED."""


class InferenceServicer:
    """See `grpc_service.proto`. The methods are named by the protocol."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._reader = Reader()

    async def ModelInfer(self, data: bytes, context: Context) -> bytes:  # noqa: N802
        """One step of a sequence, or a batch of whole inputs; serialised on both sides."""
        runtime, ask = self._runtime, self._reader.read(data)
        parameters = ask.parameters
        deadline = earlier(deadline_of(context, runtime.clock), parameters.timeout_us, runtime.clock)
        if not parameters.sequence_id:
            model = runtime.catalogue.find(ask.model_name, ask.model_version)
            plan, contents = await run_whole(model, ask.head, ask.blobs, ask.field, deadline)
            return plan.whole_reply(contents) + ask.echo
        return await self._step(ask, deadline) + ask.echo

    async def _step(self, ask: Ask, deadline: float | None) -> bytes:
        runtime, parameters = self._runtime, ask.parameters
        # Also where the sequence is on another version: nothing is counted under a name that a client made up.
        model = runtime.catalogue.find(ask.model_name, ask.model_version, start=parameters.start)
        name = SequenceName(DEFAULT_TENANT, ask.model_name, parameters.sequence_id)
        if parameters.resume:
            return standing_reply(await runtime.sequences.take_up(name, told_by(ask), owns=owns))
        durability = Durability.STEP if parameters.durability is None else parameters.durability
        request = step_request(ask, durability, model.model_id)
        return (await runtime.sequences.step(name, request, fold_step(ask, deadline))).reply

    def ModelStreamInfer(self, requests: AsyncIterator[bytes], context: Context) -> AsyncIterator[bytes]:  # noqa: N802
        """Steps of many sequences on one stream; serialised on both sides."""
        return serve_infer_stream(self._runtime, requests, context)

    async def ServerLive(self, _: infer_pb2.ServerLiveRequest, __: Context) -> infer_pb2.ServerLiveResponse:  # noqa: N802
        """The server runs."""
        return infer_pb2.ServerLiveResponse(live=True)

    async def ServerReady(self, _: infer_pb2.ServerReadyRequest, __: Context) -> infer_pb2.ServerReadyResponse:  # noqa: N802
        """The models are loaded, and the server is not being stopped."""
        return infer_pb2.ServerReadyResponse(ready=self._runtime.ready())

    async def ModelReady(  # noqa: N802
        self, request: infer_pb2.ModelReadyRequest, _: Context
    ) -> infer_pb2.ModelReadyResponse:
        """Whether sequences can be started on a model; unknown ones are not ready."""
        try:
            self._runtime.catalogue.find(request.name, request.version)
        except StatestreamError:
            return infer_pb2.ModelReadyResponse(ready=False)
        return infer_pb2.ModelReadyResponse(ready=True)

    async def ServerMetadata(  # noqa: N802
        self, _: infer_pb2.ServerMetadataRequest, __: Context
    ) -> infer_pb2.ServerMetadataResponse:
        """What the server is."""
        return infer_pb2.ServerMetadataResponse(
            name="statestream", version=version("statestream"), extensions=describe.EXTENSIONS
        )

    async def ModelMetadata(  # noqa: N802
        self, request: infer_pb2.ModelMetadataRequest, _: Context
    ) -> infer_pb2.ModelMetadataResponse:
        """The tensors of a model."""
        model = self._runtime.catalogue.find(request.name, request.version)
        served = self._runtime.catalogue.versions(request.name)
        return describe.metadata(model, [one.model_id.version for one in served])

    async def ModelConfig(  # noqa: N802
        self, request: model_config_pb2.ModelConfigRequest, _: Context
    ) -> model_config_pb2.ModelConfigResponse:
        """The tensors, states and limits of a model."""
        model = self._runtime.catalogue.find(request.name, request.version)
        return model_config_pb2.ModelConfigResponse(config=describe.config(model))

    async def ModelStatistics(  # noqa: N802
        self, request: management_pb2.ModelStatisticsRequest, _: Context
    ) -> management_pb2.ModelStatisticsResponse:
        """How much models were used; retired versions too, while they are loaded."""
        chosen = [
            model
            for model in self._runtime.catalogue
            if request.name in ("", model.model_id.name) and request.version in ("", model.model_id.version)
        ]
        if request.name and not chosen:
            self._runtime.catalogue.find(request.name, request.version)
        return management_pb2.ModelStatisticsResponse(model_stats=[describe.statistics(model) for model in chosen])

    async def RepositoryIndex(  # noqa: N802
        self, request: management_pb2.RepositoryIndexRequest, _: Context
    ) -> management_pb2.RepositoryIndexResponse:
        """All models and versions, also those that could not be loaded."""
        _refuse_named_repository(request.repository_name)
        response = management_pb2.RepositoryIndexResponse()
        for entry in self._runtime.repository.index():
            if not request.ready or entry.state == "READY":
                response.models.add(name=entry.name, version=entry.version, state=entry.state, reason=entry.reason)
        return response

    async def RepositoryModelLoad(  # noqa: N802
        self, request: management_pb2.RepositoryModelLoadRequest, _: Context
    ) -> management_pb2.RepositoryModelLoadResponse:
        """Loads a model, or new versions of it, out of the folders."""
        _refuse_named_repository(request.repository_name)
        for name in request.parameters:
            if name == "config" or name.startswith("file:"):
                raise InvalidInput(f"parameters[{name.partition(':')[0]}]", "models come out of the folders alone")
        await self._runtime.repository.load(request.model_name)
        return management_pb2.RepositoryModelLoadResponse()

    async def RepositoryModelUnload(  # noqa: N802
        self, request: management_pb2.RepositoryModelUnloadRequest, _: Context
    ) -> management_pb2.RepositoryModelUnloadResponse:
        """Starts no further sequence on a model."""
        _refuse_named_repository(request.repository_name)
        await self._runtime.repository.unload(request.model_name)
        return management_pb2.RepositoryModelUnloadResponse()


def _refuse_named_repository(name: str) -> None:
    if name:
        raise InvalidInput("repository_name", "must be empty: all folders are one repository")


def _not_served(method: str) -> Callable[[bytes, Context], Awaitable[bytes]]:
    async def call(_: bytes, __: Context) -> bytes:
        raise Unsupported(f"{method} is not supported: tensors come in messages, logs and traces are the operator's")

    return call


_MESSAGES: dict[str, type[Message]] = {
    "ServerLive": infer_pb2.ServerLiveRequest,
    "ServerReady": infer_pb2.ServerReadyRequest,
    "ModelReady": infer_pb2.ModelReadyRequest,
    "ServerMetadata": infer_pb2.ServerMetadataRequest,
    "ModelMetadata": infer_pb2.ModelMetadataRequest,
    "ModelConfig": model_config_pb2.ModelConfigRequest,
    "ModelStatistics": management_pb2.ModelStatisticsRequest,
    "RepositoryIndex": management_pb2.RepositoryIndexRequest,
    "RepositoryModelLoad": management_pb2.RepositoryModelLoadRequest,
    "RepositoryModelUnload": management_pb2.RepositoryModelUnloadRequest,
}


def _serialise(message: Message) -> bytes:
    return message.SerializeToString()


def register(server: grpc.aio.Server, runtime: Runtime) -> None:
    """Adds the services to a server."""
    servicer = InferenceServicer(runtime)
    handlers: dict[str, Any] = {
        method: grpc.unary_unary_rpc_method_handler(getattr(servicer, method), message.FromString, _serialise)
        for method, message in _MESSAGES.items()
    }
    handlers |= {method: grpc.unary_unary_rpc_method_handler(_not_served(method)) for method in NOT_SERVED}
    handlers["ModelInfer"] = grpc.unary_unary_rpc_method_handler(servicer.ModelInfer)
    handlers["ModelStreamInfer"] = grpc.stream_stream_rpc_method_handler(servicer.ModelStreamInfer)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    inference_service_pb2_grpc.add_InferenceServiceServicer_to_server(typed.TypedServicer(runtime), server)


TASK = Task(
    name=NAME,
    service=SERVICE,
    register=register,
    serves_all=True,
    more_services=(typed.SERVICE,),
    open_calls=(f"/{SERVICE}/ServerLive", f"/{SERVICE}/ServerReady"),
    pool=POOL,
)
