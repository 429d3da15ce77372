"""One campaign from its start to its verdict."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from tests.chaos.check import check
from tests.chaos.faults import Event, Injector
from tests.chaos.fleet import Fleet
from tests.chaos.load import PATIENCE_S, Task
from tests.chaos.log import read
from tests.chaos.network import partitions
from tests.chaos.oracle import Oracle
from tests.chaos.plan import draw
from tests.chaos.report import Summary, summary
from tests.kit.machine import machine
from tests.kit.redis_group import RedisGroup

if TYPE_CHECKING:
    from pathlib import Path

    from tests.chaos.network import Partitions
    from tests.chaos.plan import Fault, Kind

_END_S_MAX = PATIENCE_S + 30.0
"""How long the load may take to end its sequences once it is told to."""

LOADS = 2
"""Processes that the streams are divided among."""


@dataclass(frozen=True, slots=True)
class Options:
    """What a campaign is asked for."""

    seconds: float
    kills: int
    seed: int
    servers: int
    streams: int
    steps_per_s: float
    durability: str
    replicas_to_write: int = 1
    without: frozenset[Kind] = frozenset()

    def plan(self) -> list[Fault]:
        """The faults that happen."""
        return draw(self.seed, seconds=self.seconds, kills=self.kills, servers=self.servers, without=self.without)


class Campaign:
    """Runs in `folder`, which must be empty; leaves its logs there."""

    def __init__(self, options: Options, folder: Path) -> None:
        self._options = options
        self._folder = folder
        self._events: list[Event] = []
        self._zero = time.monotonic()
        self._partitions: Partitions = partitions()
        self._redis_version = ""

    async def run(self) -> Summary:
        """The verdict; whatever was started has ended by then, also where this raises.

        Raises:
            Exception: something did not come back, or ended that nobody had ended.
        """
        options = self._options
        async with AsyncExitStack() as stack:
            group = RedisGroup(replicas_to_write=options.replicas_to_write)
            stack.callback(group.close)
            await asyncio.to_thread(group.start)
            self._redis_version = group.servers[0].query("INFO", "server")["redis_version"]
            fleet = await stack.enter_async_context(Fleet(options.servers, group, self._folder))
            loads = [await self._load(stack, fleet, number) for number in range(LOADS)]
            self._say(f"{options.servers} servers serve {options.streams} streams; partitions: {self._partitions.name}")
            began_at = time.monotonic()
            injecting = asyncio.create_task(
                Injector(fleet, group, self._partitions, self._happened).run(options.plan())
            )
            watching = [asyncio.create_task(_watch(load)) for load in loads]
            for task in (injecting, *watching):
                stack.callback(task.cancel)
            done, _ = await asyncio.wait((injecting, *watching), return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
            await asyncio.sleep(max(0.0, began_at + options.seconds - time.monotonic()))
            self._say("the load is asked to end")
            for task in watching:
                task.cancel()
            for load in loads:
                load.send_signal(signal.SIGTERM)
            seconds = time.monotonic() - began_at
            async with asyncio.timeout(_END_S_MAX):
                statuses = await asyncio.gather(*(load.wait() for load in loads))
            if any(statuses):
                raise RuntimeError(f"the load ended with status {statuses}")
        self._say("everything has ended; the answers are computed again")
        return await asyncio.to_thread(self._verdict, seconds)

    async def _load(self, stack: AsyncExitStack, fleet: Fleet, number: int) -> asyncio.subprocess.Process:
        options = self._options
        task = Task(
            target=fleet.target,
            streams=list(range(number, options.streams, LOADS)),
            seed=options.seed,
            steps_per_s=options.steps_per_s,
            durability=options.durability,
            log=str(self._log(number)),
        )
        load = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.chaos.load", json.dumps(task), stdout=asyncio.subprocess.PIPE
        )

        async def end() -> None:
            if load.returncode is None:
                load.kill()
            await load.wait()

        stack.push_async_callback(end)
        assert load.stdout is not None
        await load.stdout.readline()
        return load

    def _log(self, number: int) -> Path:
        return self._folder / f"replies-{number}.jsonl"

    def _verdict(self, seconds: float) -> Summary:
        options = self._options
        logs = [self._log(number) for number in range(LOADS)]
        verdict = check(read(logs), Oracle(options.seed).answers)
        return summary(
            verdict,
            read(logs),
            self._events,
            seed=options.seed,
            seconds=round(seconds, 1),
            streams=options.streams,
            durability=options.durability,
            servers=options.servers,
            partitions_by=self._partitions.name,
            machine=f"{machine()}, Redis {self._redis_version}",
        )

    def _happened(self, event: Event) -> None:
        self._events.append(event)
        with (self._folder / "faults.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(event)) + "\n")
        befallen = " ".join(map(str, event.servers)) or "redis"
        lasted_s = event.ended_at - event.began_at
        self._say(f"{event.kind.value:16} {befallen:6} began {event.began_at:.3f}, {lasted_s:.2f} s {event.note}")

    def _say(self, text: str) -> None:
        print(f"{time.monotonic() - self._zero:8.2f}  {text}", flush=True)


async def _watch(load: asyncio.subprocess.Process) -> None:
    """Raises if the load ends, which nobody has asked it to."""
    status = await load.wait()
    raise RuntimeError(f"the load ended by itself with status {status}")
