"""Needs torch: an untrained tiny network is the same function in torch and on ONNX Runtime."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from models.common.manifest import MODEL_FILE, load_manifest  # noqa: E402
from models.common.parity import PARITY_FILE, Features, Step, check_parity  # noqa: E402
from models.sentiment.artefact import write_artefact  # noqa: E402
from models.sentiment.config import TINY  # noqa: E402
from models.sentiment.evaluate import ARTEFACT  # noqa: E402
from models.sentiment.features import Vocabulary  # noqa: E402
from models.sentiment.net import PEAK_INITIAL, SentimentNet  # noqa: E402

pytestmark = pytest.mark.train

VOCABULARY = Vocabulary([f"w{index}" for index in range(50)])


def tiny() -> SentimentNet:
    torch.manual_seed(7)
    net = SentimentNet(TINY, len(VOCABULARY))
    with torch.no_grad():
        net.embedding.weight.mul_(10.0)  # gates that open and close, so that a wrong state shows
    return net


def draw(generator: np.random.Generator, count: int) -> Features:
    return {"words": generator.integers(0, len(VOCABULARY), count, dtype=np.int64)}


def reference(net: SentimentNet) -> Callable[[Features], Step]:
    """The network as it was written, on one whole text; knows nothing of how it is exported."""

    @torch.no_grad()
    def run(features: Features) -> Step:
        words = torch.from_numpy(features["words"])[:, None]
        h, c, peak = (torch.full((1, 1, TINY.hidden_size), value) for value in (0.0, 0.0, PEAK_INITIAL))
        logits, *new = net(words, torch.tensor([len(words)], dtype=torch.int32), h, c, peak)
        states: dict[str, Any] = dict(zip(("h", "c", "peak"), (tensor[:, 0].numpy() for tensor in new), strict=True))
        return Step({"logits": logits[0].numpy()}, states)

    return run


@pytest.mark.parametrize("seed", [0, 1])
def test_torch_is_onnx(tmp_path: Path, seed: int) -> None:
    """Logits and all three states agree closely, over lengths, batch sizes and chunkings."""
    net = tiny().eval()
    exported = write_artefact(tmp_path, net, VOCABULARY, TINY, epochs=0)
    assert exported.graph == "direct"
    assert (exported.folder / PARITY_FILE).exists()
    again = check_parity(
        exported.folder, exported.manifest, draw, reference(net), batch_sizes=[1, 5, 16], seed=seed, timesteps_max=200
    )
    assert again.passed, asdict(again)


def test_the_manifest_says_what_the_shipped_one_says(tmp_path: Path) -> None:
    """The one exporter of all networks describes this one as the shipped version does, but for its sizes."""
    made = write_artefact(tmp_path, tiny(), VOCABULARY, TINY, epochs=0).manifest
    shipped = load_manifest(ARTEFACT)
    assert made.inputs == shipped.inputs
    assert made.outputs == shipped.outputs
    assert [(s.name, s.input, s.output, s.initial) for s in made.states] == [
        (s.name, s.input, s.output, s.initial) for s in shipped.states
    ]
    assert made.options == shipped.options
    assert (made.chunk_timesteps_max, made.sequence, made.data) == (
        shipped.chunk_timesteps_max,
        shipped.sequence,
        shipped.data,
    )


def test_a_difference_is_seen(tmp_path: Path) -> None:
    """The check can fail: another network is not within the tolerance of this file."""
    net = tiny().eval()
    exported = write_artefact(tmp_path, net, VOCABULARY, TINY, epochs=0)
    with torch.no_grad():
        net.head.bias.add_(0.01)
    report = check_parity(exported.folder, exported.manifest, draw, reference(net), batch_sizes=[2])
    assert report.torch_difference_max == pytest.approx(0.01, rel=0.01)
    assert not report.passed


def test_a_graph_that_mixes_its_rows_is_caught(tmp_path: Path) -> None:
    """The byte promises are really looked at: let a row see the mean of its mates and they break."""
    onnx = pytest.importorskip("onnx")
    exported = write_artefact(tmp_path, tiny(), VOCABULARY, TINY, epochs=0)
    model = onnx.load(exported.folder / MODEL_FILE)
    last = next(node for node in model.graph.node if "logits" in node.output)
    last.output[list(last.output).index("logits")] = "straight"
    total = onnx.helper.make_node("ReduceMean", ["straight"], ["mean"], axes=[0], keepdims=1)
    model.graph.node.extend([total, onnx.helper.make_node("Add", ["straight", "mean"], ["logits"])])
    report = check_parity(model.SerializeToString(), exported.manifest, draw, batch_sizes=[1, 4, 16])
    assert not report.batched_equal
    assert report.batched_difference_max > report.torch_tolerance
    assert not report.passed
