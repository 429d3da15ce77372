"""A stream that its user has forgotten: still open somewhere, perhaps on a server that nobody has told of its fate."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from statestream._channel import grpc_errors
from statestream.common.v1.sequence_pb2 import StepControl
from statestream.errors import StatestreamError

if TYPE_CHECKING:
    from statestream import AsyncSentimentStream

_WRITE_S_MAX = 1.0
_WORDS = b"a ghost has written this "


class _ForgottenError(Exception):
    """Why the stream is left: the library then neither ends nor commits anything."""


class Ghost:
    """Sends on the call of a stream after its sequence was resumed elsewhere. What it sends must change nothing.

    It goes past the library, which would have noticed, and resumed the sequence itself.
    """

    def __init__(self, stream: AsyncSentimentStream) -> None:
        self._stream = stream

    @property
    def next_step(self) -> int:
        """Where the sequence stands as far as this stream knows."""
        return self._stream.next_step

    async def send(self, step: int) -> bool:
        """Other words than its user's, as that step; True if they left. Whether they are answered is all the same."""
        call = self._stream._link._call
        if call is None or call.done():
            return False
        message = self._stream._wire.piece(_WORDS, StepControl(step=step))
        with contextlib.suppress(StatestreamError, RuntimeError, asyncio.InvalidStateError, TimeoutError):
            async with asyncio.timeout(_WRITE_S_MAX):
                with grpc_errors():
                    await call.write(message)
                    return True
        return False

    async def close(self) -> None:
        """The process that held it ends."""
        await self._stream.__aexit__(_ForgottenError, _ForgottenError(), None)
