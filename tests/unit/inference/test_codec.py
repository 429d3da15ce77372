"""Requests of the Open Inference Protocol as the inference service reads them (pure)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.inference.codec import CARRY_TAG, Reader, owns, parse_request
from services.inference.datatypes import DATATYPES, datatype_of, raw_bytes
from services.inference.wire.infer_pb2 import InferTensorContents, ModelInferRequest
from services.runtime.core.errors import InvalidInput
from services.runtime.state.types import Durability
from services.sentiment.codec import TextCarry, pack_carry
from services.sentiment.codec import owns as sentiment_owns

if TYPE_CHECKING:
    from services.inference.codec import Ask


def request(**fields: Any) -> ModelInferRequest:
    """A step of sequence 7 with one input of 3 x 2 floats; `fields` are parameters by their type and name."""
    made = ModelInferRequest(model_name="m", raw_input_contents=[bytes(24)])
    made.inputs.add(name="x", datatype="FP32", shape=[3, 2])
    for name, value in {"sequence_id": 7, **fields}.items():
        kind = {bool: "bool_param", int: "int64_param", str: "string_param", float: "double_param"}[type(value)]
        setattr(made.parameters[name], kind, value)
    return made


def described(ask: Ask) -> tuple[Any, ...]:
    """Everything that a request was read as."""
    return (
        ask.model_name,
        ask.model_version,
        ask.id,
        vars(ask.parameters),
        ask.head.inputs,
        ask.head.outputs,
        list(ask.blobs),
        ask.echo,
        ask.field,
        ask.digest(),
    )


class TestParameters:
    """What the parameters of a request say."""

    def test_all_of_them(self) -> None:
        """Each has its meaning; priority is taken and means nothing."""
        parameters = parse_request(
            request(
                sequence_end=True,
                sequence_start=False,
                step=4,
                timeout=2_500,
                priority=2,
                durability="NONE",
                start_key="k",
                committed_step=3,
                epoch=9,
            )
        ).parameters
        assert vars(parameters) == {
            "sequence_id": "7",
            "sequence_echo": parameters.sequence_echo,
            "start": False,
            "end": True,
            "step": 4,
            "timeout_us": 2_500,
            "durability": Durability.NONE,
            "start_key": "k",
            "committed_step": 3,
            "epoch": 9,
        }

    @pytest.mark.parametrize("value", ["", 0])
    def test_an_empty_sequence_id_is_none(self, value: str | int) -> None:
        """As with Triton: the request has whole inputs."""
        assert not parse_request(request(sequence_id=value)).parameters.sequence_id

    @pytest.mark.parametrize(
        ("fields", "field"),
        [
            ({"sequence_id": True}, "sequence_id"),
            ({"sequence_id": 1.5}, "sequence_id"),
            ({"sequence_id": -1}, "sequence_id"),
            ({"sequence_start": 1}, "sequence_start"),
            ({"sequence_end": "true"}, "sequence_end"),
            ({"step": True}, "step"),
            ({"step": -1}, "step"),
            ({"resume": 0}, "resume"),
            ({"durability": 1}, "durability"),
            ({"durability": "step"}, "durability"),
            ({"start_key": 1}, "start_key"),
            ({"timeout": "1"}, "timeout"),
            ({"timeout": -1}, "timeout"),
            ({"priority": -1}, "priority"),
            ({"committed_step": 1.0}, "committed_step"),
            ({"resume": True, "step": 0}, "resume"),
            ({"resume": True, "sequence_end": True}, "resume"),
            ({"sequence_start": True, "step": 1}, "step"),
            ({"sequence_id": 0, "resume": True}, "sequence_id"),
        ],
    )
    def test_what_cannot_be(self, fields: dict[str, Any], field: str) -> None:
        """Values of another type, out of their range, and parameters that contradict each other."""
        with pytest.raises(InvalidInput) as caught:
            parse_request(request(**fields))
        assert caught.value.field == f"parameters[{field}]"

    def test_an_unsigned_name(self) -> None:
        """Up to 2^64 - 1, sent back as it was sent."""
        made = request()
        made.parameters["sequence_id"].uint64_param = 2**64 - 1
        ask = parse_request(made)
        assert ask.parameters.sequence_id == str(2**64 - 1)

    def test_unknown_ones_are_kept_within_bounds(self) -> None:
        """Named in the answer, a few of them; those for Triton's own use are not."""
        ask = parse_request(request(**{f"p{n}": 1 for n in range(20)}, triton_enable_empty_final_response=True))
        assert len(ask.parameters.ignored) == 8
        assert not any(name.startswith("triton") for name in ask.parameters.ignored)


class TestDigest:
    """What makes two requests for a step the same."""

    @pytest.mark.parametrize("change", ["elements", "shape", "name", "datatype", "outputs", "end", "id"])
    def test_everything_that_the_reply_depends_on(self, change: str) -> None:
        """And the id, where the step has no number."""
        one, other = request(), request()
        if change == "elements":
            other.raw_input_contents[0] = b"\1" + bytes(23)
        elif change == "shape":
            other.inputs[0].shape[:] = [2, 3]
        elif change == "outputs":
            other.outputs.add(name="y")
        elif change == "end":
            other.parameters["sequence_end"].bool_param = True
        elif change == "id":
            other.id = "a"
        else:
            setattr(other.inputs[0], change, "z")
        assert parse_request(one).digest() != parse_request(other).digest()

    def test_with_a_number_the_id_does_not_count(self) -> None:
        """The number is the key then."""
        one, other = request(step=3), request(step=3)
        other.id = "a"
        assert parse_request(one).digest() == parse_request(other).digest()

    def test_typed_and_raw_contents_are_the_same(self) -> None:
        """A retry may be written in the other way."""
        typed = request()
        del typed.raw_input_contents[:]
        typed.inputs[0].contents.fp32_contents.extend([0.0] * 6)
        assert parse_request(typed).digest() == parse_request(request()).digest()


