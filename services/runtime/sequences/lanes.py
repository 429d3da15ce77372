"""One at a time: the requests for one sequence inside this process."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from services.runtime.core.errors import CapacityExceeded

if TYPE_CHECKING:
    from types import TracebackType

    from services.runtime.core.ids import SequenceName


class Lanes:
    """A lock for each sequence that is in use, for which at most `waiters_max` requests may wait."""

    def __init__(self, waiters_max: int) -> None:
        self._waiters_max = waiters_max
        self._lanes: dict[SequenceName, _Lane] = {}  # bounded by the requests in progress

    def __len__(self) -> int:
        return len(self._lanes)

    def alone(self, name: SequenceName) -> _Lane:
        """An async context manager, to be entered at once: inside, nobody else works on `name` here.

        Raises:
            CapacityExceeded: too many wait already.
        """
        lane = self._lanes.get(name)
        if lane is None:
            lane = self._lanes[name] = _Lane(self._lanes, name)
        if lane.users > self._waiters_max:
            raise CapacityExceeded(f"{self._waiters_max} requests wait for this sequence already")
        lane.users += 1
        return lane


class _Lane:
    __slots__ = ("_lanes", "_lock", "_name", "users")

    def __init__(self, lanes: dict[SequenceName, _Lane], name: SequenceName) -> None:
        self._lanes = lanes
        self._name = name
        self._lock = asyncio.Lock()
        self.users = 0

    async def __aenter__(self) -> None:
        try:
            await self._lock.acquire()
        except BaseException:
            self._leave()
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.release()
        self._leave()

    def _leave(self) -> None:
        self.users -= 1
        if not self.users:
            del self._lanes[self._name]
