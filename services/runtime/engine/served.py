"""The models that a server has loaded: several versions of each, and a step of any of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from services.runtime.core.errors import ModelVersionGone, UnknownModel
from services.runtime.engine.scheduler import BatchLimits
from services.runtime.model.registry import version_key

if TYPE_CHECKING:
    from collections.abc import Iterator

    from models.common.manifest import Manifest, SequenceDefaults
    from services.runtime.core.errors import StatestreamError
    from services.runtime.core.ids import ModelId
    from services.runtime.engine.batcher import Batcher
    from services.runtime.engine.collate import Array


@dataclass(frozen=True, slots=True)
class ModelLimits:
    """Bounds of one model: the settings of the server, and what the operator has set for this model in place of them.

    Attributes:
        batch: of its queue and its runs.
        run_threads: runs at the same time.
        sequences_max: live sequences, over which none is started; None: as many as the store takes.
        state_bytes_max: bytes that live sequences take, over which none is started; None: no bound.
        sequence: durability and times in place of those of the manifest; None: those.
    """

    batch: BatchLimits = field(default_factory=BatchLimits)
    run_threads: int = 1
    sequences_max: int | None = None
    state_bytes_max: int | None = None
    sequence: SequenceDefaults | None = None


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
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
    limits: ModelLimits = ModelLimits()

    @property
    def sequence(self) -> SequenceDefaults:
        """What a sequence gets unless its owner says otherwise, and how long it may be idle and live."""
        return self.limits.sequence or self.manifest.sequence


class Supplier(Protocol):
    """Who knows of models that are not loaded, and may begin to load one that is asked for."""

    def unserved(self, name: str, version: str, *, start: bool) -> StatestreamError | None:
        """What to tell who asks for a version, "": any, that is not served; None: there is no such thing."""
        ...

    def missing(self, model_id: ModelId) -> StatestreamError:
        """What to tell who goes on with a sequence of a model that is not loaded."""
        ...


class Catalogue:
    """Finds a served model by name and version.

    A retired version goes on with the sequences that it has, and no sequence is started on it.
    """

    def __init__(self) -> None:
        self._models: dict[ModelId, ServedModel] = {}
        self._open: dict[str, dict[str, ServedModel]] = {}  # not retired; the newest version last
        self.supplier: Supplier | None = None

    def add(self, model: ServedModel, *, retired: bool = False) -> None:
        """Serves one more version, or has `model` take the place of the one of the same id."""
        self._models[model.model_id] = model
        if not retired:
            versions = {**self._open.get(model.model_id.name, {}), model.model_id.version: model}
            self._open[model.model_id.name] = {each: versions[each] for each in sorted(versions, key=version_key)}

    def retire(self, model_id: ModelId) -> None:
        """Starts no further sequence on a version."""
        versions = self._open.get(model_id.name, {})
        if versions.get(model_id.version) is self._models.get(model_id):
            versions.pop(model_id.version, None)

    def remove(self, model_id: ModelId) -> None:
        """Serves a version no longer; its batcher stays its owner's to close."""
        self.retire(model_id)
        self._models.pop(model_id, None)

    def __iter__(self) -> Iterator[ServedModel]:
        """All models, version by version, retired ones included."""
        return iter(tuple(self._models.values()))

    def versions(self, name: str) -> tuple[ServedModel, ...]:
        """The versions on which sequences can be started, the newest last."""
        return tuple(self._open.get(name, {}).values())

    def find(self, name: str, version: str = "", *, start: bool = True) -> ServedModel:
        """The version asked for, or the newest.

        Who does not `start` a sequence is given any version that there is: which one the sequence goes on with is told
        by its record alone, and `pinned` finds it.

        Raises:
            UnknownModel: it is not served here.
            NotReady: it is being loaded.
        """
        versions = self._open.get(name, {})
        if not version and versions:
            return next(reversed(versions.values()))
        if version in versions:
            return versions[version]
        if not start:
            loaded = [model for model in self._models.values() if model.model_id.name == name]
            likest = min(loaded, key=lambda model: model.model_id.version != version, default=None)
            if likest is not None:
                return likest
        error = self.supplier.unserved(name, version, start=start) if self.supplier else None
        if error is not None:
            raise error
        served = ", ".join(versions) or "none"
        raise UnknownModel(f"model {name}: the version asked for is not served; served are: {served}")

    def get(self, model_id: ModelId) -> ServedModel | None:
        """Exactly that model, if it is loaded."""
        return self._models.get(model_id)

    def pinned(self, model_id: ModelId) -> ServedModel:
        """Exactly the model that a sequence began on.

        Raises:
            ModelVersionGone: that version, or those weights, are not served any more.
            NotReady: they are not served here yet.
        """
        model = self._models.get(model_id)
        if model is not None:
            return model
        if self.supplier is not None:
            raise self.supplier.missing(model_id)
        raise ModelVersionGone(f"version {model_id.version} of model {model_id.name}, which the sequence began on")

    def close(self) -> None:
        """Ends the worker threads of all models."""
        for model in self._models.values():
            model.batcher.close()
