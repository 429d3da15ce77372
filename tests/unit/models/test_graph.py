"""Needs torch: the graph of one trace, and what it must refuse."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import onnx  # noqa: E402
import onnxruntime  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from models.common.export.errors import ExportError  # noqa: E402
from models.common.export.graph import direct_graph  # noqa: E402
from models.common.export.wiring import Signature  # noqa: E402
from models.common.manifest import InputSpec, OutputSpec, StateSpec  # noqa: E402

pytestmark = pytest.mark.train

X = InputSpec(name="x", dtype="float32", dims=("time", "batch", 3), role="features")
LENGTHS = InputSpec(name="lengths", dtype="int32", dims=("batch",), role="lengths")
Y = OutputSpec(name="y", dtype="float32", dims=("time", "batch", 5))
H = StateSpec(name="h", input="h", output="h_next", dtype="float32", dims=(2, "batch", 5))
C = StateSpec(name="c", input="c", output="c_next", dtype="float32", dims=(2, "batch", 5))
SIGNATURE = Signature(inputs=(X, LENGTHS), outputs=(Y,), states=(H, C))


def graph(net: nn.Module, signature: Signature = SIGNATURE) -> onnx.ModelProto:
    samples = {"time": 3, "batch": 2}
    arguments = [
        torch.zeros([dim if isinstance(dim, int) else samples[dim] for dim in dims], dtype=getattr(torch, dtype))
        for dtype, dims in signature.taken().values()
    ]
    return direct_graph(net.eval(), signature, arguments)


class Good(nn.Module):
    """Two layers; the lengths reach the graph through the output's mask, as in a real network."""

    def __init__(self, *, bidirectional: bool = False) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 5, num_layers=2, bidirectional=bidirectional)

    def forward(self, x: Tensor, lengths: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """X (T, N, 3), lengths (N,), h and c (2, N, 5) -> y (T, N, 5), new h, new c."""
        y, (h, c) = self.lstm(x, (h, c))
        real = torch.arange(x.shape[0], dtype=lengths.dtype)[:, None] < lengths[None, :]
        return y * real[..., None], h, c


class Forgetful(Good):
    """Starts every chunk anew."""

    def forward(self, x: Tensor, lengths: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """X (T, N, 3), lengths (N,), h and c (2, N, 5) -> y (T, N, 5), new h, new c."""
        y, (new_h, new_c) = self.lstm(x)
        return y * lengths[None, :, None], h + new_h, c + new_c


def test_rows_may_differ_in_length() -> None:
    """A padded row ends with the states it has alone without padding, in both layers; batch and time are free."""
    torch.manual_seed(0)
    net = Good()
    session: Any = onnxruntime.InferenceSession(graph(net).SerializeToString())
    lengths = [7, 2, 4]
    x = torch.randn(7, 3, 3)
    h, c = torch.randn(2, 3, 5), torch.randn(2, 3, 5)
    feed = {"x": x.numpy(), "lengths": np.array(lengths, np.int32), "h": h.numpy(), "c": c.numpy()}
    y, new_h, new_c = session.run(["y", "h_next", "c_next"], feed)
    for row, length in enumerate(lengths):
        one = slice(row, row + 1)
        with torch.no_grad():
            wanted = net(
                x[:length, one],
                torch.tensor([length], dtype=torch.int32),
                h[:, one].contiguous(),
                c[:, one].contiguous(),
            )
        np.testing.assert_allclose(y[:length, one], wanted[0].numpy(), atol=1e-6)
        np.testing.assert_allclose(new_h[:, one], wanted[1].numpy(), atol=1e-6)
        np.testing.assert_allclose(new_c[:, one], wanted[2].numpy(), atol=1e-6)


def test_every_recurrent_node_gets_the_lengths() -> None:
    """Both layers are wired, weights are constants of the graph, and no path of this machine is in the file."""
    model = graph(Good())
    assert [node.input[4] for node in model.graph.node if node.op_type == "LSTM"] == ["lengths", "lengths"]
    assert {value.name for value in model.graph.input}.isdisjoint(tensor.name for tensor in model.graph.initializer)
    assert str(Path(__file__).parents[3]).encode() not in model.SerializeToString()


def test_a_layer_that_forgets_is_refused() -> None:
    """A layer whose state is no input would start every chunk anew."""
    with pytest.raises(ExportError, match="not a graph input"):
        graph(Forgetful())


def test_a_bidirectional_layer_is_refused() -> None:
    """It needs the end of the text before the first answer."""
    wide = OutputSpec(name="y", dtype="float32", dims=("time", "batch", 10))
    states = tuple(spec.model_copy(update={"dims": (4, "batch", 5)}) for spec in (H, C))
    with pytest.raises(ExportError, match="backwards"):
        graph(Good(bidirectional=True), Signature((X, LENGTHS), (wide,), states))


def test_a_graph_without_the_signature_is_refused() -> None:
    """The manifest describes the graph that is there, type by type."""
    other = Signature((X, LENGTHS), (OutputSpec(name="y", dtype="int64", dims=("time", "batch", 5)),), (H, C))
    with pytest.raises(ExportError, match=r"y: tensor\(float\)"):
        graph(Good(), other)


def test_an_operation_that_onnx_lacks_is_named() -> None:
    """The exporter's own reason arrives, without its dump of the graph."""
    net = Good()
    net.lstm = nn.LSTM(3, 7, num_layers=2, proj_size=5)
    states = (H, C.model_copy(update={"dims": (2, "batch", 7)}))
    with pytest.raises(ExportError, match="LSTMs with projections") as caught:
        graph(net, Signature((X, LENGTHS), (Y,), states))
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("batch_first", [False, True])
def test_the_last_timestep_is_the_last_true_one(*, batch_first: bool) -> None:
    """Of y[-1] each row gets its own end, and h[-1], the last layer, stays what it is."""

    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gru = nn.GRU(3, 5, num_layers=2, batch_first=batch_first)

        def forward(self, x: Tensor, lengths: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
            y, h = self.gru(x.transpose(0, 1) if batch_first else x, h)
            return (y[:, -1] if batch_first else y[-1]) + h[-1], h

    y = OutputSpec(name="y", dtype="float32", dims=("batch", 5))
    model = graph(Last(), Signature((X, LENGTHS), (y,), (H,)))
    session: Any = onnxruntime.InferenceSession(model.SerializeToString())
    x = np.random.default_rng(0).standard_normal((7, 2, 3)).astype(np.float32)
    feed = {"x": x, "lengths": np.array([7, 4], np.int32), "h": np.zeros((2, 2, 5), np.float32)}
    found, new = session.run(["y", "h_next"], feed)
    np.testing.assert_allclose(found, 2 * new[-1], atol=1e-6)
