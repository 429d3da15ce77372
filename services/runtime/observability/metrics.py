"""Prometheus metrics, prefix `statestream_`, base units. No label takes a sequence id."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from services.runtime.observability.histogram import FastHistogram

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from services.runtime.core.ids import ModelId

SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
"""Buckets for latencies: a step takes from 0.1 ms to seconds."""

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


class Metrics:
    """Everything a server counts. Its methods are the event protocols of the other rooms."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        calls, model = ("method", "code"), ("model",)
        self._calls = Counter("statestream_requests", "Calls that ended", calls, registry=registry)
        self._call_seconds = Histogram(
            "statestream_request_seconds", "Duration of calls", ("method",), buckets=SECONDS, registry=registry
        )
        self._open = Gauge("statestream_calls_open", "Calls in progress", ("method",), registry=registry)
        self._messages = Counter("statestream_stream_messages", "Steps asked for on streams", model, registry=registry)
        self._phases = FastHistogram(
            "statestream_step_seconds",
            "Time of a step by phase: queue, load, run, commit",
            ("model", "phase"),
            SECONDS,
            registry,
        )
        self._batch_size = FastHistogram("statestream_batch_size", "Sequences in a run", model, SIZES, registry)
        self._queue = Gauge("statestream_queue_length", "Steps that wait for a run", model, registry=registry)
        self._started = Counter("statestream_sequences_started", "Sequences begun here", model, registry=registry)
        self._ended = Counter("statestream_sequences_ended", "Sequences ended here", model, registry=registry)
        self._forked = Counter("statestream_sequences_forked", "Sequences made of others", model, registry=registry)
        self._rewound = Counter(
            "statestream_sequences_rewound", "Sequences put back to an earlier step", model, registry=registry
        )
        self._imported = Counter(
            "statestream_sequences_imported", "Sequences made of snapshots", model, registry=registry
        )
        self._replayed = Counter(
            "statestream_steps_replayed", "Retries answered with the stored reply", model, registry=registry
        )
        self._resumed = Counter(
            "statestream_sequences_resumed", "Sequences that a stream took up again here", model, registry=registry
        )
        self._losses = Counter(
            "statestream_losses_detected",
            "Times that the store came back older than it was, by whether a replica's memory healed it",
            ("model", "healed"),
            registry=registry,
        )
        self._uncommitted = Gauge(
            "statestream_uncommitted_steps", "Steps answered and not committed yet", registry=registry
        )
        self._conflicts = Counter(
            "statestream_step_conflicts", "Commits that found the sequence moved by others", model, registry=registry
        )
        self._refused = Counter(
            "statestream_steps_refused", "Steps that could not be taken", ("model", "reason"), registry=registry
        )
        self._cache = Counter(
            "statestream_cache_lookups", "Steps continued from memory, or not", ("model", "hit"), registry=registry
        )
        self._model_info = Gauge(
            "statestream_model_info", "Model versions served", ("model", "version", "digest"), registry=registry
        )
        self._state_bytes = Gauge(
            "statestream_model_state_bytes", "State tensors of one sequence", model, registry=registry
        )
        state = ("model", "state")
        self._state_rms = Gauge(
            "statestream_state_rms", "Root mean square of a state tensor, sampled", state, registry=registry
        )
        self._state_saturated = Gauge(
            "statestream_state_saturated_ratio",
            "Share of a state tensor where tanh is within 1 % of its bounds, sampled",
            state,
            registry=registry,
        )
        self._store_errors = Counter(
            "statestream_store_errors", "Calls that the state store failed", ("operation",), registry=registry
        )
        self._circuit_open = Gauge(
            "statestream_store_circuit_open", "Servers of the state store given up for now", registry=registry
        )
        # On the hot path labels() costs more than the counting itself.
        self._phase = self._phases.series
        self._messages_of = lru_cache(maxsize=None)(self._messages.labels)
        self._cache_of = lru_cache(maxsize=None)(self._cache.labels)
        self._queue_of = lru_cache(maxsize=None)(self._queue.labels)

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
        self._messages_of(model).inc()

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

    def sequence_started(self, model: str) -> None:
        """See `SequenceEvents`."""
        self._started.labels(model).inc()

    def sequence_ended(self, model: str) -> None:
        """See `SequenceEvents`."""
        self._ended.labels(model).inc()

    def sequence_forked(self, model: str) -> None:
        """See `LifecycleEvents`."""
        self._forked.labels(model).inc()

    def sequence_rewound(self, model: str) -> None:
        """See `LifecycleEvents`."""
        self._rewound.labels(model).inc()

    def sequence_imported(self, model: str) -> None:
        """See `LifecycleEvents`."""
        self._imported.labels(model).inc()

    def sequence_resumed(self, model: str) -> None:
        """See `SequenceEvents`."""
        self._resumed.labels(model).inc()

    def loss_detected(self, model: str, *, healed: bool) -> None:
        """See `SequenceEvents`."""
        self._losses.labels(model, "true" if healed else "false").inc()

    def watch_uncommitted(self, steps: Callable[[], int]) -> None:
        """Asks `steps` whenever the metrics are read."""
        self._uncommitted.set_function(steps)

    def step_replayed(self, model: str) -> None:
        """See `SequenceEvents`."""
        self._replayed.labels(model).inc()

    def step_conflicted(self, model: str) -> None:
        """See `SequenceEvents`."""
        self._conflicts.labels(model).inc()

    def step_refused(self, model: str, reason: str) -> None:
        """See `SequenceEvents`."""
        self._refused.labels(model, reason).inc()

    def step_timed(self, model: str, phase: str, seconds: float) -> None:
        """See `SequenceEvents`."""
        self._phase(model, phase).observe(seconds)

    def cache_looked_up(self, model: str, *, hit: bool) -> None:
        """See `SequenceEvents`."""
        self._cache_of(model, "true" if hit else "false").inc()

    def store_failed(self, operation: str) -> None:
        """The store did not do `operation`, "load" or "commit"."""
        self._store_errors.labels(operation).inc()

    def circuit_opened(self) -> None:
        """See `StoreEvents`."""
        self._circuit_open.inc()

    def circuit_closed(self) -> None:
        """See `StoreEvents`."""
        self._circuit_open.dec()

    def model_served(self, model_id: ModelId, state_bytes: int) -> None:
        """A model version was loaded."""
        self._model_info.labels(*model_id).set(1)
        self._state_bytes.labels(model_id.name).set(state_bytes)
