"""A server as operators meet it: health, reflection, drain, bounds, metrics, and logs that keep secrets."""

from __future__ import annotations

import asyncio
import json
import shutil
from typing import TYPE_CHECKING, Any, cast
from urllib.request import urlopen

import grpc
import numpy as np
import pytest
import structlog
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from statestream.sentiment.v1 import sentiment_pb2

from models.common.manifest import ArtefactError
from services.runtime.app import Server
from services.runtime.config import Settings
from services.runtime.core.clock import SystemClock
from services.runtime.core.errors import StoreUnavailable
from services.runtime.engine.batcher import Batcher
from services.runtime.repository.repository import Repository
from services.runtime.state.memory import MemoryStore
from services.sentiment import codec
from services.sentiment.servicer import TASK
from tests.kit.server import config, piece, refused, replies, running, stub_of, told

if TYPE_CHECKING:
    from pathlib import Path

SENT = "zanzibar"
METHOD = "/statestream.sentiment.v1.SentimentService/StreamingClassify"


async def health_of(server: Server, service: str = "") -> int:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        return (await stub.Check(health_pb2.HealthCheckRequest(service=service))).status


def sample(server: Server, name: str, **labels: str) -> float:
    return server.metrics.registry.get_sample_value(name, labels) or 0.0


async def everybody_left(server: Server) -> None:
    """Returns once the server has noticed that its clients have gone."""
    while sample(server, "statestream_calls_open", method=METHOD):  # noqa: ASYNC110 - no event is set for a test
        await asyncio.sleep(0)


async def test_health_serves_only_once_the_models_are_warm(monkeypatch: pytest.MonkeyPatch) -> None:
    """While models load, health says NOT_SERVING and calls are told NOT_READY; then both serve."""
    loading, go_on = asyncio.Event(), asyncio.Event()
    start = Repository.start

    async def slow_start(self: Repository, own: Any) -> None:
        loading.set()
        await go_on.wait()
        await start(self, own)

    monkeypatch.setattr(Repository, "start", slow_start)
    server = Server(Settings(listen="127.0.0.1:0", metrics_listen=""), (TASK,))
    starting = asyncio.create_task(server.start())
    await loading.wait()
    assert await health_of(server) == health_pb2.HealthCheckResponse.NOT_SERVING
    async with stub_of(server) as stub:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Classify(sentiment_pb2.ClassifyRequest(texts=["good"]))
        assert told(caught.value) == ("UNAVAILABLE", "NOT_READY", "")
        go_on.set()
        await starting
        assert await health_of(server, TASK.service) == health_pb2.HealthCheckResponse.SERVING
        assert (await stub.Classify(sentiment_pb2.ClassifyRequest(texts=["good"]))).results
    await server.stop()


async def test_reflection_lists_the_services() -> None:
    """A client without the protos can find out what is served."""
    async with running() as server, grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        stub = cast("Any", reflection_pb2_grpc.ServerReflectionStub)(channel)
        call = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
        answer = await call.read()
        names = {service.name for service in answer.list_services_response.service}
        assert {TASK.service, "statestream.common.v1.LifecycleService", "grpc.health.v1.Health"} <= names
        call.cancel()


async def test_drain_sends_live_streams_on() -> None:
    """A stream that waits for its client is told DRAINING at once; its sequence goes on at another replica."""
    store = MemoryStore(SystemClock(), bytes_max=10**7, sequences_max=100)
    async with running(store=store) as other, stub_of(other) as elsewhere:
        server = Server(Settings(listen="127.0.0.1:0", metrics_listen="", drain_s=30), (TASK,), store=store)
        await server.start()
        async with stub_of(server) as stub:
            call = stub.StreamingClassify()
            await call.write(config("moving", start=True))
            await call.write(piece("Not ", step=0))
            assert (await call.read()).header.step == 0
            stopping = asyncio.create_task(server.stop())
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call.read()
            assert told(caught.value)[:2] == ("UNAVAILABLE", "DRAINING")
            await asyncio.wait_for(stopping, 5)
        (reply,) = await replies(elsewhere, config("moving"), piece("bad", step=1, end=True))
        assert reply.sentiment.word_count == 2


async def test_a_step_in_progress_is_finished_before_the_server_stops() -> None:
    """Drain lets the step at hand be answered, and only then sends the stream on."""
    async with running() as server, stub_of(server) as stub:
        (model,) = server._catalogue
        begun, go_on = asyncio.Event(), asyncio.Event()
        step = model.batcher.step

        async def held(*args: Any, **kwargs: Any) -> Any:
            begun.set()
            await go_on.wait()
            return await step(*args, **kwargs)

        model.batcher.step = held  # type: ignore[method-assign]
        call = stub.StreamingClassify()
        await call.write(config("busy", start=True))
        await call.write(piece("fine "))
        await begun.wait()
        stopping = asyncio.create_task(server.stop())
        await asyncio.sleep(0)
        go_on.set()
        assert (await call.read()).sentiment.word_count == 1
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
        assert told(caught.value)[1] == "DRAINING"
        await stopping


