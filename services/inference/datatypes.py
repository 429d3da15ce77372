"""The datatypes of the Open Inference Protocol, what numpy calls them, and where their typed contents stand."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from services.inference.wire import model_config_pb2
from services.runtime.core.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Sequence

    from services.inference.wire.infer_pb2 import InferTensorContents


class Datatype(NamedTuple):
    """One type of elements.

    Attributes:
        name: in requests, such as "FP32".
        config: its number in a model's configuration.
        dtype: of numpy, little-endian; None where numpy has none.
        contents: the field of `InferTensorContents` for it; None: it has none, and comes raw.
    """

    name: str
    config: model_config_pb2.DataType.ValueType
    dtype: np.dtype[np.generic] | None
    contents: str | None


_ALL = (
    Datatype("BOOL", model_config_pb2.TYPE_BOOL, np.dtype("?"), "bool_contents"),
    Datatype("UINT8", model_config_pb2.TYPE_UINT8, np.dtype("<u1"), "uint_contents"),
    Datatype("UINT16", model_config_pb2.TYPE_UINT16, np.dtype("<u2"), "uint_contents"),
    Datatype("UINT32", model_config_pb2.TYPE_UINT32, np.dtype("<u4"), "uint_contents"),
    Datatype("UINT64", model_config_pb2.TYPE_UINT64, np.dtype("<u8"), "uint64_contents"),
    Datatype("INT8", model_config_pb2.TYPE_INT8, np.dtype("<i1"), "int_contents"),
    Datatype("INT16", model_config_pb2.TYPE_INT16, np.dtype("<i2"), "int_contents"),
    Datatype("INT32", model_config_pb2.TYPE_INT32, np.dtype("<i4"), "int_contents"),
    Datatype("INT64", model_config_pb2.TYPE_INT64, np.dtype("<i8"), "int64_contents"),
    Datatype("FP16", model_config_pb2.TYPE_FP16, np.dtype("<f2"), None),
    Datatype("FP32", model_config_pb2.TYPE_FP32, np.dtype("<f4"), "fp32_contents"),
    Datatype("FP64", model_config_pb2.TYPE_FP64, np.dtype("<f8"), "fp64_contents"),
    Datatype("BYTES", model_config_pb2.TYPE_STRING, None, "bytes_contents"),
    Datatype("BF16", model_config_pb2.TYPE_BF16, None, None),
)
DATATYPES = {datatype.name: datatype for datatype in _ALL}
_BY_DTYPE = {datatype.dtype: datatype for datatype in _ALL if datatype.dtype is not None}

CONTENTS = tuple(sorted({datatype.contents for datatype in _ALL if datatype.contents}))
"""All fields of `InferTensorContents`."""


def datatype_of(dtype: str) -> Datatype:
    """The type for one of the names in a manifest, such as "float32"."""
    return _BY_DTYPE[np.dtype(dtype)]


def known(name: str, field: str) -> Datatype:
    """The type of that name.

    Raises:
        InvalidInput: there is none.
    """
    datatype = DATATYPES.get(name)
    if datatype is None:
        raise InvalidInput(field, f"is not one of {', '.join(DATATYPES)}")
    return datatype


def raw_bytes(datatype: Datatype, contents: InferTensorContents, field: str) -> bytes:
    """The elements of typed contents as raw contents would have them.

    Raises:
        InvalidInput: they stand in the field for another type, or do not fit theirs.
    """
    if datatype.contents is None:
        raise InvalidInput(field, f"cannot hold {datatype.name}; it comes in raw_input_contents")
    for name in CONTENTS:
        if name != datatype.contents and len(getattr(contents, name)):
            raise InvalidInput(f"{field}.{name}", f"is not where {datatype.name} elements are; {datatype.contents} is")
    if datatype.dtype is None:
        raise InvalidInput(field, f"no model takes {datatype.name}")
    values: Sequence[float] = getattr(contents, datatype.contents)
    try:
        return np.array(list(values), dtype=datatype.dtype).tobytes()
    except OverflowError:
        raise InvalidInput(f"{field}.{datatype.contents}", f"holds what does not fit {datatype.name}") from None
