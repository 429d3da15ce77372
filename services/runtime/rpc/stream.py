"""One HTTP/2 stream with gRPC messages on it: what has come and waits to be taken, and what may be sent."""

from __future__ import annotations

import zlib
from collections import deque
from typing import TYPE_CHECKING, Protocol

from services.runtime.rpc import frames
from services.runtime.rpc.frames import ErrorCode

if TYPE_CHECKING:
    import asyncio

    from services.runtime.rpc.guard import Guard
    from services.runtime.rpc.limits import Limits
    from services.runtime.rpc.outbox import Outbox

MESSAGE_COST = 64
"""What a message that waits takes beside its bytes."""
FRAGMENT_BYTES = 1024
"""A frame that is smaller and completes no message is counted among those that carry none."""

_WINDOW_BITS = {"gzip": 31, "deflate": 15}


class Compressed(bytes):
    """A message that is decompressed when it is taken."""

    __slots__ = ()


class TooLarge(Exception):
    """A message is larger than the server takes."""


class Unreadable(Exception):
    """A message is compressed in a way that was not agreed on, or damaged."""


class Peer(Protocol):
    """The connection, as far as its streams need it.

    `waiting` and `partial` are sums over all of them, in bytes; `assembled` counts the messages that came in pieces.
    """

    outbox: Outbox
    guard: Guard
    limits: Limits
    waiting: int
    partial: int
    assembled: int
    starved: bool

    def replenish(self) -> None:
        """Renews the window of the connection if it may be."""
        ...


