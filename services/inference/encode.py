"""Parts of messages as bytes, where making a message of protobuf's for each step would cost more than the step (pure).

Fields of a protobuf message may come in any order and in several pieces, which are simply joined. So what a model says
in every reply is encoded once, and a reply is put together of a few pieces. Tests hold each against protobuf.
"""

from __future__ import annotations

from functools import lru_cache

# Field numbers of ModelInferResponse.
MODEL_NAME, MODEL_VERSION, ID, PARAMETERS, OUTPUTS, RAW_OUTPUT_CONTENTS = range(1, 7)
# Of InferParameter.
_BOOL, _INT64, _STRING, _UINT64 = 1, 2, 3, 5

_MORE = 128
"""Bit of a byte that another one follows."""

_CACHED = 8192


def varint(number: int) -> bytes:
    """A number in [0, 2^64) as protobuf writes it."""
    if number < _MORE:
        return bytes((number,))
    out = bytearray()
    while number >= _MORE:
        out.append(number & 127 | _MORE)
        number >>= 7
    out.append(number)
    return bytes(out)


def delimited_head(field: int, length: int) -> bytes:
    """What stands before bytes, text or a message of this length."""
    return varint(field << 3 | 2) + varint(length)


def delimited(field: int, content: bytes) -> bytes:
    """A field that is bytes, text or a message."""
    return delimited_head(field, len(content)) + content


def _parameter(key: str, value: bytes) -> bytes:
    return delimited(PARAMETERS, delimited(1, key.encode()) + delimited(2, value))


def bool_parameter(key: str, *, value: bool) -> bytes:
    """An entry of `parameters`."""
    return _parameter(key, varint(_BOOL << 3) + varint(value))


def int_parameter(key: str, value: int) -> bytes:
    """An entry of `parameters`; `value` is a signed 64-bit number."""
    return _parameter(key, varint(_INT64 << 3) + varint(value & 0xFFFF_FFFF_FFFF_FFFF))


def uint_parameter(key: str, value: int) -> bytes:
    """An entry of `parameters`; `value` is an unsigned 64-bit number."""
    return _parameter(key, varint(_UINT64 << 3) + varint(value))


def string_parameter(key: str, value: str) -> bytes:
    """An entry of `parameters`."""
    return _parameter(key, delimited(_STRING, value.encode()))


@lru_cache(_CACHED)
def step_parameter(step: int) -> bytes:
    """The number of the step that is answered."""
    return int_parameter("step", step)


@lru_cache(_CACHED)
def committed_parameter(step: int) -> bytes:
    """The last step that the store holds; -1: none."""
    return int_parameter("committed_step", step)


@lru_cache(_CACHED)
def epoch_parameter(epoch: int) -> bytes:
    """The epoch of the sequence."""
    return int_parameter("epoch", epoch)


REPLACED = bool_parameter("sequence_replaced", value=True)
"""The start took the place of a live sequence."""

FINAL = bool_parameter("triton_final_response", value=True)
"""On a stream: no further answer to this request."""

START = bool_parameter("sequence_start", value=True)
END = bool_parameter("sequence_end", value=True)


_STREAM_TAG = varint(2 << 3 | 2)
"""Of `infer_response` in `ModelStreamInferResponse`."""


def on_stream(response: bytes, echo: bytes) -> bytes:
    """A `ModelInferResponse`, and what it repeats of its request, as the one answer to a request of a stream."""
    length = len(response) + len(echo) + len(FINAL)
    return b"".join((_STREAM_TAG, varint(length), response, echo, FINAL))
