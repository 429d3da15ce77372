"""Takes the frames of one peer apart, keeps it within the rules and within bounds, and opens its calls. No sockets."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, Protocol

import grpc
from hpack import Decoder
from hpack.exceptions import HPACKError, OversizedHeaderListError

from services.runtime.rpc import dispatch, frames, headers
from services.runtime.rpc.call import Call
from services.runtime.rpc.frames import ConnectionFault, ErrorCode, Kind, Setting
from services.runtime.rpc.guard import Guard
from services.runtime.rpc.outbox import Outbox

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Mapping

    from services.runtime.rpc.dispatch import Method
    from services.runtime.rpc.limits import Limits

FRAME_BYTES_TAKEN = 2**18
"""Largest frame that is taken: a large message in few of them costs less."""
BLOCK_PER_LIST = 4
"""A header list this many times too large ends the connection, one that is less so the call alone."""

_FIELD_COST = 32  # of each header beside its text, by RFC 9113
_LENGTHS = {Kind.PRIORITY: 5, Kind.RST_STREAM: 4, Kind.PING: 8, Kind.WINDOW_UPDATE: 4}


class Service(Protocol):
    """Whoever has the handlers."""

    def find(self, path: str) -> Method | None:
        """What a path leads to."""
        ...


class Reader:
    """See the module. What the peer is told goes into `outbox`; `calls` are those in progress, by their streams.

    Attributes:
        tasks: handlers that run, those of calls that are over included.
        latest: the newest stream.
        on_idle: called when the last call has ended after `leave`.
    """

    def __init__(self, service: Service, limits: Limits, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.limits = limits
        self.outbox = Outbox(loop, limits)
        self.guard = Guard(
            loop.time,
            lambda: self.outbox.sent + self.assembled,
            control_max=limits.control_frames_max,
            resets_max=limits.resets_max,
        )
        self.calls: dict[int, Call] = {}
        self.tasks: set[asyncio.Task[None]] = set()  # bounded by limits.streams_max
        self.peer = ""
        self.certificate: Callable[[], Mapping[str, Any] | None] = lambda: None
        self.on_idle: Callable[[], object] = lambda: None
        self.window = limits.connection_window
        self.waiting = 0
        self.partial = 0
        self.assembled = 0
        self.starved = False
        self.settled = False
        self.latest = 0
        self.leaving = False
        self._service = service
        self._rest = bytearray()  # bounded by the largest frame
        self._needed = 0
        self._greeted = False
        self._window_at_first = frames.WINDOW_AT_FIRST
        self._decoder = Decoder(max_header_list_size=BLOCK_PER_LIST * limits.header_bytes_max)
        self._block: bytearray | None = None  # a header block of which a part has come
        self._block_flags = 0
        self._block_stream = 0
        self._takers = (
            self._data, self._headers, self._priority, self._rst_stream, self._settings, self._push_promise,
            self._ping, self._goaway, self._window_update, self._continuation,
        )  # fmt: skip

    def greet(self) -> None:
        """Tells the peer what it may do."""
        limits = self.limits
        self.outbox.put(
            frames.settings(
                {
                    Setting.MAX_CONCURRENT_STREAMS: limits.streams_max,
                    Setting.INITIAL_WINDOW_SIZE: limits.stream_window,
                    Setting.MAX_FRAME_SIZE: FRAME_BYTES_TAKEN,
                    Setting.MAX_HEADER_LIST_SIZE: limits.header_bytes_max,
                }
            )
        )
        self.outbox.put(frames.window_update(0, limits.connection_window - frames.WINDOW_AT_FIRST))

    def leave(self) -> None:
        """Tells the peer that no further call is taken."""
        if not self.leaving:
            self.leaving = True
            self.outbox.put(frames.goaway(self.latest, ErrorCode.NO_ERROR))

    def left(self, call: Call) -> None:
        """A call is over."""
        self.calls.pop(call.stream_id, None)
        if self.leaving and not self.calls:
            self.on_idle()

    def feed(self, data: bytes) -> None:
        """Bytes have come.

        Raises:
            ConnectionFault: the peer breaks the rules.
        """
        if self._rest or not self._greeted:
            self._rest += data
            if len(self._rest) < self._needed:
                return
            data = bytes(self._rest)
            self._rest.clear()
            if not self._greeted:
                data = self._greeting(data)
        self._parse(data)

    def _greeting(self, data: bytes) -> bytes:
        """What follows the preface."""
        size = len(frames.PREFACE)
        if not frames.PREFACE.startswith(data[:size]):
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "no preface of HTTP/2")
        if len(data) < size:
            self._rest += data
            return b""
        self._greeted = True
        return data[size:]

    def _parse(self, data: bytes) -> None:
        at, end = 0, len(data)
        calls = self.calls
        unpack = frames.HEAD.unpack_from
        while end - at >= frames.HEAD_BYTES:
            high, low, kind, flags, stream_id = unpack(data, at)
            start = at + frames.HEAD_BYTES
            length = high << 8 | low
            stop = start + length
            if length > FRAME_BYTES_TAKEN:
                raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "a frame larger than was said to be taken")
            if stop > end:
                break
            if not kind and flags <= frames.END_STREAM and self._block is None and (call := calls.get(stream_id)):
                self.window -= length
                call.receive(data, start, stop)
                if flags:
                    call.end()
            else:
                self._take(kind, flags, stream_id & frames.STREAM_MOST, data[start:stop])
            at = stop
        if at < end:
            self._keep(data, at, end)
        if self.window < self.limits.connection_window >> 1:
            if self.window < 0:
                raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "more than the window of the connection")
            self.replenish()

    def _keep(self, data: bytes, at: int, end: int) -> None:
        self._rest += memoryview(data)[at:end]
        self._needed = frames.HEAD_BYTES
        if end - at >= frames.HEAD_BYTES:
            high, low, *_ = frames.HEAD.unpack_from(data, at)
            self._needed += high << 8 | low

    def replenish(self) -> None:
        """Renews the connection's window, unless handlers have taken too little of what has come."""
        self.starved = self.waiting > self.limits.waiting_bytes_max
        missing = self.limits.connection_window - self.window
        if not self.starved and missing > self.limits.connection_window >> 1:
            self.window += missing
            self.outbox.put(frames.window_update(0, missing))

    # Frames, each by what it is.

    def _take(self, kind: int, flags: int, stream_id: int, payload: bytes) -> None:
        if not self.settled and (kind != Kind.SETTINGS or flags & frames.ACK):
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "the first frame is not SETTINGS")
        if self._block is not None and kind != Kind.CONTINUATION:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a header block that is interrupted")
        if kind not in {Kind.DATA, Kind.HEADERS}:
            self.guard.control()
        if len(payload) != _LENGTHS.get(kind, len(payload)):  # type: ignore[call-overload]
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "a frame of the wrong length")
        if kind < len(self._takers):  # others are extensions, which whoever does not know them ignores
            self._takers[kind](flags, stream_id, payload)

    def _data(self, flags: int, stream_id: int, payload: bytes) -> None:
        self._known(stream_id)
        self.window -= len(payload)
        call = self.calls.get(stream_id)
        if call is None:
            if len(payload) < frames.HEAD_BYTES:
                self.guard.control()
            return  # it was on its way when the call ended
        content = frames.unpadded(flags, payload)
        padding = len(payload) - len(content)
        if padding and not call.ended:
            # At once: a message larger than the window was promised all the room that it still needs.
            if padding > call.window:
                call.reset(ErrorCode.FLOW_CONTROL_ERROR)
                return
            self.outbox.put(frames.window_update(stream_id, padding))
        call.receive(content, 0, len(content))
        if flags & frames.END_STREAM:
            call.end()

    def _headers(self, flags: int, stream_id: int, payload: bytes) -> None:
        if not stream_id % 2:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a stream that no client may open")
        block = frames.unpadded(flags, payload)
        if flags & frames.PRIORITY:
            block = block[5:]
        self._block_flags, self._block_stream = flags, stream_id
        if flags & frames.END_HEADERS:
            self._whole_block(block)
        else:
            self._block = bytearray()
            self._more_of_block(block)

    def _continuation(self, flags: int, stream_id: int, payload: bytes) -> None:
        if self._block is None or stream_id != self._block_stream:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a continuation of nothing")
        self._more_of_block(payload)
        if flags & frames.END_HEADERS:
            block, self._block = bytes(self._block), None
            self._whole_block(block)

    def _more_of_block(self, payload: bytes) -> None:
        assert self._block is not None  # noqa: S101 - for the type checker
        self._block += payload
        if len(self._block) > BLOCK_PER_LIST * self.limits.header_bytes_max or not payload:
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "a header block without end")

    def _whole_block(self, block: bytes) -> None:
        try:
            pairs: Any = self._decoder.decode(block, raw=True)
        except OversizedHeaderListError:
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "far too many headers") from None
        except HPACKError:
            raise ConnectionFault(ErrorCode.COMPRESSION_ERROR, "headers that cannot be decompressed") from None
        stream_id, ended = self._block_stream, bool(self._block_flags & frames.END_STREAM)
        call = self.calls.get(stream_id)
        if call is not None:
            if ended and not call.ended:
                call.end()
            else:
                call.reset(ErrorCode.STREAM_CLOSED if call.ended else ErrorCode.PROTOCOL_ERROR)
        elif stream_id <= self.latest:
            self.guard.control()  # trailers that were on their way when the call ended
        else:
            self.latest = stream_id
            self._open(stream_id, pairs, ended=ended)

    def _open(self, stream_id: int, pairs: headers.Pairs, *, ended: bool) -> None:
        if self.leaving or len(self.tasks) >= self.limits.streams_max:
            self.guard.control()
            self.outbox.put(frames.rst_stream(stream_id, ErrorCode.REFUSED_STREAM))
            return
        try:
            head = headers.read_request(pairs)
        except headers.Malformed:
            self.guard.control()
            self.outbox.put(frames.rst_stream(stream_id, ErrorCode.PROTOCOL_ERROR))
            return
        except headers.Refused as refused:
            self._answer(stream_id, headers.http_status(refused.status), ended=ended)
            return
        method = self._service.find(head.path)
        refusal = self._refusal(head, pairs)
        if method is None or refusal is not None:
            code, details = refusal or (grpc.StatusCode.UNIMPLEMENTED, "Method not found!")
            accepted = head.encoding not in headers.ENCODINGS
            self._answer(stream_id, headers.trailers_only(code.value[0], details, (), accepted=accepted), ended=ended)
            return
        call = Call(stream_id, self, self._window_at_first, head, method.deserialize, method.serialize)
        self.calls[stream_id] = call
        if ended:
            call.end()
        task = call.launch(dispatch.run(method, call))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    def _refusal(self, head: headers.RequestHead, pairs: headers.Pairs) -> tuple[grpc.StatusCode, str] | None:
        """Why a call of a known method is not served: status and details."""
        size = sum(len(name) + len(value) + _FIELD_COST for name, value in pairs)
        if size > self.limits.header_bytes_max:
            return grpc.StatusCode.RESOURCE_EXHAUSTED, f"more than {self.limits.header_bytes_max} bytes of metadata"
        if head.encoding not in headers.ENCODINGS:
            return grpc.StatusCode.UNIMPLEMENTED, "messages compressed in a way that is not known here"
        if head.timeout_s is not None and head.timeout_s < 0:
            return grpc.StatusCode.INTERNAL, "a grpc-timeout that cannot be read"
        return None

    def _answer(self, stream_id: int, block: bytes, *, ended: bool) -> None:
        self.guard.control()
        self.outbox.put(frames.headers(stream_id, block, end_stream=True, frame_max=self.outbox.frame_max))
        if not ended:
            self.outbox.put(frames.rst_stream(stream_id, ErrorCode.NO_ERROR))

    def _priority(self, flags: int, stream_id: int, payload: bytes) -> None:
        """Is read over: all calls are served alike."""

    def _rst_stream(self, flags: int, stream_id: int, payload: bytes) -> None:  # noqa: ARG002 - as all frames
        self._known(stream_id)
        call = self.calls.get(stream_id)
        if call is not None:
            call.gone()
            self.guard.reset(call.opened_at)

    def _settings(self, flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "SETTINGS of a stream")
        if flags & frames.ACK:
            if payload:
                raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "an acknowledgement that says something")
            return
        self.settled = True
        for key, value in frames.read_settings(payload):
            self._set(key, value)
        self.outbox.put(frames.SETTINGS_ACK)

    def _set(self, key: int, value: int) -> None:
        if key == Setting.INITIAL_WINDOW_SIZE:
            if value > frames.WINDOW_MOST:
                raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "a window larger than any")
            change, self._window_at_first = value - self._window_at_first, value
            for call in self.calls.values():
                self._widen(call, change)
        elif key == Setting.MAX_FRAME_SIZE:
            if not frames.FRAME_BYTES_LEAST <= value <= frames.FRAME_BYTES_MOST:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "frames of a size that there is not")
            self.outbox.frame_max = min(value, FRAME_BYTES_TAKEN)
        elif key == Setting.ENABLE_PUSH and value > 1:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "neither yes nor no")

    def _widen(self, call: Call, change: int) -> None:
        call.send_window += change
        if call.send_window > frames.WINDOW_MOST:
            raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "a window larger than any")
        room = call.room
        if room is not None and call.send_window > 0:
            call.room = None
            if not room.done():
                room.set_result(None)

    def _window_update(self, flags: int, stream_id: int, payload: bytes) -> None:  # noqa: ARG002 - as all frames
        (increment,) = struct.unpack(">L", payload)
        increment &= frames.WINDOW_MOST
        if not stream_id:
            self.outbox.window += increment
            if not increment:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a window that is renewed by nothing")
            if self.outbox.window > frames.WINDOW_MOST:
                raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "a window larger than any")
            self.outbox.wake()
            return
        self._known(stream_id)
        call = self.calls.get(stream_id)
        if call is None:
            return
        if not increment:
            call.reset(ErrorCode.PROTOCOL_ERROR)
        elif call.send_window + increment > frames.WINDOW_MOST:
            call.reset(ErrorCode.FLOW_CONTROL_ERROR)
        else:
            self._widen(call, increment)

    def _ping(self, flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "PING of a stream")
        if not flags & frames.ACK:
            self.outbox.put(frames.ping(payload, ack=True))

    def _push_promise(self, flags: int, stream_id: int, payload: bytes) -> None:  # noqa: ARG002 - as all frames
        raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a promise, of a client")

    def _goaway(self, flags: int, stream_id: int, payload: bytes) -> None:
        """The client opens no further streams, and leaves when those that are open have ended."""

    def _known(self, stream_id: int) -> None:
        if not stream_id or stream_id > self.latest:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a stream that nobody opened")