class TestReader:
    """The short way for requests that look like one before."""

    @given(
        st.lists(
            st.tuples(
                st.sampled_from(["", "m", "model", "n" * 130]),
                st.sampled_from(["", "1", "v" * 200]),
                st.one_of(st.text(max_size=5), st.sampled_from(["", "i" * 127, "i" * 128, "é"])),
                st.sampled_from([1, 7]),
                st.booleans(),
                st.binary(min_size=8, max_size=8) | st.binary(min_size=4, max_size=4),
                st.sampled_from([0, 1, 2]),
            ),
            max_size=12,
        )
    )
    def test_it_reads_what_the_long_way_reads(self, drawn: list[tuple[Any, ...]]) -> None:
        """Whatever was read before: names and ids of any length, elements of any size, several inputs or none."""
        reader = Reader()
        for name, version, key, sequence, start, content, inputs in drawn:
            made = ModelInferRequest(model_name=name, model_version=version, id=key)
            made.parameters["sequence_id"].int64_param = sequence
            made.parameters["sequence_start"].bool_param = start
            for _ in range(inputs):
                made.inputs.add(name="x", datatype="INT8", shape=[len(content)])
                made.raw_input_contents.append(content)
            for data in (made.SerializeToString(deterministic=True),) * 2:
                try:
                    expected = described(parse_request(ModelInferRequest.FromString(data)))
                except InvalidInput:
                    with pytest.raises(InvalidInput):
                        reader.read(data)
                else:
                    assert described(reader.read(data)) == expected

    def test_the_short_way_is_taken(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The second request with another id and other elements is not parsed."""
        reader, made = Reader(), request()
        made.id = "first"
        reader.read(made.SerializeToString())
        monkeypatch.setattr("services.inference.codec.parse_request", lambda _: pytest.fail("parsed"))
        made.id = "second"
        made.raw_input_contents[0] = bytes(range(24))
        ask = reader.read(made.SerializeToString())
        assert (ask.id, ask.blobs[0]) == (b"second", bytes(range(24)))

    @given(st.binary(max_size=60), st.integers(0, 200))
    def test_any_bytes(self, noise: bytes, at: int) -> None:
        """Noise in a request that was seen before: read as protobuf reads it, or refused."""
        reader, made = Reader(), request()
        made.id = "id"
        data = made.SerializeToString()
        reader.read(data)
        damaged = data[:at] + noise + data[at:]
        try:
            expected = described(parse_request(ModelInferRequest.FromString(damaged)))
        except Exception:  # noqa: BLE001 - protobuf's, or ours
            with pytest.raises(InvalidInput):
                reader.read(damaged)
        else:
            assert described(reader.read(damaged)) == expected


class TestDatatypes:
    """All types of elements of the protocol."""

    def test_there_are_fourteen(self) -> None:
        """Those of the protocol, each with its own number in a configuration."""
        assert len({datatype.config for datatype in DATATYPES.values()}) == len(DATATYPES) == 14

    @pytest.mark.parametrize("dtype", ["float32", "float64", "int32", "int64", "uint8", "bool"])
    def test_every_type_of_a_manifest_has_one(self, dtype: str) -> None:
        """And numpy agrees on what it is."""
        assert datatype_of(dtype).dtype == np.dtype(dtype)

    @pytest.mark.parametrize("name", [name for name, one in DATATYPES.items() if one.contents and one.dtype])
    def test_typed_contents(self, name: str) -> None:
        """In their field they become the bytes that numpy reads; in another they are refused."""
        datatype = DATATYPES[name]
        assert datatype.contents is not None
        assert datatype.dtype is not None
        contents = InferTensorContents()
        getattr(contents, datatype.contents).extend([0, 1, 1])
        read = np.frombuffer(raw_bytes(datatype, contents, "f"), datatype.dtype)
        assert read.tolist() == [0, 1, 1]
        other = next(one for one in DATATYPES.values() if one.contents not in (None, datatype.contents))
        with pytest.raises(InvalidInput):
            raw_bytes(other, contents, "f")

    @pytest.mark.parametrize(("name", "value"), [("UINT8", 256), ("INT8", 128), ("INT8", -129), ("UINT16", 2**16)])
    def test_what_does_not_fit(self, name: str, value: int) -> None:
        """Is not cut off."""
        datatype, contents = DATATYPES[name], InferTensorContents()
        getattr(contents, datatype.contents or "").append(value)
        with pytest.raises(InvalidInput):
            raw_bytes(datatype, contents, "f")


def test_carries_are_told_apart() -> None:
    """The task part of a raw sequence is none of sentiment's, and the reverse."""
    text = pack_carry(TextCarry())
    assert owns(CARRY_TAG)
    assert sentiment_owns(text)
    assert not owns(text)
    assert not sentiment_owns(CARRY_TAG)
