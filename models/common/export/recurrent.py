"""Recurrent layers of torch whose state stays inside the network: watched, and then fed from outside.

In a copy of the network every ``nn.LSTM``, ``nn.GRU``, ``nn.RNN`` and their cells ask a :class:`Carrier` for their
state. The state of a call is named by the layer's path and ``h`` or ``c``. Where a step calls a layer more than once,
the calls have states of their own, ``path.2.h`` being that of the second.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import PackedSequence

from models.common.export.errors import ExportError

if TYPE_CHECKING:
    from collections.abc import Callable

    from models.common.export.tree import Tree

Layer = nn.RNNBase | nn.RNNCellBase
States = tuple[Tensor, ...]
_PARTS = ("h", "c")


@dataclass(slots=True)
class Call:
    """One call of a layer in one run of the network; ``began`` is None where the layer starts from zeros."""

    path: str
    began: States | None
    ended: States
    zeros: States

    def names(self, index: int) -> list[str]:
        """Names of its states, as the ``index``-th call of its layer in a step."""
        stem = ".".join(part for part in (self.path, str(index + 1) if index else "") if part)
        if stem[:1].isdigit():  # of a Sequential; a name starts with a letter
            stem = f"layer_{stem}"
        return [f"{stem}.{part}" if stem else part for part, _ in zip(_PARTS, self.ended, strict=False)]


@dataclass(slots=True)
class Carrier:
    """Notes the calls of a run in order; a call whose index is in ``given`` starts from the state found there."""

    given: dict[tuple[str, int], States] = field(default_factory=dict[tuple[str, int], States])
    decomposed: bool = False
    """Whether layers compute one timestep by plain operations, which exports where the layer does not."""
    calls: list[Call] = field(default_factory=list[Call])

    def start(self, given: dict[tuple[str, int], States] | None = None) -> None:
        """A new run begins."""
        self.given = given or {}
        self.calls = []

    def of(self, path: str) -> list[Call]:
        """Calls of one layer in this run, in order."""
        return [call for call in self.calls if call.path == path]


def attach(net: nn.Module) -> Carrier:
    """Make every recurrent layer of ``net`` (a copy: it is changed) ask the carrier that is returned."""
    carrier = Carrier()
    for path, layer in modules_of(net):
        if isinstance(layer, nn.RNNBase | nn.RNNCellBase):
            original: Callable[..., Any] = layer.forward
            layer.forward = cast("Any", partial)(_forward, layer, path, carrier, original)
    return carrier


def modules_of(net: nn.Module) -> list[tuple[str, nn.Module]]:
    """Every module with its path, that of the network itself empty."""
    return list(cast("Any", net).named_modules())


def label(path: str, layer: nn.Module) -> str:
    """How a layer is called in messages."""
    return f"{path or 'the network itself'} ({type(layer).__name__})"


def _forward(
    layer: Layer,
    path: str,
    carrier: Carrier,
    original: Callable[..., Any],
    input: Tensor,  # noqa: A002 - as torch names it, and callers may
    hx: Tree = None,
) -> Tree:
    """In place of the layer's forward: as that, but the first calls start from what the carrier gives."""
    if isinstance(input, PackedSequence):
        raise ExportError(
            f"{label(path, layer)}: gets a packed sequence; leave out the packing: the exported graph takes lengths "
            "and stops each row at its own end"
        )
    one = isinstance(layer, nn.RNNCellBase)
    if input.dim() != (2 if one else 3):
        raise ExportError(f"{label(path, layer)}: gets an input without a batch axis")
    began = None if hx is None else _several(hx)
    batch = input.shape[0] if one or layer.batch_first else input.shape[1]
    zeros = _zeros(layer, input, batch)
    begin = carrier.given.get((path, len(carrier.of(path))), began or zeros)
    if carrier.decomposed:
        output, ended = _by_operations(layer, input, begin)
    else:
        result: Any = original(input, _folded(begin))
        output, ended = (None, _several(result)) if one else (result[0], _several(result[1]))
    carrier.calls.append(Call(path, began, ended, zeros))
    return _folded(ended) if one else (output, _folded(ended))


def _several(state: Tree) -> States:
    """A state of h and c, or of h alone, as a tuple in either case."""
    return (state,) if isinstance(state, Tensor) else tuple(state)


def _folded(states: States) -> Tree:
    """As torch takes and returns them: of one tensor without the tuple."""
    return states if len(states) > 1 else next(iter(states))


def _zeros(layer: Layer, like: Tensor, batch: int) -> States:
    if isinstance(layer, nn.RNNCellBase):
        sizes = [layer.hidden_size] * (2 if isinstance(layer, nn.LSTMCell) else 1)
        return tuple(like.new_zeros(batch, size) for size in sizes)
    sizes = [layer.proj_size or layer.hidden_size] + ([layer.hidden_size] if layer.mode == "LSTM" else [])
    return tuple(like.new_zeros(layer.num_layers, batch, size) for size in sizes)


def _by_operations(layer: Layer, came: Tensor, begin: States) -> tuple[Tensor, States]:
    """One timestep of a layer or cell; shapes as torch has them."""
    if isinstance(layer, nn.RNNCellBase):
        ended = _cell(_mode(layer), came, begin, _weights(layer, ""))
        return ended[0], ended
    axis = 1 if layer.batch_first else 0
    x = came.squeeze(axis)  # (N, I)
    ends: list[States] = []
    for depth in range(layer.num_layers):
        x, *_ = ended = _cell(_mode(layer), x, tuple(s[depth] for s in begin), _weights(layer, f"_l{depth}"))
        ends.append(ended)
    return x.unsqueeze(axis), tuple(torch.stack(parts) for parts in zip(*ends, strict=True))


def _mode(layer: Layer) -> str:
    if isinstance(layer, nn.LSTMCell):
        return "LSTM"
    if isinstance(layer, nn.GRUCell):
        return "GRU"
    if isinstance(layer, nn.RNNCell):
        return f"RNN_{layer.nonlinearity.upper()}"
    return layer.mode  # pyright: ignore[reportReturnType] - of nn.RNNBase


def _weights(layer: Layer, suffix: str) -> tuple[Tensor | None, ...]:
    """W_ih, W_hh, b_ih, b_hh and W_hr of one depth, each None where the layer has none."""
    return tuple(
        getattr(layer, f"{name}{suffix}", None)
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")
    )


def _cell(mode: str, x: Tensor, state: States, weights: tuple[Tensor | None, ...]) -> States:
    """From x (N, I) and state of (N, H) the new state, by the formulas of torch's documentation."""
    w_ih, w_hh, b_ih, b_hh, w_hr = weights
    h = state[0]
    seen = functional.linear(x, w_ih, b_ih)  # pyright: ignore[reportArgumentType] - these two are always there
    kept = functional.linear(h, w_hh, b_hh)  # pyright: ignore[reportArgumentType]
    if mode == "LSTM":
        i, f, g, o = (seen + kept).chunk(4, dim=-1)
        c = f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        return (h if w_hr is None else functional.linear(h, w_hr)), c
    if mode == "GRU":
        (r_x, z_x, n_x), (r_h, z_h, n_h) = seen.chunk(3, dim=-1), kept.chunk(3, dim=-1)
        z = (z_x + z_h).sigmoid()
        n = (n_x + (r_x + r_h).sigmoid() * n_h).tanh()
        return ((1 - z) * n + z * h,)
    total = seen + kept
    return (total.relu() if mode == "RNN_RELU" else total.tanh(),)
