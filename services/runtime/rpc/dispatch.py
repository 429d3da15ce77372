"""Runs the handler of a call, of any of the four kinds."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import grpc
import structlog
from grpc import aio

if TYPE_CHECKING:
    from collections.abc import Callable

    from services.runtime.rpc.call import Call

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Method:
    """What a path leads to.

    Attributes:
        behaviour: takes the request, or an iterator over them, and the context; gives a reply, or an iterator, or, if
            it writes its replies to the context, nothing.
    """

    path: str
    behaviour: Callable[[Any, Any], Any]
    streams_requests: bool
    streams_replies: bool
    deserialize: Callable[[bytes], Any] | None
    serialize: Callable[[Any], bytes] | None


def method_of(path: str, handler: Any) -> Method:  # noqa: ANN401 - a grpc.RpcMethodHandler, whose stubs know no fields
    """What a handler of gRPC says of itself."""
    kinds = (handler.unary_unary, handler.unary_stream, handler.stream_unary, handler.stream_stream)
    return Method(
        path,
        next(kind for kind in kinds if kind is not None),
        handler.request_streaming,
        handler.response_streaming,
        handler.request_deserializer,
        handler.response_serializer,
    )


async def run(method: Method, call: Call) -> None:
    """Serves one call and ends it, whatever its handler does."""
    try:
        request = call if method.streams_requests else await anext(call, None)
        if request is None:
            call.finish(grpc.StatusCode.INTERNAL, "no request before the end of the requests")
            return
        result = method.behaviour(request, call)
        if method.streams_replies:
            await _stream(method, call, result)
        else:
            reply = await result if hasattr(result, "__await__") else result
            if not call.closed and call.code() in _FINE:
                await call.write(reply)
        call.finish(call.code() or grpc.StatusCode.OK, call.details())
    except aio.AbortError:
        pass
    except asyncio.CancelledError:
        call.finish(grpc.StatusCode.CANCELLED, "the call was cancelled")
        raise
    except Exception as error:  # noqa: BLE001 - of whatever a handler raises its client is told
        code = call.code()
        if code is not None and code is not grpc.StatusCode.OK:  # it has said how
            call.finish(code, call.details())
        elif not call.closed:
            # Its text may quote what the client sent.
            _log.error("handler broke", method=method.path, error=type(error).__name__)
            call.finish(grpc.StatusCode.UNKNOWN, "the handler broke")


_FINE = (None, grpc.StatusCode.OK)


async def _stream(method: Method, call: Call, replies: Any) -> None:  # noqa: ANN401 - what a handler gives
    if not hasattr(replies, "__aiter__"):
        if hasattr(replies, "__await__"):
            await replies
        return
    serialize = method.serialize
    outbox = call.outbox
    send = outbox.send
    try:
        async for reply in replies:
            message = reply if serialize is None else serialize(reply)
            if call.closed:
                raise asyncio.CancelledError
            if not send(call, message):
                await outbox.push(call, message)
    finally:
        # It has come to its end by itself, unless this was left by an error.
        if hasattr(replies, "aclose"):
            await replies.aclose()
