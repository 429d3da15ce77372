"""Models that come and go under live sequences, at real servers over one store, with a plain stub."""

from __future__ import annotations

import asyncio
import shutil
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from statestream import AsyncClient
from statestream.common.v1 import sequence_pb2

from services.runtime.app import make_store
from services.runtime.config import Settings
from services.runtime.core.clock import SystemClock
from services.runtime.core.errors import ModelNotLoaded
from services.runtime.core.ids import DEFAULT_TENANT, SequenceName, new_sequence_id
from services.runtime.state.memory import MemoryStore
from services.runtime.state.redis.breaker import Unheard
from services.sentiment.servicer import TASK
from tests.kit.clock import ManualClock
from tests.kit.server import config, piece, refused, replies, running, stub_of
from tests.kit.versions import add_version

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

    from services.runtime.app import Server
    from services.runtime.state.store import StateStore

WORDS = [f"{word} " for word in ["It", "is", "not", "bad", "at", "all"]]
STEP = sequence_pb2.DURABILITY_STEP
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING

BY_HAND = 3600.0
"""Seconds between two looks of a server: within a test only those that it asks for."""


class Fleet:
    """Two replicas over one store and one folder, and what a client of them sees."""

    def __init__(self, servers: list[Server], stubs: list[Any], mode: str) -> None:
        self.servers, self.stubs, self._mode = servers, stubs, mode

    async def update(self, *replicas: int) -> None:
        """Has replicas take what is in the folder now, as polling does or as a call does."""
        for at in replicas:
            repository = self.servers[at]._repository
            await (repository.look() if self._mode == "poll" else repository.load("sentiment"))

    async def start(self, at: int, **fields: Any) -> tuple[str, Any]:
        """Begins a sequence with the first word: its name, and the reply."""
        name = new_sequence_id()
        (reply,) = await replies(self.stubs[at], config(name, start=True, **fields), piece(WORDS[0], step=0))
        return name, reply

    async def go_on(self, at: int, name: str, step: int) -> Any:
        """Takes one more step; that of the last word is the last."""
        (reply,) = await replies(self.stubs[at], config(name), _word(step))
        return reply

    async def refused(self, at: int, name: str, step: int, **fields: Any) -> tuple[str, str]:
        """How a replica refuses a step: code and reason."""
        return (await refused(self.servers[at], config(name, **fields), _word(step)))[:2]

    def states(self, at: int) -> dict[str, str]:
        """What a replica says of its versions."""
        return {entry.version: entry.state for entry in self.servers[at]._repository.index()}


def _word(step: int) -> Any:
    return piece(WORDS[step], step=step, end=step == len(WORDS) - 1)


@pytest.fixture(params=["poll", "explicit"])
def mode(request: pytest.FixtureRequest) -> str:
    """How models come and go."""
    return request.param


@pytest.fixture(params=["memory", "redis"])
async def stores(request: pytest.FixtureRequest) -> AsyncGenerator[list[StateStore]]:
    """What each of two replicas reaches the same store through."""
    if request.param == "memory":
        store = MemoryStore(SystemClock(), bytes_max=10**7, sequences_max=1000)
        yield [store, store]
        return
    settings: Any = {"store": "redis", "redis_url": request.getfixturevalue("redis_url")}
    links = [make_store(Settings(**settings), SystemClock(), Unheard()) for _ in range(2)]
    yield links
    for link in links:
        await link.close()


@pytest.fixture
async def fleet(tmp_path: Path, mode: str, stores: list[StateStore]) -> AsyncGenerator[Fleet]:
    """Two replicas that have loaded version 1."""
    add_version(tmp_path, "1")
    values: Any = {"artefacts": (tmp_path,), "model_control_mode": mode}
    if mode == "explicit":
        values["load_models"] = "sentiment"
    async with AsyncExitStack() as stack:
        servers = [
            await stack.enter_async_context(running(store=store, repository_poll_s=BY_HAND, **values))
            for store in stores
        ]
        yield Fleet(servers, [await stack.enter_async_context(stub_of(server)) for server in servers], mode)


