"""Models of the user's own in the containers, through the gateway, with Triton's clients and with ours."""

from __future__ import annotations

import asyncio
import os
import queue
import shutil
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import grpc
import numpy as np
import pytest
from grpc_reflection.v1alpha import reflection_pb2
from statestream import SequenceStatus

from tests.e2e.compose.stack import ROOT, UP_S_MAX, Stack, wait_until
from tests.kit import lstm
from tests.kit.triton import InferenceServerException, aio, asked, blocking

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator
    from pathlib import Path

    from statestream import Client

pytestmark = [pytest.mark.compose, pytest.mark.timeout(UP_S_MAX + 180)]

MODEL_INFER = "/inference.GRPCInferenceService/ModelInfer"
EXPORT_S_MAX = 120
REPEATS_MAX = 50
FACTORY = """
import torch

class Tagger(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.gru = torch.nn.GRU(3, 8)
        self.head = torch.nn.Linear(8, 2)

    def forward(self, x):
        y, _ = self.gru(x)
        return self.head(y)

def make():
    torch.manual_seed(7)
    return Tagger(), torch.zeros(4, 2, 3)
"""


@pytest.fixture
def triton(stack: Stack) -> Iterator[Any]:
    """Triton's blocking client at the gateway."""
    with blocking.InferenceServerClient(stack.gateway) as client:
        yield client


@pytest.fixture
def model(stack: Stack) -> str:
    """A small LSTM in the folder of models, served by both replicas."""
    name = "lstm"
    if not (stack.models / name).exists():
        lstm.export(stack.models, name=name)
    wait_until(lambda: everywhere(stack, name), "both replicas serve the model")
    return name


def everywhere(stack: Stack, name: str) -> bool:
    """Whether every replica has loaded a model."""
    return all(stack.metric(r, "statestream_model_info", model=name) == 1 for r in stack.containers("inference"))


@contextmanager
def shared_by_all(stack: Stack) -> Generator[None]:
    """Fails unless each replica has answered some `ModelInfer` meanwhile."""
    replicas = stack.containers("inference")

    def answered() -> list[float]:
        return [stack.metric(r, "statestream_requests_total", method=MODEL_INFER, code="OK") for r in replicas]

    before = answered()
    yield
    served = [now - then for now, then in zip(answered(), before, strict=True)]
    assert len(served) == 2
    assert min(served) > 0


