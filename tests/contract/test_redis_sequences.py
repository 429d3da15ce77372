"""What a sequence is inside Redis: its hash, what it costs, other versions at work on it, its name in a list."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest
import redis.asyncio

from services.runtime.core.errors import CapacityExceeded, InvalidInput, StateCorrupt
from services.runtime.core.ids import SequenceName, new_sequence_id
from services.runtime.state.format import RecordFormat
from services.runtime.state.redis.keys import sequence_key
from services.runtime.state.redis.library import LIBRARY
from services.runtime.state.redis.names import Listing
from services.runtime.state.redis.store import RedisStore
from services.runtime.state.types import Absence, Position, Record, Stored
from tests.contract.checkpoint_kit import grown, kept
from tests.contract.names_kit import begun, listed
from tests.contract.store_fixtures import found
from tests.kit.records import TERMS, a_name, a_record, is_same
from tests.kit.redis_proxy import SwallowingProxy
from tests.kit.redis_server import RedisServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from services.runtime.state.redis.link import Call, RedisLink

BEFORE_CHECKPOINTS = Path(__file__).with_name("golden") / "sequences_before_checkpoints.lua"


@pytest.fixture
def server() -> Iterator[RedisServer]:
    """A server of the test's own."""
    with RedisServer() as server:
        yield server


@pytest.fixture
async def store(server: RedisServer) -> AsyncIterator[RedisStore]:
    """A store on that server."""
    store = RedisStore.from_url(server.url)
    yield store
    await store.close()


@pytest.fixture
async def raw(server: RedisServer) -> AsyncIterator[redis.asyncio.Redis]:
    """A plain client of that server."""
    async with redis.asyncio.from_url(server.url) as client:
        yield client


def _key(name: SequenceName) -> bytes:
    return sequence_key("ss", name)


class _Before(NamedTuple):
    """A replica of the version before checkpoints, as far as Redis can tell."""

    client: redis.asyncio.Redis
    library: str
    format: RecordFormat

    async def load(self, name: SequenceName) -> Record:
        data, position, _, _ = await self.client.fcall_ro(f"{self.library}_load", 1, _key(name))
        record = self.format.decode(name, data)
        assert position == b"%d:%d" % record.position
        return record

    async def commit(self, name: SequenceName, expected: Position | None, record: Record) -> bool:
        before = "" if expected is None else f"{expected.epoch}:{expected.step}"
        new_epoch = int(expected is None or expected.epoch != record.position.epoch)
        after, data = f"{record.position.epoch}:{record.position.step}", self.format.encode(name, record)
        call = f"{self.library}_{'end' if record.ended else 'commit'}"
        numbers = (new_epoch, int(record.ended), *(TERMS.idle_ms, TERMS.lifetime_ms, TERMS.retention_ms))
        return await self.client.fcall(call, 1, _key(name), before, after, *numbers, data) == 1


@pytest.fixture
async def before(raw: redis.asyncio.Redis) -> _Before:
    """The version before checkpoints, at work on the same server."""
    text = BEFORE_CHECKPOINTS.read_text()
    library = f"statestream_v1_{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    await raw.function_load(text.replace("statestream_v1", library))
    return _Before(raw, library, RecordFormat())


async def test_a_sequence_of_the_version_before_goes_on(store: RedisStore, before: _Before) -> None:
    """It has no checkpoints, takes steps, gets checkpoints, and can be resumed and ended."""
    name = a_name()
    assert await before.commit(name, None, a_record(1))
    stored = await found(store, name)
    assert is_same(stored.record, a_record(1))
    assert stored.checkpoints == ()
    assert await store.load_checkpoint(name, 1) is Absence.UNKNOWN
    assert await store.commit(name, Position(1, 1), a_record(2), TERMS, keep=2) is None
    assert await kept(store, name) == (1,)
    assert await store.commit(name, Position(1, 2), a_record(2, epoch=2), TERMS, continues=True) is None
    assert await store.commit(name, Position(2, 2), a_record(3, epoch=2, ended=True), TERMS) is None


