"""Calls to a server that has failed for a while fail at once, until it answers a probe."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final, Protocol

import structlog

from services.runtime.core.errors import StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable

_FAILURES_MAX: Final = 5
"""So many in a row, however quick they are, and the circuit opens."""

_PROBE_DELAY_S_MIN: Final = 0.1
_PROBE_DELAY_S_MAX: Final = 2.0

_log = structlog.get_logger(__name__)


class StoreEvents(Protocol):
    """Who counts what befalls the state store."""

    def circuit_opened(self) -> None:
        """A server is given up for now: calls to it fail at once."""
        ...

    def circuit_closed(self) -> None:
        """A server that had been given up is used again, or is no longer wanted."""
        ...


class Unheard:
    """Events that nobody counts."""

    def circuit_opened(self) -> None:
        """See `StoreEvents`."""

    def circuit_closed(self) -> None:
        """See `StoreEvents`."""


class Breaker:
    """Opens after five failures in a row, or after two when nothing has worked for longer than `timeout_s`.

    While it is open it calls `probe` again and again, one at a time and each after a longer pause, by the clock of the
    event loop; it closes with the first success, be it that of the probe. `node` is named in the log.
    """

    def __init__(
        self, node: str, *, timeout_s: float, events: StoreEvents, probe: Callable[[], asyncio.Future[Any]]
    ) -> None:
        self.is_open = False
        self._node = node
        self._timeout_s = timeout_s
        self._events = events
        self._probe = probe
        self._failures = 0
        self._failing_since = 0.0
        self._delay_s = _PROBE_DELAY_S_MIN
        self._next_probe: asyncio.TimerHandle | None = None

    def refusal(self) -> StoreUnavailable:
        """What a caller is told while it is open; with the time until the next probe."""
        wait_s = 0.0
        if self._next_probe is not None:
            wait_s = self._next_probe.when() - asyncio.get_running_loop().time()
        return StoreUnavailable("the state store does not answer", retry_delay_s=max(wait_s, _PROBE_DELAY_S_MIN))

    def succeeded(self) -> None:
        """The server has answered."""
        self._failures = 0
        if self.is_open:
            self._close()
            _log.info("state store answers again", node=self._node)

    def failed(self) -> None:
        """The server could not be reached, or did not answer in time."""
        if self.is_open:
            return
        now = asyncio.get_running_loop().time()
        if not self._failures:
            self._failing_since = now
        self._failures += 1
        lasts = self._failures > 1 and now - self._failing_since >= self._timeout_s
        if lasts or self._failures >= _FAILURES_MAX:
            self.is_open = True
            self._delay_s = _PROBE_DELAY_S_MIN
            self._probe_later()
            self._events.circuit_opened()
            _log.warning("state store given up for now", node=self._node, failures=self._failures)

    def close(self) -> None:
        """No probe follows."""
        if self.is_open:
            self._close()

    def _close(self) -> None:
        self.is_open = False
        if self._next_probe is not None:
            self._next_probe.cancel()
            self._next_probe = None
        self._events.circuit_closed()

    def _probe_later(self) -> None:
        self._next_probe = asyncio.get_running_loop().call_later(self._delay_s, self._probe_now)

    def _probe_now(self) -> None:
        self._next_probe = None
        self._probe().add_done_callback(self._probed)

    def _probed(self, answer: asyncio.Future[Any]) -> None:
        if not answer.cancelled():
            answer.exception()  # whatever it was: the link has told us by `succeeded` or `failed`
        if self.is_open:
            self._delay_s = min(2 * self._delay_s, _PROBE_DELAY_S_MAX)
            self._probe_later()