@pytest.mark.parametrize(("bound", "kind"), [("streams_max", "stream"), ("calls_max", "call")])
async def test_calls_over_the_bound_are_refused_with_a_delay(bound: str, kind: str) -> None:
    """RESOURCE_EXHAUSTED, and whoever is inside goes on."""
    settings: Any = {bound: 1}
    async with running(**settings) as server, stub_of(server) as stub:
        inside = stub.StreamingClassify()
        await inside.write(config("inside", start=True))
        await inside.write(piece("good "))
        await inside.read()
        if kind == "call":
            server._gate.take("call")
        if kind == "stream":
            answer = await refused(server, config("outside", start=True), piece("x"))
        else:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.Classify(sentiment_pb2.ClassifyRequest(texts=["x"]))
            answer = told(caught.value)
        assert answer[:2] == ("RESOURCE_EXHAUSTED", "CAPACITY")
        await inside.write(piece("again "))
        assert (await inside.read()).sentiment.word_count == 2


async def test_a_full_queue_refuses_a_call_of_many_texts() -> None:
    """One status for the whole call, of the first text that found no place; the next call is served."""
    async with running(queue_max=2, batch_size_max=1) as server, stub_of(server) as stub:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Classify(sentiment_pb2.ClassifyRequest(texts=["good"] * 32))
        assert told(caught.value)[:2] == ("RESOURCE_EXHAUSTED", "CAPACITY")
        assert (await stub.Classify(sentiment_pb2.ClassifyRequest(texts=["good"]))).results


async def test_long_texts_are_read_off_the_loop() -> None:
    """A text of the largest size gets the same result as its pieces, read one after the other."""
    text = "not bad at all , " * 15_000
    async with running() as server, stub_of(server) as stub:
        whole = (await stub.Classify(sentiment_pb2.ClassifyRequest(texts=[text]))).results[0]
        pieces = [piece(text[i : i + 60_000]) for i in range(0, len(text), 60_000)]
        assert (await replies(stub, config(), *pieces))[-1].sentiment == whole


async def test_a_cancelled_call_gives_its_place_back() -> None:
    """However a call ends, the bound counts it out."""
    async with running(streams_max=1) as server, stub_of(server) as stub:
        for number in range(3):
            call = stub.StreamingClassify()
            await call.write(config(f"s{number}", start=True))
            await call.write(piece("good "))
            await call.read()
            call.cancel()
            await everybody_left(server)
        assert sample(server, "statestream_calls_open", method=METHOD) == 0


async def test_a_cancelled_stream_does_not_end_its_sequence() -> None:
    """Half-closing an unnamed stream ends its sequence; cancelling it, as a crash does, leaves it to be continued."""
    async with running() as server, stub_of(server) as stub:
        call = stub.StreamingClassify()
        await call.write(config())
        await call.write(piece("Not "))
        name = (await call.read()).header.sequence_id
        call.cancel()
        await everybody_left(server)
        (reply,) = await replies(stub, config(name), piece("bad", step=1, end=True))
        assert reply.sentiment.word_count == 2


async def test_an_expired_deadline_commits_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The step is not applied, and the retry is."""
    async with running() as server, stub_of(server) as stub:
        await replies(stub, config("late", start=True), piece("It ", step=0))
        held = asyncio.Event()
        step = Batcher.step

        async def slow(self: Batcher, *args: Any, **kwargs: Any) -> Any:
            await held.wait()
            return await step(self, *args, **kwargs)

        monkeypatch.setattr(Batcher, "step", slow)
        call = stub.StreamingClassify(timeout=0.2)
        await call.write(config("late"))
        await call.write(piece("is ", step=1))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
        assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        held.set()
        monkeypatch.undo()
        (reply,) = await replies(stub, config("late"), piece("is ", step=1))
        assert reply.header.step == 1
        assert reply.sentiment.word_count == 2


class BrokenStore(MemoryStore):
    """A store that stops answering when told to."""

    broken = False

    async def commit(self, *args: Any, **terms: Any) -> Any:
        """See `StateStore`."""
        if self.broken:
            raise StoreUnavailable("no answer")
        return await super().commit(*args, **terms)


async def test_a_store_that_is_gone_costs_a_retry() -> None:
    """UNAVAILABLE with a delay while it is gone; afterwards the same step is applied once."""
    store: Any = BrokenStore(SystemClock(), bytes_max=10**7, sequences_max=100)
    async with running(store=store) as server, stub_of(server) as stub:
        await replies(stub, config("s", start=True), piece("It ", step=0))
        store.broken = True
        assert (await refused(server, config("s"), piece("is ", step=1)))[:2] == ("UNAVAILABLE", "STORE_UNAVAILABLE")
        assert sample(server, "statestream_store_errors_total", operation="commit") == 1
        store.broken = False
        (reply,) = await replies(stub, config("s"), piece("is ", step=1))
        assert reply.sentiment.word_count == 2


async def test_a_failing_model_is_told_without_its_text(capsys: pytest.CaptureFixture[str]) -> None:
    """INTERNAL with a reason; what the runtime said stays here, and the sequence stays usable."""
    async with running() as server, stub_of(server) as stub:
        await replies(stub, config("s", start=True), piece("It ", step=0))
        (model,) = server._catalogue
        network = model.batcher._model
        run = network.run
        network.run = lambda *_, **__: (_ for _ in ()).throw(RuntimeError(SENT))  # type: ignore[method-assign]
        call = stub.StreamingClassify()
        await call.write(config("s"))
        await call.write(piece("is ", step=1))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
        assert told(caught.value)[:2] == ("INTERNAL", "MODEL_FAILURE")
        assert SENT not in str(caught.value)
        network.run = run  # type: ignore[method-assign]
        (reply,) = await replies(stub, config("s"), piece("is ", step=1))
        assert reply.header.step == 1
    captured = capsys.readouterr()
    assert SENT not in captured.out + captured.err


async def test_a_bug_in_a_servicer_is_an_internal_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of a foreign error reaches the client or the log but its type."""

    def broken(*_: object) -> None:
        raise KeyError(SENT)

    monkeypatch.setattr(codec, "parse_texts", broken)
    with structlog.testing.capture_logs() as logs:
        async with running() as server, stub_of(server) as stub:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.Classify(sentiment_pb2.ClassifyRequest(texts=[SENT]))
            assert caught.value.code() == grpc.StatusCode.INTERNAL
            assert SENT not in str(caught.value)
    assert SENT not in str(logs)
    assert "KeyError" in str(logs)


