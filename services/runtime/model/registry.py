"""Finds exported models on disk and loads those that can be trusted."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from models.common.manifest import ArtefactError, Manifest, load_manifest, verify_files
from services.runtime.config import threads
from services.runtime.core.ids import ModelId
from services.runtime.model.session import OnnxModel

if TYPE_CHECKING:
    from pathlib import Path

    from services.runtime.config import Settings


class Artefact(NamedTuple):
    """One version of one model on disk, its description checked but its files not yet."""

    folder: Path
    manifest: Manifest

    @property
    def model_id(self) -> ModelId:
        """Identity that sequences are pinned to."""
        return ModelId(self.manifest.name, self.manifest.version, self.manifest.weights_digest)


def version_key(version: str) -> tuple[tuple[int, int | str], ...]:
    """Orders versions as people do: "2" before "10", "1.9" before "1.10"."""
    parts = re.findall(r"\d+|[^\d.]+", version)
    return tuple((0, int(part)) if part.isdigit() else (1, part) for part in parts)


def find_artefacts(root: Path, task: str) -> list[Artefact]:
    """Every version of a task's model under `root/<task>/<version>/`, oldest first.

    Raises:
        ArtefactError: there is none, or a manifest is wrong.
    """
    folder = root / task
    versions = sorted((path.parent for path in folder.glob("*/manifest.json")), key=lambda path: version_key(path.name))
    if not versions:
        raise ArtefactError(str(folder), "holds no exported model (<version>/manifest.json)")
    found = [Artefact(path, load_manifest(path)) for path in versions]
    for artefact in found:
        if artefact.folder.name != artefact.manifest.version:
            raise ArtefactError(str(artefact.folder), f"holds version {artefact.manifest.version}")
        if artefact.manifest.name != task:
            raise ArtefactError(str(artefact.folder), f"holds model {artefact.manifest.name}")
    return found


def load(artefact: Artefact, settings: Settings) -> OnnxModel:
    """Verifies the digests of all files, loads the graph and runs it once at the smallest and largest batch size.

    Raises:
        ArtefactError: a file is missing or not the one that was exported.
    """
    verify_files(artefact.folder, artefact.manifest)
    model = OnnxModel(artefact.folder, artefact.manifest, lone_threads=threads(settings.lone_run_threads))
    model.warm_up((1, settings.batch_size_max))
    return model
