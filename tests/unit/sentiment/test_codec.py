"""The codec: pure, strict at the door, and blind to where a text is cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from statestream.common.v1 import sequence_pb2
from statestream.sentiment.v1 import sentiment_pb2

from models.sentiment.features import OpenText, Vocabulary
from services.runtime.core.errors import InvalidInput
from services.sentiment import codec
from services.sentiment.limits import PIECE_BYTES_MAX, TEXT_BYTES_MAX, TEXTS_MAX

VOCABULARY = Vocabulary(["good", "bad", "."])


def piece(text: str | None = None, utf8: bytes | None = None, *, end: bool = False) -> tuple[codec.Piece, bytes]:
    control = sequence_pb2.StepControl(end=end)
    message = sentiment_pb2.TextPiece(control=control)
    if text is not None:
        message.text = text
    if utf8 is not None:
        message.utf8 = utf8
    return codec.parse_piece(sentiment_pb2.StreamingClassifyRequest(piece=message))


@given(
    st.integers(0, 2**63),
    st.tuples(st.floats(width=32, allow_nan=False), st.floats(width=32, allow_nan=False)),
    st.binary(max_size=3),
    st.text(max_size=64),
)
def test_the_carry_survives_packing(words: int, logits: tuple[float, float], partial: bytes, run: str) -> None:
    """Every bit of it: logits are float32 and stay so."""
    carry = codec.TextCarry(words, logits, OpenText(partial, run))
    assert codec.unpack_carry(codec.pack_carry(carry)) == carry


def test_no_carry_is_a_beginning() -> None:
    """A new sequence starts with nothing read."""
    assert codec.unpack_carry(b"") == codec.TextCarry()


def test_text_and_bytes_are_the_same_piece() -> None:
    """A retry may come in either form: the content is what counts."""
    assert piece("déjà")[1] == piece(utf8="déjà".encode())[1]


@pytest.mark.parametrize("empty", [{}, {"text": ""}, {"utf8": b""}])
def test_an_empty_piece_must_end_something(empty: dict[str, str | bytes]) -> None:
    """It would change nothing, so it is an error; with `end` it is the end."""
    with pytest.raises(InvalidInput) as caught:
        piece(**empty)  # type: ignore[arg-type]
    assert caught.value.field is not None
    assert caught.value.field.startswith("piece.")
    assert piece(**empty, end=True)[0].end  # type: ignore[arg-type]


def test_a_piece_has_a_bound() -> None:
    """In bytes, whatever the form."""
    assert len(piece("a" * PIECE_BYTES_MAX)[1]) == PIECE_BYTES_MAX
    with pytest.raises(InvalidInput, match=r"piece\.text"):
        piece("é" * PIECE_BYTES_MAX)
    with pytest.raises(InvalidInput, match=r"piece\.utf8"):
        piece(utf8=b"a" * (PIECE_BYTES_MAX + 1))


@pytest.mark.parametrize(
    ("texts", "field"),
    [
        ([], "texts"),
        (["good"] * (TEXTS_MAX + 1), "texts"),
        (["good", " \n"], "texts[1]"),
        (["good", "a" * (TEXT_BYTES_MAX + 1)], "texts[1]"),
        (["é" * (TEXT_BYTES_MAX // 2 + 1)], "texts[0]"),
    ],
)
def test_bad_texts_are_named(texts: list[str], field: str) -> None:
    """The error says which text, and never what it holds."""
    with pytest.raises(InvalidInput) as caught:
        codec.parse_texts(sentiment_pb2.ClassifyRequest(texts=texts), VOCABULARY)
    assert caught.value.field == field
    assert "good" not in caught.value.message


def test_texts_become_indices() -> None:
    """Known words by their number, all others as 0."""
    parsed = codec.parse_texts(sentiment_pb2.ClassifyRequest(texts=["Good.", "odd bad"]), VOCABULARY)
    assert [indices.tolist() for indices in parsed] == [[1, 3], [0, 2]]


def test_chunks_cover_the_text() -> None:
    """Every timestep once, in order, no chunk over the bound, none for nothing."""
    indices = VOCABULARY.indices(["good"] * 10)
    cut = list(codec.chunks(indices, 4))
    assert [len(chunk) for chunk in cut] == [4, 4, 2]
    assert list(codec.chunks(indices[:0], 4)) == []


@pytest.mark.parametrize("margin", [-2000.0, -1.0, 0.5, 2000.0])
def test_probabilities_are_probabilities(margin: float) -> None:
    """In [0, 1] however far the logits are apart, and on the side that the label says."""
    result = codec.sentiment((0.0, margin), 5)
    assert 0 <= result.positive_probability <= 1
    assert (result.label == sentiment_pb2.LABEL_POSITIVE) == (margin > 0)
    assert (result.positive_probability > 0.5) == (margin > 0)


def test_before_the_first_word_nothing_is_said() -> None:
    """No label, and a probability of one half."""
    result = codec.sentiment((0.0, 0.0), 0)
    assert result.label == sentiment_pb2.LABEL_UNSPECIFIED
    assert result.positive_probability == 0.5
