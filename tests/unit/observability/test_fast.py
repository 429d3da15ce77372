"""The metrics of the hot path say what the library's own would say."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

from services.runtime.observability.fast import FastCounter, FastHistogram

BOUNDS = (0.1, 0.5, 1.0)


def lines(registry: CollectorRegistry) -> list[str]:
    """What Prometheus reads, creation times apart."""
    return [line for line in generate_latest(registry).decode().splitlines() if "_created" not in line]


@given(st.lists(st.one_of(st.floats(0, 2), st.sampled_from(BOUNDS)), max_size=20))
def test_it_counts_as_the_library_does(values: list[float]) -> None:
    """The same text for Prometheus, bounds included, creation times apart."""
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    fast = FastHistogram("wait_seconds", "How long", ("model",), BOUNDS, ours)
    library = Histogram("wait_seconds", "How long", ("model",), buckets=BOUNDS, registry=theirs)
    for value in values:
        fast.series("a").observe(value)
        library.labels("a").observe(value)

    assert lines(ours) == lines(theirs)


def test_a_counter_counts_as_the_library_does() -> None:
    """The same text for Prometheus, for several values of its labels and for none."""
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    fast = FastCounter("steps", "Steps taken", ("model", "hit"), ours)
    library = Counter("steps", "Steps taken", ("model", "hit"), registry=theirs)
    assert lines(ours) == lines(theirs)
    for hit in ("true", "false", "true"):
        fast.tally("a", hit).inc()
        library.labels("a", hit).inc()
    assert lines(ours) == lines(theirs)
