"""What the runs of a version add up to."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from services.runtime.core.errors import DeadlineExpired, ModelFailure
from services.runtime.engine.statistics import RunStatistics
from tests.kit.clock import ManualClock
from tests.kit.toy import toy_served


def test_a_run_is_counted_once_and_its_rows_each() -> None:
    """Waits and runs add up over rows; failures take their share of them."""
    statistics = RunStatistics()
    statistics.ran(4, 1, 2.0, 0.5, 1_000.0)
    statistics.ran(2, 0, 1.0, 0.25, 1_001.0)
    assert (statistics.computed.count, statistics.computed.seconds) == (6, 2.5)
    assert (statistics.queued.count, statistics.queued.seconds) == (6, 3.0)
    assert (statistics.failed.count, statistics.failed.seconds) == (1, 1.0)
    assert (statistics.succeeded.count, statistics.succeeded.seconds) == (5, 4.5)
    assert {size: (total.count, total.seconds) for size, total in statistics.runs.items()} == {
        4: (1, 0.5),
        2: (1, 0.25),
    }
    assert statistics.last_at == 1_001.0


async def test_a_batcher_counts_what_it_runs() -> None:
    """Steps that share a run, one that fails, one that is too late."""
    clock = ManualClock()
    model = toy_served(clock)

    async def step(value: float, deadline: float | None = None) -> None:
        await model.batcher.step((np.array([value], np.float32),), model.initial_state, deadline=deadline)

    await asyncio.gather(step(1), step(2), step(3))
    with pytest.raises(ModelFailure):
        await step(666)
    with pytest.raises(DeadlineExpired):
        await step(1, deadline=clock.monotonic() - 1)
    statistics = model.batcher.statistics
    assert {size: total.count for size, total in statistics.runs.items()} == {3: 1, 1: 1}
    assert (statistics.succeeded.count, statistics.failed.count) == (3, 2)
    assert statistics.last_at == clock.wall()
