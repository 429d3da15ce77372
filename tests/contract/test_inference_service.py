"""Whole inputs over `ModelInfer`, with Triton's clients: values, shapes, types, and what is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import pytest

from tests.kit import lstm
from tests.kit.server import told
from tests.kit.triton import (
    InferenceServerException,
    asked,
    blocking,
    client_of,
    folder_of,
    run_blocking,
    service_pb2,
    serving,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from services.runtime.app import Server

Request = service_pb2.ModelInferRequest


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


async def call(server: Server, request: Any) -> Any:
    """The answer to a message of Triton's own."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        method = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            request_serializer=Request.SerializeToString,
            response_deserializer=service_pb2.ModelInferResponse.FromString,
        )
        return await method(request)


async def refused(server: Server, request: Any) -> tuple[str, str, str]:
    """Code, reason and field of the error that a message gets."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(server, request)
    return told(caught.value)


def typed(**fields: Any) -> Any:
    """A request with one row of two timesteps in typed contents; `fields` override what it says of its input."""
    request = Request(model_name="lstm")
    values: dict[str, Any] = {"name": "x", "datatype": "FP32", "shape": [2, 3], "fp32_contents": [0.5] * 6, **fields}
    contents = {name: values.pop(name) for name in tuple(values) if name.endswith("_contents")}
    tensor = request.inputs.add(**values)
    for name, elements in contents.items():
        getattr(tensor.contents, name).extend(elements)
    return request


@pytest.mark.parametrize("timesteps", [1, 7, 8, 9, 30])
async def test_whole_inputs_of_any_length(client: Any, timesteps: int) -> None:
    """Longer than a step may be, too; the outputs are those of the network."""
    x = lstm.inputs(timesteps)
    answer = await client.infer("lstm", asked(x[None]), request_id="r")
    np.testing.assert_allclose(answer.as_numpy("y")[0], lstm.expected(x), atol=1e-6)
    np.testing.assert_array_equal(answer.as_numpy("last"), answer.as_numpy("y")[:, -1])
    response = answer.get_response()
    assert (response.id, response.model_name, response.model_version) == ("r", "lstm", "1")


async def test_the_batch_axis_may_be_left_out(client: Any) -> None:
    """Then it is missing in the answer as well; the values are the same."""
    x = lstm.inputs(5)
    with_batch, without = await client.infer("lstm", asked(x[None])), await client.infer("lstm", asked(x))
    assert (with_batch.as_numpy("y").shape, without.as_numpy("y").shape) == ((1, 5, 4), (5, 4))
    assert (with_batch.as_numpy("last").shape, without.as_numpy("last").shape) == ((1, 4), (4,))
    np.testing.assert_array_equal(with_batch.as_numpy("y")[0], without.as_numpy("y"))


async def test_rows_of_a_batch_are_those_alone(server: Server, client: Any) -> None:
    """Bit for bit, although they share runs of the model."""
    rows = np.stack([lstm.inputs(12, seed) for seed in range(40)])
    together = await client.infer("lstm", asked(rows))
    alone = [await client.infer("lstm", asked(row)) for row in rows[:5]]
    for n, one in enumerate(alone):
        np.testing.assert_array_equal(together.as_numpy("y")[n], one.as_numpy("y"))
        np.testing.assert_array_equal(together.as_numpy("last")[n], one.as_numpy("last"))
    runs = server.metrics.registry.get_sample_value("statestream_batch_size_count", {"model": "lstm"})
    assert runs is not None
    assert runs < 40, "no two rows ever shared a run"


async def test_rows_of_different_lengths(client: Any) -> None:
    """With the graph's own input of lengths; what is behind the end of a row is zero."""
    rows = np.stack([lstm.inputs(10, seed) for seed in range(3)])
    lengths = blocking.InferInput("lengths", [3], "INT32")
    lengths.set_data_from_numpy(np.array([10, 1, 4], np.int32))
    answer = await client.infer("lstm", [*asked(rows), lengths])
    for n, length in enumerate((10, 1, 4)):
        alone = await client.infer("lstm", asked(rows[n, :length]))
        np.testing.assert_array_equal(answer.as_numpy("y")[n, :length], alone.as_numpy("y"))
        np.testing.assert_array_equal(answer.as_numpy("last")[n], alone.as_numpy("last"))
        assert not answer.as_numpy("y")[n, length:].any()


