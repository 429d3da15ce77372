"""The one interface behind which sequences are kept."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from services.runtime.core.ids import SequenceName
    from services.runtime.state.types import Absence, Position, Record, Stored, Terms


class Conflict(NamedTuple):
    """A commit that was not made, and what stands in the store instead."""

    found: Stored | Absence


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
        self, name: SequenceName, expected: Position | None, record: Record, terms: Terms
    ) -> Conflict | None:
        """Puts `record` in place of the one at `expected`, atomically; None if it was put.

        `expected` None demands that nothing is there. An expired record conflicts unless `record` begins a new epoch
        (`record.position.epoch` differs from `expected.epoch`). The lifetime counts from the commit that began the
        epoch. Once a commit has been sent it may take effect even if its caller is cancelled; the next load tells.

        Raises:
            CapacityExceeded: a new sequence does not fit within the store's bounds.
        """
        ...

    async def ping(self) -> None:
        """Returns if the store answers."""
        ...

    async def close(self) -> None:
        """Gives back connections; no call may follow."""
        ...