async def test_two_versions_take_turns(store: RedisStore, before: _Before) -> None:
    """While an upgrade is under way each version reads and continues what the other one wrote."""
    name = await grown(store, [1, 2], keep=3)
    for step in range(2, 10, 2):
        assert await before.commit(name, Position(1, step), a_record(step + 1))
        assert is_same((await found(store, name)).record, a_record(step + 1))
        assert await store.commit(name, Position(1, step + 1), a_record(step + 2), TERMS, keep=3) is None
        assert is_same(await before.load(name), a_record(step + 2))
    assert await kept(store, name) == (5, 7, 9)


async def test_a_resume_shuts_out_the_version_before(store: RedisStore, before: _Before) -> None:
    """An old replica that works on in an older epoch commits nothing."""
    name = await grown(store, [1])
    assert await store.commit(name, Position(1, 1), a_record(1, epoch=2), TERMS, continues=True) is None
    assert not await before.commit(name, Position(1, 1), a_record(2))


async def test_a_start_by_the_version_before_leaves_no_checkpoints(
    store: RedisStore, before: _Before, raw: redis.asyncio.Redis
) -> None:
    """It does not know of them; those of the sequence of before are told to nobody, and go with the next ones."""
    name = await grown(store, [1, 2, 3], keep=3)
    assert await before.commit(name, Position(1, 3), a_record(0, epoch=2))
    assert await kept(store, name) == ()
    for step in (1, 2):
        assert await store.load_checkpoint(name, step) is Absence.UNKNOWN
    assert await before.commit(name, Position(2, 0), a_record(2, epoch=2, fill=9))
    assert await store.commit(name, Position(2, 2), a_record(3, epoch=2), TERMS, keep=3) is None
    assert await kept(store, name) == (2,)
    checkpoint = await store.load_checkpoint(name, 2)
    assert isinstance(checkpoint, Stored)
    assert is_same(checkpoint.record, a_record(2, epoch=2, fill=9))
    assert sorted(await raw.hkeys(_key(name).decode())) == [b"b", b"c2", b"k", b"p", b"r", b"x"]


async def test_what_is_dropped_takes_no_memory(store: RedisStore, raw: redis.asyncio.Redis) -> None:
    """After an end and after a new start the hash has the fields of a sequence without checkpoints."""
    for record in (a_record(4, ended=True), a_record(0, epoch=2)):
        name = await grown(store, [1, 2, 3], keep=3)
        assert await store.commit(name, Position(1, 3), record, TERMS, keep=3) is None
        assert sorted(await raw.hkeys(_key(name).decode())) == [b"b", b"p", b"r", b"x"]


async def test_memory_does_not_grow_with_length(store: RedisStore, raw: redis.asyncio.Redis) -> None:
    """A sequence of 400 steps takes no more than one of 40, with checkpoints and without."""
    for keep in (0, 3):
        name, sizes = a_name(), list[int]()
        position = None
        for step in range(100, 500):
            assert await store.commit(name, position, a_record(step), TERMS, keep=keep if step % 8 == 0 else 0) is None
            position = Position(1, step)
            sizes.append(await raw.memory_usage(_key(name).decode(), samples=0) or 0)
        assert max(sizes) == max(sizes[:40])


async def _commands(raw: redis.asyncio.Redis) -> dict[str, int]:
    stats = await raw.info("commandstats")
    calls = {command.removeprefix("cmdstat_"): stat["calls"] for command, stat in stats.items()}
    return {command: count for command, count in calls.items() if command not in ("config|resetstat", "info")}


