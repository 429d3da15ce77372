"""Finds out what a network is by running it: axes of outputs and states, and the states inside recurrent layers."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from itertools import islice, product
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage] - the one base of them all

from models.common.export.errors import ExportError
from models.common.export.example import DTYPES
from models.common.export.forward import Forward, declare
from models.common.export.recurrent import attach, label, modules_of
from models.common.export.streamed import Carried, Output, Streamed
from models.common.export.watch import blame

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Sequence

    from models.common.export.example import Drawer, Example
    from models.common.export.recurrent import Call, States
    from models.common.export.tree import Tree

# Two sizes of time and batch: an axis that goes from one to the other is known by the pair.
_SMALL, _LARGE = (5, 2), (8, 3)
_TRIALS_MAX = 24


def check_layers(net: nn.Module) -> None:
    """Refuse what can be told without running the network.

    Raises:
        ExportError: a type that is not served, a layer that reads backwards too, or one that takes its statistics
            from the batch.
    """
    for name, tensor in [*net.named_parameters(), *net.named_buffers()]:
        if tensor.dtype in {torch.float16, torch.bfloat16}:
            raise ExportError(
                f"module: {name} is {tensor.dtype}; ONNX Runtime has no CPU kernels of it for recurrent layers: export "
                "module.float()"
            )
    for path, layer in modules_of(net):
        if isinstance(layer, nn.RNNBase) and layer.bidirectional:
            raise ExportError(
                f"{label(path, layer)}: bidirectional: it needs the end of a sequence before its first answer, so it "
                "cannot go on from one chunk to the next"
            )
        if isinstance(layer, _BatchNorm) and layer.running_mean is None:
            raise ExportError(
                f"{label(path, layer)}: takes mean and variance over the time and batch that it is given, so an answer "
                "depends on what else is in the run; keep running statistics, or use a layer norm over the features"
            )


def build(net: nn.Module, example: Example, draw: Drawer, state: Tree, outputs: Sequence[str] | None) -> Streamed:
    """The network with explicit state; ``net`` is a copy that is ours to change, in eval mode.

    Raises:
        ExportError: states or axes cannot be told, or a recurrent layer cannot go on from a state.
    """
    with blame(net, "the example"):
        slots = declare(net, example, state)
        forward = Forward(net, example, slots)
        choices = _batch_axes(forward)
        with _looked_up(net, example) as rows:
            forward(example.tensors, [tensor for _, tensor in forward.states])
    draw.rows.update(rows)
    with blame(net, "inputs like the example, with 2 and 3 rows"):
        declared = _declared(forward, draw, choices)
    carrier = attach(net)
    found = Streamed(forward, carrier, declared, (), ())
    with blame(net, "a single timestep, with which a stream may always come"):
        inner = list(_layer_states(found, draw))
    watched = Streamed(forward, carrier, [*declared, *inner], (), ())
    with blame(net, f"{_SMALL[0]} and {_LARGE[0]} timesteps"):
        keep, specs = _outputs(watched, draw)
    named = [spec.name for spec in specs]
    if outputs is not None:
        if len(outputs) != len(specs):
            raise ExportError(f"outputs: {len(outputs)} names for the {len(specs)} outputs {', '.join(named)}")
        specs = [
            Output(name, s.time, s.batch, s.rest, s.dtype, s.folded) for name, s in zip(outputs, specs, strict=True)
        ]
    streamed = Streamed(forward, carrier, [*declared, *inner], specs, keep)
    taken = streamed.signature().taken()
    if outputs is None:  # a name that is not the caller's may be another
        specs = [replace(spec, name=f"{spec.name}_out") if spec.name in taken else spec for spec in specs]
        streamed.outputs = tuple(specs)
    if clash := [spec.name for spec in specs if spec.name in taken]:
        raise ExportError(f"outputs: {clash[0]} is the name of an input; name the outputs otherwise with outputs=...")
    return streamed


@contextmanager
def _looked_up(net: nn.Module, example: Example) -> Generator[dict[str, int]]:
    """Counts of rows of the embeddings that inputs are looked up in, known when the block has ended."""
    rows: dict[str, int] = {}
    names = {tensor.untyped_storage().data_ptr(): name for name, tensor in example.tensors.items()}

    def note(layer: nn.Module, came: tuple[Tensor, ...]) -> None:
        name = names.get(came[0].untyped_storage().data_ptr()) if came else None
        if name is not None and isinstance(layer, nn.Embedding):
            rows[name] = min(layer.num_embeddings, rows.get(name, layer.num_embeddings))

    handles = [layer.register_forward_pre_hook(note) for layer in net.modules() if isinstance(layer, nn.Embedding)]
    try:
        yield rows
    finally:
        for handle in handles:
            handle.remove()


def _native(forward: Forward, draw: Drawer, timesteps: int, rows: int, seed: int = 0) -> dict[str, Tensor]:
    layout = forward.example.layout
    batch = draw.batch(np.random.default_rng(seed), timesteps, rows)
    native = {name: layout.inward(x) for name, x in batch.items()}
    for spec in forward.example.inputs:
        if spec.lengths:
            native[spec.name] = torch.full((rows,), timesteps, dtype=spec.dtype)
    return native


def _batch_axes(forward: Forward) -> list[list[int]]:
    """For each declared state the axes that may be its batch, the likeliest first."""
    rows = forward.example.batch
    choices: list[list[int]] = []
    for name, tensor in forward.states:
        first = 1 if tensor.dim() > 2 else 0  # noqa: PLR2004 - as layers have it, or as cells
        axes = [
            axis for axis in sorted(range(tensor.dim()), key=lambda axis: axis != first) if tensor.shape[axis] == rows
        ]
        if not axes:
            raise ExportError(
                f"state: {name} of shape {tuple(tensor.shape)} has no axis for the batch of the example, {rows}; each "
                "sequence has a state of its own"
            )
        choices.append(axes)
    return choices


def _declared(forward: Forward, draw: Drawer, choices: list[list[int]]) -> list[Carried]:
    """Batch axes of the declared states: those with which the network runs at other batch sizes."""
    last: Exception | None = None
    for axes in islice(product(*choices), _TRIALS_MAX):
        named = enumerate(zip(forward.states, axes, strict=True))
        carried = [_carried(name, index, tensor, axis) for index, ((name, tensor), axis) in named]
        try:
            for count in (2, 3):
                _try(forward, draw, carried, count)
        except Exception as error:  # noqa: BLE001 - a wrong guess fails in whatever way the network fails
            last = last or error
        else:
            return carried
    if last is not None:
        raise last
    return []


def _try(forward: Forward, draw: Drawer, carried: Sequence[Carried], rows: int) -> None:
    timesteps = forward.example.timesteps
    states = [state.inward(state.start(rows)) for state in carried]
    _, new = forward(_native(forward, draw, timesteps, rows), states)
    for state, before, after in zip(carried, states, new, strict=True):
        if before.shape != after.shape:
            raise ExportError(
                f"state: {state.name} goes in as {tuple(before.shape)} and comes out as {tuple(after.shape)}"
            )
        if before.dtype != after.dtype:
            raise ExportError(f"state: {state.name} goes in as {before.dtype} and comes out as {after.dtype}")


def _carried(name: str, source: int | tuple[str, int, int], tensor: Tensor, axis: int) -> Carried:
    rows = tensor.unbind(axis)
    if any(not torch.equal(row, rows[0]) for row in rows[1:]):
        raise ExportError(
            f"state: {name} differs between the rows of the batch; what is given is what every new sequence starts with"
        )
    return Carried(name, source, axis, rows[0].detach().clone())


def _layer_states(streamed: Streamed, draw: Drawer) -> Iterator[Carried]:
    """States of recurrent layers that no declared state leads to, from three runs of a single timestep."""
    carrier, rows = streamed.carrier, 2

    def calls(seed: int, *, moved: bool) -> list[Call]:
        states = None if not moved else [s.start(rows) + _nudge(s.start(rows)) for s in streamed.states]
        streamed.step(draw.batch(np.random.default_rng(seed), 1, rows), states)
        return list(carrier.calls)

    plain, other, moved = calls(0, moved=False), calls(1, moved=False), calls(0, moved=bool(streamed.states))
    if not len(plain) == len(other) == len(moved):
        raise ExportError("the network: calls its recurrent layers a different number of times for different inputs")
    counts: dict[str, int] = {}
    for a, b, c in zip(plain, other, moved, strict=True):
        index = counts.get(a.path, 0)
        counts[a.path] = index + 1
        layer = streamed.net.get_submodule(a.path)
        if not _same(a.began, c.began):
            continue
        if not _same(a.began, b.began):
            raise ExportError(
                f"{label(a.path, layer)}: starts from a state that is computed from the input, so it begins anew with "
                "each chunk; let forward take that state and return it, and declare it with state=..."
            )
        axis = 0 if isinstance(layer, nn.RNNCellBase) else 1
        for part, (name, tensor) in enumerate(zip(a.names(index), a.began or a.zeros, strict=True)):
            yield _carried(name, (a.path, index, part), tensor, axis)


def _nudge(state: Tensor) -> Tensor:
    return torch.ones_like(state) if state.dtype != torch.bool else torch.zeros_like(state)


def _same(one: States | None, other: States | None) -> bool:
    if one is None or other is None:
        return one is other
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def _outputs(streamed: Streamed, draw: Drawer) -> tuple[list[str], list[Output]]:
    """Places in the result and descriptions of all outputs that are not a state once more."""
    seen: list[dict[str, Tensor]] = []
    kept: list[str] = []
    for timesteps, rows in (_SMALL, _LARGE):
        forward, carrier = streamed.call, streamed.carrier
        carrier.start()
        count = 1 if streamed.layout.cell else timesteps
        states = [s.inward(s.start(rows)) for s in streamed.states if isinstance(s.source, int)]
        found, _ = forward(_native(forward, draw, count, rows), states)
        inner = {s.source[0] for s in streamed.states if not isinstance(s.source, int)}
        ended = {id(tensor) for call in carrier.calls if call.path in inner for tensor in call.ended}
        kept = [name for name, tensor in found.items() if id(tensor) not in ended] or [next(iter(found))]
        seen.append({name: tensor.unsqueeze(0) if streamed.layout.cell else tensor for name, tensor in found.items()})
    names = _output_names(kept)
    small, large = ((1, _SMALL[1]), (1, _LARGE[1])) if streamed.layout.cell else (_SMALL, _LARGE)
    return kept, [
        _axes(names[place], seen[0][place], seen[1][place], small, large, cell=streamed.layout.cell) for place in kept
    ]


def _output_names(places: Sequence[str]) -> dict[str, str]:
    """Gives y where there is one without a name, else y_0, y_1, ...; keys of a dict and fields stay."""
    if len(places) == 1:
        return {place: place if place[:1].isalpha() else "y" for place in places}
    return {place: place if place[:1].isalpha() else f"y_{index}" for index, place in enumerate(places)}


def _axes(name: str, one: Tensor, two: Tensor, small: tuple[int, int], large: tuple[int, int], *, cell: bool) -> Output:
    where = f"output {name}"
    if one.dtype not in DTYPES:
        raise ExportError(f"{where}: {one.dtype} cannot be served; the types are {', '.join(DTYPES.values())}")
    if one.dim() != two.dim():
        raise ExportError(f"{where}: has {one.dim()} axes or {two.dim()}, depending on time and batch")
    pairs = list(zip(one.shape, two.shape, strict=True))
    if pairs and pairs[0] == (small[0] * small[1], large[0] * large[1]) and not cell:
        return Output(name, 0, 0, tuple(one.shape[1:]), one.dtype, folded=True)
    time = [0] if cell else [axis for axis, pair in enumerate(pairs) if pair == (small[0], large[0])]
    batch = [axis for axis, pair in enumerate(pairs) if pair == (small[1], large[1]) and axis not in time]
    other = [axis for axis, (a, b) in enumerate(pairs) if a != b and axis not in [*time, *batch]]
    if other:
        a, b = pairs[other[0]]
        raise ExportError(
            f"{where}: axis {other[0]} has {a} elements for {small[0]} timesteps of {small[1]} rows, and {b} for "
            f"{large[0]} of {large[1]}; one row a timestep, or one a chunk, can be served"
        )
    if len(batch) != 1:
        raise ExportError(
            f"{where}: has {len(batch) or 'no'} axes for the batch, shape {tuple(one.shape)}; needed is one"
        )
    if len(time) > 1:
        raise ExportError(f"{where}: has {len(time)} axes of time, as attention has: timesteps look at one another")
    rest = tuple(size for axis, size in enumerate(one.shape) if axis not in [*time, *batch])
    return Output(name, time[0] if time else None, batch[0], rest, one.dtype)
