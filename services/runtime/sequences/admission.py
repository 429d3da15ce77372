"""How many sequences of a model may be live, as its operator has set it; a step of a live one is never refused for it.

In the memory store what is live is counted. Of a store that replicas share a replica knows only what began at itself:
it remembers those, as far as there is a bound, and asks the store which of them are over when the bound is reached.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, defaultdict
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from services.runtime.core.errors import CapacityExceeded, StatestreamError
from services.runtime.state.memory import MemoryStore
from services.runtime.state.types import Stored

if TYPE_CHECKING:
    from collections.abc import Generator

    from services.runtime.core.clock import Clock
    from services.runtime.core.ids import ModelId, SequenceName
    from services.runtime.engine.served import Catalogue
    from services.runtime.state.store import Stores
    from services.runtime.state.types import Record

RETRY_S: Final = 1.0
"""After which it is sensible to start again where there was no room; also between two looks for what is over."""

_LOOKED_AT_MAX: Final = 64
"""Sequences that the store is asked for at a time."""


class Admission:
    """Counts live sequences by model, and those that are being started."""

    def __init__(self, catalogue: Catalogue, stores: Stores, clock: Clock) -> None:
        self._catalogue = catalogue
        self._stores = stores
        self._clock = clock
        self._starting: defaultdict[str, int] = defaultdict(int)
        self._begun: dict[str, OrderedDict[SequenceName, None]] = {}  # by model; within its bound
        self._looked_at: dict[str, float] = {}
        self._looks: set[asyncio.Task[None]] = set()

    @contextmanager
    def one_more(self, name: SequenceName, model_id: ModelId) -> Generator[None]:
        """Keeps a place for a sequence that is being started, forked or imported.

        Raises:
            CapacityExceeded: there is none.
        """
        model = self._catalogue.get(model_id)
        if model is None or (model.limits.sequences_max is None and model.limits.state_bytes_max is None):
            yield
            return
        limits, sequences, size_bytes = model.limits, *self._live(name.model, model.manifest.state_bytes)
        starting = self._starting[name.model] + 1
        if limits.sequences_max is not None and sequences + starting > limits.sequences_max:
            self._refuse(name.model, f"{limits.sequences_max} sequences of the model are live already")
        # A new one takes about what those before take, replies and all.
        size_bytes += starting * max(model.manifest.state_bytes, size_bytes // max(1, sequences))
        if limits.state_bytes_max is not None and size_bytes > limits.state_bytes_max:
            self._refuse(name.model, f"live sequences of the model take {limits.state_bytes_max} bytes already")
        self._starting[name.model] += 1
        try:
            yield
        finally:
            self._starting[name.model] -= 1

    def began(self, name: SequenceName, record: Record) -> None:
        """A sequence was committed for the first time."""
        model = self._catalogue.get(record.model)
        if model is None or isinstance(self._stores.of(record.durability), MemoryStore):
            return
        if model.limits.sequences_max is not None or model.limits.state_bytes_max is not None:
            self._begun.setdefault(name.model, OrderedDict())[name] = None

    def ended(self, name: SequenceName) -> None:
        """A sequence was ended here."""
        begun = self._begun.get(name.model)
        if begun is not None:
            begun.pop(name, None)

    async def close(self) -> None:
        """Asks the store nothing more."""
        for look in self._looks:
            look.cancel()
        await asyncio.gather(*self._looks, return_exceptions=True)

    def _live(self, model: str, state_bytes: int) -> tuple[int, int]:
        """Sequences of a model that are live, as far as is known here, and about their bytes."""
        begun = len(self._begun.get(model, ()))
        sequences, size_bytes = begun, begun * state_bytes
        for store in self._stores:
            if isinstance(store, MemoryStore):
                counted = store.usage(model)
                sequences, size_bytes = sequences + counted.sequences, size_bytes + counted.size_bytes
        return sequences, size_bytes

    def _refuse(self, model: str, why: str) -> None:
        now = self._clock.monotonic()
        if self._begun.get(model) and now - self._looked_at.get(model, float("-inf")) >= RETRY_S:
            self._looked_at[model] = now
            look = asyncio.get_running_loop().create_task(self._look(model))
            self._looks.add(look)
            look.add_done_callback(self._looks.discard)
        raise CapacityExceeded(why, retry_delay_s=RETRY_S)

    async def _look(self, model: str) -> None:
        """Forgets those that are over, of the ones that nobody has asked for longest."""
        begun = self._begun[model]
        names = list(begun)[:_LOOKED_AT_MAX]
        results = await asyncio.gather(*[self._stores.shared.load(name) for name in names], return_exceptions=True)
        for name, found in zip(names, results, strict=True):
            if name not in begun:
                continue
            if isinstance(found, StatestreamError) or (
                isinstance(found, Stored) and not (found.expired or found.record.ended)
            ):
                begun.move_to_end(name)
            else:
                del begun[name]
