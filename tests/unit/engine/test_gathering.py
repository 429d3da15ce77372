"""Who took part in the small run just before is waited for, a little."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from services.runtime.engine.batcher import LULL_S, Batcher
from services.runtime.engine.scheduler import BatchLimits
from tests.kit.executors import HeldExecutor
from tests.kit.toy import NoEvents, ToyModel
from tests.kit.virtual_time import VirtualTimeLoop, run_virtual

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

STATE = (np.zeros((1, 2), dtype=np.float32),)
RUN_S = 0.002
GATHER_S = 0.0005


class Bench:
    """A batcher on virtual time, whose runs take RUN_S."""

    def __init__(self, loop: VirtualTimeLoop) -> None:
        self.loop, self.model = loop, ToyModel()
        self._executor = HeldExecutor()
        limits = BatchLimits(gather_s_max=GATHER_S, lone_cells_max=8)
        self.batcher = Batcher(self.model, limits, loop, NoEvents(), self._executor)
        self.batcher._scheduler.run_s = RUN_S
        self.began: list[float] = []
        submit = self._executor.submit

        def timed(*work: Any, **options: Any) -> Any:
            self.began.append(round(loop.time(), 6))
            loop.call_later(RUN_S, self._executor.release)
            return submit(*work, **options)

        self._executor.submit = timed  # type: ignore[method-assign]

    def ask(self, timesteps: int = 1) -> asyncio.Task[Any]:
        inputs = (np.ones(timesteps, dtype=np.float32),)
        return asyncio.ensure_future(self.batcher.step(inputs, STATE))

    async def passed(self, seconds: float) -> None:
        done = self.loop.create_future()
        self.loop.call_later(seconds, done.set_result, None)
        await done


def on_virtual_time(test: Callable[[Bench], Awaitable[None]]) -> Bench:
    loop = VirtualTimeLoop()
    bench = Bench(loop)

    async def main() -> None:
        await test(bench)

    run_virtual(main(), loop)
    return bench


def test_those_who_come_again_a_moment_apart_share_a_run() -> None:
    """The second of two is waited for, and the run starts when it comes, not at the end of the wait."""

    async def two(bench: Bench) -> None:
        await asyncio.gather(bench.ask(), bench.ask())
        first = bench.ask()
        await bench.passed(GATHER_S / 2)
        await asyncio.gather(first, bench.ask())

    bench = on_virtual_time(two)
    assert bench.model.batch_sizes == [2, 2]
    assert bench.began == [0, pytest.approx(RUN_S + GATHER_S / 2)]


def test_who_does_not_come_again_is_not_waited_for_longer() -> None:
    """The wait is bounded, and after some runs nobody waits for who has left."""

    async def one_leaves(bench: Bench) -> None:
        await asyncio.gather(bench.ask(), bench.ask())
        for _ in range(20):
            await bench.ask()

    bench = on_virtual_time(one_leaves)
    assert bench.began[1] == pytest.approx(RUN_S + GATHER_S)
    assert bench.began[-1] - bench.began[-2] == pytest.approx(RUN_S)


def test_a_model_that_was_idle_waits_for_nobody() -> None:
    """After a lull the first to come is run at once."""

    async def lull(bench: Bench) -> None:
        await asyncio.gather(bench.ask(), bench.ask())
        await bench.passed(2 * LULL_S)
        await bench.ask()

    bench = on_virtual_time(lull)
    assert bench.began == [0, pytest.approx(RUN_S + 2 * LULL_S)]


def test_large_runs_wait_for_nobody() -> None:
    """They overlap, and what comes later finds room beside them."""

    async def large(bench: Bench) -> None:
        await asyncio.gather(bench.ask(8), bench.ask(8))
        await bench.ask(8)

    bench = on_virtual_time(large)
    assert bench.began == [0, pytest.approx(RUN_S)]
