"""Sequences over `ModelInfer`, with Triton's clients: names, steps, repeats, resuming on another server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from services.inference.servicer import TASK as INFERENCE
from services.runtime.config import Settings
from services.runtime.core.clock import SystemClock
from services.runtime.state.memory import MemoryStore
from services.sentiment.servicer import TASK as SENTIMENT
from tests.kit import lstm
from tests.kit.server import config, piece, refused, replies, stub_of
from tests.kit.triton import InferenceServerException, asked, client_of, folder_of, run_blocking, serving

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
async def client(server: Server) -> AsyncIterator[Any]:
    """Triton's asyncio client of it."""
    async with client_of(server) as one:
        yield one


def parameters(answer: Any) -> dict[str, Any]:
    """The parameters of an answer as plain values."""
    told = answer.get_response().parameters
    return {key: getattr(value, value.WhichOneof("parameter_choice")) for key, value in told.items()}


async def fails(call: Any) -> tuple[str, str]:
    """Code and message of the error that a call ends with."""
    with pytest.raises(InferenceServerException) as caught:
        await call
    return str(caught.value.status()).removeprefix("StatusCode."), str(caught.value.message())


def step(client: Any, at: int, name: int | str = 7, *, to: int | None = None, **options: Any) -> Any:
    """Asks for the step that reads X[at:to], one timestep if `to` is None."""
    part = X[at : at + 1 if to is None else to]
    last = {"sequence_start": at == 0, "sequence_end": False, **options}
    return client.infer("lstm", asked(part[None]), sequence_id=name, **last)


@pytest.mark.parametrize("name", [7, 2**63 - 1, "seven", "x" * 128])
async def test_in_pieces_the_bits_are_those_of_the_whole(client: Any, name: int | str) -> None:
    """Whatever the pieces, whatever the kind of the name; both come back as they were sent."""
    whole = await client.infer("lstm", asked(X[None]))
    parts: list[Any] = []
    for at, to in ((0, 1), (1, 5), (5, 6), (6, 12)):
        answer = await step(client, at, name, to=to, sequence_end=to == 12, request_id=f"r{at}")
        parts.append(answer.as_numpy("y")[0])
        assert parameters(answer)["sequence_id"] == name
        assert answer.get_response().id == f"r{at}"
    np.testing.assert_array_equal(np.concatenate(parts), whole.as_numpy("y")[0])
    assert parameters(answer)["sequence_end"]
    assert (await fails(step(client, 1, name)))[0] == "FAILED_PRECONDITION"


async def test_the_blocking_client_takes_steps_too(server: Server) -> None:
    """Triton's oldest client, as its examples use it."""

    def work(client: Any) -> Any:
        return [
            client.infer(
                "lstm", asked(X[None, t : t + 1]), sequence_id=5, sequence_start=t == 0, sequence_end=t == 3
            ).as_numpy("y")[0]
            for t in range(4)
        ]

    np.testing.assert_allclose(np.concatenate(await run_blocking(server, work)), lstm.expected(X[:4]), atol=1e-6)


async def test_replies_tell_where_the_sequence_stands(client: Any) -> None:
    """A unary step is committed before its reply leaves; steps without a number get the next one."""
    first, second = await step(client, 0), await step(client, 1)
    assert [(parameters(one)["step"], parameters(one)["committed_step"]) for one in (first, second)] == [(0, 0), (1, 1)]
    assert parameters(first)["epoch"] == parameters(second)["epoch"] > 0
    assert "sequence_start" in parameters(first)
    assert "sequence_start" not in parameters(second)


async def test_a_number_and_a_string_are_one_name(client: Any) -> None:
    """The sequence 7 is the sequence "7"; a client of either kind can go on with it."""
    await step(client, 0, 7)
    answer = await step(client, 1, "7")
    assert parameters(answer)["step"] == 1
    assert parameters(answer)["sequence_id"] == "7"


async def test_a_sequence_has_to_be_started(client: Any) -> None:
    """A step of an unknown one is refused; so is a step of an unknown model."""
    assert (await fails(step(client, 1, 99)))[0] == "NOT_FOUND"
    call = client.infer("nobody", asked(X[None, :1]), sequence_id=1)
    assert (await fails(call))[0] == "NOT_FOUND"


async def test_a_repeated_id_is_answered_with_the_same_bytes(client: Any) -> None:
    """The client's key against repeats: the first step, one in the middle and the last, and each is taken once."""
    for at, options in ((0, {}), (1, {}), (2, {"sequence_end": True})):
        once = await step(client, at, request_id=f"r{at}", **options)
        again = await step(client, at, request_id=f"r{at}", **options)
        once_bytes, again_bytes = (one.get_response().SerializeToString(deterministic=True) for one in (once, again))
        assert once_bytes == again_bytes
        assert parameters(again)["step"] == at


