"""The server against another implementation of HTTP/2, which holds it to the RFC: the library h2, as a client."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import ConnectionTerminated, DataReceived, PingAckReceived, StreamEnded, TrailersReceived

from services.runtime.rpc import frames
from tests.kit.rpc_peer import PATH, Echo, Peer, serving


class Client:
    """A client of h2 on a connection without a socket. h2 raises where the server breaks a rule."""

    def __init__(self) -> None:
        self.peer = Peer(*serving(Echo(), stream_window=65_535))
        self.h2 = H2Connection(H2Configuration(client_side=True, header_encoding="utf-8"))
        self.h2.initiate_connection()
        self.seen: list[Any] = []
        self.content: dict[int, bytes] = {}

    def open(self, stream_id: int, method: str) -> None:
        """Begins a call, its headers compressed with the table of the connection."""
        head = [(":method", "POST"), (":scheme", "http"), (":authority", "test"), (":path", PATH + method)]
        self.h2.send_headers(stream_id, [*head, ("te", "trailers"), ("content-type", "application/grpc")])

    async def turn(self) -> None:
        """Sends what is to be sent, reads what comes, and gives back the windows."""
        self.peer.send(self.h2.data_to_send())
        for _ in range(20):
            await asyncio.sleep(0)
        data = bytes(self.peer.wire.written)
        self.peer.wire.written.clear()
        for event in self.h2.receive_data(data):
            self.seen.append(event)
            if isinstance(event, DataReceived):
                taken: Any = event
                self.content[taken.stream_id] = self.content.get(taken.stream_id, b"") + taken.data
                self.h2.acknowledge_received_data(taken.flow_controlled_length, taken.stream_id)

    async def send(self, stream_id: int, data: bytes, rng: random.Random) -> None:
        """Sends `data` in frames of any size that the windows allow, padded or not, and the end."""
        while data:
            room = min(self.h2.local_flow_control_window(stream_id), self.h2.max_outbound_frame_size, len(data))
            if room > 0:
                size = rng.choice([room, rng.randint(1, room)])
                padding = rng.choice([None, 0, 17]) if size + 18 <= room else None
                self.h2.send_data(stream_id, data[:size], pad_length=padding)
                data = data[size:]
            await self.turn()
        self.h2.end_stream(stream_id)

    def status(self, stream_id: int) -> str | None:
        """The status that a call ended with."""
        for event in self.seen:
            if isinstance(event, TrailersReceived) and event.stream_id == stream_id:
                fields: Any = event.headers
                return str(dict(fields)["grpc-status"])
        return None


@pytest.mark.parametrize("seed", range(5))
async def test_messages_of_any_size_cut_in_any_way(seed: int) -> None:
    """Streams one after the other over one connection: every message comes back, and no rule is broken."""
    rng = random.Random(seed)
    client = Client()
    for stream_id in range(1, 9, 2):
        contents = [rng.randbytes(rng.choice([0, 1, 5, 1000, 70_000, 200_000])) for _ in range(rng.randint(1, 6))]
        stream = b"".join(frames.PREFIX.pack(0, len(content)) + content for content in contents)
        client.open(stream_id, "Each")
        await client.send(stream_id, stream, rng)
        for _ in range(100):
            if client.status(stream_id) is not None:
                break
            await client.turn()
        assert client.content.get(stream_id) == stream
        assert client.status(stream_id) == "0"
        assert any(isinstance(event, StreamEnded) and event.stream_id == stream_id for event in client.seen)
    assert client.peer.connection.reader.waiting == 0


async def test_pings_resets_and_the_end() -> None:
    """What a connection says beside calls is as the RFC wants it, GOAWAY with the latest stream included."""
    client = Client()
    client.open(1, "Each")
    client.h2.ping(b"12345678")
    await client.turn()
    assert any(isinstance(event, PingAckReceived) and event.ping_data == b"12345678" for event in client.seen)
    client.h2.reset_stream(1, 8)
    await client.turn()
    assert not client.peer.connection.reader.calls
    client.open(3, "Each")
    await client.turn()
    client.peer.connection.leave()
    await client.turn()
    (goaway,) = (event for event in client.seen if isinstance(event, ConnectionTerminated))
    assert (goaway.last_stream_id, goaway.error_code) == (3, 0)
    client.peer.send(frames.message(3, b"still", end_stream=True))
    for _ in range(20):
        await asyncio.sleep(0)
    assert b"still" in bytes(client.peer.wire.written)
