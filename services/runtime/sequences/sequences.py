"""Takes steps of sequences: in order, each exactly once, over a store that any replica can use.

There are no leases and no locks between replicas. Each commit compares and sets `(epoch, step)`; of two replicas that
race one wins, and the other answers with the winner's reply. Within a process the requests for one sequence wait for
each other, so a repeated request finds the reply of the one before it.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

from services.runtime.core.errors import (
    CapacityExceeded,
    ModelVersionGone,
    SequenceError,
    StateCorrupt,
    StepConflict,
    StepContentMismatch,
    StoreUnavailable,
)
from services.runtime.sequences.decide import Decision, Run, StepRequest, decide, keep_replies, start_over
from services.runtime.state.types import Absence, Carry, Durability, Position, Record, Stored, StoredReply, Terms

if TYPE_CHECKING:
    from services.runtime.core.clock import Clock
    from services.runtime.core.ids import ModelId, SequenceName
    from services.runtime.engine.served import Catalogue, ServedModel
    from services.runtime.state.cache import RecordCache
    from services.runtime.state.store import StateStore

ATTEMPTS_MAX = 4
"""Runs of one request: a stale cache and lost races cost one each."""


class StepContext(NamedTuple):
    """What a task's fold is told of the step it computes."""

    sequence_id: str
    position: Position
    model: ServedModel
    durability: Durability
    end: bool
    replaces_live: bool


class Fold(Protocol):
    """A task's step: carry in, serialised reply and new carry out. It must be a pure function of what it is given."""

    async def __call__(self, context: StepContext, carry: Carry) -> tuple[bytes, Carry]:
        """Computes one step."""
        ...


class SequenceEvents(Protocol):
    """What happens to sequences, for metrics."""

    def sequence_started(self, model: str) -> None:
        """A sequence began."""
        ...

    def sequence_ended(self, model: str) -> None:
        """A sequence took its last step."""
        ...

    def step_replayed(self, model: str) -> None:
        """A retry was answered with the stored reply."""
        ...

    def step_conflicted(self, model: str) -> None:
        """A commit found that somebody else had moved the sequence."""
        ...

    def step_refused(self, model: str, reason: str) -> None:
        """A step could not be taken."""
        ...

    def step_timed(self, model: str, phase: str, seconds: float) -> None:
        """A phase of a step, "load" or "commit", took so long."""
        ...

    def store_failed(self, operation: str) -> None:
        """The store did not do `operation`, "load" or "commit"."""
        ...

    def cache_looked_up(self, model: str, *, hit: bool) -> None:
        """A step could, or could not, go on from a record in this replica's memory."""
        ...


@dataclass(frozen=True, slots=True)
class SequencePolicy:
    """Bounds of one server: replies kept per sequence, requests that may wait for one, retention in milliseconds."""

    replies_kept: int
    waiters_max: int
    retention_ms: int


@dataclass(slots=True)
class _Lane:
    """One sequence inside this process: its requests go one at a time."""

    lock: asyncio.Lock
    users: int = 0


