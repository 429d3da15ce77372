from __future__ import annotations

import grpc
import pytest
from google.protobuf.any_pb2 import Any
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status
from grpc import StatusCode, aio
from statestream import errors
from statestream._status import error_class, to_error

from services.runtime.core import errors as server_errors


def subclasses(root: type) -> set[type]:
    """All classes below one."""
    return {root}.union(*(subclasses(child) for child in root.__subclasses__()))


CLIENTS_OWN = {"ReplayBufferFull", "SequenceLost"}
"""Classes that no server raises."""


def server_reasons() -> dict[str, str]:
    """Reason -> name of the server's class, for each that has its own."""
    return {
        cls.__dict__["reason"]: cls.__name__
        for cls in subclasses(server_errors.StatestreamError)
        if "reason" in cls.__dict__ and cls.__module__ == server_errors.__name__
    }


def rpc_error(
    code: StatusCode, *details: ErrorInfo | BadRequest | RetryInfo, raw: bytes | None = None
) -> aio.AioRpcError:
    """What grpc raises for a status with details."""
    packed: list[Any] = []
    for detail in details:
        packed.append(Any())
        packed[-1].Pack(detail)
    status = Status(code=code.value[0], message="said the server", details=packed)
    trailing = (
        aio.Metadata(("grpc-status-details-bin", raw or status.SerializeToString()))
        if details or raw
        else aio.Metadata()
    )
    return aio.AioRpcError(code, aio.Metadata(), trailing, "said the server")


@pytest.mark.parametrize(("reason", "name"), sorted(server_reasons().items()))
def test_every_reason_of_the_server_has_a_class(reason: str, name: str) -> None:
    """Whatever the server tells arrives as a class of its own, of the same name but for deadlines."""
    found = error_class(reason, StatusCode.UNKNOWN)
    assert found.default_reason == reason
    assert found.__name__ == {"DeadlineExpired": "DeadlineExceeded"}.get(name, name)


@pytest.mark.parametrize("name", ["SequenceError", "Unavailable"])
def test_classes_are_grouped_as_on_the_server(name: str) -> None:
    """Catching a group on the client catches what belongs to it on the server."""
    ours, theirs = subclasses(getattr(errors, name)), subclasses(getattr(server_errors, name))
    # Other modules may refine a class for their own use; a client is told of those in this one.
    told = {cls.__name__ for cls in theirs if cls.__module__ == server_errors.__name__}
    assert told == {cls.__name__ for cls in ours} - CLIENTS_OWN


def test_details_become_attributes() -> None:
    """Reason, facts, field and retry delay of `google.rpc` details are all there."""
    violation = BadRequest.FieldViolation(field="texts[2]", description="holds no word")
    info = ErrorInfo(reason="INVALID_INPUT", metadata={"limit": "256"})
    delay = RetryInfo(retry_delay=Duration(seconds=1, nanos=500_000_000))
    error = to_error(rpc_error(StatusCode.INVALID_ARGUMENT, info, BadRequest(field_violations=[violation]), delay))
    assert type(error) is errors.InvalidInput
    assert error.code is StatusCode.INVALID_ARGUMENT
    assert (error.reason, error.field, error.metadata) == ("INVALID_INPUT", "texts[2]", {"limit": "256"})
    assert error.retry_delay_s == pytest.approx(1.5)
    assert str(error) == "INVALID_INPUT: said the server"


def test_a_gap_tells_the_step_expected() -> None:
    """STEP_OUT_OF_ORDER carries the number to go on from, where the server gave one."""
    info = ErrorInfo(reason="STEP_OUT_OF_ORDER", metadata={"expected_step": "7"})
    error = to_error(rpc_error(StatusCode.FAILED_PRECONDITION, info))
    assert isinstance(error, errors.StepOutOfOrder)
    assert error.expected == 7
    assert errors.StepOutOfOrder("without facts").expected is None


@pytest.mark.parametrize(
    ("code", "cls", "reason"),
    [
        (StatusCode.UNAVAILABLE, errors.Unavailable, "UNAVAILABLE"),
        (StatusCode.DEADLINE_EXCEEDED, errors.DeadlineExceeded, "DEADLINE_EXPIRED"),
        (StatusCode.RESOURCE_EXHAUSTED, errors.CapacityExceeded, "CAPACITY"),
        (StatusCode.INVALID_ARGUMENT, errors.InvalidInput, "INVALID_INPUT"),
        (StatusCode.CANCELLED, errors.CallCancelled, "CANCELLED"),
        (StatusCode.UNIMPLEMENTED, errors.StatestreamError, "UNIMPLEMENTED"),
        (StatusCode.NOT_FOUND, errors.StatestreamError, "NOT_FOUND"),
        (StatusCode.INTERNAL, errors.StatestreamError, "INTERNAL"),
    ],
)
def test_a_status_without_details_is_told_by_its_code(
    code: StatusCode, cls: type[errors.StatestreamError], reason: str
) -> None:
    """Bare statuses, of gRPC itself and of proxies, become errors of the tree."""
    error = to_error(rpc_error(code))
    assert type(error) is cls
    assert (error.reason, error.code, error.retry_delay_s, error.field) == (reason, code, None, None)


def test_a_stream_that_a_proxy_reset_can_be_repeated() -> None:
    """A balancer that loses its server in mid-reply resets the stream, and gRPC calls that INTERNAL: it is a break."""
    reset = aio.AioRpcError(
        StatusCode.INTERNAL, aio.Metadata(), aio.Metadata(), "Stream removed (RST_STREAM received, error code 2)"
    )
    assert type(to_error(reset)) is errors.Unavailable
    assert to_error(reset).code is StatusCode.UNAVAILABLE


def test_a_reason_newer_than_this_client_is_kept() -> None:
    """An unknown reason is not lost; the class is that of its code."""
    error = to_error(rpc_error(StatusCode.UNAVAILABLE, ErrorInfo(reason="MOON_TOO_FULL")))
    assert type(error) is errors.Unavailable
    assert error.reason == "MOON_TOO_FULL"


def test_details_that_cannot_be_read_are_passed_over() -> None:
    """What some proxy put into the trailer does not hide the status."""
    assert type(to_error(rpc_error(StatusCode.UNAVAILABLE, raw=b"\xff\xff"))) is errors.Unavailable


def test_any_other_grpc_error_becomes_ours() -> None:
    """Even an error of gRPC without a status is not let through."""
    assert to_error(grpc.RpcError("odd")).code is StatusCode.UNKNOWN
