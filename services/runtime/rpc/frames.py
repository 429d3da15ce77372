"""HTTP/2 frames (RFC 9113) as bytes, for either side. Pure."""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

HEAD = struct.Struct(">HBBBL")
"""Head of a frame: length (upper 16 bits, lower 8), kind, flags, stream."""
HEAD_BYTES = HEAD.size

PREFIX = struct.Struct(">BL")
"""Before each gRPC message: whether it is compressed, and its length."""
PREFIX_BYTES = PREFIX.size

MESSAGE_HEAD = struct.Struct(">HBBBLBL")
"""Head of a DATA frame that holds one message, and the message's prefix."""

FRAME_BYTES_LEAST = 16_384
"""What every peer takes in a frame before it says otherwise."""
FRAME_BYTES_MOST = 2**24 - 1
WINDOW_AT_FIRST = 65_535
WINDOW_MOST = 2**31 - 1
STREAM_MOST = 2**31 - 1


class Kind(IntEnum):
    """What a frame is."""

    DATA = 0
    HEADERS = 1
    PRIORITY = 2
    RST_STREAM = 3
    SETTINGS = 4
    PUSH_PROMISE = 5
    PING = 6
    GOAWAY = 7
    WINDOW_UPDATE = 8
    CONTINUATION = 9


END_STREAM = 0x1
ACK = 0x1
END_HEADERS = 0x4
PADDED = 0x8
PRIORITY = 0x20


class Setting(IntEnum):
    """What a SETTINGS frame can set."""

    HEADER_TABLE_SIZE = 1
    ENABLE_PUSH = 2
    MAX_CONCURRENT_STREAMS = 3
    INITIAL_WINDOW_SIZE = 4
    MAX_FRAME_SIZE = 5
    MAX_HEADER_LIST_SIZE = 6


class ErrorCode(IntEnum):
    """Why a stream or a connection ends."""

    NO_ERROR = 0
    PROTOCOL_ERROR = 1
    INTERNAL_ERROR = 2
    FLOW_CONTROL_ERROR = 3
    SETTINGS_TIMEOUT = 4
    STREAM_CLOSED = 5
    FRAME_SIZE_ERROR = 6
    REFUSED_STREAM = 7
    CANCEL = 8
    COMPRESSION_ERROR = 9
    CONNECT_ERROR = 10
    ENHANCE_YOUR_CALM = 11


class ConnectionFault(Exception):
    """The peer did what no peer may do: the connection ends with this code."""

    def __init__(self, code: ErrorCode, reason: str) -> None:
        super().__init__(f"{code.name}: {reason}")
        self.code = code
        self.reason = reason


def frame(kind: int, flags: int, stream_id: int, payload: bytes = b"") -> bytes:
    """One frame."""
    size = len(payload)
    return HEAD.pack(size >> 8, size & 0xFF, kind, flags, stream_id) + payload


def settings(values: Mapping[int, int]) -> bytes:
    """A SETTINGS frame."""
    return frame(Kind.SETTINGS, 0, 0, b"".join(struct.pack(">HL", key, value) for key, value in values.items()))


SETTINGS_ACK = frame(Kind.SETTINGS, ACK, 0)


def read_settings(payload: bytes) -> Iterator[tuple[int, int]]:
    """The pairs of a SETTINGS frame.

    Raises:
        ConnectionFault: it is not made of pairs.
    """
    if len(payload) % 6:
        raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "SETTINGS of a broken length")
    return struct.iter_unpack(">HL", payload)


def ping(payload: bytes, *, ack: bool = False) -> bytes:
    """A PING frame; `payload` has 8 bytes."""
    return frame(Kind.PING, ACK if ack else 0, 0, payload)


def goaway(last_stream: int, code: int, reason: bytes = b"") -> bytes:
    """A GOAWAY frame: streams after `last_stream` were not looked at."""
    return frame(Kind.GOAWAY, 0, 0, struct.pack(">LL", last_stream, code) + reason)


def rst_stream(stream_id: int, code: int) -> bytes:
    """A RST_STREAM frame."""
    return frame(Kind.RST_STREAM, 0, stream_id, struct.pack(">L", code))


def window_update(stream_id: int, increment: int) -> bytes:
    """A WINDOW_UPDATE frame; stream 0 is the connection."""
    return frame(Kind.WINDOW_UPDATE, 0, stream_id, struct.pack(">L", increment))


def headers(stream_id: int, block: bytes, *, end_stream: bool, frame_max: int = FRAME_BYTES_LEAST) -> bytes:
    """A header block in a HEADERS frame, and CONTINUATION frames if it is larger than `frame_max` bytes."""
    flags = END_STREAM if end_stream else 0
    if len(block) <= frame_max:
        return frame(Kind.HEADERS, flags | END_HEADERS, stream_id, block)
    pieces = [block[at : at + frame_max] for at in range(0, len(block), frame_max)]
    last = len(pieces) - 1
    return b"".join(
        frame(
            Kind.CONTINUATION if at else Kind.HEADERS,
            (0 if at else flags) | (at == last and END_HEADERS),
            stream_id,
            piece,
        )
        for at, piece in enumerate(pieces)
    )


def message(stream_id: int, content: bytes, *, end_stream: bool = False, compressed: bool = False) -> bytes:
    """A DATA frame with one gRPC message, which has to fit the peer's frames."""
    size = len(content) + PREFIX_BYTES
    flags = END_STREAM if end_stream else 0
    return MESSAGE_HEAD.pack(size >> 8, size & 0xFF, 0, flags, stream_id, compressed, len(content)) + content


def unpadded(flags: int, payload: bytes) -> bytes:
    """What a DATA or HEADERS frame holds beside its padding.

    Raises:
        ConnectionFault: it is padded with more than there is.
    """
    if not flags & PADDED:
        return payload
    if not payload or payload[0] >= len(payload):
        raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "more padding than there is room for")
    return payload[1 : len(payload) - payload[0]]


def split(data: bytes) -> tuple[list[tuple[int, int, int, bytes]], bytes]:
    """The whole frames in `data`, as (kind, flags, stream, payload), and what is left. For tools and tests."""
    found: list[tuple[int, int, int, bytes]] = []
    at, end = 0, len(data)
    while end - at >= HEAD_BYTES:
        high, low, kind, flags, stream_id = HEAD.unpack_from(data, at)
        stop = at + HEAD_BYTES + (high << 8 | low)
        if stop > end:
            break
        found.append((kind, flags, stream_id & STREAM_MOST, data[at + HEAD_BYTES : stop]))
        at = stop
    return found, data[at:]
