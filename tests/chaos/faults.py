"""Makes the faults of a plan happen to real processes, and writes down when they did."""

from __future__ import annotations

import asyncio
import signal
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from redis.exceptions import RedisError

from tests.chaos.fleet import DiedError
from tests.chaos.plan import STORE_KINDS, Kind

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from tests.chaos.fleet import Fleet, Server
    from tests.chaos.network import Partitions
    from tests.chaos.plan import Fault
    from tests.kit.redis_group import Member, RedisGroup

_TAKEN_OVER_S_MAX = 60.0
SLOW_S = 0.2
"""How long each message to and from a slow store is held up."""


@dataclass
class Event:
    """A fault as it happened; times are those of the monotonic clock, in seconds. `servers` are those it befell."""

    kind: Kind
    servers: list[int]
    began_at: float
    ended_at: float = 0.0
    note: str = ""


class Injector:
    """Lets faults happen; `tell` gets each event once it is over."""

    def __init__(self, fleet: Fleet, group: RedisGroup, partitions: Partitions, tell: Callable[[Event], None]) -> None:
        self._fleet = fleet
        self._group = group
        self._partitions = partitions
        self._tell = tell
        self._store_turn = asyncio.Lock()

    async def run(self, faults: list[Fault]) -> None:
        """All of them, each at its time from now on, or as soon as it may; returns when everything is up again.

        Raises:
            ExceptionGroup: something did not come back, or a server ended by itself.
        """
        began_at = time.monotonic()
        async with asyncio.TaskGroup() as tasks:
            for fault in faults:
                await asyncio.sleep(max(0.0, began_at + fault.at_s - time.monotonic()))
                tasks.create_task(self._inject(fault))
        await asyncio.to_thread(self._group.until, self._group.is_healthy)
        if not all(server.is_up for server in self._fleet.servers):
            raise DiedError("a server is not up although no fault is at work")

    async def _inject(self, fault: Fault) -> None:
        if fault.kind in STORE_KINDS:
            async with self._store_turn:
                await asyncio.to_thread(self._group.until, self._group.is_healthy)
                async with self._event(fault.kind, []) as event:
                    await self._harm_store(fault, event)
        elif fault.kind is Kind.KILL_ALL:
            async with self._fleet.harm_all() as servers:
                await self._kill(fault, servers)
        elif fault.kind in (Kind.CLIENT_CUT, Kind.STORE_CUT, Kind.STORE_SLOW):
            await self._harm_links(fault, self._fleet.servers[fault.server])
        else:
            async with self._fleet.harm(fault.server) as server:
                await self._harm_process(fault, server)

    @asynccontextmanager
    async def _event(self, kind: Kind, servers: list[Server]) -> AsyncGenerator[Event]:
        event = Event(kind, [server.number for server in servers], time.monotonic())
        yield event
        event.ended_at = time.monotonic()
        self._tell(event)

    async def _harm_process(self, fault: Fault, server: Server) -> None:
        if fault.kind is Kind.KILL:
            await self._kill(fault, [server])
            return
        async with self._event(fault.kind, [server]) as event:
            if fault.kind is Kind.DRAIN:
                await self._drain(fault, server, event)
                return
            server.signal(signal.SIGSTOP)
            try:
                await asyncio.sleep(fault.seconds)
            finally:
                server.signal(signal.SIGCONT)

    async def _kill(self, fault: Fault, servers: list[Server]) -> None:
        async with self._event(fault.kind, servers):
            await asyncio.gather(*(server.kill() for server in servers))
            await asyncio.sleep(fault.seconds)
            await asyncio.gather(*(server.start() for server in servers))

    async def _drain(self, fault: Fault, server: Server, event: Event) -> None:
        server.signal(signal.SIGTERM)
        status = await server.gone()
        event.note = f"took {time.monotonic() - event.began_at:.2f} s"
        if status:
            raise DiedError(f"server {server.number} was asked to end and did with status {status}")
        await asyncio.sleep(fault.seconds)
        await server.start()

    async def _harm_links(self, fault: Fault, server: Server) -> None:
        links = [server.front] if fault.kind is Kind.CLIENT_CUT else server.back
        async with self._event(fault.kind, [server]):
            for link in links:
                if fault.kind is Kind.STORE_SLOW:
                    link.delay_s = SLOW_S
                else:
                    self._partitions.begin(link)
            await asyncio.sleep(fault.seconds)
            for link in links:
                if fault.kind is Kind.STORE_SLOW:
                    link.delay_s = 0.0
                else:
                    self._partitions.end(link)

    async def _harm_store(self, fault: Fault, event: Event) -> None:
        primary = await asyncio.to_thread(self._group.primary)
        if fault.kind is Kind.STORE_STOP:
            primary.signal(signal.SIGSTOP)
            try:
                await asyncio.sleep(fault.seconds)
            finally:
                primary.signal(signal.SIGCONT)
        elif fault.kind in (Kind.STORE_RESTART, Kind.STORE_CRASH):
            await asyncio.to_thread(primary.terminate if fault.kind is Kind.STORE_RESTART else primary.stop)
            await asyncio.sleep(fault.seconds)
            await asyncio.to_thread(primary.start)
        elif fault.kind is Kind.FAIL_OVER:
            await asyncio.to_thread(self._group.fail_over)
            await self._taken_over(primary, event)
        elif fault.kind is Kind.PRIMARY_HANG:
            primary.signal(signal.SIGSTOP)
            try:
                await self._taken_over(primary, event)
            finally:
                primary.signal(signal.SIGCONT)
        else:
            await asyncio.to_thread(primary.stop)
            await self._taken_over(primary, event)
            await asyncio.to_thread(primary.start)

    async def _taken_over(self, before: Member, event: Event) -> None:
        def taken_over() -> bool:
            try:
                return self._group.primary() is not before
            except RedisError:
                return False

        await asyncio.to_thread(self._group.until, taken_over, _TAKEN_OVER_S_MAX)
        event.note = f"took {time.monotonic() - event.began_at:.2f} s"
