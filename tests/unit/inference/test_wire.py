"""Our text of the Open Inference Protocol against Triton's: what we have they have, by name, number and type."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from services.inference.servicer import _MESSAGES, NOT_SERVED
from services.inference.wire.pool import POOL
from tests.kit.triton import model_config_pb2, service_pb2

if TYPE_CHECKING:
    from collections.abc import Iterator

FILES = ("infer", "management", "model_config")


def messages(messages_by_name: Any) -> Iterator[Any]:
    """Messages and those inside of them."""
    for message in messages_by_name.values():
        yield message
        yield from messages(message.nested_types_by_name)


OURS = {
    message.full_name: message
    for file in FILES
    for message in messages(POOL.FindFileByName(f"inference/{file}.proto").message_types_by_name)
}
THEIRS = {
    message.full_name: message
    for module in (service_pb2, model_config_pb2)
    for message in messages(module.DESCRIPTOR.message_types_by_name)
}


def described(field: Any) -> tuple[Any, ...]:
    """What has to be the same for two programs to understand each other."""
    of = field.message_type or field.enum_type
    oneof = field.containing_oneof
    return field.number, field.type, field.is_repeated, of and of.full_name, oneof and oneof.name


@pytest.mark.parametrize("name", sorted(OURS))
def test_a_message_is_theirs(name: str) -> None:
    """Every field that we have; they may have more."""
    for field in OURS[name].fields:
        assert described(field) == described(THEIRS[name].fields_by_name[field.name]), field.name


def test_the_datatypes_are_theirs() -> None:
    """All of them, by the same numbers."""
    ours = POOL.FindEnumTypeByName("inference.DataType").values
    theirs = model_config_pb2.DataType.DESCRIPTOR.values
    assert [(value.name, value.number) for value in ours] == [(value.name, value.number) for value in theirs]


def test_the_methods_are_theirs() -> None:
    """Each is served, or says that it is not; requests and replies are of the same types."""
    ours = POOL.FindServiceByName("inference.GRPCInferenceService").methods_by_name
    theirs = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods_by_name
    assert set(theirs) == set(ours) | set(NOT_SERVED)
    assert set(ours) == set(_MESSAGES) | {"ModelInfer", "ModelStreamInfer"}
    for name, method in ours.items():
        other = theirs[name]
        assert method.input_type.full_name == other.input_type.full_name
        assert method.output_type.full_name == other.output_type.full_name
        assert (method.client_streaming, method.server_streaming) == (other.client_streaming, other.server_streaming)


def test_both_live_in_one_process() -> None:
    """The names are the same, the classes are not, and a message of one is read by the other."""
    from services.inference.wire import infer_pb2  # noqa: PLC0415 - after Triton's, which is the harder order

    made = service_pb2.ModelInferRequest(model_name="m", id="1")
    made.parameters["sequence_id"].uint64_param = 2**64 - 1
    assert infer_pb2.ModelInferRequest is not service_pb2.ModelInferRequest
    read = infer_pb2.ModelInferRequest.FromString(made.SerializeToString())
    assert read.parameters["sequence_id"].uint64_param == 2**64 - 1
