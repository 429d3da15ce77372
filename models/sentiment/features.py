"""Text to word indices, the same in training and in serving (numpy only).

A text is cut at white space into *runs*; each run becomes words on its own, so the words of a
text never depend on where the text was cut into pieces. What is still open at the end of a
piece, an unfinished run and perhaps half a UTF-8 character, is an :class:`OpenText`.

Words follow the Penn Treebank habit of the SST data (``does n't``, ``it 's``), lower case.
"""

from __future__ import annotations

import codecs
import json
import re
import unicodedata
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

RUN_CHARS_MAX = 64
"""A run without white space is closed after so many characters, which bounds what is held open."""

UNKNOWN = 0
"""Index of every word that the vocabulary does not have."""

_SPACE = re.compile(r"\s")
_PENN_QUOTE = re.compile(r"``|''")
_WORD = re.compile(
    r"""[^\W_]+?(?=n't(?![^\W_]))   # does | n't
      | n't(?![^\W_])
      | '(?:s|m|d|re|ve|ll)(?![^\W_])
      | [^\W_]+
      | \.\.+
      | [^\w\s]
    """,
    re.VERBOSE,
)
_QUOTES = str.maketrans({"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"', "\u0092": "'"})


@dataclass(frozen=True, slots=True)
class OpenText:
    """What the end of one piece leaves for the next: bytes of a character, characters of a run."""

    partial: bytes = b""
    run: str = ""


class TextEncodingError(ValueError):
    """The bytes are not UTF-8; ``offset`` counts from the start of the piece (0 if before it)."""

    def __init__(self, offset: int) -> None:
        super().__init__(f"not UTF-8 at byte {offset}")
        self.offset = offset


def decode(partial: bytes, piece: bytes, *, final: bool) -> tuple[str, bytes]:
    """UTF-8 bytes to text, holding back an incomplete last character unless ``final``.

    Raises:
        TextEncodingError: the bytes cannot begin, or with ``final`` be, UTF-8.
    """
    data = partial + piece
    try:
        text, used = codecs.utf_8_decode(data, "strict", final)
    except UnicodeDecodeError as error:
        raise TextEncodingError(max(0, error.start - len(partial))) from error
    return text, data[used:]


def split_runs(run: str, text: str, *, final: bool) -> tuple[list[str], str]:
    """Closed runs of ``run + text``, and the run still open at its end (empty if ``final``)."""
    *closed, tail = _SPACE.split(run + text)
    runs = [part for whole in closed for part in _bounded(whole)]
    pieces = _bounded(tail)
    if not final and pieces and len(pieces[-1]) < RUN_CHARS_MAX:
        return runs + pieces[:-1], pieces[-1]
    return runs + pieces, ""


def _bounded(run: str) -> list[str]:
    return [run[i : i + RUN_CHARS_MAX] for i in range(0, len(run), RUN_CHARS_MAX)]


@lru_cache(maxsize=65536)
def words_of_run(run: str) -> tuple[str, ...]:
    """The words of one run; empty if it holds none (``"_"``).

    >>> words_of_run("Don't!")
    ('do', "n't", '!')
    """
    plain = unicodedata.normalize("NFKC", run).translate(_QUOTES).lower()
    return tuple(_WORD.findall(_PENN_QUOTE.sub('"', plain)))


def words_of(text: str) -> list[str]:
    """All words of a whole text."""
    return [word for run in split_runs("", text, final=True)[0] for word in words_of_run(run)]


class Vocabulary:
    """Words with indices from 1; index 0 is every other word."""

    def __init__(self, words: Sequence[str]) -> None:
        self._words = tuple(words)
        self._index = {word: i for i, word in enumerate(self._words, start=1)}
        if len(self._index) != len(self._words):
            raise ValueError("vocabulary: a word stands twice")

    def __len__(self) -> int:
        """Rows that an embedding needs: the words and the unknown one."""
        return len(self._words) + 1

    @classmethod
    def build(cls, texts: Iterable[Sequence[str]], *, size: int, count_min: int) -> Vocabulary:
        """The most frequent words of the training texts, ties in alphabetical order."""
        counts: Counter[str] = Counter()
        for words in texts:
            counts.update(words)
        kept = sorted((word for word, n in counts.items() if n >= count_min), key=lambda w: (-counts[w], w))
        return cls(kept[: size - 1])

    @classmethod
    def load(cls, path: Path) -> Vocabulary:
        """Read what :meth:`save` wrote."""
        return cls(json.loads(path.read_text(encoding="utf-8"))["words"])

    def save(self, path: Path) -> None:
        """Write the words, one a line so that a change shows as one, as JSON."""
        path.write_text(json.dumps({"words": self._words}, ensure_ascii=False, indent=0) + "\n", encoding="utf-8")

    def indices(self, words: Iterable[str]) -> npt.NDArray[np.int64]:
        """Shape (T,), int64."""
        get = self._index.get
        return np.fromiter((get(word, UNKNOWN) for word in words), dtype=np.int64)


def advance(
    vocabulary: Vocabulary, open_text: OpenText, piece: bytes, *, final: bool
) -> tuple[npt.NDArray[np.int64], OpenText]:
    """One piece of text: word indices of shape (T,), T >= 0, and what stays open.

    Raises:
        TextEncodingError: the piece is not a continuation in UTF-8.
    """
    text, partial = decode(open_text.partial, piece, final=final)
    runs, run = split_runs(open_text.run, text, final=final)
    words = (word for closed in runs for word in words_of_run(closed))
    return vocabulary.indices(words), OpenText(partial, run)
