"""Calls over a connection without a socket: the four kinds, metadata, statuses, deadlines, compression, windows."""

from __future__ import annotations

import asyncio
import gzip
import zlib

import grpc
import pytest

from services.runtime.rpc import frames, headers
from services.runtime.rpc.frames import ErrorCode, Setting
from tests.kit.rpc_peer import HELLO, Echo, Peer, message, met, serving
from tests.kit.virtual_time import VirtualTimeLoop, run_virtual


@pytest.mark.parametrize(
    ("method", "sent", "expected"),
    [
        ("Unary", [b"abc"], [b"abc"]),
        ("Unary", [b""], [b""]),
        ("Many", [b"abc"], [b"a", b"b", b"c"]),
        ("Joined", [b"ab", b"", b"c"], [b"abc"]),
        ("Joined", [], [b""]),
        ("Each", [b"ab", b"", b"c"], [b"ab", b"", b"c"]),
        ("Each", [], []),
    ],
)
@pytest.mark.parametrize("cut", [1, 7, 10_000])
async def test_the_four_kinds(method: str, sent: list[bytes], expected: list[bytes], cut: int) -> None:
    """Requests go in and replies come out in order, however the bytes are cut on the way; the call ends well."""
    peer = met()
    data = frames.headers(1, headers.request(f"/test.Echo/{method}", "test"), end_stream=not sent)
    if sent:
        data += message(1, *sent, end=True)
    for at in range(0, len(data), cut):
        peer.send(data[at : at + cut])
    answer = (await peer.read()).answer(1)
    assert answer.messages == expected
    assert answer.ended
    assert answer.status == 0
    assert answer.heads[0][":status"] == "200"
    assert answer.heads[0]["content-type"] == "application/grpc"
    assert answer.reset is None
    assert not peer.connection.reader.calls
    assert not peer.connection.reader.tasks
    assert peer.connection.reader.waiting == 0


@pytest.mark.parametrize("size", [1, 3, 4, 5, 6, 50, 1000])
async def test_messages_may_lie_across_frames_in_any_way(size: int) -> None:
    """Frames of a fixed size that know nothing of messages: the same messages arrive, empty ones between them too."""
    contents = [b"", b"a", b"", b"", b"bc" * 100, b"d" * 7, b""]
    stream = b"".join(frames.PREFIX.pack(0, len(content)) + content for content in contents)
    peer = met()
    peer.call(1, "Each")
    for at in range(0, len(stream), size):
        peer.send(frames.frame(0, 0, 1, stream[at : at + size]))
    peer.send(frames.frame(0, frames.END_STREAM, 1))
    answer = (await peer.read()).answer(1)
    assert answer.messages == contents
    assert answer.status == 0
    assert peer.connection.reader.partial == 0


async def test_padding_and_priority_are_read_over() -> None:
    """Padded frames and frames with a priority carry the same call; the padding counts for the windows."""
    peer = met()
    block = headers.request("/test.Echo/Each", "test")
    padded = bytes((3,)) + b"\x00\x00\x00\x00\x10" + block + b"\x00" * 3
    peer.send(frames.frame(1, frames.END_HEADERS | frames.PADDED | frames.PRIORITY, 1, padded))
    content = frames.PREFIX.pack(0, 2) + b"ok"
    peer.send(frames.frame(0, frames.PADDED, 1, bytes((200,)) + content + b"\x00" * 200))
    peer.send(frames.frame(2, 0, 1, b"\x00" * 5), frames.frame(99, 0, 1, b"of an extension"))
    await peer.read()
    assert peer.answer(1).messages == [b"ok"]
    assert peer.connection.reader.window == peer.connection.reader.limits.connection_window - len(content) - 201


async def test_headers_in_many_frames() -> None:
    """A header block may go on in further frames."""
    peer = met()
    block = headers.request("/test.Echo/Unary", "test", [("long", "x" * 5000)])
    peer.send(frames.headers(1, block, end_stream=False, frame_max=500), message(1, b"a", end=True))
    assert (await peer.read()).answer(1).messages == [b"a"]


