"""What every call passes: the bounds on calls at once, errors to statuses, and the request metrics."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

import grpc
import structlog
from google.protobuf.message import DecodeError

from services.runtime.core.errors import CapacityExceeded, Draining, InvalidInput, NotReady, StatestreamError
from services.runtime.transport.status import code_name, to_status

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable

_log = structlog.get_logger(__name__)

T = TypeVar("T")

OPEN_TO_ALL = ("/grpc.health.", "/grpc.reflection.")
"""Methods that answer while the server is full or stops."""


class CallEvents(Protocol):
    """What a gate tells of calls."""

    def call_started(self, method: str) -> None:
        """A call arrived."""
        ...

    def call_ended(self, method: str, code: str, seconds: float) -> None:
        """A call ended with this gRPC code after so many seconds."""
        ...


class Malformed:
    """Stands for a message that is not what its method takes; whoever gets it refuses it."""

    def __init__(self, message: str) -> None:
        self.error = InvalidInput("request", message)


def well_formed(message: T) -> T:
    """The message, unless it could not be parsed.

    Raises:
        InvalidInput: it could not.
    """
    if isinstance(message, Malformed):
        raise message.error
    return message


class Gate:
    """Wraps the handlers of a server. `calls_max` bounds unary calls, `streams_max` streams.

    `open_calls` are further methods, by their full paths, that answer while the server is full or stops.
    """

    def __init__(self, calls_max: int, streams_max: int, events: CallEvents, open_calls: Iterable[str] = ()) -> None:
        self._free = {"call": calls_max, "stream": streams_max}
        self._open_to_all = (*OPEN_TO_ALL, *open_calls)
        self._events = events
        # Made anew for each call: an exception that is raised again keeps the traceback of every raise before.
        self._refusal: Callable[[], StatestreamError] | None = lambda: NotReady("models are being loaded")

    @property
    def is_open(self) -> bool:
        """True while calls are let in."""
        return self._refusal is None

    def open(self) -> None:
        """Lets calls in: the models are warm."""
        self._refusal = None

    def drain(self) -> None:
        """Lets no further call in: this replica stops."""
        self._refusal = lambda: Draining("this replica is stopping")

    def wrap(self, method: str, handler: Any) -> Any:  # noqa: ANN401 - handlers of any message
        """The handler (`grpc.RpcMethodHandler`) that serves a method's calls as far as this lets them in."""
        if method.startswith(self._open_to_all):
            return handler
        if handler.stream_stream is not None:
            return cast("Any", grpc.stream_stream_rpc_method_handler)(
                self._stream(method, handler.stream_stream),
                _tolerant(handler.request_deserializer),
                response_serializer=None,  # replies of sequences come serialised
            )
        return grpc.unary_unary_rpc_method_handler(
            self._unary(method, handler.unary_unary),
            _tolerant(handler.request_deserializer),
            handler.response_serializer,
        )

    def _unary(self, method: str, inner: Callable[[Any, Any], Awaitable[Any]]) -> Callable[[Any, Any], Awaitable[Any]]:
        async def call(request: Any, context: Any) -> Any:  # noqa: ANN401 - any message
            visit = _Visit(self, method, "call")
            try:
                visit.enter()
                response = await inner(well_formed(request), context)
            except BaseException as error:
                await visit.fail(error, context)
                raise
            visit.leave("OK")
            return response

        return call

    def _stream(
        self, method: str, inner: Callable[[Any, Any], AsyncIterator[Any]]
    ) -> Callable[[Any, Any], AsyncIterator[Any]]:
        async def call(requests: Any, context: Any) -> AsyncIterator[Any]:  # noqa: ANN401 - any message
            visit = _Visit(self, method, "stream")
            try:
                visit.enter()
                async for response in inner(requests, context):
                    yield response
            except BaseException as error:
                await visit.fail(error, context)
                raise
            visit.leave("OK")

        return call

    def take(self, kind: str) -> None:
        """Lets one call in.

        Raises:
            NotReady: the models are not warm yet.
            Draining: this replica stops.
            CapacityExceeded: too many calls of the kind are in progress.
        """
        if self._refusal is not None:
            raise self._refusal()
        if not self._free[kind]:
            raise CapacityExceeded(f"too many {kind}s at once", retry_delay_s=1.0)
        self._free[kind] -= 1

    def give_back(self, kind: str) -> None:
        """One call has left."""
        self._free[kind] += 1

    @property
    def events(self) -> CallEvents:
        """Where calls are told of."""
        return self._events


class _Visit:
    """One call on its way through the gate."""

    def __init__(self, gate: Gate, method: str, kind: str) -> None:
        self._gate = gate
        self._method = method
        self._kind = kind
        self._entered = False
        self._started = time.perf_counter()
        gate.events.call_started(method)

    def enter(self) -> None:
        self._gate.take(self._kind)
        self._entered = True

    def leave(self, code: str) -> None:
        if self._entered:
            self._gate.give_back(self._kind)
        self._gate.events.call_ended(self._method, code, time.perf_counter() - self._started)

    async def fail(self, error: BaseException, context: Any) -> None:  # noqa: ANN401 - grpc gives it no common type
        """Ends the call with the error's status. The text of what is not ours stays here."""
        if isinstance(error, StatestreamError):
            self.leave(code_name(error))
            if error.__cause__ is not None:
                _log.warning(
                    "call failed", method=self._method, reason=error.reason, cause=type(error.__cause__).__name__
                )
            await context.abort_with_status(to_status(error))
        elif isinstance(error, asyncio.CancelledError | GeneratorExit):
            self.leave(code.name if (code := context.code()) is not None else "CANCELLED")  # its deadline, perhaps
        elif isinstance(error, grpc.aio.AbortError):
            self.leave(context.code().name)
        else:
            self.leave("INTERNAL")
            # The message of a foreign error may quote what the client sent; its type and place do not.
            _log.error("call broke", method=self._method, error=type(error).__name__, place=_place(error))
            await context.abort(grpc.StatusCode.INTERNAL, "internal error")


def _place(error: BaseException) -> str:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return f"{trace.tb_frame.f_code.co_qualname}:{trace.tb_lineno}" if trace is not None else "unknown"


def _tolerant(deserialize: Callable[[bytes], Any] | None) -> Callable[[bytes], Any] | None:
    if deserialize is None:
        return None

    def parse(data: bytes) -> Any:  # noqa: ANN401 - any message
        try:
            return deserialize(data)
        except DecodeError:
            return Malformed("is not a message of this method, or holds text that is not UTF-8")

    return parse
