"""Needs torch: an untrained tiny network is the same function in torch and on ONNX Runtime."""

from dataclasses import asdict
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from models.common.manifest import MODEL_FILE  # noqa: E402
from models.common.parity import PARITY_FILE, check_parity  # noqa: E402
from models.sentiment.artefact import drawer, reference, write_artefact  # noqa: E402
from models.sentiment.config import TINY  # noqa: E402
from models.sentiment.features import Vocabulary  # noqa: E402
from models.sentiment.net import SentimentNet  # noqa: E402

pytestmark = pytest.mark.train

VOCABULARY = Vocabulary([f"w{index}" for index in range(50)])


def tiny() -> SentimentNet:
    torch.manual_seed(7)
    net = SentimentNet(TINY, len(VOCABULARY))
    with torch.no_grad():
        net.embedding.weight.mul_(10.0)  # gates that open and close, so that a wrong state shows
    return net


@pytest.mark.parametrize("seed", [0, 1])
def test_torch_is_onnx(tmp_path: Path, seed: int) -> None:
    """Logits and all three states agree closely, over lengths, batch sizes and chunkings."""
    net = tiny()
    manifest, _ = write_artefact(tmp_path, net, VOCABULARY, TINY, epochs=0)
    assert (tmp_path / PARITY_FILE).exists()
    again = check_parity(tmp_path, manifest, drawer(len(VOCABULARY)), reference(net), seed=seed, timesteps_max=200)
    assert again.passed, asdict(again)


def test_a_difference_is_seen(tmp_path: Path) -> None:
    """The check can fail: another network is not within the tolerance of this file."""
    net = tiny()
    manifest, _ = write_artefact(tmp_path, net, VOCABULARY, TINY, epochs=0)
    with torch.no_grad():
        net.head.bias.add_(0.01)
    report = check_parity(tmp_path, manifest, drawer(len(VOCABULARY)), reference(net), batch_sizes=[2])
    assert report.torch_difference_max == pytest.approx(0.01, rel=0.01)
    assert not report.passed


def test_a_graph_that_mixes_its_rows_is_caught(tmp_path: Path) -> None:
    """The byte promises are really looked at: let a row see the mean of its mates and they break."""
    onnx = pytest.importorskip("onnx")
    manifest, _ = write_artefact(tmp_path, tiny(), VOCABULARY, TINY, epochs=0)
    model = onnx.load(tmp_path / MODEL_FILE)
    last = next(node for node in model.graph.node if "logits" in node.output)
    last.output[list(last.output).index("logits")] = "straight"
    total = onnx.helper.make_node("ReduceMean", ["straight"], ["mean"], axes=[0], keepdims=1)
    model.graph.node.extend([total, onnx.helper.make_node("Add", ["straight", "mean"], ["logits"])])
    report = check_parity(model.SerializeToString(), manifest, drawer(len(VOCABULARY)), batch_sizes=[1, 4, 16])
    assert not report.batched_equal
    assert not report.passed
