"""Loads and commits: which store, on which terms, timed, and with the cache kept honest."""

from __future__ import annotations

import secrets
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from services.runtime.core.errors import StoreUnavailable
from services.runtime.state.store import Stores
from services.runtime.state.types import Absence, Durability, Position, Record, Stored, Terms

if TYPE_CHECKING:
    from models.common.manifest import SequenceDefaults
    from services.runtime.core.clock import Clock
    from services.runtime.core.ids import ModelId, SequenceName
    from services.runtime.engine.served import Catalogue
    from services.runtime.sequences.contract import SequenceEvents, SequencePolicy
    from services.runtime.state.cache import RecordCache
    from services.runtime.state.store import StateStore

EPOCH_SPREAD: Final = 2**20
"""How far beyond the last epoch, in microseconds, the next one may lie that does not come from the clock."""


class Commits:
    """The way to the stores.

    Durability NONE is kept in `local`, which belongs to this process and is known to this replica only. Where a name
    stands in both stores, the later start counts. `cache` keeps what was committed last, except for durability
    CHECKPOINT, whose records have heads.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        store: StateStore,
        local: StateStore,
        cache: RecordCache,
        policy: SequencePolicy,
        clock: Clock,
        events: SequenceEvents,
    ) -> None:
        self.cache = cache
        self._catalogue = catalogue
        self._stores = Stores(store, local)
        self._policy = policy
        self._clock = clock
        self._events = events
        self._any_local = False
        self._terms_of: dict[ModelId, tuple[SequenceDefaults, Terms]] = {}  # bounded by the model versions served

    async def load(self, name: SequenceName, durability: Durability | None = None) -> Stored | Absence:
        """The record of `name`, in the store for `durability`, or None: wherever it is.

        Raises:
            StoreUnavailable, StateCorrupt: see `StateStore`.
        """
        before = self._clock.monotonic()
        try:
            found = await (self._found(name) if durability is None else self._stores.of(durability).load(name))
        except StoreUnavailable:
            self._events.store_failed("load")
            raise
        self._events.step_timed(name.model, "load", self._clock.monotonic() - before)
        return found

    async def _found(self, name: SequenceName) -> Stored | Absence:
        found = await self._stores.shared.load(name)
        if not self._any_local:
            return found
        local = await self._stores.local.load(name)
        if isinstance(local, Stored) and not (isinstance(found, Stored) and _epoch(found) > _epoch(local)):
            return local
        return found

    async def commit(
        self, name: SequenceName, expected: Position | None, record: Record, *, continues: bool = True
    ) -> Stored | Absence | None:
        """Commits `record`; what was found if it was not put. `continues` counts where the epoch changes.

        Raises:
            StoreUnavailable: it may have taken effect or not.
            CapacityExceeded: it has not.
        """
        # Until the commit has answered nobody may go on from what is at hand: if this request is cancelled now, the
        # commit may or may not take effect.
        self.cache.drop(name)
        keep = 0 if record.ended or expected is None else self._policy.keep(expected, record.position)
        store, terms, before = self._stores.of(record.durability), self._terms(record), self._clock.monotonic()
        try:
            conflict = await store.commit(name, expected, record, terms, continues=continues, keep=keep)
        except StoreUnavailable:
            self._events.store_failed("commit")
            raise
        self._events.step_timed(name.model, "commit", self._clock.monotonic() - before)
        if conflict is not None:
            self._events.step_conflicted(name.model)
            return conflict.found
        self._any_local |= record.durability is Durability.NONE
        if not record.ended and record.durability is not Durability.CHECKPOINT:
            self.cache.put(name, record)
        return None

    def idle_s(self, record: Record) -> float:
        """Seconds without a commit after which the store takes `record` for expired."""
        return self._terms(record).idle_ms / 1000

    def new_epoch(self) -> int:
        """Microseconds since 1970: higher than any epoch of this name that the store has forgotten."""
        return int(self._clock.wall() * 1e6)

    def fenced(self, record: Record) -> Record:
        """`record` under a new epoch: once it is committed, nobody who works in an older one commits any more."""
        # Drawn where the clock is behind: after a fail-over that lost a fence, the next one must not have its number.
        epoch = max(self.new_epoch(), record.position.epoch + 1 + secrets.randbelow(EPOCH_SPREAD))
        return replace(record, position=Position(epoch, record.position.step))

    def _terms(self, record: Record) -> Terms:
        retention, model = self._policy.retention_ms, self._catalogue.get(record.model)
        if model is None:  # its sequences can still be ended
            return Terms(retention, retention, retention)
        sequence = model.sequence
        known = self._terms_of.get(record.model)
        if known is None or known[0] is not sequence:  # an operator may change them
            terms = Terms(int(sequence.idle_timeout_s * 1000), int(sequence.lifetime_s * 1000), retention)
            self._terms_of[record.model] = known = (sequence, terms)
        return known[1]


def _epoch(stored: Stored) -> int:
    return stored.record.position.epoch
