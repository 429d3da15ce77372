"""A sequence as a stream of numbered steps that survives the loss of its connection; the same for every task."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterable
from typing import TYPE_CHECKING, Generic, Self, TypeVar

from statestream._link import Link, Pending, buffer_full
from statestream._retry import is_retryable, with_retries
from statestream._wire import PieceT, StreamOptions, UpdateT
from statestream.common.v1.sequence_pb2 import StepControl
from statestream.errors import (
    CallCancelled,
    DeadlineExceeded,
    SequenceEnded,
    SequenceNotFound,
    StatestreamError,
    StepOutOfOrder,
    Unavailable,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
    from types import TracebackType

    from statestream._channel import Connection
    from statestream._types import StreamStats
    from statestream._wire import Wire

R = TypeVar("R")


class AsyncStepStream(Generic[PieceT, UpdateT]):
    """Sends the pieces of one sequence and returns the reply to each; use it as an async context manager.

    Every step carries its number, and the first one a key that tells its repeat from another start. When the connection
    breaks, the sequence is resumed on a new one, at whatever replica answers there: steps that were answered but not
    committed are sent again, then the step whose reply is missing. Each is applied exactly once. A step that has raised
    is not taken: the next `send` uses its number again.

    A sequence that the caller gave no name is ended when the context is left without an exception; a named one goes
    on, unless it was ended, and can be resumed. All its steps are committed when the context has been left without an
    exception.
    """

    def __init__(self, connection: Connection, wire: Wire[PieceT, UpdateT], options: StreamOptions) -> None:
        unique = connection.timing.unique
        self._connection = connection
        self._wire = wire
        self._options = options
        self._sequence_id = options.sequence_id or unique()
        self._link = Link(wire, options, self._sequence_id, options.replay or connection.replay, unique)
        self._last: UpdateT | None = None
        self._ended = False
        self._entered = False
        self._turn = asyncio.Lock()

    @property
    def sequence_id(self) -> str:
        """Name of the sequence; with it another stream can resume."""
        return self._sequence_id

    @property
    def next_step(self) -> int:
        """Number of the step that the next `send` takes."""
        return self._link.buffer.next_step

    @property
    def ended(self) -> bool:
        """True once the sequence has taken its last step."""
        return self._ended

    @property
    def last(self) -> UpdateT | None:
        """The latest reply; None before the first."""
        return self._last

    @property
    def stats(self) -> StreamStats:
        """What has been mended so far."""
        return self._link.stats

    async def send(self, piece: PieceT, *, end: bool = False, timeout_s: float | None = None) -> UpdateT:
        """Takes one step and returns its reply; calls made at the same time take their turns.

        Args:
            piece: what the step reads.
            end: makes it the last step; the server drops the state.
            timeout_s: seconds for this step, repeats, waits and whatever has to be sent again before it included; None:
                the stream's.

        Raises:
            SequenceEnded: the sequence has taken its last step.
            SequenceLost: the store has lost more of the sequence than the stream still holds.
            ReplayBufferFull: the server commits nothing, and the bound of what the stream holds is reached.
            StatestreamError: see `statestream.errors`. The step may then have been applied or not; to send the same
                piece again is always safe.
        """
        return await self._take(piece, end=end, timeout_s=timeout_s)

    async def end(self, *, timeout_s: float | None = None) -> UpdateT:
        """Takes an empty last step and returns the final reply.

        Raises:
            StatestreamError: as `send`.
        """
        return await self._take(None, end=True, timeout_s=timeout_s)

    async def replies(self, pieces: AsyncIterable[PieceT] | Iterable[PieceT], *, end: bool) -> AsyncIterator[UpdateT]:
        """The reply to each piece, as soon as it is there; with `end` also the final reply, to an empty last step.

        Raises:
            StatestreamError: as `send`.
        """
        async for piece in _as_async(pieces):
            yield await self.send(piece)
        if end:
            yield await self.end()

    async def __aenter__(self) -> Self:
        """Takes the sequence up, if it is to be resumed: no other stream goes on then; else nothing is sent yet.

        Raises:
            SequenceEnded: the sequence to resume has taken its last step.
            StatestreamError: it cannot be found, or the server cannot be asked.
        """
        if self._options.resume:
            await self._retried(self._link.take_up, None)
        self._entered = True
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends an unnamed sequence, if left without an exception; closes the call in any case.

        Raises:
            StatestreamError: the context is left without an exception, and the last steps of a named sequence could not
                be committed.
        """
        try:
            if kind is None and not self._connection.closed:
                await self._leave()
        finally:
            self._entered = False
            self._link.drop()

    async def _leave(self) -> None:
        unnamed = self._options.sequence_id is None
        if unnamed and self._last is not None and not self._ended:
            # Nobody will come back to it. If it cannot be ended now, the server drops it when it has been idle.
            with contextlib.suppress(StatestreamError):
                await self.end()
        committed = await self._link.half_close() or not self._link.buffer.uncommitted
        if committed or unnamed or self._ended or self._link.refused:
            return
        self._link.drop()
        # Somebody else has ended it: nothing is left that could be committed.
        with contextlib.suppress(SequenceEnded):
            await self._retried(self._link.settle, None)

    async def _take(self, piece: PieceT | None, *, end: bool, timeout_s: float | None) -> UpdateT:
        async with self._turn:
            if not self._entered:
                raise RuntimeError("a stream sends only inside its `with` block")
            if self._ended:
                raise SequenceEnded("the sequence has taken its last step")
            step = self.next_step
            request = self._wire.piece(piece, StepControl(step=step, end=end))
            pending = Pending(step, request, request.ByteSize(), end)
            try:
                response = await self._retried(lambda: self._link.exchange(pending), timeout_s)
            except Unavailable as error:
                if self._link.buffer.admits(pending.size):
                    raise
                raise buffer_full(self._link.buffer) from error
            update = self._wire.update(response)
            self._last, self._ended = update, update.header.ended
            return update

    async def _retried(self, work: Callable[[], Awaitable[R]], timeout_s: float | None) -> R:
        """The result of `work` on the link, which is tried again where that may help."""

        async def attempt(left_s: float) -> R:
            try:
                async with asyncio.timeout(left_s):
                    return await work()
            except TimeoutError as error:
                self._link.drop()
                raise DeadlineExceeded("no reply to the step within its time") from error
            except BaseException:
                self._link.drop()
                raise

        return await with_retries(
            attempt,
            timeout_s=self._connection.seconds(self._options.timeout_s if timeout_s is None else timeout_s),
            policy=self._connection.policy,
            timing=self._connection.timing,
            retryable=self._may_be_mended,
        )

    def _may_be_mended(self, error: StatestreamError) -> bool:
        if isinstance(error, CallCancelled):
            return not self._connection.closed
        if isinstance(error, StepOutOfOrder | SequenceNotFound):
            # The server has not what it had: to resume tells what is to be sent again.
            return self._link.known
        return is_retryable(error)


async def _as_async(pieces: AsyncIterable[PieceT] | Iterable[PieceT]) -> AsyncIterator[PieceT]:
    if isinstance(pieces, AsyncIterable):
        async for piece in pieces:
            yield piece
    else:
        for piece in pieces:
            yield piece