async def test_equal_steps_without_an_id_are_different_steps(client: Any) -> None:
    """Silence is silence again; and another id, or another content under one id, is another step, too."""
    silence = np.zeros((1, 1, 3), np.float32)
    steps = [
        parameters(await client.infer("lstm", asked(content), sequence_id=3, sequence_start=n == 0, request_id=key))[
            "step"
        ]
        for n, (content, key) in enumerate(
            [(silence, ""), (silence, ""), (silence, "a"), (silence, "b"), (silence + 1, "b")]
        )
    ]
    assert steps == [0, 1, 2, 3, 4]


async def test_numbered_steps(client: Any) -> None:
    """Repeated: the stored reply, whatever the id; with other content, or skipping ahead: refused, nothing changes."""
    await step(client, 0, parameters={"step": 0})
    once = await step(client, 1, parameters={"step": 1}, request_id="a")
    again = await step(client, 1, parameters={"step": 1}, request_id="b")
    assert again.get_response().id == "b"
    np.testing.assert_array_equal(once.as_numpy("y"), again.as_numpy("y"))
    assert parameters(again)["step"] == 1
    code, message = await fails(step(client, 2, parameters={"step": 1}))
    assert (code, "other content" in message) == ("FAILED_PRECONDITION", True)
    code, message = await fails(step(client, 2, parameters={"step": 5}))
    assert (code, "expected is 2" in message) == ("FAILED_PRECONDITION", True)
    answer = await step(client, 2, parameters={"step": 2})
    np.testing.assert_allclose(answer.as_numpy("y")[0], lstm.expected(X[:3])[2:], atol=1e-6)


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"sequence_id": 0, "sequence_start": True, "parameters": {"step": 0}}, "parameters[sequence_id]"),
        ({"parameters": {"step": -1}}, "parameters[step]"),
        ({"parameters": {"step": "1"}}, "parameters[step]"),
        ({"parameters": {"step": 1}, "sequence_start": True}, "parameters[step]"),
        ({"parameters": {"durability": "SOMETIMES"}}, "parameters[durability]"),
        ({"parameters": {"resume": 1}}, "parameters[resume]"),
        ({"parameters": {"resume": True}, "sequence_start": True}, "parameters[resume]"),
        ({"sequence_id": "x" * 129}, "parameters[sequence_id]"),
        ({"sequence_id": "a\nb"}, "parameters[sequence_id]"),
        ({"sequence_id": -1}, "parameters[sequence_id]"),
        ({"rows": 2}, "inputs[0].shape"),
        ({"timesteps": 9}, "inputs[0].shape"),
        ({"model_version": "9"}, "model_version"),
    ],
)
async def test_bad_steps_change_nothing(client: Any, options: dict[str, Any], field: str) -> None:
    """Each is refused by the name of its field, and the sequence goes on from where it stood."""
    await step(client, 0)
    rows, timesteps = options.pop("rows", 1), options.pop("timesteps", 1)
    values = {"sequence_id": 7, **options}
    code, message = await fails(client.infer("lstm", asked(np.zeros((rows, timesteps, 3), np.float32)), **values))
    assert code in {"INVALID_ARGUMENT", "NOT_FOUND"}
    assert message.startswith(field)
    answer = await step(client, 1)
    assert parameters(answer)["step"] == 1
    np.testing.assert_allclose(answer.as_numpy("y")[0], lstm.expected(X[:2])[1:], atol=1e-6)


async def test_an_end_without_inputs(client: Any) -> None:
    """It runs nothing and has no outputs; without the end it is refused."""
    await step(client, 0)
    assert (await fails(client.infer("lstm", [], sequence_id=7)))[1].startswith("inputs:")
    answer = await client.infer("lstm", [], sequence_id=7, sequence_end=True)
    assert len(answer.get_response().outputs) == 0
    assert parameters(answer)["step"] == 1
    assert (await fails(step(client, 1)))[0] == "FAILED_PRECONDITION"


async def test_a_start_begins_anew(client: Any) -> None:
    """In the place of a live sequence, which the answer tells; with the same start_key it is a repeat."""
    one = await step(client, 0, parameters={"start_key": "k"})
    await step(client, 1)
    repeat = await step(client, 0, parameters={"start_key": "k"})
    assert parameters(repeat) == parameters(one)
    other = await step(client, 0, parameters={"start_key": "l"})
    assert parameters(other)["epoch"] > parameters(one)["epoch"]
    assert parameters(other)["sequence_replaced"]


