"""Everything that a call can raise, named as the server names it; a `grpc.RpcError` never escapes.

StatestreamError
├── InvalidInput                INVALID_INPUT           fix the request; `field` says where
├── UnknownModel                MODEL_NOT_FOUND         ask for a model that is served
├── ModelNotLoaded              MODEL_NOT_LOADED        the files of that model cannot be served
├── ModelControlDisabled        MODEL_CONTROL_DISABLED  the server does not load models by calls
├── SequenceError
│   ├── SequenceNotFound        SEQUENCE_NOT_FOUND      never started, or forgotten: start it
│   ├── SequenceExpired         SEQUENCE_EXPIRED        idle or alive too long: start again
│   ├── SequenceEvicted         SEQUENCE_EVICTED        pushed out of a full memory store: start again
│   ├── SequenceEnded           SEQUENCE_ENDED          start again, or use another id
│   ├── SequenceExists          SEQUENCE_EXISTS         a fork or import takes no live name: use another id
│   ├── SequenceKindMismatch    SEQUENCE_KIND_MISMATCH  another service began it: go on there, or use another id
│   ├── CheckpointNotFound      CHECKPOINT_NOT_FOUND    nothing is kept at that step: choose one that is
│   ├── StepOutOfOrder          STEP_OUT_OF_ORDER       go on from the step `expected`
│   ├── StepContentMismatch     STEP_CONTENT_MISMATCH   somebody else took this step: look where it stands
│   ├── StepConflict            STEP_CONFLICT           as above, and several attempts were in vain
│   ├── ModelVersionGone        MODEL_VERSION_GONE      start again, on a version that is served
│   ├── StateCorrupt            STATE_CORRUPT           start again, and tell whoever runs the server
│   └── SequenceLost            SEQUENCE_LOST           the store lost more than this client holds: start again
├── SnapshotsDisabled           SNAPSHOTS_DISABLED      the server has no key to sign snapshots with
├── CapacityExceeded            CAPACITY                a bound of the server is reached: come back later
├── ReplayBufferFull            REPLAY_BUFFER_FULL      the server commits nothing: send the same piece again later
├── DeadlineExceeded            DEADLINE_EXPIRED        `timeout_s` has passed; the same call again is safe
├── CallCancelled               CANCELLED               the server or a proxy has cancelled the call
├── Unavailable                 UNAVAILABLE             no server could be reached, after several attempts
│   ├── StoreUnavailable        STORE_UNAVAILABLE       its store does not answer
│   ├── NotReady                NOT_READY               it is still loading a model
│   └── Draining                DRAINING                it is stopping
├── Unsupported                 UNSUPPORTED             a part of a protocol that the server does not serve
└── ModelFailure                MODEL_FAILURE           the run of the model failed on the server

`SequenceLost` and `ReplayBufferFull` are this client's own. A `StatestreamError` that is none of these carries the
reason and code that the server or the transport gave.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import grpc

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "CallCancelled",
    "CapacityExceeded",
    "CheckpointNotFound",
    "DeadlineExceeded",
    "Draining",
    "InvalidInput",
    "ModelControlDisabled",
    "ModelFailure",
    "ModelNotLoaded",
    "ModelVersionGone",
    "NotReady",
    "ReplayBufferFull",
    "SequenceEnded",
    "SequenceError",
    "SequenceEvicted",
    "SequenceExists",
    "SequenceExpired",
    "SequenceKindMismatch",
    "SequenceLost",
    "SequenceNotFound",
    "SnapshotsDisabled",
    "StateCorrupt",
    "StatestreamError",
    "StepConflict",
    "StepContentMismatch",
    "StepOutOfOrder",
    "StoreUnavailable",
    "Unavailable",
    "UnknownModel",
    "Unsupported",
]


class StatestreamError(Exception):
    """Root of all that a call raises.

    Attributes:
        message: for a person; never what was sent.
        reason: constant in upper case, for a program.
        code: gRPC status code of the answer; where the client itself refuses, the code that a server would give.
        field: path of the field that is wrong, where one is.
        metadata: facts for a program, as the server gave them.
        retry_delay_s: seconds after which the server finds a retry sensible; None where it did not say.
    """

    default_reason: ClassVar[str] = "INTERNAL"
    default_code: ClassVar[grpc.StatusCode] = grpc.StatusCode.INTERNAL

    def __init__(
        self,
        message: str,
        *,
        reason: str | None = None,
        code: grpc.StatusCode | None = None,
        field: str | None = None,
        metadata: Mapping[str, str] | None = None,
        retry_delay_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason or self.default_reason
        self.code = code or self.default_code
        self.field = field
        self.metadata = dict(metadata or {})
        self.retry_delay_s = retry_delay_s

    def __str__(self) -> str:
        return f"{self.reason}: {self.message}"


class InvalidInput(StatestreamError):
    """The request cannot be served as it is; `field` says where."""

    default_reason = "INVALID_INPUT"
    default_code = grpc.StatusCode.INVALID_ARGUMENT


class UnknownModel(StatestreamError):
    """No such model, or no such version of it, is served."""

    default_reason = "MODEL_NOT_FOUND"
    default_code = grpc.StatusCode.NOT_FOUND


class ModelNotLoaded(StatestreamError):
    """What the server has of a model cannot be served; the message says why."""

    default_reason = "MODEL_NOT_LOADED"
    default_code = grpc.StatusCode.FAILED_PRECONDITION


class ModelControlDisabled(StatestreamError):
    """The server loads and unloads its models by itself, not by calls."""

    default_reason = "MODEL_CONTROL_DISABLED"
    default_code = grpc.StatusCode.FAILED_PRECONDITION


class SequenceError(StatestreamError):
    """The sequence is not where the request takes it to be."""

    default_code = grpc.StatusCode.FAILED_PRECONDITION


class SequenceNotFound(SequenceError):
    """Never started, or gone so long that nothing remembers it."""

    default_reason = "SEQUENCE_NOT_FOUND"
    default_code = grpc.StatusCode.NOT_FOUND


class SequenceExpired(SequenceError):
    """Idle longer than its idle time-out, or older than its lifetime."""

    default_reason = "SEQUENCE_EXPIRED"
    default_code = grpc.StatusCode.NOT_FOUND


class SequenceEvicted(SequenceError):
    """Dropped by the server to make room."""

    default_reason = "SEQUENCE_EVICTED"
    default_code = grpc.StatusCode.NOT_FOUND


class SequenceEnded(SequenceError):
    """The sequence has taken its last step."""

    default_reason = "SEQUENCE_ENDED"


class SequenceExists(SequenceError):
    """A sequence of that name is live, and a fork or an import does not replace it."""

    default_reason = "SEQUENCE_EXISTS"
    default_code = grpc.StatusCode.ALREADY_EXISTS


class SequenceKindMismatch(SequenceError):
    """Another service on the same model began the sequence, and only that one can go on with it."""

    default_reason = "SEQUENCE_KIND_MISMATCH"


class CheckpointNotFound(SequenceError):
    """No checkpoint of the sequence is kept at the step asked for."""

    default_reason = "CHECKPOINT_NOT_FOUND"

    @property
    def kept(self) -> tuple[int, ...]:
        """The steps at which checkpoints are kept."""
        return tuple(int(step) for step in self.metadata.get("checkpoint_steps", "").split(",") if step.isdecimal())


class StepOutOfOrder(SequenceError):
    """The step is not the next one of the sequence."""

    default_reason = "STEP_OUT_OF_ORDER"

    @property
    def expected(self) -> int | None:
        """Number of the step that the sequence takes next; None where the server did not say."""
        text = self.metadata.get("expected_step", "")
        return int(text) if text.isdecimal() else None


class StepContentMismatch(SequenceError):
    """The step was applied already, with other content: another client works on the same sequence."""

    default_reason = "STEP_CONTENT_MISMATCH"


class StepConflict(SequenceError):
    """Another client took the step while it ran."""

    default_reason = "STEP_CONFLICT"
    default_code = grpc.StatusCode.ABORTED


class ModelVersionGone(SequenceError):
    """The model version that the sequence began on is not served any more."""

    default_reason = "MODEL_VERSION_GONE"


class StateCorrupt(SequenceError):
    """The stored state of the sequence is damaged; it is never fed to a model."""

    default_reason = "STATE_CORRUPT"
    default_code = grpc.StatusCode.DATA_LOSS


class SequenceLost(SequenceError):
    """The store has lost more of the sequence than the client still holds to send again."""

    default_reason = "SEQUENCE_LOST"
    default_code = grpc.StatusCode.DATA_LOSS

    @property
    def next_step(self) -> int:
        """The step that the server takes next; 0 where it has nothing of the sequence."""
        return int(self.metadata.get("next_step", 0))

    @property
    def oldest_step(self) -> int:
        """The oldest step that the client holds: those between are lost, unless the caller has them."""
        return int(self.metadata.get("oldest_step", 0))


class SnapshotsDisabled(StatestreamError):
    """The server has no key to sign snapshots with, so it neither exports nor imports."""

    default_reason = "SNAPSHOTS_DISABLED"
    default_code = grpc.StatusCode.FAILED_PRECONDITION


class CapacityExceeded(StatestreamError):
    """A bound of the server is reached."""

    default_reason = "CAPACITY"
    default_code = grpc.StatusCode.RESOURCE_EXHAUSTED


class ReplayBufferFull(StatestreamError):
    """The bound of what the client keeps is reached, and the server did not commit any of it; the step was not sent.

    Nothing is lost: the same `send` may be made again.
    """

    default_reason = "REPLAY_BUFFER_FULL"
    default_code = grpc.StatusCode.RESOURCE_EXHAUSTED


class DeadlineExceeded(StatestreamError):
    """The time of the call has passed. A step may have been applied all the same; sending it again is safe."""

    default_reason = "DEADLINE_EXPIRED"
    default_code = grpc.StatusCode.DEADLINE_EXCEEDED


class CallCancelled(StatestreamError):
    """The server or a proxy has cancelled the call; a cancelled task raises `asyncio.CancelledError` as ever."""

    default_reason = "CANCELLED"
    default_code = grpc.StatusCode.CANCELLED


class Unavailable(StatestreamError):
    """No server can be reached, or none can serve now."""

    default_reason = "UNAVAILABLE"
    default_code = grpc.StatusCode.UNAVAILABLE


class StoreUnavailable(Unavailable):
    """The state store of the server does not answer."""

    default_reason = "STORE_UNAVAILABLE"


class NotReady(Unavailable):
    """The model is still being loaded."""

    default_reason = "NOT_READY"


class Draining(Unavailable):
    """The server is stopping."""

    default_reason = "DRAINING"


class Unsupported(StatestreamError):
    """A part of a protocol that the server does not serve."""

    default_reason = "UNSUPPORTED"
    default_code = grpc.StatusCode.UNIMPLEMENTED


class ModelFailure(StatestreamError):
    """The run of the model failed on the server."""

    default_reason = "MODEL_FAILURE"
