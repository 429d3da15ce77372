"""What a served LSTM reaches of the raw runtime: 2 layers of 512, 80 inputs, 256 outputs, float32, random weights.

The server and the load generator (`streams`) share this machine's processors; each measurement of the server stands
between two of onnxruntime alone on one thread, on the same network and batch, and the shares are taken within a turn.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import onnxruntime

from models.common.manifest import MODEL_FILE, Manifest, load_manifest
from models.common.parity import Runner
from tests.bench.measured import Process, process, threads_seconds
from tests.bench.streams import FEATURES, inputs
from tests.kit.processes import serving

if TYPE_CHECKING:
    from pathlib import Path

LOADS = [(sequences, timesteps) for timesteps in (1, 10) for sequences in (1, 8, 32, 64)]
KNOWN = dict(zip(LOADS, (0.56, 0.39, 0.37, 0.37, 1.01, 0.66, 0.99, 1.14), strict=True))
"""Share of raw onnxruntime that the best known server reaches on two cores: Triton with its ONNX Runtime backend, its
oldest-sequence batcher, two instances of one thread, state in its memory; measured on 2026-11-23, streams."""

TURNS = 5


class Line(NamedTuple):
    """One load, the medians over all turns.

    Attributes:
        raw_per_s, per_s: timesteps a second, of onnxruntime alone and of the server.
        share, least, most: served / raw, each within its turn.
        cpu_us: CPU time of the server a timestep.
        loop, runs, client: how busy the event loop, the threads of runs and the load generator are, in processors.
        p50_ms, p99_ms: of a message.
    """

    raw_per_s: float
    per_s: float
    share: float
    least: float
    most: float
    cpu_us: float
    loop: float
    runs: float
    client: float
    p50_ms: float
    p99_ms: float


class Raw:
    """onnxruntime alone: one thread, the state fed back."""

    def __init__(self, folder: Path) -> None:
        options: Any = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session: Any = onnxruntime.InferenceSession(
            folder / MODEL_FILE, options, providers=["CPUExecutionProvider"]
        )
        self._manifest = load_manifest(folder)

    def per_s(self, sequences: int, timesteps: int, seconds: float) -> float:
        """Timesteps a second of so many sequences in one batch."""
        rng = np.random.default_rng(0)
        x = rng.standard_normal((timesteps, sequences, FEATURES), dtype=np.float32)
        feeds: dict[str, Any] = {self._manifest.features()[0].name: x}
        if (lengths := self._manifest.lengths()) is not None:
            feeds[lengths.name] = np.full(sequences, timesteps, np.int32)
        for state in self._manifest.states:
            feeds[state.input] = np.stack([state.initial_array()] * sequences, axis=1)
        names = [spec.name for spec in self._manifest.outputs] + [state.output for state in self._manifest.states]
        runs, began = 0, time.perf_counter()
        while (now := time.perf_counter()) - began < seconds:
            results = self._session.run(names, feeds)
            for state, value in zip(self._manifest.states, results[len(self._manifest.outputs) :], strict=True):
                feeds[state.input] = value
            runs += 1
        return runs * sequences * timesteps / (now - began)


def load(server: Process, sequences: int, timesteps: int, seconds: float, **options: str) -> dict[str, Any]:
    """Drives the server from another process; what that saw, and how busy it kept whom."""
    given = [f"--{name}={value}" for name, value in options.items()]
    command = [sys.executable, "-m", "tests.bench.streams", str(server.port), str(sequences), str(timesteps), *given]
    before = threads_seconds(server.pid)
    done = subprocess.run([*command, "--seconds", str(seconds)], check=True, stdout=subprocess.PIPE)
    told: dict[str, Any] = json.loads(done.stdout)
    after = threads_seconds(server.pid)
    loop = after[server.pid] - before[server.pid]
    cpu = sum(after.values()) - sum(before.values())
    busy_s = told["driven_s"]  # without the time that the generator takes to start
    told["server_us"] = cpu / (told["taken"] * timesteps) * 1e6
    told |= {"loop": loop / busy_s, "runs": (cpu - loop) / busy_s, "client": told["cpu_s"] / busy_s}
    return told


def check(folder: Path, manifest: Manifest, timesteps: int, told: dict[str, Any]) -> None:
    """Fails unless the answers to one sequence have the bits that the network gives to it alone."""
    runner, state = Runner(folder / MODEL_FILE, manifest), None
    name, output = manifest.features()[0].name, manifest.outputs[0].name
    replies = bytes.fromhex(told["replies"])
    for features in inputs(0, timesteps)[:4]:
        done = runner.run([{name: features}], [runner.initial() if state is None else state])[0]
        state = done.states
        if done.outputs[output].tobytes() not in replies:
            raise AssertionError("a reply is not what the network gives")


def measure(folder: Path, loads: list[tuple[int, int]], seconds: float, **settings: str) -> dict[tuple[int, int], Line]:
    """Every load, the server and the raw runtime taking turns. `folder` is that of the artefact."""
    raw, manifest = Raw(folder), load_manifest(folder)
    lines: dict[tuple[int, int], Line] = {}
    with process("services.inference", ARTEFACTS=str(folder.parents[1]), **settings) as server:
        asyncio.run(asyncio.wait_for(serving(f"127.0.0.1:{server.port}"), 30))
        load(server, 8, 1, 0.5, model=manifest.name)
        for sequences, timesteps in loads:
            rates, told = [raw.per_s(sequences, timesteps, seconds / 2)], list[dict[str, Any]]()
            for _ in range(TURNS):
                told.append(load(server, sequences, timesteps, seconds, model=manifest.name))
                rates.append(raw.per_s(sequences, timesteps, seconds / 2))
            check(folder, manifest, timesteps, told[0])
            served = [one["per_s"] * timesteps for one in told]
            shares = [rate / ((a + b) / 2) for rate, a, b in zip(served, rates, rates[1:], strict=False)]
            names = ("server_us", "loop", "runs", "client", "p50_ms", "p99_ms")
            line = Line(
                median(rates),
                median(served),
                median(shares),
                min(shares),
                max(shares),
                *(median(one[name] for one in told) for name in names),
            )
            lines[sequences, timesteps] = line
            print(settings["STORE"], sequences, timesteps, line, file=sys.stderr)
    return lines


def table(lines: dict[tuple[int, int], Line]) -> str:
    """One store's figures as a table in Markdown."""
    heads = (
        "sequences x timesteps a message", "raw onnxruntime", "served", "share of raw", "least to most", "best known",
        "server CPU us", "p50 / p99 ms", "busy: loop + runs + client",
    )  # fmt: skip
    rows = ["| " + " | ".join(heads) + " |", "| --- |" + " ---: |" * (len(heads) - 1)]
    for load_of, it in lines.items():
        sequences, timesteps = load_of
        rows.append(
            f"| {sequences} x {timesteps} | {it.raw_per_s:,.0f} | {it.per_s:,.0f} | **{it.share:.2f}** "
            f"| {it.least:.2f} to {it.most:.2f} | {KNOWN[load_of]:.2f} | {it.cpu_us:.0f} "
            f"| {it.p50_ms:.2f} / {it.p99_ms:.2f} "
            f"| {it.loop:.2f} + {it.runs:.2f} + {it.client:.2f} |"
        )
    return "\n".join(rows)
