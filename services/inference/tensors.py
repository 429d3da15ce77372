"""How the tensors of a request lie on the wire, and what a model makes of them (pure).

The batch comes first: an input is [N, T, ...], or [T, ...] for one row alone, which its rank tells. Answers have the
same form: [N, T, ...], or [N, ...] for an output that a chunk has one of, and without N where the inputs had none.

Requests mostly look alike, so what follows from names, types and shapes is worked out once: a `Head` stands for these,
a `Plan` for what one version of a model does with them.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from services.inference import encode
from services.inference.datatypes import datatype_of, known
from services.inference.limits import LAYOUTS_MAX
from services.inference.wire.infer_pb2 import ModelInferResponse
from services.runtime.core.errors import InvalidInput, ModelFailure
from services.runtime.sequences.decide import tensor_hash

if TYPE_CHECKING:
    from collections.abc import Sequence

    from models.common.manifest import Manifest
    from services.runtime.core.ids import ModelId
    from services.runtime.engine.collate import Array
    from services.runtime.engine.served import ServedModel
    from services.runtime.sequences.contract import StepContext

TensorHead = tuple[str, str, tuple[int, ...]]
"""Name, datatype and shape of an input."""

_VERSIONS_MAX = 64


RANK_MAX = 16
"""Dimensions of a tensor; no model has as many."""

_REMEMBERED_BYTES_MAX = 2048
"""A head with longer names is not remembered."""


class Head:
    """What a request says of its tensors besides their elements.

    Attributes:
        inputs: in the order of the request.
        outputs: names asked for; empty: all.
        digest: bytes that two heads share only if they are equal.
        hashes: what the digest of a request without a key begins with: for one that ends its sequence, and others.
    """

    __slots__ = ("_plans", "digest", "hashes", "inputs", "outputs")

    def __init__(self, inputs: tuple[TensorHead, ...], outputs: tuple[str, ...]) -> None:
        self.inputs = inputs
        self.outputs = outputs
        self.digest = repr((inputs, outputs)).encode()
        self.hashes = {end: tensor_hash(self.digest, start=False, end=end) for end in (False, True)}
        self._plans: dict[ModelId, Plan] = {}  # bounded by _VERSIONS_MAX

    def plan(self, model: ServedModel) -> Plan:
        """What the model does with such a request.

        Raises:
            InvalidInput: it takes other tensors.
        """
        plan = self._plans.get(model.model_id)
        if plan is None:
            plan = make_plan(self, model.model_id, model.manifest)
            if len(self._plans) >= _VERSIONS_MAX:
                self._plans.clear()
            self._plans[model.model_id] = plan
        return plan


_heads: dict[tuple[tuple[TensorHead, ...], tuple[str, ...]], Head] = {}  # bounded by LAYOUTS_MAX


def head_of(inputs: tuple[TensorHead, ...], outputs: tuple[str, ...]) -> Head:
    """The one head for these tensors."""
    head = _heads.get((inputs, outputs))
    if head is None:
        head = Head(inputs, outputs)
        if len(head.digest) > _REMEMBERED_BYTES_MAX:
            return head
        if len(_heads) >= LAYOUTS_MAX:
            _heads.clear()
        _heads[inputs, outputs] = head
    return head


class _Feature(NamedTuple):
    """An input of the model: which of the request's it is, and how its bytes are read.

    `truth`: its elements are 0 or 1, which any byte may claim to be.
    """

    at: int
    dtype: np.dtype[np.generic]
    shape: tuple[int, ...]
    size_bytes: int
    truth: bool


class _Output(NamedTuple):
    """An output that is asked for: which of the model's it is, the bytes of a row, and what stands before all rows."""

    at: int
    per_timestep: bool
    row_bytes: int
    head: bytes
    tensor: TensorHead