async def test_what_a_step_costs(store: RedisStore, raw: redis.asyncio.Redis) -> None:
    """The figures in the documentation of `redis.py`: a step that keeps nothing costs no more for checkpoints."""
    plain = {"fcall": 1, "time": 1, "hmget": 1, "hset": 1, "pexpireat": 1}
    for steps, keep, expected in (
        ([1], 0, plain),
        ([1, 2, 3], 2, plain),
        ([1], 2, plain | {"hget": 1, "hset": 3}),
        ([1, 2, 3], 2, plain | {"hget": 1, "hset": 3, "hdel": 1}),
    ):
        keeps_now = keep if "hget" in expected else 0
        name = await grown(store, steps, keep=keep)
        await raw.config_resetstat()
        before, after = Position(1, steps[-1]), a_record(steps[-1] + 1)
        assert await store.commit(name, before, after, TERMS, keep=keeps_now) is None
        assert await _commands(raw) == expected
    await raw.config_resetstat()
    await store.load(name)
    assert await _commands(raw) == {"fcall_ro": 1, "time": 1, "hmget": 1}


async def test_a_damaged_checkpoint_harms_nothing_else(store: RedisStore, raw: redis.asyncio.Redis) -> None:
    """It is never served; the record and the other checkpoints are, and the sequence goes on."""
    name = await grown(store, range(1, 7), keep=5)
    whole = await raw.hget(_key(name).decode(), "c2")
    assert isinstance(whole, bytes)
    await raw.hset(_key(name).decode(), "c1", whole[:60] + bytes([whole[60] ^ 4]) + whole[61:])
    await raw.hset(_key(name).decode(), "c3", whole)
    await raw.hdel(_key(name).decode(), "c4")
    for step in (1, 3, 4):
        with pytest.raises(StateCorrupt):
            await store.load_checkpoint(name, step)
    assert (await found(store, name)).checkpoints == (1, 2, 3, 4, 5)
    for step in (2, 5):
        checkpoint = await store.load_checkpoint(name, step)
        assert isinstance(checkpoint, Stored)
        assert is_same(checkpoint.record, a_record(step, fill=step))
    assert await store.commit(name, Position(1, 6), a_record(7), TERMS, keep=2) is None
    assert await kept(store, name) == (5, 6)


async def test_a_damaged_list_of_checkpoints_can_be_replaced(store: RedisStore, raw: redis.asyncio.Redis) -> None:
    """It is told as damage, with the position that a new start has to expect."""
    name = await grown(store, [1, 2], keep=5)
    await raw.hset(_key(name).decode(), "k", "1:1 x")
    with pytest.raises(StateCorrupt) as damaged:
        await store.load(name)
    assert damaged.value.metadata == {"epoch": "1", "step": "2"}
    assert await store.commit(name, Position(1, 2), a_record(0, epoch=2), TERMS) is None
    assert await kept(store, name) == ()


async def test_a_checkpoint_of_another_sequence_is_refused(server: RedisServer, raw: redis.asyncio.Redis) -> None:
    """Whoever can write to Redis still cannot give one tenant the checkpoints of another."""
    store = RedisStore.from_url(server.url, records=RecordFormat(b"key"))
    one, other = [await grown(store, [1, 2], keep=5) for _ in range(2)]
    checkpoint = await raw.hget(_key(one).decode(), "c1")
    assert isinstance(checkpoint, bytes)
    await raw.hset(_key(other).decode(), "c1", checkpoint)
    with pytest.raises(StateCorrupt):
        await store.load_checkpoint(other, 1)
    await store.close()


async def test_a_repeated_commit_makes_one_checkpoint(server: RedisServer) -> None:
    """Applied, then sent again because the answer was lost: success, and the checkpoints of one commit."""
    async with SwallowingProxy(server.socket) as proxy:
        store = RedisStore.from_url(proxy.url, connections=1)
        name = await grown(store, [1, 2, 3], keep=2)
        proxy.swallow = True
        assert await store.commit(name, Position(1, 3), a_record(4), TERMS, keep=2) is None
        assert not proxy.swallow, "the answer was not swallowed"
        assert await kept(store, name) == (2, 3)
        await store.close()


