"""`ModelStreamInfer` with Triton's clients: many sequences on one stream, errors in both styles, bounds, drain."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import pytest

from services.inference import mux
from services.runtime.core.clock import SystemClock
from services.runtime.state.memory import MemoryStore
from tests.kit import lstm
from tests.kit.server import told
from tests.kit.triton import (
    asked,
    blocking,
    client_of,
    folder_of,
    service_pb2,
    serving,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable
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


def row(name: int | str) -> Any:
    """What the sequence of that name reads."""
    return lstm.inputs(12, int(name))


def step(name: int | str, at: int, *, last: int = 11, **options: Any) -> dict[str, Any]:
    """The request for one timestep of a sequence; its id tells which."""
    values = {
        "model_name": "lstm",
        "inputs": asked(row(name)[None, at : at + 1]),
        "request_id": f"{name}.{at}",
        "sequence_id": name,
        "sequence_start": at == 0,
        "sequence_end": at == last,
    }
    return {**values, **options}


async def stream(client: Any, requests: Iterable[dict[str, Any]], **options: Any) -> list[tuple[Any, Any]]:
    """All answers (response, error) to requests that are sent without waiting for any."""

    async def send() -> AsyncIterator[dict[str, Any]]:
        for request in requests:
            yield request

    return [
        (result.get_response() if result else None, error)
        async for result, error in client.stream_infer(send(), **options)
    ]


def values(answers: list[tuple[Any, Any]]) -> dict[str, Any]:
    """The outputs y (T, H) of each sequence, in the order in which they came; no error."""
    parts: defaultdict[str, list[Any]] = defaultdict(list)
    for response, error in answers:
        assert error is None
        (index,) = [i for i, output in enumerate(response.outputs) if output.name == "y"]
        raw = np.frombuffer(response.raw_output_contents[index], np.float32)
        parts[response.id.partition(".")[0]].append(raw.reshape(-1, lstm.HIDDEN))
    return {name: np.concatenate(part) for name, part in parts.items()}


def facts(response: Any) -> dict[str, Any]:
    """The parameters of an answer as plain values."""
    return {key: getattr(value, value.WhichOneof("parameter_choice")) for key, value in response.parameters.items()}


@pytest.mark.parametrize("kind", [int, str])
async def test_many_sequences_on_one_stream(server: Server, client: Any, kind: Any) -> None:
    """Sent without waiting: each has the values of its own row in their order, and they share runs of the model."""
    names = [kind(n) for n in range(1, 17)]
    answers = await stream(client, [step(name, at) for at in range(12) for name in names])
    got = values(answers)
    assert len(answers) == 12 * 16
    for name in names:
        np.testing.assert_allclose(got[str(name)], lstm.expected(row(name)), atol=1e-6)
        steps = [facts(response)["step"] for response, _ in answers if response.id.split(".")[0] == str(name)]
        assert steps == list(range(12))
    runs = server.metrics.registry.get_sample_value("statestream_batch_size_count", {"model": "lstm"})
    assert runs is not None
    assert runs < 12 * 16, "no two sequences ever shared a run"


async def test_one_sequence_without_waiting(client: Any) -> None:
    """Answers come in order, the last one says that the sequence is over; the next one may follow on the stream."""
    answers = await stream(client, [step(name, at) for name in (1, 2) for at in range(12)])
    assert [response.id for response, _ in answers] == [f"{name}.{at}" for name in (1, 2) for at in range(12)]
    for name in (1, 2):
        np.testing.assert_allclose(values(answers)[str(name)], lstm.expected(row(name)), atol=1e-6)
    assert [facts(response).get("sequence_end", False) for response, _ in answers].count(True) == 2
    assert all(facts(response)["triton_final_response"] for response, _ in answers)


async def test_the_blocking_client_streams_too(server: Server) -> None:
    """Triton's own example: a callback, answers of two sequences in between each other."""
    done: list[tuple[Any, Any]] = []

    def work() -> None:
        with blocking.InferenceServerClient(f"127.0.0.1:{server.port}") as client:
            client.start_stream(lambda result, error: done.append((result and result.get_response(), error)))
            for at in range(12):
                for name in (1, 2):
                    client.async_stream_infer(**step(name, at))
            client.stop_stream()

    await asyncio.to_thread(work)
    for name in (1, 2):
        np.testing.assert_allclose(values(done)[str(name)], lstm.expected(row(name)), atol=1e-6)


