"""Counts what a peer may do cheaply and a server must do dearly."""

from __future__ import annotations

from typing import TYPE_CHECKING

from services.runtime.rpc.frames import ConnectionFault, ErrorCode

if TYPE_CHECKING:
    from collections.abc import Callable

PERIOD_S = 1.0
PER_MESSAGE = 4
"""Frames beside a message that nobody minds: an update of a window here and there, a ping to measure the line."""


class Guard:
    """Bounds, for one connection and a second, frames that carry no message and calls that are reset as they begin.

    `traffic` tells how many messages have gone over the connection so far.
    """

    __slots__ = ("_base", "_control", "_control_max", "_resets", "_resets_max", "_since", "_time", "_traffic")

    def __init__(
        self, time: Callable[[], float], traffic: Callable[[], int], *, control_max: int, resets_max: int
    ) -> None:
        self._time = time
        self._traffic = traffic
        self._control_max = control_max
        self._resets_max = resets_max
        self._since = time()
        self._base = 0
        self._control = 0
        self._resets = 0

    def control(self) -> None:
        """A frame without a message has come.

        Raises:
            ConnectionFault: too many.
        """
        self._control += 1
        if self._control > self._control_max:
            self._judge()

    def reset(self, opened_at: float) -> None:
        """The peer has reset a call that it opened then.

        Raises:
            ConnectionFault: it does little else.
        """
        if self._time() - opened_at < PERIOD_S:
            self._resets += 1
            if self._resets > self._resets_max:
                self._judge()

    def _judge(self) -> None:
        now, traffic = self._time(), self._traffic()
        if now - self._since >= PERIOD_S:
            self._since, self._base = now, traffic
            self._control = self._resets = 0
        elif self._resets > self._resets_max:
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "too many calls reset as soon as they were opened")
        elif self._control > self._control_max + PER_MESSAGE * (traffic - self._base):
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "too many frames that carry no message")
