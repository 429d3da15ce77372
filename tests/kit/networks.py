"""Small recurrent networks of many kinds, for tests of the export. Needs torch."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional


class Headed(nn.Module):
    """A recurrent layer and what reads it; ``last`` gives one row a chunk."""

    def __init__(self, layer: nn.RNNBase, *, last: bool = False) -> None:
        super().__init__()
        self.layer = layer
        self.head = nn.Linear(layer.proj_size or layer.hidden_size, 2)
        self.last = last

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.layer(x)
        if self.last:
            y = y[:, -1] if self.layer.batch_first else y[-1]
        return self.head(y)


class Words(nn.Module):
    """Integers in, two layers of different size, two named outputs, one of them a row a chunk."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(17, 4)
        self.lower = nn.LSTM(4, 6)
        self.norm = nn.LayerNorm(6)
        self.drop = nn.Dropout(0.5)
        self.upper = nn.GRU(6, 3, num_layers=2, dropout=0.5)

    def forward(self, words: Tensor) -> dict[str, Tensor]:
        y, (h, _) = self.lower(self.embedding(words))
        z, _ = self.upper(self.drop(self.norm(y)))
        return {"tags": z.log_softmax(-1), "mood": h[0].amax(-1)}


class Cells(nn.Module):
    """A loop over time in Python, with cells that start from nothing given."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.LSTMCell(3, 5)
        self.second = nn.GRUCell(5, 4)
        self.third = nn.RNNCell(4, 3, nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        state, g, r, out = None, None, None, []
        for now in x.unbind(0):
            state = self.first(now, state)
            g = self.second(state[0], g)
            r = self.third(g, r)
            out.append(r)
        return torch.stack(out)


class HandWritten(nn.Module):
    """An own cell in a loop, whose state is an argument."""

    def __init__(self) -> None:
        super().__init__()
        self.step = nn.Linear(8, 5)

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        out: list[Tensor] = []
        for now in x.unbind(0):
            h = torch.tanh(self.step(torch.cat([now, h], -1)))
            out.append(h[:, :2])
        return torch.stack(out), h


class OwnCell(nn.Module):
    """One timestep of a leaky adder: (N, 3) and (N, 3) -> (N, 1), (N, 3)."""

    def forward(self, x: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
        total = 0.9 * total + x
        return total.sum(-1, keepdim=True), total


class Nest(NamedTuple):
    """State of :class:`Nested`: the layer's (h, c), and the average so far (N, 2)."""

    layer: tuple[Tensor, Tensor]
    average: Tensor


class Nested(nn.Module):
    """A state of tensors in a tuple in a named tuple, one of them with its batch first."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 2)

    def forward(self, x: Tensor, state: Nest) -> tuple[Tensor, Nest]:
        y, layer = self.lstm(x, state.layer)
        average, out = state.average, []
        for now in y.unbind(0):
            average = 0.5 * (average + now)
            out.append(average)
        return torch.stack(out), Nest(layer, average)


class Optional(nn.Module):
    """A state that may be left out."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(3, 5)
        self.head = nn.Linear(5, 2)

    def forward(self, x: Tensor, hidden: Tensor | None = None) -> tuple[Tensor, Tensor]:
        y, new = self.gru(x, hidden)
        return self.head(y), new


class Learnt(nn.Module):
    """Starts from values that were learnt."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(3, 5, num_layers=2)
        self.start = nn.Parameter(torch.randn(2, 1, 5))

    def forward(self, x: Tensor) -> Tensor:
        return self.gru(x, self.start.expand(-1, x.shape[1], -1).contiguous())[0]


class Causal(nn.Module):
    """A convolution over time whose past is a state (N, C, K - 1): it streams."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(3, 4, 3)

    def forward(self, x: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
        window = torch.cat([past, x.permute(1, 2, 0)], -1)
        return self.conv(window).permute(2, 0, 1), window[..., -2:]


class Looking(nn.Module):
    """A convolution over time beside a GRU, that sees ``ahead`` timesteps, or else only earlier ones."""

    def __init__(self, *, ahead: bool) -> None:
        super().__init__()
        self.conv = nn.Conv1d(3, 3, 3)
        self.gru = nn.GRU(3, 4)
        self.ahead = ahead

    def forward(self, x: Tensor) -> Tensor:
        padded = functional.pad(x.permute(1, 2, 0), (1, 1) if self.ahead else (2, 0))
        return self.gru(self.conv(padded).permute(2, 0, 1))[0]


class Attending(nn.Module):
    """Attention over the timesteps of the chunk."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(3, 4)
        self.attention = nn.MultiheadAttention(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.gru(x)
        return self.attention(y, y, y)[0]


class Pooled(nn.Module):
    """Mean over the timesteps of the chunk."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.gru(x)[0].mean(0)


class Backwards(nn.Module):
    """Reads the chunk from its end."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.gru(x.flip(0))[0].flip(0)


class Normalised(nn.Module):
    """Batch norm over time and batch, with or without running statistics."""

    def __init__(self, *, running: bool) -> None:
        super().__init__()
        self.gru = nn.GRU(3, 4)
        self.norm = nn.BatchNorm1d(4, track_running_stats=running)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.gru(x)[0].permute(1, 2, 0)).permute(2, 0, 1)


class BatchMixing(nn.Module):
    """A softmax over the wrong axis: over the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.gru(x)[0].softmax(1)


class Random(nn.Module):
    """Drops out in eval mode too."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        return functional.dropout(self.gru(x)[0], 0.5, training=True)


class Decoder(nn.Module):
    """Starts its second layer from a state that is computed from the chunk."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.GRU(3, 4)
        self.decoder = nn.GRU(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        _, h = self.encoder(x)
        return self.decoder(x, h)[0]


class Hidden(nn.Module):
    """A loop whose state is in no layer and no argument."""

    def __init__(self) -> None:
        super().__init__()
        self.step = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        h, out = torch.zeros(x.shape[1], 5), []
        for now in x.unbind(0):
            h = torch.tanh(self.step(torch.cat([now, h], -1)))
            out.append(h)
        return torch.stack(out)


class Summed(nn.Module):
    """Adds over the features by an operation whose rounding, in ONNX Runtime, depends on where a row lies."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(3, 7)

    def forward(self, x: Tensor) -> Tensor:
        return self.gru(x)[0].sum(-1)
