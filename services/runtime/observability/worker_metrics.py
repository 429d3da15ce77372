"""What a supervisor counts of its workers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge

if TYPE_CHECKING:
    from collections.abc import Callable


class WorkerMetrics:
    """Told beside the merged metrics of the workers; a server of one process has none of them."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._wanted = Gauge("statestream_workers_wanted", "Worker processes that are to serve", registry=registry)
        self._live = Gauge("statestream_workers_live", "Worker processes that serve", registry=registry)
        self._restarts = Counter(
            "statestream_worker_restarts",
            "Workers replaced: after an exit, after a signal, or by a reload",
            ("cause",),
            registry=registry,
        )
        for cause in ("exit", "signal", "reload"):
            self._restarts.labels(cause)

    def watch(self, wanted: int, live: Callable[[], int]) -> None:
        """Asks `live` whenever the metrics are read."""
        self._wanted.set(wanted)
        self._live.set_function(live)

    def restarted(self, cause: str) -> None:
        """A worker got a successor."""
        self._restarts.labels(cause).inc()