async def undisturbed(tmp_path: Path) -> list[Any]:
    """What every word of a sequence is answered on version 1."""
    async with running(artefacts=(tmp_path,)) as server, stub_of(server) as stub:
        messages = [_word(step) for step in range(len(WORDS))]
        return await replies(stub, config("undisturbed", start=True), *messages)


async def test_a_rolling_update_drops_no_sequence_and_switches_none(tmp_path: Path, fleet: Fleet) -> None:
    """Two replicas take version 2 one after the other, then lose version 1, under sequences that move at every step."""
    expected = await undisturbed(tmp_path)
    old = [(await fleet.start(at % 2))[0] for at in range(6)]

    async def step_all(step: int) -> None:
        for number, name in enumerate(old):
            reply = await fleet.go_on((number + step) % 2, name, step)
            assert reply.header.model.version == "1"
            assert reply.sentiment == expected[step].sentiment

    await step_all(1)
    add_version(tmp_path, "2", bias=1.0)
    await fleet.update(0)
    await step_all(2)
    new, reply = await fleet.start(0)
    assert reply.header.model.version == "2"
    assert reply.sentiment != expected[0].sentiment
    assert (await fleet.start(1))[1].header.model.version == "1"
    # The other replica has not looked yet, and does not lose what it does not know.
    for asked in ("", "2"):
        assert await fleet.refused(1, new, 1, model_version=asked) == ("UNAVAILABLE", "NOT_READY")
    await fleet.servers[1]._repository.look()
    assert (await fleet.go_on(1, new, 1)).header.model.version == "2"
    await fleet.update(1)
    assert (await fleet.start(1))[1].header.model.version == "2"
    await step_all(3)
    shutil.rmtree(tmp_path / "sentiment" / "1")
    await fleet.update(0, 1)
    assert [fleet.states(at) for at in range(2)] == [{"1": "UNLOADING", "2": "READY"}] * 2
    for at in range(2):
        name = new_sequence_id()
        assert await fleet.refused(at, name, 0, start=True, model_version="1") == ("NOT_FOUND", "MODEL_NOT_FOUND")
    for step in range(4, len(WORDS)):
        await step_all(step)
    assert (await fleet.go_on(0, new, 2)).header.model.version == "2"


async def test_a_broken_update_changes_nothing(tmp_path: Path, fleet: Fleet, mode: str) -> None:
    """Sequences go on, new ones begin on the version that works, and the index tells what is wrong."""
    expected = await undisturbed(tmp_path)
    name, _ = await fleet.start(0)
    folder = add_version(tmp_path, "2", bias=1.0)
    (folder / "model.onnx").write_bytes((folder / "model.onnx").read_bytes()[:-100])
    if mode == "explicit":
        with pytest.raises(ModelNotLoaded, match=r"version 2: model\.onnx: sha256"):
            await fleet.update(0)
    else:
        await fleet.update(0)
    assert fleet.states(0) == {"1": "READY", "2": "UNAVAILABLE"}
    assert (await fleet.go_on(0, name, 1)).sentiment == expected[1].sentiment
    assert (await fleet.start(0))[1].header.model.version == "1"
    metrics = fleet.servers[0].metrics.registry
    assert metrics.get_sample_value("statestream_model_load_failures_total", {"model": "sentiment"}) == 1


async def test_a_fork_goes_on_with_the_version_that_is_retired(tmp_path: Path, fleet: Fleet) -> None:
    """What is made of a sequence is pinned as it is."""
    name, _ = await fleet.start(0)
    add_version(tmp_path, "2", bias=1.0)
    shutil.rmtree(tmp_path / "sentiment" / "1")
    await fleet.update(0, 1)
    lifecycle, fork = fleet.servers[0]._lifecycle, new_sequence_id()
    await lifecycle.fork(SequenceName(DEFAULT_TENANT, "sentiment", name), None, [fork])
    assert (await fleet.go_on(1, fork, 1)).header.model.version == "1"


