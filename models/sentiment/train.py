"""Train the sentiment network and write its artefact.

    python -m models.sentiment.train --config full

Two stages, as Dai & Le (2015) did: the LSTM first learns to predict the next word of the training texts, then
to judge them. Reviews of whole films, held out by a seed, are in neither stage. Interrupted, the same command
goes on from its last checkpoint under ``build/``.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from models.common.manifest import save_manifest
from models.common.training import Run, Stage, fit, pick_device
from models.sentiment.artefact import write_artefact
from models.sentiment.batches import Batch, EpochBatches, Texts, in_order
from models.sentiment.config import CONFIGS, Config
from models.sentiment.data import Example, binary, hold_out, read_imdb, read_sst
from models.sentiment.evaluate import Model, measure
from models.sentiment.features import Vocabulary, words_of
from models.sentiment.net import LanguageHead, SentimentNet


@dataclass(frozen=True, slots=True)
class Corpus:
    """Everything a training reads; ``reviews_held`` and ``sentences_held`` are for validation alone."""

    vocabulary: Vocabulary
    reviews: list[Example]
    phrases: list[Example]
    sentences: list[Example]
    reviews_held: list[Example]
    sentences_held: list[Example]


Labelled = Sequence[tuple[str, int]]


def load_corpus(config: Config) -> Corpus:
    """IMDB and SST, split and turned into word indices."""
    train, held = hold_out(read_imdb(), count=config.held_out_reviews, seed=config.split_seed)
    phrases = read_sst("train")
    return build_corpus(
        config,
        reviews=[(review.text, review.label) for review in train],
        phrases=binary(phrases, roots_only=False),
        sentences=[(phrase.text, phrase.score) for phrase in phrases if phrase.root],
        reviews_held=[(review.text, review.label) for review in held],
        sentences_held=binary(read_sst("dev"), roots_only=True),
    )


def build_corpus(
    config: Config,
    *,
    reviews: Labelled,
    phrases: Labelled,
    sentences: Labelled,
    reviews_held: Labelled,
    sentences_held: Labelled,
) -> Corpus:
    """Word indices for five collections of (text, label); the vocabulary comes from the training ones alone."""

    def cut(pairs: Labelled) -> list[tuple[list[str], int]]:
        return [(words, label) for text, label in pairs if (words := words_of(text))]

    worded = [cut(pairs) for pairs in (reviews, phrases, sentences, reviews_held, sentences_held)]
    vocabulary = Vocabulary.build(
        (words for collection in worded[:2] for words, _ in collection),
        size=config.vocabulary_size,
        count_min=config.vocabulary_count_min,
    )
    indexed = [[Example(vocabulary.indices(words), label) for words, label in pairs] for pairs in worded]
    return Corpus(vocabulary, *indexed)


def train(
    config: Config, corpus: Corpus, *, device: torch.device, folder: Path | None
) -> tuple[SentimentNet, list[Run]]:
    """The trained network and the course of each stage; checkpoints go to ``folder``."""
    torch.manual_seed(config.seed)
    net = SentimentNet(config, len(corpus.vocabulary))
    runs: list[Run] = []
    if config.pretrain is not None:
        stage = language_stage(config, corpus, net)
        runs.append(fit(stage, config.pretrain, seed=config.seed, device=device, checkpoint=_at(folder, stage.name)))
    stage = sentiment_stage(config, corpus, net)
    runs.append(fit(stage, config.train, seed=config.seed + 1, device=device, checkpoint=_at(folder, stage.name)))
    return net.cpu(), runs


def _at(folder: Path | None, name: str) -> Path | None:
    return None if folder is None else folder / f"{name}.pt"


def language_stage(config: Config, corpus: Corpus, net: SentimentNet) -> Stage[Batch]:
    """Predict the next word of reviews and treebank sentences; watched on the held-out reviews."""
    counts = Counter(int(word) for text in (*corpus.reviews, *corpus.sentences) for word in text.words)
    # Flatter than the counts, so that a rare noise word does not stand for thousands of others at once.
    frequency = torch.tensor([float(counts[word] or 1) for word in range(len(corpus.vocabulary))]) ** 0.75
    head = LanguageHead(config, frequency / frequency.sum())
    collections = [
        Texts(_longer_than_one(corpus.reviews), config.reviews_per_batch, config.words_max),
        Texts(_longer_than_one(corpus.sentences), config.phrases_per_batch, config.words_max),
    ]
    watched = Texts(_longer_than_one(corpus.reviews_held)[:500], config.reviews_per_batch)

    def loss(batch: Batch) -> Tensor:
        y = functional.dropout(net.hidden(batch.words[:-1]), config.embedding_dropout, net.training)  # (T-1, N, H)
        real = torch.arange(1, len(batch.words), device=y.device)[:, None] < batch.lengths  # (T-1, N)
        losses = head.loss(net.embedding.weight, y.flatten(0, 1), batch.words[1:].flatten())
        return (losses * real.flatten()).sum() / real.sum()

    def validate() -> dict[str, float]:
        device = net.embedding.weight.device
        with torch.random.fork_rng():
            torch.manual_seed(0)  # the same noise words every epoch
            return {"held_loss": float(np.mean([loss(batch.to(device)).item() for batch in in_order(watched)]))}

    return Stage(
        name="language",
        net=nn.ModuleList([net, head]),
        batches=lambda epoch: EpochBatches(collections, seed=config.seed, epoch=epoch, windows=True),
        loss=loss,
        validate=validate,
        monitor="held_loss",
        settings=_settings(config),
    )


def _settings(config: Config) -> dict[str, Any]:
    """What the checkpoint of a stage depends on: not the schedule of the other stage."""
    return {name: value for name, value in asdict(config).items() if name not in {"pretrain", "train"}}


def _longer_than_one(examples: Sequence[Example]) -> list[Example]:
    return [example for example in examples if len(example.words) > 1]


def sentiment_stage(config: Config, corpus: Corpus, net: SentimentNet) -> Stage[Batch]:
    """Judge whole texts, and with less weight their beginnings, so that the running prediction means something."""
    collections = [
        Texts(corpus.reviews, config.reviews_per_batch, config.words_max),
        Texts(corpus.phrases, config.phrases_per_batch, config.words_max),
    ]

    def loss(batch: Batch) -> Tensor:
        lengths = batch.lengths
        earlier = (lengths * (0.2 + 0.8 * torch.rand(lengths.shape, device=lengths.device))).long().clamp(min=1)
        logits = net.logits_at(net.hidden(batch.words), torch.stack([lengths, earlier]))  # (2, N, 2)
        whole, part = (functional.cross_entropy(logits[k], batch.labels) for k in (0, 1))
        return whole + config.earlier_weight * part

    def validate() -> dict[str, float]:
        reviews = error_share(net, Texts(corpus.reviews_held, 64))
        sentences = error_share(net, Texts(corpus.sentences_held, 64))
        return {"imdb_error": reviews, "sst2_error": sentences, "mean_error": (reviews + sentences) / 2}

    return Stage(
        name="sentiment",
        net=net,
        batches=lambda epoch: EpochBatches(collections, seed=config.seed + 1, epoch=epoch),
        loss=loss,
        validate=validate,
        monitor="mean_error",
        settings=_settings(config),
    )


def error_share(net: SentimentNet, texts: Texts) -> float:
    """Share of texts judged wrongly, 0 to 1, on the torch network."""
    device = net.embedding.weight.device
    wrong = 0
    for batch in in_order(texts):
        batch = batch.to(device)  # noqa: PLW2901 - the same batch, elsewhere
        logits = net.logits_at(net.hidden(batch.words), batch.lengths[None])[0]  # (N, 2)
        wrong += int((logits.argmax(-1) != batch.labels).sum())
    return wrong / len(texts.examples)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", choices=sorted(CONFIGS), default="full")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    parser.add_argument("--threads", type=int, default=1, help="torch threads on the CPU (default: 1)")
    parser.add_argument("--build", type=Path, default=Path("build/sentiment"), help="folder for checkpoints")
    parser.add_argument(
        "--into", type=Path, help="folder of models to export to (default: artefacts/ beside the checkpoints)"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    # Embeddings of rare words decay into denormal numbers, which are many times slower to add.
    torch.set_flush_denormal(True)
    config = CONFIGS[arguments.config]
    folder: Path = arguments.build / config.name
    corpus = load_corpus(config)
    net, runs = train(config, corpus, device=pick_device(arguments.device), folder=folder)
    into: Path = arguments.into or folder / "artefacts"
    epochs = sum(len(run.history) for run in runs)
    artefact = write_artefact(into, net, corpus.vocabulary, config, epochs=epochs).folder
    model = Model.load(artefact)
    manifest = model.manifest.model_copy(update={"metrics": measure(model, config.name)})
    save_manifest(artefact, manifest)
    tqdm.write(f"{artefact}: {manifest.metrics}")


if __name__ == "__main__":
    main()
