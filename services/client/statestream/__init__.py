"""Statestream: clients for its services, blocking and for asyncio.

The generated messages and stubs are beside this, in `statestream.<package>.v1`; the client needs none of them known.
"""

from statestream import errors
from statestream._client import AsyncClient
from statestream._replay import ReplayBounds
from statestream._retry import RetryPolicy, Timing
from statestream._sentiment import AsyncSentimentStream, Label, Sentiment, SentimentStream, SentimentUpdate
from statestream._sync import Client
from statestream._types import (
    Durability,
    ModelVersion,
    ReplyHeader,
    ReplyWarning,
    Sequence,
    SequenceStatus,
    StreamStats,
)
from statestream.errors import StatestreamError

__all__ = [
    "AsyncClient",
    "AsyncSentimentStream",
    "Client",
    "Durability",
    "Label",
    "ModelVersion",
    "ReplayBounds",
    "ReplyHeader",
    "ReplyWarning",
    "RetryPolicy",
    "Sentiment",
    "SentimentStream",
    "SentimentUpdate",
    "Sequence",
    "SequenceStatus",
    "StatestreamError",
    "StreamStats",
    "Timing",
    "errors",
]