async def test_outputs_as_asked_for(client: Any) -> None:
    """Some of them, in any order."""
    wanted = [blocking.InferRequestedOutput(name) for name in ("last", "y")]
    both = await client.infer("lstm", asked(lstm.inputs(3)), outputs=wanted)
    assert [output.name for output in both.get_response().outputs] == ["last", "y"]
    one = await client.infer("lstm", asked(lstm.inputs(3)), outputs=wanted[:1])
    assert [output.name for output in one.get_response().outputs] == ["last"]
    assert one.as_numpy("y") is None
    np.testing.assert_array_equal(one.as_numpy("last"), both.as_numpy("last"))


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
async def test_compressed_requests(server: Server, algorithm: str) -> None:
    """As Triton's client compresses them."""
    x = lstm.inputs(50)
    answer = await run_blocking(server, lambda one: one.infer("lstm", asked(x), compression_algorithm=algorithm))
    np.testing.assert_allclose(answer.as_numpy("y"), lstm.expected(x), atol=1e-6)


async def test_typed_contents_are_raw_ones(server: Server) -> None:
    """The elements may come as numbers; the answer is the same, and always raw."""
    raw = Request(model_name="lstm", raw_input_contents=[np.full(6, 0.5, "<f4").tobytes()])
    raw.inputs.add(name="x", datatype="FP32", shape=[2, 3])
    one, other = await call(server, typed()), await call(server, raw)
    assert one == other
    assert len(one.raw_output_contents) == 2


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"name": "z"}, "inputs[0].name"),
        ({"name": "h"}, "inputs[0].name"),
        ({"name": "lengths"}, "inputs"),
        ({"datatype": "FP64", "fp32_contents": [], "fp64_contents": [0.5] * 6}, "inputs[0].datatype"),
        ({"datatype": "FLOAT"}, "inputs[0].datatype"),
        ({"shape": [3, 2]}, "inputs[0].shape"),
        ({"shape": [6]}, "inputs[0].shape"),
        ({"shape": [1, 1, 2, 3]}, "inputs[0].shape"),
        ({"shape": [0, 3], "fp32_contents": []}, "inputs[0].shape"),
        ({"shape": [-2, 3]}, "inputs[0].shape"),
        ({"shape": [65, 1, 3], "fp32_contents": [0.5] * 195}, "inputs[0].shape"),
        ({"shape": [1] * 17}, "inputs[0].shape"),
        ({"fp32_contents": [0.5] * 5}, "inputs[0].contents"),
        ({"fp32_contents": [float("nan")] * 6}, "inputs[0].contents"),
        ({"fp32_contents": [float("inf")] * 6}, "inputs[0].contents"),
        ({"fp32_contents": [], "fp64_contents": [0.5] * 6}, "inputs[0].contents.fp64_contents"),
        ({"datatype": "INT8", "fp32_contents": [], "int_contents": [300]}, "inputs[0].contents.int_contents"),
        ({"datatype": "FP16"}, "inputs[0].contents"),
        ({"datatype": "BF16"}, "inputs[0].contents"),
        ({"datatype": "BYTES", "fp32_contents": [], "bytes_contents": [b"a"]}, "inputs[0].contents"),
    ],
)
async def test_tensors_that_the_model_does_not_take(server: Server, fields: dict[str, Any], field: str) -> None:
    """Refused by the name of the field; nothing is converted in silence."""
    assert await refused(server, typed(**fields)) == ("INVALID_ARGUMENT", "INVALID_INPUT", field)


