"""What Triton's clients are told of models: metadata, configuration, statistics, the repository, what is not served."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import pytest
from google.protobuf import descriptor_pb2
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from services.inference.servicer import TASK as INFERENCE
from services.runtime.config import Settings
from services.sentiment.servicer import TASK as SENTIMENT
from tests.kit import lstm
from tests.kit.triton import InferenceServerException, asked, client_of, folder_of, run_blocking, serving

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from services.runtime.app import Server


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    """One server with the LSTM for one test."""
    async with serving(folder_of(tmp_path)) as one:
        yield one


@pytest.fixture
async def client(server: Server) -> AsyncIterator[Any]:
    """Triton's asyncio client of it."""
    async with client_of(server) as one:
        yield one


async def test_health(server: Server, client: Any) -> None:
    """The server and its models are ready, unknown ones are not; the blocking client is told the same."""
    assert await client.is_server_live()
    assert await client.is_server_ready()
    assert [await client.is_model_ready(*model) for model in (("lstm",), ("lstm", "1"), ("lstm", "2"), ("x",))] == [
        True,
        True,
        False,
        False,
    ]
    assert await run_blocking(server, lambda blocking: blocking.is_server_ready() and blocking.is_model_ready("lstm"))


async def test_server_metadata(client: Any) -> None:
    """Name, version and the extensions that are served."""
    told = await client.get_server_metadata()
    assert told.name == "statestream"
    assert told.version
    assert {"sequence", "statistics", "model_repository", "model_configuration"} <= set(told.extensions)


async def test_model_metadata(client: Any) -> None:
    """Inputs without states and lengths, the batch first."""
    told = await client.get_model_metadata("lstm", as_json=True)
    assert told["inputs"] == [{"name": "x", "datatype": "FP32", "shape": ["-1", "-1", "3"]}]
    assert [output["shape"] for output in told["outputs"]] == [["-1", "-1", "4"], ["-1", "4"]]
    assert told["versions"] == ["1"]


async def test_model_config(client: Any) -> None:
    """It says that there is a batch axis, that the server keeps the states, and for how long."""
    config = (await client.get_model_config("lstm")).config
    assert config.max_batch_size == 64
    assert [list(tensor.dims) for tensor in config.input] == [[-1, lstm.FEATURES], [1]]
    assert [tensor.optional for tensor in config.input] == [False, True]
    assert config.WhichOneof("scheduling_choice") == "sequence_batching"
    assert config.sequence_batching.WhichOneof("strategy_choice") == "oldest"
    assert config.sequence_batching.max_sequence_idle_microseconds == 3600 * 10**6
    states = config.sequence_batching.state
    assert [(s.input_name, s.output_name, list(s.dims)) for s in states] == [
        ("h", "h_out", [1, 4]),
        ("c", "c_out", [1, 4]),
    ]
    assert all(state.initial_state[0].zero_data for state in states)
    assert config.parameters["chunk_timesteps_max"].string_value == "8"
    assert config.parameters["durability"].string_value == "CHECKPOINT"


@pytest.mark.parametrize("method", ["get_model_metadata", "get_model_config", "get_inference_statistics"])
async def test_an_unknown_model_is_not_found(client: Any, method: str) -> None:
    """Each method that names a model says so."""
    with pytest.raises(InferenceServerException) as caught:
        await getattr(client, method)("nobody")
    assert caught.value.status() == "StatusCode.NOT_FOUND"


async def test_statistics(client: Any) -> None:
    """Rows, runs and times, by version and by size of the run."""
    fresh = (await client.get_inference_statistics("lstm")).model_stats[0]
    assert (fresh.inference_count, fresh.execution_count, fresh.last_inference) == (0, 0, 0)
    await client.infer("lstm", asked(lstm.inputs(4)))
    await client.infer("lstm", asked([lstm.inputs(2), lstm.inputs(2), lstm.inputs(2)]))
    (stats,) = (await client.get_inference_statistics()).model_stats
    assert (stats.name, stats.version, stats.inference_count) == ("lstm", "1", 4)
    assert stats.last_inference > 1_700_000_000_000
    assert stats.inference_stats.success.count == 4
    assert stats.inference_stats.success.ns >= stats.inference_stats.compute_infer.ns > 0
    assert stats.inference_stats.fail.count == 0
    assert sum(one.batch_size * one.compute_infer.count for one in stats.batch_stats) == 4
    assert sum(one.compute_infer.count for one in stats.batch_stats) == stats.execution_count


