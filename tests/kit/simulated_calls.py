"""gRPC between clients and replicas, simulated: calls that are slow, break, hang, and are spread over the replicas.

A client holds what `grpc.aio` would give it (`Channel`, `StreamCall`), a replica serves as `RpcServer` would let it
(`Server`). Between them each call is a pair of pipes that keep their order and may be cut at any point: before or after
a message has arrived, on both sides at once or on one long before the other.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple

import grpc
from grpc import aio

from tests.kit.simulated_status import Status, broken, refused, rpc_error

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    from tests.kit.simulated_server import Server
    from tests.kit.virtual_time import Node, VirtualTimeLoop


class Item(NamedTuple):
    """What travels: `kind` is open, message, half_close, cancel or status."""

    kind: str
    payload: Any = None


class Network:
    """Between the clients and the replicas.

    Attributes:
        delay_s_max: longest way of a message.
        breaking: probability, for each message, that its connection breaks at it.
        servers: replicas that the balancer sends calls to, whether they are up or not.
    """

    def __init__(self, loop: VirtualTimeLoop, rng: random.Random, trace: Callable[..., None]) -> None:
        self.loop = loop
        self.rng = rng
        self.trace = trace
        self.delay_s_max = 0.002
        self.breaking = 0.0
        self.servers: list[Server] = []
        self.calls = 0

    def pick(self) -> Server | None:
        """Any replica that the balancer has."""
        return self.rng.choice(self.servers) if self.servers else None

    def delay(self) -> float:
        """Seconds that a message takes; now and then much longer than the others."""
        times = 20 if self.rng.random() < 0.02 else 1
        return self.rng.random() * self.delay_s_max * times

    def notice(self) -> float:
        """Seconds until one side of a broken connection hears of it; now and then it does not for long."""
        chance = self.rng.random()
        if chance < 0.1:
            return self.rng.uniform(1.0, 8.0)
        return self.rng.random() * (0.5 if chance < 0.3 else 0.02)


class Channel:
    """A channel to the balancer, as a process of a client has it."""

    def __init__(self, network: Network, node: Node) -> None:
        self._network = network
        self._node = node

    def stream_stream(
        self, method: str, request_serializer: Any, response_deserializer: Any, **_: Any
    ) -> Callable[[], StreamCall]:
        """As a channel of grpc.aio."""
        return lambda: StreamCall(self._network, self._node, method, request_serializer, response_deserializer)

    def unary_unary(
        self, method: str, request_serializer: Any, response_deserializer: Any, **_: Any
    ) -> Callable[..., Any]:
        """As a channel of grpc.aio, except that the call begins when it is awaited."""

        async def call(request: Any, *, timeout: float | None = None) -> Any:  # noqa: ASYNC109 - as in gRPC
            made = StreamCall(self._network, self._node, method, request_serializer, response_deserializer)
            try:
                async with asyncio.timeout(timeout):
                    await made.write(request)
                    await made.done_writing()
                    reply = await made.read()
            except TimeoutError:
                made.cancel()
                raise rpc_error(Status(grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded")) from None
            if reply is aio.EOF:
                raise rpc_error(Status(grpc.StatusCode.INTERNAL, "no reply"))
            return reply

        return call


class Exchange:
    """One call on its way: two pipes, and whom they join."""

    def __init__(self, network: Network, client: StreamCall, node: Node, method: str) -> None:
        self._network = network
        self._client = client
        self._due = {"up": 0.0, "down": 0.0}
        self._dropping = {"up": False, "down": False}
        self._server = network.pick()
        self._served: ServedCall | None = None
        self._cut = False
        network.calls += 1
        self.number = network.calls
        self.method = method
        self.to = self._server.name if self._server is not None else "nobody"
        network.trace(node.name, "calls", self.to, self.number)
        node.on_crash.append(self._client_died)
        if self._server is None or not self._server.node.alive:
            self._cut = True
            self._at(network.delay(), client.finish, refused())
            return
        self._server.node.on_crash.append(self._server_died)
        self.up(Item("open"))

    def up(self, item: Item) -> None:
        """Sends to the server."""
        self._send("up", item)

    def down(self, item: Item) -> None:
        """Sends to the client."""
        self._send("down", item)

    def _send(self, way: str, item: Item) -> None:
        if self._cut:
            return
        network = self._network
        if network.rng.random() < network.breaking:
            if network.rng.random() < 0.5:
                self._schedule(way, item)
            self.cut()
            return
        self._schedule(way, item)

    def _schedule(self, way: str, item: Item) -> None:
        due = max(self._due[way], self._network.loop.time() + self._network.delay())
        self._due[way] = due
        self._network.loop.at(due, self._arrive, way, item)

    def _arrive(self, way: str, item: Item) -> None:
        if self._dropping[way]:
            return
        if way == "down":
            self._client.arrive(item)
        elif self._server is not None and self._server.node.alive:
            if item.kind == "open":
                self._served = self._server.accept(self)
            elif self._served is not None:
                self._served.arrive(item)

    def cut(self) -> None:
        """Breaks the connection now; each side hears of it in its own time."""
        if self._cut:
            return
        network, rng = self._network, self._network.rng
        self._cut = True
        network.trace("network", "cuts", self.to, self.number)
        for way in ("up", "down"):
            self._dropping[way] = rng.random() < 0.5
        self._at(network.notice(), self._client.finish, broken())
        self._at(network.notice(), self._tell_server)

    def give_up(self) -> None:
        """The client cancels the call; while connections break, what tells the server of it may be lost."""
        if self._network.breaking and self._network.rng.random() < 0.3:
            self.cut()
        else:
            self.up(Item("cancel"))

    def _tell_server(self) -> None:
        if self._served is not None:
            self._served.arrive(Item("cancel"))

    def _client_died(self) -> None:
        if not self._cut:
            self._cut = True
            self._dropping["down"] = True
            self._at(self._network.notice(), self._tell_server)

    def _server_died(self) -> None:
        if not self._cut:
            self._cut = True
            self._dropping["down"] = self._network.rng.random() < 0.5
            self._at(self._network.notice(), self._client.finish, broken())

    def _at(self, delay_s: float, callback: Callable[..., object], *args: object) -> None:
        self._network.loop.at(self._network.loop.time() + delay_s, callback, *args)


class StreamCall:
    """The client's end of a call: as `grpc.aio.StreamStreamCall`, as far as a client of ours uses it."""

    def __init__(
        self,
        network: Network,
        node: Node,
        method: str,
        serialize: Callable[[Any], bytes],
        parse: Callable[[bytes], Any],
    ) -> None:
        self._loop = network.loop
        self._rng = network.rng
        self._serialize = serialize
        self._parse = parse
        self._inbox: deque[bytes] = deque()
        self._status: Status | None = None
        self._told: Status | None = None
        self._locally_cancelled = False
        self._half_closed = False
        self._waiter: asyncio.Future[None] | None = None
        self._callbacks: list[Callable[[Any], None]] = []
        self._exchange = Exchange(network, self, node, method)

    @property
    def status(self) -> Status | None:
        """How it ended; None: it has not."""
        return self._status

    @property
    def good(self) -> bool:
        """True where it ended without an error, or was given up here."""
        return self._locally_cancelled or self._status is None or self._status.code is grpc.StatusCode.OK

    def done(self) -> bool:
        """See `grpc.aio.Call`."""
        return self._status is not None

    def cancelled(self) -> bool:
        """See `grpc.aio.Call`."""
        return self._status is not None and self._status.code is grpc.StatusCode.CANCELLED

    def cancel(self) -> bool:
        """See `grpc.aio.Call`."""
        if self._status is not None:
            return False
        self._locally_cancelled = True
        self._exchange.give_up()
        self.finish(Status(grpc.StatusCode.CANCELLED, "Locally cancelled by application!"))
        return True

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        """See `grpc.aio.Call`."""
        if self._status is not None:
            callback(self)
        else:
            self._callbacks.append(callback)

    async def write(self, message: Any) -> None:
        """See `grpc.aio.StreamStreamCall`."""
        if self._status is not None:
            raise asyncio.InvalidStateError("RPC already finished.")
        if self._half_closed:
            raise asyncio.InvalidStateError("RPC is half closed")
        self._exchange.up(Item("message", self._serialize(message)))
        try:
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            self.cancel()
            raise
        if self._status is not None and not self._locally_cancelled and self._rng.random() < 0.5:
            # So grpc.aio tells of a message that could not be sent, before it knows why.
            raise rpc_error(Status(grpc.StatusCode.INTERNAL, "Internal error from Core"))

    async def done_writing(self) -> None:
        """See `grpc.aio.StreamStreamCall`."""
        if self._status is None and not self._half_closed:
            self._half_closed = True
            self._exchange.up(Item("half_close"))
            await asyncio.sleep(0)

    async def read(self) -> Any:
        """See `grpc.aio.StreamStreamCall`."""
        while True:
            if self._status is not None:
                if self._locally_cancelled:
                    raise asyncio.CancelledError
                if self._status.code is not grpc.StatusCode.OK:
                    raise rpc_error(self._status)
                return aio.EOF
            if self._inbox:
                message = self._inbox.popleft()
                if not self._inbox and self._told is not None:
                    self.finish(self._told)
                return self._parse(message)
            self._waiter = self._loop.create_future()
            try:
                await self._waiter
            except asyncio.CancelledError:
                self.cancel()
                raise

    async def code(self) -> grpc.StatusCode:
        """See `grpc.aio.Call`; only once the call is done."""
        assert self._status is not None
        return self._status.code

    def arrive(self, item: Item) -> None:
        """Something has come from the server; a status is known only once what came before it has been read."""
        if self._status is not None or self._told is not None:
            return
        if item.kind == "message":
            self._inbox.append(item.payload)
            self._wake()
        elif self._inbox:
            self._told = item.payload
        else:
            self.finish(item.payload)

    def finish(self, status: Status) -> None:
        """Ends the call at once; what has not been read is lost."""
        if self._status is None:
            self._status = status
            self._inbox.clear()
            self._wake()
            for callback in self._callbacks:
                callback(self)

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)


