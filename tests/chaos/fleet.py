"""The servers under test, each on a port that it keeps, behind links that can be cut."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Self

from tests.kit.links import Link
from tests.kit.processes import Replica, start_replica, steady_port
from tests.kit.redis_group import PRIMARY

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

    from tests.kit.redis_group import RedisGroup

_POLL_S = 0.05
_STARTS_MAX = 3


def _port(port: int) -> bytes:
    """As a sentinel writes it; STEADY_PORTS have the same number of digits."""
    return b"$5\r\n%d\r\n" % port


class DiedError(RuntimeError):
    """A server ended that nobody had ended, or ended badly."""


class Server:
    """A place for one server process at a time. Who harms the process holds `lock`."""

    def __init__(self, number: int, front: Link, back: list[Link], log: Path, **settings: str) -> None:
        self.number = number
        self.front = front
        """Between the clients and it."""
        self.back = back
        """Between it and Redis."""
        self.lock = asyncio.Lock()
        self._log = log
        self._settings = settings
        self._replica: Replica | None = None

    @property
    def is_up(self) -> bool:
        """True if it serves and nobody harms it.

        Raises:
            DiedError: it has gone by itself.
        """
        if self.lock.locked() or self._replica is None:
            return False
        if (status := self._replica.process.returncode) is not None:
            raise DiedError(f"server {self.number} ended by itself with status {status}")
        return True

    async def start(self) -> None:
        """Returns once it serves."""
        for attempt in range(_STARTS_MAX):
            try:
                self._replica = await start_replica(self.front.upstream, self._log, **self._settings)
            except RuntimeError:
                if attempt == _STARTS_MAX - 1:
                    raise
            else:
                return

    def signal(self, number: int) -> None:
        """Sends it a signal, if it runs."""
        if self._replica is not None and self._replica.process.returncode is None:
            self._replica.signal(number)

    async def gone(self) -> int:
        """Its exit status, once it has ended."""
        assert self._replica is not None, "not started"
        status = await self._replica.process.wait()
        self._replica = None
        return status

    async def kill(self) -> None:
        """The process is gone at once; nothing happens if there is none."""
        if self._replica is not None:
            self.signal(signal.SIGKILL)
            await self.gone()


class Fleet:
    """Some servers on one group of Redis servers, with their logs in `folder`; an async context manager."""

    def __init__(self, count: int, group: RedisGroup, folder: Path) -> None:
        self._group = group
        self._folder = folder
        self._stack = AsyncExitStack()
        self.servers = [self._server(number) for number in range(count)]

    def _server(self, number: int) -> Server:
        stores = [Link(store.port, port=steady_port()) for store in self._group.servers]
        # The sentinels tell where the primary is: for this server behind its own link.
        renamed = {_port(store.upstream): _port(store.port) for store in stores}
        sentinels = [Link(each.port, port=steady_port(), renamed=renamed) for each in self._group.sentinels]
        hosts = ",".join(f"127.0.0.1:{link.port}" for link in sentinels)
        settings = {"store": "redis", "redis_url": f"redis+sentinel://{hosts}/{PRIMARY}", "drain_s": "10"}
        front = Link(steady_port(), port=steady_port())
        return Server(number, front, [*stores, *sentinels], self._folder / f"server-{number}.log", **settings)

    @property
    def target(self) -> str:
        """All servers, for a client, over their links."""
        return "ipv4:" + ",".join(f"127.0.0.1:{server.front.port}" for server in self.servers)

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            for server in self.servers:
                for link in (server.front, *server.back):
                    await stack.enter_async_context(link)
                stack.push_async_callback(server.kill)
            await asyncio.gather(*(server.start() for server in self.servers))
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    @contextlib.asynccontextmanager
    async def harm(self, wanted: int) -> AsyncGenerator[Server]:
        """Server `wanted`, or another one, to be harmed by nobody else; waits as long as it is the only one up."""
        while True:
            up = [server for server in self.servers if server.is_up]
            if len(up) > 1:
                break
            await asyncio.sleep(_POLL_S)
        chosen = min(up, key=lambda server: (server.number - wanted) % len(self.servers))
        async with chosen.lock:
            yield chosen

    @contextlib.asynccontextmanager
    async def harm_all(self) -> AsyncGenerator[list[Server]]:
        """All servers, once nobody harms any of them."""
        while sum(server.is_up for server in self.servers) < len(self.servers):  # noqa: ASYNC110 - processes, no event
            await asyncio.sleep(_POLL_S)
        async with AsyncExitStack() as stack:
            for server in self.servers:
                await stack.enter_async_context(server.lock)
            yield self.servers
