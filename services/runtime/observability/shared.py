"""Metrics of several worker processes told as those of one server.

The files are those of prometheus-client's mode for several processes, and so is what adds them up. But its values write
to a file at every count, which makes counting twice as dear as it is in one process, and leaves out gauges that are
asked and collectors of one's own. Here a worker counts as a server of one process does, and copies its whole registry
to its files once a second.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import structlog
from prometheus_client import Gauge
from prometheus_client.mmap_dict import MmapedDict, mmap_key
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from prometheus_client import CollectorRegistry, Metric

_log = structlog.get_logger(__name__)

COPY_EVERY_S = 1.0
"""A worker that is killed outright takes with it what it counted for so long."""

_GONE = "gone"
"""Stands for all workers that have ended, in the place of a worker's name."""


def merge_modes(holder: object) -> dict[str, str]:
    """How each gauge that is an attribute of `holder` is merged: `multiprocess_mode` by the name of the metric."""
    gauges = (value for value in vars(holder).values() if isinstance(value, Gauge))
    return {metric.name: vars(gauge)["_multiprocess_mode"] for gauge in gauges for metric in gauge.describe()}


class Copier:
    """Copies a registry to files of this worker, from a thread of its own. Made and stopped by one thread.

    Args:
        registry: what is copied; histograms in it have buckets that add up, as all of Prometheus' have.
        modes: how gauges are merged, by name; one that is not there is added up over the live workers.
        folder: where all workers copy to.
        worker: a name that no other process ever has in that folder; without "_".
        every_s: seconds between two copies.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        modes: dict[str, str],
        folder: Path,
        worker: str,
        *,
        every_s: float = COPY_EVERY_S,
    ) -> None:
        self._every_s = every_s
        self._registry = registry
        self._modes = modes
        self._folder = folder
        self._worker = worker
        self._files: dict[str, MmapedDict] = {}
        self._keys: dict[tuple[str, ...], str] = {}
        self._stopped = threading.Event()
        self.copy()
        self._thread = threading.Thread(target=self._run, name="metrics", daemon=True)
        self._thread.start()

    def copy(self) -> None:
        """Copies every value as it is now."""
        fresh: dict[Path, Path] = {}
        for metric in self._registry.collect():
            kind = metric.type
            if kind == "gauge":
                kind = f"gauge_{self._modes.get(metric.name, 'livesum')}"
            file = self._files.get(kind)
            if file is None:
                # Readers look for *.db: they shall not find a file that is still empty.
                path = self._folder / f"{kind}_{self._worker}"
                fresh[path] = path.with_suffix(".db")
                file = self._files[kind] = MmapedDict(str(path))
            self._write(file, metric)
        for path, final in fresh.items():
            path.rename(final)

    def _write(self, file: MmapedDict, metric: Metric) -> None:
        """Writes a metric as the files have it: each bucket of a histogram by itself, and no count."""
        histogram = metric.type == "histogram"
        below: dict[tuple[str, ...], float] = defaultdict(float)
        for name, labels, told, *_ in metric.samples:
            if name.endswith("_created") or (histogram and name.endswith("_count")):
                continue
            values = tuple(labels.values())
            # Spelling a key takes longer than all the rest.
            key = self._keys.get((name, *values))
            if key is None:
                key = mmap_key(metric.name, name, list(labels), list(values), metric.documentation)
                self._keys[name, *values] = key
            value = told
            if histogram and "le" in labels:
                series = tuple(label for name, label in labels.items() if name != "le")
                value, below[series] = told - below[series], told
            file.write_value(key, value, 0.0)

    def stop(self) -> None:
        """Copies for the last time and closes the files."""
        self._stopped.set()
        self._thread.join()
        self.copy()
        for file in self._files.values():
            file.close()

    def _run(self) -> None:
        while not self._stopped.wait(self._every_s):
            try:
                self.copy()
            except Exception:  # noqa: BLE001 - whatever a gauge that is asked may raise
                # As for a scrape that fails: the next one may do, and serving goes on in any case.
                _log.exception("metrics were not copied")


def _merged(files: Iterable[Path], *, accumulate: bool) -> list[Metric]:
    library: Any = MultiProcessCollector  # its types are unknown
    return list(library.merge([str(file) for file in files], accumulate=accumulate))


class MergedMetrics(Collector):
    """What all workers count, added up; what those counted that have ended stays in it.

    Safe to be used by several threads.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files = threading.Lock()

    def collect(self) -> Iterable[Metric]:
        """See `Collector`."""
        with self._files:
            return _merged(self._folder.glob("*.db"), accumulate=True)

    def describe(self) -> Iterable[Metric]:
        """Nothing is known before it is collected."""
        return ()

    def worker_gone(self, worker: str) -> None:
        """Adds what a worker counted to what others had that are gone, and removes its files and its gauges."""
        with self._files:
            for kind in ("counter", "histogram"):
                ended, total = (self._folder / f"{kind}_{name}.db" for name in (worker, _GONE))
                if ended.exists():
                    self._add(ended, total)
            for file in self._folder.glob(f"*_{worker}*"):
                if file.stem.rpartition("_")[2] == worker:
                    file.unlink()

    def _add(self, ended: Path, total: Path) -> None:
        files = [file for file in (ended, total) if file.exists()]
        merged = _merged(files, accumulate=False)
        book = MmapedDict(str(total))
        for metric in merged:
            for sample in metric.samples:
                labels = sample.labels
                key = mmap_key(metric.name, sample.name, list(labels), list(labels.values()), metric.documentation)
                book.write_value(key, sample.value, 0.0)
        book.close()
