"""What the parts of the kit for state stores share."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol

import pytest

from services.runtime.state.types import Stored

if TYPE_CHECKING:
    from services.runtime.core.ids import SequenceName
    from services.runtime.state.store import Conflict, StateStore

SECOND = 1000
MINUTE = 60 * SECOND


class Lapse(Protocol):
    """Lets time pass for some sequences, as far as their store is concerned."""

    async def __call__(self, milliseconds: int, *names: SequenceName) -> None:
        """After this, `milliseconds` have passed for `names`."""
        ...


async def found(store: StateStore, name: SequenceName) -> Stored:
    """What stands under `name`, which must be something."""
    stored = await store.load(name)
    assert isinstance(stored, Stored), stored
    return stored


def told(conflict: Conflict | None) -> Stored:
    """The record that a conflict tells of."""
    assert conflict is not None, "committed, and should not have been"
    assert isinstance(conflict.found, Stored), conflict.found
    return conflict.found


async def a_turn() -> None:
    """Lets the event loop do what is due, and no more."""
    loop = asyncio.get_running_loop()
    done = loop.create_future()
    loop.call_soon(done.set_result, None)
    await done


class StoreFixtures:
    """Fixtures to give: `store`; `other`, the same sequences seen by another replica; `lapse`."""

    @pytest.fixture
    def store(self) -> StateStore:
        """The store under test."""
        raise NotImplementedError

    @pytest.fixture
    def other(self) -> StateStore:
        """Another way to the same sequences, as another replica has it."""
        raise NotImplementedError

    @pytest.fixture
    def lapse(self) -> Lapse:
        """Lets time pass."""
        raise NotImplementedError
