"""Needs torch to make files, which are then taken as they are: what is served, and what is refused."""

import io
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import onnx  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from models.common.export.adopt import adopt  # noqa: E402
from models.common.export.errors import ExportError  # noqa: E402
from models.common.export.network import export  # noqa: E402
from models.common.manifest import MODEL_FILE, load_manifest, verify_files  # noqa: E402
from models.common.parity import Runner  # noqa: E402

pytestmark = pytest.mark.train

X, H = torch.zeros(4, 2, 3), torch.zeros(1, 2, 5)
TIMED, STATE = {0: "time", 1: "batch"}, {1: "batch"}


class Net(nn.Module):
    """A GRU with its state in the open."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.gru = nn.GRU(3, 5)

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        return self.gru(x, h)


class Adder(nn.Module):
    """A running sum, with no recurrent layer; an exact answer to hold against."""

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        total = h + x.cumsum(0)
        return total, total[-1:]


def write(path: Path, net: nn.Module, example: tuple[Tensor, ...], names: list[str], axes: dict[str, Any]) -> Path:
    """A file as somebody else's exporter would have made it; ``names`` are those of inputs, then of outputs."""
    stream: Any = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter, about itself
        torch.onnx.export(
            net.eval(),
            example,
            stream,
            input_names=names[: len(example)],
            output_names=names[len(example) :],
            dynamic_axes=axes,
            opset_version=17,
            dynamo=False,
        )
    path.write_bytes(stream.getvalue())
    return path


def gru(folder: Path, came: str = "state_in", went: str = "state_out", **axes: Any) -> Path:
    given = {"x": TIMED, "y": TIMED, came: STATE, went: STATE, **axes}
    return write(folder / "gru.onnx", Net(), (X, H), ["x", came, "y", went], given)


def refused(path: Path, **options: Any) -> str:
    with pytest.raises(ExportError) as caught:
        adopt(path, name="net", into=path.parent / "into", echo=None, **options)
    assert not list((path.parent / "into").rglob("*.onnx"))
    return str(caught.value)


@pytest.mark.parametrize(
    ("came", "went"),
    [("state_in", "state_out"), ("h", "h_next"), ("h0", "hn"), ("hidden", "hidden_out"), ("prev_h", "next_h")],
)
def test_states_are_paired_by_name(tmp_path: Path, came: str, went: str) -> None:
    """The usual pairs of names are known, lengths are wired in, and what is served is what torch says."""
    exported = adopt(gru(tmp_path, came, went), name="net", into=tmp_path, echo=None)
    assert exported.graph == "adopted"
    assert exported.report.passed
    (spec,) = load_manifest(exported.folder).states
    assert (spec.input, spec.output, spec.shape()) == (came, went, (1, 5))
    verify_files(exported.folder, exported.manifest)
    x = np.random.default_rng(0).standard_normal((6, 3)).astype(np.float32)
    runner = Runner(exported.folder / MODEL_FILE, exported.manifest)
    short, whole = runner.run([{"x": x[:4]}, {"x": x}], [runner.initial(), runner.initial()])
    with torch.no_grad():
        y, _ = Net()(torch.from_numpy(x)[:, None], torch.zeros(1, 1, 5))
    np.testing.assert_allclose(whole.outputs["y"], y[:, 0].numpy(), atol=1e-6)
    np.testing.assert_allclose(short.states[came][0], y[3, 0].numpy(), atol=1e-6)


def test_states_are_declared_and_start_where_they_are_told(tmp_path: Path) -> None:
    """Names that say nothing are paired by the caller, who also says what a sequence starts with."""
    path = gru(tmp_path, "a", "b")
    assert 'state={"a": ...}: there are y, b. If' in refused(path)
    exported = adopt(path, name="net", into=tmp_path, state={"a": "b"}, initial={"a": np.ones((1, 5))}, echo=None)
    assert exported.manifest.states[0].initial_array().tolist() == [[1.0] * 5]
    exported = adopt(path, name="net", into=tmp_path, state={"a": "b"}, initial={"a": 0.5}, echo=None, version="2")
    assert exported.manifest.states[0].initial == 0.5


def test_a_file_without_recurrent_nodes_gets_a_loop(tmp_path: Path) -> None:
    """What cannot be told of lengths is run a timestep at a time; shorter rows end with their own sum."""
    names = ["x", "total", "y", "total_next"]
    axes = {"x": TIMED, "y": TIMED, "total": STATE, "total_next": STATE}
    path = write(tmp_path / "sum.onnx", Adder(), (X, torch.zeros(1, 2, 3)), names, axes)
    exported = adopt(path, name="net", into=tmp_path, echo=None)
    assert exported.graph == "scan"
    runner = Runner(exported.folder / MODEL_FILE, exported.manifest)
    x = np.arange(12, dtype=np.float32).reshape(4, 3)
    short, _ = runner.run([{"x": x[:2]}, {"x": x}], [runner.initial(), runner.initial()])
    assert short.states["total"].tolist() == [[3.0, 5.0, 7.0]]


