"""What happens to models, counted: versions loaded, refused, retired and unloaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge

if TYPE_CHECKING:
    from services.runtime.core.ids import ModelId


class ModelMetrics:
    """The events of the room of the repository."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._model_info = Gauge(
            "statestream_model_info",
            "1 for each model version that is loaded, 0 for one that was unloaded",
            ("model", "version", "digest"),
            multiprocess_mode="livemax",
            registry=registry,
        )
        self._state_bytes = Gauge(
            "statestream_model_state_bytes",
            "State tensors of one sequence",
            ("model",),
            multiprocess_mode="livemax",
            registry=registry,
        )
        self._load_seconds = Gauge(
            "statestream_model_load_seconds",
            "How long it took to verify, open and warm a model version",
            ("model", "version"),
            multiprocess_mode="livemax",
            registry=registry,
        )
        self._load_failures = Counter(
            "statestream_model_load_failures",
            "Times that the files of a model version could not be served",
            ("model",),
            registry=registry,
        )
        self._retired = Gauge(
            "statestream_retired_versions_live",
            "Model versions that are loaded only for the sequences that they have",
            ("model",),
            multiprocess_mode="livemax",
            registry=registry,
        )

    def model_served(self, model_id: ModelId, state_bytes: int, load_s: float) -> None:
        """See `RepositoryEvents`."""
        self._model_info.labels(*model_id).set(1)
        self._state_bytes.labels(model_id.name).set(state_bytes)
        self._load_seconds.labels(model_id.name, model_id.version).set(load_s)

    def model_unloaded(self, model_id: ModelId) -> None:
        """See `RepositoryEvents`."""
        self._model_info.labels(*model_id).set(0)

    def model_refused(self, model: str) -> None:
        """See `RepositoryEvents`."""
        self._load_failures.labels(model).inc()

    def models_retired(self, model: str, versions: int) -> None:
        """See `RepositoryEvents`."""
        self._retired.labels(model).set(versions)
