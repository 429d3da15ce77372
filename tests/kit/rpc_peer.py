"""A client of `services.runtime.rpc` by hand: frame by frame, without a socket, as well or as badly as a test wants."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import grpc
from hpack import Decoder

from services.runtime.rpc import frames, headers
from services.runtime.rpc.connection import Connection
from services.runtime.rpc.frames import ErrorCode, Kind
from services.runtime.rpc.limits import Limits
from services.runtime.rpc.server import RpcServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from services.runtime.rpc.call import Call

PATH = "/test.Echo/"
HELLO = frames.PREFACE + frames.settings({})


class Wire(asyncio.Transport):
    """What a connection writes. `full` is what a peer does that does not read: the connection is paused."""

    def __init__(self) -> None:
        super().__init__()
        self.written = bytearray()
        self.writes = 0
        self.closed = self.aborted = False
        self.connection: Connection | None = None

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return ("192.0.2.1", 4711) if name == "peername" else default

    def write(self, data: Any) -> None:
        assert not self.closed
        self.writes += 1
        self.written += data

    def writelines(self, list_of_data: Any) -> None:
        self.write(b"".join(list_of_data))

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            assert self.connection is not None
            asyncio.get_running_loop().call_soon(self.connection.connection_lost, None)

    def abort(self) -> None:
        self.aborted = True
        self.close()


@dataclass
class Answer:
    """What came back on one stream: header lists, messages, and how it ended."""

    heads: list[dict[str, str]] = field(default_factory=list[dict[str, str]])
    messages: list[bytes] = field(default_factory=list[bytes])
    ended: bool = False
    reset: ErrorCode | None = None
    rest: bytes = b""

    def add(self, data: bytes) -> None:
        """More of its messages has come."""
        self.rest += data
        while len(self.rest) >= frames.PREFIX_BYTES:
            stop = frames.PREFIX_BYTES + frames.PREFIX.unpack_from(self.rest)[1]
            if len(self.rest) < stop:
                break
            self.messages.append(self.rest[frames.PREFIX_BYTES : stop])
            self.rest = self.rest[stop:]

    @property
    def status(self) -> int | None:
        """Its `grpc-status`, if it has one."""
        return int(self.heads[-1]["grpc-status"]) if self.heads and "grpc-status" in self.heads[-1] else None


class Peer:
    """One connection to `server`, and all that came back on it."""

    def __init__(self, server: RpcServer, limits: Limits) -> None:
        self.wire = Wire()
        self.connection = Connection(server, limits, asyncio.get_running_loop())
        self.wire.connection = self.connection
        self.connection.connection_made(self.wire)
        self.answers: dict[int, Answer] = {}
        self.pings: list[tuple[int, bytes]] = []
        self.windows: dict[int, int] = {}
        self.goaway: tuple[int, ErrorCode] | None = None
        self.settings: dict[int, int] = {}
        self._decoder = Decoder()
        self._rest = b""

    def send(self, *data: bytes) -> None:
        """Sends bytes, all at once."""
        self.connection.data_received(b"".join(data))

    def call(self, stream_id: int, method: str, *metadata: headers.MetadataPair, end: bool = False) -> None:
        """Begins a call."""
        block = headers.request(PATH + method, "test", metadata)
        self.send(frames.headers(stream_id, block, end_stream=end))

    async def read(self) -> Peer:
        """Lets the server do all that it can do now, and reads what it wrote."""
        for _ in range(20):
            await asyncio.sleep(0)
        found, self._rest = frames.split(self._rest + bytes(self.wire.written))
        self.wire.written.clear()
        for kind, flags, stream_id, payload in found:
            self._take(kind, flags, stream_id, payload)
        return self

    async def leave(self) -> None:
        """Its connection is lost, and the server has noticed."""
        self.wire.abort()
        await self.read()

    def answer(self, stream_id: int) -> Answer:
        """What has come back on a stream."""
        return self.answers.setdefault(stream_id, Answer())

    def _take(self, kind: int, flags: int, stream_id: int, payload: bytes) -> None:
        answer = self.answer(stream_id)
        if kind == Kind.HEADERS:
            assert flags & frames.END_HEADERS
            fields: Any = self._decoder.decode(payload)
            answer.heads.append(dict(fields))
        elif kind == Kind.DATA:
            answer.add(payload)
        elif kind == Kind.RST_STREAM:
            answer.reset = ErrorCode(int.from_bytes(payload))
        else:
            self._take_other(kind, flags, stream_id, payload)
        if kind in {Kind.DATA, Kind.HEADERS} and flags & frames.END_STREAM:
            answer.ended = True

    def _take_other(self, kind: int, flags: int, stream_id: int, payload: bytes) -> None:
        if kind == Kind.PING:
            self.pings.append((flags, payload))
        elif kind == Kind.WINDOW_UPDATE:
            self.windows[stream_id] = self.windows.get(stream_id, 0) + int.from_bytes(payload)
        elif kind == Kind.GOAWAY:
            self.goaway = int.from_bytes(payload[:4]), ErrorCode(int.from_bytes(payload[4:8]))
        elif kind == Kind.SETTINGS and not flags & frames.ACK:
            self.settings.update(frames.read_settings(payload))


class Echo:
    """Handlers of all four kinds, and some that misbehave. `calls` are the contexts, in order of their begin."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.cancelled = 0
        self.go_on = asyncio.Event()

    async def unary(self, request: bytes, call: Call) -> bytes:
        self.calls.append(call)
        return request

    async def many(self, request: bytes, call: Call) -> AsyncIterator[bytes]:
        self.calls.append(call)
        for octet in request:
            yield bytes((octet,))

    async def joined(self, requests: AsyncIterator[bytes], call: Call) -> bytes:
        self.calls.append(call)
        return b"".join([request async for request in requests])

    async def each(self, requests: AsyncIterator[bytes], call: Call) -> AsyncIterator[bytes]:
        self.calls.append(call)
        try:
            async for request in requests:
                yield request
        except asyncio.CancelledError:
            self.cancelled += 1
            raise

    async def held(self, requests: AsyncIterator[bytes], call: Call) -> AsyncIterator[bytes]:
        """Takes nothing before it may go on."""
        self.calls.append(call)
        try:
            await self.go_on.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        async for request in requests:
            yield request

    async def endless(self, request: bytes, call: Call) -> AsyncIterator[bytes]:
        """Replies for as long as somebody takes it."""
        self.calls.append(call)
        try:
            while True:
                yield request
        finally:
            self.cancelled += 1

    async def written(self, request: bytes, call: Call) -> None:
        """Writes its replies to the context, and says more than a reply can."""
        await call.send_initial_metadata((("first", "one"), ("first-bin", b"\x00\xff")))
        await call.write(request)
        call.set_trailing_metadata((("last", "two"),))
        call.set_code(grpc.StatusCode.DATA_LOSS)
        call.set_details("50% é\n")

    async def refused(self, request: bytes, call: Call) -> bytes:
        await call.abort(grpc.StatusCode.ABORTED, "no", (("why", "because"),))
        return request

    async def broken(self, request: bytes, call: Call) -> bytes:
        raise KeyError(request)

    def handlers(self) -> dict[str, Any]:
        """By the names of their methods."""
        made: Any = grpc
        return {
            "Unary": made.unary_unary_rpc_method_handler(self.unary),
            "Many": made.unary_stream_rpc_method_handler(self.many),
            "Joined": made.stream_unary_rpc_method_handler(self.joined),
            "Each": made.stream_stream_rpc_method_handler(self.each),
            "Held": made.stream_stream_rpc_method_handler(self.held),
            "Endless": made.unary_stream_rpc_method_handler(self.endless),
            "Written": made.unary_stream_rpc_method_handler(self.written),
            "Refused": made.unary_unary_rpc_method_handler(self.refused),
            "Broken": made.unary_unary_rpc_method_handler(self.broken),
        }


def serving(echo: Echo, **limits: Any) -> tuple[RpcServer, Limits]:
    """A server of the handlers, and its limits."""
    bounds = Limits(**limits)
    server = RpcServer(bounds)
    server.add_registered_method_handlers("test.Echo", echo.handlers())
    return server, bounds


def met(echo: Echo | None = None, **limits: Any) -> Peer:
    """A connection to a server of these handlers, past its first settings."""
    peer = Peer(*serving(echo or Echo(), **limits))
    peer.send(HELLO)
    return peer


def message(stream_id: int, *contents: bytes, end: bool = False) -> bytes:
    """Messages, each in a frame of its own; `end` goes with the last."""
    framed = [frames.message(stream_id, content) for content in contents[:-1]]
    return b"".join((*framed, frames.message(stream_id, contents[-1], end_stream=end)))


def pairs(metadata: Any) -> list[tuple[str, Any]]:
    """Metadata of any client as pairs."""
    return [(str(key), value) for key, value in metadata]
