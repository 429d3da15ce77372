"""Where the time of a step goes, by room: a server under cProfile, from the bytes of a request to those of its reply.

Sockets are left out, and the network, in the place of which constants are returned.
"""

from __future__ import annotations

import asyncio
import cProfile
import pstats
import time
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import numpy as np
import uvloop

from services.inference.servicer import TASK
from services.runtime.app import Server
from services.runtime.config import Settings
from services.runtime.rpc import frames, headers
from services.runtime.rpc.connection import Connection
from tests.bench.streams import MESSAGES, PATH, requests

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from services.runtime.model.session import OnnxModel

ROOMS = {
    "services/runtime/rpc": "rpc: HTTP/2 and gRPC",
    "services/runtime/transport": "transport: gate, drain",
    "services/inference": "inference: codec, streams, replies",
    "services/runtime/sequences": "sequences: order, exactly-once, commits",
    "services/runtime/engine": "engine: schedule, stack, unstack",
    "services/runtime/state": "state: store and record",
    "services/runtime/observability": "metrics",
    "site-packages/redis": "redis-py",
}
ROUNDS = 200


class _Transport(asyncio.Transport):
    """Takes what the server writes."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[bytes] = []
        self.more = asyncio.Event()

    def write(self, data: Any) -> None:
        """As of a socket that is never full."""
        self.written.append(bytes(data))
        self.more.set()

    def writelines(self, list_of_data: Any) -> None:
        """As `write`."""
        self.write(b"".join(list_of_data))

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Who is at the other end."""
        return ("127.0.0.1", 1) if name == "peername" else default

    def is_closing(self) -> bool:
        """Never."""
        return False

    async def replies(self, count: int) -> None:
        """Returns when so many messages have come."""
        rest, seen = b"", 0
        while True:
            found, rest = frames.split(rest + b"".join(self.written))
            self.written.clear()
            seen += sum(not kind for kind, *_ in found)
            if seen >= count:
                return
            self.more.clear()
            await self.more.wait()


def _constants(model: OnnxModel) -> None:
    """Lets a model give zeros at once."""
    known: dict[tuple[int, ...], list[Any]] = {}
    specs = (*model.manifest.outputs, *model.manifest.states)

    def run(_: Sequence[str], feeds: Mapping[str, Any], *, lone: bool = False) -> list[Any]:
        del lone
        timesteps, rows = feeds[model.manifest.features()[0].name].shape[:2]
        if (timesteps, rows) not in known:
            sizes = {"time": timesteps, "batch": rows}
            known[timesteps, rows] = [np.zeros([sizes.get(d, d) for d in spec.dims], spec.dtype) for spec in specs]  # type: ignore[arg-type]
        return known[timesteps, rows]

    model.run = run


async def _run(sequences: int, folder: Path, settings: Settings) -> tuple[pstats.Stats, float]:
    server = Server(settings, (TASK,))
    await server.start()
    for served in server._catalogue:
        _constants(served.batcher._model)  # type: ignore[arg-type]
    transport = _Transport()
    connection = Connection(server._server, server._server._limits, asyncio.get_running_loop())
    connection.connection_made(transport)
    opening: dict[int, int] = {frames.Setting.INITIAL_WINDOW_SIZE: 2**30}
    connection.data_received(frames.PREFACE + frames.settings(opening) + frames.window_update(0, 2**30))
    first, turns = b"", [b""] * MESSAGES
    for number in range(sequences):
        stream_id = 2 * number + 1
        start, following = requests(folder.parent.name, number, 1, time.time_ns() // 1_000_000, "")
        first += frames.headers(stream_id, headers.request(PATH, "bench"), end_stream=False)
        first += frames.message(stream_id, start)
        turns = [turn + frames.message(stream_id, each) for turn, each in zip(turns, following, strict=True)]
    connection.data_received(first)
    await transport.replies(sequences)

    async def rounds() -> float:
        began = time.thread_time()
        for number in range(ROUNDS):
            connection.data_received(turns[(number + 1) % MESSAGES])
            await transport.replies(sequences)
        return (time.thread_time() - began) / (ROUNDS * sequences) * 1e6

    plain_us = min([await rounds() for _ in range(5)])
    profile = cProfile.Profile(time.thread_time)
    profile.enable()
    await rounds()
    profile.disable()
    connection.connection_lost(None)
    await server.stop()
    return pstats.Stats(profile), plain_us


def shares(sequences: int, folder: Path, **settings: Any) -> tuple[dict[str, float], float]:
    """Share of the event loop's time in each room, largest first, and microseconds a step without the profiler.

    What is in no room is Python and its libraries. `folder` is that of the artefact.
    """
    values: Any = {"listen": "127.0.0.1:0", "metrics_listen": "", "artefacts": folder.parents[1], **settings}
    found: tuple[Any, float] = uvloop.run(_run(sequences, folder, Settings(**values, inline_run_us_max=1e6)))
    stats, plain_us = found
    seconds: defaultdict[str, float] = defaultdict(float)
    for (file, _, _), (_, _, own, _, _) in stats.stats.items():
        if "tests/bench" not in file:
            room = next((room for part, room in ROOMS.items() if part in file), "Python, numpy, protobuf")
            seconds[room] += own
    total = sum(seconds.values())
    return {room: own / total for room, own in sorted(seconds.items(), key=lambda item: -item[1])}, plain_us


def table(columns: dict[str, tuple[dict[str, float], float]]) -> str:
    """The shares as a table in Markdown, a column a store."""
    rooms = list(dict.fromkeys(room for column, _ in columns.values() for room in column))
    lines = ["| room | " + " | ".join(columns) + " |", "| --- |" + " ---: |" * len(columns)]
    lines += [
        f"| {room} | " + " | ".join(f"{column.get(room, 0):.0%}" for column, _ in columns.values()) + " |"
        for room in rooms
    ]
    lines.append("| us a step, without the profiler | " + " | ".join(f"{us:.0f}" for _, us in columns.values()) + " |")
    return "\n".join(lines)
