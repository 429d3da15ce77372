"""A small LSTM of random weights as an exported model, and what it computes, step by step in numpy."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import lru_cache
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from models.common.manifest import InputSpec, Manifest, OutputSpec, SequenceDefaults, StateSpec, Training, save_manifest

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

    Floats = npt.NDArray[np.float32]

FEATURES, HIDDEN = 3, 4
CHUNK_TIMESTEPS_MAX = 8


def weights(seed: int) -> tuple[Floats, Floats, Floats]:
    """W (1, 4H, F), R (1, 4H, H) and B (1, 8H), in ONNX's order of gates: input, output, forget, cell."""
    rng = np.random.default_rng(seed)
    shapes = ((1, 4 * HIDDEN, FEATURES), (1, 4 * HIDDEN, HIDDEN), (1, 8 * HIDDEN))
    w, r, b = (rng.normal(size=shape).astype(np.float32) for shape in shapes)
    return w, r, b


@lru_cache
def graph(seed: int) -> bytes:
    """A graph from x (T, N, F), lengths (N), h and c (1, N, H) to y (T, N, H), last (N, H) and the states."""
    dims: dict[str, list[Any]] = {
        "x": ["T", "N", FEATURES],
        "h": [1, "N", HIDDEN],
        "c": [1, "N", HIDDEN],
        "y": ["T", "N", HIDDEN],
        "last": ["N", HIDDEN],
        "h_out": [1, "N", HIDDEN],
        "c_out": [1, "N", HIDDEN],
    }
    floats = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, dim) for name, dim in dims.items()}
    lengths = helper.make_tensor_value_info("lengths", TensorProto.INT32, ["N"])
    named = zip(("W", "R", "B"), weights(seed), strict=True)
    constants = [numpy_helper.from_array(array, name) for name, array in named]
    constants += [numpy_helper.from_array(np.array([axis]), f"axis{axis}") for axis in (0, 1)]
    nodes = [
        helper.make_node(
            "LSTM", ["x", "W", "R", "B", "lengths", "h", "c"], ["ys", "h_out", "c_out"], hidden_size=HIDDEN
        ),
        helper.make_node("Squeeze", ["ys", "axis1"], ["y"]),
        helper.make_node("Squeeze", ["h_out", "axis0"], ["last"]),
    ]
    made = helper.make_graph(
        nodes,
        "lstm",
        [floats["x"], lengths, floats["h"], floats["c"]],
        [floats["y"], floats["last"], floats["h_out"], floats["c_out"]],
        constants,
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def export(
    root: Path, *, name: str = "lstm", version: str = "1", seed: int = 0, durability: Any = "checkpoint"
) -> None:
    """Writes `root/name/version/`."""
    folder, content = root / name / version, graph(seed)
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(content)
    digest = sha256(content).hexdigest()
    states = tuple(
        StateSpec(name=part, input=part, output=f"{part}_out", dtype="float32", dims=(1, "batch", HIDDEN))
        for part in ("h", "c")
    )
    manifest = Manifest(
        name=name,
        version=version,
        task=name,
        inputs=(
            InputSpec(name="x", dtype="float32", dims=("time", "batch", FEATURES), role="features"),
            InputSpec(name="lengths", dtype="int32", dims=("batch",), role="lengths"),
        ),
        outputs=(
            OutputSpec(name="y", dtype="float32", dims=("time", "batch", HIDDEN)),
            OutputSpec(name="last", dtype="float32", dims=("batch", HIDDEN)),
        ),
        states=states,
        chunk_timesteps_max=CHUNK_TIMESTEPS_MAX,
        sequence=SequenceDefaults(durability=durability),
        files={"model.onnx": digest},
        weights_digest=digest,
        state_bytes=2 * HIDDEN * 4,
        training=Training(command="none", seed=seed, epochs=0, libraries={}),
        created=datetime(2026, 1, 1, tzinfo=UTC),
    )
    save_manifest(folder, manifest)


def expected(x: Floats, seed: int = 0) -> Floats:
    """Output y (T, H) for one whole row x (T, F), from the initial state."""
    (w,), (r,), (b,) = weights(seed)
    h, c = np.zeros(HIDDEN, np.float32), np.zeros(HIDDEN, np.float32)
    ys: list[Floats] = []
    for row in x:
        i, o, f, g = np.split(w @ row + r @ h + b[: 4 * HIDDEN] + b[4 * HIDDEN :], 4)
        c = _sigmoid(f) * c + _sigmoid(i) * np.tanh(g)
        h = _sigmoid(o) * np.tanh(c)
        ys.append(h)
    return np.array(ys, dtype=np.float32)


def _sigmoid(x: Floats) -> Floats:
    return (1 / (1 + np.exp(-x))).astype(np.float32)


def inputs(timesteps: int, seed: int = 0) -> Floats:
    """A row x (T, F) of random numbers."""
    return np.random.default_rng(seed).normal(size=(timesteps, FEATURES)).astype(np.float32)
