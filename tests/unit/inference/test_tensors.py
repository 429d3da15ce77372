"""What names, types and shapes mean to a model, elements as arrays, and replies (pure)."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from models.common.manifest import InputSpec, Manifest, OutputSpec
from services.inference import tensors
from services.inference.tensors import head_of
from services.inference.wire.infer_pb2 import ModelInferResponse
from services.runtime.core.errors import InvalidInput, ModelFailure
from services.runtime.core.ids import ModelId
from services.runtime.sequences.contract import StepContext
from services.runtime.state.types import Durability, Position
from tests.kit.toy import DIGEST, toy_manifest

FIELD = "raw[{}]"


def model(**update: Any) -> Any:
    """The toy with other inputs and outputs."""
    manifest = toy_manifest().model_copy(update=update)
    return SimpleNamespace(
        model_id=ModelId("toy", "1", DIGEST), manifest=Manifest.model_validate(manifest.model_dump())
    )


MANY = model(
    inputs=(
        InputSpec(name="a", dtype="float32", dims=("time", "batch", 2, 3), role="features"),
        InputSpec(name="b", dtype="int64", dims=("time", "batch"), role="features"),
        InputSpec(name="c", dtype="bool", dims=("time", "batch", 1), role="features"),
        InputSpec(name="lengths", dtype="int32", dims=("batch",), role="lengths"),
    ),
    outputs=(
        OutputSpec(name="y", dtype="float64", dims=("time", "batch", 2)),
        OutputSpec(name="z", dtype="int64", dims=("batch",)),
    ),
)
A, B, C = ("a", "FP32", (4, 2, 3)), ("b", "INT64", (4,)), ("c", "BOOL", (4, 1))


def batched(tensor: Any, rows: int) -> Any:
    """The same tensor for so many rows."""
    return tensor[0], tensor[1], (rows, *tensor[2])


def bytes_of(*dtypes_and_sizes: tuple[str, int]) -> list[bytes]:
    """Ones of these types."""
    return [np.ones(size, dtype).tobytes() for dtype, size in dtypes_and_sizes]


BLOBS = bytes_of(("<f4", 24), ("<i8", 4), ("?", 4))


def test_several_inputs_in_any_order() -> None:
    """They come out in the model's order, each in its type and shape; views, not copies."""
    plan = head_of((C, A, B), ()).plan(MANY)
    arrays = plan.arrays([BLOBS[2], BLOBS[0], BLOBS[1]], FIELD)
    assert [(array.dtype.name, array.shape) for array in arrays] == [
        ("float32", (4, 2, 3)),
        ("int64", (4,)),
        ("bool", (4, 1)),
    ]
    assert not any(array.flags.owndata for array in arrays)
    assert (plan.rows, plan.timesteps) == (1, 4)


def test_rows_keep_their_axis() -> None:
    """(N, T, ...), where there is more than one."""
    plan = head_of(tuple(batched(tensor, 5) for tensor in (A, B, C)), ()).plan(MANY)
    arrays = plan.arrays([blob * 5 for blob in BLOBS], FIELD)
    assert [array.shape for array in arrays] == [(5, 4, 2, 3), (5, 4), (5, 4, 1)]
    assert plan.tensors == (("y", "FP64", (5, 4, 2)), ("z", "INT64", (5,)))


@pytest.mark.parametrize(
    ("inputs", "field"),
    [
        ((A, B), "inputs"),
        ((A, B, C, A), "inputs[3].name"),
        ((A, B, C, ("s", "FP32", (1,))), "inputs[3].name"),
        ((A, ("b", "INT64", (5,)), C), "inputs[1].shape"),
        ((A, batched(B, 1), C), "inputs[1].shape"),
        ((A, B, ("c", "BOOL", (4,))), "inputs[2].shape"),
        ((A, ("b", "INT32", (4,)), C), "inputs[1].datatype"),
        ((A, B, C, ("lengths", "INT64", (1,))), "inputs[3].datatype"),
        ((A, B, C, ("lengths", "INT32", (2,))), "inputs[3].shape"),
    ],
)
def test_tensors_that_do_not_belong_together(inputs: Any, field: str) -> None:
    """The one that is wrong is named."""
    with pytest.raises(InvalidInput) as caught:
        head_of(inputs, ()).plan(MANY)
    assert caught.value.field == field


