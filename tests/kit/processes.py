"""Replicas as real processes, to be killed."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

START_S_MAX = 30


def free_port() -> int:
    """A port of the loopback address that nobody has at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Replica:
    """One server process of the sentiment task."""

    def __init__(self, process: asyncio.subprocess.Process, port: int) -> None:
        self.process = process
        self.port = port

    @property
    def address(self) -> str:
        """Where it serves."""
        return f"127.0.0.1:{self.port}"

    async def kill(self) -> None:
        """The process is gone at once, as in a crash."""
        self.process.kill()
        await self.process.wait()

    async def terminate(self) -> int:
        """Asks it to drain, and gives its exit status."""
        self.process.send_signal(signal.SIGTERM)
        return await self.process.wait()


async def start_replica(**settings: str) -> Replica:
    """A replica that says SERVING; `settings` are environment variables without their prefix, lower case."""
    port = free_port()
    values = {"listen": f"127.0.0.1:{port}", "metrics_listen": "", "log_level": "error", "drain_s": "5", **settings}
    environment = {**os.environ, **{f"STATESTREAM_{name.upper()}": value for name, value in values.items()}}
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "services.sentiment", env=environment)
    replica = Replica(process, port)
    await asyncio.wait_for(serving(replica.address), START_S_MAX)
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
