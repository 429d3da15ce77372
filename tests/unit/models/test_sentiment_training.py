"""Needs torch: the tiny configuration, on made-up texts, in seconds."""

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from models.common.manifest import load_manifest, verify_files  # noqa: E402
from models.common.schedule import Schedule  # noqa: E402
from models.sentiment.artefact import write_artefact  # noqa: E402
from models.sentiment.batches import EpochBatches, Texts, in_order, shorten  # noqa: E402
from models.sentiment.config import TINY, Config  # noqa: E402
from models.sentiment.data import Example  # noqa: E402
from models.sentiment.evaluate import Model, wrong_share  # noqa: E402
from models.sentiment.net import LanguageHead, SentimentNet  # noqa: E402
from models.sentiment.train import Corpus, build_corpus, sentiment_stage, train  # noqa: E402

pytestmark = pytest.mark.train

CPU = torch.device("cpu")


def texts(seed: int, count: int, low: int, high: int) -> list[tuple[str, int]]:
    """Words of unequal frequency, with one of two telling words somewhere among them."""
    generator = np.random.default_rng(seed)
    pairs: list[tuple[str, int]] = []
    for _ in range(count):
        words = [f"w{index % 60}" for index in generator.zipf(1.5, int(generator.integers(low, high)))]
        label = int(generator.integers(2))
        words[int(generator.integers(len(words)))] = ("awful", "lovely")[label]
        pairs.append((" ".join(words), label))
    return pairs


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """More threads only get in each other's way at these sizes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    """A few hundred texts."""
    return build_corpus(
        TINY,
        reviews=texts(1, 300, 10, 60),
        phrases=texts(2, 300, 1, 6),
        sentences=texts(3, 100, 3, 9),
        reviews_held=texts(4, 60, 10, 60),
        sentences_held=texts(5, 60, 1, 9),
    )


def test_tiny_training_end_to_end(corpus: Corpus, tmp_path: Path) -> None:
    """Both stages begin at chance and learn; the exported file judges unseen texts as the network did."""
    net, (language, sentiment) = train(TINY, corpus, device=CPU, folder=tmp_path / "build")
    # Chance: every word as likely as any other; both labels alike, for the whole text and for its beginning.
    assert language.first_loss == pytest.approx(math.log(len(corpus.vocabulary)), abs=0.5)
    assert sentiment.first_loss == pytest.approx((1 + TINY.earlier_weight) * math.log(2), abs=0.2)
    assert language.history[-1]["held_loss"] < language.first_loss
    assert sentiment.history[sentiment.best_epoch]["mean_error"] < 0.05

    exported = write_artefact(tmp_path, net, corpus.vocabulary, TINY, epochs=15)
    assert exported.report.passed
    assert load_manifest(exported.folder) == exported.manifest
    verify_files(exported.folder, exported.manifest)
    model = Model.load(exported.folder)
    assert wrong_share(model, texts(6, 60, 10, 60)) < 0.1
    assert wrong_share(model, texts(6, 60, 10, 60), 0.1) > wrong_share(model, texts(6, 60, 10, 60))


def test_the_result_is_a_function_of_the_seed(corpus: Corpus) -> None:
    """The same seed gives the same weights, another one others."""

    def first_rows(seed: int) -> bytes:
        config = replace(TINY, seed=seed, pretrain=None, train=Schedule(epochs=1, learning_rate=0.01))
        return train(config, corpus, device=CPU, folder=None)[0].embedding.weight.detach().numpy().tobytes()

    assert first_rows(1) == first_rows(1) != first_rows(2)


def test_held_out_words_are_not_in_the_vocabulary() -> None:
    """The vocabulary is part of the training, so it must not see the validation texts."""
    empty: list[tuple[str, int]] = []
    built = build_corpus(
        TINY, reviews=[("seen", 0)], phrases=empty, sentences=empty, reviews_held=[("unseen", 1)], sentences_held=empty
    )
    assert built.reviews_held[0].words.tolist() == [0]
    assert len(built.vocabulary) == 2


def test_logits_of_a_beginning_ignore_the_rest(corpus: Corpus) -> None:
    """The running prediction in training sees no word after its end, and no padding."""
    net = SentimentNet(TINY, len(corpus.vocabulary)).eval()
    words = torch.randint(0, 50, (9, 1))
    ends = torch.tensor([[4], [9]])
    with torch.no_grad():
        both = net.logits_at(net.hidden(words), ends)
        start = net.logits_at(net.hidden(words[:4]), ends[:1])
        states = [torch.zeros(1, 1, TINY.hidden_size), torch.zeros(1, 1, TINY.hidden_size)]
        exported = net(words, torch.tensor([9]), *states, torch.full((1, 1, TINY.hidden_size), -1.0))[0]
    torch.testing.assert_close(both[0], start[0])
    torch.testing.assert_close(both[1], exported)


def test_batches_hold_every_text_once() -> None:
    """An epoch is a permutation of its texts, the same for the same epoch, of the same number of batches."""
    examples = [Example(np.full(1 + i % 17, i, dtype=np.int64), i % 2) for i in range(100)]
    collections = [Texts(examples[:60], 8), Texts(examples[60:], 16)]
    first, again, other = (EpochBatches(collections, seed=1, epoch=epoch) for epoch in (0, 0, 1))

    def seen(batches: EpochBatches) -> list[int]:
        return [int(word) for batch in batches for word in batch.words[0]]

    assert sorted(seen(first)) == list(range(100))
    assert seen(first) == seen(again) != seen(other)
    assert len(first) == len(other)
    assert sum(len(batch.labels) for batch in in_order(collections[0])) == 60


def test_long_texts_are_shortened_for_training() -> None:
    """Start and end are kept, or with a generator a stretch in one piece; short texts stay."""
    example = Example(np.arange(100), 1)
    assert shorten(example, None, None) is example
    assert shorten(example, 100, None) is example
    assert shorten(example, 8, None).words.tolist() == [0, 1, 94, 95, 96, 97, 98, 99]
    window = shorten(example, 8, np.random.default_rng(0)).words
    assert window.tolist() == list(range(int(window[0]), int(window[0]) + 8))


def test_sampled_softmax_tends_to_the_full_one() -> None:
    """With many noise words the loss is that of the softmax over the whole vocabulary."""
    torch.manual_seed(0)
    config = Config(name="one", embedding_size=6, hidden_size=5, noise_words=200_000)
    frequency = torch.rand(12)
    head = LanguageHead(config, frequency / frequency.sum())
    torch.nn.init.normal_(head.bias)
    embedding, y, targets = torch.randn(12, 6), torch.randn(4, 5), torch.tensor([0, 3, 7, 11])
    with torch.no_grad():
        full = torch.nn.functional.cross_entropy(head.project(y) @ embedding.T + head.bias, targets, reduction="none")
        torch.testing.assert_close(head.loss(embedding, y, targets), full, atol=0.02, rtol=0.02)


def test_validation_leaves_the_training_random_numbers_alone(corpus: Corpus) -> None:
    """Measuring more or less often must not change what is trained."""
    stage = sentiment_stage(TINY, corpus, SentimentNet(TINY, len(corpus.vocabulary)).eval())
    before = torch.get_rng_state()
    stage.validate()
    assert torch.equal(before, torch.get_rng_state())
