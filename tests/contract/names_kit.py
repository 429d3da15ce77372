"""The part of the kit for state stores about lists of names."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from services.runtime.core.errors import InvalidInput
from services.runtime.core.ids import SequenceName, new_sequence_id
from services.runtime.state.types import Position, Terms
from tests.contract.store_fixtures import MINUTE, SECOND, StoreFixtures
from tests.kit.records import TERMS, a_record

if TYPE_CHECKING:
    from collections.abc import Iterable

    from services.runtime.state.store import StateStore
    from tests.contract.store_fixtures import Lapse

LASTING = Terms(idle_ms=10_000 * MINUTE, lifetime_ms=10_000 * MINUTE, retention_ms=10_000 * MINUTE)

PAGES_MAX = 1000
"""A list that is longer never ends."""


async def listed(store: StateStore, tenant: str, model: str = "m", *, count: int = 100) -> list[str]:
    """The ids in all pages, as they came."""
    ids: list[str] = []
    cursor = None
    for _ in range(PAGES_MAX):
        page = await store.names(tenant, model, cursor=cursor, count=count)
        assert {(name.tenant, name.model) for name in page.names} <= {(tenant, model)}
        ids += [name.sequence_id for name in page.names]
        cursor = page.cursor
        if cursor is None:
            return ids
    raise AssertionError("a list without end")


async def begun(store: StateStore, tenant: str, ids: Iterable[str], *, model: str = "m", terms: Terms = TERMS) -> None:
    """Starts a sequence of each of `ids`."""
    names = [SequenceName(tenant, model, each) for each in ids]
    assert set(await asyncio.gather(*[store.commit(name, None, a_record(), terms) for name in names])) <= {None}


class NamesKit(StoreFixtures):
    """Fixtures to give: those of `StoreFixtures`."""

    @pytest.fixture
    def tenant(self) -> str:
        """A tenant that no other test uses."""
        return new_sequence_id()

    async def test_a_tenant_without_sequences_has_none(self, store: StateStore, tenant: str) -> None:
        """Nothing is listed where nothing was started."""
        assert await listed(store, tenant) == []

    async def test_all_names_are_listed(self, store: StateStore, other: StateStore, tenant: str) -> None:
        """By every replica, whatever characters they have, and none twice while nothing changes."""
        ids = ["a", "a:b", ":", "a%3Ab", "{a}", "a b", "ü", "u\u0308", "A", "00", "%", "*", "[a-z]", "\\", "ß" * 128]
        await begun(store, tenant, ids)
        for replica in (store, other):
            assert sorted(await listed(replica, tenant)) == sorted(ids)

    @pytest.mark.parametrize("count", [1, 7, 100, 1000])
    async def test_pages_add_up(self, store: StateStore, tenant: str, count: int) -> None:
        """Pages of any size hold all names between them, and each page about as many as were asked for."""
        ids = [f"id {number}" for number in range(150)]
        await begun(store, tenant, ids)
        assert set(await listed(store, tenant, count=count)) == set(ids)
        first = await store.names(tenant, "m", count=count)
        assert len(first.names) <= 2 * count + 20

    async def test_tenants_and_models_are_apart(self, store: StateStore, tenant: str) -> None:
        """Names of others are never listed, however much they look alike."""
        for owner, model in ((tenant, "m"), (tenant, "m:x"), (tenant, "*"), (tenant + ":m", "x"), ("*", tenant)):
            await begun(store, owner, [f"{owner} {model}"], model=model)
        for owner, model in ((tenant, "m"), (tenant, "m:x"), (tenant, "*"), (tenant + ":m", "x"), ("*", tenant)):
            assert await listed(store, owner, model) == [f"{owner} {model}"]
        assert await listed(store, "*", "*") == []

    async def test_ended_and_expired_ones_are_listed_until_forgotten(
        self, store: StateStore, tenant: str, lapse: Lapse
    ) -> None:
        """A list has what `load` finds: what has ended or expired too, what was forgotten not."""
        terms = Terms(idle_ms=MINUTE, lifetime_ms=MINUTE, retention_ms=5 * MINUTE)
        names = [SequenceName(tenant, "m", each) for each in ("ended", "expired", "live")]
        await begun(store, tenant, ["ended", "expired"], terms=terms)
        await begun(store, tenant, ["live"], terms=LASTING)
        await store.commit(names[0], Position(1, 1), a_record(2, ended=True), terms)
        await lapse(2 * MINUTE, *names[:2])
        assert sorted(await listed(store, tenant)) == ["ended", "expired", "live"]
        await lapse(4 * MINUTE + 30 * SECOND, *names[:2])
        assert await listed(store, tenant) == ["live"]

    async def test_what_is_there_throughout_is_listed(self, store: StateStore, tenant: str, lapse: Lapse) -> None:
        """Others may begin, go on, end and be forgotten between the pages: none that stays is left out."""
        staying = [f"{number} stays" for number in range(100)]
        going = [f"{number} goes" for number in range(100)]
        brief = Terms(idle_ms=MINUTE, lifetime_ms=MINUTE, retention_ms=0)
        await begun(store, tenant, staying, terms=LASTING)
        await begun(store, tenant, going, terms=brief)
        seen: set[str] = set()
        cursor = None
        for page_number in range(PAGES_MAX):
            page = await store.names(tenant, "m", cursor=cursor, count=9)
            seen |= {name.sequence_id for name in page.names}
            cursor = page.cursor
            if cursor is None:
                break
            await begun(store, tenant, [f"{number} came with {page_number}" for number in range(3)])
            stayed = SequenceName(tenant, "m", staying[page_number % 100])
            # Some go on, some end, some begin anew: all of them are still there.
            record = (a_record(2), a_record(2, ended=True), a_record(0, epoch=2))[page_number % 3]
            await store.commit(stayed, Position(1, 1), record, LASTING)
            await lapse(2 * MINUTE, *[SequenceName(tenant, "m", going.pop()) for _ in range(min(len(going), 10))])
        assert cursor is None
        assert set(staying) <= seen

    @pytest.mark.parametrize(
        "cursor", ["", "0", "x", "m", "1-1--", "-1-1--0", "m-a b", "m-%", "\u0661-1--0", "0" * 5000]
    )
    async def test_a_cursor_of_somebody_else_is_refused(self, store: StateStore, tenant: str, cursor: str) -> None:
        """What no store of this kind gave is invalid input, and names the field of the request that it came in."""
        await begun(store, tenant, ["one"])
        with pytest.raises(InvalidInput) as refused:
            await store.names(tenant, "m", cursor=cursor)
        assert refused.value.field == "page_token"
