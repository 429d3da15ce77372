"""The network that shares of the raw runtime are measured on: 2 LSTM layers of 512, 80 inputs, 256 outputs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from models.common.export.network import export

if TYPE_CHECKING:
    from pathlib import Path

NAME = "lstm"
FEATURES, HIDDEN, LAYERS, OUTPUTS = 80, 512, 2, 256


class Network(nn.Module):
    """Many to many, float32; the weights are as torch draws them, for speed does not depend on them."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(FEATURES, HIDDEN, LAYERS)
        self.head = nn.Linear(HIDDEN, OUTPUTS)

    def forward(self, x: Tensor) -> Tensor:
        """Features (T, N, 80) -> outputs (T, N, 256)."""
        return self.head(self.lstm(x)[0])


def make(into: Path) -> Path:
    """Exports the network below `into`; its folder."""
    torch.manual_seed(0)
    export(Network(), torch.zeros(3, 2, FEATURES), name=NAME, into=into, echo=None)
    return into / NAME / "1"
