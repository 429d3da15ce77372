"""Joins the steps of many sequences into one run of the model and takes the results apart again (pure).

`unstack(stack(rows))` gives every row its own state back, whatever its batch-mates: tests hold it to that.
"""

from __future__ import annotations

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
    lengths = np.fromiter((row.timesteps for row in rows), dtype=np.int32, count=len(rows))
    longest = int(lengths.max())
    feeds: dict[str, Array] = {}
    for i, spec in enumerate(manifest.features()):
        feeds[spec.name] = _pad([row.inputs[i] for row in rows], longest, lengths)
    spec = manifest.lengths()
    if spec is not None:
        feeds[spec.name] = lengths
    for i, state in enumerate(manifest.states):
        feeds[state.input] = _join([row.state[i] for row in rows])
    return feeds


def _join(states: list[Array]) -> Array:
    if states[0].shape[0] == 1:  # one layer: rows lie one behind the other, which needs no stacking
        return np.concatenate(states)[None]
    return np.stack(states, axis=BATCH_AXIS)


def _pad(arrays: list[Array], longest: int, lengths: npt.NDArray[np.int32]) -> Array:
    if lengths.min() == longest:
        return np.stack(arrays, axis=BATCH_AXIS)
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
    results: list[Result] = []
    for n, row in enumerate(rows):
        of_row = [
            array[: row.timesteps, n].copy() if per_timestep else array[n].copy()
            for array, per_timestep in zip(outputs, timed, strict=True)
        ]
        results.append(Result(tuple(of_row), tuple([array[:, n].copy() for array in states])))
    return results


def finite_rows(arrays: Sequence[Array], manifest: Manifest, count: int) -> npt.NDArray[np.bool_]:
    """Shape (N,): False where a row's state came out NaN or infinite; such a state is never kept."""
    good = np.ones(count, dtype=np.bool_)
    for array in arrays[len(manifest.outputs) :]:
        if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
            axes = tuple(axis for axis in range(array.ndim) if axis != BATCH_AXIS)
            good &= np.isfinite(array).all(axis=axes)
    return good
