"""Joins the steps of many sequences into one run of the model and takes the results apart again (pure).

`unstack(stack(rows))` gives every row its own state back, whatever its batch-mates: tests hold it to that.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from models.common.manifest import BATCH_AXIS

if TYPE_CHECKING:
    from collections.abc import Sequence

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


def _join(states: list[Array]) -> Array:
    if len(states) == 1:
        return states[0][:, None]
    if states[0].shape[0] == 1:  # one layer: rows lie one behind the other, which needs no stacking
        return np.concatenate(states)[None]
    return np.stack(states, axis=BATCH_AXIS)


def _pad(arrays: list[Array], lengths: list[int]) -> Array:
    longest = max(lengths)
    if min(lengths) == longest:
        return np.stack(arrays, axis=BATCH_AXIS) if len(arrays) > 1 else arrays[0][:, None]
    padded = np.zeros((longest, len(arrays), *arrays[0].shape[1:]), dtype=arrays[0].dtype)
    for n, array in enumerate(arrays):
        padded[: array.shape[0], n] = array
    return padded


def output_names(manifest: Manifest) -> list[str]:
    """Names that a run is asked for, in the order that `unstack` takes them."""
    return [spec.name for spec in manifest.outputs] + [state.output for state in manifest.states]


def unstack(arrays: Sequence[Array], rows: Sequence[Row], manifest: Manifest) -> list[Result]:
    """One result a row, padding cut off. Arrays are copied: a row kept for hours must not keep its batch alive."""
    outputs, states = arrays[: len(manifest.outputs)], arrays[len(manifest.outputs) :]
    timed = [spec.per == "timestep" for spec in manifest.outputs]
    columns = [
        [array[: row.timesteps, n].copy() for n, row in enumerate(rows)]
        if per_timestep
        else [part.copy() for part in array]
        for array, per_timestep in zip(outputs, timed, strict=True)
    ]
    kept = [[part.copy() for part in array.swapaxes(0, BATCH_AXIS)] for array in states]
    return [Result(*parts) for parts in zip(_transposed(columns, len(rows)), _transposed(kept, len(rows)), strict=True)]


def _transposed(columns: list[list[Array]], count: int) -> list[tuple[Array, ...]]:
    return list(zip(*columns, strict=True)) if columns else [()] * count


def finite_rows(arrays: Sequence[Array], manifest: Manifest, count: int) -> npt.NDArray[np.bool_]:
    """Shape (N,): False where a row's state came out NaN or infinite; such a state is never kept."""
    good = np.ones(count, dtype=np.bool_)
    for array in arrays[len(manifest.outputs) :]:
        # Where the sum of a tensor is finite all of it is, and a sum costs less than a look at each element.
        if array.dtype.kind == "f" and not math.isfinite(array.sum()):
            axes = tuple(axis for axis in range(array.ndim) if axis != BATCH_AXIS)
            good &= np.isfinite(array).all(axis=axes)
    return good
