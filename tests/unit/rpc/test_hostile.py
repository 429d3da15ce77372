"""Peers that break the rules, or keep them and mean no good: the right error, a bound on everything, no crash."""

from __future__ import annotations

import random
import struct
from typing import TYPE_CHECKING

import pytest
from hpack import Encoder

from services.runtime.rpc import frames, headers
from services.runtime.rpc.frames import ErrorCode
from services.runtime.rpc.reader import FRAME_BYTES_TAKEN
from tests.kit.rpc_peer import HELLO, Echo, Peer, message, met, serving

if TYPE_CHECKING:
    from collections.abc import Sequence

OPEN = frames.headers(1, headers.request("/test.Echo/Each", "test"), end_stream=False)


def encoded(*fields: tuple[str, str]) -> bytes:
    """A header block."""
    return headers.encode([(name.encode(), value.encode()) for name, value in fields])


GOOD = (
    (":method", "POST"),
    (":scheme", "http"),
    (":path", "/test.Echo/Each"),
    ("te", "trailers"),
    ("content-type", "application/grpc"),
)


def without(name: str, *more: tuple[str, str]) -> bytes:
    """The block of a good request less one field, and more of others."""
    return encoded(*(pair for pair in GOOD if pair[0] != name), *more)


BOMB = Encoder().encode([("a", "b" * 4000)]) + b"\xbe" * 1000

FAULTS = [
    ("DATA of a stream that nobody opened", [message(1, b"x")], ErrorCode.PROTOCOL_ERROR),
    ("DATA of stream 0", [message(0, b"x")], ErrorCode.PROTOCOL_ERROR),
    ("RST_STREAM of a stream that nobody opened", [frames.rst_stream(3, 8)], ErrorCode.PROTOCOL_ERROR),
    ("RST_STREAM of a wrong length", [OPEN, frames.frame(3, 0, 1, b"abc")], ErrorCode.FRAME_SIZE_ERROR),
    ("a window of a stream that nobody opened", [frames.window_update(5, 1)], ErrorCode.PROTOCOL_ERROR),
    ("a window renewed by nothing", [frames.window_update(0, 0)], ErrorCode.PROTOCOL_ERROR),
    ("a window that overflows", [frames.window_update(0, 2**31 - 1)], ErrorCode.FLOW_CONTROL_ERROR),
    ("a window of a wrong length", [frames.frame(8, 0, 0, b"abc")], ErrorCode.FRAME_SIZE_ERROR),
    ("SETTINGS of a stream", [frames.frame(4, 0, 1)], ErrorCode.PROTOCOL_ERROR),
    ("SETTINGS of a broken length", [frames.frame(4, 0, 0, b"abc")], ErrorCode.FRAME_SIZE_ERROR),
    ("an acknowledgement with content", [frames.frame(4, 1, 0, b"abcdef")], ErrorCode.FRAME_SIZE_ERROR),
    ("a first window too large", [frames.settings({4: 2**31})], ErrorCode.FLOW_CONTROL_ERROR),
    ("settings that overflow a window", [OPEN, frames.window_update(1, 2**30), frames.settings({4: 2**31 - 1})],
     ErrorCode.FLOW_CONTROL_ERROR),
    ("frames too small", [frames.settings({5: 100})], ErrorCode.PROTOCOL_ERROR),
    ("frames too large", [frames.settings({5: 2**24})], ErrorCode.PROTOCOL_ERROR),
    ("push neither on nor off", [frames.settings({2: 2})], ErrorCode.PROTOCOL_ERROR),
    ("PING of a stream", [frames.frame(6, 0, 1, b"12345678")], ErrorCode.PROTOCOL_ERROR),
    ("PING of a wrong length", [frames.frame(6, 0, 0, b"123")], ErrorCode.FRAME_SIZE_ERROR),
    ("a promise", [frames.frame(5, 4, 1, b"1234")], ErrorCode.PROTOCOL_ERROR),
    ("HEADERS of an even stream", [frames.headers(2, b"\x82", end_stream=True)], ErrorCode.PROTOCOL_ERROR),
    ("HEADERS of stream 0", [frames.headers(0, b"\x82", end_stream=True)], ErrorCode.PROTOCOL_ERROR),
    ("a block that cannot be decompressed", [frames.headers(1, b"\xff\xff\xff\xff\xff", end_stream=True)],
     ErrorCode.COMPRESSION_ERROR),
    ("an index into an empty table", [frames.headers(1, b"\xbe", end_stream=True)], ErrorCode.COMPRESSION_ERROR),
    ("a block that is interrupted", [frames.frame(1, 0, 1, b"\x82"), frames.ping(b"12345678")],
     ErrorCode.PROTOCOL_ERROR),
    ("a block that another stream goes on with", [frames.frame(1, 0, 1, b"\x82"), frames.frame(9, 4, 3, b"\x82")],
     ErrorCode.PROTOCOL_ERROR),
    ("DATA within a block", [OPEN, frames.frame(1, 0, 3, b"\x82"), message(1, b"x")], ErrorCode.PROTOCOL_ERROR),
    ("a continuation of nothing", [frames.frame(9, 4, 1, b"\x82")], ErrorCode.PROTOCOL_ERROR),
    ("padding larger than its frame", [OPEN, frames.frame(0, 8, 1, b"\x05abc")], ErrorCode.PROTOCOL_ERROR),
    ("padding without a length", [OPEN, frames.frame(0, 8, 1)], ErrorCode.PROTOCOL_ERROR),
    ("PRIORITY of a wrong length", [frames.frame(2, 0, 1, b"abc")], ErrorCode.FRAME_SIZE_ERROR),
    ("a frame too large", [frames.HEAD.pack((FRAME_BYTES_TAKEN + 1) >> 8, 1, 0, 0, 1)], ErrorCode.FRAME_SIZE_ERROR),
    ("far too many headers", [frames.headers(1, encoded(*[("a", "b" * 1000)] * 80), end_stream=True)],
     ErrorCode.ENHANCE_YOUR_CALM),
    ("a block without end", [frames.frame(1, 0, 1, b"\x82"), *[frames.frame(9, 0, 1, b"\x82" * 10_000)] * 7],
     ErrorCode.ENHANCE_YOUR_CALM),
    ("continuations of nothing more", [frames.frame(1, 0, 1, b"\x82"), frames.frame(9, 0, 1)],
     ErrorCode.ENHANCE_YOUR_CALM),
    ("a bomb in the table", [frames.headers(1, BOMB, end_stream=True)],
     ErrorCode.ENHANCE_YOUR_CALM),
]  # fmt: skip