class Sequences:
    """All sequences of a server.

    Durability NONE is kept in `local`, which belongs to this process and is known to this replica only. Where a name
    stands in both stores, the later start counts.
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
        self._catalogue = catalogue
        self._store = store
        self._local = local
        self._cache = cache
        self._policy = policy
        self._clock = clock
        self._events = events
        self._any_local = False
        self._terms_of: dict[ModelId, Terms] = {}  # bounded by the model versions served
        self._lanes: dict[SequenceName, _Lane] = {}  # bounded by the requests in progress

    async def step(self, name: SequenceName, request: StepRequest, fold: Fold) -> bytes:
        """Takes one step and returns the serialised reply; a step taken before is answered with the same bytes.

        A cancelled or failing request changes nothing, unless its commit was on its way already.

        Raises:
            StatestreamError: the sequence stands where it stood.
        """
        lane = self._lanes.setdefault(name, _Lane(asyncio.Lock()))
        if lane.users > self._policy.waiters_max:
            raise CapacityExceeded(f"{self._policy.waiters_max} requests wait for this sequence already")
        lane.users += 1
        try:
            async with lane.lock:
                return await self._attempt(name, request, fold)
        except SequenceError as error:
            self._events.step_refused(name.model, error.reason)
            raise
        finally:
            lane.users -= 1
            if not lane.users:
                del self._lanes[name]

    async def describe(self, name: SequenceName) -> Stored | Absence:
        """Where a sequence stands now."""
        found = await self._store.load(name)
        if not self._any_local:
            return found
        local = await self._local.load(name)
        if isinstance(local, Stored) and not (isinstance(found, Stored) and _epoch(found) > _epoch(local)):
            return local
        return found

    async def end(self, name: SequenceName) -> Stored | Absence:
        """Ends a live sequence without a last step; returns what is there afterwards."""
        for _ in range(ATTEMPTS_MAX):
            found = await self.describe(name)
            if not isinstance(found, Stored) or found.record.ended or found.expired:
                return found
            record = found.record
            # A new epoch, so that no replica that still has the live record at hand can commit over the end.
            after = record.position._replace(epoch=max(self._new_epoch(), record.position.epoch + 1))
            ended = Record(after, record.model, record.durability, None, record.replies)
            if await self._commit(name, record.position, ended) is None:
                self._events.sequence_ended(name.model)
                return await self.describe(name)
        raise StepConflict("the sequence moves on too fast to be ended; try again")

    async def _attempt(self, name: SequenceName, request: StepRequest, fold: Fold) -> bytes:
        cached = self._from_cache(name, request)
        decision, fresh = (cached, False) if cached else (await self._load_and_decide(name, request), True)
        for _ in range(ATTEMPTS_MAX):
            if isinstance(decision, StoredReply):
                self._events.step_replayed(name.model)
                return decision.reply
            reply, found = await self._run(name, request, decision, fold)
            if found is None:
                return reply
            self._events.step_conflicted(name.model)
            try:
                decision = decide(found, request, self._new_epoch())
            except StepContentMismatch as error:
                if fresh:  # it was free when we looked: somebody took it while we ran
                    raise StepConflict("another request took this step with other content") from error
                raise
            fresh = True
        raise StepConflict("the sequence was moved by others while this step ran; look where it stands")

    def _from_cache(self, name: SequenceName, request: StepRequest) -> Run | None:
        """A decision from this replica's memory, if it is to run: the commit then proves that it was not stale."""
        if request.start:
            return None
        record = self._cache.get(name)
        usable = record is not None and not record.ended and request.step in (None, record.position.step)
        self._events.cache_looked_up(name.model, hit=usable)
        return Run(record.position, record.position, record) if record is not None and usable else None

    async def _load_and_decide(self, name: SequenceName, request: StepRequest) -> Decision:
        before = self._clock.monotonic()
        try:
            if request.start:
                found = await self._store_of(request.durability).load(name)
            else:
                found = await self.describe(name)
        except StoreUnavailable:
            self._events.store_failed("load")
            raise
        except StateCorrupt as error:
            if not request.start:
                raise
            return start_over(error, self._new_epoch())
        self._events.step_timed(name.model, "load", self._clock.monotonic() - before)
        return decide(found, request, self._new_epoch())

    async def _run(
        self, name: SequenceName, request: StepRequest, run: Run, fold: Fold
    ) -> tuple[bytes, Stored | Absence | None]:
        """Computes and commits; the second part is what the commit found if it was not made."""
        model, durability = self._model_of_run(request, run)
        context = StepContext(name.sequence_id, run.position, model, durability, request.end, run.replaces_live)
        base_carry = run.base.carry if run.base else None
        reply, carry = await fold(context, base_carry or Carry(model.initial_state, b""))
        stored = StoredReply(run.position.step, request.digest, reply)
        record = Record(
            Position(run.position.epoch, run.position.step + 1),
            model.model_id,
            durability,
            None if request.end else carry,
            keep_replies(run.base, stored, self._policy.replies_kept),
        )
        found = await self._commit(name, run.expected, record)
        if found is None:
            if run.base is None:
                self._any_local |= durability is Durability.NONE
                self._events.sequence_started(name.model)
            if request.end:
                self._events.sequence_ended(name.model)
        return reply, found

    async def _commit(self, name: SequenceName, expected: Position | None, record: Record) -> Stored | Absence | None:
        # Until the commit has answered nobody may go on from what is at hand: if this request is cancelled now, the
        # commit may or may not take effect.
        self._cache.drop(name)
        store, terms, before = self._store_of(record.durability), self._terms(record), self._clock.monotonic()
        try:
            conflict = await store.commit(name, expected, record, terms)
        except StoreUnavailable:
            self._events.store_failed("commit")
            raise
        self._events.step_timed(name.model, "commit", self._clock.monotonic() - before)
        if conflict is not None:
            return conflict.found
        if not record.ended:
            self._cache.put(name, record)
        return None

    def _model_of_run(self, request: StepRequest, run: Run) -> tuple[ServedModel, Durability]:
        if run.base is None:
            return self._catalogue.pinned(request.model), request.durability
        return self._catalogue.pinned(run.base.model), run.base.durability

    def _terms(self, record: Record) -> Terms:
        terms = self._terms_of.get(record.model)
        if terms is None:
            retention = self._policy.retention_ms
            try:
                defaults = self._catalogue.pinned(record.model).manifest.sequence
            except ModelVersionGone:  # its sequences can still be ended
                return Terms(retention, retention, retention)
            terms = Terms(int(defaults.idle_timeout_s * 1000), int(defaults.lifetime_s * 1000), retention)
            self._terms_of[record.model] = terms
        return terms

    def _store_of(self, durability: Durability) -> StateStore:
        return self._local if durability is Durability.NONE else self._store

    def _new_epoch(self) -> int:
        """Microseconds since 1970: higher than any epoch of this name that the store has forgotten."""
        return int(self._clock.wall() * 1e6)


def _epoch(stored: Stored) -> int:
    return stored.record.position.epoch
