"""`make bench`: the served model against the raw runtime, in one run on one machine, into docs/benchmarks.md.

Nothing here passes or fails: times are figures for a reader. `--seconds` sets the length of each measurement.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import NamedTuple

import grpc
import uvloop

from models.common.manifest import load_manifest
from services.runtime.config import Settings
from services.runtime.model.session import OnnxModel
from tests.bench import durability, network, profile, shares
from tests.bench.measured import Served, process, under_load
from tests.bench.raw import raw_steps, redis_commits
from tests.kit.machine import machine
from tests.kit.processes import serving
from tests.kit.redis_server import RedisServer

PAGE = Path("docs/benchmarks.md")
LOADS = [(sequences, timesteps) for timesteps in (1, 10) for sequences in (1, 8, 32, 64)]
PROFILE = (
    "Where the event loop's time goes, 64 sequences, one timestep a message, from the bytes of a request to those of "
    "its reply, without sockets and without the network (by cProfile, which makes Python look dearer than C):"
)
SHARES = (
    "2 LSTM layers of 512, 80 inputs, 256 outputs, streams of `ModelStreamInfer`. Rates are timesteps a second, CPU is "
    "per timestep, latencies are per message, busy is in processors (there are 2). Memory store, CHECKPOINT:"
)
SHARES_REDIS = "The same with CHECKPOINT on Redis, which runs on the same two processors:"
BEGIN, END = "<!-- figures of make bench -->", "<!-- end of the figures -->"


class Floors(NamedTuple):
    """What a step cannot do without, alone: CPU microseconds of each part, and the raw runtime's steps a second."""

    stream_us: float
    run_us: float
    commit_us: float
    raw_per_s: float


def measure_floors(redis_url: str, seconds: float) -> dict[tuple[int, int], Floors]:
    """The bare stream, the bare run and the bare commit, for every load."""
    folder = max((Settings().artefacts[0] / "sentiment").iterdir())
    model = OnnxModel(folder, load_manifest(folder))
    floors: dict[tuple[int, int], Floors] = {}
    with process("tests.bench.raw", "{port}") as echo:
        with grpc.insecure_channel(f"127.0.0.1:{echo.port}") as channel:
            grpc.channel_ready_future(channel).result(timeout=30)
        for sequences, timesteps in LOADS:
            stream = under_load(echo, sequences, timesteps, seconds, "NONE")
            raw = [raw_steps(model, sequences, timesteps, seconds=seconds / 2) for _ in range(3)]
            commit = uvloop.run(redis_commits(redis_url, sequences, model, seconds=seconds / 2))
            run_us, raw_per_s = median(cpu for _, cpu in raw), median(rate for rate, _ in raw)
            floors[sequences, timesteps] = Floors(stream.cpu_us, run_us, commit, raw_per_s)
            print("floor", sequences, timesteps, floors[sequences, timesteps], file=sys.stderr)
    return floors


def measure_served(seconds: float, durability: str, **settings: str) -> dict[tuple[int, int], Served]:
    """The whole server, for every load."""
    served: dict[tuple[int, int], Served] = {}
    with process("services.sentiment", **settings) as server:
        asyncio.run(asyncio.wait_for(serving(f"127.0.0.1:{server.port}"), 30))
        for sequences, timesteps in LOADS:
            served[sequences, timesteps] = under_load(server, sequences, timesteps, seconds, durability)
            print(settings["STORE"], sequences, timesteps, served[sequences, timesteps], file=sys.stderr)
    return served


def table(floors: dict[tuple[int, int], Floors], served: dict[tuple[int, int], Served], *, redis: bool) -> str:
    """One store's figures as a table in Markdown."""
    lines = [
        "| timesteps a message | sequences | steps/s | p50 ms | p99 ms | raw runtime steps/s | served / raw "
        "| server CPU us/step | floors us/step: stream + run" + (" + commit" if redis else "") + " | CPU / floors |",
        "| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for (sequences, timesteps), it in served.items():
        floor = floors[sequences, timesteps]
        parts = [floor.stream_us, floor.run_us] + ([floor.commit_us] if redis else [])
        lines.append(
            f"| {timesteps} | {sequences} | {it.per_s:,.0f} | {it.p50_ms:.2f} | {it.p99_ms:.2f} "
            f"| {floor.raw_per_s:,.0f} | {it.per_s / floor.raw_per_s:.3f} | {it.cpu_us:.0f} "
            f"| {' + '.join(f'{part:.0f}' for part in parts)} = {sum(parts):.0f} | {it.cpu_us / sum(parts):.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measures everything and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=2.0, help="length of each measurement")
    seconds = parser.parse_args().seconds
    with RedisServer() as redis, TemporaryDirectory() as folder:
        lstm = network.make(Path(folder))
        shares_memory = shares.measure(lstm, shares.LOADS, seconds, STORE="memory")
        in_redis = [load for load in shares.LOADS if load[1] > 1]
        shares_redis = shares.measure(lstm, in_redis, seconds, STORE="redis", REDIS_URL=redis.url)
        profiles = {
            "memory store": profile.shares(64, lstm),
            "Redis store": profile.shares(64, lstm, store="redis", redis_url=redis.url),
        }
        floors = measure_floors(redis.url, seconds)
        memory = measure_served(seconds, "STEP", STORE="memory")
        kept = measure_served(seconds, "STEP", STORE="redis", REDIS_URL=redis.url)
        costs = durability.measure(redis, seconds)
    figures = "\n\n".join(
        [
            BEGIN,
            f"{datetime.now(UTC):%Y-%m-%d}, {machine()}. Clients on the same machine.",
            "## An LSTM of one's own",
            SHARES,
            shares.table(shares_memory),
            SHARES_REDIS,
            shares.table(shares_redis),
            PROFILE,
            profile.table(profiles),
            "## Sentiment",
            "Memory store, durability STEP:",
            table(floors, memory, redis=False),
            "Redis store, durability STEP (every reply committed first):",
            table(floors, kept, redis=True),
            durability.page(costs),
            END,
        ]
    )
    page = PAGE.read_text(encoding="utf-8")
    head, tail = page.partition(BEGIN)[0], page.partition(END)[2]
    PAGE.write_text(head + figures + tail, encoding="utf-8")


if __name__ == "__main__":
    main()
