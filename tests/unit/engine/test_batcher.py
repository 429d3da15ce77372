"""The batcher: many callers, one run, nobody harmed by another."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from services.runtime.core.errors import CapacityExceeded, DeadlineExpired, Draining, InvalidInput, ModelFailure
from services.runtime.engine.batcher import Batcher
from services.runtime.engine.scheduler import BatchLimits
from tests.kit.clock import ManualClock
from tests.kit.executors import HeldExecutor, InlineExecutor
from tests.kit.toy import NoEvents, ToyModel

if TYPE_CHECKING:
    from services.runtime.engine.collate import Result
    from services.runtime.engine.health import StateHealth

STATE = (np.zeros((1, 2), dtype=np.float32),)


def chunk(*values: float) -> tuple[np.ndarray[tuple[int, ...], np.dtype[np.float32]], ...]:
    return (np.array(values, dtype=np.float32),)


def total(result: Result) -> float:
    return float(result.outputs[1][0])


async def turns(count: int = 5) -> None:
    """Lets everything that is ready happen."""
    for _ in range(count):
        await asyncio.sleep(0)


class Bench:
    """A batcher over the toy model with a clock and an executor in the test's hands."""

    def __init__(self, limits: BatchLimits | None = None, *, held: bool = True) -> None:
        self.model, self.clock = ToyModel(), ManualClock()
        self.executor = HeldExecutor()
        executor = self.executor if held else InlineExecutor()
        self.batcher = Batcher(self.model, limits or BatchLimits(), self.clock, NoEvents(), executor)

    def ask(self, *values: float, deadline: float | None = None) -> asyncio.Task[Result]:
        return asyncio.create_task(self.batcher.step(chunk(*values), STATE, deadline=deadline))


async def test_a_cancelled_caller_in_the_middle_of_a_batch_strands_nobody() -> None:
    """Three steps in one run, the middle one cancelled while it runs: the other two get their own answers."""
    bench = Bench()
    first, middle, last = bench.ask(1), bench.ask(2), bench.ask(3)
    await turns()
    assert bench.executor.held == 1
    middle.cancel()
    await turns()
    bench.executor.release()
    assert total(await first) == 1
    assert total(await last) == 3
    assert bench.model.batch_sizes == [3]
    with pytest.raises(asyncio.CancelledError):
        await middle


async def test_a_caller_cancelled_while_waiting_is_not_run() -> None:
    """Work whose client has gone before the run is not done, and its mates run without it."""
    bench = Bench()
    running = bench.ask(1)
    await turns()
    gone, stays = bench.ask(2), bench.ask(3)
    await turns()
    gone.cancel()
    await turns()
    bench.executor.release()
    await turns()
    bench.executor.release()
    assert total(await running) == 1
    assert total(await stays) == 3
    assert bench.model.batch_sizes == [1, 1]


async def test_steps_of_one_turn_share_a_run_without_waiting() -> None:
    """An idle model starts at the end of the turn: no timer, one run."""
    bench = Bench(held=False)
    results = await asyncio.gather(*(bench.ask(n, n) for n in range(5)))
    assert [total(result) for result in results] == [0, 2, 4, 6, 8]
    assert bench.model.batch_sizes == [5]


async def test_rows_of_different_length_get_their_own_timesteps() -> None:
    """Padding is cut off and never reaches a state."""
    bench = Bench(BatchLimits(padding_max=3), held=False)
    short, long = await asyncio.gather(bench.ask(1), bench.ask(1, 2, 3, 4))
    assert short.outputs[0].tolist() == [1]
    assert long.outputs[0].tolist() == [1, 3, 6, 10]
    assert [result.state[0][0, 1] for result in (short, long)] == [1, 4]


async def test_a_failing_row_fails_alone() -> None:
    """When a run fails its rows run again one by one; only the culprit is told of a failure."""
    bench = Bench(held=False)
    good, bad, other = bench.ask(1), bench.ask(666), bench.ask(3)
    assert total(await good) == 1
    assert total(await other) == 3
    with pytest.raises(ModelFailure):
        await bad


@pytest.mark.parametrize("held", [False, True])
async def test_what_no_run_can_be_made_of_fails_alone(*, held: bool) -> None:
    """Arrays of the wrong shape are a mistake of a task; it strands neither its mates nor those that come after."""
    bench = Bench(held=held)
    good, after = bench.ask(1), None
    bad = asyncio.create_task(bench.batcher.step((np.zeros((1, 7), dtype=np.float32),), STATE))
    for _ in range(3):
        await turns()
        if bench.executor.held:
            bench.executor.release()
    assert total(await good) == 1
    with pytest.raises(ModelFailure):
        await bad
    after = bench.ask(2)
    await turns()
    if held:
        bench.executor.release()
    assert total(await after) == 2


async def test_a_graph_that_gives_something_else_fails_its_run_alone() -> None:
    """Results that are not as the manifest says reach nobody, and the next run is made."""
    bench = Bench(held=False)
    run = bench.model.run
    bench.model.run = lambda outputs, feeds, *, lone=False: run(outputs, feeds)[:1]
    with pytest.raises(ModelFailure):
        await bench.ask(1)
    bench.model.run = run
    assert total(await bench.ask(2)) == 2


async def test_a_state_that_is_not_finite_is_refused_for_its_row_alone() -> None:
    """NaN that comes out of a run is a failure of that row and never becomes a state."""
    bench = Bench(held=False)
    good, bad = bench.ask(1), bench.ask(999)
    assert total(await good) == 1
    with pytest.raises(ModelFailure, match="finite"):
        await bad


