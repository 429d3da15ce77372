"""Needs torch: how a network is read, what is refused and why, and that the network is left alone."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import Tensor, nn  # noqa: E402
from torch.nn.utils.rnn import pack_padded_sequence  # noqa: E402

from models.common.export.errors import ExportError  # noqa: E402
from models.common.export.network import export  # noqa: E402
from models.common.manifest import MODEL_FILE, load_manifest  # noqa: E402
from models.common.parity import PARITY_FILE, Runner  # noqa: E402
from tests.kit import networks  # noqa: E402

pytestmark = pytest.mark.train

X = torch.randn(5, 2, 3, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def seeded() -> None:
    """The same weights in every run."""
    torch.manual_seed(3)


def refused(tmp_path: Path, net: Any, example: Any = X, **options: Any) -> str:
    """Why a network is refused; nothing may be left behind."""
    options.setdefault("name", "net")
    with pytest.raises(ExportError) as caught:
        export(net, example, into=tmp_path, echo=None, **options)
    assert not (tmp_path / "net").exists()
    return str(caught.value)


@pytest.mark.parametrize(
    ("net", "says"),
    [
        (lambda: nn.LSTM(3, 5, bidirectional=True), r"the network itself \(LSTM\): bidirectional"),
        (lambda: networks.Headed(nn.GRU(3, 1, bidirectional=True)), r"layer \(GRU\): bidirectional"),
        (lambda: networks.Normalised(running=False), r"norm \(BatchNorm1d\): takes mean and variance over the time"),
        (
            lambda: networks.Looking(ahead=True),
            r"output y: changes by .* outside its layers, or with conv \(Conv1d\), looks ahead",
        ),
        (
            lambda: networks.Looking(ahead=False),
            r"output y: is another by .* or with conv \(Conv1d\), uses earlier timesteps",
        ),
        (networks.Attending, r"attention \(MultiheadAttention\) looks ahead"),
        (networks.Backwards, r"an operation in the forward of Backwards, outside its layers looks ahead"),
        (networks.Pooled, r"output y: is another by .* in the forward of Pooled"),
        (networks.Hidden, r"y: is another by .* in no state; keep them in a state that forward takes and returns"),
        (networks.BatchMixing, r"output y: changes by .* with the other rows of the batch"),
        (networks.Random, r"output y: differs by .* between two runs of the same input"),
        (networks.Decoder, r"decoder \(GRU\): starts from a state that is computed from the input"),
        (lambda: nn.GRU(3, 5).half(), r"module: weight_ih_l0 is torch.float16"),
        (lambda: nn.GRU(3, 5).bfloat16(), r"module: weight_ih_l0 is torch.bfloat16"),
        (lambda: nn.Conv1d(2, 4, 3), r"fails on"),
    ],
)
def test_what_cannot_stream_is_refused_with_the_reason(tmp_path: Path, net: Any, says: str) -> None:
    """Better no file than one that gives wrong answers; the reason names layer or output."""
    said = refused(tmp_path, net())
    assert re.search(says, said), said


def test_packed_sequences_are_refused(tmp_path: Path) -> None:
    """Packing would fix the lengths; the reason says what to do instead."""

    class Packing(networks.Optional):
        def forward(self, x: Tensor, hidden: Tensor | None = None) -> tuple[Tensor, Tensor]:
            packed = pack_padded_sequence(x, torch.full((x.shape[1],), x.shape[0]))
            return self.gru(packed, hidden)

    assert "leave out the packing" in refused(tmp_path, Packing())


def test_a_changed_time_axis_is_refused(tmp_path: Path) -> None:
    """Half as many outputs as timesteps is neither one a timestep nor one a chunk."""

    class Strided(networks.Optional):
        def forward(self, x: Tensor, hidden: Tensor | None = None) -> tuple[Tensor, Tensor]:
            y, hidden = super().forward(x, hidden)
            return y[::2], hidden

    assert "axis 0 has 3 elements for 5 timesteps" in refused(tmp_path, Strided())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"name": "no good"}, "name: 'no good'"),
        ({"version": "../1"}, "version: '../1'"),
        ({"chunk_timesteps_max": 0}, "chunk_timesteps_max: 0"),
        ({"idle_timeout_s": -1.0}, "idle_timeout_s: "),
        ({"durability": "always"}, "durability: "),
        ({"files": ["nowhere.txt"]}, "files: nowhere.txt is no file"),
        ({"training": {"seed": 1}}, "training: command"),
        ({"data": [{"name": "x"}]}, "data: licence"),
        ({"surprise": 1}, "surprise: there is no such argument"),
        ({"outputs": ["a", "b"]}, "outputs: 2 names for the 1 outputs y"),
        ({"outputs": ["lengths"]}, "outputs: lengths is the name of an input"),
        ({"example": X[0, 0]}, "example: input: has shape (3,), but its axes are (time, batch, ...)"),
        ({"example": [1, 2]}, "example: input: int, but a tensor is needed"),
        ({"example": {"z": X}}, "example: forward takes no 'z'"),
        ({"example": X.half()}, "example: input: torch.float16 cannot be served"),
        ({"example": X[:0]}, "example: input is empty"),
        ({"cell": True, "batch_first": True}, "batch_first: a cell takes a single timestep"),
        ({"state": "nothing"}, "state: forward takes no 'nothing'"),
        ({"draw": lambda _generator, _count: {}}, "draw: gave nothing for input"),
    ],
)
def test_wrong_arguments_are_named(tmp_path: Path, options: dict[str, Any], says: str) -> None:
    """Every refusal begins with the argument that is wrong."""
    options = dict(options)
    assert says in refused(tmp_path, nn.GRU(3, 5), options.pop("example", X), **options)


def test_states_that_cannot_be_carried_are_refused(tmp_path: Path) -> None:
    """A state is a tensor of each sequence's own, finite, and of one shape and type for good."""
    net = networks.HandWritten()
    assert "state: forward needs h" in refused(tmp_path, net)
    assert "state: h of shape (5,) has no axis for the batch" in refused(tmp_path, net, state=torch.zeros(5))
    assert "state: h differs between the rows" in refused(tmp_path, net, state=torch.randn(2, 5))
    assert "not finite" in refused(tmp_path, net, state=torch.full((2, 5), -torch.inf))
    assert "state: h: str, but tensors in" in refused(tmp_path, net, state={"h": "zeros"})
    growing = networks.Causal()
    growing.forward = lambda x, past: (x, torch.cat([past, past], -1))  # type: ignore[method-assign]
    assert "goes in as" in refused(tmp_path, growing, state=torch.zeros(2, 3, 2))


