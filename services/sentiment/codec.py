"""Messages of the sentiment service to arrays and back (pure)."""

from __future__ import annotations

import math
import struct
from typing import TYPE_CHECKING, NamedTuple

from statestream.sentiment.v1 import sentiment_pb2

from models.sentiment.features import OpenText, words_of
from services.runtime.core.errors import InvalidInput
from services.sentiment.limits import PIECE_BYTES_MAX, TEXT_BYTES_MAX, TEXTS_MAX

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    import numpy.typing as npt

    from models.sentiment.features import Vocabulary


class Piece(NamedTuple):
    """A checked piece of text; `field` is where it stood in the request."""

    data: bytes
    end: bool
    field: str


class TextCarry(NamedTuple):
    """What a sequence keeps beside the state of the network: the running result and the text still open.

    `logits` are those after the last word, (negative, positive); both 0 before the first.
    """

    word_count: int = 0
    logits: tuple[float, float] = (0.0, 0.0)
    open_text: OpenText = OpenText()


_HEAD = struct.Struct("<QffB")


def pack_carry(carry: TextCarry) -> bytes:
    """Little-endian: word count, logits as float32, length of the partial character, its bytes, the open run."""
    partial, run = carry.open_text.partial, carry.open_text.run
    return _HEAD.pack(carry.word_count, *carry.logits, len(partial)) + partial + run.encode()


def unpack_carry(data: bytes) -> TextCarry:
    """Inverse of `pack_carry`; empty data is a sequence that begins."""
    if not data:
        return TextCarry()
    word_count, negative, positive, partial_bytes = _HEAD.unpack_from(data)
    rest = data[_HEAD.size :]
    open_text = OpenText(rest[:partial_bytes], rest[partial_bytes:].decode())
    return TextCarry(word_count, (negative, positive), open_text)


def owns(data: bytes) -> bool:
    """True for a task part that `pack_carry` made: another service on the same model keeps less."""
    return len(data) >= _HEAD.size


def parse_piece(request: sentiment_pb2.StreamingClassifyRequest) -> tuple[Piece, bytes]:
    """The piece of a request, and the bytes that two requests for the same piece share.

    Raises:
        InvalidInput: neither text nor an end, or too much of it.
    """
    piece = request.piece
    kind = piece.WhichOneof("content")
    data = piece.text.encode() if kind == "text" else piece.utf8
    field = f"piece.{kind or 'text'}"
    if len(data) > PIECE_BYTES_MAX:
        raise InvalidInput(field, f"has {len(data)} bytes, at most {PIECE_BYTES_MAX} are taken")
    if not data and not piece.control.end:
        raise InvalidInput(field, "is empty; only a piece that ends the sequence may be")
    return Piece(data, piece.control.end, field), data


def parse_texts(request: sentiment_pb2.ClassifyRequest, vocabulary: Vocabulary) -> list[npt.NDArray[np.int64]]:
    """Word indices of each text, shape (T,) with T >= 1.

    Raises:
        InvalidInput: no text, too many, one too long or without a word.
    """
    if not 1 <= len(request.texts) <= TEXTS_MAX:
        raise InvalidInput("texts", f"must hold 1 to {TEXTS_MAX} texts, holds {len(request.texts)}")
    parsed: list[npt.NDArray[np.int64]] = []
    for i, text in enumerate(request.texts):
        if len(text) > TEXT_BYTES_MAX or len(text.encode()) > TEXT_BYTES_MAX:
            raise InvalidInput(f"texts[{i}]", f"is longer than {TEXT_BYTES_MAX} bytes")
        words = words_of(text)
        if not words:
            raise InvalidInput(f"texts[{i}]", "holds no word")
        parsed.append(vocabulary.indices(words))
    return parsed


def chunks(indices: npt.NDArray[np.int64], timesteps_max: int) -> Iterator[npt.NDArray[np.int64]]:
    """Cuts (T,) into parts that the model takes; none where T is 0."""
    return (indices[i : i + timesteps_max] for i in range(0, len(indices), timesteps_max))


def sentiment(logits: tuple[float, float], word_count: int) -> sentiment_pb2.Sentiment:
    """The message for a running or final result: the logistic function of the difference of the logits."""
    margin = logits[1] - logits[0]
    positive = 1 / (1 + math.exp(-margin)) if margin >= 0 else math.exp(margin) / (1 + math.exp(margin))
    label = sentiment_pb2.LABEL_POSITIVE if margin > 0 else sentiment_pb2.LABEL_NEGATIVE
    return sentiment_pb2.Sentiment(
        label=label if word_count else sentiment_pb2.LABEL_UNSPECIFIED,
        positive_probability=positive,
        word_count=word_count,
    )
