"""Servers in processes of their own, and what they do under a load."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, NamedTuple

from tests.kit.processes import free_port

if TYPE_CHECKING:
    from collections.abc import Generator


class Process(NamedTuple):
    """A server to be measured."""

    pid: int
    port: int


class Served(NamedTuple):
    """What a server did under a load: steps a second, its CPU time a step, latencies as its clients saw them."""

    per_s: float
    cpu_us: float
    p50_ms: float
    p99_ms: float


@contextmanager
def process(*command: str, **settings: str) -> Generator[Process]:
    """A server in a process of its own; `{port}` in the command is its port."""
    port = free_port()
    values = {"LISTEN": f"127.0.0.1:{port}", "METRICS_LISTEN": "", "LOG_LEVEL": "error", **settings}
    environment = {**os.environ, **{f"STATESTREAM_{name}": value for name, value in values.items()}}
    running = subprocess.Popen([sys.executable, "-m", *(part.format(port=port) for part in command)], env=environment)
    try:
        yield Process(running.pid, port)
    finally:
        running.kill()
        running.wait()


def threads_seconds(pid: int) -> dict[int, float]:
    """User and system time so far of each thread of a process; its event loop is in the thread `pid`."""
    seconds: dict[int, float] = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        fields = (task / "stat").read_text().rpartition(") ")[2].split()
        seconds[int(task.name)] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return seconds


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far."""
    return sum(threads_seconds(pid).values())


def one_load(
    server: Process, sequences: int, timesteps: int, seconds: float, durability: str = "UNSPECIFIED"
) -> Served:
    """Drives a server from another process."""
    arguments = map(str, (server.port, sequences, timesteps, 0.3, seconds, durability))
    before = cpu_seconds(server.pid)
    done = subprocess.run([sys.executable, "-m", "tests.bench.load", *arguments], check=True, capture_output=True)
    told = json.loads(done.stdout)
    cpu_us = (cpu_seconds(server.pid) - before) / told["taken"] * 1e6
    return Served(told["per_s"], cpu_us, told["p50_ms"], told["p99_ms"])


def under_load(server: Process, sequences: int, timesteps: int, seconds: float, durability: str) -> Served:
    """`one_load` three times, the median of each figure."""
    runs = [one_load(server, sequences, timesteps, seconds, durability) for _ in range(3)]
    return Served(*(median(figures) for figures in zip(*runs, strict=True)))