@pytest.mark.parametrize(("what", "sent", "code"), FAULTS, ids=[fault[0] for fault in FAULTS])
async def test_a_broken_rule_ends_the_connection(what: str, sent: Sequence[bytes], code: ErrorCode) -> None:
    """GOAWAY with the code of RFC 9113, every call is cancelled, and nothing that follows is looked at."""
    echo = Echo()
    peer = met(echo)
    for data in sent:
        peer.send(data)
    peer.send(frames.headers(9, headers.request("/test.Echo/Unary", "test"), end_stream=False))
    await peer.read()
    assert peer.goaway is not None, what
    assert peer.goaway[1] is code
    assert peer.wire.closed
    assert not peer.connection.reader.calls
    assert not peer.connection.reader.tasks


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nXX",
        frames.PREFACE + frames.ping(b"12345678"),
        frames.PREFACE + frames.SETTINGS_ACK,
        frames.PREFACE + OPEN,
    ],
)
async def test_a_connection_begins_with_preface_and_settings(data: bytes) -> None:
    """Whoever speaks otherwise, or another protocol, is turned away."""
    peer = Peer(*serving(Echo()))
    peer.send(data)
    await peer.read()
    assert peer.goaway == (0, ErrorCode.PROTOCOL_ERROR)
    assert peer.wire.closed


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        ([message(1, b"x", end=True), message(1, b"y")], ErrorCode.STREAM_CLOSED),
        ([frames.window_update(1, 0)], ErrorCode.PROTOCOL_ERROR),
        ([frames.window_update(1, 2**31 - 1)], ErrorCode.FLOW_CONTROL_ERROR),
        ([frames.headers(1, encoded(("x", "y")), end_stream=False)], ErrorCode.PROTOCOL_ERROR),
        ([message(1, b"x" * 16_000)] * 5, ErrorCode.FLOW_CONTROL_ERROR),
    ],
    ids=["after the end", "renewed by nothing", "overflow", "headers twice", "more than the window"],
)
async def test_a_broken_rule_of_a_stream_ends_its_call_alone(sent: Sequence[bytes], code: ErrorCode) -> None:
    """RST_STREAM with the code, the handler is cancelled, other calls go on."""
    echo = Echo()
    peer = met(echo, stream_window=65_535)
    peer.call(1, "Held")
    await peer.read()
    peer.send(*sent)
    peer.call(3, "Unary")
    peer.send(message(3, b"x", end=True))
    await peer.read()
    assert peer.answer(1).reset is code
    assert echo.cancelled == 1
    assert peer.answer(3).status == 0