async def test_a_sequence_stays_on_its_version(tmp_path: Path) -> None:
    """A new version takes new sequences; who asks for another version of a live one is refused."""
    folder = folder_of(tmp_path)
    async with (
        serving(folder, model_control_mode="explicit", load_models=("*",)) as server,
        client_of(server) as client,
    ):
        await step(client, 0, "old")
        lstm.export(folder, version="2", seed=2)
        await client.load_model("lstm")
        old, new = await step(client, 1, "old"), await step(client, 0, "new")
        assert [one.get_response().model_version for one in (old, new)] == ["1", "2"]
        np.testing.assert_allclose(new.as_numpy("y")[0], lstm.expected(X[:1], seed=2), atol=1e-6)
        assert (await fails(step(client, 2, "old", model_version="2")))[1].startswith("model_version:")
        assert (await step(client, 2, "old", model_version="1")).get_response().model_version == "1"


async def test_two_servers_share_a_sequence(tmp_path: Path) -> None:
    """Steps alternate between servers on one store; a repeat is answered by either with the same bytes."""
    store = MemoryStore(SystemClock(), bytes_max=10**7, sequences_max=100)
    folder = folder_of(tmp_path)
    async with (
        serving(folder, store=store) as one,
        serving(folder, store=store) as two,
        client_of(one) as first,
        client_of(two) as second,
    ):
        for t in range(6):
            here, there = (first, second) if t % 2 else (second, first)
            answer = await step(here, t, "shared", request_id=str(t), sequence_end=t == 5)
            again = await step(there, t, "shared", request_id=str(t), sequence_end=t == 5)
            assert parameters(answer) == parameters(again)
            np.testing.assert_allclose(answer.as_numpy("y")[0], lstm.expected(X[: t + 1])[t:], atol=1e-6)


async def test_resume_tells_where_to_go_on(tmp_path: Path) -> None:
    """On another server, with no inputs: the next step, and whether less is there than the client was told."""
    store = MemoryStore(SystemClock(), bytes_max=10**7, sequences_max=100)
    folder = folder_of(tmp_path)
    async with serving(folder, store=store) as one, client_of(one) as client:
        for t in range(3):
            before = parameters(await step(client, t, "moved"))
    async with serving(folder, store=store) as two, client_of(two) as client:
        told = {"resume": True, "committed_step": before["committed_step"], "epoch": before["epoch"]}
        standing = await client.infer("lstm", [], sequence_id="moved", parameters=told)
        there = parameters(standing)
        assert (there["next_step"], there["committed_step"], there["lost"]) == (3, 2, False)
        assert there["epoch"] > before["epoch"]
        assert len(standing.get_response().outputs) == 0
        lost = await client.infer("lstm", [], sequence_id="moved", parameters={**told, "committed_step": 5})
        assert parameters(lost)["lost"]
        answer = await step(client, 3, "moved", parameters={"step": 3})
        np.testing.assert_allclose(answer.as_numpy("y")[0], lstm.expected(X[:4])[3:], atol=1e-6)
        assert (await fails(client.infer("lstm", [], sequence_id="nobody", parameters=told)))[0] == "NOT_FOUND"


async def test_raw_sequences_and_those_of_a_task_do_not_mix() -> None:
    """They share names: a raw step on a task's sequence, or the reverse, is refused, and neither notices."""
    shipped = Settings.model_fields["artefacts"].default
    async with (
        serving(*shipped, tasks=(SENTIMENT, INFERENCE)) as server,
        client_of(server) as client,
        stub_of(server) as stub,
    ):
        word = asked(np.array([[4]]), "words")
        await replies(stub, config("text", start=True), piece("Good "))
        for options in ({}, {"parameters": {"step": 1}}, {"parameters": {"resume": True}}):
            call = client.infer("sentiment", [] if "resume" in str(options) else word, sequence_id="text", **options)
            assert (await fails(call))[1].startswith("another service")
        (reply,) = await replies(stub, config("text"), piece("film ", step=1))
        assert reply.sentiment.word_count == 2
        await client.infer("sentiment", word, sequence_id="raw", sequence_start=True)
        for opening in (config("raw"), config("raw", resume=True)):
            told = await refused(server, opening, piece("film "))
            assert told[:2] == ("FAILED_PRECONDITION", "SEQUENCE_KIND_MISMATCH")
        assert parameters(await client.infer("sentiment", word, sequence_id="raw"))["step"] == 1
