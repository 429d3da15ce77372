"""What can be done with sequences besides taking steps: look, list, fork, rewind, export, import, end.

All of it works on what is committed; what this replica holds uncommitted of a sequence is committed first. Each call
can be repeated: where the first one took effect the second finds it done.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol, TypeVar

import structlog

from services.runtime.core.errors import (
    CheckpointNotFound,
    InvalidInput,
    SequenceEnded,
    SequenceError,
    SnapshotsDisabled,
    StateCorrupt,
    StepConflict,
    Unavailable,
)
from services.runtime.core.ids import SequenceName, checked_name
from services.runtime.core.offload import sized
from services.runtime.sequences.copies import Copies
from services.runtime.sequences.decide import present
from services.runtime.sequences.history import rewound
from services.runtime.sequences.snapshot import FIELD, refuse_unfit
from services.runtime.state.types import Absence, Durability, Position, Record, Stored

if TYPE_CHECKING:
    from collections.abc import Awaitable, Iterable, Sequence

    from services.runtime.core.clock import Clock
    from services.runtime.engine.served import Catalogue, ServedModel
    from services.runtime.sequences.sequences import Sequences
    from services.runtime.sequences.snapshot import SnapshotFormat
    from services.runtime.state.store import StateStore, Stores

FORKS_MAX: Final = 64
"""Sequences that one call makes."""

PAGE_SIZE: Final = 100
PAGE_SIZE_MAX: Final = 1000

_LOADS_MAX: Final = 100
"""Records of a page that are loaded at a time."""

_ATTEMPTS_MAX: Final = 4
"""Commits of one rewind: each race that is lost costs one."""

_log = structlog.get_logger(__name__)

T = TypeVar("T")


class LifecycleEvents(Protocol):
    """What becomes of sequences without a step, for metrics."""

    def sequence_forked(self, model: str) -> None:
        """A sequence was made of another one."""
        ...

    def sequence_rewound(self, model: str) -> None:
        """A sequence was put back to an earlier step."""
        ...

    def sequence_imported(self, model: str) -> None:
        """A sequence was made of a snapshot."""
        ...


class Found(NamedTuple):
    """A sequence and what is stored of it."""

    name: SequenceName
    stored: Stored


class Listing(NamedTuple):
    """One page of sequences; an empty `next_page_token` is that of the last one."""

    sequences: tuple[Found, ...]
    next_page_token: str


class Lifecycle:
    """Operations on whole sequences, beside `sequences` on the same `stores`; without `snapshots` none is exported."""

    def __init__(
        self,
        sequences: Sequences,
        stores: Stores,
        catalogue: Catalogue,
        snapshots: SnapshotFormat | None,
        clock: Clock,
        events: LifecycleEvents,
    ) -> None:
        self._sequences = sequences
        self._stores = stores
        self._catalogue = catalogue
        self._copies = Copies(sequences, stores)
        self._snapshots = snapshots
        self._clock = clock
        self._events = events

    async def get(self, name: SequenceName) -> Stored:
        """Where a live or ended sequence stands.

        Raises:
            SequenceError: there is none; the class says why.
        """
        await self._settle(name)
        return present(await self._sequences.describe(name))

    async def end(self, name: SequenceName) -> Stored:
        """Ends a sequence without a last step; to end an ended one does nothing.

        Raises:
            SequenceError: there is none.
        """
        return present(await self._sequences.end(name))

    async def page(
        self, tenant: str, model: str, *, page_size: int = 0, page_token: str = "", live_only: bool = False
    ) -> Listing:
        """About `page_size` sequences of a model, 0: 100. Those of durability NONE and damaged ones are left out.

        Raises:
            InvalidInput: `page_size` is over 1000, or `page_token` is not one of this store's.
        """
        if page_size > PAGE_SIZE_MAX:
            raise InvalidInput("page_size", f"must be at most {PAGE_SIZE_MAX}, is {page_size}")
        # Those of durability NONE are left out: the next page may come from a replica that does not know them.
        store = self._stores.shared
        page = await store.names(tenant, model, cursor=page_token or None, count=page_size or PAGE_SIZE)
        names = list(dict.fromkeys(page.names))
        sequences: list[Found] = []
        for start in range(0, len(names), _LOADS_MAX):
            sequences += await _loaded(store, names[start : start + _LOADS_MAX])
        kept = [found for found in sequences if not (live_only and found.stored.record.ended)]
        return Listing(tuple(kept), page.cursor or "")

    async def fork(self, name: SequenceName, next_step: int | None, new_ids: Sequence[str]) -> list[Stored]:
        """Makes sequences of the names `new_ids` that go on from a committed point, None: the last one.

        Either all of them are there afterwards, or none that was not there before. Only while the store fails can some
        be left; the repeat of the call makes the others.

        Raises:
            InvalidInput: names the id that cannot be used.
            SequenceExists: an id is that of a live sequence which is not this fork.
            CheckpointNotFound: nothing is kept at that step.
            StatestreamError: the sequence cannot go on itself.
        """
        targets = _targets(name, new_ids)
        point = await self._point(name, next_step)
        self._served(point.record)
        bare = _bare(point.record)
        places = await _all([self._copies.place(target, bare, _field(i)) for i, target in enumerate(targets)])
        made = await asyncio.gather(
            *[self._copies.put(target, bare, places[i], _field(i)) for i, target in enumerate(targets)],
            return_exceptions=True,
        )
        errors = [one for one in made if isinstance(one, BaseException)]
        refusals = [error for error in errors if not isinstance(error, Unavailable)]
        if refusals:
            await self._copies.take_back(
                [(t, one) for t, one in zip(targets, made, strict=True) if isinstance(one, Record)]
            )
        for error in (*refusals, *errors):
            raise error
        for one in made:
            if one is not None:
                self._events.sequence_forked(name.model)
        return [present(found) for found in await _all([self._sequences.describe(target) for target in targets])]

    async def rewind(self, name: SequenceName, next_step: int) -> Stored:
        """Puts a live sequence back to where it took `next_step` next; what came after is dropped.

        Raises:
            CheckpointNotFound: nothing is kept at that step.
            StepConflict: others moved it each time it was tried.
            StatestreamError: the sequence cannot go on.
        """
        for _ in range(_ATTEMPTS_MAX):
            await self._settle(name)
            found = _live(await self._sequences.describe(name))
            record = found.record
            self._served(record)
            if next_step != record.position.step:
                record = (await self._checkpoint(name, found, next_step)).record
            elif record.durability is not Durability.CHECKPOINT:
                return found
            # Also where it stands there already, as far as is committed: another replica may hold later steps, which
            # the new epoch keeps from being committed.
            epoch = max(self._sequences.new_epoch(), found.record.position.epoch + 1)
            back = replace(record, position=Position(epoch, next_step), history=rewound(record.history, epoch))
            if await self._sequences.replace(name, found.record.position, back, continues=True) is None:
                self._events.sequence_rewound(name.model)
                return present(await self._sequences.describe(name))
        raise StepConflict("the sequence moves on too fast to be rewound; try again")

    async def export(self, name: SequenceName, next_step: int | None) -> tuple[bytes, Stored]:
        """A signed snapshot of a committed point, None: the last one; and what it is of.

        Raises:
            SnapshotsDisabled: there is no key to sign with.
            CheckpointNotFound: nothing is kept at that step.
            SequenceError: there is no live sequence.
        """
        snapshots = self._signed()
        point = await self._point(name, next_step)
        exported_us = int(self._clock.wall() * 1e6)
        data = await sized(point.size_bytes, snapshots.encode, name.sequence_id, point.record, exported_us)
        return data, point

    async def import_snapshot(self, tenant: str, data: bytes, sequence_id: str = "") -> Found:
        """Makes a sequence of a snapshot, under its own id or the one given.

        Raises:
            SnapshotsDisabled: there is no key to check its signature with.
            InvalidInput: it is not signed with that key, or does not fit the model.
            ModelVersionGone: its model is not served here, in exactly that version.
            SequenceExists: a live sequence of that name is not this one.
        """
        snapshots = self._signed()
        if sequence_id:
            checked_name(sequence_id, "sequence_id")
        snapshot = await sized(len(data), snapshots.decode, data)
        bare = snapshot.record
        refuse_unfit(bare, self._catalogue.pinned(bare.model))
        name = SequenceName(tenant, bare.model.name, sequence_id or checked_name(snapshot.sequence_id, FIELD))
        place = await self._copies.place(name, bare, "sequence_id")
        if await self._copies.put(name, bare, place, "sequence_id") is not None:
            self._events.sequence_imported(name.model)
        return Found(name, present(await self._sequences.describe(name)))

    async def _point(self, name: SequenceName, next_step: int | None) -> Stored:
        """The record to go on from: the committed one, or a kept checkpoint."""
        await self._settle(name)
        found = present(await self._sequences.describe(name))
        if next_step is not None and next_step != found.record.position.step:
            found = await self._checkpoint(name, found, next_step)
        return _live(found)

    async def _settle(self, name: SequenceName) -> None:
        """Commits what this replica holds uncommitted of `name`."""
        with contextlib.suppress(SequenceError):  # it has gone on elsewhere: the store knows better
            await self._sequences.settle(name)

    async def _checkpoint(self, name: SequenceName, found: Stored, step: int) -> Stored:
        checkpoint = await self._stores.of(found.record.durability).load_checkpoint(name, step)
        if not isinstance(checkpoint, Stored):
            kept = ", ".join(map(str, found.checkpoints)) or "none"
            raise CheckpointNotFound(f"no checkpoint at step {step}; there are: {kept}", kept=found.checkpoints)
        return checkpoint

    def _served(self, record: Record) -> ServedModel:
        """The model of a sequence that is to go on.

        Raises:
            UnknownModel: no version of it is served here.
            ModelVersionGone: other versions are.
        """
        self._catalogue.find(record.model.name, start=False)
        return self._catalogue.pinned(record.model)

    def _signed(self) -> SnapshotFormat:
        if self._snapshots is None:
            raise SnapshotsDisabled("no key is configured to sign snapshots with: STATESTREAM_SNAPSHOT_KEY")
        return self._snapshots


async def _all(calls: Iterable[Awaitable[T]]) -> list[T]:
    """Results of calls made together; the first error in their order is raised once all have ended."""
    results = await asyncio.gather(*calls, return_exceptions=True)
    good: list[T] = []
    for result in results:
        if isinstance(result, BaseException):
            raise result
        good.append(result)
    return good


async def _loaded(store: StateStore, names: Sequence[SequenceName]) -> list[Found]:
    """Those that are there and have not expired."""
    results = await asyncio.gather(*[store.load(name) for name in names], return_exceptions=True)
    found: list[Found] = []
    damaged = 0
    for name, result in zip(names, results, strict=True):
        if isinstance(result, StateCorrupt):
            damaged += 1
        elif isinstance(result, BaseException):
            raise result
        elif isinstance(result, Stored) and (result.record.ended or not result.expired):
            found.append(Found(name, result))
    if damaged:
        _log.warning("damaged records are not listed", count=damaged)
    return found


def _live(found: Stored | Absence) -> Stored:
    """What is there and can go on."""
    stored = present(found)
    if stored.record.ended:
        raise SequenceEnded(f"the last step was {stored.record.position.step - 1}")
    return stored


def _targets(source: SequenceName, new_ids: Sequence[str]) -> list[SequenceName]:
    if not 1 <= len(new_ids) <= FORKS_MAX:
        raise InvalidInput("new_sequence_ids", f"must have 1 to {FORKS_MAX} entries, has {len(new_ids)}")
    seen = {source.sequence_id}
    for i, new_id in enumerate(new_ids):
        checked_name(new_id, _field(i))
        if new_id in seen:
            what = "is the sequence to fork" if new_id == source.sequence_id else "stands there twice"
            raise InvalidInput(_field(i), what)
        seen.add(new_id)
    return [source._replace(sequence_id=new_id) for new_id in new_ids]


def _field(i: int) -> str:
    return f"new_sequence_ids[{i}]"


def _bare(record: Record) -> Record:
    """`record` without what belongs to its own sequence alone: replies name it."""
    return replace(record, replies=(), previous=None)
