"""A replica's side of simulated gRPC: takes calls as `RpcServer` does and hands them to real servicers."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, cast

import grpc
from grpc import aio

from tests.kit.simulated_calls import Exchange, ServedCall
from tests.kit.simulated_status import Status

if TYPE_CHECKING:
    from collections.abc import Callable

    from services.runtime.transport.gate import Gate
    from tests.kit.virtual_time import Node, VirtualTimeLoop


class Context:
    """As `Call`, as far as servicers of ours use it."""

    def __init__(self, call: ServedCall) -> None:
        self._call = call
        self._code: grpc.StatusCode | None = None

    def time_remaining(self) -> float | None:
        """Simulated clients set no deadline on a call: they cancel it."""
        return None

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        """See `grpc.aio.ServicerContext`."""
        return ()

    def code(self) -> grpc.StatusCode | None:
        """See `grpc.aio.ServicerContext`."""
        return self._code

    async def abort_with_status(self, status: Any) -> None:
        """See `grpc.aio.ServicerContext`."""
        self._code = status.code
        self._call.finish(Status(status.code, status.details, tuple(status.trailing_metadata)))
        raise aio.AbortError

    async def abort(self, code: grpc.StatusCode, details: str) -> None:
        """See `grpc.aio.ServicerContext`."""
        self._code = code
        self._call.finish(Status(code, details))
        raise aio.AbortError


class Server:
    """Takes the calls of one replica. Servicers are added to it as to a server of grpc; all calls pass the gate."""

    def __init__(self, node: Node, loop: VirtualTimeLoop, gate: Gate, broke: Callable[[BaseException], None]) -> None:
        self.node = node
        self.name = node.name
        self._loop = loop
        self._gate = gate
        self._broke = broke
        self._handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}
        self._open: dict[ServedCall, None] = {}
        self._stopped = False

    def add_registered_method_handlers(self, service: str, handlers: dict[str, Any]) -> None:
        """As `grpc.aio.Server`."""
        for method, handler in handlers.items():
            self._handlers[f"/{service}/{method}"] = handler

    def add_generic_rpc_handlers(self, handlers: Any) -> None:
        """The generated code calls both; one is enough."""

    def add_stream(self, method: str, behaviour: Any, parse: Callable[[bytes], Any]) -> None:
        """Adds a streaming method that gives serialised replies."""
        self._handlers[method] = cast("Any", grpc.stream_stream_rpc_method_handler)(behaviour, parse)

    def accept(self, exchange: Exchange) -> ServedCall:
        """A call has come; it is served in a task of its own, as a turn of this replica's process."""
        handler: Any = self._handlers[exchange.method]
        call = ServedCall(self._loop, exchange, handler.request_deserializer)
        self._open[call] = None
        call.task = self.node.spawn(self._serve(call, exchange.method, handler))
        return call

    async def stop(self, grace_s: float) -> None:
        """Takes no further call, and cancels those that are still open after `grace_s`."""
        self._stopped = True
        tasks = [call.task for call in self._open if call.task is not None]
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=grace_s)
            for call in tuple(self._open):
                if call.task in late:
                    call.finish(Status(grpc.StatusCode.UNAVAILABLE, "Server shutting down"))
            for task in late:
                task.cancel()

    async def _serve(self, call: ServedCall, method: str, handler: Any) -> None:
        if self._stopped:
            call.finish(Status(grpc.StatusCode.UNAVAILABLE, "Server shutting down"))
            del self._open[call]
            return
        context = Context(call)
        wrapped = self._gate.wrap(method, self._watched(handler))
        try:
            if wrapped.stream_stream is not None:
                async for response in wrapped.stream_stream(call, context):
                    await call.respond(response)
            else:
                request = await anext(call)
                response = await wrapped.unary_unary(request, context)
                await call.respond(wrapped.response_serializer(response))
            call.finish(Status(grpc.StatusCode.OK))
        except (aio.AbortError, StopAsyncIteration):
            pass
        except asyncio.CancelledError:
            call.finish(Status(grpc.StatusCode.CANCELLED, "cancelled"))
        finally:
            self._open.pop(call, None)

    def _watched(self, handler: Any) -> Any:
        """The handler, except that what it raises beside errors of ours is reported as a fault of the engine."""
        inner = handler.stream_stream or handler.unary_unary

        async def stream(requests: Any, context: Any) -> Any:
            try:
                async for response in inner(requests, context):
                    yield response
            except Exception as error:
                self._broke(error)
                raise

        async def unary(request: Any, context: Any) -> Any:
            try:
                return await inner(request, context)
            except Exception as error:
                self._broke(error)
                raise

        if handler.stream_stream is not None:
            return cast("Any", grpc.stream_stream_rpc_method_handler)(stream, handler.request_deserializer)
        return grpc.unary_unary_rpc_method_handler(unary, handler.request_deserializer, handler.response_serializer)
