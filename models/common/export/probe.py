"""Does the network stream at all? Looked at in torch, where the layer that stands in the way can be named."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from models.common import parity
from models.common.export.errors import ExportError
from models.common.export.watch import blame, mixer

if TYPE_CHECKING:
    from models.common.export.example import Drawer
    from models.common.export.streamed import Streamed

TIMESTEPS = 13
"""A number of timesteps that is hardly the size of another axis."""
_ROWS, _CUT = 3, 7
_PIECES = (slice(0, 5), slice(5, 6), slice(6, TIMESTEPS))

_TWICE = (
    "differs by {0:.3g} between two runs of the same input, so a step could not be repeated; something is random, "
    "or kept from run to run, though the network is in eval mode"
)
_MATES = (
    "changes by {0:.3g} with the other rows of the batch, but sequences that share a run must not see one another; "
    "something in the network normalises or adds up over the batch"
)
_FUTURE = (
    "changes by {0:.3g} with the timesteps that come after it, so it cannot be answered before they are there: {1} "
    "looks ahead"
)
_CHUNKS = (
    "is another by {0:.3g} when a sequence comes in chunks: {1} uses earlier timesteps that are in no state; keep them "
    "in a state that forward takes and returns, and declare it with state=..."
)


class _Run(NamedTuple):
    """Outputs and new states by name, as on the wire."""

    timed: dict[str, Tensor]
    rest: dict[str, Tensor]
    states: dict[str, Tensor]

    def all(self) -> dict[str, Tensor]:
        return {
            **{f"output {name}": tensor for name, tensor in (self.timed | self.rest).items()},
            **{f"state {name}": tensor for name, tensor in self.states.items()},
        }


def check_streams(streamed: Streamed, draw: Drawer, tolerance: float) -> None:
    """Run whole, again, alone, with another future and in chunks, and compare.

    Raises:
        ExportError: what came out depends on something it must not depend on; the message names the output, by how
            much, and as far as can be told the layer.
    """
    with torch.no_grad(), blame(streamed.net, f"{TIMESTEPS} timesteps of {_ROWS} rows, or chunks of them"):
        x = draw.batch(np.random.default_rng(0), TIMESTEPS, _ROWS)
        whole = _run(streamed, x)
        _check_finite(whole)
        _compare(whole, _run(streamed, x), 0.0, _TWICE)
        _compare(_row(whole), _run(streamed, {name: value[:, :1] for name, value in x.items()}), tolerance, _MATES)
        if not streamed.layout.cell:
            other = draw.batch(np.random.default_rng(1), TIMESTEPS, _ROWS)
            _check_future(streamed, x, other, whole, tolerance)
            _check_chunks(streamed, x, other, whole, tolerance)


def _run(streamed: Streamed, x: dict[str, Tensor]) -> _Run:
    return _named(streamed, *streamed.whole(x, None))


def _named(streamed: Streamed, outputs: list[Tensor], states: list[Tensor]) -> _Run:
    pairs = list(zip(streamed.outputs, outputs, strict=True))
    timed = {spec.name: tensor for spec, tensor in pairs if spec.spec().per == "timestep"}
    rest = {spec.name: tensor for spec, tensor in pairs if spec.name not in timed}
    return _Run(timed, rest, {spec.name: tensor for spec, tensor in zip(streamed.states, states, strict=True)})


def _row(run: _Run) -> _Run:
    return _Run(
        {name: tensor[:, :1] for name, tensor in run.timed.items()},
        {name: tensor[:1] for name, tensor in run.rest.items()},
        {name: tensor[:, :1] for name, tensor in run.states.items()},
    )


def _check_finite(run: _Run) -> None:
    for name, tensor in run.all().items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ExportError(
                f"{name}: is not finite for random inputs of the mean and spread of the example; if only some values "
                "are allowed, give draw=..., a function of a generator and T that makes the inputs of one sequence"
            )


def _check_future(
    streamed: Streamed, x: dict[str, Tensor], other: dict[str, Tensor], whole: _Run, tolerance: float
) -> None:
    """What comes after a timestep must not change what it gets."""
    changed = {name: torch.cat([value[:_CUT], other[name][_CUT:]]) for name, value in x.items()}
    found = _run(streamed, changed)
    for name, tensor in whole.timed.items():
        off = difference(tensor[:_CUT], found.timed[name][:_CUT])
        if off > tolerance:
            layer = _mixer(streamed, x, changed, slice(0, _CUT))
            raise ExportError(f"output {name}: {_FUTURE.format(off, layer)}")


def _check_chunks(
    streamed: Streamed, x: dict[str, Tensor], other: dict[str, Tensor], whole: _Run, tolerance: float
) -> None:
    """In chunks, the state handed on, the same comes out."""
    states = [state.start(_ROWS) for state in streamed.states]
    parts: list[_Run] = []
    for piece in _PIECES:
        outputs, states = streamed.step({name: value[piece] for name, value in x.items()}, states)
        parts.append(_named(streamed, outputs, states))
    timed = {name: torch.cat([part.timed[name] for part in parts]) for name in whole.timed}
    found = _Run(timed, parts[-1].rest, parts[-1].states).all()
    for name, tensor in whole.all().items():
        off = difference(tensor, found[name])
        if off > tolerance:
            changed = {key: torch.cat([other[key][:_CUT], value[_CUT:]]) for key, value in x.items()}
            layer = _mixer(streamed, x, changed, slice(_CUT, None))
            raise ExportError(f"{name}: {_CHUNKS.format(off, layer)}")


def _mixer(streamed: Streamed, x: dict[str, Tensor], changed: dict[str, Tensor], cut: slice) -> str:
    return mixer(streamed.net, lambda which: _run(streamed, changed if which else x), TIMESTEPS, cut)


def _compare(wanted: _Run, found: _Run, tolerance: float, says: str) -> None:
    other = found.all()
    for name, tensor in wanted.all().items():
        off = difference(tensor, other[name])
        if off > tolerance:
            raise ExportError(f"{name}: {says.format(off)}")


def difference(one: Tensor, two: Tensor) -> float:
    """The largest difference of two tensors, as ``models.common.parity.difference`` has it."""
    return parity.difference(one.numpy(), two.numpy())
