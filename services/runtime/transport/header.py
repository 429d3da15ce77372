"""The part of a reply that is the same for all tasks."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from statestream.common.v1 import model_pb2, sequence_pb2

from services.runtime.state.types import Durability

if TYPE_CHECKING:
    from services.runtime.core.ids import ModelId
    from services.runtime.sequences.contract import Standing, StepContext

REPLACED = sequence_pb2.Warning(
    code="SEQUENCE_REPLACED", message="this start replaced a live sequence of the same name, whose state is gone"
)


def reply_header(context: StepContext) -> sequence_pb2.ReplyHeader:
    """Where the sequence stands when the reply leaves."""
    step = context.position.step
    return sequence_pb2.ReplyHeader(
        sequence_id=context.sequence_id,
        step=step,
        committed_step=context.committed_step,
        epoch=context.position.epoch,
        model=model_version(context.model.model_id),
        ended=context.end,
        warnings=(REPLACED,) if context.replaces_live else (),
        history_digest=context.history,
    )


def opening_header(sequence_id: str, standing: Standing) -> sequence_pb2.ReplyHeader:
    """Where a sequence stands that a stream resumes; answers no step."""
    record = standing.record
    return sequence_pb2.ReplyHeader(
        sequence_id=sequence_id,
        committed_step=None if record.durability is Durability.NONE else record.position.step - 1,
        epoch=record.position.epoch,
        model=model_version(record.model),
        ended=record.ended,
        next_step=record.position.step,
        found_epoch=standing.found_epoch,
        lost=standing.lost,
        history_digest=record.history,
    )


@lru_cache(maxsize=64)
def model_version(model_id: ModelId) -> model_pb2.ModelVersion:
    """A model's identity as clients see it."""
    return model_pb2.ModelVersion(name=model_id.name, version=model_id.version, weights_digest=model_id.weights_digest)