def test_the_network_is_left_as_it_was(tmp_path: Path) -> None:
    """Mode, gradients, hooks, weights and the random numbers of torch are not touched, whatever comes out."""
    net = networks.Words().train()
    calls: list[str] = []
    net.lower.register_forward_hook(lambda *_: calls.append("lower"))
    net.head = nn.Linear(3, 3)
    net.head.weight.requires_grad_(False)
    before = {name: weight.clone() for name, weight in net.state_dict().items()}
    wanted = {name: weight.requires_grad for name, weight in net.named_parameters()}
    forward, random = net.lower.forward, torch.get_rng_state()
    export(net, {"words": torch.zeros(5, 2, dtype=torch.int64)}, name="net", into=tmp_path, echo=None)
    refused(tmp_path / "other", net, torch.zeros(5, 2, 3, 4))
    assert all(module.training for module in net.modules())
    assert {name: weight.requires_grad for name, weight in net.named_parameters()} == wanted
    assert net.lower.forward == forward
    assert len(net.lower._forward_hooks) == 1
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(weight, before[name]) for name, weight in net.state_dict().items())


@pytest.mark.parametrize(
    "state",
    [
        pytest.param("hidden", id="a name"),
        pytest.param(["hidden"], id="a list of names"),
        pytest.param({"hidden": 0.0}, id="a number"),
        pytest.param({"hidden": torch.zeros(1, 2, 5)}, id="a tensor by name"),
        pytest.param(torch.zeros(1, 2, 5), id="a tensor"),
        pytest.param(None, id="found"),
    ],
)
def test_a_state_is_declared_in_many_ways(tmp_path: Path, state: Any) -> None:
    """All of them mean the same."""
    exported = export(networks.Optional(), X, name="net", into=tmp_path, echo=None, state=state)
    (spec,) = exported.manifest.states
    assert (spec.name, spec.dims, spec.initial) == ("hidden", (1, "batch", 5), 0.0)


def test_initial_values_are_kept(tmp_path: Path) -> None:
    """A learnt start and a given one are those of the first step that is served."""
    net = networks.Learnt()
    exported = export(net, X, name="learnt", into=tmp_path, echo=None)
    (spec,) = load_manifest(exported.folder).states
    np.testing.assert_array_equal(spec.initial_array(), net.start.detach()[:, 0].numpy())

    exported = export(
        networks.OwnCell(), X[0], cell=True, state=torch.full((2, 3), 2.5), name="cell", into=tmp_path, echo=None
    )
    assert exported.manifest.states[0].initial == 2.5
    step = Runner(exported.folder / MODEL_FILE, exported.manifest).whole({"x": np.zeros((1, 3), np.float32)})
    np.testing.assert_allclose(step.outputs["y"], [[0.9 * 2.5 * 3]], rtol=1e-6)


