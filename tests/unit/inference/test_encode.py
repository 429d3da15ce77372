"""Pieces of messages that are written by hand: protobuf reads them as what they stand for."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.inference import encode
from services.inference.wire.infer_pb2 import ModelInferResponse, ModelStreamInferResponse

KEYS = st.text(min_size=1, max_size=200)
INT64 = st.integers(-(2**63), 2**63 - 1)


def parameter(data: bytes, key: str) -> Any:
    """The value of the one parameter in a response."""
    response = ModelInferResponse.FromString(data)
    assert list(response.parameters) == [key]
    value = response.parameters[key]
    return getattr(value, value.WhichOneof("parameter_choice") or "")


@given(KEYS, INT64)
def test_int_parameters(key: str, value: int) -> None:
    """Any key, any signed number of 64 bits."""
    assert parameter(encode.int_parameter(key, value), key) == value


@given(KEYS, st.integers(0, 2**64 - 1))
def test_uint_parameters(key: str, value: int) -> None:
    """Any unsigned number of 64 bits, as the other kind of parameter."""
    assert parameter(encode.uint_parameter(key, value), key) == value


@given(KEYS, st.text(max_size=300))
def test_string_parameters(key: str, value: str) -> None:
    """Any text, also where its length takes two bytes."""
    assert parameter(encode.string_parameter(key, value), key) == value


@pytest.mark.parametrize("value", [False, True])
def test_bool_parameters(value: bool) -> None:  # noqa: FBT001
    """Both; false is there, too."""
    assert parameter(encode.bool_parameter("k", value=value), "k") is value


@given(INT64, st.integers(0, 2**62), st.integers(-1, 2**62))
def test_what_every_reply_says(step: int, epoch: int, committed: int) -> None:
    """Step, epoch and committed step under their names."""
    assert parameter(encode.step_parameter(step), "step") == step
    assert parameter(encode.epoch_parameter(epoch), "epoch") == epoch
    assert parameter(encode.committed_parameter(committed), "committed_step") == committed


@given(st.binary(max_size=300), st.text(max_size=150))
def test_joined_pieces_are_one_message(content: bytes, request_id: str) -> None:
    """Contents, id and flags in any order; on a stream they are the answer inside the answer."""
    pieces = [
        encode.delimited_head(encode.RAW_OUTPUT_CONTENTS, len(content)) + content,
        encode.step_parameter(3),
        encode.REPLACED,
        ModelInferResponse(
            model_name="m", outputs=[ModelInferResponse.InferOutputTensor(name="y")]
        ).SerializeToString(),
    ]
    echo = encode.delimited(encode.ID, request_id.encode()) + encode.START + encode.END
    expected = ModelInferResponse(model_name="m", id=request_id, raw_output_contents=[content])
    expected.outputs.add(name="y")
    expected.parameters["step"].int64_param = 3
    for name in ("sequence_replaced", "sequence_start", "sequence_end"):
        expected.parameters[name].bool_param = True
    assert ModelInferResponse.FromString(b"".join(pieces) + echo) == expected
    streamed = ModelStreamInferResponse.FromString(encode.on_stream(b"".join(pieces), echo))
    expected.parameters["triton_final_response"].bool_param = True
    assert streamed == ModelStreamInferResponse(infer_response=expected)


@given(st.integers(0, 2**64 - 1))
def test_varints_end_where_they_say(number: int) -> None:
    """Seven bits a byte, the lowest first, the last byte without its upper bit."""
    data = encode.varint(number)
    assert sum((byte & 127) << 7 * i for i, byte in enumerate(data)) == number
    assert [byte >> 7 for byte in data] == [1] * (len(data) - 1) + [0]
