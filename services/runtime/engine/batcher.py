"""Runs the steps of all live sequences of one model together: the asynchronous shell around `Scheduler`.

Continuous: while a run is in progress, whoever becomes ready waits for the next one; an idle model starts at the
end of the current turn of the event loop, so that steps of the same turn share a run and nobody waits for a timer.
"""

from __future__ import annotations

import asyncio
import functools
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeVar

import numpy as np

from services.runtime.core.errors import DeadlineExpired, Draining, InvalidInput, ModelFailure
from services.runtime.engine.collate import Array, Result, Row, finite_rows, output_names, stack, unsound_rows, unstack
from services.runtime.engine.health import StateHealth, state_health
from services.runtime.engine.scheduler import Batch, BatchLimits, Entry, Scheduler
from services.runtime.engine.statistics import RunStatistics

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from concurrent.futures import Executor, Future

    from models.common.manifest import Manifest
    from services.runtime.core.clock import Clock

SMOOTHING = 0.1
"""Weight of the latest run in how long the next one of its size is expected to take."""

LULL_S = 0.01
"""After so long without a run nobody is expected to come again at once."""

HEALTH_EVERY = 256
"""Runs between two looks at the states; a look costs about as much as stacking them."""

_TOO_LATE = "the deadline passed before the step was run"

T = TypeVar("T")

Payload = tuple[Row, "asyncio.Future[Result]"]


class Model(Protocol):
    """What computes: an ONNX session in production, arithmetic in tests. Called in worker threads."""

    @property
    def manifest(self) -> Manifest:
        """Description of the graph."""
        ...

    def run(self, outputs: Sequence[str], feeds: Mapping[str, Array], *, lone: bool = False) -> list[Array]:
        """The named outputs for the given inputs, as a new array each; `lone`: no other run is made meanwhile."""
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


_Answer = Result | ModelFailure


class _Job(NamedTuple):
    """A run of some steps that `started` at a monotonic time; `look`: at the states that come of it."""

    entries: list[Entry[Payload]]
    started: float
    cells: int
    look: bool = False

    @property
    def size(self) -> int:
        """Runs of about the same size share one expectation: the power of two above timesteps x sequences."""
        return self.cells.bit_length()


class _Ran(NamedTuple):
    """What a run gave: outputs and states of all rows, or why there are none, and how long it took."""

    arrays: list[Array]
    error: Exception | None
    run_s: float


