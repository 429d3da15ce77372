"""`LifecycleService`: everything that the caller can do with sequences besides taking steps."""

from __future__ import annotations

from typing import TYPE_CHECKING

from google.protobuf import timestamp_pb2
from statestream.common.v1 import lifecycle_pb2, lifecycle_service_pb2, lifecycle_service_pb2_grpc, sequence_pb2

from services.runtime.core.ids import DEFAULT_TENANT, SequenceName, checked_name
from services.runtime.transport.header import model_version

if TYPE_CHECKING:
    import grpc

    from services.runtime.sequences.lifecycle import Lifecycle
    from services.runtime.state.types import Stored

SERVICE = "statestream.common.v1.LifecycleService"


class LifecycleServicer(lifecycle_service_pb2_grpc.LifecycleServiceServicer):
    """Answers from the state store; knows no task. What each call does is told in `lifecycle_service.proto`."""

    def __init__(self, lifecycle: Lifecycle) -> None:
        self._lifecycle = lifecycle

    async def GetSequence(  # noqa: N802 - named by the contract
        self,
        request: lifecycle_service_pb2.GetSequenceRequest,
        context: grpc.aio.ServicerContext[  # noqa: ARG002 - as above
            lifecycle_service_pb2.GetSequenceRequest, lifecycle_service_pb2.GetSequenceResponse
        ],
    ) -> lifecycle_service_pb2.GetSequenceResponse:
        """Where a sequence stands now."""
        name = _name(request.model, request.sequence_id)
        found = await self._lifecycle.get(name)
        return lifecycle_service_pb2.GetSequenceResponse(sequence=_described(name.sequence_id, found))

    async def ListSequences(  # noqa: N802 - named by the contract
        self,
        request: lifecycle_service_pb2.ListSequencesRequest,
        context: grpc.aio.ServicerContext[  # noqa: ARG002 - as above
            lifecycle_service_pb2.ListSequencesRequest, lifecycle_service_pb2.ListSequencesResponse
        ],
    ) -> lifecycle_service_pb2.ListSequencesResponse:
        """One page of a model's sequences."""
        listing = await self._lifecycle.page(
            DEFAULT_TENANT,
            checked_name(request.model, "model"),
            page_size=request.page_size,
            page_token=request.page_token,
            live_only=request.live_only,
        )
        return lifecycle_service_pb2.ListSequencesResponse(
            sequences=[_described(name.sequence_id, stored) for name, stored in listing.sequences],
            next_page_token=listing.next_page_token,
        )

    async def ForkSequence(  # noqa: N802 - named by the contract
        self,
        request: lifecycle_service_pb2.ForkSequenceRequest,
        context: grpc.aio.ServicerContext[  # noqa: ARG002 - as above
            lifecycle_service_pb2.ForkSequenceRequest, lifecycle_service_pb2.ForkSequenceResponse
        ],
    ) -> lifecycle_service_pb2.ForkSequenceResponse:
        """Makes new sequences that go on from a committed point."""
        name, new_ids = _name(request.model, request.sequence_id), list(request.new_sequence_ids)
        made = await self._lifecycle.fork(name, _next_step(request), new_ids)
        sequences = [_described(new_id, stored) for new_id, stored in zip(new_ids, made, strict=True)]
        return lifecycle_service_pb2.ForkSequenceResponse(sequences=sequences)

    async def RewindSequence(  # noqa: N802 - named by the contract
        self,
        request: lifecycle_service_pb2.RewindSequenceRequest,
        context: grpc.aio.ServicerContext[  # noqa: ARG002 - as above
            lifecycle_service_pb2.RewindSequenceRequest, lifecycle_service_pb2.RewindSequenceResponse
        ],
    ) -> lifecycle_service_pb2.RewindSequenceResponse:
        """Puts a sequence back to a kept checkpoint."""
        name = _name(request.model, request.sequence_id)
        found = await self._lifecycle.rewind(name, request.next_step)
        return lifecycle_service_pb2.RewindSequenceResponse(sequence=_described(name.sequence_id, found))

    async def ExportSequence(  # noqa: N802 - named by the contract
        self,
        request: lifecycle_service_pb2.ExportSequenceRequest,
        context: grpc.aio.ServicerContext[  # noqa: ARG002 - as above
            lifecycle_service_pb2.ExportSequenceRequest, lifecycle_service_pb2.ExportSequenceResponse
        ],
    ) -> lifecycle_service_pb2.ExportSequenceResponse:
        """A signed snapshot of a committed point."""
        name = _name(request.model, request.sequence_id)
        snapshot, point = await self._lifecycle.export(name, _next_step(request))
        return lifecycle_service_pb2.ExportSequenceResponse(
            snapshot=snapshot, sequence=_described(name.sequence_id, point)
        )

    async def ImportSequence(  # noqa: N802 - named by the contract
        self,
        request: lifecycle_service_pb2.ImportSequenceRequest,
        context: grpc.aio.ServicerContext[  # noqa: ARG002 - as above
            lifecycle_service_pb2.ImportSequenceRequest, lifecycle_service_pb2.ImportSequenceResponse
        ],
    ) -> lifecycle_service_pb2.ImportSequenceResponse:
        """Makes a sequence of a snapshot."""
        name, found = await self._lifecycle.import_snapshot(DEFAULT_TENANT, request.snapshot, request.sequence_id)
        return lifecycle_service_pb2.ImportSequenceResponse(sequence=_described(name.sequence_id, found))

    async def EndSequence(  # noqa: N802 - named by the contract
        self,
        request: lifecycle_service_pb2.EndSequenceRequest,
        context: grpc.aio.ServicerContext[  # noqa: ARG002 - as above
            lifecycle_service_pb2.EndSequenceRequest, lifecycle_service_pb2.EndSequenceResponse
        ],
    ) -> lifecycle_service_pb2.EndSequenceResponse:
        """Drops the state of a sequence; recent replies stay for their retention time."""
        name = _name(request.model, request.sequence_id)
        found = await self._lifecycle.end(name)
        return lifecycle_service_pb2.EndSequenceResponse(sequence=_described(name.sequence_id, found))


def _name(model: str, sequence_id: str) -> SequenceName:
    return SequenceName(DEFAULT_TENANT, checked_name(model, "model"), checked_name(sequence_id, "sequence_id"))


def _next_step(
    request: lifecycle_service_pb2.ForkSequenceRequest | lifecycle_service_pb2.ExportSequenceRequest,
) -> int | None:
    return request.next_step if request.HasField("next_step") else None


def _described(sequence_id: str, stored: Stored) -> lifecycle_pb2.Sequence:
    expire_time = timestamp_pb2.Timestamp()
    expire_time.FromMilliseconds(int(stored.expires_at * 1000))
    record = stored.record
    return lifecycle_pb2.Sequence(
        sequence_id=sequence_id,
        status=lifecycle_pb2.SEQUENCE_STATUS_ENDED if record.ended else lifecycle_pb2.SEQUENCE_STATUS_LIVE,
        epoch=record.position.epoch,
        next_step=record.position.step,
        durability=sequence_pb2.Durability.ValueType(record.durability),
        model=model_version(record.model),
        state_bytes=stored.size_bytes,
        expire_time=expire_time,
        checkpoint_steps=stored.checkpoints,
        history_digest=record.history,
    )
