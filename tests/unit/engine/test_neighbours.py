"""A model that is slow, and those who wait for it or live beside it."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from services.runtime.core.errors import DeadlineExpired
from services.runtime.engine.batcher import Batcher
from services.runtime.engine.scheduler import BatchLimits
from tests.kit.executors import HeldExecutor
from tests.kit.toy import NoEvents, ToyModel
from tests.kit.virtual_time import VirtualTimeLoop, run_virtual

STATE = (np.zeros((1, 2), dtype=np.float32),)


def batcher(loop: VirtualTimeLoop, executor: HeldExecutor, model: ToyModel | None = None) -> Batcher:
    return Batcher(model or ToyModel(), BatchLimits(), loop, NoEvents(), executor)


async def step(of: Batcher, value: float, deadline: float | None = None) -> float:
    result = await of.step((np.array([value], dtype=np.float32),), STATE, deadline=deadline)
    return float(result.outputs[1][0])


async def passed(loop: VirtualTimeLoop, seconds: float) -> None:
    """Returns so many virtual seconds later."""
    done = loop.create_future()
    loop.call_later(seconds, done.set_result, None)
    await done


def test_who_waits_behind_a_long_run_is_told_when_its_time_is_up() -> None:
    """Not only when the run is over; the step is never run, and one whose run has begun gets its answer."""
    loop, executor, model = VirtualTimeLoop(), HeldExecutor(), ToyModel()

    async def main() -> None:
        slow = batcher(loop, executor, model)
        running = asyncio.ensure_future(step(slow, 1, deadline=0.5))
        await passed(loop, 0.1)
        with pytest.raises(DeadlineExpired):
            await step(slow, 2, deadline=0.3)
        assert loop.time() == pytest.approx(0.3)
        await passed(loop, 10)
        executor.release()
        assert await running == 1

    run_virtual(main(), loop)
    assert model.batch_sizes == [1]


def test_a_slow_model_does_not_keep_its_neighbours_waiting() -> None:
    """While a run of one model takes for ever, and steps wait for it, another model answers at once."""
    loop, held = VirtualTimeLoop(), HeldExecutor()

    async def main() -> None:
        slow, quick_runs = batcher(loop, held), HeldExecutor()
        quick = batcher(loop, quick_runs)
        stuck = [asyncio.ensure_future(step(slow, value)) for value in range(100)]
        await passed(loop, 1)
        for value in range(3):
            answer = asyncio.ensure_future(step(quick, value))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            quick_runs.release()
            assert await answer == value
        assert loop.time() == 1
        assert not any(task.done() for task in stuck)
        for task in stuck:
            task.cancel()
        await asyncio.gather(*stuck, return_exceptions=True)

    run_virtual(main(), loop)
