"""A store that behaves as badly as a network may: slow, losing requests, losing answers. Seeded, on virtual time."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

from services.runtime.core.errors import StoreUnavailable

if TYPE_CHECKING:
    import random

    from services.runtime.core.ids import SequenceName
    from services.runtime.state.store import Conflict, Page, StateStore
    from services.runtime.state.types import Absence, Position, Record, Stored, Terms


@dataclass(frozen=True, slots=True)
class Faults:
    """Probabilities, and the longest delay of one way in seconds; a `stuck` way takes a hundred times as long."""

    delay_s_max: float = 0.0
    stuck: float = 0.0
    lost_request: float = 0.0
    lost_answer: float = 0.0


class SimulatedStore:
    """What one replica sees of the shared store `inner`."""

    def __init__(self, inner: StateStore, faults: Faults, rng: random.Random) -> None:
        self._inner = inner
        self._faults = faults
        self._rng = rng

    async def load(self, name: SequenceName) -> Stored | Absence:
        """See `StateStore`."""
        await self._way(self._faults.lost_request)
        found = await self._inner.load(name)
        await self._way(self._faults.lost_answer)
        return found

    async def commit(
        self,
        name: SequenceName,
        expected: Position | None,
        record: Record,
        terms: Terms,
        *,
        continues: bool = False,
        keep: int = 0,
    ) -> Conflict | None:
        """See `StateStore`. A lost answer leaves the commit made and its caller in doubt."""
        await self._way(self._faults.lost_request)
        conflict = await self._inner.commit(name, expected, record, terms, continues=continues, keep=keep)
        await self._way(self._faults.lost_answer)
        return conflict

    async def load_checkpoint(self, name: SequenceName, step: int) -> Stored | Absence:
        """See `StateStore`."""
        await self._way(self._faults.lost_request)
        found = await self._inner.load_checkpoint(name, step)
        await self._way(self._faults.lost_answer)
        return found

    async def names(self, tenant: str, model: str, *, cursor: str | None = None, count: int = 100) -> Page:
        """See `StateStore`."""
        await self._way(self._faults.lost_request)
        page = await self._inner.names(tenant, model, cursor=cursor, count=count)
        await self._way(self._faults.lost_answer)
        return page

    async def ping(self) -> None:
        """Always answers."""

    async def close(self) -> None:
        """Nothing to give back."""

    async def _way(self, lost: float) -> None:
        times = 100 if self._rng.random() < self._faults.stuck else 1
        await asyncio.sleep(self._rng.random() * self._faults.delay_s_max * times)
        if self._rng.random() < lost:
            await asyncio.sleep(1.0)
            raise StoreUnavailable("lost on the way")
