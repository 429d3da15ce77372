"""Versions of the sentiment model in folders of a test: the one that the repository ships, and others made of it."""

from __future__ import annotations

import shutil
from hashlib import sha256
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import numpy_helper

from models.common.manifest import load_manifest, save_manifest
from services.runtime.config import Settings

if TYPE_CHECKING:
    from pathlib import Path

    from models.common.manifest import Manifest

SHIPPED = Settings().artefacts[0] / "sentiment" / "1"
NAME = "sentiment"


def add_version(root: Path, version: str, *, bias: float = 0.0) -> Path:
    """Puts a version there whose network is the shipped one with `bias` added to one class; the manifest comes last."""
    folder = root / NAME / version
    folder.mkdir(parents=True)
    manifest = load_manifest(SHIPPED)
    for file in manifest.files:
        if not (bias and file == "model.onnx"):
            shutil.copyfile(SHIPPED / file, folder / file)
    if bias:
        network = onnx.load(SHIPPED / "model.onnx")
        (head,) = [each for each in network.graph.initializer if each.name == "head.bias"]
        shifted = numpy_helper.to_array(head) + np.array([0.0, bias], np.float32)
        head.CopyFrom(numpy_helper.from_array(shifted, "head.bias"))
        onnx.save(network, folder / "model.onnx")
    save_manifest(folder, _manifest_of(manifest, version, folder))
    return folder


def _manifest_of(manifest: Manifest, version: str, folder: Path) -> Manifest:
    digest = sha256((folder / "model.onnx").read_bytes()).hexdigest()
    files = {**manifest.files, "model.onnx": digest}
    return manifest.model_copy(update={"version": version, "files": files, "weights_digest": digest})
