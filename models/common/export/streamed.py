"""The network as one flat function with explicit state, in the layout of the wire.

``Streamed.forward`` takes features (T, N, ...), lengths (N,) and states (L, N, ...), and returns outputs and new
states; this is what is traced, and what torch is compared by.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from models.common.export.errors import ExportError
from models.common.export.example import DTYPES, LENGTHS
from models.common.export.wiring import Signature
from models.common.manifest import BATCH_AXIS, Dim, InputSpec, OutputSpec, StateSpec

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from models.common.export.forward import Forward
    from models.common.export.recurrent import Carrier, States


@dataclass(frozen=True, slots=True)
class Carried:
    """One state tensor: the ``source``-th that ``forward`` takes, or part of a layer's (path, call, part)."""

    name: str
    source: int | tuple[str, int, int]
    axis: int
    """Of the batch, as the network has it."""
    initial: Tensor
    """As the network has it, without the batch axis."""

    def outward(self, native: Tensor) -> Tensor:
        """To the wire: the batch on axis 1."""
        return native.unsqueeze(0) if self.axis == 0 else native.movedim(self.axis, BATCH_AXIS)

    def inward(self, wire: Tensor) -> Tensor:
        """From the wire."""
        return wire.squeeze(0) if self.axis == 0 else wire.movedim(BATCH_AXIS, self.axis)

    def start(self, rows: int) -> Tensor:
        """The initial state of so many rows, as on the wire."""
        return self.outward(torch.stack([self.initial] * rows, dim=self.axis))

    def spec(self) -> StateSpec:
        """Its description.

        Raises:
            ExportError: it starts from something that is not finite.
        """
        first = self.start(1)
        if not bool(torch.isfinite(first).all()):
            raise ExportError(
                f"state: {self.name} starts from a value that is not finite; a large finite one is needed"
            )
        values = cast("list[float]", first.flatten().tolist())
        return StateSpec(
            name=self.name,
            input=self.name,
            output=f"{self.name}_next",
            dtype=DTYPES[first.dtype],  # pyright: ignore[reportArgumentType]
            dims=tuple("batch" if axis == BATCH_AXIS else size for axis, size in enumerate(first.shape)),
            initial=float(values[0]) if len(set(values)) == 1 else tuple(float(value) for value in values),
        )


@dataclass(frozen=True, slots=True)
class Output:
    """One output: where the network has its time and batch; ``time`` is None for one row a chunk."""

    name: str
    time: int | None
    batch: int
    rest: tuple[int, ...]
    dtype: torch.dtype
    folded: bool = False
    """Whether the first axis is time times batch."""

    def outward(self, native: Tensor, sizes: tuple[int, int], *, batch_first: bool) -> Tensor:
        """To the wire: (T, N, ...) or (N, ...)."""
        if self.folded:
            unfolded = native.reshape(*(reversed(sizes) if batch_first else sizes), *native.shape[1:])
            return unfolded.transpose(0, 1) if batch_first else unfolded
        if self.time is None:
            return native.movedim(self.batch, 0)
        return native.movedim((self.time, self.batch), (0, 1))

    def spec(self) -> OutputSpec:
        """Its description."""
        lead: tuple[Dim, ...] = ("batch",) if self.time is None and not self.folded else ("time", "batch")
        return OutputSpec(name=self.name, dtype=DTYPES[self.dtype], dims=(*lead, *self.rest))  # pyright: ignore[reportArgumentType]


