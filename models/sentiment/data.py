"""IMDB reviews and SST phrases: from the local files or the official archives to examples and batches.

Both sources give the same examples in the same order, so a seed means the same training on every machine.
"""

from __future__ import annotations

import io
import re
import tarfile
import zipfile
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from models.common.data import Archive, fetch, locate, read_json_lines, read_text
from models.common.manifest import DataSource

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

IMDB = Archive(
    folder="imdb",
    file="aclImdb_v1.tar.gz",
    url="http://ai.stanford.edu/~amaas/data/sentiment/aclImdb_v1.tar.gz",
    checksum="md5:7c2ac02c03563afcf9b574c7e56c153a",
    licence="no formal licence; for research, please cite Maas et al., ACL 2011; do not redistribute the reviews",
)
SST = Archive(
    folder="sst",
    file="trainDevTestTrees_PTB.zip",
    url="https://nlp.stanford.edu/sentiment/trainDevTestTrees_PTB.zip",
    checksum="sha256:5c613a4f673fc74097d523a2c83f38e0cc462984d847b82c7aaf36b01cbbbfcc",
    licence="no licence file; for research, please cite Socher et al., EMNLP 2013; do not redistribute the texts",
)
SOURCES = (
    DataSource(name="IMDB Large Movie Review Dataset v1.0 (train)", licence=IMDB.licence, url=IMDB.url),
    DataSource(name="Stanford Sentiment Treebank (train phrases, dev)", licence=SST.licence, url=SST.url),
)

NEGATIVE, POSITIVE = 0, 1
_NEUTRAL = 2
"""Middle of the treebank's scores, 0 to 4."""
_BREAK = re.compile(r"<br\s*/?>")
_MEMBER = re.compile(r"^aclImdb/train/(neg|pos)/((\d+)_\d+)\.txt$")
_FILM = re.compile(r"/title/(tt\d+)")
_NODE = re.compile(r"\((\d) |([^() ]+)\)|\)")
_TREE_TOKENS = {"-LRB-": "(", "-RRB-": ")"}
_TREE_ESCAPE = re.compile(r"\\(?=[/*])")


@dataclass(frozen=True, slots=True)
class Review:
    """One labelled IMDB review; ``film`` is its IMDb title id."""

    id: str
    film: str
    text: str
    label: int


@dataclass(frozen=True, slots=True)
class Phrase:
    """One phrase of a treebank sentence with its sentiment 0 (very negative) to 4; ``root`` if it is the sentence."""

    text: str
    score: int
    root: bool


def clean(text: str) -> str:
    """A review without the line-break mark-up that the web page left in it."""
    return _BREAK.sub(" ", text)


def read_imdb() -> list[Review]:
    """The 25,000 labelled training reviews: negative ones first, each class by original number."""
    local = locate("imdb/train.jsonl.xz")
    if local is None:
        return read_imdb_archive(fetch(IMDB))
    return [
        Review(record["id"], record["movie"], clean(record["text"]), record["label"])
        for record in read_json_lines(local)
    ]


def read_imdb_archive(path: Path) -> list[Review]:
    """The same reviews out of ``aclImdb_v1.tar.gz``: a file each, and the film addresses in number order."""
    texts: dict[tuple[str, int], tuple[str, str]] = {}
    films: dict[str, list[str]] = {}
    with tarfile.open(path) as archive:
        for member in archive:
            stream = archive.extractfile(member) if member.isfile() else None
            if stream is None:
                continue
            if match := _MEMBER.match(member.name):
                kind, name, number = match.groups()
                texts[kind, int(number)] = f"train/{kind}/{name}", stream.read().decode("utf-8")
            elif member.name in {"aclImdb/train/urls_neg.txt", "aclImdb/train/urls_pos.txt"}:
                films[member.name[-7:-4]] = _FILM.findall(stream.read().decode("utf-8"))
    if not texts or set(films) != {"neg", "pos"}:
        raise ValueError(f"{path.name}: not the IMDB archive: no aclImdb/train/{{neg,pos}} or no url lists")
    return [
        Review(name, films[kind][number], clean(text), POSITIVE if kind == "pos" else NEGATIVE)
        for (kind, number), (name, text) in sorted(texts.items())
    ]


def hold_out(reviews: Sequence[Review], *, count: int, seed: int) -> tuple[list[Review], list[Review]]:
    """(training, validation): films drawn at random, whole, until at least ``count`` reviews are held out.

    Reviews of one film share names and often opinions, so a film must not stand on both sides.
    """
    films = sorted({review.film for review in reviews})
    sizes: dict[str, int] = dict.fromkeys(films, 0)
    for review in reviews:
        sizes[review.film] += 1
    held: set[str] = set()
    held_count = 0
    order: list[int] = np.random.default_rng(seed).permutation(len(films)).tolist()
    for position in order:
        if held_count >= count:
            break
        held.add(films[position])
        held_count += sizes[films[position]]
    train = [review for review in reviews if review.film not in held]
    return train, [review for review in reviews if review.film in held]


def read_sst(split: str) -> list[Phrase]:
    """Every phrase of every tree of ``"train"`` or ``"dev"``, sentences included, in tree order."""
    local = locate(f"sst/trees/{split}.txt.xz")
    text = read_text(local) if local is not None else read_sst_archive(fetch(SST), split)
    return [phrase for line in text.split("\n") if line for phrase in phrases_of(line)]


def read_sst_archive(path: Path, split: str) -> str:
    """The trees of one split out of ``trainDevTestTrees_PTB.zip``, one a line."""
    with zipfile.ZipFile(path) as archive, archive.open(f"trees/{split}.txt") as file:
        return io.TextIOWrapper(file, encoding="utf-8", newline="\n").read()


def phrases_of(tree: str) -> Iterator[Phrase]:
    """All phrases of one tree such as ``(3 (2 A) (3 (3 fine) (2 film)))``, inner ones first.

    >>> [phrase.text for phrase in phrases_of("(3 (2 A) (3 (3 fine) (2 film)))")]
    ['A', 'fine', 'film', 'fine film', 'A fine film']
    """
    open_nodes: list[tuple[int, list[str]]] = []
    for match in _NODE.finditer(tree):
        score, word = match.groups()
        if score is not None:
            open_nodes.append((int(score), []))
            continue
        value, words = open_nodes.pop()
        if word is not None:
            words.append(_TREE_TOKENS.get(word, _TREE_ESCAPE.sub("", word)))
        if open_nodes:
            open_nodes[-1][1].extend(words)
        yield Phrase(" ".join(words), value, root=not open_nodes)


def binary(phrases: Sequence[Phrase], *, roots_only: bool) -> list[tuple[str, int]]:
    """SST-2: distinct texts with label 0 or 1, the neutral ones dropped; ``roots_only`` keeps every sentence."""
    pairs = [
        (phrase.text, POSITIVE if phrase.score > _NEUTRAL else NEGATIVE)
        for phrase in phrases
        if phrase.score != _NEUTRAL and (phrase.root or not roots_only)
    ]
    return pairs if roots_only else list(dict(pairs).items())


@dataclass(frozen=True, slots=True)
class Example:
    """Word indices of shape (T,) and the label."""

    words: npt.NDArray[np.int64]
    label: int