def test_names_are_made_where_none_are_given(tmp_path: Path) -> None:
    """The pair of an LSTM is h and c; an output that would be called as an input gets another name."""

    class Fed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(3, 5)

        def forward(self, y: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
            return self.lstm(y, state)

    state = (torch.zeros(1, 2, 5), torch.zeros(1, 2, 5))
    manifest = export(Fed(), X, state=state, name="net", into=tmp_path, echo=None).manifest
    assert [spec.name for spec in manifest.states] == ["state.h", "state.c"]
    assert [spec.name for spec in manifest.outputs] == ["y_out"]


def test_lengths_that_the_network_takes_are_passed_on(tmp_path: Path) -> None:
    """A network that masks by itself is given the true lengths, in the type that it wants."""

    class Masking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gru = nn.GRU(3, 5)

        def forward(self, x: Tensor, lengths: Tensor, top: Tensor) -> tuple[Tensor, Tensor]:
            y, _ = self.gru(x)
            real = torch.arange(x.shape[0])[:, None] < lengths[None]
            top = torch.maximum(top, torch.where(real[..., None], y, -1.0).amax(0))
            return top, top

    example = (X, torch.full((2,), 5, dtype=torch.int64))
    exported = export(Masking(), example, state=torch.full((2, 5), -1.0), name="net", into=tmp_path, echo=None)
    assert exported.graph == "direct"
    assert exported.report.passed
    assert [spec.name for spec in exported.manifest.inputs] == ["x", "lengths"]
    assert [spec.name for spec in exported.manifest.states] == ["top", "gru.h"]


def test_inexact_bits_are_refused_or_said(tmp_path: Path) -> None:
    """Where last bits depend on the batch, an export needs a word of its own, and the manifest says so."""
    assert re.search("depend on the batch .* are here: ReduceSum", refused(tmp_path, networks.Summed()))
    said: list[str] = []
    exported = export(networks.Summed(), X, name="net", into=tmp_path, allow_inexact=True, echo=said.append)
    assert not exported.manifest.bit_equal
    assert not load_manifest(exported.folder).bit_equal
    assert 0 < exported.report.batched_difference_max < 1e-5
    assert "(accepted)" in said[0]


def test_double_precision(tmp_path: Path) -> None:
    """Recurrent nodes of ONNX Runtime have no float64; the loop over time has."""
    exported = export(nn.GRU(3, 5).double(), X.double(), name="net", into=tmp_path, echo=None, allow_inexact=True)
    assert {spec.dtype for spec in exported.manifest.states} == {"float64"}
    assert exported.report.torch_difference_max is not None
    assert exported.report.torch_difference_max < 1e-12


def test_a_version_is_replaced_only_when_asked(tmp_path: Path) -> None:
    """And then as a whole; facts given by the caller are in the manifest."""
    net = nn.GRU(3, 5)
    export(net, X, name="net", into=tmp_path, echo=None)
    with pytest.raises(ExportError, match="exists; give another version"):
        export(net, X, name="net", into=tmp_path, echo=None)
    words = tmp_path / "words.txt"
    words.write_text("a b")
    exported = export(
        net,
        X,
        name="net",
        into=tmp_path,
        echo=None,
        overwrite=True,
        files=[words],
        metrics={"error": 0.5},
        durability="step",
        data=[{"name": "made up", "licence": "none", "url": "none"}],
        outputs=["level"],
    )
    manifest = load_manifest(exported.folder)
    assert sorted(path.name for path in exported.folder.iterdir()) == [
        "manifest.json",
        "model.onnx",
        "parity.json",
        "words.txt",
    ]
    assert (manifest.metrics, manifest.sequence.durability) == ({"error": 0.5}, "step")
    assert [spec.name for spec in manifest.outputs] == ["level"]
    assert not [path for path in (tmp_path / "net").iterdir() if path.name != "1"]


def test_the_report_is_for_people_and_for_programs(tmp_path: Path) -> None:
    """It is printed, and beside the model as JSON: what was compared, which outputs are causal, the bits."""
    said: list[str] = []
    exported = export(
        networks.Words(), torch.zeros(5, 2, dtype=torch.int64), name="net", into=tmp_path, echo=said.append
    )
    assert str(exported) == said[0]
    for part in ("net 1 -> ", "state     lower.h", "one row a timestep, causal", "one row a chunk", "the same bits"):
        assert part in said[0]
    report = json.loads((exported.folder / PARITY_FILE).read_text())
    assert report["outputs"] == [
        {"name": "tags", "per": "timestep", "causal": True},
        {"name": "mood", "per": "chunk", "causal": None},
    ]
    assert report["batched_equal"]
    assert report["chunked_equal"]
    assert report["torch_difference_max"] < 1e-5


def test_own_inputs_are_drawn(tmp_path: Path) -> None:
    """A network that takes only some values is compared on what the caller draws."""

    class Logarithm(networks.Optional):
        def forward(self, x: Tensor, hidden: Tensor | None = None) -> tuple[Tensor, Tensor]:
            return super().forward(x.sqrt(), hidden)

    assert "give draw=" in refused(tmp_path, Logarithm(), X.abs())

    def draw(generator: np.random.Generator, count: int) -> dict[str, Any]:
        return {"x": generator.random((count, 3))}

    assert export(Logarithm(), X.abs(), name="net", into=tmp_path, echo=None, draw=draw).report.passed