async def test_nothing_that_a_client_sent_is_logged(capfd: pytest.CaptureFixture[str]) -> None:
    """Texts, ids and keys, in good calls and in refused ones."""
    with structlog.testing.capture_logs() as logs:
        async with running() as server, stub_of(server) as stub:
            await stub.Classify(sentiment_pb2.ClassifyRequest(texts=[SENT]))
            await replies(stub, config(SENT, start=True, start_key=SENT), piece(SENT))
            for bad in ([config(SENT), piece("")], [config(SENT * 20)], [config("x", start=True, model_version=SENT)]):
                await refused(server, *bad)
    captured = capfd.readouterr()
    assert SENT not in str(logs) + captured.out + captured.err


async def test_metrics_tell_what_happened() -> None:
    """Over HTTP, as Prometheus reads them: calls, steps, sequences, retries, phases, model; no sequence id anywhere."""
    async with running(metrics_listen="127.0.0.1:0") as server, stub_of(server) as stub:
        opening, first = config("metered", start=True, start_key="k"), piece("good ", step=0)
        for _ in range(2):
            await replies(stub, opening, first)
        await replies(stub, config("metered"), piece("film", step=1, end=True))
        await refused(server, config("metered"), piece("film", step=9))
        model = {"model": "sentiment"}
        assert sample(server, "statestream_requests_total", method=METHOD, code="OK") == 3
        assert sample(server, "statestream_stream_messages_total", **model) == 4
        assert sample(server, "statestream_sequences_started_total", **model) == 1
        assert sample(server, "statestream_sequences_ended_total", **model) == 1
        assert sample(server, "statestream_steps_replayed_total", **model) == 1
        assert sample(server, "statestream_steps_refused_total", **model, reason="SEQUENCE_ENDED") == 1
        assert sample(server, "statestream_step_seconds_count", **model, phase="run") == 2
        url = f"http://127.0.0.1:{server.metrics_port}/metrics"
        text = (await asyncio.to_thread(lambda: urlopen(url).read())).decode()
        assert 'statestream_model_info{digest="' in text
        assert "metered" not in text


async def test_a_damaged_artefact_is_not_served(tmp_path: Path) -> None:
    """A flipped bit in the weights or the vocabulary stops the start, and the error names the file."""
    source = Settings().artefacts[0] / "sentiment"
    for name in ("model.onnx", "vocabulary.json"):
        root = tmp_path / name
        shutil.copytree(source, root / "sentiment")
        path = next((root / "sentiment").glob(f"*/{name}"))
        data = np.frombuffer(path.read_bytes(), dtype=np.uint8).copy()
        data[len(data) // 2] ^= 1
        path.write_bytes(data.tobytes())
        server = Server(Settings(listen="127.0.0.1:0", metrics_listen="", artefacts=(root,)), (TASK,))
        with pytest.raises(ArtefactError, match=name):
            await server.start()
        await server.stop()


def copy_with_durability(root: Path, durability: str) -> None:
    shutil.copytree(Settings().artefacts[0] / "sentiment", root / "sentiment")
    path = next(root.glob("sentiment/*/manifest.json"))
    manifest = json.loads(path.read_text())
    manifest["sequence"]["durability"] = durability
    path.write_text(json.dumps(manifest))


async def test_an_address_in_use_is_an_error_with_a_name() -> None:
    """It says which setting, before anything is loaded."""
    async with running() as server:
        other = Server(Settings(listen=f"127.0.0.1:{server.port}", metrics_listen=""), (TASK,))
        with pytest.raises(OSError, match="listen"):
            await other.start()
        await other.stop()
