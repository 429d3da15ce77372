"""The client side of the benchmark: many streams, one message at a time each, as live sequences are.

Run in a process of its own, so that the CPU time of the server is the server's alone.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any

import grpc
import uvloop
from statestream.common.v1 import sequence_pb2
from statestream.sentiment.v1 import sentiment_pb2, sentiment_service_pb2_grpc

Request = sentiment_pb2.StreamingClassifyRequest
TEXT = "the plot is thin but every scene is a quiet joy to watch and nobody overacts in it at all"
WORDS = TEXT.split(" ")


def message(timesteps: int, at: int) -> Request:
    """A piece of so many words."""
    text = " ".join(WORDS[(at + i) % len(WORDS)] for i in range(timesteps)) + " "
    return Request(piece=sentiment_pb2.TextPiece(control=sequence_pb2.StepControl(), text=text))


async def drive(
    port: int, sequences: int, timesteps: int, warm_s: float, seconds: float, durability: str
) -> dict[str, float]:
    """Steps taken in all, and steps and latencies of those answered in the `seconds` after `warm_s`."""
    latencies: list[float] = []
    taken = 0
    messages = [message(timesteps, at) for at in range(len(WORDS))]
    config = Request(
        config=sequence_pb2.SequenceConfig(durability=sequence_pb2.Durability.Value(f"DURABILITY_{durability}"))
    )
    began = time.perf_counter() + warm_s
    until = began + seconds

    async def one(stub: Any) -> None:
        call = stub.StreamingClassify()
        await call.write(config)
        nonlocal taken
        step = 0
        while (now := time.perf_counter()) < until:
            await call.write(messages[step % len(messages)])
            await call.read()
            if now >= began:
                latencies.append(time.perf_counter() - now)
            step += 1
        taken += step
        call.cancel()

    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = sentiment_service_pb2_grpc.SentimentServiceStub(channel)
        await asyncio.gather(*(one(stub) for _ in range(sequences)))
    latencies.sort()
    return {
        "taken": taken,
        "per_s": len(latencies) / seconds,
        "p50_ms": latencies[len(latencies) // 2] * 1e3,
        "p99_ms": latencies[int(len(latencies) * 0.99)] * 1e3,
    }


if __name__ == "__main__":
    port, sequences, timesteps = (int(argument) for argument in sys.argv[1:4])
    warm_s, seconds = (float(argument) for argument in sys.argv[4:6])
    print(json.dumps(uvloop.run(drive(port, sequences, timesteps, warm_s, seconds, sys.argv[6]))))