@pytest.mark.parametrize(
    "block",
    [
        without(":path"),
        without(":method"),
        without(":scheme"),
        encoded(*GOOD, (":path", "/late")),
        encoded((":path", "/twice"), *GOOD),
        encoded((":status", "200"), *GOOD),
        encoded(*GOOD, ("Upper", "case")),
        encoded(*GOOD, ("", "empty")),
        encoded(*GOOD, ("connection", "close")),
        encoded(*GOOD, ("x-bin", "!")),
    ],
)
async def test_malformed_requests_are_reset(block: bytes) -> None:
    """PROTOCOL_ERROR on the stream, no handler; the connection goes on."""
    peer = met()
    peer.send(frames.headers(1, block, end_stream=True))
    peer.call(3, "Unary")
    peer.send(message(3, b"x", end=True))
    await peer.read()
    assert peer.answer(1).reset is ErrorCode.PROTOCOL_ERROR
    assert peer.answer(3).status == 0


@pytest.mark.parametrize(
    ("block", "status"),
    [
        (without("content-type"), "415"),
        (without("content-type", ("content-type", "application/json")), "415"),
        (without("content-type", ("content-type", "application/grpc-web")), "415"),
        (without("te"), "400"),
        (without(":method", (":method", "GET")), None),
        (encoded((":method", "GET"), *GOOD[1:]), "405"),
    ],
)
async def test_requests_of_something_else_get_an_http_status(block: bytes, status: str | None) -> None:
    """A browser that strays in is told in its own terms."""
    peer = met()
    peer.send(frames.headers(1, block, end_stream=True))
    answer = (await peer.read()).answer(1)
    assert [head[":status"] for head in answer.heads] == ([status] if status else [])
    assert answer.reset is (None if status else ErrorCode.PROTOCOL_ERROR)


@pytest.mark.parametrize("text", ["", "1", "S", "123456789S", "1x", "-1S", "1.5S"])
async def test_a_timeout_that_cannot_be_read_is_an_error(text: str) -> None:
    """INTERNAL, rather than a call without a deadline."""
    peer = met()
    peer.call(1, "Each", ("grpc-timeout", text))
    assert (await peer.read()).answer(1).status == 13


async def test_too_much_metadata_ends_the_call_alone() -> None:
    """RESOURCE_EXHAUSTED, as gRPC says it; the connection goes on, its table of headers in step."""
    peer = met()
    table = Encoder()
    big = table.encode([*GOOD, ("long", "x" * 20_000)])
    small = table.encode([*GOOD, ("after", "it")])
    peer.send(frames.headers(1, big, end_stream=True, frame_max=16_000))
    peer.send(frames.headers(3, small, end_stream=False), message(3, b"x", end=True))
    await peer.read()
    assert peer.answer(1).status == 8
    assert peer.answer(3).messages == [b"x"]


async def test_calls_over_the_bound_are_refused_unseen() -> None:
    """REFUSED_STREAM; and a call whose handler has not yet left counts, though it is reset: that is rapid reset."""
    echo = Echo()
    peer = met(echo, streams_max=4)
    for stream_id in range(1, 13, 2):
        peer.call(stream_id, "Each")
        peer.send(frames.rst_stream(stream_id, ErrorCode.CANCEL))
    await peer.read()
    assert [peer.answer(stream_id).reset for stream_id in (9, 11)] == [ErrorCode.REFUSED_STREAM] * 2
    peer.call(13, "Unary")
    peer.send(message(13, b"x", end=True))
    assert (await peer.read()).answer(13).status == 0


@pytest.mark.parametrize("seed", range(30))
async def test_any_bytes_end_in_an_answer_or_an_error(seed: int) -> None:
    """Frames of chance, and good ones that were damaged: never an exception, never a handler left over."""
    rng = random.Random(seed)
    echo = Echo()
    peer = met(echo)
    good = OPEN + message(1, b"abc", b"d" * 3000) + frames.ping(b"12345678") + frames.window_update(1, 7)
    for _ in range(60):
        if rng.random() < 0.5:
            data = bytearray(good)
            for _ in range(rng.randint(1, 4)):
                data[rng.randrange(len(data))] = rng.randrange(256)
        else:
            payload = rng.randbytes(rng.choice([0, 4, 5, 6, 8, rng.randint(0, 300)]))
            data = bytearray(frames.frame(rng.randrange(12), rng.randrange(256), rng.choice([0, 1, 2, 3]), payload))
        peer.send(bytes(data))
        if peer.wire.closed:
            peer = met(echo)
    await peer.leave()
    assert not peer.connection.reader.tasks
    assert all(call.done() for call in echo.calls)


def test_goaway_reads_as_it_was_written() -> None:
    """The frame has the last stream and the code where RFC 9113 has them."""
    assert frames.goaway(5, ErrorCode.NO_ERROR, b"why")[9:] == struct.pack(">LL", 5, 0) + b"why"


async def test_nothing_of_a_closed_connection_is_looked_at() -> None:
    """Bytes that arrive after GOAWAY with an error open nothing."""
    echo = Echo()
    peer = met(echo)
    peer.send(frames.window_update(0, 0))
    peer.send(OPEN)
    peer.send(HELLO)
    await peer.read()
    assert not echo.calls
