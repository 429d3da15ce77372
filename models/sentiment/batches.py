"""Examples to padded batches, for training and for measuring.

Texts of like length share a batch, so little is padding; which ones do, and the order of the batches, are
drawn anew each epoch from (seed, epoch) alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from models.sentiment.data import Example

_POOL_BATCHES = 32
"""Texts are sorted by length within pools of so many batches: little padding, and still a random mix."""


@dataclass(frozen=True, slots=True)
class Batch:
    """words (T, N) int64 padded with 0 at the end of time, lengths (N,), labels (N,)."""

    words: Tensor
    lengths: Tensor
    labels: Tensor

    def to(self, device: torch.device) -> Self:
        """The same batch on ``device``."""
        return type(self)(self.words.to(device), self.lengths.to(device), self.labels.to(device))


@dataclass(frozen=True, slots=True)
class Texts:
    """One collection: its examples, how many go in a batch, how many words of each (None: all)."""

    examples: Sequence[Example]
    batch_size: int
    words_max: int | None = None


class EpochBatches(Sequence[Batch]):
    """The batches of one epoch over several collections, mixed; each is padded when it is asked for."""

    def __init__(self, collections: Sequence[Texts], *, seed: int, epoch: int, windows: bool = False) -> None:
        """``windows`` cuts a long text to a random stretch of it, else its middle part is left out."""
        self._collections = collections
        self._seed = (seed, epoch)
        self._windows = windows
        generator = np.random.default_rng(self._seed)
        plan = [(i, rows) for i, texts in enumerate(collections) for rows in _similar_lengths(texts, generator)]
        order: list[int] = generator.permutation(len(plan)).tolist()
        self._plan = [plan[k] for k in order]

    def __len__(self) -> int:
        return len(self._plan)

    def __getitem__(self, index: int) -> Batch:  # pyright: ignore[reportIncompatibleMethodOverride] - no slices needed
        which, rows = self._plan[index]
        texts = self._collections[which]
        generator = np.random.default_rng((*self._seed, index)) if self._windows else None
        return pad([shorten(texts.examples[row], texts.words_max, generator) for row in rows])


def _similar_lengths(texts: Texts, generator: np.random.Generator) -> Iterator[list[int]]:
    size, limit = texts.batch_size, texts.words_max or np.iinfo(np.int64).max
    order: list[int] = generator.permutation(len(texts.examples)).tolist()
    for start in range(0, len(order), size * _POOL_BATCHES):
        pool = sorted(
            order[start : start + size * _POOL_BATCHES], key=lambda r: min(limit, len(texts.examples[r].words))
        )
        yield from (pool[k : k + size] for k in range(0, len(pool), size))


def in_order(texts: Texts) -> Iterator[Batch]:
    """Every example once, whole, sorted by length: for measuring."""
    order = sorted(range(len(texts.examples)), key=lambda row: len(texts.examples[row].words))
    for start in range(0, len(order), texts.batch_size):
        yield pad([texts.examples[row] for row in order[start : start + texts.batch_size]])


def shorten(example: Example, words_max: int | None, generator: np.random.Generator | None) -> Example:
    """At most ``words_max`` words: a random stretch, or without a generator a quarter from the start and the end.

    A review says what it is about first and what it thinks of it last; the middle is missed least.
    """
    words: npt.NDArray[np.int64] = example.words
    if words_max is None or len(words) <= words_max:
        return example
    if generator is not None:
        start = int(generator.integers(len(words) - words_max + 1))
        return Example(words[start : start + words_max], example.label)
    head = words_max // 4
    return Example(np.concatenate([words[:head], words[head - words_max :]]), example.label)


def pad(examples: Sequence[Example]) -> Batch:
    """Examples (at least one, none empty) to one batch."""
    lengths = [len(example.words) for example in examples]
    words = np.zeros((max(lengths), len(examples)), dtype=np.int64)  # (T, N)
    for column, example in enumerate(examples):
        words[: lengths[column], column] = example.words
    labels = [example.label for example in examples]
    return Batch(torch.from_numpy(words), torch.tensor(lengths), torch.tensor(labels))
