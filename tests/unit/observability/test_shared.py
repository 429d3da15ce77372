"""The metrics of several processes are told as those of one."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Gauge, generate_latest

from services.runtime.core.ids import ModelId
from services.runtime.observability.metrics import Metrics
from services.runtime.observability.shared import Copier, MergedMetrics, merge_modes

if TYPE_CHECKING:
    from pathlib import Path

    from prometheus_client.registry import Collector


def worker(folder: Path, name: str) -> tuple[Metrics, Copier]:
    """What one process counts, and what copies it."""
    metrics = Metrics(CollectorRegistry())
    return metrics, metrics.copied(folder, name)


def some_work(*places: Metrics, times: int = 1) -> None:
    """Of every kind of metric something, counted in each place."""
    for place in places:
        for _ in range(times):
            place.call_started("Classify")
            place.call_ended("Classify", "OK", 0.25)
            place.message_received("toy")
            place.batch_ran("toy", 3, [0.001, 0.5, 30.0], 0.002)
            place.step_refused("toy", "CAPACITY")
        place.queue_length("toy", 2)
        place.call_started("Streaming")
        place.model_served(ModelId("toy", "1", "d"), 128, 0.5)


def lines(collector: Collector) -> dict[str, float]:
    """What Prometheus is told, times of creation apart. Labels are in the order of their names."""
    told: dict[str, float] = {}
    for metric in collector.collect():
        for sample in metric.samples:
            if not sample.name.endswith("_created"):
                told[f"{sample.name}{sorted(sample.labels.items())}"] = sample.value
    return told


def test_two_workers_are_told_as_one_that_did_it_all(tmp_path: Path) -> None:
    """Counters, every bucket of histograms, sums of gauges; what is the same everywhere is not added up."""
    one, first = worker(tmp_path, "1")
    two, second = worker(tmp_path, "2")
    alone = Metrics(CollectorRegistry())
    some_work(one, alone)
    some_work(two, alone, times=3)
    alone.queue_length("toy", 4)
    for place, steps in ((one, 5), (two, 6), (alone, 11)):
        place.watch_uncommitted(lambda steps=steps: steps)
    first.copy()
    second.copy()
    merged = MergedMetrics(tmp_path)
    expected = lines(alone.registry)
    assert "statestream_batch_size_bucket[('le', '4.0'), ('model', 'toy')]" in expected
    assert lines(merged) == expected
    registry = CollectorRegistry()
    registry.register(merged)
    assert b"# TYPE statestream_step_seconds histogram" in generate_latest(registry)
    first.stop()
    second.stop()


def test_what_a_dead_worker_counted_stays_and_its_gauges_go(tmp_path: Path) -> None:
    """Whoever is gone, and however many: counters and histograms never go back, and no file of theirs is left."""
    merged = MergedMetrics(tmp_path)
    stays, copier = worker(tmp_path, "0")
    some_work(stays)
    copier.copy()
    alone = Metrics(CollectorRegistry())
    some_work(alone)
    for name in ("1", "2", "10"):
        dies, its_copier = worker(tmp_path, name)
        some_work(dies, alone)
        its_copier.stop()
        before = lines(merged)
        merged.worker_gone(name)
        after = lines(merged)
        for line, value in before.items():
            gauge = line.startswith(("statestream_queue", "statestream_calls_open"))
            assert after[line] == (value / 2 if gauge else value), line
        assert not [file for file in tmp_path.iterdir() if file.stem.endswith(f"_{name}")]
    expected = lines(alone.registry)
    counted = {line: value for line, value in expected.items() if "_total" in line or "_bucket" in line}
    assert counted.items() <= lines(merged).items()
    assert len(list(tmp_path.iterdir())) <= 6
    copier.stop()


def test_a_name_that_ends_like_another_is_another(tmp_path: Path) -> None:
    """That worker 1 is gone says nothing of worker 11."""
    one, first = worker(tmp_path, "1")
    eleven, second = worker(tmp_path, "11")
    some_work(one, eleven)
    first.stop()
    second.stop()
    merged = MergedMetrics(tmp_path)
    merged.worker_gone("1")
    assert lines(merged)["statestream_queue_length[('model', 'toy')]"] == 2
    assert lines(merged)["statestream_stream_messages_total[('model', 'toy')]"] == 2


def test_a_worker_that_is_gone_before_it_copied_is_no_trouble(tmp_path: Path) -> None:
    """Killed while it started, it left nothing, or a file that nobody reads yet."""
    (tmp_path / "counter_3").touch()
    merged = MergedMetrics(tmp_path)
    merged.worker_gone("3")
    merged.worker_gone("4")
    assert lines(merged) == {}
    assert not list(tmp_path.iterdir())


def test_every_gauge_says_how_it_is_merged() -> None:
    """By a mode for live processes: the default would tell a series for each of them, dead ones included."""
    metrics = Metrics(CollectorRegistry())
    modes = merge_modes(metrics)
    gauges = {name for name, value in vars(metrics).items() if isinstance(value, Gauge)}
    assert len(modes) == len(gauges) > 5
    assert {name for name, mode in modes.items() if not mode.startswith("live")} == set()
    assert "liveall" not in modes.values()


def test_copies_go_on_after_one_that_failed(tmp_path: Path) -> None:
    """A gauge that cannot be asked at one moment does not end the copies of all the others."""
    registry, again = CollectorRegistry(), threading.Event()
    asked: list[int] = []

    def moody() -> float:
        asked.append(1)
        if len(asked) == 2:
            raise RuntimeError("changed size during iteration")
        if len(asked) > 2:
            again.set()
        return 1.0

    Gauge("moody_size", "x", registry=registry).set_function(moody)
    copier = Copier(registry, {}, tmp_path, "1", every_s=0.001)
    assert again.wait(30)
    copier.stop()
    assert lines(MergedMetrics(tmp_path)) == {"moody_size[]": 1.0}