async def test_a_row_that_holds_no_number_is_refused_before_it_is_run() -> None:
    """NaN among the features is named, and its mates are run without it."""
    bench = Bench(held=False)
    good, bad, other = bench.ask(1), bench.ask(2, float("nan")), bench.ask(3)
    assert total(await good) == 1
    assert total(await other) == 3
    with pytest.raises(InvalidInput, match="x: holds NaN") as refused:
        await bad
    assert refused.value.field == "x"
    assert bench.model.batch_sizes == [2]
    with pytest.raises(InvalidInput):
        await bench.ask(float("inf"))


async def test_small_runs_are_made_one_after_the_other_and_large_ones_overlap() -> None:
    """What comes during a small run joins the next, even where a thread is idle; a large run leaves room beside it."""
    limits = BatchLimits(lone_cells_max=2, padding_max=0)
    bench = Bench(limits)
    bench.batcher = Batcher(bench.model, limits, bench.clock, NoEvents(), bench.executor, threads=2)
    small = [bench.ask(1)]
    await turns()
    small += [bench.ask(2), bench.ask(3)]
    await turns()
    assert bench.executor.held == 1
    bench.executor.release()
    await turns()
    assert bench.executor.held == 1
    large = [bench.ask(1, 1, 1), bench.ask(*[2] * 9)]
    bench.executor.release()
    await turns()
    assert bench.executor.held == 2
    bench.executor.release()
    bench.executor.release()
    assert [total(result) for result in await asyncio.gather(*small, *large)] == [1, 2, 3, 3, 18]
    assert bench.model.batch_sizes == [1, 2, 1, 1]


async def test_a_full_queue_refuses_at_once() -> None:
    """Nothing waits without bound."""
    bench = Bench(BatchLimits(queue_max=2))
    running = bench.ask(0)
    await turns()
    waiting = [bench.ask(1), bench.ask(2)]
    await turns()
    with pytest.raises(CapacityExceeded) as caught:
        await bench.batcher.step(chunk(3), STATE)
    assert caught.value.retry_delay_s
    for _ in range(2):
        bench.executor.release()
        await turns()
    assert [total(result) for result in await asyncio.gather(running, *waiting)] == [0, 1, 2]


async def test_a_step_past_its_deadline_is_not_run() -> None:
    """A late request is told so, and its mates still run."""
    bench = Bench()
    running = bench.ask(0)
    await turns()
    late, good = bench.ask(1, deadline=bench.clock.monotonic() + 1), bench.ask(2)
    await turns()
    bench.clock.advance(2)
    bench.executor.release()
    await turns()
    bench.executor.release()
    await running
    with pytest.raises(DeadlineExpired):
        await late
    assert total(await good) == 2
    assert bench.model.batch_sizes == [1, 1]


async def test_batches_are_no_larger_than_configured() -> None:
    """What does not fit waits for the next run."""
    bench = Bench(BatchLimits(batch_size_max=2), held=False)
    results = await asyncio.gather(*(bench.ask(n) for n in range(5)))
    assert [total(result) for result in results] == [0, 1, 2, 3, 4]
    assert max(bench.model.batch_sizes) == 2


async def test_states_are_looked_at_now_and_then() -> None:
    """The first run of many tells how the states look: here (3, 1) for one sequence, whose cells count as saturated."""
    bench = Bench(held=False)
    seen: list[tuple[str, list[StateHealth]]] = []
    bench.batcher._events.states_sampled = lambda model, health: seen.append((model, list(health)))  # type: ignore[method-assign]
    for _ in range(3):
        await bench.ask(3)
    ((model, (look,)),) = seen
    assert (model, look.state, look.saturated) == ("toy", "s", 0.5)
    assert look.rms == pytest.approx(5**0.5)


async def test_a_short_run_is_not_handed_over() -> None:
    """Once runs of a size are known to be short the loop does them itself; when they get long they go to a thread."""
    bench = Bench(BatchLimits(inline_s_max=0.001))
    run, takes_s = bench.model.run, 0.0

    def timed(*arguments: Any, **options: Any) -> Any:
        bench.clock.advance(takes_s)
        return run(*arguments, **options)

    bench.model.run = timed  # type: ignore[method-assign]
    unknown = bench.ask(1)
    await turns()
    assert bench.executor.held == 1, "nothing is known yet of runs of this size"
    bench.executor.release()
    assert total(await unknown) == 1
    takes_s = 0.02
    assert total(await bench.ask(2)) == 2
    grown = bench.ask(3)
    await turns()
    assert bench.executor.held == 1, "the run before took twenty times the bound"
    bench.executor.release()
    assert total(await grown) == 3


async def test_a_full_batch_does_not_wait_for_its_delay() -> None:
    """The delay is for batch-mates: once no more fit, the run starts."""
    bench = Bench(BatchLimits(batch_size_max=2, delay_s_max=3600))
    first = bench.ask(1)
    await turns()
    assert bench.executor.held == 0
    second = bench.ask(2)
    await turns()
    bench.executor.release()
    assert [total(await first), total(await second)] == [1, 2]


async def test_a_closed_batcher_refuses() -> None:
    """After close no step is taken."""
    bench = Bench(held=False)
    bench.batcher.close()
    with pytest.raises(Draining):
        await bench.batcher.step(chunk(1), STATE)
