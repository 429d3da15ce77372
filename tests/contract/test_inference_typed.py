"""The typed inference service with our own client: whole inputs, streams, resuming after the server is gone."""

from __future__ import annotations

import array
import asyncio
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from statestream import AsyncClient, Client, Durability, errors

from services.runtime.core.clock import SystemClock
from services.runtime.state.memory import MemoryStore
from tests.kit import lstm
from tests.kit.triton import asked, client_of, folder_of, serving

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from services.runtime.app import Server

X = lstm.inputs(12)


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    """One server with the LSTM for one test."""
    async with serving(folder_of(tmp_path)) as one:
        yield one


@pytest.fixture
async def client(server: Server) -> AsyncIterator[AsyncClient]:
    """Our asyncio client of it."""
    async with AsyncClient(f"127.0.0.1:{server.port}") as one:
        yield one


def a_store() -> MemoryStore:
    """A store for several servers."""
    return MemoryStore(SystemClock(), bytes_max=10**7, sequences_max=100)


async def test_whole_inputs(client: AsyncClient) -> None:
    """One row or several; some of the outputs, in the order asked for."""
    one = await client.inference.infer("lstm", {"x": X})
    np.testing.assert_allclose(one.outputs["y"], lstm.expected(X), atol=1e-6)
    assert (one.model.name, one.model.version) == ("lstm", "1")
    rows = np.stack([lstm.inputs(12, seed) for seed in range(5)])
    several = await client.inference.infer("lstm", {"x": rows}, outputs=["last", "y"])
    assert list(several.outputs) == ["last", "y"]
    assert several.outputs["y"].shape == (5, 12, 4)
    np.testing.assert_array_equal(several.outputs["y"][0], one.outputs["y"])


async def test_anything_with_a_buffer_is_a_tensor(client: AsyncClient) -> None:
    """A view, an array of the standard library, an array whose rows do not lie one behind the other."""
    expected = (await client.inference.infer("lstm", {"x": X[:2]})).outputs["y"]
    flat = memoryview(array.array("f", X[:2].ravel().tolist())).cast("B").cast("f", (2, 3))
    for tensor in (flat, np.asfortranarray(X[:2]), X[:4][::2][:1]):
        answer = await client.inference.infer("lstm", {"x": tensor})
        np.testing.assert_array_equal(answer.outputs["y"][0], expected[0])
    with pytest.raises(TypeError):
        await client.inference.infer("lstm", {"x": [[0.0] * 3]})  # pyright: ignore[reportArgumentType]


async def test_what_the_model_does_not_take(client: AsyncClient) -> None:
    """Named by its field, for whole inputs and for chunks; the stream can go on after it."""
    bad: list[tuple[dict[str, Any], str]] = [
        ({"x": X.astype(np.float64)}, "inputs[0].datatype"),
        ({"x": X[:, :2]}, "inputs[0].shape"),
        ({"z": X}, "inputs[0].name"),
        ({"x": np.full((1, 3), np.nan, np.float32)}, "inputs[0].data"),
        ({}, "inputs"),
    ]
    async with client.inference.stream("lstm", "careful") as stream:
        await stream.send({"x": X[:1]})
        for tensors, field in bad:
            with pytest.raises(errors.InvalidInput) as caught:
                await client.inference.infer("lstm", tensors)
            assert caught.value.field == field
            with pytest.raises(errors.InvalidInput) as caught:
                await stream.send(tensors)
            assert caught.value.field == field
        update = await stream.send({"x": X[1:3]})
    assert update.header.step == 1
    np.testing.assert_allclose(update.outputs["y"], lstm.expected(X[:3])[1:], atol=1e-6)
    with pytest.raises(errors.UnknownModel):
        await client.inference.infer("nobody", {"x": X})


async def test_a_stream_of_chunks(client: AsyncClient) -> None:
    """The bits are those of the whole; an end without inputs has no outputs."""
    whole = (await client.inference.infer("lstm", {"x": X})).outputs["y"]
    async with client.inference.stream("lstm", "chunks", outputs=["y"]) as stream:
        updates = [await stream.send({"x": X[at:to]}) for at, to in ((0, 1), (1, 6), (6, 12))]
        final = await stream.end()
    np.testing.assert_array_equal(np.concatenate([update.outputs["y"] for update in updates]), whole)
    assert (final.outputs, final.header.ended, final.header.step) == ({}, True, 3)


def test_the_blocking_client(tmp_path: Path) -> None:
    """The same, waited for."""

    async def serve(ready: asyncio.Event) -> None:
        async with serving(folder_of(tmp_path)) as server:
            await asyncio.to_thread(work, f"127.0.0.1:{server.port}")
        ready.set()

    def work(address: str) -> None:
        with Client(address) as client:
            whole = client.inference.infer("lstm", {"x": X}).outputs["y"]
            with client.inference.stream("lstm") as stream:
                parts = [stream.send({"x": X[at : at + 4]}).outputs["y"] for at in (0, 4, 8)]
        np.testing.assert_array_equal(np.concatenate(parts), whole)

    asyncio.run(serve(asyncio.Event()))


@pytest.mark.parametrize("durability", [Durability.STEP, Durability.CHECKPOINT])
async def test_a_stream_survives_its_server(tmp_path: Path, durability: Durability) -> None:
    """It is stopped in the middle, another takes its place at the address: the caller notices nothing."""
    store, folder = a_store(), folder_of(tmp_path)
    async with serving(folder, store=store) as first:
        address = f"127.0.0.1:{first.port}"
        client = AsyncClient(address, timeout_s=30)
        stream = client.inference.stream("lstm", "survivor", durability=durability)
        await stream.__aenter__()
        parts = [(await stream.send({"x": X[at : at + 1]})).outputs["y"] for at in range(5)]
    async with serving(folder, store=store, listen=address):
        parts += [(await stream.send({"x": X[at : at + 1]})).outputs["y"] for at in range(5, 12)]
        await stream.__aexit__(None, None, None)
        await client.close()
    assert stream.stats.reconnects >= 1
    np.testing.assert_allclose(np.concatenate(parts), lstm.expected(X), atol=1e-6)


async def test_another_client_resumes(tmp_path: Path) -> None:
    """On another server, from wherever the sequence stands."""
    store, folder = a_store(), folder_of(tmp_path)
    async with serving(folder, store=store) as one, serving(folder, store=store) as two:
        async with AsyncClient(f"127.0.0.1:{one.port}") as client, client.inference.stream("lstm", "moved") as stream:
            await stream.send({"x": X[:5]})
        async with (
            AsyncClient(f"127.0.0.1:{two.port}") as client,
            client.inference.stream("lstm", "moved", resume=True) as stream,
        ):
            assert stream.next_step == 1
            update = await stream.send({"x": X[5:]})
    np.testing.assert_allclose(update.outputs["y"], lstm.expected(X)[5:], atol=1e-6)


async def test_both_protocols_share_sequences(server: Server, client: AsyncClient) -> None:
    """What one began the other goes on with; a repeated step has to come as it came before."""
    async with client_of(server) as triton:
        await triton.infer("lstm", asked(X[None, :4]), sequence_id="both", sequence_start=True)
        async with client.inference.stream("lstm", "both", resume=True) as stream:
            update = await stream.send({"x": X[4:8]})
        assert update.header.step == 1
        answer = await triton.infer("lstm", asked(X[None, 8:]), sequence_id="both", parameters={"step": 2})
    got = np.concatenate([update.outputs["y"], answer.as_numpy("y")[0]])
    np.testing.assert_allclose(got, lstm.expected(X)[4:], atol=1e-6)
