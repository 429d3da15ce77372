"""gRPC statuses, with their `google.rpc` details, as errors of this package."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import grpc
from google.protobuf.message import DecodeError
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from statestream import errors

if TYPE_CHECKING:
    from collections.abc import Iterable

    from google.protobuf.message import Message

_DETAILS_KEY = "grpc-status-details-bin"

M = TypeVar("M", bound="Message")


def _classes(root: type[errors.StatestreamError]) -> Iterable[type[errors.StatestreamError]]:
    yield root
    for child in root.__subclasses__():
        yield from _classes(child)


_BY_REASON = {cls.default_reason: cls for cls in _classes(errors.StatestreamError) if "default_reason" in cls.__dict__}

# What an answer means that carries no reason of ours: it comes from gRPC itself, or from a proxy.
_BY_CODE = {
    grpc.StatusCode.INVALID_ARGUMENT: errors.InvalidInput,
    grpc.StatusCode.RESOURCE_EXHAUSTED: errors.CapacityExceeded,
    grpc.StatusCode.DEADLINE_EXCEEDED: errors.DeadlineExceeded,
    grpc.StatusCode.CANCELLED: errors.CallCancelled,
    grpc.StatusCode.UNAVAILABLE: errors.Unavailable,
}


def error_class(reason: str, code: grpc.StatusCode) -> type[errors.StatestreamError]:
    """The class for a reason, else for a code, else the root."""
    return _BY_REASON.get(reason) or _BY_CODE.get(code) or errors.StatestreamError


def to_error(rpc_error: grpc.RpcError) -> errors.StatestreamError:
    """The error that a failed call stands for."""
    if not isinstance(rpc_error, grpc.aio.AioRpcError):
        return errors.StatestreamError(str(rpc_error), reason="UNKNOWN", code=grpc.StatusCode.UNKNOWN)
    code = rpc_error.code()
    if code is grpc.StatusCode.INTERNAL and "RST_STREAM" in (rpc_error.details() or ""):
        # So gRPC tells that a proxy lost the server after the reply had begun; no server has said this.
        code = grpc.StatusCode.UNAVAILABLE
    status = _rich_status(rpc_error)
    info = _detail(status, ErrorInfo)
    violations = _detail(status, BadRequest).field_violations
    retry = _detail(status, RetryInfo)
    reason = info.reason or (code.name if code not in _BY_CODE else "")
    return error_class(reason, code)(
        rpc_error.details() or code.name.lower().replace("_", " "),
        reason=reason or None,
        code=code,
        field=violations[0].field if violations else None,
        metadata=info.metadata,
        retry_delay_s=retry.retry_delay.ToNanoseconds() / 1e9 if retry.HasField("retry_delay") else None,
    )


def _rich_status(rpc_error: grpc.aio.AioRpcError) -> Status:
    for key, value in rpc_error.trailing_metadata():
        if key == _DETAILS_KEY and isinstance(value, bytes):
            try:
                return Status.FromString(value)
            except DecodeError:
                break  # some proxy's, not ours: the code must do
    return Status()


def _detail(status: Status, kind: type[M]) -> M:
    """The first detail of a kind, or an empty one."""
    found = kind()
    for detail in status.details:
        if detail.type_url.rpartition("/")[2] == found.DESCRIPTOR.full_name:
            try:
                found.MergeFromString(detail.value)
            except DecodeError:
                return kind()
            break
    return found
