"""A sequence as a stream of numbered steps that survives the loss of its connection; the same for every task."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Protocol, Self, TypeVar

from grpc import StatusCode, aio

from statestream._channel import grpc_errors
from statestream._retry import with_retries
from statestream._types import Durability, SequenceStatus
from statestream.common.v1.sequence_pb2 import SequenceConfig, StepControl
from statestream.errors import DeadlineExceeded, SequenceEnded, StatestreamError, StepConflict, Unavailable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Iterator
    from types import TracebackType

    from statestream._channel import Connection
    from statestream._portal import Portal
    from statestream._sequences import AsyncSequences
    from statestream._types import ReplyHeader

_HALF_CLOSE_S = 1.0
"""How long leaving waits for the server to close its side, before the call is cancelled."""


class Update(Protocol):
    """A reply to one step."""

    @property
    def header(self) -> ReplyHeader:
        """Where the sequence stands after the step."""
        ...


PieceT = TypeVar("PieceT")
PieceT_contra = TypeVar("PieceT_contra", contravariant=True)
UpdateT = TypeVar("UpdateT", bound=Update)
UpdateT_co = TypeVar("UpdateT_co", bound=Update, covariant=True)

Call = aio.StreamStreamCall[Any, Any]


class Wire(Protocol[PieceT_contra, UpdateT_co]):
    """How one task puts its steps into messages."""

    @property
    def model(self) -> str:
        """Name of the model that the sequences run on."""
        ...

    def open(self) -> Call:
        """A new streaming call."""
        ...

    def config(self, config: SequenceConfig) -> Any:  # noqa: ANN401 - the messages of a call are its task's own
        """The first message of a call."""
        ...

    def piece(self, piece: PieceT_contra | None, control: StepControl) -> Any:  # noqa: ANN401
        """A step; `piece` None is the empty one, which may only end the sequence.

        Raises:
            InvalidInput: the piece cannot be put into a message.
        """
        ...

    def update(self, response: Any) -> UpdateT_co:  # noqa: ANN401
        """A reply as a plain value."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamOptions:
    """How a stream takes up its sequence; see `AsyncSentimentPart.stream` for the meaning of each."""

    sequence_id: str | None = None
    resume: bool = False
    durability: Durability = Durability.DEFAULT
    model_version: str = ""
    timeout_s: float | None = None

    def __post_init__(self) -> None:
        if self.resume and not self.sequence_id:
            raise ValueError("resume: needs the sequence_id to resume")