def test_what_the_exporter_wrote_is_adopted_as_it_is(tmp_path: Path) -> None:
    """A file that honours lengths needs nothing done to it."""
    made = export(Net(), X, name="made", into=tmp_path, state=H, echo=None)
    adopted = adopt(made.folder / MODEL_FILE, name="adopted", into=tmp_path, echo=None)
    assert adopted.graph == "adopted"
    assert adopted.manifest.inputs == made.manifest.inputs
    assert adopted.manifest.states == made.manifest.states
    assert adopted.manifest.weights_digest == made.manifest.weights_digest


def test_what_cannot_be_served_is_refused_with_the_reason(tmp_path: Path) -> None:
    """Axes, names, types and files: each is named."""
    assert "nowhere.onnx: No such file" in refused(tmp_path / "nowhere.onnx")
    (tmp_path / "bad.onnx").write_bytes(b"no model")
    assert "bad.onnx: does not load" in refused(tmp_path / "bad.onnx")
    assert "If it is no state, its axis 0, time, has" in refused(gru(tmp_path, x={1: "batch"}, y={1: "batch"}))
    assert "axis 0, time, is fixed" in refused(gru(tmp_path, x={}, y={}, state_in={}, state_out={}))
    assert "axis 1, batch, is fixed" in refused(gru(tmp_path, x={0: "time"}, y={0: "time"}, state_in={}, state_out={}))
    good = gru(tmp_path)
    assert "state: nothing is not there; there are x, state_in" in refused(good, state={"nothing": "y"})
    assert "initial: c is no state input; there are state_in" in refused(good, initial={"c": 1.0})
    assert "initial: state_in has shape [5]" in refused(good, initial={"state_in": np.zeros(5)})
    assert "output y: has shape" in refused(write_transposed(tmp_path))


def write_transposed(folder: Path) -> Path:
    class Transposed(Net):
        def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
            y, h = super().forward(x, h)
            return y.permute(2, 0, 1), h

    axes = {"x": TIMED, "y": {1: "time", 2: "batch"}, "h": STATE, "h_next": STATE}
    return write(folder / "transposed.onnx", Transposed(), (X, H), ["x", "h", "y", "h_next"], axes)


def test_batch_major_files_are_refused(tmp_path: Path) -> None:
    """Named as such, by the names of its axes."""

    class BatchMajor(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gru = nn.GRU(3, 5, batch_first=True)

        def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
            return self.gru(x, h)

    axes = {name: {0: "batch", 1: "time"} for name in ("x", "y")} | {"h": STATE, "h_next": STATE}
    path = write(tmp_path / "major.onnx", BatchMajor(), (X.transpose(0, 1), H), ["x", "h", "y", "h_next"], axes)
    assert "is batch-major" in refused(path)


def test_a_bidirectional_file_is_refused(tmp_path: Path) -> None:
    """Its chunks are not its whole."""

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gru = nn.GRU(3, 5, bidirectional=True)

        def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
            return self.gru(x, h)

    axes = {"x": TIMED, "y": TIMED, "h": STATE, "h_next": STATE}
    path = write(tmp_path / "both.onnx", Both(), (X, torch.zeros(2, 2, 5)), ["x", "h", "y", "h_next"], axes)
    assert "differ by" in refused(path)


def test_a_state_that_changes_its_shape_is_refused(tmp_path: Path) -> None:
    """Declared wrongly, a state would be fed with something else."""
    path = gru(tmp_path)
    assert "state: state_in goes in as" in refused(path, state={"state_in": "y"})


def test_adoption_needs_no_torch(tmp_path: Path) -> None:
    """A file can be taken where torch is not installed."""
    path = gru(tmp_path)
    program = (
        "import sys; sys.modules['torch'] = None\n"
        "from models.common.export.adopt import adopt\n"
        "adopt(sys.argv[1], name='net', into=sys.argv[2])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(path), str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "the same bits" in done.stdout


def test_pieces_of_a_file_stay(tmp_path: Path) -> None:
    """Only lengths are added: nodes and weights are those of the file."""
    path = gru(tmp_path)
    exported = adopt(path, name="net", into=tmp_path, echo=None)
    before, after = onnx.load(path), onnx.load(exported.folder / MODEL_FILE)
    assert [node.op_type for node in before.graph.node] == [node.op_type for node in after.graph.node]
    assert [value.name for value in after.graph.input] == ["x", "lengths", "state_in"]
    assert [t.SerializeToString() for t in before.graph.initializer] == [
        t.SerializeToString() for t in after.graph.initializer
    ]
