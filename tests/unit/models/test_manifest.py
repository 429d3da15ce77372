import datetime as dt
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.common.manifest import (
    MANIFEST_FILE,
    ArtefactError,
    Manifest,
    StateSpec,
    digest_of,
    load_manifest,
    save_manifest,
    verify_files,
)

GOOD: dict[str, Any] = {
    "name": "toy",
    "version": "1",
    "task": "toy",
    "inputs": [
        {"name": "x", "dtype": "float32", "dims": ["time", "batch", 3], "role": "features"},
        {"name": "lengths", "dtype": "int32", "dims": ["batch"], "role": "lengths"},
    ],
    "outputs": [
        {"name": "y", "dtype": "float32", "dims": ["batch", 2]},
        {"name": "z", "dtype": "float32", "dims": ["time", "batch", 2]},
    ],
    "states": [{"name": "h", "input": "h", "output": "h_next", "dtype": "float32", "dims": [2, "batch", 5]}],
    "chunk_timesteps_max": 16,
    "files": {"model.onnx": "0" * 64},
    "weights_digest": "0" * 64,
    "state_bytes": 40,
    "training": {"command": "none", "seed": 0, "epochs": 0, "libraries": {}},
    "created": "2026-01-01T00:00:00Z",
}


def write(folder: Path, **changes: object) -> Path:
    (folder / MANIFEST_FILE).write_text(json.dumps({**GOOD, **changes}))
    return folder


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    """A manifest survives its file unchanged."""
    manifest = Manifest.model_validate(GOOD)
    save_manifest(tmp_path, manifest)
    assert load_manifest(tmp_path) == manifest
    assert manifest.created == dt.datetime(2026, 1, 1, tzinfo=dt.UTC)


def test_roles_are_found() -> None:
    """Features and lengths are told apart by role, outputs by their time axis."""
    manifest = Manifest.model_validate(GOOD)
    assert [spec.name for spec in manifest.features()] == ["x"]
    lengths = manifest.lengths()
    assert lengths is not None
    assert lengths.name == "lengths"
    assert [spec.per for spec in manifest.outputs] == ["chunk", "timestep"]


def test_a_state_of_one_sequence_has_no_batch_axis() -> None:
    """(L, N, H) becomes (L, H), filled with the initial value; each call gives a fresh array."""
    spec = StateSpec(name="p", input="p", output="q", dtype="float32", dims=(1, "batch", 4), initial=-1.0)
    first, second = spec.initial_array(), spec.initial_array()
    assert first.shape == spec.shape() == (1, 4)
    assert first.dtype == np.float32
    assert first.tolist() == [[-1.0] * 4]
    assert first is not second
    assert spec.byte_count == 16


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("format_version", 2),
        ("surprise", 1),
        ("version", "../1"),
        ("inputs", []),
        ("inputs", [GOOD["inputs"][0], GOOD["inputs"][1], {**GOOD["inputs"][1], "name": "more"}]),
        ("inputs", [{**GOOD["inputs"][0], "dims": ["batch", "time", 3]}]),
        ("inputs", [{**GOOD["inputs"][0], "name": "h"}]),
        ("inputs", [GOOD["inputs"][0], {**GOOD["inputs"][1], "dtype": "int64"}]),
        ("outputs", []),
        ("outputs", [{**GOOD["outputs"][0], "dims": [2, "batch"]}]),
        ("outputs", [{**GOOD["outputs"][0], "name": "h_next"}]),
        ("states", [{**GOOD["states"][0], "dims": ["batch", 2, 5]}]),
        ("states", [{**GOOD["states"][0], "dims": [2, "batch", "time"]}]),
        ("states", [{**GOOD["states"][0], "initial": float("nan")}]),
        ("state_bytes", 41),
        ("chunk_timesteps_max", 0),
        ("files", {"model.onnx": "0" * 64, "../x": "0" * 64}),
        ("files", {"model.onnx": "0" * 64, "manifest.json": "0" * 64}),
        ("files", {}),
        ("weights_digest", "1" * 64),
        ("metrics", {"error": float("inf")}),
        ("created", "2026-01-01T00:00:00"),
    ],
)
def test_a_wrong_manifest_is_refused_by_field(tmp_path: Path, field: str, value: object) -> None:
    """Whatever is wrong is an ArtefactError that names the file and the field."""
    with pytest.raises(ArtefactError) as caught:
        load_manifest(write(tmp_path, **{field: value}))
    assert MANIFEST_FILE in caught.value.where
    assert field.rstrip("s") in str(caught.value)


def test_a_missing_or_broken_manifest_is_refused(tmp_path: Path) -> None:
    """No file and no JSON are artefact errors too, not OSError or ValueError."""
    with pytest.raises(ArtefactError, match=r"manifest\.json"):
        load_manifest(tmp_path)
    (tmp_path / MANIFEST_FILE).write_text("{")
    with pytest.raises(ArtefactError, match=r"manifest\.json"):
        load_manifest(tmp_path)


def test_changed_and_missing_files_are_found(tmp_path: Path) -> None:
    """One changed byte, or a file that is gone, is named."""
    model = tmp_path / "model.onnx"
    model.write_bytes(b"weights")
    digest = digest_of(model)
    manifest = load_manifest(write(tmp_path, files={"model.onnx": digest}, weights_digest=digest))
    verify_files(tmp_path, manifest)
    model.write_bytes(b"weighty")
    with pytest.raises(ArtefactError, match=r"model\.onnx: sha256"):
        verify_files(tmp_path, manifest)
    model.unlink()
    with pytest.raises(ArtefactError, match=r"model\.onnx"):
        verify_files(tmp_path, manifest)
