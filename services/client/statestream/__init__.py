"""Statestream: clients for its services, blocking and for asyncio.

The generated messages and stubs are beside this, in `statestream.<package>.v1`; the client needs none of them known.
"""

from typing import TYPE_CHECKING

from statestream import errors
from statestream._client import AsyncClient
from statestream._export import Exported, ModelOptions, adopt, export
from statestream._export import exporter as _exporter
from statestream._inference import AsyncInferenceStream, Inference, InferenceStream, InferenceUpdate
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

if TYPE_CHECKING:

    class ExportError(Exception):
        """A network or file cannot be served as a stream, or an argument is wrong; the message says why, and where."""

else:

    def __getattr__(name: str) -> object:
        # The class is the exporter's, which the client does not import before it is asked for it: see _export.
        if name == "ExportError":
            return _exporter("errors").ExportError
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "AsyncClient",
    "AsyncInferenceStream",
    "AsyncSentimentStream",
    "Client",
    "Durability",
    "ExportError",
    "Exported",
    "Inference",
    "InferenceStream",
    "InferenceUpdate",
    "Label",
    "ModelOptions",
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
    "adopt",
    "errors",
    "export",
]