class Batcher:
    """Merges concurrent `step` calls into runs of a model.

    A caller that is cancelled leaves the queue, or its result is dropped; its batch-mates notice nothing. When a run
    fails, its steps are run again one by one, so that only the culprit fails. At most `threads` runs are in the
    executor at a time; a run that is expected to take less than `limits.inline_s_max` is not handed over at all, since
    the hand-over would cost more than it spares the event loop. Small runs are made one after the other: what comes
    meanwhile makes a larger batch of the next, which does more than two that share the cores (docs/benchmarks.md).
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
        self._lone = False
        self._usual = 0.0
        self._ran_at = 0.0
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

    @property
    def _gathered(self) -> bool:
        """True if as many wait as lately took part in a lone run; those that overlap wait for nobody."""
        return not self._limits.gather_s_max or len(self._scheduler) >= self._usual

    def _wake(self, loop: asyncio.AbstractEventLoop) -> None:
        if not self._idle_threads or self._lone:
            return
        if self._wake_up is not None:
            if not (self._delayed and (self._scheduler.full or self._gathered)):
                return
            self._wake_up.cancel()  # it would wait for batch-mates that no longer fit, or are all here
        self._delayed = False
        self._wake_up = loop.call_soon(self._launch, loop)

    def _launch(self, loop: asyncio.AbstractEventLoop) -> None:
        self._wake_up = None
        due, now = self._scheduler.due_at(), self._clock.monotonic()
        if due is None or self._lone:
            return
        if not (self._gathered or now - self._ran_at > LULL_S):
            due += min(self._limits.gather_s_max, self._scheduler.run_s / 2)
        if due > now and not self._scheduler.full:
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
        entries = batch.entries
        cells = max([entry.timesteps for entry in entries]) * len(entries)
        lone = cells <= self._limits.lone_cells_max and self._idle_threads == self._threads
        job = _Job(entries, now, cells, look=self._runs % HEALTH_EVERY == 0)
        self._runs += 1
        try:
            feeds = self._sound_feeds(entries)
        except Exception as error:  # noqa: BLE001 - a task's mistake, which must strand nobody
            self._settle_here(job, _Ran([], error, 0.0))
            return
        if not entries:
            return
        if self._expected_s.get(job.size, float("inf")) < self._limits.inline_s_max:
            self._settle_here(job, self._run(feeds, lone=lone))
            return
        self._idle_threads -= 1
        self._lone = lone
        # A worker only computes. What it did to arrays before and after would hold the interpreter, for which it and
        # the loop would wait in turn.
        self._submit(loop, functools.partial(self._run, feeds, lone=lone), functools.partial(self._finish, loop, job))

    def _submit(
        self, loop: asyncio.AbstractEventLoop, work: Callable[[], T], then: Callable[[Future[T]], object]
    ) -> None:
        def hand_back(done: Future[T]) -> None:
            # The loop is gone when a server is torn down with a run in progress; then nobody waits for the result.
            if not loop.is_closed():
                loop.call_soon_threadsafe(then, done)

        self._executor.submit(work).add_done_callback(hand_back)

    def _sound_feeds(self, entries: list[Entry[Payload]]) -> dict[str, Array]:
        """The inputs of a run. Steps that hold what no number is are refused, and leave `entries`."""
        feeds = stack([entry.payload[0] for entry in entries], self._manifest)
        unsound = unsound_rows(feeds, self._manifest)
        if not unsound:
            return feeds
        for n, name in unsound.items():
            self.statistics.failed.add(1, self._clock.monotonic() - entries[n].admitted)
            _fail(entries[n], InvalidInput(name, "holds NaN or infinity"))
        entries[:] = [entry for n, entry in enumerate(entries) if n not in unsound]
        return stack([entry.payload[0] for entry in entries], self._manifest) if entries else {}

    def _run(self, feeds: dict[str, Array], *, lone: bool = False) -> _Ran:
        """Usually in a worker thread."""
        began = self._clock.monotonic()
        try:
            arrays, error = self._model.run(self._names, feeds, lone=lone), None
        except Exception as failure:  # noqa: BLE001 - whatever a runtime raises is one thing to a client
            arrays, error = [], failure
        return _Ran(arrays, error, self._clock.monotonic() - began)

    def _answers(self, job: _Job, ran: _Ran) -> list[_Answer]:
        """A result or failure a row; none where the rows of a run that failed have to be run one by one."""
        if ran.error is not None:
            return [] if len(job.entries) > 1 else [_broken(ran.error)]
        rows = [entry.payload[0] for entry in job.entries]
        try:
            answers: list[_Answer] = list(unstack(ran.arrays, rows, self._manifest))
            finite = finite_rows(ran.arrays, self._manifest, len(rows))
        except Exception as error:  # noqa: BLE001 - what the graph gave is not what its manifest says
            return [_broken(error) for _ in rows]
        if not finite.all():
            for n in np.flatnonzero(~finite).tolist():
                answers[n] = ModelFailure("the step gave a state that is not finite")
        if job.look:
            self._events.states_sampled(self._manifest.name, state_health(ran.arrays, self._manifest))
        return answers

    def _settle_here(self, job: _Job, ran: _Ran) -> None:
        """Settles a run that took no thread."""
        self._settle(job, ran, self._answers(job, ran) or self._one_by_one(job))

    def _one_by_one(self, job: _Job) -> list[_Answer]:
        return [self._run_alone(entry) for entry in job.entries]

    def _run_alone(self, entry: Entry[Payload]) -> _Answer:
        """What comes of a step after a run that failed; only the culprit fails again."""
        try:
            feeds = stack([entry.payload[0]], self._manifest)
        except Exception as error:  # noqa: BLE001 - as above
            return _broken(error)
        return self._answers(_Job([entry], 0.0, 0), self._run(feeds))[0]

    def _finish(self, loop: asyncio.AbstractEventLoop, job: _Job, done: Future[_Ran]) -> None:
        ran = done.result()
        answers = self._answers(job, ran)
        if answers:
            self._done(loop, job, ran, answers)
            return
        one_by_one = functools.partial(self._one_by_one, job)
        self._submit(loop, one_by_one, lambda each: self._done(loop, job, ran, each.result()))

    def _done(self, loop: asyncio.AbstractEventLoop, job: _Job, ran: _Ran, answers: list[_Answer]) -> None:
        self._idle_threads += 1
        self._lone = False
        # Replies first: their clients send again while the next run is gathered.
        self._settle(job, ran, answers)
        self._wake(loop)

    def _settle(self, job: _Job, ran: _Ran, answers: list[_Answer]) -> None:
        known = self._expected_s.get(job.size, ran.run_s)
        self._expected_s[job.size] = known + SMOOTHING * (ran.run_s - known)
        usual = len(job.entries) if job.cells <= self._limits.lone_cells_max else 0
        self._usual = max(usual, self._usual * (1 - SMOOTHING))
        self._ran_at = self._clock.monotonic()
        self._scheduler.run_s += SMOOTHING * (ran.run_s - self._scheduler.run_s)
        failures = 0
        for entry, answer in zip(job.entries, answers, strict=True):
            future = entry.payload[1]
            if isinstance(answer, ModelFailure):
                failures += 1
                _fail(entry, answer)
            elif not future.done():  # else its caller has gone
                future.set_result(answer)
        name, queue_s = self._manifest.name, [job.started - entry.admitted for entry in job.entries]
        self._events.batch_ran(name, len(job.entries), queue_s, ran.run_s)
        self.statistics.ran(len(job.entries), failures, sum(queue_s), ran.run_s, self._clock.wall())
        self._events.queue_length(name, len(self._scheduler))


def _broken(error: Exception) -> ModelFailure:
    failure = ModelFailure("the run of the model failed")
    failure.__cause__ = error
    return failure


def _fail(entry: Entry[Payload], error: Exception) -> None:
    future = entry.payload[1]
    if not future.done():
        future.set_exception(error)
