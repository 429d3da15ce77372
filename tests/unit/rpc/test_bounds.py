"""Peers that keep the rules and mean no good, or have left: a bound on everything that one of them may have."""

from __future__ import annotations

import asyncio

import pytest

from services.runtime.rpc import frames, headers
from services.runtime.rpc.frames import ErrorCode, Kind, Setting
from tests.kit.rpc_peer import Echo, Peer, message, met, serving
from tests.kit.virtual_time import VirtualTimeLoop, run_virtual

OPEN = frames.headers(1, headers.request("/test.Echo/Each", "test"), end_stream=False)

FLOODS = {
    "ping": frames.ping(b"12345678"),
    "settings": frames.settings({Setting.INITIAL_WINDOW_SIZE: 65_535}),
    "priority": frames.frame(Kind.PRIORITY, 0, 1, b"\x00" * 5),
    "windows": frames.window_update(1, 1),
    "unknown frames": frames.frame(77, 0, 0),
    "empty data": frames.frame(Kind.DATA, 0, 1),
    "scraps of a message": frames.frame(Kind.DATA, 0, 1, b"\x00"),
}


@pytest.mark.parametrize("what", FLOODS)
def test_floods_are_stopped(what: str) -> None:
    """So many frames a second that carry nothing are ENHANCE_YOUR_CALM; the same number over a longer time is none."""

    async def main() -> None:
        first = frames.frame(Kind.DATA, 0, 1, frames.PREFIX.pack(0, 100_000) + b"x" * 5000)
        for pause in (0.0, 0.1):
            peer = met(control_frames_max=500)
            peer.send(OPEN, first)
            for _ in range(20):
                peer.send(FLOODS[what] * 45)
                await asyncio.sleep(pause)
            await peer.read()
            assert peer.goaway == ((1, ErrorCode.ENHANCE_YOUR_CALM) if not pause else None)
            await peer.leave()

    run_virtual(main(), VirtualTimeLoop())


def test_pings_between_messages_are_no_flood() -> None:
    """A client that measures the line, and renews windows, with every message is left alone."""

    async def main() -> None:
        peer = met(control_frames_max=50)
        peer.send(OPEN)
        for _ in range(500):
            peer.send(
                frames.ping(b"12345678"), frames.window_update(0, 10), frames.window_update(1, 10), message(1, b"x")
            )
            await peer.read()
        assert peer.goaway is None
        assert len(peer.answer(1).messages) == 500
        await peer.leave()

    run_virtual(main(), VirtualTimeLoop())


def test_rapid_resets_are_stopped() -> None:
    """Calls opened and reset at once, again and again, end the connection; calls cancelled after a while do not."""

    async def main() -> None:
        for pause in (0.0, 1.5):
            echo = Echo()
            peer = met(echo, resets_max=100)
            for batch in range(4):
                numbers = [2 * number + 1 for number in range(batch * 40, batch * 40 + 40)]
                for stream_id in numbers:
                    peer.call(stream_id, "Each")
                await asyncio.sleep(pause)
                peer.send(*(frames.rst_stream(stream_id, ErrorCode.CANCEL) for stream_id in numbers))
                await asyncio.sleep(0)
            await peer.read()
            assert (peer.goaway is not None) == (pause == 0)
            assert not peer.connection.reader.tasks

    run_virtual(main(), VirtualTimeLoop())


def test_a_client_that_makes_no_room_is_not_waited_for_forever() -> None:
    """A reply that finds no window for `stall_s` ends its call; the memory it took is given back."""

    async def main() -> None:
        echo = Echo()
        peer = Peer(*serving(echo, stall_s=30.0))
        peer.send(frames.PREFACE, frames.settings({Setting.INITIAL_WINDOW_SIZE: 0}))
        peer.call(1, "Endless")
        peer.send(message(1, b"x" * 100, end=True))
        await asyncio.sleep(29)
        assert (await peer.read()).answer(1).status is None
        await asyncio.sleep(2)
        assert (await peer.read()).answer(1).status == 8
        assert echo.cancelled == 1
        assert not peer.connection.reader.tasks

    run_virtual(main(), VirtualTimeLoop())


async def test_a_handler_waits_for_a_peer_that_does_not_read() -> None:
    """While the transport is full a handler without end sends no more than fits; it goes on when there is room."""
    echo = Echo()
    peer = Peer(*serving(echo, send_bytes_high=10_000))
    peer.send(frames.PREFACE, frames.settings({4: 2**30}), frames.window_update(0, 2**30))
    peer.connection.pause_writing()
    peer.call(1, "Endless")
    peer.send(message(1, b"x" * 100, end=True))
    await peer.read()
    assert not peer.answer(1).messages
    peer.connection.resume_writing()
    written = len(peer.wire.written)
    peer.connection.pause_writing()
    for _ in range(50):
        await asyncio.sleep(0)
    assert len(peer.wire.written) <= written + 20_000
    await peer.leave()
    assert echo.cancelled == 1


