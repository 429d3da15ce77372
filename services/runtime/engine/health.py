"""How the states of live sequences look: a state that grows or saturates shows before its answers go wrong (pure)."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from models.common.manifest import Manifest
    from services.runtime.engine.collate import Array

SATURATION = 2.65
"""From here on tanh(x) is within 1 % of +1 or -1: a cell there hardly moves, whatever comes."""


class StateHealth(NamedTuple):
    """One state tensor over the sequences of one run: `rms` of its elements, share of them beyond SATURATION."""

    state: str
    rms: float
    saturated: float


def state_health(arrays: Sequence[Array], manifest: Manifest) -> list[StateHealth]:
    """Looks at the states among the results of a run, (L, N, H) each; others than floats are left out."""
    found: list[StateHealth] = []
    for spec, array in zip(manifest.states, arrays[len(manifest.outputs) :], strict=True):
        if np.issubdtype(array.dtype, np.floating):
            values = array.astype(np.float64, copy=False)
            saturated = float(np.mean(np.abs(values) > SATURATION))
            found.append(StateHealth(spec.name, float(np.sqrt(np.mean(np.square(values)))), saturated))
    return found