async def test_metadata_and_status_travel() -> None:
    """Both ways, bytes too; text is escaped as gRPC does; a handler may write its replies and set its status."""
    echo = Echo()
    peer = met(echo)
    peer.call(1, "Written", ("one", "two"), ("raw-bin", b"\x00\x01\xfe"))
    peer.send(message(1, b"x", end=True))
    peer.call(3, "Unary", ("one", "two"), ("raw-bin", b"\x00\x01\xfe"), ("one", "more"))
    peer.send(message(3, b"x", end=True))
    answer = (await peer.read()).answer(1)
    assert answer.heads[0]["first"] == "one"
    assert answer.heads[0]["first-bin"] == "AP8"
    assert answer.messages == [b"x"]
    assert answer.heads[1] == {"grpc-status": "15", "grpc-message": "50%25 %C3%A9%0A", "last": "two"}
    assert echo.calls[0].invocation_metadata() == (("one", "two"), ("raw-bin", b"\x00\x01\xfe"), ("one", "more"))
    assert echo.calls[0].peer() == "ipv4:192.0.2.1:4711"
    assert echo.calls[0].peer_certificate() is None


@pytest.mark.parametrize(
    ("method", "status", "text"),
    [("Refused", 10, "no"), ("Broken", 2, "the handler broke"), ("Missing", 12, "Method not found!")],
)
async def test_errors_are_one_block(method: str, status: int, text: str) -> None:
    """A call that fails before its first reply is answered by one header block; what broke is not told."""
    peer = met()
    peer.call(1, method)
    peer.send(message(1, b"secret", end=True))
    answer = (await peer.read()).answer(1)
    (head,) = answer.heads
    assert (head[":status"], head["grpc-status"], head["grpc-message"]) == ("200", str(status), text)
    assert head.get("why") == ("because" if method == "Refused" else None)
    assert answer.ended


async def test_a_unary_call_without_a_request_is_refused() -> None:
    """It ends with INTERNAL, and no handler runs."""
    echo = Echo()
    peer = met(echo)
    peer.call(1, "Unary", end=True)
    assert (await peer.read()).answer(1).status == 13
    assert not echo.calls


async def test_who_answers_early_lets_the_rest_go() -> None:
    """A call that ends before its client has ended is reset, without an error; what was on its way is dropped."""
    peer = met()
    peer.call(1, "Refused")
    peer.send(message(1, b"x"))
    answer = (await peer.read()).answer(1)
    assert (answer.status, answer.reset) == (10, ErrorCode.NO_ERROR)
    peer.send(message(1, b"y" * 500), frames.frame(0, frames.END_STREAM, 1), frames.window_update(1, 5))
    peer.call(3, "Unary")
    peer.send(message(3, b"x", end=True))
    assert (await peer.read()).answer(3).status == 0
    assert peer.goaway is None


