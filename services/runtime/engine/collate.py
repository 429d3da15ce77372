"""Joins the steps of many sequences into one run of the model and takes the results apart again (pure).

`unstack(stack(rows))` gives every row its own state back, whatever its batch-mates: tests hold it to that.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt

from models.common.manifest import BATCH_AXIS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from models.common.manifest import Manifest

Array = npt.NDArray[np.generic]


class Row(NamedTuple):
    """One step of one sequence.

    `inputs` are the features in the manifest's order, each (T, ...) with the same T >= 1; `state` the state tensors in
    the manifest's order, each without its batch axis.
    """

    inputs: tuple[Array, ...]
    state: tuple[Array, ...]

    @property
    def timesteps(self) -> int:
        """T of this row."""
        return self.inputs[0].shape[0]


class Result(NamedTuple):
    """What a step gives: `outputs` in the manifest's order, (T, ...) or (...); `state` as it went in."""

    outputs: tuple[Array, ...]
    state: tuple[Array, ...]


def stack(rows: Sequence[Row], manifest: Manifest) -> dict[str, Array]:
    """The graph's inputs: features (T, N, ...) padded with zeros, lengths (N,), states (L, N, H)."""
    lengths = [row.timesteps for row in rows]
    feeds: dict[str, Array] = {}
    for i, spec in enumerate(manifest.features()):
        feeds[spec.name] = _pad([row.inputs[i] for row in rows], lengths)
    spec = manifest.lengths()
    if spec is not None:
        feeds[spec.name] = np.array(lengths, dtype=np.int32)
    for i, state in enumerate(manifest.states):
        feeds[state.input] = _join([row.state[i] for row in rows])
    return feeds


def _join(arrays: list[Array]) -> Array:
    """Arrays of one shape side by side on axis 1.

    They are joined as bytes: at each array that numpy copies it lets other threads go first, and waits for them after.
    """
    if len(arrays) == 1:
        return arrays[0][:, None]
    first = arrays[0]
    try:
        joined = b"".join(cast("list[Any]", arrays))
    except TypeError:  # one of them is not in one piece
        return np.stack(arrays, axis=BATCH_AXIS)
    together = np.frombuffer(joined, first.dtype).reshape(len(arrays), *first.shape)
    return np.ascontiguousarray(together.swapaxes(0, BATCH_AXIS))


def _pad(arrays: list[Array], lengths: list[int]) -> Array:
    longest = max(lengths)
    if min(lengths) == longest:
        return _join(arrays)
    padded = np.zeros((longest, len(arrays), *arrays[0].shape[1:]), dtype=arrays[0].dtype)
    for n, array in enumerate(arrays):
        padded[: array.shape[0], n] = array
    return padded


def unsound_rows(feeds: Mapping[str, Array], manifest: Manifest) -> dict[int, str]:
    """Rows with a feature that is NaN or infinite, and the name of the input where it is."""
    found: dict[int, str] = {}
    for spec in manifest.features():
        array = feeds[spec.name]
        if not _surely_finite(array):
            for n in np.flatnonzero(~_finite_along(array)).tolist():
                found.setdefault(n, spec.name)
    return found


def output_names(manifest: Manifest) -> list[str]:
    """Names that a run is asked for, in the order that `unstack` takes them."""
    return [spec.name for spec in manifest.outputs] + [state.output for state in manifest.states]


def unstack(arrays: Sequence[Array], rows: Sequence[Row], manifest: Manifest) -> list[Result]:
    """One result a row, padding cut off. Each array has memory of its own: a row kept for hours keeps no batch.

    The memory is that of a bytes object, which nobody can change; as in `_join` nothing is copied by numpy row by row.
    """
    outputs, states = arrays[: len(manifest.outputs)], arrays[len(manifest.outputs) :]
    columns = [
        _timesteps_apart(array, rows) if spec.per == "timestep" else _apart(array)
        for array, spec in zip(outputs, manifest.outputs, strict=True)
    ]
    kept = [_apart(array.swapaxes(0, BATCH_AXIS)) for array in states]
    return [Result(*parts) for parts in zip(_transposed(columns, len(rows)), _transposed(kept, len(rows)), strict=True)]


def _apart(array: Array) -> list[Array]:
    """The parts of (N, ...) along its first axis."""
    shape, dtype = array.shape[1:], array.dtype
    data = np.ascontiguousarray(array).tobytes()
    size = len(data) // array.shape[0]
    return [np.ndarray(shape, dtype, data[at : at + size]) for at in range(0, len(data), size)]


def _timesteps_apart(array: Array, rows: Sequence[Row]) -> list[Array]:
    """The parts of (T, N, ...) along its second axis, each with the timesteps of its row."""
    longest, dtype, rest = array.shape[0], array.dtype, array.shape[2:]
    data = np.ascontiguousarray(array.swapaxes(0, BATCH_AXIS)).tobytes()
    size = len(data) // len(rows)
    cell = size // longest
    return [
        np.ndarray((row.timesteps, *rest), dtype, data[n * size : n * size + row.timesteps * cell])
        for n, row in enumerate(rows)
    ]


def _transposed(columns: list[list[Array]], count: int) -> list[tuple[Array, ...]]:
    return list(zip(*columns, strict=True)) if columns else [()] * count


def finite_rows(arrays: Sequence[Array], manifest: Manifest, count: int) -> npt.NDArray[np.bool_]:
    """Shape (N,): False where a row's state came out NaN or infinite; such a state is never kept."""
    good = np.ones(count, dtype=np.bool_)
    for array in arrays[len(manifest.outputs) :]:
        if not _surely_finite(array):
            good &= _finite_along(array)
    return good


def _surely_finite(array: Array) -> bool:
    """True if every number is finite; False if one may not be. A sum costs less than a look at each."""
    if array.dtype.kind != "f":
        return True
    with np.errstate(over="ignore", invalid="ignore"):  # of large numbers, and of infinities of both signs
        return math.isfinite(array.sum())


def _finite_along(array: Array) -> npt.NDArray[np.bool_]:
    """Shape (N,): whether all numbers of a row are finite; the rows are on axis 1."""
    others = tuple(axis for axis in range(array.ndim) if axis != BATCH_AXIS)
    return np.logical_and.reduce(np.isfinite(array), axis=others)
