"""The scheduler: pure decisions on who runs with whom."""

from __future__ import annotations

import pytest

from services.runtime.core.errors import CapacityExceeded
from services.runtime.engine.scheduler import PATIENCE_S, RETRY_DELAY_S, BatchLimits, Entry, Scheduler


def waiting(limits: BatchLimits, *timesteps: int) -> Scheduler[int]:
    """A scheduler in which steps of these lengths, numbered in order, were admitted at time 0."""
    scheduler: Scheduler[int] = Scheduler(limits)
    for number, length in enumerate(timesteps):
        scheduler.admit(Entry(number, length, None), 0.0)
    return scheduler


def taken(scheduler: Scheduler[int], now: float = 0.0) -> list[int]:
    return [entry.payload for entry in scheduler.next_batch(now).entries]


def test_order_of_arrival_up_to_the_batch_size() -> None:
    """The oldest run first."""
    scheduler = waiting(BatchLimits(batch_size_max=2), 1, 1, 1)
    assert taken(scheduler) == [0, 1]
    assert taken(scheduler) == [2]
    assert scheduler.due_at() is None


def test_a_long_chunk_does_not_hold_up_short_ones() -> None:
    """Rows that would be mostly padding wait for a run of their like; nobody is left behind for good."""
    scheduler = waiting(BatchLimits(padding_max=2), 1, 100, 1, 2)
    assert taken(scheduler) == [0, 2, 3]
    assert taken(scheduler) == [1]


def test_a_run_is_bounded_in_cells() -> None:
    """Long chunks share a run only up to the bound, so that no run takes for ever; one alone always runs."""
    scheduler = waiting(BatchLimits(cells_max=100), 40, 40, 40, 300)
    assert taken(scheduler) == [0, 1]
    assert taken(scheduler) == [2]
    assert taken(scheduler) == [3]


def test_the_oldest_always_runs() -> None:
    """A long chunk at the head goes first, however many short ones wait."""
    scheduler = waiting(BatchLimits(), 100, 1, 1)
    assert taken(scheduler)[0] == 0


def test_delay_bound() -> None:
    """With a delay a step waits for mates, but no longer than that, and not at all once the batch is full."""
    limits = BatchLimits(batch_size_max=2, delay_s_max=0.5)
    scheduler = waiting(limits, 1)
    assert scheduler.due_at() == 0.5
    scheduler.admit(Entry(1, 1, None), 0.1)
    assert scheduler.due_at() == 0.0


def test_expired_steps_are_taken_out() -> None:
    """A step whose deadline has passed is handed back as expired, once."""
    scheduler: Scheduler[int] = Scheduler(BatchLimits())
    scheduler.admit(Entry(0, 1, 1.0), 0.0)
    scheduler.admit(Entry(1, 1, 3.0), 0.0)
    batch = scheduler.next_batch(2.0)
    assert [entry.payload for entry in batch.expired] == [0]
    assert [entry.payload for entry in batch.entries] == [1]


def test_cancelled_steps_make_room() -> None:
    """A cancelled step is gone from the queue; cancelling it again does nothing."""
    scheduler: Scheduler[int] = Scheduler(BatchLimits(queue_max=1))
    entry = Entry(0, 1, None)
    scheduler.admit(entry, 0.0)
    with pytest.raises(CapacityExceeded):
        scheduler.admit(Entry(1, 1, None), 0.0)
    assert scheduler.cancel(entry)
    assert not scheduler.cancel(entry)
    scheduler.admit(Entry(2, 1, None), 0.0)
    assert taken(scheduler) == [2]


def test_the_nearest_deadline_runs_first() -> None:
    """Where not all fit, the urgent pass the others; equals keep their order of arrival."""
    scheduler: Scheduler[int] = Scheduler(BatchLimits(batch_size_max=2))
    for number, deadline in enumerate((None, 0.9, None, 0.2, 0.9)):
        scheduler.admit(Entry(number, 1, deadline), 0.0)
    assert taken(scheduler) == [3, 1]
    assert taken(scheduler) == [4, 0]
    assert taken(scheduler) == [2]


def test_a_step_without_a_deadline_is_not_passed_for_ever() -> None:
    """However many urgent steps keep coming, one without a deadline runs before those that come a while later."""
    scheduler: Scheduler[int] = Scheduler(BatchLimits(batch_size_max=1))
    scheduler.admit(Entry(0, 1, None), 0.0)
    now, passed = 0.0, 0
    while True:
        passed += 1
        scheduler.admit(Entry(passed, 1, now + 0.01), now)
        if taken(scheduler, now) == [0]:
            break
        now += 0.01
    assert now == pytest.approx(PATIENCE_S, abs=0.02)


def test_a_deadline_far_away_gives_no_precedence_and_no_disadvantage() -> None:
    """Who sets an hour's deadline stands where one without a deadline would."""
    scheduler: Scheduler[int] = Scheduler(BatchLimits(batch_size_max=1))
    for number, deadline in enumerate((3600.0, None, 3600.0)):
        scheduler.admit(Entry(number, 1, deadline), 0.0)
    assert [taken(scheduler) for _ in range(3)] == [[0], [1], [2]]


def test_a_delay_counts_from_the_oldest_step_also_when_it_is_not_the_most_urgent() -> None:
    """A step in a hurry that comes later does not make the others wait anew."""
    scheduler: Scheduler[int] = Scheduler(BatchLimits(batch_size_max=8, delay_s_max=0.5))
    scheduler.admit(Entry(0, 1, None), 0.0)
    scheduler.admit(Entry(1, 1, 0.6), 0.1)
    assert taken(scheduler, 0.2) == [1, 0]
    scheduler.admit(Entry(2, 1, None), 1.0)
    scheduler.admit(Entry(3, 1, 1.9), 1.1)
    assert scheduler.due_at() == 1.5


@pytest.mark.parametrize(("run_s", "told"), [(0.0, RETRY_DELAY_S[0]), (0.5, 1.0), (60.0, RETRY_DELAY_S[1])])
def test_a_full_queue_tells_when_it_will_have_emptied(run_s: float, told: float) -> None:
    """The delay before a retry is the time of the runs that stand before it, within bounds."""
    scheduler = waiting(BatchLimits(batch_size_max=2, queue_max=4), 1, 1, 1, 1)
    scheduler.run_s = run_s
    with pytest.raises(CapacityExceeded) as refused:
        scheduler.admit(Entry(4, 1, None), 0.0)
    assert refused.value.retry_delay_s == told