class ServedCall:
    """The server's end of a call: the messages that have come, and the task that serves it."""

    def __init__(self, loop: VirtualTimeLoop, exchange: Exchange, parse: Callable[[bytes], Any]) -> None:
        self._loop = loop
        self._exchange = exchange
        self._parse = parse
        self._inbox: deque[Any] = deque()
        self._ended = False
        self._waiter: asyncio.Future[None] | None = None
        self.task: asyncio.Task[None] | None = None
        self.finished = False

    def __aiter__(self) -> ServedCall:
        return self

    async def __anext__(self) -> Any:
        while not self._inbox:
            if self._ended:
                raise StopAsyncIteration
            self._waiter = self._loop.create_future()
            await self._waiter
        return self._parse(self._inbox.popleft())

    def arrive(self, item: Item) -> None:
        """Something has come from the client, or from the network: that the client has gone."""
        if item.kind == "message":
            self._inbox.append(item.payload)
        elif item.kind == "cancel":
            self._inbox.clear()
            self._cancel()
        else:
            self._ended = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _cancel(self) -> None:
        if self.task is not None and not self.finished:
            self.task.cancel()

    async def respond(self, message: bytes) -> None:
        """Sends one message."""
        self._exchange.down(Item("message", message))
        await asyncio.sleep(0)

    def finish(self, status: Status) -> None:
        """Sends the status, once."""
        if not self.finished:
            self.finished = True
            self._exchange.down(Item("status", status))