async def test_a_stream_without_end_lets_others_have_their_turn() -> None:
    """A handler that never waits by itself is made to, so that another call on the connection is served."""
    peer = Peer(*serving(Echo(), send_bytes_high=10_000))
    peer.send(frames.PREFACE, frames.settings({4: 2**30}), frames.window_update(0, 2**30))
    peer.call(1, "Endless")
    peer.send(message(1, b"x" * 100, end=True))
    peer.call(3, "Unary")
    peer.send(message(3, b"y", end=True))
    assert (await peer.read()).answer(3).status == 0
    await peer.leave()


async def test_who_asks_and_never_reads_is_cut_off() -> None:
    """Answers to pings pile up to a bound."""
    peer = met(send_bytes_max=10_000, control_frames_max=10**6)
    peer.connection.pause_writing()
    for _ in range(100):
        peer.send(frames.ping(b"12345678") * 10)
    await peer.read()
    assert peer.wire.aborted


async def test_messages_that_nobody_takes_are_bounded() -> None:
    """Over all streams: beyond the bound the connection's window is not renewed, until handlers take."""
    echo = Echo()
    peer = met(echo, connection_window=100_000, waiting_bytes_max=50_000, stream_window=65_535)
    await peer.read()
    renewed = peer.windows[0]
    sent = 0
    for stream_id in range(1, 21, 2):
        peer.call(stream_id, "Held")
        for _ in range(10):
            if sent + 1005 < 100_000 + (await peer.read()).windows[0] - renewed:
                peer.send(message(stream_id, b"x" * 1000))
                sent += 1005
    assert sent < 100_000 + 50_000
    assert peer.goaway is None
    peer.send(frames.window_update(0, 2**20))
    echo.go_on.set()
    assert (await peer.read()).windows[0] >= renewed + sent - 50_000
    assert peer.connection.reader.waiting == 0
    peer.send(message(1, b"x" * 1000))
    assert peer.goaway is None


async def test_parts_of_messages_are_bounded() -> None:
    """Many streams with a part of a large message each: who goes over the bound is ended, the rest stays."""
    peer = met(partial_bytes_max=50_000, connection_window=2**20)
    for stream_id in range(1, 9, 2):
        peer.call(stream_id, "Joined")
        peer.send(frames.frame(0, 0, stream_id, frames.PREFIX.pack(0, 100_000) + b"x" * 16_000))
    await peer.read()
    assert [peer.answer(stream_id).status for stream_id in (1, 3, 5, 7)] == [None, None, None, 8]
    assert peer.connection.reader.partial == 48_000
    peer.send(frames.rst_stream(1, ErrorCode.CANCEL))
    assert peer.connection.reader.partial == 32_000


async def test_more_than_the_window_of_the_connection_ends_it() -> None:
    """FLOW_CONTROL_ERROR, though each stream keeps to its own."""
    peer = met(connection_window=70_000, waiting_bytes_max=0)
    for stream_id in range(1, 13, 2):
        peer.call(stream_id, "Held")
        peer.send(message(stream_id, b"x" * 16_000))
    assert (await peer.read()).goaway == (9, ErrorCode.FLOW_CONTROL_ERROR)


def test_silence_is_asked_and_then_left() -> None:
    """After a silence the peer is pinged; one that answers stays, one that does not is cut off."""

    async def main() -> None:
        quiet, there = met(keepalive_s=60.0), met(keepalive_s=60.0)
        for _ in range(40):
            await asyncio.sleep(5)
            for flags, payload in (await there.read()).pings:
                assert not flags & frames.ACK
                there.send(frames.ping(payload, ack=True))
            there.pings.clear()
        assert quiet.wire.aborted
        assert not there.wire.closed

    run_virtual(main(), VirtualTimeLoop())


def test_who_never_greets_is_left() -> None:
    """A connection without the first settings is closed after `handshake_s`."""

    async def main() -> None:
        silent, half = (Peer(*serving(Echo(), handshake_s=20.0)) for _ in range(2))
        half.send(frames.PREFACE[:10])
        await asyncio.sleep(19)
        assert not silent.wire.closed
        await asyncio.sleep(2)
        assert silent.wire.closed
        assert half.wire.closed

    run_virtual(main(), VirtualTimeLoop())


async def test_connections_over_the_bound_are_closed() -> None:
    """At once, and one that leaves makes room."""
    server, limits = serving(Echo(), connections_max=2)
    first, second, third = (Peer(server, limits) for _ in range(3))
    assert third.wire.aborted
    first.wire.abort()
    await first.read()
    assert not Peer(server, limits).wire.aborted
    assert not second.wire.aborted
