"""The one place where errors become gRPC statuses, with `google.rpc` details."""

from __future__ import annotations

from typing import TYPE_CHECKING

from google.protobuf import any_pb2, duration_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from services.runtime.core import errors

if TYPE_CHECKING:
    import grpc
    from google.protobuf.message import Message

ERROR_DOMAIN = "statestream"

CODES: dict[type[errors.StatestreamError], int] = {
    errors.InvalidInput: code_pb2.INVALID_ARGUMENT,
    errors.UnknownModel: code_pb2.NOT_FOUND,
    errors.ModelNotLoaded: code_pb2.FAILED_PRECONDITION,
    errors.ModelControlDisabled: code_pb2.FAILED_PRECONDITION,
    errors.SequenceNotFound: code_pb2.NOT_FOUND,
    errors.SequenceExpired: code_pb2.NOT_FOUND,
    errors.SequenceEvicted: code_pb2.NOT_FOUND,
    errors.SequenceEnded: code_pb2.FAILED_PRECONDITION,
    errors.SequenceExists: code_pb2.ALREADY_EXISTS,
    errors.SequenceKindMismatch: code_pb2.FAILED_PRECONDITION,
    errors.CheckpointNotFound: code_pb2.FAILED_PRECONDITION,
    errors.StepOutOfOrder: code_pb2.FAILED_PRECONDITION,
    errors.StepContentMismatch: code_pb2.FAILED_PRECONDITION,
    errors.StepConflict: code_pb2.ABORTED,
    errors.ModelVersionGone: code_pb2.FAILED_PRECONDITION,
    errors.StateCorrupt: code_pb2.DATA_LOSS,
    errors.SnapshotsDisabled: code_pb2.FAILED_PRECONDITION,
    errors.CapacityExceeded: code_pb2.RESOURCE_EXHAUSTED,
    errors.DeadlineExpired: code_pb2.DEADLINE_EXCEEDED,
    errors.StoreUnavailable: code_pb2.UNAVAILABLE,
    errors.NotReady: code_pb2.UNAVAILABLE,
    errors.Draining: code_pb2.UNAVAILABLE,
    errors.Unsupported: code_pb2.UNIMPLEMENTED,
    errors.ModelFailure: code_pb2.INTERNAL,
}
"""gRPC code of every error a client can be told; a test holds that none is missing."""


def _code(error: errors.StatestreamError) -> int:
    """That of its class, or of the nearest class above it: a room may raise a class of its own below one of these."""
    return next(CODES[kind] for kind in type(error).__mro__ if kind in CODES)


def code_name(error: errors.StatestreamError) -> str:
    """Name of the gRPC code, for example `NOT_FOUND`."""
    return code_pb2.Code.Name(_code(error))


def to_status(error: errors.StatestreamError) -> grpc.Status:
    """The status that a call is ended with: code, message, ErrorInfo, and BadRequest or RetryInfo where they apply."""
    details: list[Message] = [
        error_details_pb2.ErrorInfo(reason=error.reason, domain=ERROR_DOMAIN, metadata=error.metadata)
    ]
    if error.field is not None:
        violation = error_details_pb2.BadRequest.FieldViolation(field=error.field, description=error.message)
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    if error.retry_delay_s is not None:
        delay = duration_pb2.Duration()
        delay.FromNanoseconds(round(error.retry_delay_s * 1e9))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    return rpc_status.to_status(
        status_pb2.Status(code=_code(error), message=error.message, details=[_packed(d) for d in details])
    )


def _packed(message: Message) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed
