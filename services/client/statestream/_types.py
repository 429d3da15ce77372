"""What every task's replies say, as plain values."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from datetime import UTC
from typing import TYPE_CHECKING

from statestream.common.v1 import lifecycle_pb2, sequence_pb2

if TYPE_CHECKING:
    from datetime import datetime

    from statestream.common.v1 import model_pb2


class Durability(enum.IntEnum):
    """What has become of a step when its reply arrives; numbers as in `sequence.proto`."""

    DEFAULT = sequence_pb2.DURABILITY_UNSPECIFIED
    """The model's own default."""
    STEP = sequence_pb2.DURABILITY_STEP
    """Committed to the store: any replica can take the next step."""
    NONE = sequence_pb2.DURABILITY_NONE
    """Kept in the memory of one replica, and lost with it."""
    CHECKPOINT = sequence_pb2.DURABILITY_CHECKPOINT
    """Committed every few steps; what is not yet committed the client keeps, and sends again after a break."""


class SequenceStatus(enum.StrEnum):
    """Where a sequence stands in its life."""

    UNKNOWN = "unknown"
    """A status newer than this client."""
    LIVE = "live"
    ENDED = "ended"


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """The exported network that computed a reply; `weights_digest` is the SHA-256 of its ONNX file in hexadecimal."""

    name: str
    version: str
    weights_digest: str


@dataclass(frozen=True, slots=True)
class ReplyWarning:
    """Something a client should know and may ignore; the step was applied."""

    code: str
    message: str


@dataclass(frozen=True, slots=True)
class ReplyHeader:
    """Where a sequence stands after a step.

    Attributes:
        sequence_id: the name of the sequence.
        step: number of the step that this reply answers, from 0.
        committed_step: last step that the store holds; None where nothing is (`Durability.NONE`).
        epoch: grows with every start on the same `sequence_id`, and whenever the sequence is resumed or rewound.
        model: what computed the reply.
        ended: True on the reply to the last step.
        warnings: that did not keep the step from being applied.
        history_digest: stands for the content of all steps up to this one, 16 bytes; empty where it is not known.
    """

    sequence_id: str
    step: int
    committed_step: int | None
    epoch: int
    model: ModelVersion
    ended: bool
    warnings: tuple[ReplyWarning, ...]
    history_digest: bytes


@dataclass(frozen=True, slots=True)
class StreamStats:
    """What was mended behind the back of a stream's user.

    Attributes:
        reconnects: calls that took the place of another, because it had broken or to make the server commit.
        replayed_steps: steps that were sent again although their replies had come.
        losses: times that the store had come back older than this client had been told, and was fed again.
        go_aways: calls that a draining server ended.
    """

    reconnects: int = 0
    replayed_steps: int = 0
    losses: int = 0
    go_aways: int = 0


@dataclass(frozen=True, slots=True)
class Sequence:
    """One stored sequence.

    Attributes:
        sequence_id: its name.
        status: whether it takes further steps.
        epoch: grows with every start on the same `sequence_id`, and whenever the sequence is resumed or rewound.
        next_step: number of the step that it takes next, as far as it is committed.
        durability: as chosen when it started.
        model: that it is pinned to.
        state_bytes: size of the stored record.
        expires_at: when it is dropped unless a step comes, in UTC; None where the server does not say.
        checkpoint_steps: the earlier points that are kept, each as the step that it took next there, ascending: it can
            be rewound to them and forked from them.
        history_digest: stands for the content of all steps before `next_step`, 16 bytes; empty where it is not known.
    """

    sequence_id: str
    status: SequenceStatus
    epoch: int
    next_step: int
    durability: Durability
    model: ModelVersion
    state_bytes: int
    expires_at: datetime | None
    checkpoint_steps: tuple[int, ...]
    history_digest: bytes


_STATUSES = {
    lifecycle_pb2.SEQUENCE_STATUS_LIVE: SequenceStatus.LIVE,
    lifecycle_pb2.SEQUENCE_STATUS_ENDED: SequenceStatus.ENDED,
}


def model_version(message: model_pb2.ModelVersion) -> ModelVersion:
    """From the wire."""
    return ModelVersion(message.name, message.version, message.weights_digest)


def reply_header(message: sequence_pb2.ReplyHeader) -> ReplyHeader:
    """From the wire."""
    return ReplyHeader(
        sequence_id=message.sequence_id,
        step=message.step,
        committed_step=message.committed_step if message.HasField("committed_step") else None,
        epoch=message.epoch,
        model=model_version(message.model),
        ended=message.ended,
        warnings=tuple(ReplyWarning(warning.code, warning.message) for warning in message.warnings),
        history_digest=message.history_digest,
    )


def sequence(message: lifecycle_pb2.Sequence) -> Sequence:
    """From the wire."""
    known = message.durability in Durability.__members__.values()
    return Sequence(
        sequence_id=message.sequence_id,
        status=_STATUSES.get(message.status, SequenceStatus.UNKNOWN),
        epoch=message.epoch,
        next_step=message.next_step,
        durability=Durability(message.durability) if known else Durability.DEFAULT,
        model=model_version(message.model),
        state_bytes=message.state_bytes,
        expires_at=message.expire_time.ToDatetime(UTC) if message.HasField("expire_time") else None,
        checkpoint_steps=tuple(message.checkpoint_steps),
        history_digest=message.history_digest,
    )
