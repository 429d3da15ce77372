"""The sentiment task: its values, its messages, and its two calls. Another task adds one file like this."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from statestream._blocking_stream import StepStream
from statestream._stream import AsyncStepStream
from statestream._types import Durability, ModelVersion, ReplyHeader, reply_header
from statestream._types import model_version as _model_version
from statestream._wire import StreamOptions
from statestream.errors import InvalidInput
from statestream.sentiment.v1 import sentiment_pb2 as wire
from statestream.sentiment.v1.sentiment_service_pb2_grpc import SentimentServiceStub

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator

    from statestream._channel import Connection
    from statestream._portal import Portal
    from statestream._replay import ReplayBounds
    from statestream._wire import Call
    from statestream.common.v1 import sequence_pb2
    from statestream.common.v1.sequence_pb2 import SequenceConfig, StepControl
    from statestream.sentiment.v1.sentiment_service_pb2_grpc import SentimentServiceAsyncStub


class Label(enum.StrEnum):
    """The sentiment with the higher probability."""

    UNDECIDED = "undecided"
    """No word has been read yet."""
    NEGATIVE = "negative"
    POSITIVE = "positive"


@dataclass(frozen=True, slots=True)
class Sentiment:
    """Sentiment of a text, or of the part of it that has been read so far.

    Attributes:
        label: the more likely one.
        positive_probability: in [0, 1]; 0.5 before the first word.
        word_count: words and punctuation marks read so far.
        model: what computed it.
    """

    label: Label
    positive_probability: float
    word_count: int
    model: ModelVersion


@dataclass(frozen=True, slots=True)
class SentimentUpdate:
    """The reply to one piece of a text.

    Attributes:
        sentiment: of everything read so far; a word counts when white space, or the end, has closed it.
        final: True on the reply to the last piece.
        header: where the sequence stands.
    """

    sentiment: Sentiment
    final: bool
    header: ReplyHeader


class AsyncSentimentStream(AsyncStepStream[str | bytes, SentimentUpdate]):
    """A text that arrives in pieces, from `AsyncClient.sentiment.stream`; bytes may be cut inside a character."""


class SentimentStream(StepStream[str | bytes, SentimentUpdate]):
    """A text that arrives in pieces, from `Client.sentiment.stream`; bytes may be cut inside a character."""


_LABELS = {wire.LABEL_NEGATIVE: Label.NEGATIVE, wire.LABEL_POSITIVE: Label.POSITIVE}


def _sentiment(message: wire.Sentiment, model: ModelVersion) -> Sentiment:
    label = _LABELS.get(message.label, Label.UNDECIDED)
    return Sentiment(label, message.positive_probability, message.word_count, model)


class _Wire:
    """The messages of `StreamingClassify`."""

    def __init__(self, stub: SentimentServiceAsyncStub) -> None:
        self._stub = stub

    def open(self) -> Call:
        return self._stub.StreamingClassify()

    def config(self, config: SequenceConfig) -> wire.StreamingClassifyRequest:
        return wire.StreamingClassifyRequest(config=config)

    def piece(self, piece: str | bytes | None, control: StepControl) -> wire.StreamingClassifyRequest:
        if isinstance(piece, bytes):
            content = wire.TextPiece(control=control, utf8=piece)
        else:
            try:
                content = wire.TextPiece(control=control, text=piece or "")
            except UnicodeEncodeError:
                raise InvalidInput("holds half of a surrogate pair", field="piece.text") from None
        return wire.StreamingClassifyRequest(piece=content)

    def header(self, response: wire.StreamingClassifyResponse) -> sequence_pb2.ReplyHeader:
        return response.header

    def update(self, response: wire.StreamingClassifyResponse) -> SentimentUpdate:
        header = reply_header(response.header)
        return SentimentUpdate(_sentiment(response.sentiment, header.model), response.final, header)


class AsyncSentimentPart:
    """Tells whether a text is positive or negative, as a whole or while it is being written."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    @cached_property
    def _stub(self) -> SentimentServiceAsyncStub:
        return SentimentServiceStub(self._connection.channel)

    async def classify(
        self, texts: Iterable[str], *, model_version: str = "", timeout_s: float | None = None
    ) -> list[Sentiment]:
        """The sentiment of each text, in their order.

        Args:
            texts: 1 to 256 texts, each judged on its own.
            model_version: of the model; empty: the newest.
            timeout_s: seconds for all attempts together; None: the client's.

        Raises:
            InvalidInput: a text is empty or too long, or there are too many.
            StatestreamError: see `statestream.errors`.
        """
        if isinstance(texts, str | bytes):
            raise TypeError("texts: must be several texts, such as a list of one")
        try:
            request = wire.ClassifyRequest(texts=texts, model_version=model_version)
        except UnicodeEncodeError:
            raise InvalidInput("holds half of a surrogate pair", field="texts") from None
        response = await self._connection.unary(self._stub.Classify, request, timeout_s=timeout_s)
        model = _model_version(response.model)
        return [_sentiment(result, model) for result in response.results]

    def stream(
        self,
        sequence_id: str | None = None,
        *,
        resume: bool = False,
        durability: Durability = Durability.DEFAULT,
        model_version: str = "",
        replay: ReplayBounds | None = None,
        timeout_s: float | None = None,
    ) -> AsyncSentimentStream:
        """A text that arrives in pieces, as an async context manager; see `AsyncStepStream`.

        Args:
            sequence_id: name of the sequence, 1 to 128 characters; None makes one, and leaving the context ends it.
            resume: goes on with the sequence of that name from wherever it stands, and any other stream on it does not;
                False starts it anew, in place of a live one of the same name.
            durability: of the sequence; counts only where it starts.
            model_version: of the model; empty: the newest. Counts only where the sequence starts.
            replay: how much is kept in order to send it again; None: the client's.
            timeout_s: seconds for each step, repeats and waits included; None: the client's.
        """
        options = StreamOptions(
            sequence_id=sequence_id,
            resume=resume,
            durability=durability,
            model_version=model_version,
            replay=replay,
            timeout_s=timeout_s,
        )
        return AsyncSentimentStream(self._connection, _Wire(self._stub), options)

    async def classify_stream(
        self,
        pieces: AsyncIterable[str | bytes] | Iterable[str | bytes],
        *,
        sequence_id: str | None = None,
        resume: bool = False,
        end: bool = True,
        durability: Durability = Durability.DEFAULT,
        model_version: str = "",
        timeout_s: float | None = None,
    ) -> AsyncIterator[SentimentUpdate]:
        """The reply to each piece as soon as it is there, then, with `end`, the final one.

        There is one update more than there are pieces where `end` is true: the text is over only when `pieces` is.
        The other arguments are those of `stream`, whose errors are raised.
        """
        _refuse_one_text(pieces)
        stream = self.stream(
            sequence_id, resume=resume, durability=durability, model_version=model_version, timeout_s=timeout_s
        )
        async with stream:
            async for update in stream.replies(pieces, end=end):
                yield update


