"""What is in a ready ONNX file: its features, lengths, states and outputs (no torch)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import onnx
import onnxruntime
from pydantic import ValidationError

from models.common.export.errors import ExportError
from models.common.export.facts import said
from models.common.export.pairing import partner
from models.common.export.wiring import Signature
from models.common.manifest import BATCH_AXIS, InputSpec, OutputSpec, StateSpec

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from models.common.manifest import Dim

_DTYPES = {
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(uint8)": "uint8",
    "tensor(bool)": "bool",
}
_LENGTHS = "lengths"
_SMALL, _LARGE = (5, 2), (8, 3)
"""Two sizes of time and batch, by which the axes of the outputs are known."""


@dataclass(frozen=True, slots=True)
class OnnxFile:
    """A file that loads, and how it can be served."""

    content: bytes
    model: onnx.ModelProto
    session: Any
    signature: Signature
    takes_lengths: bool
    """Whether the file has the input ``lengths``, or it is still to be given one."""


def read_file(path: Path, state: Mapping[str, str] | None, initial: Mapping[str, object]) -> OnnxFile:
    """Read a file, tell its states from its features, and find the axes of its outputs by running it.

    Raises:
        ExportError: it does not load, or has something that cannot be served.
    """
    try:
        model = onnx.load(path)  # with the weights beside it, if there are
        content = model.SerializeToString()
        options = cast("Any", onnxruntime.SessionOptions())
        options.intra_op_num_threads = 1
        options.log_severity_level = 4
        session: Any = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except OSError as error:
        raise ExportError(f"{path}: {error.strerror or error}") from error
    except Exception as error:  # neither library has a class for all that it raises
        raise ExportError(f"{path}: does not load: {(str(error).splitlines() or [''])[0]}") from error
    inputs, outputs = session.get_inputs(), session.get_outputs()
    pairs = _pairs(inputs, outputs, state)
    try:
        features, lengths = _features(inputs, pairs)
        states = tuple(_state(value, pairs[value.name], initial) for value in inputs if value.name in pairs)
    except ValidationError as error:
        raise ExportError(f"{path}: {said(error)}") from error
    if unknown := set(initial) - set(pairs):
        raise ExportError(f"initial: {min(unknown)} is no state input; there are {', '.join(pairs) or 'none'}")
    plain = [value for value in outputs if value.name not in pairs.values()]
    if not plain:
        raise ExportError(f"{path}: all of its outputs are states")
    given = lengths or InputSpec(name=_LENGTHS, dtype="int32", dims=("batch",), role="lengths")
    bare = Signature((*features, given), (), states)
    specs = _outputs(session, bare, [value.name for value in plain], fed=lengths is not None)
    return OnnxFile(content, model, session, Signature((*features, given), specs, states), lengths is not None)


def _pairs(inputs: Sequence[Any], outputs: Sequence[Any], state: Mapping[str, str] | None) -> dict[str, str]:
    """State input -> state output, as declared or by name and shape."""
    came, went = {value.name: value for value in inputs}, {value.name: value for value in outputs}
    if state is not None:
        for source, target in state.items():
            if source not in came or target not in went:
                there = ", ".join(came if source not in came else went)
                raise ExportError(f"state: {source if source not in came else target} is not there; there are {there}")
        return dict(state)
    pairs: dict[str, str] = {}
    for value in inputs:
        if not _like_a_state(value):
            continue
        open_outputs = [
            name
            for name, other in went.items()
            if name not in pairs.values() and other.type == value.type and len(other.shape) == len(value.shape)
        ]
        match = partner(value.name, open_outputs)
        if match is None:
            raise ExportError(
                f"state: the input {value.name} {list(value.shape)} is shaped as a state, but no output is named as "
                f'its new value; say which, state={{"{value.name}": ...}}: there are '
                f"{', '.join(open_outputs) or 'none'}. "
                "If it is no state, its axis 0, time, has to be dynamic"
            )
        pairs[value.name] = match
    return pairs


def _like_a_state(value: Any) -> bool:  # noqa: ANN401 - a NodeArg, which has no types
    """Fixed in all axes but one, which is the second, or the first of two."""
    free = [axis for axis, size in enumerate(value.shape) if not isinstance(size, int)]
    return len(value.shape) > 1 and free in ([BATCH_AXIS], [0]) and not (free == [0] and _named(value.shape[0], "time"))


def _named(size: object, what: str) -> bool:
    words = {"time": ("time", "seq", "len", "t", "step"), "batch": ("batch", "n", "b")}[what]
    text = str(size).lower()
    return any(text == word or (len(word) > 1 and word in text) for word in words)


def _features(inputs: Sequence[Any], pairs: Mapping[str, str]) -> tuple[list[InputSpec], InputSpec | None]:
    features: list[InputSpec] = []
    lengths: InputSpec | None = None
    for value in inputs:
        if value.name in pairs:
            continue
        dtype = _dtype(value)
        if len(value.shape) == 1 and ("len" in value.name.lower()):
            if dtype != "int32":
                raise ExportError(f"input {value.name}: lengths have to be int32, not {dtype}; put a Cast behind it")
            lengths = InputSpec(name=value.name, dtype="int32", dims=("batch",), role="lengths")
            continue
        _check_feature(value)
        rest = tuple(value.shape[2:])
        features.append(
            InputSpec(name=value.name, dtype=cast("Any", dtype), dims=("time", "batch", *rest), role="features")
        )
    if not features:
        raise ExportError("inputs: all of them are states; there is nothing to feed")
    return features, lengths


def _check_feature(value: Any) -> None:  # noqa: ANN401 - as above
    shape = list(value.shape)
    where = f"input {value.name} {shape}"
    if len(shape) < 2:  # noqa: PLR2004 - time and batch
        raise ExportError(f"{where}: features have the axes (time, batch, ...)")
    for axis, what in enumerate(("time", "batch")):
        if isinstance(shape[axis], int):
            raise ExportError(
                f"{where}: axis {axis}, {what}, is fixed; it has to be dynamic: export it with dynamic axes"
            )
    if _named(shape[0], "batch") and not _named(shape[1], "batch"):
        raise ExportError(f"{where}: is batch-major; time has to come first: put a Transpose behind it")
    if any(not isinstance(size, int) for size in shape[2:]):
        raise ExportError(f"{where}: only time and batch may be dynamic")


def _state(value: Any, output: str, initial: Mapping[str, object]) -> StateSpec:  # noqa: ANN401 - as above
    shape, where = list(value.shape), f"state {value.name} {list(value.shape)}"
    if len(shape) <= BATCH_AXIS or isinstance(shape[BATCH_AXIS], int):
        raise ExportError(f"{where}: its batch has to be axis {BATCH_AXIS}, and dynamic")
    if any(not isinstance(size, int) for axis, size in enumerate(shape) if axis != BATCH_AXIS):
        raise ExportError(f"{where}: only its axis {BATCH_AXIS}, the batch, may be dynamic")
    fixed = [size for axis, size in enumerate(shape) if axis != BATCH_AXIS]
    start = np.asarray(initial.get(value.name, 0.0), dtype=np.float64)
    if start.ndim and list(start.shape) != fixed:
        raise ExportError(f"initial: {value.name} has shape {list(start.shape)}, without the batch it is {fixed}")
    dims: tuple[Dim, ...] = tuple("batch" if axis == BATCH_AXIS else size for axis, size in enumerate(shape))
    return StateSpec(
        name=value.name,
        input=value.name,
        output=output,
        dtype=cast("Any", _dtype(value)),
        dims=dims,
        initial=tuple(start.ravel().tolist()) if start.ndim else float(start),
    )


def _dtype(value: Any) -> str:  # noqa: ANN401 - as above
    if value.type not in _DTYPES:
        raise ExportError(f"{value.name}: {value.type} cannot be served; the types are {', '.join(_DTYPES.values())}")
    return _DTYPES[value.type]


def _outputs(session: Any, signature: Signature, names: list[str], *, fed: bool) -> tuple[OutputSpec, ...]:  # noqa: ANN401
    """Axes of the outputs, and that the states come out as they went in, from two runs."""
    wanted = names + [spec.output for spec in signature.states]
    runs: list[dict[str, Any]] = []
    for timesteps, rows in (_SMALL, _LARGE):
        sizes = {"time": timesteps, "batch": rows}
        feed = {
            name: np.zeros([dim if isinstance(dim, int) else sizes[dim] for dim in dims], dtype=dtype)
            for name, (dtype, dims) in signature.taken().items()
            if fed or name != signature.lengths()
        }
        if fed:
            feed[str(signature.lengths())][:] = timesteps
        try:
            runs.append(dict(zip(wanted, cast("list[Any]", session.run(wanted, feed)), strict=True)))
        except Exception as error:  # ONNX Runtime has no class for all that it raises
            said_it = (str(error).splitlines() or [""])[0]
            raise ExportError(f"the graph: fails on {timesteps} timesteps of {rows} rows: {said_it}") from error
        for spec in signature.states:
            shape = feed[spec.input].shape
            if runs[-1][spec.output].shape != shape:
                raise ExportError(f"state: {spec.input} goes in as {shape}, {spec.output} comes out as another")
    return tuple(_output(name, runs[0][name], runs[1][name]) for name in names)


def _output(name: str, one: Any, two: Any) -> OutputSpec:  # noqa: ANN401 - arrays
    lead = list(zip(one.shape, two.shape, strict=True))[:2] if one.ndim == two.ndim else []
    (t, n), (t2, n2) = _SMALL, _LARGE
    if lead == [(t, t2), (n, n2)] and one.shape[2:] == two.shape[2:]:
        dims: tuple[Dim, ...] = ("time", "batch", *one.shape[2:])
    elif lead[:1] == [(n, n2)] and one.shape[1:] == two.shape[1:]:
        dims = ("batch", *one.shape[1:])
    else:
        raise ExportError(
            f"output {name}: has shape {one.shape} for {t} timesteps of {n} rows, and {two.shape} for {t2} of {n2}; it "
            "has to be (time, batch, ...) or (batch, ...)"
        )
    return OutputSpec(name=name, dtype=cast("Any", str(one.dtype)), dims=dims)
