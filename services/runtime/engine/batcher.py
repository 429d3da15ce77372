"""Runs the steps of all live sequences of one model together: the asynchronous shell around `Scheduler`.

Continuous: while a run is in progress, whoever becomes ready waits for the next one; an idle model starts at the
end of the current turn of the event loop, so that steps of the same turn share a run and nobody waits for a timer.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, NamedTuple, Protocol

from services.runtime.core.errors import DeadlineExpired, Draining, InvalidInput, ModelFailure, StatestreamError
from services.runtime.engine.collate import Array, Result, Row, finite_rows, output_names, stack, unsound_rows, unstack
from services.runtime.engine.health import StateHealth, state_health
from services.runtime.engine.scheduler import Batch, BatchLimits, Entry, Scheduler
from services.runtime.engine.statistics import RunStatistics

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from concurrent.futures import Executor, Future

    from models.common.manifest import Manifest
    from services.runtime.core.clock import Clock

SMOOTHING = 0.1
"""Weight of the latest run in how long the next one of its size is expected to take."""

HEALTH_EVERY = 256
"""Runs between two looks at the states; a look costs about as much as stacking them."""

_TOO_LATE = "the deadline passed before the step was run"

Payload = tuple[Row, "asyncio.Future[Result]"]


class Model(Protocol):
    """What computes: an ONNX session in production, arithmetic in tests. Called in worker threads."""

    @property
    def manifest(self) -> Manifest:
        """Description of the graph."""
        ...

    def run(self, outputs: Sequence[str], feeds: Mapping[str, Array]) -> list[Array]:
        """The named outputs for the given inputs, as a new array each."""
        ...


class BatchEvents(Protocol):
    """What a batcher tells of itself; all calls come from the event loop."""

    def batch_ran(self, model: str, size: int, queue_s: Sequence[float], run_s: float) -> None:
        """A run of `size` steps took `run_s`, after each step had waited `queue_s`."""
        ...

    def states_sampled(self, model: str, health: Sequence[StateHealth]) -> None:
        """The states of one run in every HEALTH_EVERY were looked at."""
        ...

    def queue_length(self, model: str, length: int) -> None:
        """So many steps wait now."""
        ...


_Answer = Result | ModelFailure | InvalidInput


class _Outcome(NamedTuple):
    """What a run gives: a result or failure a row, now and then a look at the states, and how long it took."""

    results: list[_Answer]
    health: list[StateHealth]
    run_s: float


class Batcher:
    """Merges concurrent `step` calls into runs of a model.

    A caller that is cancelled leaves the queue, or its result is dropped; its batch-mates notice nothing. When a run
    fails, its steps are run again one by one, so that only the culprit fails. At most `threads` runs are in the
    executor at a time; a run that is expected to take less than `limits.inline_s_max` is not handed over at all, since
    the hand-over would cost more than it spares the event loop.
    """

    def __init__(
        self,
        model: Model,
        limits: BatchLimits,
        clock: Clock,
        events: BatchEvents,
        executor: Executor,
        *,
        threads: int = 1,
    ) -> None:
        self.statistics = RunStatistics()
        self._model = model
        self._manifest = model.manifest
        self._names = output_names(model.manifest)
        self._scheduler: Scheduler[Payload] = Scheduler(limits)
        self._clock = clock
        self._events = events
        self._threads = self._idle_threads = threads
        self._executor = executor
        self._wake_up: asyncio.Handle | None = None
        self._limits = limits
        self._expected_s: dict[int, float] = {}  # by size of the run: some twenty of them
        self._delayed = False
        self._runs = 0
        self._closed = False

    @property
    def runs(self) -> int:
        """Runs begun so far: who sees the same number twice knows that nobody has used the model in between."""
        return self._runs

    @property
    def busy(self) -> bool:
        """True while a step waits or runs."""
        return len(self._scheduler) > 0 or self._idle_threads < self._threads

    async def step(
        self, inputs: tuple[Array, ...], state: tuple[Array, ...], *, deadline: float | None = None
    ) -> Result:
        """One step of one sequence; see `Row` and `Result` for the shapes. `deadline` is a monotonic time.

        Raises:
            CapacityExceeded: too many steps wait.
            DeadlineExpired: the deadline passed before the run began.
            InvalidInput: an input, which it names as the graph does, holds NaN or infinity.
            ModelFailure: the run failed, or gave a state that is not finite.
            Draining: the batcher was closed.
        """
        if self._closed:
            raise Draining("the model is being unloaded")
        loop = asyncio.get_running_loop()
        row = Row(inputs, state)
        future: asyncio.Future[Result] = loop.create_future()
        entry: Entry[Payload] = Entry((row, future), row.timesteps, deadline)
        now = self._clock.monotonic()
        self._scheduler.admit(entry, now)
        self._wake(loop)
        # A run that takes long must not keep from a step that waits for the next one that its time is up.
        alarm = None if deadline is None else loop.call_later(deadline - now, self._expire, entry)
        try:
            return await future
        except asyncio.CancelledError:
            self._scheduler.cancel(entry)
            raise
        finally:
            if alarm is not None:
                alarm.cancel()

    def close(self) -> None:
        """Refuses new steps and ends the worker threads once runs in progress are done."""
        self._closed = True
        self._executor.shutdown(wait=False)

    def _expire(self, entry: Entry[Payload]) -> None:
        if self._scheduler.cancel(entry):
            self._too_late(entry)

    def _too_late(self, entry: Entry[Payload]) -> None:
        self.statistics.failed.add(1, self._clock.monotonic() - entry.admitted)
        _fail(entry, DeadlineExpired(_TOO_LATE))

    def _wake(self, loop: asyncio.AbstractEventLoop) -> None:
        if not self._idle_threads:
            return
        if self._wake_up is not None:
            if not (self._delayed and self._scheduler.full):
                return
            self._wake_up.cancel()  # it would wait for batch-mates that no longer fit
        self._delayed = False
        self._wake_up = loop.call_soon(self._launch, loop)

    def _launch(self, loop: asyncio.AbstractEventLoop) -> None:
        self._wake_up = None
        due, now = self._scheduler.due_at(), self._clock.monotonic()
        if due is None:
            return
        if due > now:
            self._delayed = True
            self._wake_up = loop.call_later(due - now, self._launch, loop)
            return
        batch = self._scheduler.next_batch(now)
        for entry in batch.expired:
            self._too_late(entry)
        if batch.entries:
            self._start(loop, batch, now)
        if len(self._scheduler):
            self._wake(loop)  # in the next turn, so that other work of the loop has its own

    def _start(self, loop: asyncio.AbstractEventLoop, batch: Batch[Payload], now: float) -> None:
        rows = [entry.payload[0] for entry in batch.entries]
        look = self._runs % HEALTH_EVERY == 0
        self._runs += 1
        size = _size(rows)
        if self._expected_s.get(size, float("inf")) < self._limits.inline_s_max:
            self._settle(batch, now, size, self._run(rows, look=look))
            return
        self._idle_threads -= 1

        def hand_back(done: Future[_Outcome]) -> None:
            # The loop is gone when a server is torn down with a run in progress; then nobody waits for the result.
            if not loop.is_closed():
                loop.call_soon_threadsafe(self._finish, loop, batch, now, size, done)

        self._executor.submit(self._run, rows, look=look).add_done_callback(hand_back)

    def _run(self, rows: list[Row], *, look: bool = False) -> _Outcome:
        """Usually in a worker thread: all rows together, or one by one if that fails."""
        began = self._clock.monotonic()
        results: list[_Answer]
        try:
            results, health = self._run_together(rows, look=look)
        except Exception as error:  # noqa: BLE001 - whatever a runtime raises is one thing to a client
            health = []
            if len(rows) == 1:
                failure = ModelFailure("the run of the model failed")
                failure.__cause__ = error
                results = [failure]
            else:
                results = [result for row in rows for result in self._run([row]).results]
        return _Outcome(results, health, self._clock.monotonic() - began)

    def _run_together(self, rows: list[Row], *, look: bool) -> tuple[list[_Answer], list[StateHealth]]:
        feeds = stack(rows, self._manifest)
        if unsound := unsound_rows(feeds, self._manifest):
            return self._run_around(rows, unsound), []
        arrays = self._model.run(self._names, feeds)
        finite = finite_rows(arrays, self._manifest, len(rows))
        results: list[_Answer] = list(unstack(arrays, rows, self._manifest))
        if not finite.all():
            for n in range(len(rows)):
                if not finite[n]:
                    results[n] = ModelFailure("the step gave a state that is not finite")
        return results, state_health(arrays, self._manifest) if look else []

    def _run_around(self, rows: list[Row], unsound: dict[int, str]) -> list[_Answer]:
        """Refuses the rows that hold what no number is, and runs the others."""
        good = iter(
            self._run([row for n, row in enumerate(rows) if n not in unsound]).results
            if len(unsound) < len(rows)
            else ()
        )
        return [
            InvalidInput(unsound[n], "holds NaN or infinity") if n in unsound else next(good) for n in range(len(rows))
        ]

    def _finish(
        self,
        loop: asyncio.AbstractEventLoop,
        batch: Batch[Payload],
        started: float,
        size: int,
        done: Future[_Outcome],
    ) -> None:
        self._idle_threads += 1
        # Replies first: their clients send again while the next run is gathered.
        self._settle(batch, started, size, done.result())
        self._wake(loop)

    def _settle(self, batch: Batch[Payload], started: float, size: int, outcome: _Outcome) -> None:
        known = self._expected_s.get(size, outcome.run_s)
        self._expected_s[size] = known + SMOOTHING * (outcome.run_s - known)
        self._scheduler.run_s += SMOOTHING * (outcome.run_s - self._scheduler.run_s)
        for entry, result in zip(batch.entries, outcome.results, strict=True):
            future = entry.payload[1]
            if future.done():  # its caller has gone
                continue
            if isinstance(result, StatestreamError):
                future.set_exception(result)
            else:
                future.set_result(result)
        name = self._manifest.name
        queue_s = [started - entry.admitted for entry in batch.entries]
        self._events.batch_ran(name, len(batch.entries), queue_s, outcome.run_s)
        failures = sum(isinstance(result, StatestreamError) for result in outcome.results)
        self.statistics.ran(len(batch.entries), failures, sum(queue_s), outcome.run_s, self._clock.wall())
        self._events.queue_length(name, len(self._scheduler))
        if outcome.health:
            self._events.states_sampled(name, outcome.health)


def _size(rows: list[Row]) -> int:
    """Runs of about the same size share one expectation: the power of two above timesteps x sequences."""
    return (max(row.timesteps for row in rows) * len(rows)).bit_length()


def _fail(entry: Entry[Payload], error: Exception) -> None:
    future = entry.payload[1]
    if not future.done():
        future.set_exception(error)