class Plan:
    """What one version of a model does with the tensors of a request.

    Attributes:
        rows, timesteps: N and T; both 0 where there are no inputs.
        lengths_index: which of the request's inputs are the lengths of the rows; None: all have T.
        tensors: the outputs that were asked for, as an answer describes them.
    """

    __slots__ = ("_features", "_outputs", "_prefix", "lengths_index", "rows", "tensors", "timesteps")

    def __init__(
        self,
        form: _Form,
        features: tuple[_Feature, ...],
        lengths_index: int | None,
        outputs: tuple[_Output, ...],
        model_id: ModelId,
    ) -> None:
        self.rows = form.rows
        self.timesteps = form.timesteps
        self.lengths_index = lengths_index
        self._features = features
        self._outputs = outputs
        self.tensors = tuple(output.tensor for output in outputs)
        self._prefix = _prefix(model_id, self.tensors)

    def arrays(self, blobs: Sequence[bytes], field: str) -> tuple[Array, ...]:
        """The inputs in the model's order: (T, ...) each for one row, (N, T, ...) for several; views of `blobs`.

        `field` is the name of what holds the bytes, with braces for its index.

        Raises:
            InvalidInput: too many bytes, too few, or no truth value where there has to be one.
        """
        arrays: list[Array] = []
        for index, dtype, shape, size_bytes, truth in self._features:
            blob = blobs[index]
            if len(blob) != size_bytes:
                raise _wrong_size(field.format(index), blob, size_bytes)
            flat = np.frombuffer(blob, dtype)
            if truth and not (flat.view(np.uint8) <= 1).all():
                raise InvalidInput(field.format(index), "holds a byte that is neither 0 nor 1")
            arrays.append(flat.reshape(shape))
        return tuple(arrays)

    def named(self, error: InvalidInput, head: Head, field: str) -> InvalidInput:
        """An error that names an input as the graph does, with the name of what held it."""
        for index, (name, _, _) in enumerate(head.inputs):
            if name == error.field:
                return InvalidInput(field.format(index), error.message.partition(": ")[2])
        return error

    def lengths(self, blobs: Sequence[bytes], field: str) -> list[int]:
        """The timesteps of each row.

        Raises:
            InvalidInput: one is below 1 or above T.
        """
        index = self.lengths_index
        if index is None:
            return [self.timesteps] * self.rows
        blob = blobs[index]
        if len(blob) != 4 * self.rows:
            raise _wrong_size(field.format(index), blob, 4 * self.rows)
        lengths: list[int] = np.frombuffer(blob, "<i4").tolist()
        if not all(1 <= length <= self.timesteps for length in lengths):
            raise InvalidInput(field.format(index), f"holds a length that is not in 1 to {self.timesteps}")
        return lengths

    def contents(self, outputs: Sequence[Array]) -> list[bytes]:
        """The elements of those outputs of one row that were asked for, with zeros behind the end of a shorter row.

        Raises:
            ModelFailure: one has not the shape that the manifest says.
        """
        contents: list[bytes] = []
        for at, per_timestep, row_bytes, _, _ in self._outputs:
            content = outputs[at].tobytes()
            if len(content) != row_bytes:
                if not per_timestep or self.lengths_index is None or len(content) > row_bytes:
                    raise ModelFailure("an output has another shape than the manifest says")
                content = content.ljust(row_bytes, b"\0")
            contents.append(content)
        return contents

    def reply(self, contents: Sequence[bytes], context: StepContext) -> bytes:
        """A step's `ModelInferResponse`, without what repeats the request."""
        epoch, step = context.position
        parts = [self._prefix, encode.step_parameter(step), encode.epoch_parameter(epoch)]
        if context.committed_step is not None:
            parts.append(encode.committed_parameter(context.committed_step))
        if context.replaces_live:
            parts.append(encode.REPLACED)
        for output, content in zip(self._outputs, contents, strict=True):
            parts.append(output[3])
            parts.append(content)
        return b"".join(parts)

    def whole_reply(self, contents: Sequence[bytes]) -> bytes:
        """A `ModelInferResponse` for whole inputs; `contents` are of all rows."""
        parts = [self._prefix]
        for output, content in zip(self._outputs, contents, strict=True):
            parts += (output.head, content)
        return b"".join(parts)


def _wrong_size(field: str, blob: bytes, size_bytes: int) -> InvalidInput:
    return InvalidInput(field, f"has {len(blob)} bytes, its shape and type ask for {size_bytes}")


class _Form(NamedTuple):
    """N and T of a request, and whether its shapes have a batch axis."""

    rows: int
    timesteps: int
    batched: bool


