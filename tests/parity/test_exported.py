"""Needs torch: networks of all kinds are the same function in torch and, served in chunks and batches, in ONNX."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import Tensor, nn  # noqa: E402

from models.common.export.network import export  # noqa: E402
from models.common.manifest import MODEL_FILE, load_manifest, verify_files  # noqa: E402
from models.common.parity import Runner  # noqa: E402
from tests.kit import networks  # noqa: E402

pytestmark = [
    pytest.mark.train,
    pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN"),
]

X = torch.randn(5, 2, 3, generator=torch.Generator().manual_seed(0))
NEST = networks.Nest((torch.zeros(1, 2, 2), torch.zeros(1, 2, 2)), torch.full((2, 2), 0.25))
Case = tuple[Callable[[], nn.Module], Any, dict[str, Any], str, list[tuple[str, tuple[int, ...]]]]
CASES: dict[str, Case] = {
    "lstm": (lambda: nn.LSTM(3, 5, 2), X, {}, "direct", [("h", (2, 5)), ("c", (2, 5))]),
    "gru": (lambda: networks.Headed(nn.GRU(3, 5, bias=False)), X, {}, "direct", [("layer.h", (1, 5))]),
    "rnn tanh": (lambda: networks.Headed(nn.RNN(3, 5)), X, {}, "scan", [("layer.h", (1, 5))]),
    "rnn relu": (lambda: nn.RNN(3, 5, 2, nonlinearity="relu"), X, {}, "scan", [("h", (2, 5))]),
    "projections": (
        lambda: networks.Headed(nn.LSTM(3, 6, 2, proj_size=2)),
        X,
        {},
        "scan",
        [("layer.h", (2, 2)), ("layer.c", (2, 6))],
    ),
    "batch first": (
        lambda: networks.Headed(nn.GRU(3, 5, batch_first=True)),
        X.transpose(0, 1),
        {"batch_first": True},
        "direct",
        [("layer.h", (1, 5))],
    ),
    "last timestep": (
        lambda: networks.Headed(nn.LSTM(3, 5, batch_first=True), last=True),
        X.transpose(0, 1),
        {"batch_first": True},
        "direct",
        [("layer.h", (1, 5)), ("layer.c", (1, 5))],
    ),
    "words": (
        networks.Words,
        {"words": torch.zeros(5, 2, dtype=torch.int64)},
        {},
        "direct",
        [("lower.h", (1, 6)), ("lower.c", (1, 6)), ("upper.h", (2, 3))],
    ),
    "cells": (
        networks.Cells,
        X,
        {},
        "scan",
        [("first.h", (1, 5)), ("first.c", (1, 5)), ("second.h", (1, 4)), ("third.h", (1, 3))],
    ),
    "a cell alone": (lambda: nn.LSTMCell(3, 5), X[0], {}, "scan", [("h", (1, 5)), ("c", (1, 5))]),
    "hand-written": (networks.HandWritten, (X,), {"state": torch.zeros(2, 5)}, "scan", [("h", (1, 5))]),
    "own cell": (networks.OwnCell, X[0], {"cell": True, "state": torch.ones(2, 3)}, "scan", [("total", (1, 3))]),
    "nested": (
        networks.Nested,
        X,
        {"state": NEST},
        "scan",
        [("state.layer.0", (1, 2)), ("state.layer.1", (1, 2)), ("state.average", (1, 2))],
    ),
    "optional": (networks.Optional, X, {}, "direct", [("hidden", (1, 5))]),
    "learnt": (networks.Learnt, X, {}, "direct", [("gru.h", (2, 5))]),
    "causal convolution": (networks.Causal, X, {"state": torch.zeros(2, 3, 2)}, "scan", [("past", (1, 3, 2))]),
    "batch norm with running statistics": (
        lambda: networks.Normalised(running=True),
        X,
        {},
        "direct",
        [("gru.h", (1, 4))],
    ),
    "in sequence": (lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh()), X, {}, "direct", []),
}


def made(case: str) -> tuple[nn.Module, Any, dict[str, Any], str, list[tuple[str, tuple[int, ...]]]]:
    make, example, options, graph, states = CASES[case]
    torch.manual_seed(1)
    net = make().eval()
    with torch.no_grad():
        for weight in net.parameters():
            weight.mul_(2.0)  # so that a wrong state shows
    return net, example, options, graph, states


@torch.no_grad()
def in_torch(case: str, net: nn.Module, options: dict[str, Any], x: Tensor) -> list[Tensor]:
    """Outputs of a whole sequence x (T, ...), by a call that anybody would write."""
    x = x[:, None]
    if case in {"a cell alone", "own cell"}:
        state: Any = None if case == "a cell alone" else torch.ones(1, 3)
        out: list[Tensor] = []
        for now in x:
            result: Any = net(now, state)
            y, state = (result[0], result) if case == "a cell alone" else result
            out.append(y)
        return [torch.stack(out)[:, 0]]
    state = options.get("state")
    if isinstance(state, networks.Nest):
        arguments = (networks.Nest((state.layer[0][:, :1], state.layer[1][:, :1]), state.average[:1]),)
    else:
        arguments = () if state is None else (state[:1],)
    result = net(x.transpose(0, 1) if options.get("batch_first") else x, *arguments)
    if isinstance(result, dict):
        return [result["tags"][:, 0], result["mood"][0]]
    y = result[0] if isinstance(result, tuple) else result
    if case == "last timestep":
        return [y[0]]
    return [y[0] if options.get("batch_first") else y[:, 0]]


@pytest.mark.parametrize("case", CASES)
def test_served_is_torch(tmp_path: Path, case: str) -> None:
    """Sequences of different length that share runs, in chunks, get what torch gives each alone; bits hold too."""
    net, example, options, graph, states = made(case)
    exported = export(net, example, name="net", into=tmp_path, echo=None, **options)
    assert exported.report.passed
    assert exported.graph == graph
    assert [(spec.name, spec.shape()) for spec in exported.manifest.states] == states
    assert load_manifest(exported.folder) == exported.manifest
    verify_files(exported.folder, exported.manifest)

    runner = Runner(exported.folder / MODEL_FILE, exported.manifest)
    generator = np.random.default_rng(5)
    (spec,) = exported.manifest.features()

    def sequence(count: int) -> np.ndarray[Any, Any]:
        if spec.dtype == "int64":
            return generator.integers(0, 17, count)
        return generator.standard_normal((count, 3)).astype(np.float32)

    rows = [sequence(count) for count in (11, 4, 7)]
    first = runner.run([{spec.name: row[:3]} for row in rows], [runner.initial() for _ in rows])
    second = runner.run([{spec.name: row[3:]} for row in rows], [step.states for step in first])
    for row, one, two in zip(rows, first, second, strict=True):
        found = list(runner.joined([one.outputs, two.outputs]).values())
        wanted = in_torch(case, net, options, torch.from_numpy(row))
        assert len(found) == len(wanted)
        for a, b in zip(found, wanted, strict=True):
            np.testing.assert_allclose(a, b.numpy(), atol=1e-5)


@pytest.mark.parametrize("seed", range(4))
def test_random_stacks(tmp_path: Path, seed: int) -> None:
    """Layers drawn at random, one upon the other, keep every promise."""
    generator = np.random.default_rng(seed)
    torch.manual_seed(seed)
    width = 3
    layers: list[nn.RNNBase] = []
    for _ in range(int(generator.integers(1, 4))):
        size = int(generator.integers(2, 9))
        kind: Any = [nn.LSTM, nn.GRU, nn.RNN][int(generator.integers(3))]
        layers.append(kind(width, size, int(generator.integers(1, 3)), bias=bool(generator.integers(2))))
        width = size

    class Stack(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(layers)

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x, _ = layer(x)
            return x

    exported = export(Stack(), X, name="net", into=tmp_path, echo=None, seed=seed)
    assert exported.report.passed
    assert len(exported.manifest.states) == sum(2 if isinstance(layer, nn.LSTM) else 1 for layer in layers)