class Stream:
    """See the module. What arrives is handed in by `receive` and `end`; `take` gives it out and renews the window."""

    __slots__ = (
        "_compressed", "_expected", "_extra", "_owed", "_part", "_peer", "_renewed_at", "_waiter",
        "closed", "encoding", "ended", "inbox", "outbox", "room", "send_window", "stream_id", "window",
    )  # fmt: skip

    def __init__(self, stream_id: int, peer: Peer, send_window: int, encoding: str) -> None:
        self.stream_id = stream_id
        self.send_window = send_window
        self.window = peer.limits.stream_window
        self.encoding = encoding
        self.outbox = peer.outbox
        self.inbox: deque[bytes] = deque()  # bounded by the window
        self.ended = False
        """The client sends no further message."""
        self.closed = False
        """Nothing more comes or goes."""
        self.room: asyncio.Future[None] | None = None
        self._peer = peer
        self._waiter: asyncio.Future[None] | None = None
        self._owed = 0  # bytes that were taken and not yet given back to the window
        self._renewed_at = peer.limits.stream_window >> 1
        self._extra = 0  # bytes that were given beyond the window, for a message that is larger
        self._part = bytearray()  # prefix and content, as far as they have come, of a message that came in pieces
        self._expected = 0  # length of that message with its prefix; 0: the prefix is not complete
        self._compressed = False

    def receive(self, data: bytes, start: int, stop: int) -> None:
        """The content of a DATA frame has come."""
        length = stop - start
        self.window -= length
        if self.window < 0:
            self.reset(ErrorCode.STREAM_CLOSED if self.ended else ErrorCode.FLOW_CONTROL_ERROR)
            return
        if length >= frames.PREFIX_BYTES and not self._part:
            compressed, size = frames.PREFIX.unpack_from(data, start)
            # As a rule a frame is a message.
            if size + frames.PREFIX_BYTES == length and not compressed and size <= self._peer.limits.message_bytes_max:
                self._deliver(data[start + frames.PREFIX_BYTES : stop])
                return
        self._assemble(data, start, stop)

    def _assemble(self, data: bytes, start: int, stop: int) -> None:
        if stop - start < FRAGMENT_BYTES:
            self._peer.guard.control()
        while start < stop and not self.closed:
            if not self._expected:
                start = self._prefix(data, start, stop)
                if not self._expected:
                    continue
            part = self._part
            piece = min(self._expected - len(part), stop - start)
            if len(part) == frames.PREFIX_BYTES and piece == self._expected - len(part):
                self._whole(data[start : start + piece])
            else:
                part += memoryview(data)[start : start + piece]
                self._peer.partial += piece
                if len(part) == self._expected:
                    self._peer.partial -= len(part) - frames.PREFIX_BYTES
                    self._whole(bytes(memoryview(part)[frames.PREFIX_BYTES :]))
                elif self._peer.partial > self._peer.limits.partial_bytes_max:
                    self.exhausted("too many messages of which a part has come")
            start += piece

    def _prefix(self, data: bytes, start: int, stop: int) -> int:
        """Reads on in a message's prefix; gives where the rest begins."""
        part = self._part
        piece = min(frames.PREFIX_BYTES - len(part), stop - start)
        part += data[start : start + piece]
        start += piece
        if len(part) < frames.PREFIX_BYTES:
            return start
        compressed, size = frames.PREFIX.unpack_from(part)
        self._compressed = bool(compressed)
        if size > self._peer.limits.message_bytes_max:
            self.exhausted(f"a message of {size} bytes; at most {self._peer.limits.message_bytes_max} are taken")
            return stop
        self._expected = frames.PREFIX_BYTES + size
        if not size:
            self._whole(b"")
            return start
        missing = size - (stop - start) - self.window
        if missing > 0 and not self.ended:
            # Nobody can take it before the whole of it has come.
            self.window += missing
            self._extra += missing
            self._peer.outbox.put(frames.window_update(self.stream_id, missing))
        return start

    def _whole(self, message: bytes) -> None:
        self._part = bytearray()
        self._expected = 0
        self._peer.assembled += 1
        self._deliver(Compressed(message) if self._compressed else message)

    def _deliver(self, message: bytes) -> None:
        self.inbox.append(message)
        peer = self._peer
        peer.waiting += len(message) + MESSAGE_COST
        waiter = self._waiter
        if waiter is not None:
            self._waiter = None
            if not waiter.done():
                waiter.set_result(None)

    def give_back(self, size: int) -> None:
        """`size` bytes of the window are free again."""
        self._owed += size
        if self._owed > self._renewed_at or self._extra:
            self._renew()

    def _renew(self) -> None:
        kept = min(self._extra, self._owed)
        self._extra -= kept
        self._owed -= kept
        if self._owed > self._renewed_at and not self.ended and not self.closed:
            self.window += self._owed
            self._peer.outbox.put(frames.window_update(self.stream_id, self._owed))
            self._owed = 0

    def end(self) -> None:
        """The client has sent its last message."""
        self.ended = True
        self.window = 0
        if self._part:
            self.broken("the last message has come in part only")
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)
        self._waiter = None

    def take(self) -> bytes:
        """The oldest message that waits; there is one.

        Raises:
            TooLarge, Unreadable: it was compressed, and cannot be decompressed.
        """
        message = self.inbox.popleft()
        size = len(message)
        peer = self._peer
        peer.waiting -= size + MESSAGE_COST
        self.give_back(size + frames.PREFIX_BYTES)
        if peer.starved:
            peer.replenish()
        return message if type(message) is bytes else self._expanded(message)

    def _expanded(self, message: bytes) -> bytes:
        bits = _WINDOW_BITS.get(self.encoding)
        if bits is None:
            raise Unreadable("a compressed message in a call that names no compression")
        most = self._peer.limits.message_bytes_max
        expander = zlib.decompressobj(bits)
        try:
            content = expander.decompress(message, most + 1)
        except zlib.error:
            raise Unreadable("a message that cannot be decompressed") from None
        if len(content) > most:
            raise TooLarge(f"a message that decompresses to more than {most} bytes")
        if not expander.eof:
            raise Unreadable("a compressed message that ends too early")
        return content

    def close(self) -> None:
        """Nothing more comes or goes; what waits is dropped."""
        self.closed = True
        peer = self._peer
        peer.waiting -= sum(len(message) + MESSAGE_COST for message in self.inbox)
        peer.partial -= max(0, len(self._part) - frames.PREFIX_BYTES)
        self.inbox.clear()
        self._part = bytearray()
        if peer.starved:
            peer.replenish()

    def reset(self, code: ErrorCode) -> None:
        """The peer broke the rules of streams: ends this one. For whoever knows more of the call."""
        raise NotImplementedError

    def exhausted(self, details: str) -> None:
        """The client sends more than is taken: ends the call. For whoever knows more of it."""
        raise NotImplementedError

    def broken(self, details: str) -> None:
        """What the client sent is no message: ends the call. For whoever knows more of it."""
        raise NotImplementedError