async def test_whole_inputs_beside_sequences(client: Any) -> None:
    """Requests without a sequence are answered on the same stream."""
    whole = {"model_name": "lstm", "inputs": asked(row(5)), "request_id": "5.whole"}
    got = values(await stream(client, [step(1, 0), whole, step(1, 1), whole]))
    np.testing.assert_allclose(got["1"], lstm.expected(row(1))[:2], atol=1e-6)
    np.testing.assert_allclose(got["5"], np.concatenate([lstm.expected(row(5))] * 2), atol=1e-6)


@pytest.mark.parametrize("others", [(), (2, 3)])
async def test_an_error_is_told_in_its_place(client: Any, others: tuple[int, ...]) -> None:
    """The stream goes on; the sequence stands at its last step, and the others notice nothing."""
    bad = step(1, 1, request_id="1.bad", inputs=asked(np.zeros((1, 1, 2), np.float32)))
    unknown = step(9, 1, request_id="9.unknown")
    requests = [step(n, 0) for n in (1, *others)] + [bad, *([unknown] if others else [])] + [step(1, 1)]
    answers = await stream(client, requests + [step(n, 1) for n in others])
    errors = [error for _, error in answers if error]
    assert [message.message().partition(":")[0] for message in errors][:1] == ["inputs[0].shape"]
    assert len(errors) == 1 + bool(others)
    got = values([answer for answer in answers if answer[1] is None])
    for n in (1, *others):
        np.testing.assert_allclose(got[str(n)], lstm.expected(row(n))[:2], atol=1e-6)


async def test_an_error_tells_whose_it_is(server: Server) -> None:
    """Beside the message: the request's id, the sequence, and what the details of a status would tell."""
    request = service_pb2.ModelInferRequest(model_name="lstm", id="mine")
    request.parameters["sequence_id"].uint64_param = 2**64 - 1
    request.parameters["step"].int64_param = 4
    tensor = request.inputs.add(name="x", datatype="FP32", shape=[1, 3])
    tensor.contents.fp32_contents.extend([0, 0, 0])
    start = service_pb2.ModelInferRequest()
    start.CopyFrom(request)
    start.parameters["sequence_start"].bool_param = True
    start.parameters["step"].int64_param = 0
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        method = channel.stream_stream(
            "/inference.GRPCInferenceService/ModelStreamInfer",
            request_serializer=service_pb2.ModelInferRequest.SerializeToString,
            response_deserializer=service_pb2.ModelStreamInferResponse.FromString,
        )
        first, error = [response async for response in method(iter([start, request]))]

    assert facts(first.infer_response)["sequence_id"] == 2**64 - 1
    assert "skips ahead" in error.error_message
    assert error.infer_response.id == "mine"
    assert facts(error.infer_response) == {
        "sequence_id": 2**64 - 1,
        "error_code": "FAILED_PRECONDITION",
        "error_reason": "STEP_OUT_OF_ORDER",
        "expected_step": "1",
        "triton_final_response": True,
    }


@pytest.mark.parametrize("others", [(), (2, 3)])
async def test_errors_as_statuses(client: Any, others: tuple[int, ...]) -> None:
    """With the header `triton_grpc_error` the first error ends the stream, after the answers that were due before."""
    requests = [step(n, 0) for n in (1, *others)] + [step(1, 5, parameters={"step": 5})]
    answers: list[Any] = []

    async def send() -> AsyncIterator[dict[str, Any]]:
        for request in requests:
            yield request

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for result, _ in client.stream_infer(send(), headers={"triton_grpc_error": "true"}):
            answers.append(result.get_response())
    assert told(caught.value) == ("FAILED_PRECONDITION", "STEP_OUT_OF_ORDER", "")
    assert "1.0" in {answer.id for answer in answers}