@pytest.mark.parametrize(("encoding", "squeeze"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
async def test_requests_may_be_compressed(encoding: str, squeeze: object) -> None:
    """As the call says; messages that are not compressed may be among them."""
    peer = met()
    peer.call(1, "Each", ("grpc-encoding", encoding))
    content = squeeze(b"a" * 1000)  # type: ignore[operator]
    peer.send(frames.message(1, content, compressed=True), message(1, b"plain", end=True))
    answer = (await peer.read()).answer(1)
    assert answer.messages == [b"a" * 1000, b"plain"]
    assert answer.status == 0


@pytest.mark.parametrize(
    ("encoding", "content", "status"),
    [
        ("gzip", gzip.compress(b"a" * 2000), 8),
        ("gzip", b"no gzip", 13),
        ("gzip", gzip.compress(b"a" * 100)[:-9], 13),
        ("identity", b"abc", 13),
    ],
)
async def test_bad_compression_ends_the_call(encoding: str, content: bytes, status: int) -> None:
    """Too much after decompression is RESOURCE_EXHAUSTED, what cannot be decompressed INTERNAL."""
    peer = met(message_bytes_max=1000)
    peer.call(1, "Each", ("grpc-encoding", encoding))
    peer.send(frames.message(1, content, compressed=True))
    assert (await peer.read()).answer(1).status == status


async def test_a_compression_that_is_not_known_is_named() -> None:
    """UNIMPLEMENTED, with those that are."""
    peer = met()
    peer.call(1, "Each", ("grpc-encoding", "snappy"))
    (head,) = (await peer.read()).answer(1).heads
    assert (head["grpc-status"], head["grpc-accept-encoding"]) == ("12", "identity,deflate,gzip")


async def test_a_message_over_the_limit_ends_the_call_alone() -> None:
    """RESOURCE_EXHAUSTED as soon as its length is known; the connection goes on."""
    echo = Echo()
    peer = met(echo, message_bytes_max=1000)
    peer.call(1, "Each")
    await peer.read()
    peer.send(frames.frame(0, 0, 1, frames.PREFIX.pack(0, 1001)))
    assert (await peer.read()).answer(1).status == 8
    assert echo.cancelled == 1
    peer.call(3, "Unary")
    peer.send(message(3, b"x" * 1000, end=True))
    assert (await peer.read()).answer(3).status == 0


async def test_replies_of_one_turn_go_in_one_write() -> None:
    """Sixty-four streams that are answered together cost one write."""
    peer = met()
    for stream_id in range(1, 129, 2):
        peer.call(stream_id, "Each")
    await peer.read()
    before = peer.wire.writes
    peer.send(*(message(stream_id, b"x") for stream_id in range(1, 129, 2)))
    await peer.read()
    assert peer.wire.writes == before + 1
    assert all(peer.answer(stream_id).messages == [b"x"] for stream_id in range(1, 129, 2))


async def test_a_reset_cancels_and_an_end_does_not() -> None:
    """RST_STREAM cancels the handler at once; END_STREAM is the end of the iterator and no more."""
    echo = Echo()
    peer = met(echo)
    peer.call(1, "Each")
    peer.call(3, "Each")
    await peer.read()
    done: list[bool] = []
    echo.calls[0].add_done_callback(lambda call: done.append(call.cancelled()))
    peer.send(frames.rst_stream(1, ErrorCode.CANCEL), frames.frame(0, frames.END_STREAM, 3))
    await peer.read()
    assert echo.cancelled == 1
    assert done == [True]
    assert echo.calls[0].done()
    assert echo.calls[0].code() is grpc.StatusCode.CANCELLED
    assert peer.answer(3).status == 0
    assert not echo.calls[1].cancelled()
    assert not peer.connection.reader.tasks


async def test_an_end_and_a_reset_in_one_read_are_a_cancel() -> None:
    """A client that half-closes and resets before the handler ran has cancelled."""
    echo = Echo()
    peer = met(echo)
    peer.call(1, "Each")
    await peer.read()
    peer.send(frames.frame(0, frames.END_STREAM, 1), frames.rst_stream(1, ErrorCode.CANCEL))
    await peer.read()
    assert echo.cancelled == 1


async def test_a_lost_connection_cancels_all_calls() -> None:
    """Those that wait for messages and those that have ended theirs."""
    echo = Echo()
    peer = met(echo)
    peer.call(1, "Each")
    peer.call(3, "Held", end=True)
    await peer.read()
    await peer.leave()
    assert echo.cancelled == 2
    assert not peer.connection.reader.tasks
    assert all(call.done() for call in echo.calls)


def test_a_deadline_ends_the_call_and_cancels_its_handler() -> None:
    """The client is told DEADLINE_EXCEEDED at the time that it set, not earlier; the handler knows how long it has."""

    async def main() -> None:
        echo = Echo()
        peer = met(echo)
        peer.call(1, "Held", ("grpc-timeout", "2S"))
        peer.call(3, "Held", ("grpc-timeout", "5000m"))
        await peer.read()
        assert echo.calls[0].time_remaining() == 2.0
        await asyncio.sleep(1.9)
        assert (await peer.read()).answer(1).status is None
        await asyncio.sleep(0.2)
        assert (await peer.read()).answer(1).status == 4
        assert echo.cancelled == 1
        assert echo.calls[0].cancelled()
        assert peer.answer(3).status is None
        await peer.leave()

    run_virtual(main(), VirtualTimeLoop())


async def test_a_call_without_deadline_says_so() -> None:
    """Its time remaining is None."""
    echo = Echo()
    peer = met(echo)
    peer.call(1, "Each")
    await peer.read()
    assert echo.calls[0].time_remaining() is None


async def test_pings_are_answered() -> None:
    """With what they carried; answers to ours are not answered."""
    peer = met()
    peer.send(frames.ping(b"12345678"), frames.ping(b"87654321", ack=True))
    assert (await peer.read()).pings == [(frames.ACK, b"12345678")]


async def test_settings_come_first_and_are_acknowledged() -> None:
    """What the server takes stands in the first frame; the client's own settings are acknowledged."""
    peer = Peer(*serving(Echo(), streams_max=7))
    assert (await peer.read()).settings[Setting.MAX_CONCURRENT_STREAMS] == 7
    peer.send(HELLO)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert bytes(peer.wire.written) == frames.SETTINGS_ACK
