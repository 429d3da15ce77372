"""Metrics for the hot path: the library's own take about five times as long to count."""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING

from prometheus_client.metrics_core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from prometheus_client import CollectorRegistry


class Series:
    """One histogram under one set of label values. Observed by one thread, read by another."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Counts `value` into the first bucket whose upper bound is not below it."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value


class FastHistogram(Collector):
    """Series by label values, collected as any histogram of Prometheus; the values are few and known (bounded)."""

    def __init__(
        self,
        name: str,
        documentation: str,
        labels: Sequence[str],
        buckets: Sequence[float],
        registry: CollectorRegistry,
    ) -> None:
        self._name = name
        self._documentation = documentation
        self._labelnames = labels
        # As the library has them: "1.0" and not "1", whether one process tells its metrics or several.
        self._bounds = tuple(map(float, buckets))
        self._series: dict[tuple[str, ...], Series] = {}
        registry.register(self)

    def series(self, *values: str) -> Series:
        """The series of these label values."""
        found = self._series.get(values)
        if found is None:
            found = self._series[values] = Series(self._bounds)
        return found

    def describe(self) -> Iterator[HistogramMetricFamily]:
        """What `collect` gives, without samples; a registry asks it when the collector is registered."""
        yield HistogramMetricFamily(self._name, self._documentation, labels=self._labelnames)

    def collect(self) -> Iterator[HistogramMetricFamily]:
        """See `Collector`."""
        (family,) = self.describe()
        for values, series in list(self._series.items()):
            counts, buckets, below = list(series.counts), list[tuple[str, float]](), 0
            for bound, count in zip((*map(str, series.bounds), "+Inf"), counts, strict=True):
                below += count
                buckets.append((bound, below))
            family.add_metric(values, buckets, series.total)
        yield family


class Tally:
    """One counter under one set of label values. Counted by one thread, read by another."""

    __slots__ = ("count",)

    def __init__(self) -> None:
        self.count = 0

    def inc(self) -> None:
        """Counts one more."""
        self.count += 1


class FastCounter(Collector):
    """Tallies by label values, collected as any counter of Prometheus; the values are few and known (bounded)."""

    def __init__(self, name: str, documentation: str, labels: Sequence[str], registry: CollectorRegistry) -> None:
        self._name = name
        self._documentation = documentation
        self._labelnames = labels
        self._tallies: dict[tuple[str, ...], Tally] = {}
        registry.register(self)

    def tally(self, *values: str) -> Tally:
        """That of these label values."""
        found = self._tallies.get(values)
        if found is None:
            found = self._tallies[values] = Tally()
        return found

    def describe(self) -> Iterator[CounterMetricFamily]:
        """As that of `FastHistogram`."""
        yield CounterMetricFamily(self._name, self._documentation, labels=self._labelnames)

    def collect(self) -> Iterator[CounterMetricFamily]:
        """See `Collector`."""
        (family,) = self.describe()
        for values, tally in list(self._tallies.items()):
            family.add_metric(values, tally.count)
        yield family
