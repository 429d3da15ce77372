"""What the repository tells of models: the state of each version, and what happens to them."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from services.runtime.core.ids import ModelId


class ModelState(StrEnum):
    """What can be done with a version; the names are Triton's."""

    READY = "READY"
    """It is loaded and warm, and sequences can be started on it."""
    LOADING = "LOADING"
    UNLOADING = "UNLOADING"
    """It only goes on with the sequences that it has, until they have ended or their time is up."""
    UNAVAILABLE = "UNAVAILABLE"
    """It is not loaded; the reason says why."""


class IndexEntry(NamedTuple):
    """One version of one model. `reason` is for a person, and has no path of the machine; empty where all is well."""

    name: str
    version: str
    state: ModelState
    reason: str


class RepositoryEvents(Protocol):
    """What happens to models, for metrics."""

    def model_served(self, model_id: ModelId, state_bytes: int, load_s: float) -> None:
        """A version was loaded, which took so long; `state_bytes` is what a sequence of it carries."""
        ...

    def model_unloaded(self, model_id: ModelId) -> None:
        """A version was unloaded."""
        ...

    def model_refused(self, model: str) -> None:
        """A version could not be loaded."""
        ...

    def models_retired(self, model: str, versions: int) -> None:
        """So many versions of a model are loaded for the sequences that they have, and for nothing else."""
        ...