async def test_a_full_server_makes_no_checkpoint_and_drops_them_all(
    store: RedisStore, raw: redis.asyncio.Redis
) -> None:
    """Out of memory: a refused commit leaves the checkpoints as they are; an end is taken and makes room."""
    name = await grown(store, [1, 2, 3], keep=5)
    await raw.config_set("maxmemory", 1)
    with pytest.raises(CapacityExceeded):
        await store.commit(name, Position(1, 3), a_record(4), TERMS, keep=5)
    assert await kept(store, name) == (1, 2)
    assert await store.commit(name, Position(1, 3), a_record(4, ended=True), TERMS) is None
    assert await kept(store, name) == ()


async def test_keys_that_are_not_ours_are_in_no_list(store: RedisStore, raw: redis.asyncio.Redis) -> None:
    """Neither other kinds of values, nor names that were not written as ours are, nor other prefixes."""
    await begun(store, "t", ["ours"])
    await raw.set("ss:t:m:text", "x")
    for key in (
        "ss:t:m:not quoted",
        "ss:t:m:a:b",
        "ss:t:m:%2f",
        "ss:t:m:%41",
        b"ss:t:m:\xff",
        "xss:t:m:y",
        "ss:t:mm:y",
    ):
        await raw.hset(key, "p", "1:1")
    assert await listed(store, "t") == ["ours"]


async def test_many_keys_of_others_do_not_hide_ours(store: RedisStore, raw: redis.asyncio.Redis) -> None:
    """One call looks at a bounded number of keys, so a page may be empty; the last one comes all the same."""
    async with raw.pipeline(transaction=False) as pipeline:
        for number in range(30_000):
            pipeline.set(f"other {number}", "x")
        await pipeline.execute()
    await begun(store, "t", map(str, range(20)))
    await raw.config_resetstat()
    page = await store.names("t", "m", count=10)
    assert (await _commands(raw))["scan"] <= 16
    assert page.cursor is not None
    assert set(await listed(store, "t", count=10)) == set(map(str, range(20)))


async def test_a_cursor_of_a_server_that_is_gone_is_refused(server: RedisServer, store: RedisStore) -> None:
    """Another server, or the same after a restart, keeps its keys in another order: names could be left out."""
    await begun(store, "t", map(str, range(200)))
    page = await store.names("t", "m", count=10)
    server.stop()
    server.start()
    await begun(store, "t", map(str, range(200)))
    with pytest.raises(InvalidInput, match="begin with the first page") as refused:
        await store.names("t", "m", cursor=page.cursor)
    assert refused.value.field == "page_token"
    assert len(set(await listed(store, "t"))) == 200


class _Links:
    """Leads to several servers, as the link to a cluster does."""

    def __init__(self, links: list[RedisLink]) -> None:
        self.links = links

    def call(self, *pieces: bytes, key: bytes | None = None, acked: bool = False) -> Call:
        raise AssertionError("lists ask each server")

    async def masters(self) -> list[RedisLink]:
        return self.links

    async def close(self) -> None:
        pass


async def test_a_list_goes_over_all_servers(server: RedisServer, store: RedisStore) -> None:
    """The names of each are listed, one after the other; with another number of servers a cursor means nothing."""
    tenant = new_sequence_id()
    with RedisServer() as second, RedisServer() as bare:
        others = [RedisStore.from_url(each.url) for each in (bare, second)]
        stores = [store, *others]
        await asyncio.gather(begun(store, tenant, ["a", "b", "c"]), begun(others[1], tenant, ["d", "e"]))
        every = [await each._link.masters() for each in stores]  # pyright: ignore[reportPrivateUsage]
        links = _Links([link for one in every for link in one])
        listing = Listing(links, LIBRARY, "ss", tenant, "m")
        for count in (1, 100):
            names, page = list[str](), await listing.page(None, count)
            names += [name.sequence_id for name in page.names]
            while page.cursor is not None:
                page = await listing.page(page.cursor, count)
                names += [name.sequence_id for name in page.names]
            assert sorted(set(names)) == ["a", "b", "c", "d", "e"]
        cursor = (await listing.page(None, 1)).cursor
        assert cursor is not None
        links.links = links.links[:2]
        with pytest.raises(InvalidInput):
            await listing.page(cursor, 1)
        for each in others:
            await each.close()