def test_an_input_is_named_as_the_client_sent_it() -> None:
    """The engine names inputs as the graph does; the client is told the field that held the elements."""
    head = head_of((C, A, B), ())
    plan = head.plan(MANY)
    named = plan.named(InvalidInput("a", "holds NaN or infinity"), head, FIELD)
    assert (named.field, named.message) == ("raw[1]", "raw[1]: holds NaN or infinity")
    other = InvalidInput("model_version", "is wrong")
    assert plan.named(other, head, FIELD) is other


def test_truth_values_are_0_and_1() -> None:
    """Another byte is neither."""
    with pytest.raises(InvalidInput) as caught:
        head_of((A, B, C), ()).plan(MANY).arrays([*BLOBS[:2], b"\1\0\2\1"], FIELD)
    assert caught.value.field == "raw[2]"


@pytest.mark.parametrize("lengths", [[0, 1], [1, 5], [-1, 2]])
def test_lengths_are_within_the_tensor(lengths: list[int]) -> None:
    """From one timestep to all of them."""
    inputs = (*(batched(tensor, 2) for tensor in (A, B, C)), ("lengths", "INT32", (2, 1)))
    plan = head_of(inputs, ()).plan(MANY)
    blobs = [*(blob * 2 for blob in BLOBS), np.array(lengths, "<i4").tobytes()]
    with pytest.raises(InvalidInput) as caught:
        plan.lengths(blobs, FIELD)
    assert caught.value.field == "raw[3]"


def test_a_reply_is_what_protobuf_would_write() -> None:
    """All outputs, or some in another order, for one row with and without an axis for it."""
    y, z = np.arange(8.0).reshape(4, 2), np.array(7)
    for inputs, lead in (((A, B, C), ()), (tuple(batched(tensor, 1) for tensor in (A, B, C)), (1,))):
        for wanted in ((), ("z",), ("z", "y")):
            plan = head_of(inputs, wanted).plan(MANY)
            context = StepContext("s", Position(99, 3), MANY, Durability.STEP, False, True, 2, b"")
            expected = ModelInferResponse(model_name="toy", model_version="1")
            for name in wanted or ("y", "z"):
                array = {"y": y, "z": z}[name]
                expected.outputs.add(name=name, datatype={"y": "FP64", "z": "INT64"}[name], shape=(*lead, *array.shape))
                expected.raw_output_contents.append(array.tobytes())
            for key, value in (("step", 3), ("epoch", 99), ("committed_step", 2)):
                expected.parameters[key].int64_param = value
            expected.parameters["sequence_replaced"].bool_param = True
            reply = plan.reply(plan.contents((y, z)), context)
            assert ModelInferResponse.FromString(reply) == expected


def test_outputs_that_are_not_as_the_manifest_says() -> None:
    """A reply whose shape lied would be worse than none."""
    plan = head_of((A, B, C), ("y",)).plan(MANY)
    for y in (np.zeros((3, 2)), np.zeros((5, 2)), np.zeros((4, 2), np.float32)):
        with pytest.raises(ModelFailure):
            plan.contents((y, np.array(1)))


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither many forms of requests nor long names stay."""
    monkeypatch.setattr(tensors, "LAYOUTS_MAX", 8)
    monkeypatch.setattr(tensors, "_heads", {})
    for n in range(50):
        head_of((("x", "FP32", (n,)),), ())
    assert len(tensors._heads) <= 8
    long = (("x" * 5000, "FP32", (1,)),)
    assert head_of(long, ()) is not head_of(long, ())
