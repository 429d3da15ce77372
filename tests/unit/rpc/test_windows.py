"""Flow control, both ways: nothing goes beyond a window, nothing is lost, nobody waits for room that never comes."""

from __future__ import annotations

from services.runtime.rpc import frames
from services.runtime.rpc.frames import Setting
from tests.kit.rpc_peer import Echo, Peer, message, met, serving


async def test_a_reply_larger_than_the_windows_goes_in_pieces() -> None:
    """It waits for the window of its stream, and for that of the connection, and nothing is lost."""
    peer = Peer(*serving(Echo()))
    peer.send(frames.PREFACE, frames.settings({Setting.INITIAL_WINDOW_SIZE: 1000}))
    peer.call(1, "Unary")
    content = bytes(range(256)) * 1000
    for at in range(0, len(content), 16_000):
        piece = content[at : at + 16_000]
        peer.send(frames.frame(0, 0, 1, (b"" if at else frames.PREFIX.pack(0, len(content))) + piece))
    answer = (await peer.read()).answer(1)
    assert len(answer.rest) == 1000
    peer.send(frames.window_update(1, 2**20))
    assert len((await peer.read()).answer(1).rest) == frames.WINDOW_AT_FIRST
    peer.send(frames.window_update(0, 100_000))
    assert len((await peer.read()).answer(1).rest) == frames.WINDOW_AT_FIRST + 100_000
    peer.send(frames.window_update(0, 2**20))
    assert (await peer.read()).answer(1).messages == [content]
    assert answer.status == 0


async def test_the_window_of_a_connection_is_shared_by_turns() -> None:
    """Streams that wait for it go on one after another, each when there is room again."""
    peer = Peer(*serving(Echo()))
    peer.send(frames.PREFACE, frames.settings({Setting.INITIAL_WINDOW_SIZE: 2**20}))
    for stream_id in (1, 3, 5):
        peer.call(stream_id, "Unary")
        for at in range(4):
            prefix = b"" if at else frames.PREFIX.pack(0, 40_000)
            peer.send(frames.frame(0, 0, stream_id, prefix + b"x" * 10_000))
    await peer.read()
    for _ in range(8):
        peer.send(frames.window_update(0, 10_000))
        await peer.read()
    assert [peer.answer(stream_id).messages for stream_id in (1, 3, 5)] == [[b"x" * 40_000]] * 3
    assert peer.connection.reader.outbox.window == frames.WINDOW_AT_FIRST + 80_000 - 3 * 40_005


async def test_a_window_may_shrink_below_zero() -> None:
    """Settings that narrow the window of a stream in use are obeyed: nothing is sent before it is positive again."""
    peer = met()
    peer.call(1, "Each")
    peer.send(message(1, b"x" * 995))
    await peer.read()
    peer.send(frames.settings({Setting.INITIAL_WINDOW_SIZE: 500}), message(1, b"y"))
    assert (await peer.read()).answer(1).messages == [b"x" * 995]
    peer.send(frames.window_update(1, 506))
    assert (await peer.read()).answer(1).messages[1:] == [b"y"]


async def test_a_message_may_be_larger_than_the_window_it_comes_through() -> None:
    """Its stream's window is widened for it, once, by what is missing."""
    peer = met(stream_window=65_535)
    content = b"z" * 300_000
    peer.call(1, "Joined")
    stream = frames.PREFIX.pack(0, len(content)) + content
    sent, budget = 0, 65_535
    for _ in range(100):
        size = min(len(stream) - sent, budget - sent, 16_384)
        if not size:
            break
        peer.send(frames.frame(0, 0, 1, stream[sent : sent + size]))
        sent += size
        budget = 65_535 + (await peer.read()).windows.get(1, 0)
    assert sent == len(stream)
    assert budget < 2 * len(stream)
    peer.send(frames.frame(0, frames.END_STREAM, 1))
    answer = (await peer.read()).answer(1)
    assert answer.heads[0][":status"] == "200"
    assert len(answer.rest) + sum(map(len, answer.messages)) >= frames.WINDOW_AT_FIRST - 5


async def test_padding_does_not_use_up_the_room_of_a_large_message() -> None:
    """A message larger than the window arrives though its frames are padded: their padding is given back at once."""
    peer = met(stream_window=65_535)
    content = b"z" * 100_000
    peer.call(1, "Joined")
    stream = frames.PREFIX.pack(0, len(content)) + content
    sent = used = 0
    while sent < len(stream):
        room = 65_535 + (await peer.read()).windows.get(1, 0) - used
        assert room > 0
        padding = min(99, room - 1)
        piece = stream[sent : sent + min(1000, max(1, room - padding - 1))]
        padded = bytes((padding,)) + piece + b"\x00" * padding if room > padding + 1 else piece
        peer.send(frames.frame(0, frames.PADDED if padded is not piece else 0, 1, padded))
        sent += len(piece)
        used += len(padded)
    peer.send(frames.frame(0, frames.END_STREAM, 1))
    answer = (await peer.read()).answer(1)
    assert len(answer.rest) == frames.WINDOW_AT_FIRST


async def test_windows_are_renewed_only_as_messages_are_taken() -> None:
    """A handler that takes nothing gets no more than a window; once it takes, the client may go on."""
    echo = Echo()
    peer = met(echo, stream_window=65_535)
    peer.call(1, "Held")
    for _ in range(65_535 // 1005):
        peer.send(message(1, b"x" * 1000))
    assert 1 not in (await peer.read()).windows
    echo.go_on.set()
    assert (await peer.read()).windows[1] > 32_000
