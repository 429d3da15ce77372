from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.sentiment.features import (
    RUN_CHARS_MAX,
    UNKNOWN,
    OpenText,
    TextEncodingError,
    Vocabulary,
    advance,
    words_of,
)

WORDS = ["the", "film", "is", "n't", "do", "good", "\u00e9t\u00e9", "!", "...", '"', "it", "'s", "a" * RUN_CHARS_MAX]
VOCABULARY = Vocabulary(WORDS)

# Texts that look like texts, with what is hard about them: wide characters, apostrophes, long runs, odd spaces.
texts = st.text(
    st.one_of(
        st.sampled_from(list("aben't's \n\t.!'\"`_")),
        st.sampled_from(["\u00e9", "\u2019", "\u201c", "\u4e2d", "\U0001f600", "\u0085", "\u00a0", "\u0301", "\ufdfa"]),
        st.characters(exclude_categories=["Cs"]),
    ),
    max_size=200,
)


def read(pieces: list[bytes]) -> list[int]:
    state, found = OpenText(), list[int]()
    for at, piece in enumerate(pieces):
        indices, state = advance(VOCABULARY, state, piece, final=at == len(pieces) - 1)
        found += indices.tolist()
    assert state == OpenText()
    return found


@given(text=texts, data=st.data())
def test_cutting_the_bytes_anywhere_changes_nothing(text: str, data: st.DataObject) -> None:
    """The words of a text do not depend on the pieces it came in, inside characters too."""
    raw = text.encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(raw)), max_size=8)))
    pieces = [raw[a:b] for a, b in zip([0, *cuts], [*cuts, len(raw)], strict=True)]
    assert read(pieces) == read([raw]) == VOCABULARY.indices(words_of(text)).tolist()


@given(text=texts)
def test_byte_by_byte_is_whole(text: str) -> None:
    """The finest cut of all gives the same words."""
    raw = text.encode()
    assert read([raw[i : i + 1] for i in range(len(raw))] or [b""]) == read([raw])


@given(text=texts)
def test_what_is_held_open_is_bounded(text: str) -> None:
    """No text makes the carry grow: at most three bytes and less than one run."""
    _, state = advance(VOCABULARY, OpenText(), text.encode() + b"\xf0\x9f\x98", final=False)
    assert len(state.partial) <= 3
    assert len(state.run) < RUN_CHARS_MAX


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", []),
        (" \n ", []),
        ("It's GOOD!", ["it", "'s", "good", "!"]),
        ("Don\u2019t", ["do", "n't"]),
        ("it 's n't", ["it", "'s", "n't"]),
        ("so... well", ["so", "...", "well"]),
        ("``Brazil''", ['"', "brazil", '"']),
        ("\u201cBrazil\u201d", ['"', "brazil", '"']),
        ("_very_ 8/10", ["very", "8", "/", "10"]),
        ("\uff26\uff49\uff4c\uff4d", ["film"]),
        ("cant't", ["cant", "'", "t"]),
    ],
)
def test_words(text: str, words: list[str]) -> None:
    """Treebank words in lower case, whatever quotes and widths the writer used."""
    assert words_of(text) == words


def test_a_long_run_is_cut() -> None:
    """White space is not needed to make progress."""
    assert words_of("a" * (2 * RUN_CHARS_MAX + 1)) == ["a" * RUN_CHARS_MAX] * 2 + ["a"]


@pytest.mark.parametrize(
    ("partial", "piece", "final", "offset"),
    [(b"", b"ab\xff", False, 2), (b"\xc3", b"x", False, 0), (b"", b"ab\xc3", True, 2), (b"\xc3", b"", True, 0)],
)
def test_what_is_not_utf8_is_refused(partial: bytes, piece: bytes, final: bool, offset: int) -> None:  # noqa: FBT001
    """The error tells where in this piece; a half character is an error only at the very end."""
    with pytest.raises(TextEncodingError) as caught:
        advance(VOCABULARY, OpenText(partial), piece, final=final)
    assert caught.value.offset == offset


def test_vocabulary_round_trip(tmp_path: Path) -> None:
    """What is saved is loaded, accents included; unknown words share one index."""
    VOCABULARY.save(tmp_path / "v.json")
    loaded = Vocabulary.load(tmp_path / "v.json")
    assert len(loaded) == len(VOCABULARY) == len(WORDS) + 1
    assert loaded.indices([*WORDS, "unseen"]).tolist() == [*range(1, len(WORDS) + 1), UNKNOWN]


def test_vocabulary_keeps_the_most_frequent_words() -> None:
    """Ties go by the alphabet, so the order of the texts does not matter; rare words are left out."""
    built = Vocabulary.build([["b", "a", "c"], ["a", "b", "d", "d", "d"]], size=3, count_min=2)
    assert built.indices(["d", "a", "b", "c"]).tolist() == [1, 2, UNKNOWN, UNKNOWN]


def test_a_vocabulary_has_each_word_once() -> None:
    """Two rows for one word would make one of them dead weight, and the file is not to be trusted."""
    with pytest.raises(ValueError, match="twice"):
        Vocabulary(["a", "a"])