@pytest.mark.parametrize("datatype", ["BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64"])
async def test_other_datatypes_are_refused_as_raw_bytes_too(server: Server, datatype: str) -> None:
    """Also where the number of bytes would fit."""
    request = Request(model_name="lstm", raw_input_contents=[bytes(24)])
    request.inputs.add(name="x", datatype=datatype, shape=[2, 3])
    assert await refused(server, request) == ("INVALID_ARGUMENT", "INVALID_INPUT", "inputs[0].datatype")


def _with_raw(count: int) -> Any:
    request = typed()
    request.raw_input_contents.extend([bytes(24)] * count)
    return request


def _shared_memory() -> Any:
    request = typed(fp32_contents=[])
    request.inputs[0].parameters["shared_memory_region"].string_param = "region"
    return request


def _output(name: str, **parameters: int) -> Any:
    request = typed()
    output = request.outputs.add(name=name)
    for key, value in parameters.items():
        output.parameters[key].int64_param = value
    return request


def _twice() -> Any:
    request = _output("y")
    request.outputs.add(name="y")
    return request


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (Request(), ("INVALID_ARGUMENT", "INVALID_INPUT", "model_name")),
        (Request(model_name="nobody"), ("NOT_FOUND", "MODEL_NOT_FOUND", "")),
        (Request(model_name="lstm", model_version="9"), ("NOT_FOUND", "MODEL_NOT_FOUND", "")),
        (Request(model_name="lstm"), ("INVALID_ARGUMENT", "INVALID_INPUT", "inputs")),
        (_with_raw(2), ("INVALID_ARGUMENT", "INVALID_INPUT", "raw_input_contents")),
        (_shared_memory(), ("INVALID_ARGUMENT", "INVALID_INPUT", "inputs[0].parameters[shared_memory_region]")),
        (_output("z"), ("INVALID_ARGUMENT", "INVALID_INPUT", "outputs[0].name")),
        (_output("h_out"), ("INVALID_ARGUMENT", "INVALID_INPUT", "outputs[0].name")),
        (_twice(), ("INVALID_ARGUMENT", "INVALID_INPUT", "outputs[1].name")),
        (
            _output("y", classification=3),
            ("INVALID_ARGUMENT", "INVALID_INPUT", "outputs[0].parameters[classification]"),
        ),
    ],
)
async def test_requests_that_cannot_be_served(server: Server, request_: Any, expected: tuple[str, str, str]) -> None:
    """Code, reason and field."""
    assert await refused(server, request_) == expected


async def test_what_is_no_request_is_refused_by_name(server: Server) -> None:
    """Bytes that are no message, and text that is not UTF-8: INVALID_ARGUMENT, not INTERNAL."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        method = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        for data in (b"\xff\xff", b"\x0a\x02\xff\xfe", b"\x0a\x7f"):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await method(data)
            assert told(caught.value) == ("INVALID_ARGUMENT", "INVALID_INPUT", "request")


async def test_a_timeout_that_has_passed(client: Any) -> None:
    """Triton's parameter, in microseconds: what is too late is not run."""
    with pytest.raises(InferenceServerException) as caught:
        for _ in range(50):  # one microsecond is over before its run in any of them
            await client.infer("lstm", asked(lstm.inputs(8)), timeout=1)
    assert caught.value.status() == "StatusCode.DEADLINE_EXCEEDED"
    await client.infer("lstm", asked(lstm.inputs(8)), timeout=10_000_000, priority=3)


async def test_parameters_that_mean_nothing_are_told(client: Any) -> None:
    """As with Triton they do no harm; the answer names them, for whoever has misspelt one."""
    answer = await client.infer("lstm", asked(lstm.inputs(1)), parameters={"durabilty": "STEP"})
    assert answer.get_response().parameters["ignored_parameters"].string_param == "durabilty"