class SentimentPart:
    """Tells whether a text is positive or negative; each call blocks until it is answered."""

    def __init__(self, portal: Portal, inner: AsyncSentimentPart) -> None:
        self._portal = portal
        self._inner = inner

    def classify(
        self, texts: Iterable[str], *, model_version: str = "", timeout_s: float | None = None
    ) -> list[Sentiment]:
        """As `AsyncSentimentPart.classify`."""
        return self._portal.run(self._inner.classify(texts, model_version=model_version, timeout_s=timeout_s))

    def stream(
        self,
        sequence_id: str | None = None,
        *,
        resume: bool = False,
        durability: Durability = Durability.DEFAULT,
        model_version: str = "",
        replay: ReplayBounds | None = None,
        timeout_s: float | None = None,
    ) -> SentimentStream:
        """As `AsyncSentimentPart.stream`, as a plain context manager."""

        async def make() -> AsyncSentimentStream:
            # On the loop, because gRPC binds a channel to the one that runs.
            return self._inner.stream(
                sequence_id,
                resume=resume,
                durability=durability,
                model_version=model_version,
                replay=replay,
                timeout_s=timeout_s,
            )

        return SentimentStream(self._portal, self._portal.run(make()))

    def classify_stream(
        self,
        pieces: Iterable[str | bytes],
        *,
        sequence_id: str | None = None,
        resume: bool = False,
        end: bool = True,
        durability: Durability = Durability.DEFAULT,
        model_version: str = "",
        timeout_s: float | None = None,
    ) -> Iterator[SentimentUpdate]:
        """As `AsyncSentimentPart.classify_stream`; `pieces` is read in the caller's thread."""
        _refuse_one_text(pieces)
        stream = self.stream(
            sequence_id, resume=resume, durability=durability, model_version=model_version, timeout_s=timeout_s
        )
        with stream:
            yield from stream.replies(pieces, end=end)


def _refuse_one_text(pieces: object) -> None:
    # A text is an iterable of its characters: each would become a step.
    if isinstance(pieces, str | bytes):
        raise TypeError("pieces: must be several pieces, such as a list of one")