async def test_what_is_unloaded_is_gone_for_good(tmp_path: Path) -> None:
    """Once no sequence is left it is unloaded; one that began on it and comes after that is told."""
    clock = ManualClock()
    store = MemoryStore(clock, bytes_max=10**7, sequences_max=1000)
    add_version(tmp_path, "1")
    values: Any = {"artefacts": (tmp_path,), "model_control_mode": "poll", "repository_poll_s": BY_HAND}
    async with running(store=store, clock=clock, **values) as server, stub_of(server) as stub:
        repository = server._repository
        await replies(stub, config("kept", start=True), piece("Not ", step=0))
        add_version(tmp_path, "2", bias=1.0)
        shutil.rmtree(tmp_path / "sentiment" / "1")
        await repository.look()
        clock.advance(60)
        await repository.sweep()
        assert [entry.state for entry in repository.index()] == ["UNLOADING", "READY"]
        await replies(stub, config("kept"), piece("bad", step=1, end=True))
        await repository.sweep()
        clock.advance(60)
        await repository.sweep()
        assert [(entry.version, entry.state) for entry in repository.index()] == [("2", "READY")]
        registry = server.metrics.registry
        assert registry.get_sample_value("statestream_retired_versions_live", {"model": "sentiment"}) == 0


async def test_a_server_looks_by_itself(tmp_path: Path) -> None:
    """A stream of a client goes on as it began while a version comes, and the next stream is on the new one."""
    add_version(tmp_path, "1")
    values: Any = {"artefacts": (tmp_path,), "model_control_mode": "poll", "repository_poll_s": 0.05}
    async with (
        running(**values) as server,
        AsyncClient(f"127.0.0.1:{server.port}") as client,
        client.sentiment.stream() as old,
    ):
        assert (await old.send(WORDS[0])).header.model.version == "1"
        add_version(tmp_path, "2", bias=1.0)
        while [entry.state for entry in server._repository.index()] != ["READY", "READY"]:  # noqa: ASYNC110 - as told
            await asyncio.sleep(0.01)
        async with client.sentiment.stream() as new:
            assert (await new.send(WORDS[0])).header.model.version == "2"
        assert (await old.send(WORDS[1])).header.model.version == "1"
        assert (await old.end()).header.model.version == "1"


async def test_an_operator_limits_one_model(tmp_path: Path) -> None:
    """A start over the bound is refused, steps go on, and the durability of who does not name one is the operator's."""
    add_version(tmp_path, "1")
    (tmp_path / "sentiment" / "serving.json").write_text('{"sequences_max": 1, "durability": "none"}')
    async with running(artefacts=(tmp_path,)) as server, stub_of(server) as stub:
        (first,) = await replies(stub, config("one", start=True), piece("Not ", step=0))
        assert not first.header.HasField("committed_step")
        over = await refused(server, config("two", start=True), piece("Not ", step=0))
        assert over[:2] == ("RESOURCE_EXHAUSTED", "CAPACITY")
        await replies(stub, config("one"), piece("bad", step=1, end=True))
        (second,) = await replies(stub, config("two", start=True, durability=STEP), piece("Not ", step=0))
        assert second.header.committed_step == 0


async def health_of(server: Server, service: str = "") -> int:
    """What a probe is told."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        return (await stub.Check(health_pb2.HealthCheckRequest(service=service))).status


async def test_health_follows_the_models(tmp_path: Path) -> None:
    """A server that polls is ready with its first good version; one that unloads a model on purpose stays ready."""
    values: Any = {"artefacts": (tmp_path,), "repository_poll_s": BY_HAND}
    async with running(model_control_mode="poll", **values) as server:
        assert await health_of(server) == NOT_SERVING
        assert await health_of(server, TASK.service) == NOT_SERVING
        folder = add_version(tmp_path, "1")
        await server._repository.look()
        assert await health_of(server) == SERVING
        assert await health_of(server, TASK.service) == SERVING
    async with running(model_control_mode="explicit", load_models="sentiment", **values) as server:
        assert await health_of(server, TASK.service) == SERVING
        await server._repository.unload("sentiment")
        assert await health_of(server) == SERVING
        assert await health_of(server, TASK.service) == NOT_SERVING
        await server._repository.load("sentiment")
        assert await health_of(server, TASK.service) == SERVING
    assert folder.exists()
