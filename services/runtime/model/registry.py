"""Finds exported models in folders, `<root>/<model>/<version>/`, and loads those that can be trusted."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from models.common.manifest import MANIFEST_FILE, ArtefactError, Manifest, load_manifest, verify_files
from services.runtime.config import threads
from services.runtime.core.ids import ModelId
from services.runtime.model.limits import SERVING_FILE
from services.runtime.model.session import OnnxModel

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from pathlib import Path

    from services.runtime.config import Settings

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,63}")
_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,31}")

Fingerprint = tuple[tuple[str, int, int, int], ...]
"""Name, size, time of change and inode of every file: the same again means that nothing has changed."""


class Artefact(NamedTuple):
    """One version of one model on disk, its description checked but its files not yet."""

    folder: Path
    manifest: Manifest

    @property
    def model_id(self) -> ModelId:
        """Identity that sequences are pinned to."""
        return ModelId(self.manifest.name, self.manifest.version, self.manifest.weights_digest)


class VersionFiles(NamedTuple):
    """A folder that holds, or is to hold, one version of a model; nothing of it has been read."""

    name: str
    version: str
    folder: Path
    fingerprint: Fingerprint

    @property
    def complete(self) -> bool:
        """True once the manifest is there, which whoever copies a version writes last."""
        return any(entry[0] == MANIFEST_FILE for entry in self.fingerprint)


class ServingEntry(NamedTuple):
    """The operator's file of one model; it has not been read."""

    path: Path
    fingerprint: Fingerprint


class Scan(NamedTuple):
    """What stands in the folders now.

    Attributes:
        versions: by name and version, from the oldest version to the newest.
        serving: the operator's file of each model that has one.
        unread: folders that could not be listed; nothing can be said of what is, or was, in them.
        doubles: folders of versions that an earlier folder has too, which counts.
    """

    versions: dict[str, dict[str, VersionFiles]]
    serving: dict[str, ServingEntry]
    unread: frozenset[Path]
    doubles: tuple[Path, ...]

    def is_gone(self, files: VersionFiles) -> bool:
        """True if what once stood in `files` is there no longer, and somebody has looked."""
        model = files.folder.parent
        return files.version not in self.versions.get(files.name, {}) and not {model, model.parent} & self.unread


def version_key(version: str) -> tuple[tuple[int, int | str], ...]:
    """Orders versions as people do: "2" before "10", "1.9" before "1.10"."""
    parts = re.findall(r"\d+|[^\d.]+", version)
    return tuple((0, int(part)) if part.isdigit() else (1, part) for part in parts)


def scan(roots: Sequence[Path], names: Collection[str] | None = None) -> Scan:
    """Lists the versions of the named models, None: of all; of two folders with the same version the first counts."""
    found: dict[str, dict[str, VersionFiles]] = {}
    serving: dict[str, ServingEntry] = {}
    unread: set[Path] = set()
    doubles: list[Path] = []
    for root in roots:
        for model in _folders(root, _NAME, unread):
            if names is not None and model.name not in names:
                continue
            if model.name not in serving and (at := fingerprint(model, SERVING_FILE)):
                serving[model.name] = ServingEntry(model / SERVING_FILE, at)
            versions = found.setdefault(model.name, {})
            for folder in _folders(model, _VERSION, unread):
                if folder.name in versions:
                    doubles.append(folder)
                elif at := fingerprint(folder):
                    versions[folder.name] = VersionFiles(model.name, folder.name, folder, at)
    ordered = {
        name: {version: found[name][version] for version in sorted(found[name], key=version_key)}
        for name in sorted(found)
        if found[name]
    }
    return Scan(ordered, serving, frozenset(unread), tuple(doubles))


def fingerprint(folder: Path, only: str = "") -> Fingerprint:
    """Of the files in `folder`, or the one named; empty where there is none."""
    try:
        files = [folder / only] if only else sorted(folder.iterdir())
    except OSError:  # it has gone meanwhile
        return ()
    entries: list[tuple[str, int, int, int]] = []
    for file in files:
        try:
            status = file.stat()
        except OSError:
            continue
        entries.append((file.name, status.st_size, status.st_mtime_ns, status.st_ino))
    return tuple(entries)


def read_artefact(files: VersionFiles) -> Artefact:
    """The description of a version.

    Raises:
        ArtefactError: its manifest cannot be read, or is that of another model or version.
    """
    manifest = load_manifest(files.folder)
    if files.version != manifest.version:
        raise ArtefactError(str(files.folder / MANIFEST_FILE), f"is that of version {manifest.version}")
    if files.name != manifest.name:
        raise ArtefactError(str(files.folder / MANIFEST_FILE), f"is that of model {manifest.name}")
    return Artefact(files.folder, manifest)


def load(artefact: Artefact, settings: Settings, batch_size_max: int) -> OnnxModel:
    """Verifies the digests of all files, loads the graph and runs it once at the smallest and largest batch size.

    Raises:
        ArtefactError: a file is missing or not the one that was exported.
    """
    verify_files(artefact.folder, artefact.manifest)
    model = OnnxModel(artefact.folder, artefact.manifest, lone_threads=threads(settings.lone_run_threads))
    model.warm_up((1, batch_size_max))
    return model


def _folders(parent: Path, names: re.Pattern[str], unread: set[Path]) -> list[Path]:
    try:
        return [path for path in sorted(parent.iterdir()) if names.fullmatch(path.name) and path.is_dir()]
    except OSError:
        unread.add(parent)
        return []