async def test_a_half_close_commits_what_was_answered(tmp_path: Path) -> None:
    """Streams run ahead of the store; when one has ended, another server goes on with all of its sequences."""
    store = MemoryStore(SystemClock(), bytes_max=10**7, sequences_max=100)
    folder = folder_of(tmp_path)
    async with (
        serving(folder, store=store, commit_interval_ms=60_000.0) as one,
        serving(folder, store=store) as two,
        client_of(one) as first,
        client_of(two) as second,
    ):
        before = await stream(first, [step(name, at) for at in range(7) for name in (1, 2, 3)])
        assert min(facts(response)["committed_step"] for response, _ in before[-3:]) == 0
        after = await stream(second, [step(name, at) for at in range(7, 12) for name in (1, 2, 3)])
        for name in (1, 2, 3):
            got = np.concatenate([values(before)[str(name)], values(after)[str(name)]])
            np.testing.assert_allclose(got, lstm.expected(row(name)), atol=1e-6)


async def test_a_resumed_sequence_goes_on_with_a_stream(tmp_path: Path) -> None:
    """The first answer tells the next step; who was on it before is told so, and keeps the other sequences."""
    store = MemoryStore(SystemClock(), bytes_max=10**7, sequences_max=100)
    folder = folder_of(tmp_path)
    async with (
        serving(folder, store=store, commit_steps=1) as one,
        serving(folder, store=store) as two,
        client_of(one) as first,
        client_of(two) as second,
    ):
        turn: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue(8)

        async def send() -> AsyncIterator[dict[str, Any]]:
            while (request := await turn.get()) is not None:
                yield request

        answers = aiter(first.stream_infer(send()))

        async def ask(request: dict[str, Any]) -> tuple[Any, Any]:
            await turn.put(request)
            return await anext(answers)

        for name in (1, 2):
            await ask(step(name, 0))
        resume = step(1, 1, inputs=[], parameters={"resume": True})
        (standing, _), (answer, _) = await stream(second, [resume, step(1, 1)])
        assert facts(standing)["next_step"] == 1
        assert facts(answer)["step"] == 1
        error = None
        for at in range(2, 11):  # it runs ahead of the store until a commit of its own is refused
            _, error = await ask(step(1, at))
            if error is not None:
                break
        assert error is not None
        assert "resume" in error.message()
        result, error = await ask(step(2, 1))
        assert error is None
        assert result.get_response().id == "2.1"
        await turn.put(None)


@pytest.mark.parametrize("names", [(1,), (1, 2)])
async def test_a_server_that_stops_sends_its_streams_on(tmp_path: Path, names: tuple[int, ...]) -> None:
    """What was answered is committed, the stream ends with UNAVAILABLE, and another server goes on."""
    store = MemoryStore(SystemClock(), bytes_max=10**7, sequences_max=100)
    folder = folder_of(tmp_path)
    answers: list[tuple[Any, Any]] = []
    forever = asyncio.Event()
    async with serving(folder, store=store) as two, client_of(two) as second:
        async with serving(folder, store=store, commit_interval_ms=60_000.0) as one, client_of(one) as first:

            async def send() -> AsyncIterator[dict[str, Any]]:
                for request in [step(name, at) for at in range(5) for name in names]:
                    yield request
                await forever.wait()

            stopping: asyncio.Task[None] | None = None
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                async for result, error in first.stream_infer(send()):
                    answers.append((result.get_response(), error))
                    if len(answers) == 5 * len(names):
                        stopping = asyncio.create_task(one.stop())
            assert told(caught.value) == ("UNAVAILABLE", "DRAINING", "")
            assert stopping is not None
            await stopping
            forever.set()
        after = await stream(second, [step(name, at) for at in range(5, 12) for name in names])
        for name in names:
            got = np.concatenate([values(answers)[str(name)], values(after)[str(name)]])
            np.testing.assert_allclose(got, lstm.expected(row(name)), atol=1e-6)


async def test_bounds_hold_nothing_up(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer requests in progress and fewer sequences remembered than are sent: all are answered, in order."""
    monkeypatch.setattr(mux, "IN_PROGRESS_MAX", 3)
    monkeypatch.setattr(mux, "SEQUENCES_MAX", 3)
    names = range(1, 9)
    got = values(await stream(client, [step(name, at) for at in range(12) for name in names]))
    for name in names:
        np.testing.assert_allclose(got[str(name)], lstm.expected(row(name)), atol=1e-6)
