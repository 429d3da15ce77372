"""Each state store passes the kit."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from services.runtime.state.format import RecordFormat
from services.runtime.state.memory import MemoryStore
from services.runtime.state.redis.library import LIBRARY, Library
from services.runtime.state.redis.store import RedisStore
from tests.contract.store_kit import StoreKit
from tests.kit.clock import ManualClock
from tests.kit.redis_time import RedisLapse

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from services.runtime.core.ids import SequenceName
    from services.runtime.state.store import StateStore
    from tests.contract.store_fixtures import Lapse


class TestMemoryStore(StoreKit):
    """The kit on the memory store; two replicas are one there."""

    @pytest.fixture
    def clock(self) -> ManualClock:
        """The clock of the store."""
        return ManualClock()

    @pytest.fixture
    def store(self, clock: ManualClock) -> StateStore:
        """A store of its own."""
        return MemoryStore(clock, bytes_max=10_000_000, sequences_max=1000)

    @pytest.fixture
    def other(self, store: StateStore) -> StateStore:
        """The store itself."""
        return store

    @pytest.fixture
    def lapse(self, clock: ManualClock) -> Lapse:
        """Passes time."""

        async def pass_time(milliseconds: int, *names: SequenceName) -> None:
            clock.advance(milliseconds / 1000)

        return pass_time


class TestRedisStore(StoreKit):
    """The kit on a real Redis."""

    record_key: bytes | None = None

    @pytest.fixture
    async def store(self, redis_url: str) -> AsyncIterator[StateStore]:
        """A store of its own."""
        store = RedisStore.from_url(redis_url, records=RecordFormat(self.record_key))
        yield store
        await store.close()

    @pytest.fixture
    async def other(self, redis_url: str) -> AsyncIterator[StateStore]:
        """A second store on the same sequences."""
        store = RedisStore.from_url(redis_url, records=RecordFormat(self.record_key), connections=1)
        yield store
        await store.close()

    @pytest.fixture
    def lapse(self, redis_url: str) -> Lapse:
        """Passes time."""
        return RedisLapse(redis_url)


class TestRedisStoreWithSignedRecords(TestRedisStore):
    """The kit on Redis with a key that signs records."""

    record_key = b"a secret"


class TestRedisStoreWhileAnotherVersionRuns(TestRedisStore):
    """The kit on Redis while a replica with another text of the functions works on the same sequences."""

    @pytest.fixture
    async def other(self, redis_url: str) -> AsyncIterator[StateStore]:
        """A replica of another version."""
        store = RedisStore.from_url(redis_url, library=Library(LIBRARY.text + b"-- Another version.\n"))
        yield store
        await store.close()
