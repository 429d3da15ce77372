"""Prometheus metrics, prefix `statestream_`, base units. No label takes a sequence id."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from services.runtime.observability.fast import FastCounter, FastHistogram
from services.runtime.observability.model_metrics import ModelMetrics
from services.runtime.observability.sequence_metrics import SECONDS, SequenceMetrics
from services.runtime.observability.shared import Copier, merge_modes

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
"""Buckets for batch sizes."""


class StateHealth(Protocol):
    """A look at one state tensor."""

    @property
    def state(self) -> str:
        """Its name in the manifest."""
        ...

    @property
    def rms(self) -> float:
        """Root mean square of its elements."""
        ...

    @property
    def saturated(self) -> float:
        """Share of its elements that are saturated."""
        ...


class Metrics(ModelMetrics, SequenceMetrics):
    """Everything a server counts. Its methods are the event protocols of the other rooms."""

    def __init__(self, registry: CollectorRegistry) -> None:
        ModelMetrics.__init__(self, registry)
        SequenceMetrics.__init__(self, registry)
        self.registry = registry
        calls, model = ("method", "code"), ("model",)
        self._calls = Counter("statestream_requests", "Calls that ended", calls, registry=registry)
        self._call_seconds = Histogram(
            "statestream_request_seconds", "Duration of calls", ("method",), buckets=SECONDS, registry=registry
        )
        self._open = Gauge(
            "statestream_calls_open", "Calls in progress", ("method",), multiprocess_mode="livesum", registry=registry
        )
        self._messages = FastCounter("statestream_stream_messages", "Steps asked for on streams", model, registry)
        self._batch_size = FastHistogram("statestream_batch_size", "Sequences in a run", model, SIZES, registry)
        self._queue = Gauge(
            "statestream_queue_length",
            "Steps that wait for a run",
            model,
            multiprocess_mode="livesum",
            registry=registry,
        )
        state = ("model", "state")
        self._state_rms = Gauge(
            "statestream_state_rms",
            "Root mean square of a state tensor, sampled",
            state,
            multiprocess_mode="livemax",
            registry=registry,
        )
        self._state_saturated = Gauge(
            "statestream_state_saturated_ratio",
            "Share of a state tensor where tanh is within 1 % of its bounds, sampled",
            state,
            multiprocess_mode="livemax",
            registry=registry,
        )
        self._circuit_open = Gauge(
            "statestream_store_circuit_open",
            "Servers of the state store given up for now",
            multiprocess_mode="livemax",
            registry=registry,
        )
        # On the hot path labels() costs more than the counting itself.
        self._queue_of = lru_cache(maxsize=None)(self._queue.labels)

    def copied(self, folder: Path, worker: str) -> Copier:
        """Copies all of it, now and from now on, to where a supervisor merges it."""
        return Copier(self.registry, merge_modes(self), folder, worker)

    def call_started(self, method: str) -> None:
        """See `CallEvents`."""
        self._open.labels(method).inc()

    def call_ended(self, method: str, code: str, seconds: float) -> None:
        """See `CallEvents`."""
        self._open.labels(method).dec()
        self._calls.labels(method, code).inc()
        self._call_seconds.labels(method).observe(seconds)

    def message_received(self, model: str) -> None:
        """See `StreamEvents`."""
        self._messages.tally(model).inc()

    def batch_ran(self, model: str, size: int, queue_s: Sequence[float], run_s: float) -> None:
        """See `BatchEvents`."""
        self._batch_size.series(model).observe(size)
        self._phase(model, "run").observe(run_s)
        queue = self._phase(model, "queue")
        for seconds in queue_s:
            queue.observe(seconds)

    def states_sampled(self, model: str, health: Sequence[StateHealth]) -> None:
        """See `BatchEvents`."""
        for look in health:
            self._state_rms.labels(model, look.state).set(look.rms)
            self._state_saturated.labels(model, look.state).set(look.saturated)

    def queue_length(self, model: str, length: int) -> None:
        """See `BatchEvents`."""
        self._queue_of(model).set(length)

    def circuit_opened(self) -> None:
        """See `StoreEvents`."""
        self._circuit_open.inc()

    def circuit_closed(self) -> None:
        """See `StoreEvents`."""
        self._circuit_open.dec()