async def test_repository(tmp_path: Path) -> None:
    """The index lists versions; a model that is unloaded takes no sequence, and one that is loaded does."""
    folder = folder_of(tmp_path)
    async with serving(folder, model_control_mode="explicit") as server, client_of(server) as client:
        lstm.export(folder, version="2", seed=2)
        await client.load_model("lstm")
        index = await client.get_model_repository_index(as_json=True)
        states = {(one["name"], one["version"]): one["state"] for one in index["models"]}
        assert states["lstm", "2"] == "READY"
        answer = await client.infer("lstm", asked(lstm.inputs(1)))
        assert answer.get_response().model_version == "2"
        await client.unload_model("lstm")
        assert not await client.is_model_ready("lstm")
        with pytest.raises(InferenceServerException) as caught:
            await client.infer("lstm", asked(lstm.inputs(1)))
        assert caught.value.status() == "StatusCode.NOT_FOUND"
        with pytest.raises(InferenceServerException):
            await client.load_model("nobody")
        with pytest.raises(InferenceServerException) as caught:
            await client.load_model("lstm", config="{}")
        assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"


async def test_models_are_not_loaded_by_calls_unless_the_operator_says_so(client: Any) -> None:
    """The default is that the server looks by itself."""
    with pytest.raises(InferenceServerException) as caught:
        await client.load_model("lstm")
    assert caught.value.status() == "StatusCode.FAILED_PRECONDITION"


async def test_what_is_not_served_says_so(server: Server) -> None:
    """Shared memory, traces and logs: UNIMPLEMENTED, with a message that names the method."""
    calls = {
        "SystemSharedMemoryStatus": lambda client: client.get_system_shared_memory_status(),
        "SystemSharedMemoryRegister": lambda client: client.register_system_shared_memory("a", "b", 8),
        "SystemSharedMemoryUnregister": lambda client: client.unregister_system_shared_memory(),
        "CudaSharedMemoryStatus": lambda client: client.get_cuda_shared_memory_status(),
        "CudaSharedMemoryRegister": lambda client: client.register_cuda_shared_memory("a", b"", 0, 8),
        "CudaSharedMemoryUnregister": lambda client: client.unregister_cuda_shared_memory(),
        "TraceSetting": lambda client: client.get_trace_settings(),
        "LogSettings": lambda client: client.get_log_settings(),
    }
    for method, call in calls.items():
        with pytest.raises(InferenceServerException) as caught:
            await run_blocking(server, call)
        assert caught.value.status() == "StatusCode.UNIMPLEMENTED"
        assert method in caught.value.message()


async def test_task_models_are_served_as_raw_tensors() -> None:
    """The shipped sentiment model takes word indices here, beside its own service in the same process."""
    shipped = Settings.model_fields["artefacts"].default
    async with serving(*shipped, tasks=(SENTIMENT, INFERENCE)) as server, client_of(server) as client:
        (output,) = (await client.get_model_metadata("sentiment")).outputs
        answer = await client.infer("sentiment", asked(np.array([[4, 5, 6]]), "words"))
        assert answer.as_numpy(output.name).shape == (1, 2)


async def test_a_server_that_stops_is_live_and_not_ready(server: Server, client: Any) -> None:
    """Both are answered where nothing else is let in."""
    server._gate.drain()
    assert await client.is_server_live()
    assert not await client.is_server_ready()
    with pytest.raises(InferenceServerException) as caught:
        await client.infer("lstm", asked(lstm.inputs(1)))
    assert caught.value.status() == "StatusCode.UNAVAILABLE"


async def test_reflection_describes_what_is_served_here(server: Server) -> None:
    """Ours, not what Triton's client has brought into the process; the typed service too."""
    wanted = {"inference.GRPCInferenceService": "inference/grpc_service.proto"}
    wanted["statestream.inference.v1.InferenceService"] = "statestream/inference/v1/inference_service.proto"
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        plain: Any = channel  # the stubs know only the one of threads
        stub: Any = reflection_pb2_grpc.ServerReflectionStub(plain)
        for symbol, file in wanted.items():
            asked_for = reflection_pb2.ServerReflectionRequest(file_containing_symbol=symbol)
            (answer,) = [one async for one in stub.ServerReflectionInfo(iter([asked_for]))]
            found = [
                descriptor_pb2.FileDescriptorProto.FromString(data).name
                for data in answer.file_descriptor_response.file_descriptor_proto
            ]
            assert file in found
