"""When a failed attempt is made again: pure but for a clock, a sleep and a random number, which are handed in."""

from __future__ import annotations

import asyncio
import random
import time
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from statestream.errors import CapacityExceeded, DeadlineExceeded, StatestreamError, StepConflict, Unavailable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

R = TypeVar("R")


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How often and how soon a call is made again; exponential back-off with full jitter.

    Attributes:
        attempts_max: attempts in all, the first one included; 1 never retries.
        delay_s: upper bound of the wait before the second attempt, in seconds; it doubles with every attempt.
        delay_s_max: bound on that bound, in seconds.

    The wait is drawn evenly from zero to its bound, so that clients which lost the same replica do not come back
    together. The time of the call, `timeout_s`, bounds all attempts and waits together.
    """

    attempts_max: int = 8
    delay_s: float = 0.05
    delay_s_max: float = 2.0

    def __post_init__(self) -> None:
        if self.attempts_max < 1 or self.delay_s < 0 or self.delay_s_max < self.delay_s:
            raise ValueError("a retry policy needs attempts_max >= 1 and 0 <= delay_s <= delay_s_max")

    def wait_s(self, attempts: int, random_unit: float, at_least_s: float = 0.0) -> float:
        """Seconds to wait after so many `attempts`, for a random number in [0, 1).

        A delay that the server asks for comes on top: whoever it turned away at once must not return at once.
        """
        bound = min(self.delay_s_max, self.delay_s * 2 ** min(attempts - 1, 62))
        return at_least_s + bound * random_unit


def is_retryable(error: StatestreamError) -> bool:
    """True where the same attempt may succeed later and cannot do harm.

    - Not available: steps are numbered and the other calls change nothing twice, so a repeat is safe.
    - Over a bound: only if the server said when to return. gRPC itself gives the same status to a message that is
      too large, which no wait makes smaller.
    - Step conflict: sending the numbered step again reads the sequence afresh. If the winner was this client's own
      earlier attempt its reply comes back, if it was somebody else the step is refused for good.
    """
    if isinstance(error, CapacityExceeded):
        return error.retry_delay_s is not None
    return isinstance(error, Unavailable | StepConflict)


class GiveUp(Exception):
    """Inside an attempt: the error that it carries is to be raised, whatever its class says of repeats."""

    def __init__(self, error: StatestreamError) -> None:
        super().__init__(error)
        self.error = error


def _new_name() -> str:
    return uuid.uuid4().hex


@dataclass(frozen=True, slots=True)
class Timing:
    """The outer world as far as waiting and chance go; tests put their own in.

    Attributes:
        clock: seconds, never going back.
        sleep: waits for so many seconds.
        random_unit: a number in [0, 1), for jitter.
        unique: a name that nobody else makes, for sequences and starts: 1 to 128 characters.
    """

    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    # Jitter is no secret.
    random_unit: Callable[[], float] = field(default_factory=lambda: random.Random().random)  # noqa: S311
    unique: Callable[[], str] = _new_name


async def with_retries(
    attempt: Callable[[float], Awaitable[R]],
    *,
    timeout_s: float,
    policy: RetryPolicy,
    timing: Timing,
    retryable: Callable[[StatestreamError], bool] = is_retryable,
) -> R:
    """The first result of `attempt`, which is told how many seconds are left to it.

    Raises:
        StatestreamError: the last attempt's, when it may not be repeated, or attempts or time are used up.
    """
    deadline = timing.clock() + timeout_s
    attempts = 0
    while True:
        left_s = deadline - timing.clock()
        if left_s <= 0:
            raise DeadlineExceeded(f"no answer within {timeout_s:g} s")
        try:
            return await attempt(left_s)
        except GiveUp as given_up:
            raise given_up.error from given_up.__cause__
        except StatestreamError as error:
            attempts += 1
            wait_s = policy.wait_s(attempts, timing.random_unit(), error.retry_delay_s or 0.0)
            if not retryable(error) or attempts >= policy.attempts_max:
                raise
            if timing.clock() + wait_s >= deadline:
                # What went wrong says more than that time is short.
                raise
        await timing.sleep(wait_s)
