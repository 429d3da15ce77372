"""The models that a server has loaded: several versions of each, and a step of any of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from services.runtime.core.errors import ModelVersionGone, UnknownModel

if TYPE_CHECKING:
    from collections.abc import Iterator

    from models.common.manifest import Manifest
    from services.runtime.core.ids import ModelId
    from services.runtime.engine.batcher import Batcher
    from services.runtime.engine.collate import Array


@dataclass(frozen=True, slots=True, eq=False)
class ServedModel:
    """One version of one model, loaded, warm and behind its batcher.

    `features` is what the task made of the artefact's other files (a vocabulary), or None.
    `initial_state` are the state tensors a new sequence starts with, each without the batch axis.
    """

    model_id: ModelId
    manifest: Manifest
    batcher: Batcher
    initial_state: tuple[Array, ...]
    features: object


class Catalogue:
    """Finds a served model by name and version. The newest version is the one added last."""

    def __init__(self) -> None:
        self._by_name: dict[str, dict[str, ServedModel]] = {}  # what the artefacts folder holds

    def add(self, model: ServedModel) -> None:
        """Serves one more version."""
        self._by_name.setdefault(model.model_id.name, {})[model.model_id.version] = model

    def __iter__(self) -> Iterator[ServedModel]:
        """All models, version by version."""
        return (model for versions in self._by_name.values() for model in versions.values())

    def find(self, name: str, version: str = "") -> ServedModel:
        """The version asked for, or the newest.

        Raises:
            UnknownModel: it is not served here.
        """
        versions = self._by_name.get(name, {})
        if not version and versions:
            return next(reversed(versions.values()))
        if version not in versions:
            served = ", ".join(versions) or "none"
            raise UnknownModel(f"model {name}: the version asked for is not served; served are: {served}")
        return versions[version]

    def pinned(self, model_id: ModelId) -> ServedModel:
        """Exactly the model that a sequence began on.

        Raises:
            ModelVersionGone: that version, or those weights, are not served any more.
        """
        model = self._by_name.get(model_id.name, {}).get(model_id.version)
        if model is None or model.model_id != model_id:
            raise ModelVersionGone(f"version {model_id.version} of model {model_id.name}, which the sequence began on")
        return model

    def close(self) -> None:
        """Ends the worker threads of all models."""
        for versions in self._by_name.values():
            for model in versions.values():
                model.batcher.close()
