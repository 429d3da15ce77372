"""Servers of the inference service, and Triton's own clients as they come."""

from __future__ import annotations

import asyncio
import warnings
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from services.inference.servicer import TASK
from services.runtime.app import Server
from services.runtime.config import Settings
from tests.kit import lstm

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable
    from pathlib import Path

    from services.runtime.core.clock import Clock
    from services.runtime.state.store import StateStore
    from services.runtime.transport.task import Task

with warnings.catch_warnings():
    # Its generated code is of the major version of protobuf before ours, which protobuf says and allows.
    warnings.filterwarnings("ignore", message="Protobuf gencode version", category=UserWarning)
    import tritonclient.grpc as blocking
    from tritonclient.grpc import aio, model_config_pb2, service_pb2
    from tritonclient.utils import InferenceServerException, np_to_triton_dtype

__all__ = ["InferenceServerException", "aio", "blocking", "model_config_pb2", "service_pb2"]


@asynccontextmanager
async def serving(
    *roots: Path,
    store: StateStore | None = None,
    clock: Clock | None = None,
    tasks: tuple[Task, ...] = (TASK,),
    **settings: Any,
) -> AsyncGenerator[Server]:
    """A warm server of the models in `roots`; `settings` override the defaults."""
    values: Any = {"listen": "127.0.0.1:0", "metrics_listen": "", "drain_s": 1.0, "artefacts": roots, **settings}
    server = Server(Settings(**values), tasks, store=store, clock=clock)
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


@asynccontextmanager
async def client_of(server: Server) -> AsyncGenerator[Any]:
    """Triton's asyncio client."""
    client = aio.InferenceServerClient(f"127.0.0.1:{server.port}")
    try:
        yield client
    finally:
        await client.close()


async def run_blocking(server: Server, work: Callable[[Any], Any]) -> Any:
    """What `work` does with Triton's blocking client, in a thread of its own."""

    def call() -> Any:
        with blocking.InferenceServerClient(f"127.0.0.1:{server.port}") as client:
            return work(client)

    return await asyncio.to_thread(call)


def asked(array: Any, name: str = "x") -> list[Any]:
    """The one input of the LSTM."""
    values = np.asarray(array)
    tensor = blocking.InferInput(name, values.shape, np_to_triton_dtype(values.dtype))
    tensor.set_data_from_numpy(values)
    return [tensor]


def folder_of(tmp_path: Path, **model: Any) -> Path:
    """A folder with the LSTM."""
    lstm.export(tmp_path / "models", **model)
    return tmp_path / "models"
