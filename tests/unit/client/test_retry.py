from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from statestream import RetryPolicy, errors
from statestream._retry import is_retryable, with_retries

from tests.kit.client_time import FakeTime


class Attempts:
    """Fails with the given errors, one after the other, then succeeds; each attempt takes `seconds`."""

    def __init__(self, time: FakeTime, *failures: errors.StatestreamError, seconds: float = 0.0) -> None:
        self.left: list[float] = []
        self._failures = list(failures)
        self._time = time
        self._seconds = seconds

    async def __call__(self, left_s: float) -> str:
        """One attempt."""
        self.left.append(left_s)
        self._time.now += self._seconds
        if self._failures:
            raise self._failures.pop(0)
        return "done"


LOST = errors.Unavailable("lost")


async def test_a_success_waits_for_nothing(time: FakeTime) -> None:
    """Where nothing fails there is one attempt and no wait."""
    attempts = Attempts(time)
    assert await with_retries(attempts, timeout_s=5, policy=RetryPolicy(), timing=time.timing) == "done"
    assert (attempts.left, time.slept) == ([5.0], [])


async def test_waits_grow_to_their_bound() -> None:
    """The bound of the wait doubles with each attempt, up to its own bound; the wait is drawn from it."""
    time = FakeTime(unit=0.5)
    policy = RetryPolicy(attempts_max=6, delay_s=0.1, delay_s_max=0.5)
    await with_retries(Attempts(time, *[LOST] * 5), timeout_s=60, policy=policy, timing=time.timing)
    assert time.slept == pytest.approx([0.05, 0.1, 0.2, 0.25, 0.25])


async def test_attempts_are_bounded(time: FakeTime) -> None:
    """After the last attempt its error is raised; no further one is made."""
    attempts = Attempts(time, *[LOST] * 9)
    with pytest.raises(errors.Unavailable, match="lost"):
        await with_retries(attempts, timeout_s=60, policy=RetryPolicy(attempts_max=3), timing=time.timing)
    assert len(attempts.left) == 3
    assert len(time.slept) == 2


async def test_time_bounds_attempts_and_waits_together(time: FakeTime) -> None:
    """An attempt is told what is left; a wait that would use it up is not begun, and the cause is raised."""
    attempts = Attempts(time, *[LOST] * 9, seconds=1.0)
    policy = RetryPolicy(attempts_max=9, delay_s=1.0, delay_s_max=1.0)
    with pytest.raises(errors.Unavailable):
        await with_retries(attempts, timeout_s=4, policy=policy, timing=time.timing)
    assert attempts.left == pytest.approx([4.0, 2.5, 1.0])
    assert time.now - 100.0 <= 4.0


async def test_no_time_is_no_attempt(time: FakeTime) -> None:
    """A call without time left says so, and sends nothing."""
    attempts = Attempts(time)
    with pytest.raises(errors.DeadlineExceeded):
        await with_retries(attempts, timeout_s=0, policy=RetryPolicy(), timing=time.timing)
    assert attempts.left == []


async def test_the_server_says_when_to_return(time: FakeTime) -> None:
    """A delay that the server asks for is waited in full, with the jitter on top."""
    full = errors.CapacityExceeded("full", retry_delay_s=2.0)
    policy = RetryPolicy(delay_s=0.1)
    await with_retries(Attempts(time, full), timeout_s=60, policy=policy, timing=time.timing)
    assert time.slept == pytest.approx([2.05])


async def test_a_delay_beyond_the_deadline_is_not_waited(time: FakeTime) -> None:
    """Who is told to return after the deadline learns it at once."""
    full = errors.CapacityExceeded("full", retry_delay_s=30.0)
    with pytest.raises(errors.CapacityExceeded):
        await with_retries(Attempts(time, full), timeout_s=10, policy=RetryPolicy(), timing=time.timing)
    assert time.slept == []


def leaves(root: type[errors.StatestreamError]) -> set[type[errors.StatestreamError]]:
    """A class and all below it."""
    return {root}.union(*(leaves(child) for child in root.__subclasses__()))


RETRIED = {*leaves(errors.Unavailable), errors.StepConflict}


@pytest.mark.parametrize("cls", sorted(leaves(errors.StatestreamError), key=str))
def test_nothing_else_is_retried(cls: type[errors.StatestreamError]) -> None:
    """Only what may succeed later, without harm, is made again; without a delay a full server is left alone."""
    assert is_retryable(cls("x")) == (cls in RETRIED)


async def test_what_must_not_be_retried_is_raised_at_once(time: FakeTime) -> None:
    """A refused request is sent once."""
    attempts = Attempts(time, errors.InvalidInput("no"))
    with pytest.raises(errors.InvalidInput):
        await with_retries(attempts, timeout_s=5, policy=RetryPolicy(), timing=time.timing)
    assert len(attempts.left) == 1


@given(
    attempts=st.integers(1, 10_000),
    unit=st.floats(0, 1, exclude_max=True),
    delay=st.floats(0, 10),
    extra=st.floats(0, 10),
    asked=st.floats(0, 100),
)
def test_a_wait_stays_in_its_bounds(attempts: int, unit: float, delay: float, extra: float, asked: float) -> None:
    """Whatever the policy, a wait is at least what the server asked for and at most that plus the policy's bound."""
    policy = RetryPolicy(delay_s=delay, delay_s_max=delay + extra)
    assert asked <= policy.wait_s(attempts, unit, asked) <= asked + policy.delay_s_max


@pytest.mark.parametrize("wrong", [{"attempts_max": 0}, {"delay_s": -1.0}, {"delay_s": 3.0, "delay_s_max": 2.0}])
def test_a_senseless_policy_is_refused(wrong: dict[str, float]) -> None:
    """A policy that cannot be followed is refused where it is made."""
    with pytest.raises(ValueError, match="retry policy"):
        RetryPolicy(**wrong)  # pyright: ignore[reportArgumentType]