def make_plan(head: Head, model_id: ModelId, manifest: Manifest) -> Plan:
    """What follows from the names, types and shapes of a request.

    Raises:
        InvalidInput: naming the tensor that is not as the model takes it.
    """
    indices = _indices(head, manifest)
    if not indices:
        return Plan(_Form(0, 0, batched=False), (), None, (), model_id)
    form: _Form | None = None
    features: list[_Feature] = []
    for spec in manifest.features():
        index = indices.get(spec.name)
        if index is None:
            raise InvalidInput("inputs", f"{spec.name} is missing; the model takes {_names(manifest)}")
        name = f"inputs[{index}]"
        _check_type(head.inputs[index], spec.dtype, name)
        shape, rest = head.inputs[index][2], tuple(dim for dim in spec.dims[2:] if isinstance(dim, int))
        found = _form(shape, rest, name)
        if form is not None and found != form:
            raise InvalidInput(f"{name}.shape", "has another number of rows or timesteps than the input before")
        form, dtype = found, np.dtype(spec.dtype)
        row = (form.timesteps, *rest) if form.rows == 1 else (form.rows, form.timesteps, *rest)
        features.append(_Feature(index, dtype, row, math.prod(row) * dtype.itemsize, truth=dtype.kind == "b"))
    if form is None:
        raise AssertionError("a model has at least one feature")
    lengths = manifest.lengths()
    lengths_index = indices.get(lengths.name) if lengths is not None else None
    if lengths_index is not None:
        _check_type(head.inputs[lengths_index], "int32", f"inputs[{lengths_index}]")
        if head.inputs[lengths_index][2] not in ((form.rows,), (form.rows, 1)):
            raise InvalidInput(f"inputs[{lengths_index}].shape", f"must be [{form.rows}], a length for each row")
    return Plan(form, tuple(features), lengths_index, _outputs(head, manifest, form), model_id)


def _indices(head: Head, manifest: Manifest) -> dict[str, int]:
    known_names = {spec.name for spec in manifest.inputs}
    states = {state.input for state in manifest.states}
    indices: dict[str, int] = {}
    for index, (name, _, _) in enumerate(head.inputs):
        if name in states:
            raise InvalidInput(f"inputs[{index}].name", "is a state tensor, which the server keeps for the sequence")
        if name not in known_names:
            raise InvalidInput(f"inputs[{index}].name", f"is not an input of the model; it takes {_names(manifest)}")
        if name in indices:
            raise InvalidInput(f"inputs[{index}].name", "is there twice")
        indices[name] = index
    return indices


def _names(manifest: Manifest) -> str:
    return ", ".join(spec.name for spec in manifest.features())


def _check_type(tensor: TensorHead, dtype: str, name: str) -> None:
    datatype, wanted = known(tensor[1], f"{name}.datatype"), datatype_of(dtype)
    if datatype is not wanted:
        raise InvalidInput(f"{name}.datatype", f"is {datatype.name}; the model takes {wanted.name}")


def _form(shape: tuple[int, ...], rest: tuple[int, ...], name: str) -> _Form:
    lead = len(shape) - len(rest)
    if lead not in (1, 2) or shape[lead:] != rest:
        wanted = "".join(f", {dim}" for dim in rest)
        raise InvalidInput(f"{name}.shape", f"is {list(shape)}; it must be [N, T{wanted}], or [T{wanted}] for one row")
    if min(shape[:lead]) < 1:
        raise InvalidInput(f"{name}.shape", "must have at least one row and one timestep")
    return _Form(1, shape[0], batched=False) if lead == 1 else _Form(shape[0], shape[1], batched=True)


def _outputs(head: Head, manifest: Manifest, form: _Form) -> tuple[_Output, ...]:
    names = [spec.name for spec in manifest.outputs]
    chosen: list[_Output] = []
    for i, name in enumerate(head.outputs or names):
        if name not in names:
            raise InvalidInput(f"outputs[{i}].name", f"is not an output of the model; it gives {', '.join(names)}")
        if name in head.outputs[:i]:
            raise InvalidInput(f"outputs[{i}].name", "is there twice")
        index = names.index(name)
        spec = manifest.outputs[index]
        rest = tuple(dim for dim in spec.dims if isinstance(dim, int))
        per_timestep = spec.per == "timestep"
        shape = (form.rows,) * form.batched + (form.timesteps,) * per_timestep + rest
        size_bytes = math.prod(shape) * np.dtype(spec.dtype).itemsize
        raw_head = encode.delimited_head(encode.RAW_OUTPUT_CONTENTS, size_bytes)
        tensor = (name, datatype_of(spec.dtype).name, shape)
        chosen.append(_Output(index, per_timestep, size_bytes // form.rows, raw_head, tensor))
    return tuple(chosen)


def _prefix(model_id: ModelId, tensors: tuple[TensorHead, ...]) -> bytes:
    response = ModelInferResponse(model_name=model_id.name, model_version=model_id.version)
    for name, datatype, shape in tensors:
        response.outputs.add(name=name, datatype=datatype, shape=shape)
    return response.SerializeToString()
