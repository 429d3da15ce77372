"""What leaves a connection: all that is sent in one turn of the event loop goes in one write."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Protocol

from services.runtime.rpc import frames

if TYPE_CHECKING:
    from services.runtime.rpc.limits import Limits

JOINED_BYTES_MAX = 128 * 1024
"""Above it pieces are handed to the transport one by one: joining them would cost more."""


class Sender(Protocol):
    """One stream, as far as sending on it goes."""

    stream_id: int
    send_window: int
    room: asyncio.Future[None] | None
    closed: bool

    def opening(self) -> bytes | None:
        """The response's headers, the first time it is asked."""
        ...

    def stalled(self) -> None:
        """The peer has made no room for too long."""
        ...


class Outbox:
    """Frames on their way to one peer, within its windows and within a bound.

    Who sends more than there is room for waits: for a window of its stream in `Sender.room`, for the connection in one
    line with all others.
    """

    __slots__ = (
        "_high", "_limits", "_line", "_loop", "_paused", "_pieces", "_scheduled", "_size", "_transport",
        "frame_max", "sent", "window",
    )  # fmt: skip

    def __init__(self, loop: asyncio.AbstractEventLoop, limits: Limits) -> None:
        self._loop = loop
        self._limits = limits
        self._high = limits.send_bytes_high
        self._transport: asyncio.Transport | None = None
        self._pieces: list[bytes | memoryview] = []  # bounded by `put`
        self._size = 0
        self._scheduled = False
        self._paused = False
        self._line: deque[asyncio.Future[None]] = deque()  # bounded by the streams of the connection
        self.frame_max = frames.FRAME_BYTES_LEAST
        self.window = frames.WINDOW_AT_FIRST
        self.sent = 0
        """Messages and pieces of messages sent so far."""

    def attach(self, transport: asyncio.Transport) -> None:
        """From now on frames leave by this transport."""
        self._transport = transport

    def detach(self) -> None:
        """Nothing leaves any more."""
        self._transport = None
        self._pieces.clear()
        self._size = 0

    def put(self, data: bytes | memoryview) -> None:
        """Sends a frame, or a part of one, that no window holds back. A peer that lets too many pile up is cut off."""
        if self._transport is None:
            return
        self._pieces.append(data)
        self._size += len(data)
        if self._paused:
            if self._size > self._limits.send_bytes_max:
                self._transport.abort()
                self.detach()
        elif not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self.flush)

    def send(self, stream: Sender, message: bytes) -> bool:
        """Sends a message if there is room for the whole of it now; else False, and `push` will."""
        size = len(message)
        framed = size + frames.PREFIX_BYTES
        if (
            framed > stream.send_window
            or framed > self.window
            or framed > self.frame_max
            or self._size > self._high
            or self._paused
            or self._line
        ):
            return False
        stream.send_window -= framed
        self.window -= framed
        self.sent += 1
        pieces = self._pieces
        if (opening := stream.opening()) is not None:
            pieces.append(opening)
        pieces.append(frames.MESSAGE_HEAD.pack(framed >> 8, framed & 0xFF, 0, 0, stream.stream_id, 0, size))
        pieces.append(message)
        self._size += framed
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self.flush)
        return True

    async def push(self, stream: Sender, message: bytes) -> None:
        """Sends a message in as many pieces, and at as many times, as the peer makes room for."""
        rest = memoryview(frames.PREFIX.pack(0, len(message)) + message)
        while rest:
            await self._turn(stream)
            size = min(len(rest), self.frame_max, self.window, stream.send_window)
            stream.send_window -= size
            self.window -= size
            self.sent += 1
            if (opening := stream.opening()) is not None:
                self.put(opening)
            self.put(frames.HEAD.pack(size >> 8, size & 0xFF, 0, 0, stream.stream_id))
            self.put(rest[:size])
            rest = rest[size:]
        self.wake()

    async def _turn(self, stream: Sender) -> None:
        """Returns when there is room for a byte of the stream.

        Raises:
            asyncio.CancelledError: the stream is over.
        """
        while True:
            if stream.closed:
                raise asyncio.CancelledError
            if stream.send_window <= 0:
                self.wake()  # somebody else may have use for what was left
                stream.room = room = self._loop.create_future()
            elif self._has_room():
                return
            else:
                room = self._loop.create_future()
                self._line.append(room)
            await self._room(stream, room)

    async def _room(self, stream: Sender, room: asyncio.Future[None]) -> None:
        timer = self._loop.call_later(self._limits.stall_s, stream.stalled)
        try:
            await room
        except asyncio.CancelledError:
            if room.done() and not room.cancelled():
                self.wake()  # it was this one's turn, which goes to the next
            raise
        finally:
            timer.cancel()

    def _has_room(self) -> bool:
        return self.window > 0 and self._size <= self._high and not self._paused

    def wake(self) -> None:
        """Lets the first in the line go on if there is room; it calls the next."""
        while self._line and self._has_room():
            room = self._line.popleft()
            if not room.done():
                room.set_result(None)
                return

    def flush(self) -> None:
        """Writes what has gathered, unless the transport holds enough already."""
        self._scheduled = False
        transport = self._transport
        if transport is None or self._paused or not self._pieces:
            return
        pieces, size = self._pieces, self._size
        self._pieces, self._size = [], 0
        if size <= JOINED_BYTES_MAX:
            transport.write(b"".join(pieces))
        else:
            transport.writelines(pieces)
        if self._line:
            self.wake()

    def pause(self) -> None:
        """The transport holds enough: the peer reads more slowly than is written."""
        self._paused = True

    def resume(self) -> None:
        """The transport takes more."""
        self._paused = False
        self.flush()
        self.wake()
