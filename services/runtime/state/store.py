"""The one interface behind which sequences are kept."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

from services.runtime.state.types import Durability

if TYPE_CHECKING:
    from services.runtime.core.ids import SequenceName
    from services.runtime.state.types import Absence, Position, Record, Stored, Terms


class Conflict(NamedTuple):
    """A commit that was not made, and what stands in the store instead."""

    found: Stored | Absence


class Page(NamedTuple):
    """Some of the names in a store; `cursor` asks for those that follow, None: there are no more."""

    names: tuple[SequenceName, ...]
    cursor: str | None


class StateStore(Protocol):
    """Keeps records; every implementation passes the same kit, `tests/contract/store_kit.py`.

    All methods may raise `StoreUnavailable`, after a bounded time, and `StateCorrupt`. Calls made in one turn of the
    event loop may travel together; one that conflicts or is corrupt fails alone.
    """

    async def load(self, name: SequenceName) -> Stored | Absence:
        """The record of `name`, or why there is none.

        Raises:
            StateCorrupt: damaged. Its metadata has `epoch` and `step` where they can still be read: the position that a
                commit of a new epoch has to expect in order to replace it.
        """
        ...

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
        """Puts `record` in place of the one at `expected`, atomically; None if it was put.

        `expected` None demands that nothing is there. A record of a new epoch (`record.position.epoch` differs from
        `expected.epoch`) begins anew, unless it `continues`: an expired record conflicts, except with one that begins
        anew; the lifetime counts from the commit that began. Once a commit has been sent it may take effect even if its
        caller is cancelled; the next load tells.

        With `keep` the record that is replaced becomes a checkpoint, and of those the `keep` youngest stay; without it
        they stay as they are. All are dropped by a record that begins anew or has ended; by one that does not go
        forward, those at or after its own step.

        Raises:
            CapacityExceeded: a new sequence does not fit within the store's bounds.
        """
        ...

    async def load_checkpoint(self, name: SequenceName, step: int) -> Stored | Absence:
        """The checkpoint of `name` at `step`; its `checkpoints` are empty, its times those of the sequence.

        Raises:
            StateCorrupt: damaged.
        """
        ...

    async def names(self, tenant: str, model: str, *, cursor: str | None = None, count: int = 100) -> Page:
        """Names of sequences of `tenant` and `model`, about `count` of them; `cursor` is that of the page before.

        Every name that is there from the first page to the last is given at least once. A page may be empty and yet
        not be the last. Ended and expired sequences are among them.

        Raises:
            InvalidInput: `cursor` is not one of this store's.
        """
        ...

    async def ping(self) -> None:
        """Returns if the store answers."""
        ...

    async def close(self) -> None:
        """Gives back connections; no call may follow."""
        ...


class Stores(NamedTuple):
    """Where sequences are kept: in the store that replicas share, or in this replica's memory."""

    shared: StateStore
    local: StateStore

    def of(self, durability: Durability) -> StateStore:
        """That of sequences with `durability`."""
        return self.local if durability is Durability.NONE else self.shared
