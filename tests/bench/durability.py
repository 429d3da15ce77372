"""What each durability costs on Redis: steps a second against NONE in the same minutes, commands, bytes."""

from __future__ import annotations

import asyncio
import sys
from statistics import median
from typing import TYPE_CHECKING, NamedTuple

import grpc
from statestream.common.v1 import sequence_pb2
from statestream.sentiment.v1 import sentiment_service_pb2_grpc

from tests.bench.load import Request, message
from tests.bench.measured import Process, Served, one_load, process
from tests.kit.processes import serving

if TYPE_CHECKING:
    from tests.kit.redis_server import RedisServer

DURABILITIES = ("NONE", "CHECKPOINT", "STEP")
STREAMS = 64
ROUNDS = 7
LENGTHS = (10, 100, 1000)
"""Steps of the sequences whose size is looked at."""

INTRO = (
    f"What durability costs, {STREAMS} streams on Redis, the three taking turns {ROUNDS} times over. CPU is that of "
    "the server, calls are those of functions in Redis:"
)
HEAD = (
    "| timesteps a message | durability | steps/s | of NONE | least to most | p50 ms | p99 ms "
    "| CPU us/step | calls/step |"
)


class Cost(NamedTuple):
    """Of one durability at one number of timesteps a message.

    `ratio`: steps a second over those of NONE, the median over rounds in which all took turns; `spread`: least and
    most. `commands`: calls of functions in Redis per step.
    """

    timesteps: int
    durability: str
    served: Served
    ratio: float
    spread: tuple[float, float]
    commands: float


class Costs(NamedTuple):
    """All that is measured here; `sizes` are bytes in Redis by length of the sequence."""

    costs: list[Cost]
    sizes: dict[int, int]


def measure(redis: RedisServer, seconds: float) -> Costs:
    """Runs loads of every durability in turns against one server."""
    settings = {"STORE": "redis", "REDIS_URL": redis.url, "STREAMS_MAX": "100000", "RETENTION_S": "1"}
    with process("services.sentiment", **settings) as server:
        asyncio.run(asyncio.wait_for(serving(f"127.0.0.1:{server.port}"), 30))
        costs = [cost for timesteps in (1, 10) for cost in _in_turns(server, redis, timesteps, seconds)]
        sizes = {steps: _bytes_after(server, redis, steps) for steps in LENGTHS}
    return Costs(costs, sizes)


def _in_turns(server: Process, redis: RedisServer, timesteps: int, seconds: float) -> list[Cost]:
    rounds: dict[str, list[Served]] = {durability: [] for durability in DURABILITIES}
    commands: dict[str, list[float]] = {durability: [] for durability in DURABILITIES}
    for _ in range(ROUNDS):
        for durability in DURABILITIES:
            before = _calls(redis)
            served = one_load(server, STREAMS, timesteps, seconds, durability)
            commands[durability].append((_calls(redis) - before) / (served.per_s * (seconds + 0.3)))
            rounds[durability].append(served)
        print({durability: round(runs[-1].per_s) for durability, runs in rounds.items()}, file=sys.stderr)
    found: list[Cost] = []
    for durability, runs in rounds.items():
        ratios = [run.per_s / base.per_s for run, base in zip(runs, rounds["NONE"], strict=True)]
        served = Served(*(median(figures) for figures in zip(*runs, strict=True)))
        spread = min(ratios), max(ratios)
        found.append(Cost(timesteps, durability, served, median(ratios), spread, median(commands[durability])))
    return found


def _calls(redis: RedisServer) -> int:
    """Functions called in Redis so far."""
    told = redis.ask("INFO", "commandstats")
    lines = (told.decode() if isinstance(told, bytes) else str(told)).splitlines()
    return sum(int(line.partition("calls=")[2].partition(",")[0]) for line in lines if line.startswith("cmdstat_fcall"))


def _bytes_after(server: Process, redis: RedisServer, steps: int) -> int:
    """What Redis says a sequence takes after so many steps of one word."""

    async def feed() -> None:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            call = sentiment_service_pb2_grpc.SentimentServiceStub(channel).StreamingClassify()
            await call.write(Request(config=sequence_pb2.SequenceConfig(sequence_id=f"bytes{steps}", start=True)))
            for step in range(steps):
                await call.write(message(1, step))
                await call.read()
            await call.done_writing()
            await call.read()

    asyncio.run(feed())
    [key] = redis.ask("KEYS", f"*bytes{steps}")
    return int(redis.ask("MEMORY", "USAGE", key, "SAMPLES", 0))


def page(measured: Costs) -> str:
    """The figures in Markdown."""
    lines = [INTRO, "", HEAD, "| ---: | --- |" + " ---: |" * 7]
    for cost in measured.costs:
        low, high = cost.spread
        lines.append(
            f"| {cost.timesteps} | {cost.durability} | {cost.served.per_s:,.0f} "
            f"| {cost.ratio:.0%} | {low:.0%} to {high:.0%} | {cost.served.p50_ms:.2f} | {cost.served.p99_ms:.2f} "
            f"| {cost.served.cpu_us:.0f} | {cost.commands:.3f} |"
        )
    sizes = ", ".join(f"{size:,} after {steps:,} steps" for steps, size in measured.sizes.items())
    lines += ["", f"Bytes in Redis of one sequence, as `MEMORY USAGE` tells them, kept checkpoints included: {sizes}."]
    return "\n".join(lines)
