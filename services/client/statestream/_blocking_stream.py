"""The stream of the blocking client: that of asyncio, waited for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, Self

from statestream._wire import PieceT, UpdateT

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from types import TracebackType

    from statestream._portal import Portal
    from statestream._stream import AsyncStepStream
    from statestream._types import StreamStats


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

    @property
    def stats(self) -> StreamStats:
        """As `AsyncStepStream.stats`."""
        return self._inner.stats

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
