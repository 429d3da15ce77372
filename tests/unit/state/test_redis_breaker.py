"""A server that fails for a while is given up until it answers a probe; on virtual time."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import prometheus_client
import pytest
from redis.exceptions import NoPermissionError, OutOfMemoryError, ResponseError

from services.runtime.core.errors import CapacityExceeded, StoreUnavailable
from services.runtime.observability.metrics import Metrics
from services.runtime.state.redis.errors import RefusedError
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


def _now() -> float:
    return asyncio.get_running_loop().time()


def _open(metrics: Metrics) -> float | None:
    return metrics.registry.get_sample_value("statestream_store_circuit_open")


async def _failure(link: RedisLink) -> StoreUnavailable:
    with pytest.raises(StoreUnavailable) as failure:
        await link.call(PING).reply
    return failure.value


async def _given_up(server: FakeRedis, metrics: Metrics | None = None, *, timeout_s: float = TIMEOUT_S) -> RedisLink:
    """A link to a server that nobody reaches, which has just been given up."""
    link = server.link(events=metrics, timeout_s=timeout_s)
    server.listens = False
    for _ in range(5):
        await _failure(link)
    server.connects.clear()
    return link


def test_five_failures_in_a_row_open_it() -> None:
    """After them calls fail at once, without a try, and are told when one may work; the gauge and the log tell."""

    async def main() -> None:
        metrics = Metrics(prometheus_client.CollectorRegistry())
        server = FakeRedis()
        server.listens = False
        link = server.link(events=metrics)
        for tries in range(1, 6):
            assert _open(metrics) == 0
            await _failure(link)
            assert len(server.connects) == tries
        assert _open(metrics) == 1
        for _ in range(100):
            assert (await _failure(link)).retry_delay_s == pytest.approx(0.1)
        assert len(server.connects) == 5
        await link.close()

    _run(main())


def test_a_server_that_hangs_is_given_up_after_two_time_outs() -> None:
    """However few the calls are: when nothing has worked for longer than the time-out, nobody waits any more."""

    async def main() -> None:
        server = FakeRedis()
        server.answers = False
        link = server.link()
        for _ in range(2):
            began = _now()
            await _failure(link)
            assert _now() - began == pytest.approx(TIMEOUT_S)
        began = _now()
        await _failure(link)
        assert _now() == began
        await link.close()

    _run(main())


def test_it_is_probed_at_growing_intervals() -> None:
    """After 0.1 s, then twice as long each time, and never longer than 2 s."""

    async def main() -> None:
        server = FakeRedis()
        link = await _given_up(server)
        await pause(10.0)
        expected = [0.1, 0.3, 0.7, 1.5, 3.1, 5.1, 7.1, 9.1]
        assert server.connects == pytest.approx(expected)
        await link.close()

    _run(main())


def test_there_is_one_probe_at_a_time() -> None:
    """While a probe waits for its answer no other leaves; the pause counts from its end."""

    async def main() -> None:
        server = FakeRedis()
        link = await _given_up(server)
        server.listens, server.answers = True, False
        await pause(2.0)
        assert [at for at, _ in server.writes] == pytest.approx([0.1])
        await pause(0.5)
        assert [at for at, _ in server.writes] == pytest.approx([0.1, 0.1 + TIMEOUT_S + 0.2])
        await link.close()

    _run(main())


def test_an_answer_closes_it() -> None:
    """The first probe that is answered lets calls through again, and the next failure begins to count anew."""

    async def main() -> None:
        metrics = Metrics(prometheus_client.CollectorRegistry())
        server = FakeRedis()
        link = await _given_up(server, metrics)
        server.listens = True
        await _failure(link)
        await pause(0.11)
        assert _open(metrics) == 0
        assert await link.call(PING).reply == b"PONG"
        server.listens = False
        for _ in range(4):
            await _failure(link)
        assert _open(metrics) == 0
        await link.close()

    _run(main())


def test_failures_that_are_not_in_a_row_do_not_open_it() -> None:
    """A success in between, and the count begins anew, however long it goes on."""

    async def main() -> None:
        server = FakeRedis()
        link = server.link()
        for _ in range(20):
            for _ in range(4):
                server.listens = False
                await _failure(link)
            server.listens = True
            assert await link.call(PING).reply == b"PONG"
        await link.close()

    _run(main())


@pytest.mark.parametrize(
    ("reply", "told"),
    [
        (OutOfMemoryError("no room"), CapacityExceeded),
        (NoPermissionError("not yours"), RefusedError),
        # Nor does it take the functions.
        (ResponseError("ERR Function not found"), RefusedError),
    ],
)
def test_what_a_server_refuses_does_not_open_it(reply: ResponseError, told: type[Exception]) -> None:
    """An error in reply to a command is an answer: a full server is not a dead one."""

    async def main() -> None:
        metrics = Metrics(prometheus_client.CollectorRegistry())
        server = FakeRedis()
        server.reply = reply
        link = server.link(events=metrics)
        for _ in range(20):
            with pytest.raises(told):
                await link.call(PING).reply
        assert _open(metrics) == 0
        await link.close()

    _run(main())


def test_closing_ends_the_probes() -> None:
    """A store that is closed while a server is given up tells so to the gauge and sends nothing more."""

    async def main() -> None:
        metrics = Metrics(prometheus_client.CollectorRegistry())
        server = FakeRedis()
        link = await _given_up(server, metrics)
        await link.close()
        assert _open(metrics) == 0
        await pause(10.0)
        assert server.connects == []

    _run(main())


def test_the_log_tells_when_it_opens_and_closes(capsys: pytest.CaptureFixture[str]) -> None:
    """One line each, with the server's name."""

    async def main() -> None:
        server = FakeRedis()
        link = await _given_up(server)
        server.listens = True
        await pause(1.0)
        await link.close()

    _run(main())
    lines = [line for line in capsys.readouterr().out.splitlines() if "fake" in line]
    assert ["given up" in line for line in lines] == [True, False]
    assert "answers again" in lines[1]
