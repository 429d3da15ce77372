"""Hyper-parameters: ``full`` made the shipped network, ``quick`` a lesser one in minutes, ``tiny`` is a test."""

from __future__ import annotations

from dataclasses import dataclass, field

from models.common.schedule import Schedule


@dataclass(frozen=True, slots=True)
class Config:
    """Everything that decides the result of a training, seeds included."""

    name: str
    seed: int = 20
    # Data. Words beyond words_max are cut out of the first half of a review in training only.
    split_seed: int = 1
    held_out_reviews: int = 2500
    vocabulary_size: int = 25_000
    vocabulary_count_min: int = 2
    words_max: int = 400
    reviews_per_batch: int = 32
    phrases_per_batch: int = 256
    # Network.
    embedding_size: int = 128
    hidden_size: int = 256
    word_dropout: float = 0.1
    embedding_dropout: float = 0.3
    head_dropout: float = 0.5
    # Objectives: the share of the loss at an earlier, random end of each text; noise words per batch.
    earlier_weight: float = 0.3
    noise_words: int = 512
    # Stages. No pre-training where its schedule is None.
    pretrain: Schedule | None = None
    train: Schedule = field(default_factory=lambda: Schedule(epochs=4, learning_rate=2e-3))


FULL = Config(
    name="full",
    pretrain=Schedule(epochs=5, learning_rate=3e-3),
    train=Schedule(epochs=3, learning_rate=1.5e-3, average_updates=500),
)
QUICK = Config(name="quick", train=Schedule(epochs=2, learning_rate=3e-3))
TINY = Config(
    name="tiny",
    held_out_reviews=40,
    vocabulary_size=200,
    vocabulary_count_min=1,
    words_max=40,
    reviews_per_batch=16,
    phrases_per_batch=32,
    embedding_size=16,
    hidden_size=24,
    noise_words=32,
    pretrain=Schedule(epochs=5, learning_rate=2e-2),
    train=Schedule(epochs=10, learning_rate=1e-2),
)
CONFIGS = {config.name: config for config in (FULL, QUICK, TINY)}
