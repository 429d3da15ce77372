"""One gRPC call as its handler sees it: the messages that come, the replies that go, and the `context`."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Protocol

import grpc
from grpc import aio

from services.runtime.rpc import frames, headers
from services.runtime.rpc.frames import ErrorCode
from services.runtime.rpc.stream import Peer, Stream, TooLarge, Unreadable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence

    from services.runtime.rpc.headers import MetadataPair, RequestHead


class Host(Peer, Protocol):
    """The connection that a call is on."""

    loop: asyncio.AbstractEventLoop
    peer: str

    def certificate(self) -> Mapping[str, Any] | None:
        """What the peer showed over TLS; see `ssl.SSLSocket.getpeercert`."""
        ...

    def left(self, call: Call) -> None:
        """The call is over: its number will not be asked for again."""
        ...


def status_code(code: Any) -> grpc.StatusCode:  # noqa: ANN401 - an enum, its number, or the enum of the protos
    """The status that a number stands for; UNKNOWN where there is none."""
    if isinstance(code, grpc.StatusCode):
        return code
    return _CODES.get(int(code), grpc.StatusCode.UNKNOWN)


_CODES = {code.value[0]: code for code in grpc.StatusCode}


class Call(Stream):
    """The part of `grpc.aio.ServicerContext` that servicers use, and the asynchronous iterator over the requests.

    When the client resets the call, when its connection is lost and when its deadline passes, the handler's task is
    cancelled; whoever sends after that gets `CancelledError`.
    """

    __slots__ = (
        "_callbacks", "_cancelled", "_code", "_deadline", "_deserialize", "_details", "_head", "_host", "_initial",
        "_loop", "_opened", "_serialize", "_timer", "_trailing", "opened_at", "task",
    )  # fmt: skip

    def __init__(
        self,
        stream_id: int,
        host: Host,
        send_window: int,
        head: RequestHead,
        deserialize: Callable[[bytes], Any] | None,
        serialize: Callable[[Any], bytes] | None,
    ) -> None:
        super().__init__(stream_id, host, send_window, head.encoding)
        self._host = host
        self._loop = loop = host.loop
        self._head = head
        self._deserialize = deserialize
        self._serialize = serialize
        self._opened = False
        self._cancelled = False
        self._code: grpc.StatusCode | None = None
        self._details = ""
        self._initial: Sequence[MetadataPair] = ()
        self._trailing: Sequence[MetadataPair] = ()
        self._callbacks: list[Callable[[Call], object]] = []  # bounded by the handler
        self.opened_at = loop.time()
        self.task: asyncio.Task[None] | None = None
        self._deadline: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        if head.timeout_s is not None:
            self._deadline = self.opened_at + head.timeout_s
            self._timer = loop.call_at(self._deadline, self._expire)

    def launch(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Runs the handler in a task of its own."""
        self.task = task = self._loop.create_task(work)
        return task

    # The requests.

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:  # noqa: ANN401 - any message
        while not self.inbox:
            if self.closed:
                raise asyncio.CancelledError
            if self.ended:
                raise StopAsyncIteration
            self._waiter = waiter = self._loop.create_future()
            await waiter
        try:
            message = self.take()
            return message if self._deserialize is None else self._deserialize(message)
        except TooLarge as error:
            self.exhausted(str(error))
        except Unreadable as error:
            self.broken(str(error))
        except Exception:  # noqa: BLE001 - of whatever parses
            self.broken("a request that cannot be parsed")
        raise asyncio.CancelledError

    async def read(self) -> Any:  # noqa: ANN401 - any message
        """The next request, or `grpc.aio.EOF`."""
        return await anext(self, aio.EOF)

    # The replies.

    def opening(self) -> bytes | None:
        """The frame with the response's headers, the first time."""
        if self._opened:
            return None
        self._opened = True
        return frames.headers(
            self.stream_id, headers.response(self._initial), end_stream=False, frame_max=self.outbox.frame_max
        )

    async def write(self, reply: Any) -> None:  # noqa: ANN401 - any message
        """Sends a reply, once there is room for it."""
        message = reply if self._serialize is None else self._serialize(reply)
        if self.closed:
            raise asyncio.CancelledError
        if not self.outbox.send(self, message):
            await self.outbox.push(self, message)

    async def send_initial_metadata(self, metadata: Sequence[MetadataPair]) -> None:
        """Sends the headers of the response now; else they go with the first reply."""
        if self._opened:
            raise aio.UsageError("the headers have been sent")
        headers.response(metadata)  # refuses what cannot be sent while the handler can still tell why
        self._initial = tuple(metadata)
        if not self.closed and (opening := self.opening()) is not None:
            self.outbox.put(opening)

    # How it ends.

    def set_code(self, code: Any) -> None:  # noqa: ANN401 - as `status_code`
        """What the call ends with, if its handler returns."""
        self._code = status_code(code)

    def set_details(self, details: str) -> None:
        """Text that goes with the code."""
        self._details = details

    def set_trailing_metadata(self, metadata: Sequence[MetadataPair]) -> None:
        """What goes with the status."""
        self._trailing = tuple(metadata)

    def code(self) -> grpc.StatusCode | None:
        """The status set so far, or the one that the call ended with."""
        return self._code

    def details(self) -> str:
        """The text set so far."""
        return self._details

    def trailing_metadata(self) -> Sequence[MetadataPair]:
        """What was set to go with the status."""
        return self._trailing

    async def abort(
        self, code: grpc.StatusCode, details: str = "", trailing_metadata: Sequence[MetadataPair] = ()
    ) -> None:
        """Ends the call with this status.

        Raises:
            grpc.aio.AbortError: always, to leave the handler.
        """
        code = status_code(code)
        self._trailing = (*self._trailing, *trailing_metadata)
        self.finish(grpc.StatusCode.UNKNOWN if code is grpc.StatusCode.OK else code, details)
        raise aio.AbortError

    async def abort_with_status(self, status: grpc.Status) -> None:
        """See `abort`."""
        await self.abort(status.code, str(status.details or ""), tuple(status.trailing_metadata or ()))

    def finish(self, code: grpc.StatusCode, details: str = "") -> None:
        """Sends the status, unless the call is over."""
        if self.closed:
            return
        self._code, self._details = code, details
        self._send_status(code, details, self._trailing)
        self._leave()

    def fail(self, code: grpc.StatusCode, details: str) -> None:
        """Ends the call with this status and cancels its handler."""
        if self.closed:
            return
        self.finish(code, details)
        if self.task is not None:
            self.task.cancel()

    def gone(self) -> None:
        """The client has left, or its connection has: nothing more is told to it."""
        if not self.closed:
            self._cancelled = True
            self._code = grpc.StatusCode.CANCELLED
            self._leave()
            if self.task is not None:
                self.task.cancel()

    def reset(self, code: ErrorCode) -> None:
        """The client broke the rules of streams: says so and cancels the handler."""
        if not self.closed:
            self.outbox.put(frames.rst_stream(self.stream_id, code))
            self.gone()

    def exhausted(self, details: str) -> None:
        """See `Stream`."""
        self.fail(grpc.StatusCode.RESOURCE_EXHAUSTED, details)

    def broken(self, details: str) -> None:
        """See `Stream`."""
        self.fail(grpc.StatusCode.INTERNAL, details)

    def stalled(self) -> None:
        """The client takes no reply for too long."""
        self.fail(grpc.StatusCode.RESOURCE_EXHAUSTED, "the client takes no replies")

    def _expire(self) -> None:
        if not self.closed:
            self._cancelled = True
            self.fail(grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded")

    def _send_status(self, code: grpc.StatusCode, details: str, trailing: Sequence[MetadataPair]) -> None:
        number: int = code.value[0]
        try:
            if self._opened:
                block = headers.trailers(number, details, trailing)
            else:
                initial = headers.encode(map(headers.wire_pair, self._initial)) if self._initial else b""
                block = headers.RESPONSE + initial + headers.trailers(number, details, trailing)
        except ValueError:
            self._send_status(grpc.StatusCode.INTERNAL, "metadata of the response that cannot be sent", ())
            return
        self._opened = True
        put = self.outbox.put
        put(frames.headers(self.stream_id, block, end_stream=True, frame_max=self.outbox.frame_max))
        if not self.ended:
            put(frames.rst_stream(self.stream_id, ErrorCode.NO_ERROR))  # nobody takes what is still to come

    def _leave(self) -> None:
        self.close()
        if self._timer is not None:
            self._timer.cancel()
        self._host.left(self)
        for callback in self._callbacks:
            callback(self)
        self._callbacks = []

    # What is known of it.

    def time_remaining(self) -> float | None:
        """Seconds until its deadline; None: it has none."""
        return None if self._deadline is None else max(0.0, self._deadline - self._loop.time())

    def invocation_metadata(self) -> tuple[MetadataPair, ...]:
        """What the client sent with the call."""
        return self._head.metadata

    def peer(self) -> str:
        """Address of the client, as gRPC writes them."""
        return self._host.peer

    def peer_certificate(self) -> Mapping[str, Any] | None:
        """The certificate that the client showed, as `ssl.SSLSocket.getpeercert` tells it; None: it showed none."""
        return self._host.certificate()

    def add_done_callback(self, callback: Callable[[Call], object]) -> None:
        """Calls back with this object when the call is over."""
        if self.closed:
            callback(self)
        else:
            self._callbacks.append(callback)

    def cancelled(self) -> bool:
        """True if the call ended before its handler did."""
        return self._cancelled

    def done(self) -> bool:
        """True if the call is over."""
        return self.closed
