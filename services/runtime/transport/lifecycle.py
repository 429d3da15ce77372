"""`LifecycleService`: looks at and ends the caller's sequences without taking a step."""

from __future__ import annotations

from typing import TYPE_CHECKING

from google.protobuf import timestamp_pb2
from statestream.common.v1 import lifecycle_pb2, lifecycle_service_pb2, lifecycle_service_pb2_grpc, sequence_pb2

from services.runtime.core.errors import SequenceExpired
from services.runtime.core.ids import DEFAULT_TENANT, SequenceName, checked_name
from services.runtime.sequences.decide import absent
from services.runtime.state.types import Absence, Stored
from services.runtime.transport.header import model_version

if TYPE_CHECKING:
    import grpc

    from services.runtime.sequences.sequences import Sequences

SERVICE = "statestream.common.v1.LifecycleService"


class LifecycleServicer(lifecycle_service_pb2_grpc.LifecycleServiceServicer):
    """Answers from the state store; knows no task."""

    def __init__(self, sequences: Sequences) -> None:
        self._sequences = sequences

    async def GetSequence(  # noqa: N802 - named by the contract
        self,
        request: lifecycle_service_pb2.GetSequenceRequest,
        context: grpc.aio.ServicerContext[  # noqa: ARG002 - as above
            lifecycle_service_pb2.GetSequenceRequest, lifecycle_service_pb2.GetSequenceResponse
        ],
    ) -> lifecycle_service_pb2.GetSequenceResponse:
        """Where a sequence stands now."""
        name = _name(request.model, request.sequence_id)
        found = _described(name, await self._sequences.describe(name))
        return lifecycle_service_pb2.GetSequenceResponse(sequence=found)

    async def EndSequence(  # noqa: N802 - named by the contract
        self,
        request: lifecycle_service_pb2.EndSequenceRequest,
        context: grpc.aio.ServicerContext[  # noqa: ARG002 - as above
            lifecycle_service_pb2.EndSequenceRequest, lifecycle_service_pb2.EndSequenceResponse
        ],
    ) -> lifecycle_service_pb2.EndSequenceResponse:
        """Drops the state of a sequence; recent replies stay for their retention time."""
        name = _name(request.model, request.sequence_id)
        found = _described(name, await self._sequences.end(name))
        return lifecycle_service_pb2.EndSequenceResponse(sequence=found)


def _name(model: str, sequence_id: str) -> SequenceName:
    return SequenceName(DEFAULT_TENANT, checked_name(model, "model"), checked_name(sequence_id, "sequence_id"))


def _described(name: SequenceName, found: Stored | Absence) -> lifecycle_pb2.Sequence:
    if not isinstance(found, Stored):
        raise absent(found)
    if found.expired and not found.record.ended:
        raise SequenceExpired("idle or alive for too long")
    expire_time = timestamp_pb2.Timestamp()
    expire_time.FromMilliseconds(int(found.expires_at * 1000))
    record = found.record
    ended = record.ended
    return lifecycle_pb2.Sequence(
        sequence_id=name.sequence_id,
        status=lifecycle_pb2.SEQUENCE_STATUS_ENDED if ended else lifecycle_pb2.SEQUENCE_STATUS_LIVE,
        epoch=record.position.epoch,
        next_step=record.position.step,
        durability=sequence_pb2.Durability.ValueType(record.durability),
        model=model_version(record.model),
        state_bytes=found.size_bytes,
        expire_time=expire_time,
    )
