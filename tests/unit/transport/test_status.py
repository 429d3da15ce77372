"""Errors to statuses: total, unique, and with details that a program can act on."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
from google.rpc import error_details_pb2, status_pb2

from services.runtime.core import errors
from services.runtime.transport.status import CODES, ERROR_DOMAIN, code_name, to_status

ABSTRACT = {errors.StatestreamError, errors.SequenceError, errors.Unavailable}
CONCRETE = [
    member
    for _, member in inspect.getmembers(errors, inspect.isclass)
    if issubclass(member, errors.StatestreamError) and member not in ABSTRACT
]


def example(kind: type[errors.StatestreamError]) -> errors.StatestreamError:
    if kind is errors.InvalidInput:
        return errors.InvalidInput("texts[3]", "is empty")
    if kind is errors.StepOutOfOrder:
        return errors.StepOutOfOrder("step 9 skips ahead", expected=4)
    return kind("what happened")


def details(error: errors.StatestreamError) -> status_pb2.Status:
    metadata: dict[str, Any] = dict(to_status(error).trailing_metadata)
    return status_pb2.Status.FromString(metadata["grpc-status-details-bin"])


def test_every_error_has_a_code_and_a_reason_of_its_own() -> None:
    """Nothing is left to chance, and a client can tell any two apart."""
    assert set(CODES) == set(CONCRETE)
    reasons = [kind.reason for kind in CONCRETE]
    assert len(set(reasons)) == len(reasons)


def test_every_reason_stands_in_the_tree() -> None:
    """The tree at the top of the module is the whole list."""
    assert errors.__doc__ is not None
    for kind in CONCRETE:
        assert kind.reason in errors.__doc__.split()
        assert kind.__name__ in errors.__doc__


def test_a_class_below_one_of_the_tree_has_its_code() -> None:
    """A room may narrow an error; clients are told what they know."""

    class Narrower(errors.StoreUnavailable):
        pass

    assert code_name(Narrower("x")) == "UNAVAILABLE"
    assert to_status(Narrower("x")).code.name == "UNAVAILABLE"


@pytest.mark.parametrize("kind", CONCRETE)
def test_the_status_names_its_reason(kind: type[errors.StatestreamError]) -> None:
    """Code, message and ErrorInfo come through."""
    error = example(kind)
    status = details(error)
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert (info.reason, info.domain) == (kind.reason, ERROR_DOMAIN)
    assert status.message == error.message
    assert to_status(error).code.name == code_name(error)


def test_a_bad_field_is_named() -> None:
    """BadRequest holds the path of the field."""
    bad = error_details_pb2.BadRequest()
    assert details(example(errors.InvalidInput)).details[1].Unpack(bad)
    assert bad.field_violations[0].field == "texts[3]"


def test_a_retry_delay_is_told() -> None:
    """RetryInfo holds the delay of whatever may be retried."""
    retry = error_details_pb2.RetryInfo()
    assert details(errors.CapacityExceeded("full", retry_delay_s=1.5)).details[1].Unpack(retry)
    assert retry.retry_delay.ToTimedelta().total_seconds() == 1.5


def test_the_expected_step_is_told() -> None:
    """A client that is out of order learns where to go on."""
    info = error_details_pb2.ErrorInfo()
    details(example(errors.StepOutOfOrder)).details[0].Unpack(info)
    assert info.metadata["expected_step"] == "4"
