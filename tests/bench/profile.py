"""Where the time of a step goes, by room: the server's own path under cProfile, gRPC left out."""

from __future__ import annotations

import asyncio
import cProfile
import pstats
from collections import defaultdict
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import uvloop
from statestream.common.v1 import sequence_pb2
from statestream.sentiment.v1 import sentiment_pb2

from services.runtime.app import Server
from services.runtime.config import Settings
from services.runtime.transport.stream import serve_stream
from services.runtime.transport.task import Runtime
from services.sentiment.servicer import STREAM, TASK
from tests.bench.load import message

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Generator

ROOMS = {
    "services/runtime/transport": "transport",
    "services/runtime/sequences": "sequences",
    "services/runtime/engine": "engine: schedule, stack, unstack, wait for the run",
    "services/runtime/state": "state: store and record",
    "services/runtime/observability": "metrics",
    "prometheus_client": "metrics",
    "services/sentiment": "task: codec and fold",
    "models/sentiment": "task: text to words",
    "site-packages/redis": "redis-py",
}
STEPS = 200


class _NoDeadline:
    def time_remaining(self) -> None:
        """As of a call without a deadline."""


@contextmanager
def _profiled(profile: cProfile.Profile) -> Generator[None]:
    profile.enable()
    try:
        yield
    finally:
        profile.disable()


async def _steps(runtime: Runtime, number: int) -> None:
    async def requests() -> AsyncIterator[sentiment_pb2.StreamingClassifyRequest]:
        yield sentiment_pb2.StreamingClassifyRequest(config=sequence_pb2.SequenceConfig())
        for step in range(STEPS):
            yield message(1, number + step)

    context: Any = _NoDeadline()
    async for _ in serve_stream(STREAM, runtime, requests(), context):
        pass


async def _run(sequences: int, settings: Settings) -> pstats.Stats:
    server, profile = Server(settings, (TASK,)), cProfile.Profile()
    await server.start()
    runtime = Runtime(
        server._catalogue, server._sequences, server._clock, server._drain, server.metrics, server._repository
    )
    await asyncio.gather(*(_steps(runtime, number) for number in range(sequences)))
    with _profiled(profile):
        await asyncio.gather(*(_steps(runtime, number) for number in range(sequences)))
    await server.stop()
    return pstats.Stats(profile)


def shares(sequences: int, **settings: Any) -> dict[str, float]:
    """Share of the event loop's time in each room, largest first; what is in no room is Python and its libraries."""
    values: Any = {"listen": "127.0.0.1:0", "metrics_listen": "", **settings}
    stats: Any = uvloop.run(_run(sequences, Settings(**values)))
    seconds: defaultdict[str, float] = defaultdict(float)
    for (file, _, _), (_, _, own, _, _) in stats.stats.items():
        room = next((room for part, room in ROOMS.items() if part in file), "Python, numpy, protobuf")
        seconds[room] += own
    total = sum(seconds.values())
    return {room: own / total for room, own in sorted(seconds.items(), key=lambda item: -item[1])}


def table(columns: dict[str, dict[str, float]]) -> str:
    """The shares as a table in Markdown, a column a store."""
    rooms = list(dict.fromkeys(room for column in columns.values() for room in column))
    lines = ["| room | " + " | ".join(columns) + " |", "| --- |" + " ---: |" * len(columns)]
    lines += [
        f"| {room} | " + " | ".join(f"{column.get(room, 0):.0%}" for column in columns.values()) + " |"
        for room in rooms
    ]
    return "\n".join(lines)
