"""Connections to a Redis that is none: it answers, hangs or is away, by the clock of the event loop."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, cast

from redis.exceptions import ConnectionError as RedisConnectionError

from services.runtime.state.redis.link import RedisLink

if TYPE_CHECKING:
    from collections.abc import Iterable

    from redis.asyncio import ConnectionPool

    from services.runtime.state.redis.breaker import StoreEvents


def _now() -> float:
    return asyncio.get_running_loop().time()


async def pause(seconds: float) -> None:
    """Lets time pass."""
    done = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_later(seconds, done.set_result, None)
    await done


class FakeRedis:
    """What its connections meet; may be changed at any time.

    `reply` answers every command after `latency_s`, as an exception if it is one; without `answers` nothing comes, and
    without `listens` nobody can connect. `connects` and `writes` tell when they happened, writes with their number of
    commands.
    """

    def __init__(self) -> None:
        self.listens = True
        self.answers = True
        self.reply: object = b"PONG"
        self.latency_s = 0.0
        self.connects: list[float] = []
        self.writes: list[tuple[float, int]] = []

    def link(self, *, events: StoreEvents | None = None, connections: int = 1, timeout_s: float = 2.0) -> RedisLink:
        """A link to it."""
        pool = cast("ConnectionPool", _Pool(self))
        return RedisLink(pool, library=b"", connections=connections, timeout_s=timeout_s, node="fake", events=events)


class _Pool:
    def __init__(self, server: FakeRedis) -> None:
        self._server = server

    def make_connection(self) -> _Connection:
        return _Connection(self._server)

    async def aclose(self) -> None:
        pass


class _Connection:
    def __init__(self, server: FakeRedis) -> None:
        self._server = server
        self.is_connected = False

    async def connect(self) -> None:
        self._server.connects.append(_now())
        if not self._server.listens:
            raise RedisConnectionError("nobody listens")
        self.is_connected = True

    async def disconnect(self, *, nowait: bool = False) -> None:
        self.is_connected = False

    async def send_packed_command(self, pieces: Iterable[bytes], *, check_health: bool) -> None:
        if not self._server.listens:
            raise RedisConnectionError("connection lost")
        self._server.writes.append((_now(), sum(piece.startswith(b"*") for piece in pieces)))
        await pause(self._server.latency_s)

    async def read_response(self, *, disable_decoding: bool) -> Any:
        if not self._server.answers:
            await asyncio.get_running_loop().create_future()
        if isinstance(self._server.reply, Exception):
            raise self._server.reply
        return self._server.reply
