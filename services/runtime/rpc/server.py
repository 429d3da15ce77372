"""The server: what generated code adds servicers to, listening sockets, and all connections."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING, Any, NamedTuple

from services.runtime.rpc.connection import Connection
from services.runtime.rpc.dispatch import Method, method_of
from services.runtime.rpc.limits import Limits

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterable, Mapping

BACKLOG = 1024
"""Connections that may wait to be accepted."""


class CallDetails(NamedTuple):
    """As `grpc.HandlerCallDetails`, as far as it is known before a call: for handlers that go by the method's name."""

    method: str
    invocation_metadata: tuple[()] = ()


class RpcServer:
    """Serves gRPC on the running event loop.

    `wrap` is given every method's path and `grpc.RpcMethodHandler` as it is added, and gives the one to use.
    """

    def __init__(
        self, limits: Limits | None = None, wrap: Callable[[str, Any], Any] = lambda _, handler: handler
    ) -> None:
        self._limits = limits or Limits()
        self._wrap = wrap
        self._methods: dict[str, Method] = {}
        self._generic: list[Any] = []
        self._sockets: list[tuple[socket.socket, ssl.SSLContext | None]] = []
        self._listeners: list[asyncio.AbstractServer] = []
        self._connections: set[Connection] = set()  # bounded by limits.connections_max
        self._nobody = asyncio.Event()
        self._nobody.set()

    # As `grpc.aio.Server`, for generated code.

    def add_generic_rpc_handlers(self, handlers: Iterable[Any]) -> None:
        """Adds handlers that find methods by themselves; they are asked for what is not registered."""
        self._generic.extend(handlers)

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Any]) -> None:
        """Adds the methods of a service."""
        for name, handler in handlers.items():
            path = f"/{service}/{name}"
            self._methods[path] = method_of(path, self._wrap(path, handler))

    def find(self, path: str) -> Method | None:
        """What a path leads to."""
        method = self._methods.get(path)
        if method is not None:
            return method
        for handlers in self._generic:
            handler = handlers.service(CallDetails(path))
            if handler is not None:
                return method_of(path, self._wrap(path, handler))
        return None

    # Addresses and connections.

    def listen(self, address: str, *, reuse_port: bool = False, ssl: ssl.SSLContext | None = None) -> int:
        """Takes `host:port` (port 0: a free one; host [::]: of both families) and gives the port.

        Who connects waits until `start`. With an `ssl` context connections are encrypted; one that asks for
        certificates makes clients show theirs.

        Raises:
            OSError: the address cannot be had.
        """
        host, _, text = address.rpartition(":")
        port = int(text)
        if ssl is not None:
            ssl.set_alpn_protocols(["h2"])
        for family, *_, found in _addresses(host.strip("[]"), port):
            bound = socket.socket(family, socket.SOCK_STREAM)
            try:
                bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if reuse_port:
                    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                if family == socket.AF_INET6:
                    bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, host not in {"[::]", "::"})
                bound.bind((found[0], port, *found[2:]))
                bound.listen(BACKLOG)  # until then another may bind the same address
            except OSError:
                bound.close()
                raise
            bound.setblocking(False)
            port = bound.getsockname()[1]
            self._sockets.append((bound, ssl))
        return port

    async def start(self) -> None:
        """Accepts connections."""
        loop = asyncio.get_running_loop()
        limits = self._limits
        while self._sockets:
            bound, context = self._sockets.pop()
            self._listeners.append(
                await loop.create_server(
                    lambda: Connection(self, limits, loop),
                    sock=bound,
                    ssl=context,
                    backlog=BACKLOG,
                    ssl_handshake_timeout=limits.handshake_s if context is not None else None,
                    ssl_shutdown_timeout=limits.close_s if context is not None else None,
                )
            )

    async def stop(self, grace_s: float) -> None:
        """Takes no further connection and no further call; calls in progress may finish within `grace_s`."""
        for bound, _ in self._sockets:
            bound.close()
        self._sockets.clear()
        for listener in self._listeners:
            listener.close()
        self._listeners.clear()
        for connection in tuple(self._connections):
            connection.leave()
        tasks = [task for connection in self._connections for task in connection.reader.tasks]
        if not await self._left(grace_s):
            for connection in tuple(self._connections):
                connection.stop()
            if not await self._left(self._limits.close_s):
                for connection in tuple(self._connections):
                    connection.abort()
        if tasks:
            await asyncio.wait(tasks, timeout=self._limits.close_s)

    async def _left(self, timeout_s: float) -> bool:
        try:
            await asyncio.wait_for(self._nobody.wait(), timeout_s)
        except TimeoutError:
            return False
        return True

    def connected(self, connection: Connection) -> bool:
        """A connection has been made; False: it may not stay."""
        if len(self._connections) >= self._limits.connections_max:
            return False
        self._connections.add(connection)
        self._nobody.clear()
        return True

    def lost(self, connection: Connection) -> None:
        """A connection is no more."""
        self._connections.discard(connection)
        if not self._connections:
            self._nobody.set()


def _addresses(host: str, port: int) -> list[Any]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    return list({entry[4]: entry for entry in found}.values())