def export(stack: Stack, folder: Path, name: str) -> None:
    """`statestream export`, as a user calls it, into the folder that the containers follow."""
    (folder / "networks.py").write_text(FACTORY)
    command = f"{sys.executable} -m services.cli export networks:make --name {name} --output tags --into {stack.models}"
    done = subprocess.run(
        command.split(),
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=EXPORT_S_MAX,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_an_exported_model_is_served_by_all_replicas(stack: Stack, triton: Any, tmp_path: Path) -> None:
    """`statestream export`, and nothing else: both replicas serve it, whole and step by step; removed it is gone."""
    name = "tagger"
    assert not triton.is_model_ready(name)
    export(stack, tmp_path, name)
    wait_until(lambda: everywhere(stack, name), "both replicas have found the model")

    x = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
    with shared_by_all(stack):
        whole = triton.infer(name, asked(x[None])).as_numpy("tags")[0]
        steps = [
            triton.infer(
                name, asked(x[None, i : i + 1]), sequence_id="t", sequence_start=i == 0, sequence_end=i == len(x) - 1
            ).as_numpy("tags")[0]
            for i in range(len(x))
        ]
    assert whole.shape == (40, 2)
    assert np.array_equal(np.concatenate(steps), whole)
    wait_until(lambda: stack.value(f'count(statestream_model_info{{model="{name}"}})') == 2, "Prometheus sees it")

    shutil.rmtree(stack.models / name)
    wait_until(lambda: not any(triton.is_model_ready(name) for _ in range(10)), "no replica starts sequences on it")


def test_a_broken_version_changes_nothing_and_is_told(stack: Stack, triton: Any, model: str) -> None:
    """The version before is served on; the index has the reason, and Prometheus an alert."""
    broken = stack.models / model / "2"
    shutil.copytree(stack.models / model / "1", broken)
    x = lstm.inputs(4)
    replicas = stack.containers("inference")

    def refused(replica: str) -> bool:
        return stack.metric(replica, "statestream_model_load_failures_total", model=model) > 0

    try:
        wait_until(lambda: all(refused(replica) for replica in replicas), "both replicas have seen the new version")
        index = indexed(triton, model)
        assert index["1"] == ("READY", "")
        assert index["2"][0] == "UNAVAILABLE"
        assert "version" in index["2"][1]
        assert np.allclose(triton.infer(model, asked(x[None])).as_numpy("y")[0], lstm.expected(x), atol=1e-5)
        wait_until(
            lambda: stack.value(f'count(ALERTS{{alertname="ModelNotLoaded", model="{model}"}})') == 1, "the alert fires"
        )
    finally:
        shutil.rmtree(broken)


def indexed(triton: Any, model: str) -> dict[str, tuple[str, str]]:
    """State and reason of each version of a model, as one of the replicas tells them."""
    return {
        entry.version: (entry.state, entry.reason)
        for entry in triton.get_model_repository_index().models
        if entry.name == model
    }


def test_a_sequence_outlives_a_killed_replica(stack: Stack, triton: Any, model: str) -> None:
    """Steps go to any replica; one is killed among them: repeated under their ids they are applied once, in order."""
    x = lstm.inputs(600)
    sequence_id, ys, repeats = uuid4().hex, [], Counter[str | None]()

    def step(i: int) -> Any:
        place: Any = {"sequence_start": i == 0, "sequence_end": i == len(x) - 1}
        while True:
            try:
                reply = triton.infer(
                    model, asked(x[None, i : i + 1]), sequence_id=sequence_id, request_id=f"step-{i}", **place
                )
            except InferenceServerException as error:
                repeats[error.status()] += 1
                if repeats.total() > REPEATS_MAX:
                    raise
            else:
                return reply.as_numpy("y")[0, 0]

    with shared_by_all(stack):
        ys += [step(i) for i in range(40)]
    with ThreadPoolExecutor(1) as sender:
        sending = sender.submit(lambda: ys.extend(step(i) for i in range(40, len(x))))
        wait_until(lambda: len(ys) > 60, "steps are on their way")
        assert len(ys) < len(x) / 2, "the replica goes in mid-sequence"
        stack.docker("kill", "--signal", "KILL", stack.containers("inference")[0])
        sending.result(timeout=60)

    assert np.allclose(np.array(ys), lstm.expected(x), atol=1e-5)
    assert set(repeats) <= {"StatusCode.UNAVAILABLE"}
    wait_until(
        lambda: stack.healthy("inference") == 1, "Prometheus sees, through the gateway, that one replica is left"
    )


def test_a_replica_that_drains_costs_no_call(stack: Stack, model: str) -> None:
    """What comes while a replica stops is refused before it is looked at, so that the gateway sends it elsewhere."""

    async def calls(client: Any, number: int, over: asyncio.Event) -> int:
        steps, x = 0, asked(lstm.inputs(1)[None])
        while not over.is_set():
            await client.infer(model, x, sequence_id=f"drain-{number}", sequence_start=steps == 0, client_timeout=20)
            steps += 1
        return steps

    async def main() -> list[int]:
        over = asyncio.Event()
        async with aio.InferenceServerClient(stack.gateway) as client, asyncio.TaskGroup() as group:
            tasks = [group.create_task(calls(client, number, over)) for number in range(16)]
            going = await asyncio.to_thread(stack.containers, "inference")
            await asyncio.to_thread(stack.docker, "stop", going[0])
            over.set()
            assert stack.inspect(going[0])["State"]["ExitCode"] == 0
        return [task.result() for task in tasks]

    assert min(asyncio.run(main())) > 5
    wait_until(
        lambda: stack.healthy("inference") == 1, "Prometheus sees, through the gateway, that one replica is left"
    )


def test_streams_of_tritons_client_pass_the_gateway(stack: Stack, triton: Any, model: str) -> None:
    """Several sequences on one stream, and its header with underscores: an error ends the stream with a status."""
    replies: queue.Queue[Any] = queue.Queue()
    x = lstm.inputs(6)
    triton.start_stream(
        lambda result, error: replies.put(error or result), headers={"triton_grpc_error": "true"}, stream_timeout=60
    )
    for i in range(len(x)):
        for number in (1, 2):
            triton.async_stream_infer(
                model, asked(x[None, i : i + 1]), sequence_id=number, sequence_start=i == 0, request_id=f"{number}-{i}"
            )
    told = [replies.get(timeout=30) for _ in range(2 * len(x))]
    for number in (1, 2):
        ys = [one.as_numpy("y")[0] for one in told if one.get_response().id.startswith(f"{number}-")]
        assert np.allclose(np.concatenate(ys), lstm.expected(x), atol=1e-5)
    triton.async_stream_infer("no-such-model", asked(x[None]))
    error = replies.get(timeout=30)
    assert isinstance(error, InferenceServerException)
    assert error.status() == "StatusCode.NOT_FOUND"
    triton.stop_stream(cancel_requests=True)


def test_sequences_of_every_service_are_looked_after(client: Client, model: str) -> None:
    """Through the gateway a sequence of inference and one of a task are forked, rewound, moved and ended."""
    x = lstm.inputs(5)
    sequences = client.sequences
    with client.inference.stream(model, "looked-after") as chunks:
        ys = [chunks.send({"x": x[i : i + 1]}).outputs["y"] for i in range(4)]
    with client.sentiment.stream("looked-after") as pieces:
        for piece in ("What ", "a ", "lovely ", "film"):
            pieces.send(piece)

    for name in (model, "sentiment"):
        assert "looked-after" in {sequence.sequence_id for sequence in sequences.list(name)}
        assert sequences.get(name, "looked-after").next_step == 4
        [fork] = sequences.fork(name, "looked-after", "forked")
        assert fork.next_step == 4
        assert sequences.rewind(name, "looked-after", 4).epoch > 0
        moved = sequences.import_(sequences.export(name, "looked-after"), "moved")
        assert (moved.next_step, moved.model.name) == (4, name)
        assert sequences.end(name, "looked-after").status is SequenceStatus.ENDED

    for sequence_id in ("forked", "moved"):
        with client.inference.stream(model, sequence_id, resume=True) as chunks:
            last = chunks.send({"x": x[4:]}).outputs["y"]
        assert np.allclose(np.concatenate([*ys, last]), lstm.expected(x), atol=1e-5)
        with client.sentiment.stream(sequence_id, resume=True) as pieces:
            assert pieces.end().sentiment.word_count == 4


def test_whole_inputs_reach_any_replica(stack: Stack, client: Client, model: str) -> None:
    """The typed service, through the gateway: rows of a batch, as they are alone."""
    rows = np.stack([lstm.inputs(7, seed) for seed in range(3)])
    found = client.inference.infer(model, {"x": rows})
    for row, y in zip(rows, found.outputs["y"], strict=True):
        assert np.allclose(y, lstm.expected(row), atol=1e-5)
    assert stack.healthy("inference") == 2


def test_health_and_reflection_tell_of_whom_they_are_asked(stack: Stack, client: Client) -> None:
    """One gateway, several services: who names one in the metadata hears of that, who names none of inference."""
    assert client.ready()
    for service in (
        "statestream.sentiment.v1.SentimentService",
        "inference.GRPCInferenceService",
        "statestream.inference.v1.InferenceService",
    ):
        assert client.ready(service), service
    assert not client.ready("statestream.nobody.v1.NobodyService")

    assert {"inference.GRPCInferenceService", "statestream.inference.v1.InferenceService"} < reflected(stack)
    told = reflected(stack, ("statestream-service", "statestream.sentiment."))
    assert "statestream.sentiment.v1.SentimentService" in told
    assert "inference.GRPCInferenceService" not in told


def reflected(stack: Stack, *metadata: tuple[str, str]) -> set[str]:
    """Names of the services that reflection tells of."""
    with grpc.insecure_channel(stack.gateway) as channel:
        ask: Any = channel.stream_stream(
            "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
            request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
            response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
        )
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        [answer] = ask(iter([request]), metadata=metadata, timeout=10)
    return {service.name for service in answer.list_services_response.service}
