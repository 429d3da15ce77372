"""One at a time: the requests for one sequence inside this process."""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

from services.runtime.core.errors import CapacityExceeded

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from services.runtime.core.ids import SequenceName


class Lanes:
    """A lane for each sequence that is in use, in which at most `waiters_max` requests may wait, in order.

    Whoever has entered leaves, whatever happens in between. Mostly nobody waits, and then this costs next to nothing:
    a lock of asyncio for each request took a twentieth of a step.
    """

    def __init__(self, waiters_max: int) -> None:
        self._waiters_max = waiters_max
        # Those who wait behind the one that is in; bounded by the requests in progress.
        self._waiting: dict[SequenceName, deque[asyncio.Future[None]]] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    @asynccontextmanager
    async def alone(self, name: SequenceName) -> AsyncGenerator[None, None]:
        """`enter` and `leave` around a block."""
        await self.enter(name)
        try:
            yield
        finally:
            self.leave(name)

    async def enter(self, name: SequenceName) -> None:
        """Returns when nobody else works on `name` here.

        Raises:
            CapacityExceeded: too many wait already.
        """
        waiting = self._waiting.get(name)
        if waiting is None:
            self._waiting[name] = deque()
            return
        if len(waiting) >= self._waiters_max:
            raise CapacityExceeded(f"{self._waiters_max} requests wait for this sequence already")
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.leave(name)  # it was this one's turn already
            else:
                with suppress(ValueError):
                    waiting.remove(turn)
            raise

    def leave(self, name: SequenceName) -> None:
        """Lets the next one in."""
        waiting = self._waiting[name]
        while waiting:
            turn = waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        del self._waiting[name]
