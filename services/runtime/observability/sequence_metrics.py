"""What happens to sequences, counted: steps and their times, conflicts, losses, and what is not committed yet."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge

from services.runtime.observability.fast import FastCounter, FastHistogram

if TYPE_CHECKING:
    from collections.abc import Callable

SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
"""Buckets for latencies: a step takes from 0.1 ms to seconds."""


class SequenceMetrics:
    """The events of the room of sequences."""

    def __init__(self, registry: CollectorRegistry) -> None:
        model = ("model",)
        self._phases = FastHistogram(
            "statestream_step_seconds",
            "Time of a step by phase: queue, load, run, commit",
            ("model", "phase"),
            SECONDS,
            registry,
        )
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
            "statestream_uncommitted_steps",
            "Steps answered and not committed yet",
            multiprocess_mode="livesum",
            registry=registry,
        )
        self._conflicts = Counter(
            "statestream_step_conflicts", "Commits that found the sequence moved by others", model, registry=registry
        )
        self._refused = Counter(
            "statestream_steps_refused", "Steps that could not be taken", ("model", "reason"), registry=registry
        )
        self._cache = FastCounter(
            "statestream_cache_lookups", "Steps continued from memory, or not", ("model", "hit"), registry
        )
        self._store_errors = Counter(
            "statestream_store_errors", "Calls that the state store failed", ("operation",), registry=registry
        )
        self._phase = self._phases.series

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
        self._cache.tally(model, "true" if hit else "false").inc()

    def store_failed(self, operation: str) -> None:
        """The store did not do `operation`, "load" or "commit"."""
        self._store_errors.labels(operation).inc()
