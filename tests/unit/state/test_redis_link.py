"""Which calls travel together, and when each is given up; on virtual time."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from redis.exceptions import ReadOnlyError, ResponseError

from services.runtime.core.errors import StoreUnavailable
from services.runtime.state.redis.line import packed
from tests.kit.redis_fake import FakeRedis, pause
from tests.kit.virtual_time import VirtualTimeLoop, run_virtual

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from services.runtime.state.redis.link import RedisLink

PING = packed(b"PING")
TIMEOUT_S = 2.0


def _run(main: Coroutine[None, None, None]) -> None:
    run_virtual(main, VirtualTimeLoop())


async def _gives_up_at(link: RedisLink) -> float:
    """When a call that is made now fails, by the clock of the loop."""
    with pytest.raises(StoreUnavailable):
        await link.call(PING).reply
    return asyncio.get_running_loop().time()


def test_a_call_that_travels_with_a_younger_one_is_given_up_at_its_own_time() -> None:
    """Two calls from different turns wait for the one connection and leave in one write: each has its own time-out."""

    async def main() -> None:
        server = FakeRedis()
        server.latency_s = 1.5
        link = server.link()
        first = link.call(PING).reply
        await pause(0.5)
        elder = asyncio.ensure_future(_gives_up_at(link))
        await pause(0.9)
        younger = asyncio.ensure_future(_gives_up_at(link))
        await first
        server.answers = False
        assert await elder == pytest.approx(0.5 + TIMEOUT_S)
        assert not younger.done()
        assert await younger == pytest.approx(0.5 + 0.9 + TIMEOUT_S)
        assert server.writes == [(0.0, 1), (1.5, 2)]
        await link.close()

    _run(main())


def test_a_call_whose_time_is_over_is_not_sent() -> None:
    """It waited for a connection until it was given up: when one is there, it is left out."""

    async def main() -> None:
        server = FakeRedis()
        server.answers = False
        link = server.link()
        held_up = asyncio.ensure_future(_gives_up_at(link))
        await pause(1.0)
        waiting = [asyncio.ensure_future(_gives_up_at(link)) for _ in range(3)]
        waiting[1].cancel()
        server.latency_s = 10.0
        assert await held_up == pytest.approx(TIMEOUT_S)
        assert await waiting[0] == await waiting[2] == pytest.approx(1.0 + TIMEOUT_S)
        assert server.writes == [(0.0, 1), (TIMEOUT_S, 2)]
        await link.close()

    _run(main())


def test_connections_are_bounded() -> None:
    """However many calls there are, no more connections are opened than configured; what waits leaves together."""

    async def main() -> None:
        server = FakeRedis()
        server.latency_s = 0.1
        link = server.link(connections=3)
        replies: list[asyncio.Future[object]] = []
        for _ in range(10):
            replies.append(link.call(PING).reply)
            await pause(0.001)
        assert await asyncio.gather(*replies) == [b"PONG"] * 10
        assert len(server.connects) == 3
        assert [count for _, count in server.writes] == [1, 1, 1, 7]
        await link.close()

    _run(main())


def test_a_server_that_takes_no_writes_is_looked_up_again() -> None:
    """READONLY: its name may lead to another server by now, so the next call connects anew; other errors do not."""

    async def main() -> None:
        server = FakeRedis()
        link = server.link()
        for reply, connects in ((ResponseError("ERR no"), 1), (ReadOnlyError("no"), 1), (b"PONG", 2)):
            server.reply = reply
            if isinstance(reply, Exception):
                with pytest.raises(StoreUnavailable):
                    await link.call(PING).reply
            else:
                assert await link.call(PING).reply == reply
            assert len(server.connects) == connects
        await link.close()

    _run(main())