class AsyncStepStream(Generic[PieceT, UpdateT]):
    """Sends the pieces of one sequence and returns the reply to each; use it as an async context manager.

    Every step carries its number, and the first one a key that tells its repeat from another start. So when the
    connection breaks, the step whose reply is missing is sent again on a new one, to whatever replica answers there,
    and is applied exactly once. A step that has raised is not taken: the next `send` uses its number again.

    A sequence that the caller gave no name is ended when the context is left without an exception; a named one goes
    on, unless it was ended, and can be resumed.
    """

    def __init__(
        self,
        connection: Connection,
        sequences: AsyncSequences,
        wire: Wire[PieceT, UpdateT],
        options: StreamOptions,
    ) -> None:
        self._connection = connection
        self._sequences = sequences
        self._wire = wire
        self._options = options
        self._sequence_id = options.sequence_id or uuid.uuid4().hex
        self._start_key = uuid.uuid4().hex
        self._next_step = 0
        self._epoch: int | None = None
        self._last: UpdateT | None = None
        self._ended = False
        self._entered = False
        self._call: Call | None = None
        self._turn = asyncio.Lock()

    @property
    def sequence_id(self) -> str:
        """Name of the sequence; with it another stream can resume."""
        return self._sequence_id

    @property
    def next_step(self) -> int:
        """Number of the step that the next `send` takes."""
        return self._next_step

    @property
    def ended(self) -> bool:
        """True once the sequence has taken its last step."""
        return self._ended

    @property
    def last(self) -> UpdateT | None:
        """The latest reply; None before the first."""
        return self._last

    async def send(self, piece: PieceT, *, end: bool = False, timeout_s: float | None = None) -> UpdateT:
        """Takes one step and returns its reply; calls made at the same time take their turns.

        Args:
            piece: what the step reads.
            end: makes it the last step; the server drops the state.
            timeout_s: seconds for this step, repeats and waits included; None: the stream's.

        Raises:
            SequenceEnded: the sequence has taken its last step.
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
        """Looks up where the sequence stands, if it is to be resumed; else nothing is sent yet.

        Raises:
            SequenceEnded: the sequence to resume has taken its last step.
            StatestreamError: it cannot be found, or the server cannot be asked.
        """
        if self._options.resume:
            found = await self._sequences.get(self._wire.model, self._sequence_id, timeout_s=self._options.timeout_s)
            if found.status is SequenceStatus.ENDED:
                raise SequenceEnded("the sequence to resume has taken its last step")
            self._next_step, self._epoch = found.next_step, found.epoch
        self._entered = True
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends an unnamed sequence, if left without an exception; closes the call in any case."""
        if kind is None:
            unnamed = self._options.sequence_id is None
            if unnamed and self._last is not None and not self._ended and not self._connection.closed:
                # Nobody will come back to it. If it cannot be ended now, the server drops it when it has been idle.
                with contextlib.suppress(StatestreamError):
                    await self.end()
            await self._half_close()
        self._entered = False
        self._drop_call()

    async def _take(self, piece: PieceT | None, *, end: bool, timeout_s: float | None) -> UpdateT:
        async with self._turn:
            if not self._entered:
                raise RuntimeError("a stream sends only inside its `with` block")
            if self._ended:
                raise SequenceEnded("the sequence has taken its last step")
            step = self._next_step
            request = self._wire.piece(piece, StepControl(step=step, end=end))
            if self._call is not None and self._call.done():
                # It broke while no step was under way: whatever its status, it says nothing about this step.
                self._call = None
            update = await with_retries(
                lambda left_s: self._attempt(request, left_s),
                timeout_s=self._connection.seconds(self._options.timeout_s if timeout_s is None else timeout_s),
                policy=self._connection.policy,
                timing=self._connection.timing,
            )
            self._check(update.header, step)
            self._next_step, self._epoch, self._last = step + 1, update.header.epoch, update
            self._ended = update.header.ended
            return update

    async def _attempt(self, request: Any, left_s: float) -> UpdateT:  # noqa: ANN401 - a message of the task
        try:
            async with asyncio.timeout(left_s):
                with grpc_errors():
                    return self._wire.update(await self._exchange(request))
        except TimeoutError as error:
            self._drop_call()
            raise DeadlineExceeded("no reply to the step within its time") from error
        except BaseException:
            # A reply that comes later must not be taken for that of another step.
            self._drop_call()
            raise

    async def _exchange(self, request: Any) -> Any:  # noqa: ANN401 - messages of the task
        call, is_new = self._call, self._call is None
        if call is None:
            call = self._call = self._wire.open()
        try:
            if is_new:
                await call.write(self._wire.config(self._config()))
            await call.write(request)
        except asyncio.InvalidStateError:
            pass  # the call is over, and a write does not say why; reading tells
        except aio.AioRpcError as error:
            if error.code() is not StatusCode.INTERNAL or error.trailing_metadata():
                raise
            # So grpc.aio tells that a message could not be sent, before it knows why: the connection is lost.
            raise Unavailable("the connection broke while the step was sent") from error
        reply = await call.read()
        if reply is aio.EOF:
            raise Unavailable("the server closed the stream before it replied")
        return reply

    def _config(self) -> SequenceConfig:
        # Until the first reply is here the start is repeated, with its key; after it the sequence is known to exist.
        start = self._epoch is None
        options = self._options
        return SequenceConfig(
            sequence_id=self._sequence_id,
            start=start,
            start_key=self._start_key if start else "",
            durability=options.durability.value if start else Durability.DEFAULT.value,
            model_version=options.model_version if start else "",
        )

    def _check(self, header: ReplyHeader, step: int) -> None:
        if header.step != step:
            self._drop_call()
            raise StatestreamError(f"the server answered step {header.step}, asked was {step}")
        if self._epoch not in (None, header.epoch):
            self._drop_call()
            raise StepConflict("the sequence was started anew by another client")

    async def _half_close(self) -> None:
        """Lets the server finish its side, so that it does not take the end of the stream for a lost client."""
        call = self._call
        if call is None or call.done():
            return
        with contextlib.suppress(TimeoutError, StatestreamError, asyncio.InvalidStateError):
            async with asyncio.timeout(_HALF_CLOSE_S):
                with grpc_errors():
                    await call.done_writing()
                    while await call.read() is not aio.EOF:
                        pass

    def _drop_call(self) -> None:
        call, self._call = self._call, None
        if call is not None:
            call.cancel()


async def _as_async(pieces: AsyncIterable[PieceT] | Iterable[PieceT]) -> AsyncIterator[PieceT]:
    if isinstance(pieces, AsyncIterable):
        async for piece in pieces:
            yield piece
    else:
        for piece in pieces:
            yield piece


class StepStream(Generic[PieceT, UpdateT]):
    """As `AsyncStepStream`, for blocking code: a context manager whose calls block until they are answered."""

    def __init__(self, portal: Portal, inner: AsyncStepStream[PieceT, UpdateT]) -> None:
        self._portal = portal
        self._inner = inner

    @property
    def sequence_id(self) -> str:
        """As `AsyncStepStream.sequence_id`."""
        return self._inner.sequence_id

    @property
    def next_step(self) -> int:
        """As `AsyncStepStream.next_step`."""
        return self._inner.next_step

    @property
    def ended(self) -> bool:
        """As `AsyncStepStream.ended`."""
        return self._inner.ended

    @property
    def last(self) -> UpdateT | None:
        """As `AsyncStepStream.last`."""
        return self._inner.last

    def send(self, piece: PieceT, *, end: bool = False, timeout_s: float | None = None) -> UpdateT:
        """As `AsyncStepStream.send`."""
        return self._portal.run(self._inner.send(piece, end=end, timeout_s=timeout_s))

    def end(self, *, timeout_s: float | None = None) -> UpdateT:
        """As `AsyncStepStream.end`."""
        return self._portal.run(self._inner.end(timeout_s=timeout_s))

    def replies(self, pieces: Iterable[PieceT], *, end: bool) -> Iterator[UpdateT]:
        """As `AsyncStepStream.replies`; `pieces` is read in the caller's thread."""
        for piece in pieces:
            yield self.send(piece)
        if end:
            yield self.end()

    def __enter__(self) -> Self:
        self._portal.run(self._inner.__aenter__())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._portal.run(self._inner.__aexit__(kind, error, trace))
