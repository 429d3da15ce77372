"""The floors that a served step stands on, measured in the same run on the same machine."""

from __future__ import annotations

import asyncio
import sys
import time
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import redis.asyncio
import uvloop
from statestream.sentiment.v1 import sentiment_pb2, sentiment_service_pb2_grpc

from services.runtime.engine.collate import output_names

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from services.runtime.model.session import OnnxModel


def raw_steps(model: OnnxModel, batch_size: int, timesteps: int, *, seconds: float) -> tuple[float, float]:
    """(steps/s, CPU microseconds per step) of onnxruntime alone, state fed back, one thread, no server."""
    rng = np.random.default_rng(0)
    words = rng.integers(1, 20_000, (timesteps, batch_size), dtype=np.int64)
    feeds: dict[str, Any] = {"words": words, "lengths": np.full(batch_size, timesteps, np.int32)}
    for state in model.manifest.states:
        feeds[state.input] = np.stack([state.initial_array()] * batch_size, axis=1)
    names = output_names(model.manifest)
    outputs = len(model.manifest.outputs)
    runs, began, cpu = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - began < seconds:
        results = model.run(names, feeds)
        for state, value in zip(model.manifest.states, results[outputs:], strict=True):
            feeds[state.input] = value
        runs += 1
    wall, cpu = time.perf_counter() - began, time.process_time() - cpu
    return runs * batch_size / wall, cpu / (runs * batch_size) * 1e6


class EchoServicer(sentiment_service_pb2_grpc.SentimentServiceServicer):
    """The bare asyncio stream: parses each message and answers with a constant."""

    async def StreamingClassify(  # noqa: N802 - named by the contract
        self, request_iterator: AsyncIterator[Any], context: Any
    ) -> AsyncIterator[sentiment_pb2.StreamingClassifyResponse]:
        """One reply a message, the first message excepted."""
        response = sentiment_pb2.StreamingClassifyResponse()
        response.header.sequence_id = "0" * 32
        response.sentiment.positive_probability = 0.5
        async for request in request_iterator:
            if request.HasField("piece"):
                yield response


async def serve_echo(port: int) -> None:
    """Serves on the loopback address until it is killed."""
    server = grpc.aio.server()
    servicer: Any = EchoServicer()  # pyright: ignore[reportAbstractUsage]
    sentiment_service_pb2_grpc.add_SentimentServiceServicer_to_server(servicer, server)
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await asyncio.Event().wait()


async def redis_commits(url: str, batch_size: int, model: OnnxModel, *, seconds: float) -> float:
    """CPU microseconds of redis-py per record written, `batch_size` in one pipeline; no functions, no format."""
    record = b"0" * (model.manifest.state_bytes + 1000)
    client = redis.asyncio.Redis.from_url(url, protocol=2)
    commits, began, cpu = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - began < seconds:
        pipeline = client.pipeline(transaction=False)
        for n in range(batch_size):
            pipeline.set(f"floor:{n}", record, px=60_000)
        await pipeline.execute()
        commits += batch_size
    cpu = time.process_time() - cpu
    await client.aclose()
    return cpu / commits * 1e6


if __name__ == "__main__":
    uvloop.run(serve_echo(int(sys.argv[1])))