class Streamed(nn.Module):
    """See the module; ``takes_lengths`` is the type of the lengths that the network itself wants, if it does."""

    def __init__(
        self,
        forward: Forward,
        carrier: Carrier,
        states: Sequence[Carried],
        outputs: Sequence[Output],
        keep: Sequence[str],
    ) -> None:
        """``keep`` names the outputs of ``forward`` in the order of ``outputs``, whose own names may be others."""
        super().__init__()
        self.net = forward.net
        self.call = forward
        self.carrier = carrier
        self.states = tuple(states)
        self.outputs = tuple(outputs)
        self.keep = tuple(keep)
        self.layout = forward.example.layout

    def signature(self) -> Signature:
        """Description of what goes in and comes out, in the order of ``forward``."""
        features = [
            InputSpec(name=i.name, dtype=DTYPES[i.dtype], dims=("time", "batch", *i.rest), role="features")  # pyright: ignore[reportArgumentType]
            for i in self.call.example.features()
        ]
        lengths = InputSpec(name=LENGTHS, dtype="int32", dims=("batch",), role="lengths")
        outputs = tuple(output.spec() for output in self.outputs)
        return Signature((*features, lengths), outputs, tuple(state.spec() for state in self.states))

    def forward(self, *flat: Tensor) -> tuple[Tensor, ...]:
        """Features, lengths, states -> outputs, new states; all rows are taken to be as long as the time axis."""
        names = [spec.name for spec in self.call.example.features()]
        features, lengths, states = flat[: len(names)], flat[len(names)], flat[len(names) + 1 :]
        outputs, new = self.step(dict(zip(names, features, strict=True)), states, lengths)
        return *outputs, *new

    def step(
        self, features: Mapping[str, Tensor], states: Sequence[Tensor] | None, lengths: Tensor | None = None
    ) -> tuple[list[Tensor], list[Tensor]]:
        """One chunk. Where ``states`` is None the network starts by itself, with what it was declared to start from."""
        first = next(iter(features.values()))
        sizes = (first.shape[0], first.shape[1])
        native = {name: self.layout.inward(x) for name, x in features.items()}
        for spec in self.call.example.inputs:
            if spec.lengths:
                given = torch.full((sizes[1],), sizes[0], dtype=torch.int32) if lengths is None else lengths
                native[spec.name] = given if given.dtype == spec.dtype else given.to(spec.dtype)
        self.carrier.start(None if states is None else self._given(states))
        wire = [state.start(int(sizes[1])) for state in self.states] if states is None else states
        declared = [s.inward(w) for s, w in zip(self.states, wire, strict=True) if isinstance(s.source, int)]
        outputs, new = self.call(native, declared)
        found = [outputs[name].unsqueeze(0) if self.layout.cell else outputs[name] for name in self.keep]
        wired = [
            output.outward(tensor, sizes, batch_first=self.layout.batch_first)
            for output, tensor in zip(self.outputs, found, strict=True)
        ]
        return wired, [state.outward(self._ended(state, new)) for state in self.states]

    def _given(self, states: Sequence[Tensor]) -> dict[tuple[str, int], States]:
        given: dict[tuple[str, int], States] = {}
        for state, wire in zip(self.states, states, strict=True):
            if not isinstance(state.source, int):
                path, call, _ = state.source
                given[path, call] = (*given.get((path, call), ()), state.inward(wire))
        return given

    def _ended(self, state: Carried, new: Sequence[Tensor]) -> Tensor:
        if isinstance(state.source, int):
            return new[state.source]
        path, index, part = state.source
        calls = self.carrier.of(path)
        every = 1 + max(s.source[1] for s in self.states if not isinstance(s.source, int) and s.source[0] == path)
        return calls[len(calls) - every + index].ended[part]  # a loop over time calls it once or more a timestep

    def whole(
        self, features: Mapping[str, Tensor], states: Sequence[Tensor] | None
    ) -> tuple[list[Tensor], list[Tensor]]:
        """As :meth:`step` for any number of timesteps, also where the network takes one at a time."""
        if not self.layout.cell:
            return self.step(features, states)
        timesteps = len(next(iter(features.values())))
        outputs: list[list[Tensor]] = []
        for t in range(timesteps):
            step, states = self.step({name: x[t : t + 1] for name, x in features.items()}, states)
            outputs.append(step)
        return [torch.cat(parts) for parts in zip(*outputs, strict=True)], list(states or ())
