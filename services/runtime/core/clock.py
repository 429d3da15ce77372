"""Time as a value that is handed in, so that tests can own it."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """The two times a server needs."""

    def monotonic(self) -> float:
        """Seconds from an arbitrary start; never goes back. For deadlines and durations."""
        ...

    def wall(self) -> float:
        """Seconds since 1970, UTC. For expiry that outlives the process."""
        ...


class SystemClock:
    """The machine's clocks; the only place that reads them."""

    def monotonic(self) -> float:
        """See `Clock`."""
        return time.monotonic()

    def wall(self) -> float:
        """See `Clock`."""
        return time.time()
