"""Replicas as real processes, to be killed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import socket
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

START_S_MAX = 30

STEADY_PORTS = range(20_000, 30_000)
"""Below those that the system gives to connections: a process that is down for a while finds its own free again."""


def free_port() -> int:
    """A port of the loopback address that nobody has at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


_given: set[int] = set()


def steady_port() -> int:
    """A free port that a process can leave and take again, and that is given once; see STEADY_PORTS."""
    while True:
        port = random.choice(STEADY_PORTS)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            if port not in _given:
                _given.add(port)
                return port


class Replica:
    """One server process of the sentiment task."""

    def __init__(self, process: asyncio.subprocess.Process, port: int) -> None:
        self.process = process
        self.port = port

    @property
    def address(self) -> str:
        """Where it serves."""
        return f"127.0.0.1:{self.port}"

    def signal(self, number: int) -> None:
        """Sends it a signal: SIGSTOP makes it hang, SIGCONT goes on."""
        self.process.send_signal(number)

    async def kill(self) -> None:
        """The process is gone at once, as in a crash."""
        self.process.kill()
        await self.process.wait()

    async def terminate(self) -> int:
        """Asks it to drain, and gives its exit status."""
        self.process.send_signal(signal.SIGTERM)
        return await self.process.wait()


async def start_replica(port: int | None = None, log: Path | None = None, /, **settings: str) -> Replica:
    """A replica that says SERVING; `settings` are environment variables without their prefix, lower case.

    What it prints goes to the end of `log`, or else to where our own output goes.
    """
    port = free_port() if port is None else port
    values = {"listen": f"127.0.0.1:{port}", "metrics_listen": "", "log_level": "error", "drain_s": "5", **settings}
    environment = {**os.environ, **{f"STATESTREAM_{name.upper()}": value for name, value in values.items()}}
    with log.open("ab") if log else contextlib.nullcontext() as out:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "services.sentiment", env=environment, stdout=out, stderr=out
        )
    replica = Replica(process, port)
    up, gone = asyncio.ensure_future(serving(replica.address)), asyncio.ensure_future(process.wait())
    try:
        await asyncio.wait((up, gone), timeout=START_S_MAX, return_when=asyncio.FIRST_COMPLETED)
        serves = up.done()
    finally:
        up.cancel()
        gone.cancel()
        if not up.done():
            with contextlib.suppress(ProcessLookupError):
                process.kill()
    if not serves:
        raise RuntimeError(f"the replica does not serve; exit status {process.returncode}")
    return replica


async def serving(address: str) -> None:
    """Returns once the server at `address` says SERVING; watches its health instead of asking again and again."""
    async with grpc.aio.insecure_channel(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        while True:
            try:
                async for update in stub.Watch(health_pb2.HealthCheckRequest(), wait_for_ready=True):
                    if update.status == health_pb2.HealthCheckResponse.SERVING:
                        return
            except grpc.aio.AioRpcError:
                continue


@asynccontextmanager
async def replicas(count: int, **settings: str) -> AsyncGenerator[list[Replica]]:
    """So many replicas on one store; whatever still runs at the end is killed."""
    started = list(await asyncio.gather(*(start_replica(**settings) for _ in range(count))))
    try:
        yield started
    finally:
        for replica in started:
            if replica.process.returncode is None:
                await replica.kill()
