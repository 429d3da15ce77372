"""Replicas that run ahead of a store which a test can stop, roll back and look into, on virtual time."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import numpy as np

from services.runtime.core.errors import StoreUnavailable
from services.runtime.core.ids import SequenceName
from services.runtime.engine.served import Catalogue
from services.runtime.sequences.contract import SequencePolicy, StepContext, Taken
from services.runtime.sequences.decide import StepRequest, content_digest
from services.runtime.sequences.sequences import Sequences
from services.runtime.state.cache import RecordCache
from services.runtime.state.memory import MemoryStore
from services.runtime.state.types import Carry, Durability, Record, Stored
from tests.kit.toy import TOY_ID, NoEvents, toy_served
from tests.kit.virtual_time import VirtualTimeLoop, run_virtual

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from services.runtime.state.store import Conflict

NAME = SequenceName("t", "toy", "one")


class HandStore(MemoryStore):
    """A store in the test's hand: `down` answers nothing, `deaf` does what it is asked and does not say so."""

    def __init__(self, loop: VirtualTimeLoop) -> None:
        super().__init__(loop, bytes_max=10**7, sequences_max=1000)
        self._loop = loop
        self.down = False
        self.deaf = False
        self.commit_times: list[float] = []

    async def load(self, name: SequenceName) -> Any:
        """See `StateStore`."""
        await self._way()
        return await super().load(name)

    async def commit(self, *args: Any, **terms: Any) -> Conflict | None:
        """See `StateStore`."""
        await self._way()
        self.commit_times.append(self._loop.time())
        conflict = await super().commit(*args, **terms)
        if self.deaf:
            raise StoreUnavailable("the answer was lost")
        return conflict

    async def _way(self) -> None:
        await asyncio.sleep(0.001)
        if self.down:
            raise StoreUnavailable("no answer")

    async def step(self, name: SequenceName = NAME) -> int:
        """The step that the stored sequence takes next; -1 where there is none."""
        found = await super().load(name)
        return found.record.position.step if isinstance(found, Stored) else -1

    async def record(self, name: SequenceName = NAME) -> Record:
        """What is stored."""
        found = await super().load(name)
        assert isinstance(found, Stored)
        return found.record

    def roll_back(self, record: Record, name: SequenceName = NAME) -> None:
        """Loses every write since `record` was there."""
        entry = self._live[name]
        entry.newest = entry.newest._replace(record=record)

    def lose(self, name: SequenceName = NAME) -> None:
        """Loses the sequence."""
        self._drop(name)


async def add(context: StepContext, carry: Carry) -> tuple[bytes, Carry]:
    """Adds 1; the reply is step, sum, and the committed step."""
    result = await context.model.batcher.step((np.ones(1, dtype=np.float32),), carry.tensors)
    text = b"%d:%d" % (context.position.step, int(result.outputs[1][0]))
    return text, Carry(result.state, b"")


class Ahead:
    """One replica; `stream` starts what a stream on it would do."""

    def __init__(self, loop: VirtualTimeLoop, store: HandStore, **policy: Any) -> None:
        self.events = NoEvents()
        catalogue = Catalogue()
        catalogue.add(toy_served(loop))
        local = MemoryStore(loop, bytes_max=10**6, sequences_max=100)
        cache = RecordCache(sequences_max=10, bytes_max=10**6)
        values: dict[str, Any] = {"commit_steps": 8, "commit_interval_ms": 100.0, "uncommitted_max": 12, **policy}
        self.sequences = Sequences(catalogue, store, local, cache, SequencePolicy(**values), loop, self.events)

    def stream(self, name: SequenceName = NAME, durability: Durability = Durability.CHECKPOINT) -> HandStream:
        """A stream on `name`."""
        return HandStream(self.sequences, name, durability)


class HandStream:
    """What `serve_stream` keeps of a stream, without gRPC."""

    def __init__(self, sequences: Sequences, name: SequenceName, durability: Durability) -> None:
        self._sequences = sequences
        self._name = name
        self._durability = durability
        self.epoch: int | None = None

    async def start(self) -> bytes:
        """Takes step 0 as a start."""
        return await self.take(0, start=True)

    async def resume(self) -> int:
        """Takes the sequence up; the step to go on with."""
        standing = await self._sequences.take_up(self._name, None)
        self.epoch = standing.record.position.epoch
        return standing.record.position.step

    async def steps(self, first: int, count: int) -> list[bytes]:
        """Takes `count` steps from `first` on."""
        return [await self.take(step) for step in range(first, first + count)]

    async def take(self, step: int | None, *, start: bool = False, end: bool = False, content: str = "") -> bytes:
        """Takes one step; the content goes into its digest only."""
        key = "key" if start else ""
        digest = content_digest(f"{step}{content}".encode(), end=end, start_key=key)
        request = StepRequest(start, key, step, end, digest, self._durability, TOY_ID, self.epoch)
        taken: Taken = await self._sequences.step(self._name, request, add)
        self.epoch = taken.epoch
        return taken.reply


def play(scenario: Callable[[VirtualTimeLoop, HandStore], Awaitable[None]]) -> None:
    """Runs a scenario over a store of its own."""
    loop = VirtualTimeLoop()

    async def main() -> None:
        await scenario(loop, HandStore(loop))

    run_virtual(main(), loop)


def sums(first: int, count: int) -> list[bytes]:
    """The replies of an undisturbed run."""
    return [b"%d:%d" % (step, step + 1) for step in range(first, first + count)]
