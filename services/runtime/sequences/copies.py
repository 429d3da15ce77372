"""Puts copies of a record under names that nobody uses; what forks and imports are made with."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Final, NamedTuple

import structlog

from services.runtime.core.errors import SequenceExists, StepConflict
from services.runtime.state.types import Position, Record, Stored

if TYPE_CHECKING:
    from collections.abc import Iterable

    from services.runtime.core.ids import SequenceName
    from services.runtime.sequences.sequences import Sequences
    from services.runtime.state.store import Stores

_ATTEMPTS_MAX: Final = 4
"""Commits of one record: each race that is lost costs one."""

_log = structlog.get_logger(__name__)


class Place(NamedTuple):
    """Where a record is to be put: over what stands at `expected`, in a new `epoch`."""

    expected: Position | None
    epoch: int


class Copies:
    """A copy is `bare`: replies stay behind, for they name their sequence."""

    def __init__(self, sequences: Sequences, stores: Stores) -> None:
        self._sequences = sequences
        self._stores = stores

    async def place(self, name: SequenceName, bare: Record, field: str) -> Place | None:
        """Where `bare` is to be put as `name`; None: it is there already. `field` is where the name was given.

        Raises:
            SequenceExists: another live sequence is there.
        """
        found = await self._sequences.describe(name)
        if isinstance(found, Stored) and not (found.record.ended or found.expired):
            if _is_untouched(found.record, bare):
                return None
            raise SequenceExists("a live sequence has this name", field=field)
        held, store = found, self._stores.of(bare.durability)
        if isinstance(found, Stored) and self._stores.of(found.record.durability) is not store:
            # What is left of one in the other store; the commit compares with what its own store holds.
            held = await store.load(name)
        positions = [one.record.position for one in (found, held) if isinstance(one, Stored)]
        epoch = max([self._sequences.new_epoch(), *[position.epoch + 1 for position in positions]])
        return Place(held.record.position if isinstance(held, Stored) else None, epoch)

    async def put(self, name: SequenceName, bare: Record, place: Place | None, field: str) -> Record | None:
        """Commits `bare` as `name`; what was committed, or None if it was there already.

        Raises:
            SequenceExists: another live sequence has come there meanwhile.
            StepConflict: others came and went each time it was tried.
        """
        for _ in range(_ATTEMPTS_MAX):
            if place is None:
                return None
            record = replace(bare, position=Position(place.epoch, bare.position.step))
            if await self._sequences.replace(name, place.expected, record, continues=False) is None:
                return record
            place = await self.place(name, bare, field)
        raise StepConflict("the name is taken and left too fast; try again")

    async def take_back(self, made: Iterable[tuple[SequenceName, Record]]) -> None:
        """Ends sequences that this call has made, unless somebody has taken a step already.

        The new epoch keeps out who has read one meanwhile. A call that asked for the same copy at the same time, and
        was told that it is there, loses it too.
        """
        results = await asyncio.gather(
            *[
                self._sequences.replace(
                    name,
                    record.position,
                    replace(record, position=record.position._replace(epoch=record.position.epoch + 1), carry=None),
                    continues=False,
                )
                for name, record in made
            ],
            return_exceptions=True,
        )
        left = sum(result is not None for result in results)
        if left:
            _log.warning("forks that should have been ended are left", count=left)


def _is_untouched(record: Record, bare: Record) -> bool:
    """True if `record` was made of `bare` and nothing has followed."""
    ours, theirs = record.carry, bare.carry
    return (
        not record.replies
        and (record.position.step, record.model, record.durability, record.history)
        == (bare.position.step, bare.model, bare.durability, bare.history)
        and ours is not None
        and theirs is not None
        and ours.task == theirs.task
        and [tensor.tobytes() for tensor in ours.tensors] == [tensor.tobytes() for tensor in theirs.tensors]
    )
