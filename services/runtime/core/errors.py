"""Everything that can go wrong and is told to a client.

StatestreamError
├── InvalidInput                INVALID_INPUT           fix the request; names the field
├── UnknownModel                MODEL_NOT_FOUND         ask for a model that is served
├── ModelNotLoaded              MODEL_NOT_LOADED        its files cannot be served: mend them, load it again
├── ModelControlDisabled        MODEL_CONTROL_DISABLED  models are not loaded by calls here
├── SequenceError
│   ├── SequenceNotFound        SEQUENCE_NOT_FOUND      never started, or forgotten: start it
│   ├── SequenceExpired         SEQUENCE_EXPIRED        idle or alive too long: start again
│   ├── SequenceEvicted         SEQUENCE_EVICTED        pushed out of a full memory store: start again
│   ├── SequenceEnded           SEQUENCE_ENDED          start again, or use another id
│   ├── SequenceExists          SEQUENCE_EXISTS         a fork or import takes no live name: use another id
│   ├── SequenceKindMismatch    SEQUENCE_KIND_MISMATCH  another service began it: go on there, or use another id
│   ├── CheckpointNotFound      CHECKPOINT_NOT_FOUND    nothing is kept at that step: choose one that is
│   ├── StepOutOfOrder          STEP_OUT_OF_ORDER       go on from the step it expects
│   ├── StepContentMismatch     STEP_CONTENT_MISMATCH   the step was applied with other content
│   ├── StepConflict            STEP_CONFLICT           somebody else took the step: look where it stands
│   ├── ModelVersionGone        MODEL_VERSION_GONE      its model version is no longer served: start again
│   └── StateCorrupt            STATE_CORRUPT           the record is damaged: start again, raise an alarm
├── SnapshotsDisabled           SNAPSHOTS_DISABLED      no key is configured to sign snapshots with
├── CapacityExceeded            CAPACITY                over a bound: back off
├── DeadlineExpired             DEADLINE_EXPIRED        not run, nothing committed: a retry is safe
├── Unavailable
│   ├── StoreUnavailable        STORE_UNAVAILABLE       retry; a step is applied at most once
│   ├── NotReady                NOT_READY               still warming up: retry
│   └── Draining                DRAINING                this replica stops: retry on another
├── Unsupported                 UNSUPPORTED             a part of a protocol that is not served here
└── ModelFailure                MODEL_FAILURE           the run failed: report it; the text is withheld

`transport/status.py` gives each its gRPC code. Nothing else reaches a client.
"""

from __future__ import annotations

from typing import ClassVar


class StatestreamError(Exception):
    """Root of all that a client is told.

    Attributes:
        reason: constant in upper case, sent as `google.rpc.ErrorInfo.reason`.
        metadata: facts for a program, sent as `ErrorInfo.metadata`; never what the client sent.
        retry_delay_s: seconds after which a retry is sensible, sent as `google.rpc.RetryInfo`.
        field: path of the bad field, sent as `google.rpc.BadRequest`.
    """

    reason: ClassVar[str] = "INTERNAL"

    def __init__(
        self,
        message: str,
        *,
        field: str | None = None,
        retry_delay_s: float | None = None,
        metadata: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        self.retry_delay_s = retry_delay_s
        self.metadata = metadata or {}


class InvalidInput(StatestreamError):
    """The request cannot be served as it is; `field` says where."""

    reason = "INVALID_INPUT"

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}", field=field)


class UnknownModel(StatestreamError):
    """No such model, or no such version of it, is served here."""

    reason = "MODEL_NOT_FOUND"


class ModelNotLoaded(StatestreamError):
    """What the repository holds of a model cannot be served; the message says why, without a path of the machine."""

    reason = "MODEL_NOT_LOADED"


class ModelControlDisabled(StatestreamError):
    """Models are loaded and unloaded by themselves here, not by calls."""

    reason = "MODEL_CONTROL_DISABLED"


class SequenceError(StatestreamError):
    """The sequence is not where the request takes it to be."""


class SequenceNotFound(SequenceError):
    """Never started, or gone so long that nothing remembers it."""

    reason = "SEQUENCE_NOT_FOUND"


class SequenceExpired(SequenceError):
    """Idle longer than its idle time-out, or older than its lifetime."""

    reason = "SEQUENCE_EXPIRED"


class SequenceEvicted(SequenceError):
    """Dropped to make room in a bounded memory store."""

    reason = "SEQUENCE_EVICTED"


class SequenceEnded(SequenceError):
    """The sequence has taken its last step."""

    reason = "SEQUENCE_ENDED"


class SequenceExists(SequenceError):
    """A sequence of that name is live, and is not to be replaced by this call."""

    reason = "SEQUENCE_EXISTS"


class SequenceKindMismatch(SequenceError):
    """The sequence was begun by another service on the same model, whose part of the carry only that service reads."""

    reason = "SEQUENCE_KIND_MISMATCH"


class CheckpointNotFound(SequenceError):
    """No record of the sequence is kept at the step asked for."""

    reason = "CHECKPOINT_NOT_FOUND"

    def __init__(self, message: str, *, kept: tuple[int, ...] = ()) -> None:
        super().__init__(message, metadata={"checkpoint_steps": ",".join(map(str, kept))})


class StepOutOfOrder(SequenceError):
    """The step is not the next one and its reply is no longer kept."""

    reason = "STEP_OUT_OF_ORDER"

    def __init__(self, message: str, *, expected: int) -> None:
        super().__init__(message, metadata={"expected_step": str(expected)})
        self.expected = expected


class StepContentMismatch(SequenceError):
    """The step was applied already, with other content."""

    reason = "STEP_CONTENT_MISMATCH"


class StepConflict(SequenceError):
    """Another client took this step while it ran here, or has taken up the sequence since."""

    reason = "STEP_CONFLICT"


class ModelVersionGone(SequenceError):
    """The model version that the sequence began on is not served any more."""

    reason = "MODEL_VERSION_GONE"


class StateCorrupt(SequenceError):
    """The stored record fails its checksum, signature or format; it is never fed to a model."""

    reason = "STATE_CORRUPT"


class SnapshotsDisabled(StatestreamError):
    """Sequences can be neither exported nor imported: no key is configured to sign snapshots with."""

    reason = "SNAPSHOTS_DISABLED"


class CapacityExceeded(StatestreamError):
    """A configured bound is reached; nothing waits without bound."""

    reason = "CAPACITY"

    def __init__(self, message: str, *, retry_delay_s: float = 0.1) -> None:
        super().__init__(message, retry_delay_s=retry_delay_s)


class DeadlineExpired(StatestreamError):
    """The client's deadline passed before the work was run."""

    reason = "DEADLINE_EXPIRED"


class Unavailable(StatestreamError):
    """Not now, not here; a retry is safe."""

    def __init__(self, message: str, *, retry_delay_s: float = 0.2) -> None:
        super().__init__(message, retry_delay_s=retry_delay_s)


class StoreUnavailable(Unavailable):
    """The state store does not answer."""

    reason = "STORE_UNAVAILABLE"


class NotReady(Unavailable):
    """The model is still being loaded."""

    reason = "NOT_READY"


class Draining(Unavailable):
    """This replica is stopping."""

    reason = "DRAINING"


class Unsupported(StatestreamError):
    """A part of a protocol that this server does not serve."""

    reason = "UNSUPPORTED"


class ModelFailure(StatestreamError):
    """The run of the model failed."""

    reason = "MODEL_FAILURE"
