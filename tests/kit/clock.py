"""A clock that stands still until a test moves it."""

from __future__ import annotations


class ManualClock:
    """A `Clock` in the test's hand; both times move together."""

    def __init__(self, wall_s: float = 1_700_000_000.0) -> None:
        self._monotonic_s = 1_000.0
        self._wall_s = wall_s

    def monotonic(self) -> float:
        """Seconds from an arbitrary start."""
        return self._monotonic_s

    def wall(self) -> float:
        """Seconds since 1970."""
        return self._wall_s

    def advance(self, seconds: float) -> None:
        """Lets `seconds` pass."""
        assert seconds >= 0, "a monotonic clock never goes back"
        self._monotonic_s += seconds
        self._wall_s += seconds
