"""Time for the client under test: waiting takes none, and is written down."""

from __future__ import annotations

from statestream import Timing


class FakeTime:
    """A clock that only `sleep` moves; random numbers are the same `unit` each time.

    Attributes:
        now: seconds.
        slept: every wait that was asked for, in seconds.
    """

    def __init__(self, unit: float = 0.5) -> None:
        self.now = 100.0
        self.slept: list[float] = []
        self._unit = unit

    @property
    def timing(self) -> Timing:
        """To hand to a client."""
        return Timing(clock=lambda: self.now, sleep=self.sleep, random_unit=lambda: self._unit)

    async def sleep(self, seconds: float) -> None:
        """Passes the time at once."""
        self.slept.append(seconds)
        self.now += seconds
