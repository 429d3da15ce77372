"""Arrays as messages and back; numpy is imported when the first answer is read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from statestream.errors import InvalidInput
from statestream.inference.v1 import inference_pb2 as wire

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import numpy as np
    import numpy.typing as npt

    Tensor = npt.NDArray[np.generic] | memoryview[Any] | bytes | bytearray

_PREFIX = "DATA_TYPE_"

_INTEGERS = ["INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64"]

_CODES = {"?": "BOOL", "e": "FP16", "f": "FP32", "d": "FP64"}
"""Names of the types by their codes in a buffer; those of integers differ from machine to machine."""

_SIGNED, _UNSIGNED = "bhilq", "BHILQ"

_DTYPES = {"BOOL": "?", "FP16": "<f2", "FP32": "<f4", "FP64": "<f8"} | {
    name: f"<{'u' if name.startswith('U') else 'i'}{int(name.lstrip('UINT')) // 8}" for name in _INTEGERS
}


def to_messages(tensors: Mapping[str, Tensor]) -> list[wire.Tensor]:
    """Arrays, or any objects with the buffer protocol, by the names of the model's inputs.

    Raises:
        InvalidInput: one has elements of a type that no model takes.
        TypeError: one has no elements of a known type, as a list: make an array of it.
    """
    messages: list[wire.Tensor] = []
    for i, (name, tensor) in enumerate(tensors.items()):
        view = memoryview(cast("bytes", tensor))  # numpy's stubs do not know that an array is a buffer
        data_type = _data_type(view)
        if data_type is None:
            raise InvalidInput("has elements of a type that no model takes", field=f"inputs[{i}].data_type")
        messages.append(wire.Tensor(name=name, data_type=data_type, shape=view.shape, data=view.tobytes()))
    return messages


def _data_type(view: memoryview) -> wire.DataType.ValueType | None:
    code = view.format.lstrip("@=<")
    if code in _CODES:
        return wire.DataType.Value(_PREFIX + _CODES[code])
    if len(code) == 1 and code in _SIGNED + _UNSIGNED:
        return wire.DataType.Value(f"{_PREFIX}{'INT' if code in _SIGNED else 'UINT'}{8 * view.itemsize}")
    return None


def from_messages(messages: Iterable[wire.Tensor]) -> dict[str, npt.NDArray[Any]]:
    """The outputs by their names, as numpy arrays that cannot be written to.

    Raises:
        ImportError: numpy is not installed.
    """
    import numpy as np  # noqa: PLC0415 - who does not use this part of the client does not need it

    arrays: dict[str, npt.NDArray[Any]] = {}
    for message in messages:
        dtype = np.dtype(_DTYPES[wire.DataType.Name(message.data_type).removeprefix(_PREFIX)])
        arrays[message.name] = np.frombuffer(message.data, dtype).reshape(tuple(message.shape))
    return arrays
